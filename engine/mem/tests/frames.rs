//! Frames: every one has one owner, none is lost, and a packet never leaves its frame.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, mpsc};

use patronus_mem::{
    Annex, Arena, ArenaConfig, BURST_MAX, Burst, FRAME, FrameCache, HEADROOM, JUMBO_MAX, Outer, PktBuf,
    SMALL_MAX, TAILROOM, Unfinished,
};
use proptest::prelude::*;

fn arena(frames: usize, jumbo_frames: usize) -> &'static Arena {
    Arena::new(&ArenaConfig { frames, jumbo_frames }).expect("arena")
}

/// Cases per property: few under the interpreter, which is a thousand times slower.
fn cases(n: u32) -> ProptestConfig {
    let cases = if cfg!(miri) { 4 } else { n };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn all_frames_are_handed_out_once_and_come_back() {
    let (small, jumbo) = if cfg!(miri) { (300, 3) } else { (5000, 40) };
    let arena = arena(small, jumbo);
    assert_eq!(
        (arena.frames(), arena.free_frames()),
        (small + jumbo, small + jumbo)
    );
    // The second round shows that what came back in the first is every frame once, and not one frame twice.
    for _ in 0..2 {
        let mut cache = FrameCache::new(arena);
        let mut held: Vec<PktBuf> = std::iter::from_fn(|| cache.alloc()).collect();
        assert_eq!(held.len(), small);
        held.extend(std::iter::from_fn(|| cache.alloc_for(SMALL_MAX + 1)));
        assert_eq!(held.len(), small + jumbo);
        assert_eq!(arena.free_frames(), 0);
        assert!(cache.alloc().is_none() && cache.alloc_for(JUMBO_MAX).is_none());

        let starts: HashSet<_> = held.iter().map(|pkt| pkt.data().as_ptr()).collect();
        assert_eq!(starts.len(), small + jumbo, "no frame twice");
        // Most by way of the cache, more than it holds; some by dropping.
        for (n, pkt) in held.into_iter().enumerate() {
            if n % 10 != 0 {
                cache.free(pkt);
            }
        }
        drop(cache);
        assert_eq!(arena.free_frames(), small + jumbo);
    }
}

#[test]
fn flush_gives_everything_back() {
    let arena = arena(300, 2);
    let mut cache = FrameCache::new(arena);
    cache.alloc();
    let pkt = cache.alloc_for(JUMBO_MAX).expect("a frame");
    cache.free(pkt);
    assert!(arena.free_frames() < 302);
    cache.flush();
    assert_eq!(arena.free_frames(), 302);
}

#[test]
fn no_frames_at_all() {
    let mut cache = FrameCache::new(arena(0, 0));
    assert!(cache.alloc().is_none() && cache.alloc_for(2000).is_none());
    assert!(
        Arena::new(&ArenaConfig {
            frames: usize::MAX,
            jumbo_frames: 1
        })
        .is_err()
    );
}

#[test]
fn sizes() {
    let mut cache = FrameCache::new(arena(8, 2));
    let mut frame = |len| cache.alloc_for(len);
    for (len, tail) in [(0, FRAME - HEADROOM), (SMALL_MAX, TAILROOM)] {
        let mut pkt = frame(len).expect("a frame");
        assert_eq!(
            (pkt.len(), pkt.headroom(), pkt.tailroom()),
            (0, HEADROOM, FRAME - HEADROOM)
        );
        pkt.append(len);
        assert_eq!(pkt.tailroom(), tail);
    }
    for (len, tail) in [
        (SMALL_MAX + 1, JUMBO_MAX - SMALL_MAX - 1 + TAILROOM),
        (JUMBO_MAX, TAILROOM),
    ] {
        let mut pkt = frame(len).expect("a frame");
        pkt.append(len).fill(0xa5);
        assert_eq!((pkt.len(), pkt.headroom(), pkt.tailroom()), (len, HEADROOM, tail));
    }
    assert!(frame(JUMBO_MAX + 1).is_none());
}

#[test]
fn frames_begin_at_cache_lines_and_share_no_set() {
    let mut cache = FrameCache::new(arena(64, 0));
    let held: Vec<PktBuf> = (0..64).map(|_| cache.alloc().expect("a frame")).collect();
    // 64 sets of 64-byte lines, as in a first-level cache of 32 KiB.
    let sets: HashSet<_> = held
        .iter()
        .map(|pkt| pkt.data().as_ptr() as usize / 64 % 64)
        .collect();
    assert_eq!(sets.len(), 64);
    assert!(
        held.iter()
            .all(|pkt| pkt.data().as_ptr().addr().is_multiple_of(64))
    );
}

#[test]
fn fresh_frame_remembers_nothing() {
    let mut cache = FrameCache::new(arena(1, 0));
    let mut pkt = cache.alloc().expect("a frame");
    pkt.append(100);
    pkt.trim_front(7);
    *pkt.outer_mut() = Outer::new("192.0.2.1:1".parse().expect("address"));
    cache.free(pkt);
    let pkt = cache.alloc().expect("the same frame");
    assert_eq!(
        (pkt.len(), pkt.headroom(), *pkt.outer()),
        (0, HEADROOM, Outer::NONE)
    );
}

#[test]
fn addresses_are_the_packets_and_stay_with_it() {
    let mut cache = FrameCache::new(arena(1, 1));
    for len in [100, JUMBO_MAX] {
        let mut pkt = cache.alloc_for(len).expect("a frame");
        let outer = Outer::new("192.0.2.1:1".parse().expect("address"));
        *pkt.outer_mut() = outer;
        pkt.append(len);
        pkt.trim_front(100);
        pkt.prepend(HEADROOM + 100);
        pkt.truncate(7);
        pkt.set_len(9);
        assert_eq!((pkt.headroom(), pkt.len(), *pkt.outer()), (0, 9, outer));
        pkt.outer_mut().set_tos(3);
        assert!(pkt.outer().same_path(&outer) && pkt.outer().tos() == 3);
        let frame = pkt.frame();
        for mark in [0, 1, PktBuf::MARKS - 1, 2] {
            pkt.set_mark(mark);
            pkt.prepend(0);
            pkt.truncate(8);
            assert_eq!(
                (pkt.mark(), pkt.headroom(), pkt.len(), pkt.frame()),
                (mark, 0, 8, frame)
            );
            assert!(pkt.outer().same_path(&outer));
        }
        pkt.reset();
        assert_eq!(
            (pkt.headroom(), pkt.len(), *pkt.outer()),
            (HEADROOM, 0, Outer::NONE)
        );
        assert_eq!(pkt.mark(), 0);
        // What an earlier packet left is not an address of this one.
        pkt.outer_mut().set_tos(1);
        assert_eq!(pkt.outer().remote(), None);
        cache.free(pkt);
    }
}

#[test]
fn frame_of_another_arena_goes_home() {
    let (here, there) = (arena(4, 1), arena(2, 1));
    let (mut cache, mut other) = (FrameCache::new(here), FrameCache::new(there));
    let (small, jumbo) = (
        other.alloc().expect("a frame"),
        other.alloc_for(JUMBO_MAX).expect("a frame"),
    );
    cache.free(small);
    cache.free(jumbo);
    drop((cache, other));
    assert_eq!((here.free_frames(), there.free_frames()), (5, 3));
}

#[test]
#[should_panic(expected = "headroom")]
fn prepend_beyond_the_frame() {
    FrameCache::new(arena(1, 0))
        .alloc()
        .expect("a frame")
        .prepend(HEADROOM + 1);
}

#[test]
#[should_panic(expected = "tailroom")]
fn append_beyond_the_frame() {
    FrameCache::new(arena(1, 0))
        .alloc()
        .expect("a frame")
        .append(FRAME - HEADROOM + 1);
}

#[test]
#[should_panic(expected = "tailroom")]
fn append_that_overflows() {
    let mut pkt = FrameCache::new(arena(1, 0)).alloc().expect("a frame");
    pkt.append(1);
    pkt.append(usize::MAX);
}

#[test]
#[should_panic(expected = "longer than the frame")]
fn length_beyond_the_frame() {
    FrameCache::new(arena(1, 0))
        .alloc()
        .expect("a frame")
        .set_len(FRAME - HEADROOM + 1);
}

#[test]
#[should_panic(expected = "beyond the packet")]
fn trim_beyond_the_packet() {
    FrameCache::new(arena(1, 0))
        .alloc()
        .expect("a frame")
        .trim_front(1);
}

#[test]
fn free_frames_are_lent_all_or_none_and_come_back() {
    let arena = arena(100, 4);
    let mut cache = FrameCache::new(arena);
    let mut some = [0; 60];
    assert!(cache.lend_free(&mut some));
    assert!(!cache.lend_free(&mut [0; 41]), "40 are left");
    let mut rest = [0; 40];
    assert!(cache.lend_free(&mut rest));
    assert!(cache.alloc().is_none() && cache.lend_free(&mut []));
    let mut all: Vec<u32> = some.into_iter().chain(rest).collect();
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<_>>(), "each once");
    // SAFETY: lent above, and nobody uses them.
    unsafe { cache.take_back_free(&rest) };
    let taken: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    assert_eq!(taken.len(), 40);
    // SAFETY: as above.
    unsafe { cache.take_back_free(&some) };
    drop((taken, cache));
    assert_eq!(arena.free_frames(), arena.frames());
    let region = arena.region();
    assert!(region.page.is_power_of_two() && region.start.addr().get().is_multiple_of(region.page));
}

