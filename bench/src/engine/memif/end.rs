//! One end of the tunnel over net_memif: an engine's worker that runs for as long as it is told to.

use std::hint::black_box;
use std::io::BufRead;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use patronus_engine::worker::Worker;
use patronus_io::dpdk::{DeviceConfig, Dpdk};
use patronus_io::exception::{ExceptionPath, Rule, RunningPath, SplitPort, Take};
use patronus_io::udp::{UdpConfig, UdpSockets};
use patronus_io::wan::{Link, LinkPort, QueuePlace, WayFinder, ways};
use patronus_io::{Port, PortCounters, PortError};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX, Burst, FrameCache, PktBuf};
use patronus_netns::{Error, Result};

use super::super::lan::{Lan, Ports, Sink, Source, now};
use super::super::pin;
use super::super::size::Size;
use super::{End, FLOWS};

const UDP_PORT: u16 = 51820;
/// Datagrams that are made ahead for `open`: so few that they do not leave the cache.
const STOCK: usize = 512;
/// Turns between two looks at the clock.
const TURNS: usize = 64;

type Made<T> = std::result::Result<T, PortError>;

/// The LAN side of an end: a generator that can be turned off, and a sink.
struct Hosts {
    source: Source,
    on: Arc<AtomicBool>,
    counters: Arc<PortCounters>,
}

