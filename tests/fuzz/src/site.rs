//! A site as bytes. Whoever passes sites to an engine can write anything, with a right check sum too.

use patronus_abi::blob::seal;
use patronus_abi::{decode, encode};

/// Is refused, or means one site.
pub fn run(input: &[u8]) {
    let mut blob = input.to_vec();
    // The length is made right as well: else hardly anything gets past it.
    if let Some(len) = blob.get_mut(16..24) {
        len.copy_from_slice(&(input.len() as u64).to_le_bytes());
    }
    seal(&mut blob);
    if let Ok((site, generation)) = decode(&blob) {
        assert_eq!(encode(&site, generation).as_deref(), Ok(&blob[..]));
    }
}
