//! Paths towards a remote, as workers see them: which are up, what is known of each, and which lanes a worker has on them.
//!
//! The slow path makes a [`PathBoard`] for each remote and gives every worker a [`Paths`] with it. One worker writes a path's part of the board, the one that owns the
//! path's lane 0; all workers read which paths are up with every packet, so that each leaves a path that is down with its next one. The slow path reads the rest.
//!
//! Shared without a lock: which paths are up is one word; what is known of a path ([`PathPulse`]) has one writer and is read under a sequence number, by somebody who
//! comes again later if it was just being changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use patronus_abi::channel::{PATH_WORDS, PathRecord};
pub use patronus_abi::channel::{PATHS_MAX, PathName, PathReport, PathState, PathWhy};
use patronus_crypto::{PeerId, Time};

use crate::steer::{Chosen, Steering};

/// How often a reader tries who finds a pulse being changed.
const READ_TRIES: usize = 16;

/// What all workers know of the paths towards one remote.
pub struct PathBoard {
    /// A bit for each path, by its place.
    up: AtomicU64,
    /// 0: not known.
    mtu: AtomicU32,
    paths: Box<[PathPulse]>,
}

impl PathBoard {
    /// A board of these paths, [`PATHS_MAX`] at most; further ones are left out. What `before` knows of them is known: packets are steered by it until the worker
    /// that probes has followed.
    pub fn new(names: impl IntoIterator<Item = PathName>, before: Option<&PathBoard>) -> PathBoard {
        PathBoard::following(names, before, |_| true)
    }

    /// The same, but for paths that are the same by name only: of those nothing is known.
    pub fn following(
        names: impl IntoIterator<Item = PathName>,
        before: Option<&PathBoard>,
        is_same: impl Fn(PathName) -> bool,
    ) -> PathBoard {
        let paths: Box<[PathPulse]> = names.into_iter().take(PATHS_MAX).map(PathPulse::new).collect();
        let mut up = 0;
        for (at, path) in paths.iter().enumerate() {
            let known = before.and_then(|before| Some((before, before.place(path.name)?)));
            let known = known.filter(|_| is_same(path.name));
            let Some((before, place)) = known else { continue };
            up |= (before.up() >> place & 1) << at;
            if let Some(report) = before.paths[place].read() {
                path.write(&report);
            }
        }
        // Of all paths that were up, and perhaps of more than are up now: no packet is too long.
        let mtu = before.and_then(PathBoard::mtu).filter(|_| up != 0);
        PathBoard {
            up: AtomicU64::new(up),
            mtu: AtomicU32::new(mtu.map_or(0, u32::from)),
            paths,
        }
    }

    /// Which paths are up: a bit for each place.
    #[inline]
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether this path is there and up.
    pub fn is_up(&self, name: PathName) -> bool {
        self.place(name).is_some_and(|at| self.up() & 1 << at != 0)
    }

    /// Says whether the path in this place is up.
    pub fn set_up(&self, at: usize, up: bool) {
        debug_assert!(at < self.paths.len());
        let bit = 1 << at;
        match up {
            true => self.up.fetch_or(bit, Ordering::Relaxed),
            false => self.up.fetch_and(!bit, Ordering::Relaxed),
        };
    }

    /// The largest inner packet that is known to pass by every path that is up, bytes.
    #[inline]
    pub fn mtu(&self) -> Option<u16> {
        let mtu = self.mtu.load(Ordering::Relaxed);
        (mtu != 0).then_some(mtu as u16)
    }

    /// Says how large that is.
    pub fn set_mtu(&self, mtu: Option<u16>) {
        self.mtu.store(mtu.map_or(0, u32::from), Ordering::Relaxed);
    }

    /// What is known of each path, by its place.
    pub fn pulses(&self) -> &[PathPulse] {
        &self.paths
    }

    /// The place of a path.
    pub fn place(&self, name: PathName) -> Option<usize> {
        self.paths.iter().position(|path| path.name == name)
    }
}

/// What is known of one path.
pub struct PathPulse {
    name: PathName,
    /// Odd while it is being changed; 0: nothing has been written yet.
    sequence: AtomicU64,
    words: [AtomicU64; PATH_WORDS],
    /// The smoothed round trip by itself, microseconds; 0: none was measured. Workers ask for it with packets, and for nothing else.
    rtt: AtomicU32,
}