#[test]
fn an_arena_on_giant_pages_takes_what_there_is() {
    let config = ArenaConfig {
        frames: 2000,
        jumbo_frames: 0,
    };
    let arena = Arena::on_giant_pages(&config).expect("an arena");
    let region = arena.region();
    if arena.is_huge() {
        assert!([2 << 20, 1 << 30].contains(&region.page), "{}", region.page);
    } else {
        assert!(region.page < 2 << 20);
    }
    assert!(region.start.addr().get().is_multiple_of(region.page));
    let mut cache = FrameCache::new(arena);
    let all: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    assert_eq!(all.len(), 2000);
}

#[test]
fn handles_are_numbers_on_the_way_to_c_and_back() {
    let arena = arena(64, 1);
    let mut cache = FrameCache::new(arena);
    let mut burst = Burst::new();
    for n in 0..3 {
        let mut pkt = cache.alloc().expect("a frame");
        pkt.append(10 + n).fill(n as u8);
        pkt.prepend(4).fill(9);
        burst.push(pkt);
    }
    burst[1].leave_unfinished(Some(Unfinished::UdpV6));
    let region = arena.region();
    let raw = burst.hand_over().to_vec();
    assert!(burst.is_empty());
    for (n, raw) in (0..).zip(&raw) {
        let behind = raw.line.addr() - region.lines.addr().get();
        assert!(behind.is_multiple_of(region.line) && behind / region.line < 64);
        assert_eq!(raw.place as u32, 14 + n);
        assert_eq!((raw.place >> 32) as u16, HEADROOM as u16 - 4);
        assert_eq!(raw.place >> 61 & 3, if n == 1 { 2 } else { 0 });
    }
    let (end, room) = burst.spare();
    assert_eq!(room, BURST_MAX);
    // SAFETY: there is room for that many, and they were handed over.
    unsafe {
        std::ptr::copy_nonoverlapping(raw.as_ptr(), end, raw.len());
        burst.grow(raw.len());
    }
    for (n, pkt) in (0..).zip(&burst) {
        assert_eq!(pkt.data()[..4], [9; 4]);
        assert!(pkt.data()[4..].iter().all(|byte| *byte == n) && pkt.len() == 14 + usize::from(n));
    }
    assert_eq!(burst[1].unfinished(), Some(Unfinished::UdpV6));
    let mut alone = burst.pop().expect("a packet");
    alone.leave_unfinished(Some(Unfinished::UdpV4));
    assert_eq!(
        (alone.headroom(), alone.tailroom()),
        (HEADROOM - 4, FRAME - HEADROOM - 12)
    );
    // SAFETY: the handle was a packet's until now.
    let mut alone = unsafe { PktBuf::from_raw(alone.into_raw()) };
    assert_eq!(alone.unfinished(), Some(Unfinished::UdpV4));
    alone.leave_unfinished(None);
    assert_eq!(alone.unfinished(), None);
    cache.free(alone);
    drop((burst, cache));
    assert_eq!(arena.free_frames(), arena.frames());
}