impl Port for Hosts {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Made<usize> {
        match self.on.load(Ordering::Relaxed) {
            true => self.source.rx_burst(frames, burst),
            false => Ok(0),
        }
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Made<()> {
        self.counters.tx_packets.add(burst.len() as u64);
        burst.clear_into(frames);
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

/// Datagrams on their way from one worker to another one, in memory.
#[derive(Clone, Default)]
struct Stock(Arc<Mutex<Vec<PktBuf>>>);

impl Stock {
    fn with<R>(&self, work: impl FnOnce(&mut Vec<PktBuf>) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn len(&self) -> usize {
        self.with(|packets| packets.len())
    }
}

/// The WAN side of a worker that has its datagrams in memory.
#[derive(Default)]
struct Memory {
    inbox: Stock,
    outbox: Stock,
    counters: Arc<PortCounters>,
}

impl Port for Memory {
    fn rx_burst(&mut self, _: &mut FrameCache, burst: &mut Burst) -> Made<usize> {
        self.inbox.with(|packets| {
            let count = packets.len().min(burst.room());
            packets.drain(..count).for_each(|pkt| burst.push(pkt));
            Ok(count)
        })
    }

    fn tx_burst(&mut self, _: &mut FrameCache, burst: &mut Burst) -> Made<()> {
        self.outbox.with(|packets| packets.extend(burst.drain(..)));
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

/// A worker between a LAN side and something else.
struct Site {
    lan: Lan,
    on: Arc<AtomicBool>,
    /// Of the LAN side: what was delivered.
    delivered: Arc<PortCounters>,
}

impl Site {
    fn new(
        arena: &'static Arena,
        near: bool,
        size: Size,
        endpoint: SocketAddr,
        wan: Box<dyn Port + Send>,
    ) -> Site {
        let (on, delivered) = (Arc::new(AtomicBool::new(false)), Arc::<PortCounters>::default());
        let mut wan = Some(wan);
        let lan = Lan::site(arena, FLOWS, near, endpoint, |flows| {
            let sink = wan.take().expect("one worker");
            Ports {
                source: Box::new(Hosts {
                    source: Source::towards(u8::from(near), size, flows),
                    on: Arc::clone(&on),
                    counters: Arc::clone(&delivered),
                }),
                sent: Arc::clone(sink.counters()),
                sink,
            }
        });
        Site { lan, on, delivered }
    }

    fn turn(&mut self) {
        assert!(self.lan.workers[0].step(now()), "nobody told it to stop");
    }

    fn run_for(&mut self, time: Duration) {
        run_for(&mut self.lan.workers[0], time);
    }
}

fn run_for(worker: &mut Worker, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..TURNS {
            assert!(worker.step(now()), "nobody told it to stop");
        }
    }
}

/// Packets a second that `count` grows by while `run` runs for a part of a slice in the middle.
fn rate(slice: Duration, mut run: impl FnMut(Duration), count: impl Fn() -> u64) -> f64 {
    // The other end begins and ends a little earlier or later.
    run(slice / 6);
    let (before, start) = (count(), Instant::now());
    run(slice * 2 / 3);
    let (after, elapsed) = (count(), start.elapsed());
    run(slice / 6);
    (after - before) as f64 / elapsed.as_secs_f64()
}

/// The link: a device, the host interface that stands for it, and what keeps both going.
struct Wan {
    _path: RunningPath,
    _rule: Rule,
    _sockets: UdpSockets,
}

fn ip(args: &str) -> Result<()> {
    let status = Command::new("ip").args(args.split_whitespace()).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(format!("ip {args}"))),
    }
}

fn address(side: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 1 + side)
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::new(format!("{what}: {error}"))
}

/// The port of the link, as an engine has it.
fn link(options: &End, arena: &'static Arena) -> Result<(Wan, Box<dyn Port + Send>)> {
    let dpdk = Dpdk::start(&Default::default(), arena).map_err(|e| Error::new(e.to_string()))?;
    let (role, mac) = match options.side {
        0 => ("server", [2, 0, 0, 0, 0, 1]),
        _ => ("client", [2, 0, 0, 0, 0, 2]),
    };
    let device = format!(
        "net_memif0,role={role},id=0,socket={},socket-abstract=no,mac=02:00:00:00:00:0{}",
        options.socket.display(),
        options.side + 1
    );
    let (device, mut queues) = dpdk
        .open(&DeviceConfig::new(device))
        .map_err(|e| Error::new(e.to_string()))?;
    let (path, mut sides) =
        ExceptionPath::create("wan0", Box::new(device), 1, arena).map_err(failed("a host interface"))?;
    let ifindex = path.host().ifindex();
    let path = path.start(Instant::now, |_| {}).map_err(failed("a thread"))?;
    ip(&format!("addr add {}/24 dev wan0", address(options.side)))?;
    ip("link set wan0 up")?;
    let sockets = UdpSockets::bind(&UdpConfig {
        port: UDP_PORT,
        ifindex,
        workers: 1,
        fwmark: 0,
        buffer_bytes: 1 << 20,
        offload: true,
    });
    let sockets = sockets.map_err(failed("a UDP port"))?;
    let (ways, finder) = ways(Link {
        ifindex,
        mac,
        mtu: 1500,
        udp_port: UDP_PORT,
        fwmark: 0,
    })
    .map_err(failed("rtnetlink"))?;
    std::thread::spawn(move || find(finder));
    let rule = rule(options.side)?;
    let missing = || Error::new("no queue");
    let (queue, side) = (
        queues.pop().ok_or_else(missing)?,
        sides.pop().ok_or_else(missing)?,
    );
    let place = QueuePlace::new(SplitPort::new(queue, rule.sieve(), side));
    let port = LinkPort::new(
        place.borrow().ok_or_else(missing)?,
        sockets.worker_port(0),
        ways,
        ifindex,
    );
    let wan = Wan {
        _path: path,
        _rule: rule,
        _sockets: sockets,
    };
    Ok((wan, Box::new(port)))
}

/// What the slow path does for a link.
fn find(mut finder: WayFinder) {
    loop {
        finder.serve(Instant::now());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs one end until its orders end.
pub fn end(options: &End) -> Result<()> {
    // Before DPDK's threads, which may run anywhere.
    let arena = Arena::new(&ArenaConfig {
        frames: 16384,
        jumbo_frames: 64,
    })
    .map_err(failed("memory for packets"))?;
    let (near, size) = (options.side == 0, Size::Bytes(options.size));
    let (_wan, port) = link(options, arena)?;
    let remote = SocketAddr::new(IpAddr::V4(address(1 - options.side)), UDP_PORT);
    let mut tunnel = Site::new(arena, near, size, remote, port);
    let mut sealing = Lan::tunnel(arena, FLOWS, |flows| {
        let sink = Sink::default();
        Ports {
            sent: Arc::clone(sink.counters()),
            source: Box::new(Source::new(size, flows)),
            sink: Box::new(sink),
        }
    });
    let mut open = Opening::new(arena, near, size, remote);
    pin(usize::from(options.side));
    println!("0");
    for order in std::io::stdin().lock().lines() {
        let order = order?;
        let (order, slice) = order.split_once(' ').unwrap_or((&order, "100"));
        let slice = Duration::from_millis(slice.parse().unwrap_or(100));
        let rate = match order {
            "seal" => {
                let sent = Arc::clone(&sealing.sinks[0]);
                let worker = &mut sealing.workers[0];
                rate(slice, |time| run_for(worker, time), || sent.tx_packets.get())
            }
            "open" => open.rate(slice),
            "sieve" => sieve(options, slice)?,
            _ => {
                tunnel.on.store(order == "tunnel-send", Ordering::Relaxed);
                let delivered = Arc::clone(&tunnel.delivered);
                rate(slice, |time| tunnel.run_for(time), || delivered.tx_packets.get())
            }
        };
        println!("{rate}");
    }
    Ok(())
}

/// The rule of the link.
fn rule(side: u8) -> Result<Rule> {
    let mut rule = Rule::new();
    rule.set(&Take::Datagrams {
        addresses: vec![address(side).into()],
        ports: vec![UDP_PORT],
    })
    .map_err(failed("a rule"))?;
    Ok(rule)
}

/// Frames a second that the sieve says to be the engine's.
fn sieve(options: &End, slice: Duration) -> Result<f64> {
    let mut sieve = rule(options.side)?.sieve();
    sieve.refresh();
    let mut frame = vec![0; 42 + options.size];
    frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
    frame[23] = 17;
    frame[30..34].copy_from_slice(&address(options.side).octets());
    frame[36..38].copy_from_slice(&UDP_PORT.to_be_bytes());
    let burst = vec![frame; BURST_MAX];
    let (start, mut taken) = (Instant::now(), 0);
    while start.elapsed() < slice {
        for _ in 0..TURNS {
            taken += burst.iter().filter(|frame| sieve.takes(black_box(frame))).count();
        }
    }
    Ok(taken as f64 / start.elapsed().as_secs_f64())
}

/// A worker that opens what another one makes for it.
struct Opening {
    maker: Site,
    opener: Site,
    stock: Stock,
}

impl Opening {
    fn new(arena: &'static Arena, near: bool, size: Size, endpoint: SocketAddr) -> Opening {
        let (there, back) = (Stock::default(), Stock::default());
        let site = |near, inbox: &Stock, outbox: &Stock| {
            let memory = Memory {
                inbox: inbox.clone(),
                outbox: outbox.clone(),
                counters: Arc::default(),
            };
            Site::new(arena, near, size, endpoint, Box::new(memory))
        };
        let mut opening = Opening {
            maker: site(!near, &back, &there),
            opener: site(near, &there, &back),
            stock: there,
        };
        // Who did not begin the session sends when he has heard of the other end.
        for _ in 0..2 {
            for site in [&mut opening.maker, &mut opening.opener] {
                site.on.store(true, Ordering::Relaxed);
                site.turn();
                site.on.store(false, Ordering::Relaxed);
            }
        }
        opening
    }

    /// Packets a second that are opened and delivered, in turn with the making, whose time does not count.
    fn rate(&mut self, slice: Duration) -> f64 {
        let (start, mut spent) = (Instant::now(), Duration::ZERO);
        let before = self.opener.delivered.tx_packets.get();
        self.maker.on.store(true, Ordering::Relaxed);
        while start.elapsed() < slice {
            while self.stock.len() < STOCK {
                self.maker.turn();
            }
            let start = Instant::now();
            while self.stock.len() > 0 {
                self.opener.turn();
            }
            spent += start.elapsed();
        }
        (self.opener.delivered.tx_packets.get() - before) as f64 / spent.as_secs_f64()
    }
}
