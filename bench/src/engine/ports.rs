//! `macswap` and `tunnel`: the engine behind a port, one worker on one core, beside DPDK's own programs on the same device in the same run.
//!
//! `macswap` takes a packet, exchanges its link addresses and sends it; dpdk-testpmd does the same. `tunnel` takes a packet through flow table, FIB and encryption and
//! sends it; dpdk-test-crypto-perf does nothing but encrypt. Of theirs the best of three runs counts: a second thread of theirs, which only waits, costs them half on some
//! machines. Ports in memory do both as well: what a device costs is the difference.

use std::fmt;
use std::time::Instant;

use patronus_io::Port;
use patronus_mem::{Arena, ArenaConfig};
use patronus_netns::{Error, Namespace, Result};

use super::lan::{Lan, Ports, Sink, Source, Wire};
use super::route::{SLICE, measure, measure_wire};
use super::size::Size;
use super::{Options, Row, cryptoperf, memif, testpmd};
use crate::report::median;

/// Flows that packets are of.
const FLOWS: u32 = 1000;

/// The ends of a veth in a namespace of this program's.
const VETH: [&str; 2] = ["va", "vb"];

/// Packets that dpdk-testpmd puts into a port that brings none by itself.
const FIRST: usize = 32;

/// What packets come from and go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum PortKind {
    /// DPDK's source and sink.
    #[value(name = "net_null")]
    Null,
    /// A ring of DPDK's, whose end is its beginning.
    #[value(name = "net_ring")]
    Ring,
    /// Packet sockets of the kernel's on both ends of a veth, between which packets go to and fro.
    #[value(name = "net_af_packet")]
    AfPacket,
    /// Memory that two processes share: a tunnel between two engines.
    #[value(name = "net_memif")]
    Memif,
}

impl PortKind {
    fn name(self) -> &'static str {
        match self {
            PortKind::Null => "net_null",
            PortKind::Ring => "net_ring",
            PortKind::AfPacket => "net_af_packet",
            PortKind::Memif => "net_memif",
        }
    }

    /// As both DPDK's programs and ours are told; `frame` is the length of its packets with their link header.
    fn device(self, number: usize, frame: usize) -> String {
        match self {
            PortKind::Null => format!("net_null{number},size={frame}"),
            PortKind::Ring => format!("net_ring{number}"),
            PortKind::AfPacket => {
                let [interface, ..] = if number == 0 { VETH } else { [VETH[1], VETH[0]] };
                format!("net_af_packet{number},iface={interface},blocksz=28672,framesz=1792,framecnt=512")
            }
            PortKind::Memif => format!("net_memif{number}"),
        }
    }

    /// What packets go through in `macswap`: each device sends back what it receives.
    fn loops(self, frame: usize) -> Vec<String> {
        let count = if self == PortKind::AfPacket { 2 } else { 1 };
        (0..count).map(|number| self.device(number, frame)).collect()
    }
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One line: a pipeline over a port, and its rates by round.
struct Setup {
    pipeline: &'static str,
    port: &'static str,
    subject: Subject,
    rates: Vec<f64>,
}

enum Subject {
    Wires(Vec<Wire>),
    Lan(Box<Lan>),
}

impl Setup {
    fn rate(&self) -> f64 {
        median(self.rates.iter().copied()).unwrap_or(f64::NAN)
    }
}