#[test]
fn an_annex_is_emptied_when_there_is_nothing_else_and_closed_at_the_end() {
    static ELSEWHERE: Mutex<Vec<u32>> = Mutex::new(Vec::new());
    static CLOSED: AtomicU32 = AtomicU32::new(0);
    /// # Safety
    /// `cache` is a cache that nobody else uses.
    unsafe fn empty(number: u32, cache: *mut FrameCache) {
        assert_eq!(number, 7);
        let frames = std::mem::take(&mut *ELSEWHERE.lock().expect("a lock"));
        // SAFETY: a cache, and frames that the test has lent.
        unsafe { (*cache).take_back_free(&frames) };
    }
    fn close(number: u32) {
        CLOSED.store(number, Ordering::Relaxed);
    }
    let arena = arena(100, 0);
    let mut cache = FrameCache::new(arena);
    assert_eq!(cache.annex(), None);
    let (number, mut lent) = (7, [0; 60]);
    // SAFETY: the functions do what they should.
    unsafe { cache.attach(Annex { number, empty, close }) };
    assert_eq!(cache.annex(), Some(7));
    assert!(cache.lend_free(&mut lent));
    ELSEWHERE.lock().expect("a lock").extend(&lent[..30]);
    let taken: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    assert_eq!(taken.len(), 70, "all but those that are lent");
    drop(taken);
    ELSEWHERE.lock().expect("a lock").extend(&lent[30..]);
    cache.flush();
    assert_eq!(arena.free_frames(), 100, "it is emptied with the cache");
    drop(cache);
    assert_eq!(CLOSED.load(Ordering::Relaxed), 7);
}

