//! Two probers, paths that let packets of some size pass, and what is written on the boards. Time is virtual.

use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_crypto::timers::Traffic;
use patronus_crypto::{Duration, PeerId, Time};
use patronus_engine::path::{PathBoard, PathName};
use patronus_engine::probe::{ProbeSet, ProbedPath, Prober};
use patronus_engine::remote::message::{Probe, Size};

const REMOTE: PeerId = PeerId(3);
const DELAY: Duration = Duration::from_millis(10);
const PATHS: usize = 2;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn lane(path: usize) -> PeerId {
    PeerId(100 + path as u32)
}

enum Message {
    Probe(Probe),
    Ask(Size),
    Ack(Size),
}

struct Side {
    prober: Prober,
    board: Arc<PathBoard>,
    traffic: Vec<Arc<Traffic>>,
    asked: usize,
}

impl Side {
    fn new() -> Side {
        let name = |path: usize| PathName {
            local: path as u8 + 1,
            remote: 1,
        };
        let board = Arc::new(PathBoard::new((0..PATHS).map(name), None));
        let traffic: Vec<Arc<Traffic>> = (0..PATHS).map(|_| Arc::default()).collect();
        let paths = traffic.iter().enumerate().map(|(path, traffic)| {
            let traffic = [Arc::clone(traffic)].into();
            ProbedPath::new(name(path), path as u8 + 1, Some(lane(path)), false, traffic)
        });
        let set = Box::new(ProbeSet::new(Arc::clone(&board), paths.collect(), 7));
        let mut prober = Prober::default();
        prober.set_mtu_max(Time(0), 1420);
        prober.follow(Time(0), REMOTE, set);
        (0..PATHS).for_each(|path| prober.opened(Time(0), REMOTE, lane(path)));
        Side {
            prober,
            board,
            traffic,
            asked: 0,
        }
    }
}

struct Net {
    now: Time,
    sides: [Side; 2],
    /// By path: the largest inner packet that passes, in both directions; 0: nothing does.
    takes: [u16; PATHS],
    used: bool,
    under_way: Vec<(Time, usize, usize, Message)>,
}

impl Net {
    fn new(takes: [u16; PATHS]) -> Net {
        Net {
            now: Time(0),
            sides: [Side::new(), Side::new()],
            takes,
            used: false,
            under_way: Vec::new(),
        }
    }

    fn mtus(&self) -> [Option<u16>; 2] {
        self.sides.each_ref().map(|side| side.board.mtu())
    }

    fn of_path(&self, side: usize, path: usize) -> Option<u16> {
        self.sides[side].board.pulses()[path].read()?.mtu
    }

    fn send(&mut self, from: usize, path: usize, size: u16, message: Message) {
        if size.max(100) <= self.takes[path] {
            self.under_way
                .push((self.now.after(DELAY), 1 - from, path, message));
        }
    }

    /// Lets time pass in milliseconds, with packets of hosts on both paths.
    fn pass(&mut self, time: Duration) {
        self.pass_as(time, true);
    }

    /// The same with or without such packets.
    fn pass_as(&mut self, time: Duration, used: bool) {
        self.used = used;
        for _ in 0..time.as_millis() {
            self.now = self.now.after(Duration::from_millis(1));
            for side in 0..2 {
                self.land(side);
                self.turn(side);
            }
        }
    }

    fn land(&mut self, which: usize) {
        let now = self.now;
        let landed: Vec<_> = self
            .under_way
            .extract_if(.., |(at, to, ..)| *to == which && *at <= now)
            .collect();
        for (_, _, path, message) in landed {
            let side = &mut self.sides[which];
            side.traffic[path].tally_received(now, 1, self.used);
            let _ = side.traffic[path].received(now, 100, true);
            match message {
                Message::Probe(probe) => {
                    let heard = side.prober.hear(now, (REMOTE, lane(path)), &probe, 1, |_| ());
                    assert_eq!(heard, Ok(()));
                }
                Message::Ask(size) => self.send(which, path, 0, Message::Ack(size)),
                Message::Ack(size) => side.prober.take_size(now, REMOTE, lane(path), size),
            }
        }
    }