/// Measures and prints; the rows go behind those that there are.
pub fn run(options: &Options, kinds: &[PortKind], rows: &mut Vec<Row>) -> Result<()> {
    let (between, kinds): (Vec<_>, Vec<_>) = kinds.iter().partition(|kind| **kind == PortKind::Memif);
    if !between.is_empty() {
        memif::run(options, rows)?;
    }
    if kinds.is_empty() {
        return Ok(());
    }
    let arena = Arena::new(&ArenaConfig {
        frames: 16384,
        jumbo_frames: 0,
    });
    let arena = arena.map_err(|e| Error::new(format!("memory for packets: {e}")))?;
    // DPDK's threads stay where they are started, and so do its programs.
    let namespace = kinds
        .contains(&PortKind::AfPacket)
        .then(|| Namespace::new("bench"))
        .transpose()?;
    if let Some(namespace) = &namespace {
        namespace.enter()?;
        let [left, right] = VETH;
        namespace.ip(&format!("link add {left} type veth peer name {right}"))?;
        VETH.iter().try_for_each(|end| {
            namespace.ip(&format!("link set {end} addrgenmode none"))?;
            namespace.ip(&format!("link set {end} up")).map(|_| ())
        })?;
    }
    let devices = Devices::start(arena)?;
    println!(
        "\n{} rounds, medians; of DPDK's own the best of three\n",
        options.rounds
    );
    println!("pipeline  size  port        Mpps  ns/packet  of memory's  DPDK's own, Mpps  of that");
    for &size in &options.sizes {
        // Neither DPDK's source nor its programs know a mix.
        let Size::Bytes(bytes) = size else { continue };
        for &kind in &kinds {
            let (mut forwarded, mut sealed) = (Vec::new(), Vec::new());
            let forward = || testpmd::macswap(&kind.loops(frame(bytes)));
            // While somebody has sockets there, they cost everybody else's packets.
            let shared = kind == PortKind::AfPacket;
            if shared {
                (0..3).try_for_each(|_| forward().map(|rate| forwarded.push(rate)))?;
            }
            let mut setups = setups(arena, &devices, kind, bytes)?;
            for round in 0..options.rounds.max(1) {
                for setup in &mut setups {
                    setup.rates.push(match &mut setup.subject {
                        Subject::Wires(wires) => measure_wires(wires),
                        Subject::Lan(lan) => measure(lan),
                    });
                }
                if round % options.rounds.div_ceil(3).max(1) == 0 {
                    if !shared {
                        forwarded.push(forward()?);
                    }
                    if kind == PortKind::Null {
                        sealed.push(cryptoperf::seal(bytes)?);
                    }
                }
            }
            let references = [forwarded, sealed].map(|rates| rates.into_iter().reduce(f64::max));
            rows.extend(report(&setups, size, references));
        }
    }
    Ok(())
}

/// A packet with its link header.
fn frame(bytes: usize) -> usize {
    bytes + patronus_engine::ethernet::ETHERNET_HEADER
}

fn setups(arena: &'static Arena, devices: &Devices, kind: PortKind, bytes: usize) -> Result<Vec<Setup>> {
    let setup = |pipeline, port, subject| Setup {
        pipeline,
        port,
        subject,
        rates: Vec::new(),
    };
    let size = Size::Bytes(bytes);
    let memory = Wire::new(arena, FLOWS, size);
    let mut over_devices = Vec::new();
    for device in kind.loops(frame(bytes)) {
        let mut device = devices.open(&device)?;
        if kind != PortKind::Null {
            prime(arena, device.as_mut(), size);
        }
        over_devices.push(Wire::with_ports(arena, device, None));
    }
    let mut setups = vec![
        setup("macswap", "memory", Subject::Wires(vec![memory])),
        setup("macswap", kind.name(), Subject::Wires(over_devices)),
    ];
    if kind == PortKind::Null {
        let memory = Lan::tunnel(arena, FLOWS, |flows| {
            let sink = Sink::default();
            Ports {
                sent: sink.counters().clone(),
                source: Box::new(Source::new(size, flows)),
                sink: Box::new(sink),
            }
        });
        // The port in memory where packets leave brings none, and neither does this one.
        let names = ["", ",no-rx=1"].iter().zip(1..);
        let mut ends = names.map(|(silent, number)| {
            let device = kind.device(number, frame(bytes));
            devices.open(&format!("{device}{silent}"))
        });
        let mut end = || ends.next().unwrap_or(Err(Error::new("two devices")));
        let (source, sink) = (end()?, end()?);
        let mut ends = Some((source, sink));
        let over_device = Lan::tunnel(arena, FLOWS, |flows| {
            let (source, sink) = ends.take().expect("one worker");
            Ports {
                sent: sink.counters().clone(),
                source: Box::new(Shaped {
                    port: source,
                    shape: Source::new(size, flows),
                }),
                sink,
            }
        });
        setups.push(setup("tunnel", "memory", Subject::Lan(Box::new(memory))));
        setups.push(setup("tunnel", kind.name(), Subject::Lan(Box::new(over_device))));
    }
    Ok(setups)
}

/// Packets a second through all wires on one core, over a slice of time.
fn measure_wires(wires: &mut [Wire]) -> f64 {
    if let [wire] = wires {
        return measure_wire(wire);
    }
    let (start, mut packets) = (Instant::now(), 0);
    while start.elapsed() < SLICE {
        for _ in 0..64 {
            packets += wires.iter_mut().map(Wire::burst).sum::<usize>();
        }
    }
    packets as f64 / start.elapsed().as_secs_f64()
}