#[test]
fn frames_travel_between_threads() {
    let rounds = if cfg!(miri) { 100 } else { 20_000 };
    let arena = arena(400, 0);
    let (to, from) = mpsc::sync_channel::<PktBuf>(100);
    let consumer = std::thread::spawn(move || {
        let mut cache = FrameCache::new(arena);
        for (n, pkt) in from.into_iter().enumerate() {
            assert_eq!(pkt.data(), n.to_ne_bytes());
            cache.free(pkt);
        }
    });
    let mut cache = FrameCache::new(arena);
    for n in 0..rounds {
        // The consumer's cache keeps 256 at most and the channel 100, so that some always come back.
        let mut pkt = loop {
            match cache.alloc() {
                Some(pkt) => break pkt,
                None => std::thread::yield_now(),
            }
        };
        pkt.append(8).copy_from_slice(&usize::to_ne_bytes(n));
        to.send(pkt).expect("consumer");
    }
    drop((to, cache));
    consumer.join().expect("consumer");
    assert_eq!(arena.free_frames(), 400);
}

#[derive(Clone, Debug)]
enum Edit {
    Prepend(usize),
    Append(usize),
    TrimFront(usize),
    Truncate(usize),
    Shrink(usize),
    Reset,
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        3 => (0..200_usize).prop_map(Edit::Prepend),
        3 => (0..900_usize).prop_map(Edit::Append),
        2 => (0..400_usize).prop_map(Edit::TrimFront),
        1 => (0..2000_usize).prop_map(Edit::Truncate),
        1 => (0..2000_usize).prop_map(Edit::Shrink),
        1 => Just(Edit::Reset),
    ]
}

/// Steps of a case; as with the cases, few under the interpreter.
const STEPS: usize = if cfg!(miri) { 40 } else { 600 };

#[derive(Clone, Debug)]
enum Step {
    Alloc(bool, bool),
    Free(bool, usize),
    Drop(usize),
    Flush(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(cache, jumbo)| Step::Alloc(cache, jumbo)),
        4 => (any::<bool>(), any::<usize>()).prop_map(|(cache, which)| Step::Free(cache, which)),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => any::<bool>().prop_map(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(cases(64))]

    /// A packet behaves as a double-ended queue of bytes with room on both sides.
    #[test]
    fn packet_is_a_queue_of_bytes(edits in prop::collection::vec(edit(), 0..60)) {
        let arena = arena(1, 0);
        let mut pkt = FrameCache::new(arena).alloc().expect("a frame");
        let mut model = VecDeque::new();
        let (mut head, mut mark) = (HEADROOM, 0_u8);
        for edit in edits {
            mark = mark.wrapping_add(1);
            match edit {
                Edit::Prepend(n) if n <= head => {
                    pkt.prepend(n).fill(mark);
                    (0..n).for_each(|_| model.push_front(mark));
                    head -= n;
                }
                Edit::Append(n) if n <= FRAME - head - model.len() => {
                    pkt.append(n).fill(mark);
                    model.extend(std::iter::repeat_n(mark, n));
                }
                Edit::TrimFront(n) if n <= model.len() => {
                    pkt.trim_front(n);
                    model.drain(..n);
                    head += n;
                }
                Edit::Truncate(n) => {
                    pkt.truncate(n);
                    model.truncate(n);
                }
                Edit::Shrink(n) if n <= model.len() => {
                    pkt.set_len(n);
                    model.truncate(n);
                }
                Edit::Reset => {
                    pkt.reset();
                    model.clear();
                    head = HEADROOM;
                }
                _ => {}
            }
            prop_assert_eq!(pkt.data(), &*model.make_contiguous());
            prop_assert_eq!(pkt.headroom(), head);
            prop_assert_eq!(pkt.tailroom(), FRAME - head - model.len());
            prop_assert_eq!(pkt.is_empty(), model.is_empty());
            let end = pkt.spare_mut().len();
            prop_assert_eq!(end, FRAME - head);
        }
    }

