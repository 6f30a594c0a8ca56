//! A burst asks the global allocator for nothing.

use patronus_crypto_simd::{Isa, Kernel, Packet, TAG};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, with a count for each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

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
                let before = CALLS.get();
                kernel.seal(&mut packets);
                kernel.open(&mut packets);
                // Forged now.
                kernel.open(&mut packets);
                assert_eq!(CALLS.get(), before, "{kernel:?}");
                // Without a text, it still is what was sealed.
                assert!(packets.iter().all(|packet| packet.ok == (len == 0)));
            }
        }
    }
    drop(Box::new(0));
    assert!(CALLS.get() > 0, "the count counts");
}
