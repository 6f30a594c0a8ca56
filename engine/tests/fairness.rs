//! A worker whose one port never runs empty still looks at the other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use patronus_crypto::aead;
use patronus_engine::channel::{Command, ToSlowPath, WanPort};
use patronus_engine::clock::SystemClock;
use patronus_engine::crew::Crew;
use patronus_engine::wg::Wg;
use patronus_engine::worker::{IdleLadder, LanPort, Parts, Worker};
use patronus_io::{PORT_FDS, Port, PortCounters, PortError};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};
use rustix::event::{EventfdFlags, eventfd};

/// A port whose descriptor is always readable; `endless`: it always has a burst of packets as well.
struct AlwaysReadable {
    fd: OwnedFd,
    endless: bool,
    looks: Arc<AtomicU64>,
    counters: Arc<PortCounters>,
}

impl AlwaysReadable {
    fn new(endless: bool) -> (Box<Self>, Arc<AtomicU64>) {
        let looks = Arc::<AtomicU64>::default();
        let port = AlwaysReadable {
            fd: eventfd(1, EventfdFlags::CLOEXEC).unwrap(),
            endless,
            looks: Arc::clone(&looks),
            counters: Arc::default(),
        };
        (Box::new(port), looks)
    }
}

impl Port for AlwaysReadable {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        self.looks.fetch_add(1, Ordering::Relaxed);
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
        ArrayVec::from_iter([self.fd.as_fd()])
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

fn other_port_is_looked_at(tun_endless: bool) {
    let arena = Arena::new(&ArenaConfig {
        frames: 256,
        jumbo_frames: 0,
    });
    let arena = arena.unwrap();
    let slow = Arc::new(ToSlowPath::new(1).unwrap());
    let crew = Crew::assemble(1).unwrap().pop().unwrap();
    let inbox = Arc::clone(crew.inbox());
    let (tun, tun_looks) = AlwaysReadable::new(tun_endless);
    let (udp, udp_looks) = AlwaysReadable::new(!tun_endless);
    let worker = Worker::new(Parts {
        wg: Wg::new(aead::default(), 1, 1420, 16),
        lans: vec![Some(LanPort {
            port: tun,
            ethernet: false,
        })],
        wans: vec![Some(WanPort {
            ifindex: 0,
            port: udp,
        })],
        router: None,
        frames: FrameCache::new(arena),
        crew,
        stats: Arc::default(),
        slow,
        clock: Box::new(SystemClock),
        idle: IdleLadder { spin: Duration::ZERO },
    });
    let (busy, other) = if tun_endless {
        (tun_looks, udp_looks)
    } else {
        (udp_looks, tun_looks)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| worker.run());
        let deadline = Instant::now() + Duration::from_secs(20);
        while other.load(Ordering::Relaxed) < 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(inbox.commands.push(Command::Stop).is_ok());
    });
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