impl PathPulse {
    fn new(name: PathName) -> PathPulse {
        PathPulse {
            name,
            sequence: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; PATH_WORDS],
            rtt: AtomicU32::new(0),
        }
    }

    /// Which path it is.
    pub fn name(&self) -> PathName {
        self.name
    }

    /// Writes what is known now. Only by the worker that owns the path's lane 0.
    pub fn write(&self, report: &PathReport) {
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(before + 1, Ordering::Relaxed);
        // Whoever reads one of the words below, and has an acquire fence after it, sees the odd number or a later one.
        fence(Ordering::Release);
        for (to, word) in self.words.iter().zip(report.record(0).words()) {
            to.store(word, Ordering::Relaxed);
        }
        // Release: whoever sees the even number sees the rest.
        self.sequence.store(before + 2, Ordering::Release);
        self.rtt.store(report.rtt.unwrap_or(0), Ordering::Relaxed);
    }

    /// The smoothed round trip that was written last, microseconds, if one was measured. One word, whatever is being written.
    #[inline]
    pub fn rtt(&self) -> Option<u32> {
        let rtt = self.rtt.load(Ordering::Relaxed);
        (rtt != 0).then_some(rtt)
    }

    /// What was written last; `None`: nothing yet, or it was being changed all the time.
    pub fn read(&self) -> Option<PathReport> {
        for _ in 0..READ_TRIES {
            let before = self.sequence.load(Ordering::Acquire);
            if before == 0 {
                return None;
            }
            let words = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return PathRecord::read(words);
            }
            std::hint::spin_loop();
        }
        None
    }
}

/// The paths towards one remote, and how one worker sends on them.
pub struct Paths {
    /// What all workers know of them.
    pub board: Arc<PathBoard>,
    /// How packets are spread over them.
    pub steering: Steering,
    each: Box<[PathLanes]>,
}

/// One path, and one worker's lanes of it.
pub struct PathLanes {
    /// Which path.
    pub name: PathName,
    /// The worker's lanes, by their numbers.
    pub lanes: Box<[PeerId]>,
    /// The numbers of these.
    pub numbers: Box<[u8]>,
}

impl Paths {
    /// The paths of this board, in its order, with one worker's lanes.
    pub fn new(board: Arc<PathBoard>, each: Box<[PathLanes]>, steering: Steering) -> Paths {
        debug_assert!(
            each.iter()
                .map(|path| path.name)
                .eq(board.pulses().iter().map(PathPulse::name))
        );
        Paths {
            board,
            steering,
            each,
        }
    }

    /// Each path with the worker's lanes, by its place on the board.
    pub fn each(&self) -> &[PathLanes] {
        &self.each
    }

    /// The lane of a packet of this class and bucket, if there is one to send by.
    #[inline]
    pub fn choose(&mut self, aim: (u8, u8), now: Time, may_carry: impl Fn(PeerId) -> bool) -> Option<Chosen> {
        self.steering.choose(aim, now, &self.board, &self.each, may_carry)
    }

    /// A lane on a path that is up, if there is one, for a packet of this class to wait for its session.
    pub fn lane_to_come(&self, class: u8) -> Option<PeerId> {
        self.steering.lane_to_come(class, self.board.up(), &self.each)
    }

    /// The second lane of a packet that goes twice, if there is one, and its sequence number.
    pub fn double(
        &mut self,
        class: u8,
        lane: PeerId,
        may_carry: impl Fn(PeerId) -> bool,
    ) -> Option<(u32, Option<PeerId>)> {
        let up = self.board.up();
        self.steering.double(class, lane, up, &self.each, may_carry)
    }

