//! A worker whose one port never runs empty still looks at the other, and one whose ports have no descriptors looks at them all the time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use patronus_crypto::aead;
use patronus_engine::channel::{Command, ToSlowPath, ToWorker as Inbox, WanPort};
use patronus_engine::clock::SystemClock;
use patronus_engine::crew::Crew;
use patronus_engine::stats::{Placed, WorkerStats};
use patronus_engine::wg::Wg;
use patronus_engine::worker::{IdleLadder, LanPort, Parts, Worker};
use patronus_io::{PORT_FDS, Port, PortCounters, PortError};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};
use rustix::event::{EventfdFlags, eventfd};

/// A port whose descriptor is always readable, if it has one; `endless`: it always has a burst of packets as well.
struct AlwaysReadable {
    fd: Option<OwnedFd>,
    endless: bool,
    gone: bool,
    looks: Arc<AtomicU64>,
    counters: Arc<PortCounters>,
}

impl AlwaysReadable {
    fn new(endless: bool) -> (Box<Self>, Arc<AtomicU64>) {
        let looks = Arc::<AtomicU64>::default();
        let port = AlwaysReadable {
            fd: Some(eventfd(1, EventfdFlags::CLOEXEC).unwrap()),
            endless,
            gone: false,
            looks: Arc::clone(&looks),
            counters: Arc::default(),
        };
        (Box::new(port), looks)
    }
}

impl Port for AlwaysReadable {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        if self.gone {
            return Err(PortError::Gone);
        }
        while self.endless && burst.room() > 0 {
            let Some(mut packet) = frames.alloc() else { break };
            packet.append(20).fill(0xff);
            burst.push(packet);
        }
        Ok(burst.len())
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        burst.clear_into(frames);
        Ok(())
    }

    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        self.fd.iter().map(|fd| fd.as_fd()).collect()
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

struct Rig {
    worker: Worker,
    inbox: Arc<Inbox>,
    stats: Placed<WorkerStats>,
}

fn rig(lan: Box<AlwaysReadable>, wan: Box<AlwaysReadable>) -> Rig {
    let arena = Arena::new(&ArenaConfig {
        frames: 256,
        jumbo_frames: 0,
    });
    let arena = arena.unwrap();
    let slow = Arc::new(ToSlowPath::new(1).unwrap());
    let crew = Crew::assemble(1).unwrap().pop().unwrap();
    let inbox = Arc::clone(crew.inbox());
    let stats = Placed::<WorkerStats>::default();
    let worker = Worker::new(Parts {
        wg: Wg::new(aead::default(), 1, 1420, 16),
        lans: vec![Some(LanPort {
            port: lan,
            ethernet: false,
        })],
        wans: vec![Some(WanPort {
            ifindex: 0,
            port: wan,
        })],
        router: None,
        frames: FrameCache::new(arena),
        crew,
        stats: Placed::clone(&stats),
        slow,
        clock: Box::new(SystemClock),
        idle: IdleLadder { spin: Duration::ZERO },
    });
    Rig { worker, inbox, stats }
}

/// Runs a worker until `done`, or for 20 s.
fn run_until(worker: Worker, inbox: &Inbox, done: impl Fn() -> bool) {
    std::thread::scope(|scope| {
        scope.spawn(|| worker.run());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(inbox.commands.push(Command::Stop).is_ok());
        inbox.waker.wake();
    });
}

#[test]
fn ports_without_descriptors_are_looked_at_all_the_time() {
    let ((mut lan, lan_looks), (mut wan, wan_looks)) =
        (AlwaysReadable::new(false), AlwaysReadable::new(false));
    (lan.fd, wan.fd) = (None, None);
    let rig = rig(lan, wan);
    run_until(rig.worker, &rig.inbox, || {
        lan_looks.load(Ordering::Relaxed) > 1000 && wan_looks.load(Ordering::Relaxed) > 1000
    });
    assert!(lan_looks.load(Ordering::Relaxed) > 1000 && wan_looks.load(Ordering::Relaxed) > 1000);
    assert_eq!(rig.stats.sleeps.get(), 0);
}

#[test]
fn a_port_without_descriptors_that_is_gone_keeps_nobody_awake() {
    let ((mut lan, looks), (mut wan, _)) = (AlwaysReadable::new(false), AlwaysReadable::new(false));
    (lan.fd, lan.gone) = (None, true);
    // Nothing comes here.
    wan.fd = Some(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let rig = rig(lan, wan);
    run_until(rig.worker, &rig.inbox, || rig.stats.sleeps.get() > 0);
    assert_eq!(rig.stats.sleeps.get(), 1);
    assert_eq!(looks.load(Ordering::Relaxed), 1);
}

fn other_port_is_looked_at(tun_endless: bool) {
    let (tun, tun_looks) = AlwaysReadable::new(tun_endless);
    let (udp, udp_looks) = AlwaysReadable::new(!tun_endless);
    let Rig { worker, inbox, .. } = rig(tun, udp);
    let (busy, other) = if tun_endless {
        (tun_looks, udp_looks)
    } else {
        (udp_looks, tun_looks)
    };
    run_until(worker, &inbox, || other.load(Ordering::Relaxed) >= 3);
    assert!(busy.load(Ordering::Relaxed) > 3);
    assert!(other.load(Ordering::Relaxed) >= 3, "the other port was forgotten");
}

#[test]
fn a_flood_from_outside_leaves_the_host_its_turn() {
    other_port_is_looked_at(false);
}

#[test]
fn a_flood_from_the_host_leaves_the_network_its_turn() {
    other_port_is_looked_at(true);
}
