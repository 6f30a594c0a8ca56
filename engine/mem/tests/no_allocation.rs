//! Taking and giving back packets, and keys once their memory is there, asks the global allocator for nothing.

use allocation_counter::measure;
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache, SMALL_MAX, Secret, reserve_secrets};

#[test]
fn packets_and_keys_allocate_nothing() {
    let arena = Arena::new(&ArenaConfig {
        frames: 1024,
        jumbo_frames: 16,
    })
    .expect("arena");
    let mut cache = FrameCache::new(arena);
    reserve_secrets(2000);
    let allocations = measure(|| {
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
    });
    assert_eq!(allocations.count_total, 0);
}
