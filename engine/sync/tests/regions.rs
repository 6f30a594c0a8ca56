//! What is shared between processes: who can map what, and rings whose other side writes anything.
#![cfg(not(loom))]

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use patronus_sync::{
    Layout, Region, RegionReader, RingReceiver, RingSender, Segment, Words, WordsMut, create,
};
use proptest::prelude::*;
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

const LAYOUT: Layout = Layout {
    tail: 64,
    head: 0,
    slots: 128,
    count: 4,
};
const LEN: usize = 4096;

#[test]
fn nobody_can_resize_what_is_mapped() {
    let fd = create("test", LEN).unwrap();
    let _region = Region::map(&fd, LEN).unwrap();
    assert_eq!(ftruncate(&fd, 0), Err(Errno::PERM));
    assert_eq!(ftruncate(&fd, 2 * LEN as u64), Err(Errno::PERM));
}

/// A file that shrinks under a mapping ends whoever touches it.
#[test]
fn what_could_shrink_is_not_mapped() {
    let fd = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, LEN as u64).unwrap();
    assert!(Region::map(&fd, LEN).is_err());
    assert!(RegionReader::map(&fd, LEN).is_err());
    let ordinary = File::open("/proc/self/exe").unwrap();
    assert!(RegionReader::map(&ordinary, LEN).is_err());
    let fd = create("test", LEN).unwrap();
    for wrong in [0, 4, LEN + 8] {
        assert!(RegionReader::map(&fd, wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_ours_cannot_be_written_by_others() {
    let (region, fd) = Region::create("test", LEN).unwrap();
    let reader = RegionReader::map(&fd, LEN).unwrap();
    region.store(8, 5, Ordering::Relaxed);
    assert_eq!(reader.load(8, Ordering::Relaxed), 5);
    assert!(Region::map(&fd, LEN).is_err());
    let file = File::from(fd);
    assert!(file.write_at(&[1], 0).is_err());
    // A private mapping is a copy, and may be written.
    // SAFETY: a new mapping that is given up at once.
    let shared = unsafe {
        let both = ProtFlags::READ | ProtFlags::WRITE;
        rustix::mm::mmap(std::ptr::null_mut(), LEN, both, MapFlags::SHARED, &file, 0)
    };
    assert_eq!(shared.err(), Some(Errno::PERM));
}

#[test]
fn memory_is_taken_when_asked_for() {
    const PAGES: usize = 16 * 4096;
    let taken = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_blocks as usize * 512;
    let (region, fd) = Region::create("test", PAGES).unwrap();
    assert_eq!(taken(&fd), 0);
    region.fault_in();
    assert_eq!(taken(&fd), PAGES);
    let fd = create("test", PAGES).unwrap();
    RegionReader::map(&fd, PAGES).unwrap().fault_in();
    assert_eq!(taken(&fd), PAGES);
}

#[test]
#[should_panic(expected = "inside of the region")]
fn no_word_is_outside() {
    let (region, _) = Region::create("test", LEN).unwrap();
    region.load(LEN, Ordering::Relaxed);
}

#[test]
fn placed_values_have_places_of_their_own() {
    let (mut segment, fd) = Segment::create("test", LEN).unwrap();
    let reader = RegionReader::map(&fd, LEN).unwrap();
    let (first, at) = segment.place::<[AtomicU64; 3]>().unwrap();
    first[2].store(7, Ordering::Relaxed);
    assert_eq!(reader.load(at + 16, Ordering::Relaxed), 7);
    segment.skip_to(1000);
    let (second, at) = segment.place::<AtomicU64>().unwrap();
    assert_eq!(at, 1000);
    second.store(9, Ordering::Relaxed);
    assert_eq!(reader.load(1000, Ordering::Relaxed), 9);
    assert!(segment.place::<[AtomicU64; LEN / 8]>().is_none());
    let mut rest = segment.split_off(2000);
    let (third, at) = rest.place::<AtomicU64>().unwrap();
    assert_eq!(at, 2000);
    third.store(11, Ordering::Relaxed);
    assert!(
        segment.place::<[AtomicU64; 125]>().is_none(),
        "not beyond what was split off"
    );
    let (_, at) = segment.place::<[AtomicU64; 124]>().unwrap();
    assert_eq!((at, reader.load(2000, Ordering::Relaxed)), (1008, 11));
    assert!(segment.place::<AtomicU64>().is_none());
    let copy = second.clone();
    drop((segment, second, first));
    assert_eq!(copy.load(Ordering::Relaxed), 9, "kept by who holds it");
}

fn ends() -> (
    RingSender<Region, RegionReader, 2>,
    RingReceiver<Region, RegionReader, 2>,
    Region,
    Region,
) {
    let (one, one_fd) = (create("one", LEN).unwrap(), create("two", LEN).unwrap());
    let (a, b) = (
        Region::map(&one, LEN).unwrap(),
        Region::map(&one_fd, LEN).unwrap(),
    );
    let (read_a, read_b) = (
        RegionReader::map(&one, LEN).unwrap(),
        RegionReader::map(&one_fd, LEN).unwrap(),
    );
    let sender = RingSender::new(a.clone(), read_b, LAYOUT);
    let receiver = RingReceiver::new(b.clone(), read_a, LAYOUT);
    (sender, receiver, a, b)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// As a queue would be.
    #[test]
    fn a_ring_is_a_bounded_queue(steps in prop::collection::vec(any::<bool>(), 0..100)) {
        let (mut sender, mut receiver, ..) = ends();
        let (mut queue, mut next) = (VecDeque::new(), 0);
        for put in steps {
            if put {
                let tell = sender.send([next, !next]);
                prop_assert_eq!(tell, (queue.len() < 4).then_some(queue.is_empty()));
                if tell.is_some() {
                    queue.push_back(next);
                }
                next += 1;
            } else {
                let taken = receiver.receive();
                prop_assert_eq!(taken, queue.pop_front().map(|n: u64| [n, !n]));
            }
        }
        prop_assert_eq!(receiver.nonsense(), 0);
    }

    /// The other side writes anything anywhere: each call ends, and takes or gives no more than the ring holds.
    #[test]
    fn the_other_side_writes_anything(writes in prop::collection::vec((0usize..LEN / 8, prop_oneof![any::<u64>(), 0u64..12]), 1..200)) {
        let (mut sender, mut receiver, a, b) = ends();
        for (at, word) in writes {
            // To the receiver, the sender's region is what somebody else writes; to the sender, the receiver's.
            a.store(8 * at, word, Ordering::Relaxed);
            b.store(8 * at, word, Ordering::Relaxed);
            let (before, mut taken) = (receiver.nonsense(), 0);
            while receiver.receive().is_some() {
                taken += 1;
                prop_assert!(taken <= 4);
            }
            prop_assert!(receiver.nonsense() <= before + 1);
            let mut given = 0;
            while sender.send([1, 2]).is_some() && given <= 4 {
                given += 1;
            }
            prop_assert!(given <= 4);
        }
    }
}