    /// Whatever is allocated, freed and dropped in whatever order through two caches: live packets keep what was written into
    /// them, and in the end no frame is missing.
    #[test]
    fn every_frame_has_one_owner(steps in prop::collection::vec(step(), 0..STEPS)) {
        let (small, jumbo) = (280, 4);
        let arena = arena(small, jumbo);
        let mut caches = [FrameCache::new(arena), FrameCache::new(arena)];
        let mut live: Vec<(u64, PktBuf)> = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            let n = n as u64;
            match step {
                Step::Alloc(cache, large) => {
                    let len = if large { SMALL_MAX + 1 } else { 0 };
                    if let Some(mut pkt) = caches[usize::from(cache)].alloc_for(len) {
                        pkt.append(8).copy_from_slice(&n.to_ne_bytes());
                        live.push((n, pkt));
                    }
                }
                Step::Free(cache, which) if !live.is_empty() => {
                    let (_, pkt) = live.swap_remove(which % live.len());
                    caches[usize::from(cache)].free(pkt);
                }
                Step::Drop(which) if !live.is_empty() => {
                    live.swap_remove(which % live.len());
                }
                Step::Flush(cache) => caches[usize::from(cache)].flush(),
                _ => {}
            }
            prop_assert!(live.len() + arena.free_frames() <= small + jumbo);
        }
        for (n, pkt) in &live {
            prop_assert_eq!(pkt.data(), n.to_ne_bytes());
        }
        drop((caches, live));
        prop_assert_eq!(arena.free_frames(), small + jumbo);
    }
}

#[test]
fn burst_keeps_order_and_frees() {
    let arena = arena(200, 0);
    let mut cache = FrameCache::new(arena);
    let mut next = 0_u8;
    let mut numbered = |cache: &mut FrameCache| {
        let mut pkt = cache.alloc().expect("a frame");
        pkt.append(1)[0] = next;
        next += 1;
        pkt
    };
    let numbers = |burst: &Burst| burst.iter().map(|pkt| pkt.data()[0]).collect::<Vec<_>>();

    let mut burst = Burst::new();
    assert!(burst.is_empty() && burst.pop().is_none());
    for _ in 0..BURST_MAX {
        burst.push(numbered(&mut cache));
    }
    assert_eq!((burst.len(), burst.room()), (64, 0));
    let one_more = burst.try_push(numbered(&mut cache)).expect_err("full");
    assert_eq!(one_more.data(), [64]);
    cache.free(one_more);

    burst.retain_or_free(&mut cache, |pkt| pkt.data()[0] % 3 == 0);
    assert_eq!(
        numbers(&burst),
        (0..64).filter(|n| n % 3 == 0).collect::<Vec<_>>()
    );
    assert_eq!(burst.drain(1..20).map(|pkt| pkt.data()[0]).max(), Some(57));
    assert_eq!(numbers(&burst), [0, 60, 63]);
    burst.swap(0, 2);
    burst.swap(1, 2);
    assert_eq!(numbers(&burst), [63, 0, 60]);
    assert_eq!(burst.drain(..1).map(|pkt| pkt.data()[0]).max(), Some(63));
    assert_eq!((burst[1].data()[0], burst.as_slice().len()), (60, 2));
    burst[0].data_mut()[0] = 9;
    burst.as_mut_slice()[1].data_mut()[0] = 8;
    for pkt in &mut burst {
        pkt.data_mut()[0] += 1;
    }
    assert_eq!(
        (&burst).into_iter().map(|pkt| pkt.data()[0]).collect::<Vec<_>>(),
        [10, 9]
    );

    burst.clear_into(&mut cache);
    assert!(burst.is_empty());
    drop((burst, cache));
    assert_eq!(arena.free_frames(), 200);
}
