//! Taking and giving back packets, and keys once their memory is there, asks the global allocator for nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache, SMALL_MAX, Secret, reserve_secrets};

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

// The only test here: others would allocate on threads of their own.
#[test]
fn packets_and_keys_allocate_nothing() {
    let arena = Arena::new(&ArenaConfig {
        frames: 1024,
        jumbo_frames: 16,
    })
    .expect("arena");
    let mut cache = FrameCache::new(arena);
    reserve_secrets(2000);
    let before = ALLOCATIONS.get();
    assert!(before > 0, "the counter works");
    for round in 0..1000 {
        let mut bursts: [Burst; 10] = Default::default();
        for burst in &mut bursts {
            while burst.room() > 0 {
                burst.push(cache.alloc().expect("a frame"));
            }
        }
        cache.alloc_for(SMALL_MAX + 1).expect("a frame");
        for burst in &mut bursts[round % 10..] {
            burst.clear_into(&mut cache);
        }
        drop(bursts);
    }
    let keys: [Secret<32>; 1000] = std::array::from_fn(|_| Secret::zeroed());
    let copies = keys.each_ref().map(Clone::clone);
    drop((keys, copies));
    assert_eq!(ALLOCATIONS.get(), before);
}
