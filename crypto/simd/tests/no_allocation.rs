//! A burst asks the global allocator for nothing.

use allocation_counter::measure;
use patronus_crypto_simd::{Isa, Kernel, Packet, TAG};

#[test]
fn a_burst_allocates_nothing() {
    for kernel in Isa::ALL.into_iter().filter_map(Kernel::new) {
        for count in [1, 3, 13, 64] {
            for len in [0, 64, 1420] {
                let mut bufs = vec![vec![5; len + TAG]; count];
                let mut packets: Vec<Packet<'_>> = bufs
                    .iter_mut()
                    .map(|buf| Packet::new(&[1; 32], [2; 12], &[], buf))
                    .collect();
                let allocations = measure(|| {
                    kernel.seal(&mut packets);
                    kernel.open(&mut packets);
                    // Forged now.
                    kernel.open(&mut packets);
                });
                assert_eq!(allocations.count_total, 0, "{kernel:?}");
                // Without a text, it still is what was sealed.
                assert!(packets.iter().all(|packet| packet.ok == (len == 0)));
            }
        }
    }
}