    fn turn(&mut self, which: usize) {
        let now = self.now;
        let side = &mut self.sides[which];
        side.prober.begin_turn(now);
        if side.prober.next_deadline().is_none_or(|at| at > now) {
            return;
        }
        let mut due = ArrayVec::new();
        side.prober.due(now, |_| true, |_| (), &mut due);
        for due in due {
            let (lane, probe) = self.sides[which]
                .prober
                .next(due, now)
                .expect("a path that is there");
            let path = (lane.0 - 100) as usize;
            self.send(which, path, 0, Message::Probe(probe));
        }
        while let Some((lane, size)) = self.sides[which].prober.next_size() {
            let path = (lane.0 - 100) as usize;
            self.sides[which].asked += 1;
            self.send(which, path, size.size, Message::Ask(size));
        }
        let late = self.sides[which]
            .prober
            .next_deadline()
            .is_some_and(|at| at <= now);
        assert!(!late, "nothing is left undone");
    }
}

#[test]
fn the_board_has_what_passes_by_every_path_that_is_up() {
    let mut net = Net::new([1500, 1350]);
    net.pass(secs(6));
    assert_eq!(net.mtus(), [Some(1344); 2]);
    for side in 0..2 {
        assert_eq!(
            [0, 1].map(|path| net.of_path(side, path)),
            [Some(1420), Some(1344)]
        );
    }
    // The shorter one is gone: it does not matter.
    net.takes[1] = 0;
    net.pass(secs(2));
    assert_eq!(net.mtus(), [Some(1420); 2]);
    // And is back, shorter still.
    net.takes[1] = 1300;
    net.pass(secs(20));
    assert_eq!(net.mtus(), [Some(1296); 2]);
}

#[test]
fn a_path_that_begins_to_swallow_large_packets_stays_up_and_gets_smaller_ones() {
    let mut net = Net::new([1500, 1500]);
    net.pass_as(secs(30), false);
    assert_eq!(net.mtus(), [Some(1420); 2]);
    assert_eq!(net.sides[0].asked, 2, "nothing goes by them");
    net.pass(secs(30));
    assert!((20..30).contains(&net.sides[0].asked), "{}", net.sides[0].asked);
    net.takes[0] = 1290;
    net.pass(secs(8));
    assert_eq!(net.mtus(), [Some(1280); 2]);
    assert_eq!(net.sides[0].board.up(), 0b11);
}

#[test]
fn another_mtu_of_the_tunnel_counts_at_once_where_it_is_less() {
    let mut net = Net::new([9000, 9000]);
    net.pass(secs(3));
    assert_eq!(net.mtus(), [Some(1420); 2]);
    let now = net.now;
    net.sides[0].prober.set_mtu_max(now, 1300);
    assert_eq!(net.mtus(), [Some(1300), Some(1420)]);
    net.sides[0].prober.set_mtu_max(now, 8000);
    net.pass(secs(1));
    assert_eq!(net.mtus(), [Some(8000), Some(1420)]);
}

#[test]
fn who_asks_all_the_time_is_not_answered_all_the_time() {
    let mut net = Net::new([1500, 1500]);
    net.pass(secs(1));
    // A second whose probes are over.
    let (now, prober) = (Time(net.now.0 - 1), &mut net.sides[0].prober);
    let mut answered = |path: usize| {
        (0..5000)
            .filter(|_| prober.may_ask(now, REMOTE, lane(path)).is_ok())
            .count()
    };
    assert!((100..=400).contains(&answered(0)));
    assert_eq!(answered(0), 0);
    assert!(answered(1) >= 100, "each path has its share");
    assert_eq!(answered(PATHS), 0, "no path");
    net.pass(secs(3));
    assert_eq!(net.mtus(), [Some(1420); 2]);
}