    /// Takes over what those of before knew.
    pub fn take_over(&mut self, before: &mut Paths) {
        self.steering
            .take_over(&mut before.steering, &before.each, &self.each);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use patronus_abi::channel::SAMPLES;

    use super::*;

    fn name(local: u8, remote: u8) -> PathName {
        PathName { local, remote }
    }

    fn report(n: u64) -> PathReport {
        PathReport {
            remote: [7; 32],
            path: name(1, 2),
            state: PathState::Up,
            why: PathWhy::Heard,
            since: n,
            mtu: None,
            in_use: false,
            interval: None,
            remote_interval: None,
            rtt: None,
            rtt_min: None,
            jitter_in: 0,
            jitter_out: 0,
            in_sent: n,
            in_received: n,
            out_sent: n,
            out_received: n,
            sent_bytes: 0,
            received_bytes: 0,
            probes_sent: n,
            probes_received: n,
            samples: n,
            recent: [0; SAMPLES],
        }
    }

    #[test]
    fn a_new_board_knows_what_was_up() {
        let before = PathBoard::new([name(1, 1), name(2, 1), name(3, 1)], None);
        before.set_up(1, true);
        before.set_up(2, true);
        let after = PathBoard::new([name(3, 1), name(1, 1), name(4, 1)], Some(&before));
        assert_eq!(after.up(), 0b001);
        assert!(after.is_up(name(3, 1)) && !after.is_up(name(2, 1)));
    }

    /// Packets that are too long for a path are not sent because its board is new, nor is the path unknown to who copies boards.
    #[test]
    fn a_new_board_knows_what_passed_and_what_was_measured() {
        let before = PathBoard::new([name(1, 1), name(2, 1)], None);
        before.set_up(0, true);
        before.set_mtu(Some(1300));
        let measured = PathReport {
            rtt: Some(700),
            ..report(5)
        };
        before.pulses()[0].write(&measured);
        let after = PathBoard::new([name(3, 1), name(1, 1)], Some(&before));
        assert_eq!(after.mtu(), Some(1300));
        assert_eq!(after.pulses()[0].read(), None);
        let pulse = &after.pulses()[1];
        assert_eq!((pulse.read(), pulse.rtt()), (Some(measured), Some(700)));
        // Of others nothing is known.
        assert_eq!(PathBoard::new([name(2, 1)], Some(&before)).mtu(), None);
        let other = PathBoard::following([name(1, 1)], Some(&before), |_| false);
        assert_eq!(
            (other.up(), other.mtu(), other.pulses()[0].read()),
            (0, None, None)
        );
    }

    #[test]
    fn a_board_has_a_bit_for_each_path() {
        let names = (1..=15).flat_map(|local| (1..=15).map(move |remote| name(local, remote)));
        let board = PathBoard::new(names, None);
        assert_eq!(board.pulses().len(), PATHS_MAX);
        board.set_up(PATHS_MAX - 1, true);
        assert_eq!(board.up(), 1 << 63);
    }

    #[test]
    fn the_mtu_is_not_known_at_first() {
        let board = PathBoard::new([name(1, 1)], None);
        assert_eq!(board.mtu(), None);
        board.set_mtu(Some(1420));
        assert_eq!(board.mtu(), Some(1420));
        board.set_mtu(None);
        assert_eq!(board.mtu(), None);
    }

    #[test]
    fn the_round_trip_is_there_while_the_rest_is_being_changed() {
        let board = PathBoard::new([name(1, 2)], None);
        let [pulse] = board.pulses() else { panic!() };
        assert_eq!(pulse.rtt(), None);
        pulse.write(&PathReport {
            rtt: Some(1234),
            ..report(1)
        });
        // As its writer leaves it when he is interrupted.
        pulse.sequence.fetch_add(1, Ordering::Relaxed);
        assert_eq!((pulse.read(), pulse.rtt()), (None, Some(1234)));
        pulse.sequence.fetch_add(1, Ordering::Relaxed);
        pulse.write(&report(2));
        assert_eq!(pulse.rtt(), None, "measured anew");
    }

    #[test]
    fn what_is_read_was_written_at_once() {
        let board = PathBoard::new([name(1, 2)], None);
        let [pulse] = board.pulses() else { panic!() };
        assert_eq!(pulse.read(), None, "nothing yet");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (1..=20_000).for_each(|n| pulse.write(&report(n)));
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                if let Some(found) = pulse.read() {
                    assert_eq!(found, report(found.since));
                }
            }
        });
        assert_eq!(pulse.read(), Some(report(20_000)));
    }
}
