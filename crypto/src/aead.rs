//! ChaCha20-Poly1305 (RFC 8439) over bursts of packets, behind one trait.
//!
//! Called by the workers, a whole burst at a time: packets of several sessions and lengths together, in place. Nothing
//! here knows of ports or packet buffers. Which backend is the default and why is in docs/adr/0003-aead-backend.md.

use arrayvec::ArrayVec;
use ours::Ours;
use patronus_crypto_simd::Isa;
use patronus_mem::Secret;
use std::sync::OnceLock;

mod aws_lc;
mod ours;
mod rustcrypto;

/// Length of the authentication tag behind a sealed text, bytes.
pub const TAG: usize = 16;

/// One packet to seal or open.
pub struct Job<'a> {
    /// The session's key for this direction.
    pub key: &'a Secret<32>,
    /// The packet's counter. The nonce is four zero bytes and this number in little-endian order (WireGuard paper,
    /// section 5.4.6).
    pub counter: u64,
    /// To seal: the plain text and [`TAG`] bytes of room behind it. To open: cipher text and tag.
    pub buf: &'a mut [u8],
    /// Set by the call: whether `buf` now holds what was asked for. A buffer too short for a tag is never `ok`.
    pub ok: bool,
}

impl<'a> Job<'a> {
    /// A packet that has not been worked on.
    pub fn new(key: &'a Secret<32>, counter: u64, buf: &'a mut [u8]) -> Self {
        Job {
            key,
            counter,
            buf,
            ok: false,
        }
    }
}

/// An implementation of ChaCha20-Poly1305. Keys are only borrowed: an implementation leaves no copy of one in memory
/// that it owns.
pub trait Aead: Send + Sync {
    /// The name by which [`by_name`] finds it.
    fn name(&self) -> &'static str;

    /// Encrypts each packet in place and writes its tag behind it. No additional data.
    fn seal(&self, burst: &mut [Job<'_>]);

    /// Checks each packet's tag and decrypts it in place. Where the tag is wrong, `ok` is false and no plain text is
    /// left in the buffer.
    fn open(&self, burst: &mut [Job<'_>]);

    /// Seals one text with any nonce and additional data, `buf` as in [`Job`]: the whole of RFC 8439, section 2.8, for
    /// handshakes and test vectors. False if `buf` is shorter than a tag.
    fn seal_one(&self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool;

    /// Opens one text with any nonce and additional data, `buf` as in [`Job`].
    fn open_one(&self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool;
}

/// The nonce of the packet with this counter.
fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// The backends that this machine can run, the default first.
static ALL: OnceLock<ArrayVec<&'static dyn Aead, 6>> = OnceLock::new();
/// Those of our own kernels that it can run.
static OURS: OnceLock<ArrayVec<Ours, 4>> = OnceLock::new();

/// The backend to use where nothing else is asked for.
pub fn default() -> &'static dyn Aead {
    all()[0]
}

/// The backend called `name`.
pub fn by_name(name: &str) -> Result<&'static dyn Aead, NotThere> {
    if let Some(aead) = all().iter().find(|aead| aead.name() == name) {
        return Ok(*aead);
    }
    Err(match Isa::ALL.into_iter().find(|isa| ours::name(*isa) == name) {
        Some(isa) => NotThere::Needs(ours::name(isa), isa.needs()),
        None => NotThere::Unknown(name.to_owned()),
    })
}

/// Every backend that this machine can run, the default first. The first call looks at the processor.
pub fn all() -> &'static [&'static dyn Aead] {
    ALL.get_or_init(|| {
        let ours = OURS.get_or_init(|| Isa::ALL.into_iter().filter_map(Ours::new).collect());
        let libraries: [&dyn Aead; 2] = [&aws_lc::AwsLc, &rustcrypto::RustCrypto];
        // In the order of what they take for a burst of 32: the portable kernel is for where nothing else is, and no default.
        let (portable, vector): (ArrayVec<&Ours, 4>, ArrayVec<&Ours, 4>) =
            ours.iter().partition(|ours| ours.is_portable());
        let vector = vector.into_iter().map(|ours| ours as &dyn Aead);
        let portable = portable.into_iter().map(|ours| ours as &dyn Aead);
        vector.chain(libraries).chain(portable).collect()
    })
}

/// Why there is no backend of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotThere {
    /// No backend is called that.
    Unknown(String),
    /// The backend of this name is for processors with what is said.
    Needs(&'static str, &'static str),
}

impl std::fmt::Display for NotThere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotThere::Unknown(name) => write!(f, "there is no AEAD backend `{name}`")?,
            NotThere::Needs(name, needs) => {
                write!(f, "the AEAD backend `{name}` needs a processor with {needs}")?;
            }
        }
        let here: Vec<_> = all().iter().map(|aead| aead.name()).collect();
        write!(f, ": on this machine choose one of {}", here.join(", "))
    }
}

impl std::error::Error for NotThere {}