/// Puts so many packets into a device as dpdk-testpmd does.
fn prime(arena: &'static Arena, port: &mut dyn Port, size: Size) {
    let mut frames = patronus_mem::FrameCache::new(arena);
    let mut burst = patronus_mem::Burst::new();
    Source::new(size, (0..FLOWS).collect()).make(&mut frames, &mut burst, FIRST);
    let _ = port.tx_burst(&mut frames, &mut burst);
}

/// A device whose packets say nothing, and what makes packets of them as the port in memory does.
struct Shaped {
    port: Box<dyn Port + Send>,
    shape: Source,
}

impl Port for Shaped {
    fn rx_burst(
        &mut self,
        frames: &mut patronus_mem::FrameCache,
        burst: &mut patronus_mem::Burst,
    ) -> std::result::Result<usize, patronus_io::PortError> {
        let before = burst.len();
        let received = self.port.rx_burst(frames, burst)?;
        burst.as_mut_slice()[before..]
            .iter_mut()
            .for_each(|pkt| self.shape.shape(pkt));
        Ok(received)
    }

    fn tx_burst(
        &mut self,
        frames: &mut patronus_mem::FrameCache,
        burst: &mut patronus_mem::Burst,
    ) -> std::result::Result<(), patronus_io::PortError> {
        self.port.tx_burst(frames, burst)
    }

    fn counters(&self) -> &std::sync::Arc<patronus_io::PortCounters> {
        self.port.counters()
    }
}

/// The rows, printed; the references are for `macswap` and `tunnel`.
fn report(setups: &[Setup], size: Size, references: [Option<f64>; 2]) -> Vec<Row> {
    let row = |setup: &Setup| {
        let reference = match (setup.port, setup.pipeline) {
            ("memory", _) => None,
            (_, "macswap") => references[0],
            _ => references[1],
        };
        let rate = setup.rate();
        let memory = setups
            .iter()
            .find(|other| other.port == "memory" && other.pipeline == setup.pipeline);
        let of = |of: Option<f64>| of.map_or(String::from("-"), |of| format!("{:.2}", rate / of));
        println!(
            "{:<8} {:>5}  {:<9} {:>6.2} {:>10.1} {:>12} {:>17} {:>8}",
            setup.pipeline,
            size,
            setup.port,
            rate / 1e6,
            1e9 / rate,
            of(memory.filter(|_| setup.port != "memory").map(Setup::rate)),
            reference.map_or(String::from("-"), |rate| format!("{:.2}", rate / 1e6)),
            of(reference),
        );
        Row {
            port: setup.port,
            reference_mpps: reference.map(|rate| rate / 1e6),
            peers: usize::from(setup.pipeline == "tunnel"),
            flows: FLOWS as usize,
            aead: (setup.pipeline == "tunnel").then(|| patronus_crypto::aead::default().name()),
            ..Row::new(setup.pipeline, size, 1, 1e9 / rate)
        }
    };
    setups.iter().map(row).collect()
}

#[cfg(feature = "dpdk")]
struct Devices(&'static patronus_io::dpdk::Dpdk);

#[cfg(feature = "dpdk")]
impl Devices {
    fn start(arena: &'static Arena) -> Result<Devices> {
        let options = patronus_io::dpdk::Options::default();
        patronus_io::dpdk::Dpdk::start(&options, arena)
            .map(Devices)
            .map_err(|e| Error::new(e.to_string()))
    }

    fn open(&self, device: &str) -> Result<Box<dyn Port + Send>> {
        let config = patronus_io::dpdk::DeviceConfig::new(device);
        let (_, mut ports) = self.0.open(&config).map_err(|e| Error::new(e.to_string()))?;
        ports
            .pop()
            .map(|port| Box::new(port) as _)
            .ok_or_else(|| Error::new("no port"))
    }
}

#[cfg(not(feature = "dpdk"))]
struct Devices(std::convert::Infallible);

#[cfg(not(feature = "dpdk"))]
impl Devices {
    fn start(_: &'static Arena) -> Result<Devices> {
        Err(Error::new(
            "--port needs DPDK, which this program was built without: cargo build --release -p patronus-bench --features dpdk",
        ))
    }

    fn open(&self, _: &str) -> Result<Box<dyn Port + Send>> {
        match self.0 {}
    }
}
