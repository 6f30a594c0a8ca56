//! Moving frames through a DPDK port asks the allocator for nothing. (What the driver does in C is not seen.)
#![cfg(feature = "dpdk")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use patronus_io::Port;
use patronus_io::dpdk::{DeviceConfig, Dpdk, Options};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};

struct Counting;

thread_local! {
    /// Of this thread: the test harness has others, which allocate when they like.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
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
fn a_burst_each_way_allocates_nothing() {
    let config = ArenaConfig {
        frames: 4096,
        jumbo_frames: 64,
    };
    let arena = Arena::new(&config).expect("arena");
    let options = Options {
        huge_pages: false,
        ..Options::default()
    };
    let dpdk = Dpdk::start(&options, arena).expect("DPDK starts");
    let config = DeviceConfig {
        mtu: 5000,
        ..DeviceConfig::new("net_ring0")
    };
    let (_device, mut ports) = dpdk.open(&config).expect("a device");
    let port = &mut ports[0];
    let mut frames = FrameCache::new(arena);
    let mut burst = Burst::new();
    let before = ALLOCATIONS.get();
    assert!(before > 0, "the counter works");
    for _ in 0..300 {
        // One in four comes and goes in several frames, one in ten is too long for the device.
        for n in 0..40usize {
            let len = if n.is_multiple_of(10) {
                5100
            } else {
                [60, 1400, 5000, 64][n % 4]
            };
            let mut pkt = frames.alloc_for(len).expect("a frame");
            pkt.append(len).fill(2);
            burst.push(pkt);
        }
        port.tx_burst(&mut frames, &mut burst).expect("tx");
        while port.rx_burst(&mut frames, &mut burst).expect("rx") > 0 {
            burst.clear_into(&mut frames);
        }
    }
    assert_eq!(ALLOCATIONS.get(), before);
    let counters = port.counters();
    assert_eq!(counters.rx_packets.get(), 300 * 36);
    assert_eq!(
        [counters.tx_packets.get(), counters.tx_too_big.get()],
        [300 * 36, 300 * 4]
    );
}
