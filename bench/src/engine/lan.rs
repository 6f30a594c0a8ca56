//! Workers that route between two LAN ports in memory: one makes packets, the other swallows them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use patronus_crypto::{PeerId, Time, aead};
use patronus_engine::channel::{ToSlowPath, WanPort};
use patronus_engine::clock::{Clock, SystemClock, SystemRandom};
use patronus_engine::crew::Crew;
use patronus_engine::ethernet::{ETHERNET_HEADER, LinkAddresses};
use patronus_engine::fib::{FibWriterV4, FibWriterV6, Group, Limits};
use patronus_engine::flow::HashKeys;
use patronus_engine::route::{Router, Rules};
use patronus_engine::snapshot::{Exit, Hop, Plan, Snapshot};
use patronus_engine::stats::Placed;
use patronus_engine::wg::{Context, Wg};
use patronus_engine::worker::{IdleLadder, LanPort, Parts, Worker};
use patronus_io::ip::{FlowKey, Packet};
use patronus_io::{Port, PortCounters, PortError};
use patronus_mem::{Arena, Burst, FrameCache, PktBuf};
use patronus_sync::{Domain, Publisher, publish};

use super::pair;
use super::size::Size;

/// Bytes of the headers that a packet is made with: Ethernet, IPv4, UDP.
const HEADERS: usize = ETHERNET_HEADER + 28;

/// Where everything goes to.
const DESTINATIONS: u32 = 256;

/// The link addresses of what leaves.
const OUT: LinkAddresses = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 2];

/// Where a source sends to if nothing else is said.
const HERE: u8 = 0;

/// Where the peer's endpoint is if nothing else is said.
const SOMEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 4000);

/// The headers of a flow's packets to a place, without checksums: nobody looks at them before the TTL changes.
fn headers(flow: u32, size: usize, place: u8) -> [u8; HEADERS] {
    let mut bytes = [0; HEADERS];
    bytes[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 8]);
    bytes[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut bytes[ETHERNET_HEADER..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(size as u16).to_be_bytes());
    (ip[8], ip[9]) = (64, 17);
    let [_, a, b, c] = (flow / 16).to_be_bytes();
    ip[12..16].copy_from_slice(&[10, a, b, c]);
    ip[16..20].copy_from_slice(&destination(place, flow % DESTINATIONS).octets());
    ip[20..22].copy_from_slice(&(1024 + (flow % 16) as u16).to_be_bytes());
    ip[22..24].copy_from_slice(&443u16.to_be_bytes());
    ip[24..26].copy_from_slice(&(size as u16 - 20).to_be_bytes());
    bytes
}

fn destination(place: u8, number: u32) -> Ipv4Addr {
    let [_, _, _, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 18 + place, low, 1)
}

fn key(flow: u32) -> FlowKey {
    let bytes = headers(flow, 64, HERE);
    let mut packet = [0; 64];
    packet[..HEADERS - ETHERNET_HEADER].copy_from_slice(&bytes[ETHERNET_HEADER..]);
    Packet::parse(&packet).expect("a packet").flow()
}

/// A port that always has a burst of packets.
pub struct Source {
    /// Bytes of the IP packets and what they begin with, in the order in which they come.
    shapes: Box<[(usize, [u8; HEADERS])]>,
    next_shape: usize,
    /// The same of flows.
    flows: Arc<[u32]>,
    next: usize,
    counters: Arc<PortCounters>,
}

impl Source {
    /// Packets of `size` bytes, of these flows in turn.
    pub fn new(size: Size, flows: Arc<[u32]>) -> Source {
        Source::towards(HERE, size, flows)
    }

    /// The same to another place.
    pub fn towards(place: u8, size: Size, flows: Arc<[u32]>) -> Source {
        let shapes = size
            .cycle()
            .into_iter()
            .map(|size| (size, headers(0, size, place)));
        Source {
            shapes: shapes.collect(),
            next_shape: 0,
            flows,
            next: 0,
            counters: Arc::default(),
        }
    }
}

impl Source {
    /// Makes up to `most` packets, and no more than there is room for. Returns how many.
    pub fn make(&mut self, frames: &mut FrameCache, burst: &mut Burst, most: usize) -> usize {
        let before = burst.len();
        while burst.len() - before < most
            && burst.room() > 0
            && let Some(mut pkt) = frames.alloc()
        {
            self.shape(&mut pkt);
            burst.push(pkt);
        }
        let made = burst.len() - before;
        self.counters.rx_packets.add(made as u64);
        made
    }

    /// Makes the next packet of what is in a frame, which need not be anything.
    #[inline]
    pub fn shape(&mut self, pkt: &mut PktBuf) {
        let flow = self.flows[self.next];
        self.next += 1;
        if self.next == self.flows.len() {
            self.next = 0;
        }
        let (size, template) = &self.shapes[self.next_shape];
        self.next_shape += 1;
        if self.next_shape == self.shapes.len() {
            self.next_shape = 0;
        }
        pkt.set_len(ETHERNET_HEADER + size);
        let data = pkt.data_mut();
        data[..HEADERS].copy_from_slice(template);
        let ip = &mut data[ETHERNET_HEADER..];
        ip[12..16].copy_from_slice(&((10 << 24) | (flow / 16)).to_be_bytes());
        ip[18] = flow as u8;
        ip[20..22].copy_from_slice(&(1024 + (flow % 16) as u16).to_be_bytes());
    }
}

impl Port for Source {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        Ok(self.make(frames, burst, usize::MAX))
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        self.counters.tx_packets.add(burst.len() as u64);
        burst.clear_into(frames);
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

/// A port that swallows packets.
#[derive(Default)]
pub struct Sink {
    counters: Arc<PortCounters>,
}

impl Port for Sink {
    fn rx_burst(&mut self, _: &mut FrameCache, _: &mut Burst) -> Result<usize, PortError> {
        Ok(0)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        self.counters.tx_packets.add(burst.len() as u64);
        burst.clear_into(frames);
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

/// Which flows arrive at which worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrivals {
    /// Each worker's port has that worker's flows.
    Aligned,
    /// Each port has all flows, so that of two workers each hands half of its packets over.
    Mixed,
}

/// The two ports of a worker.
pub struct Ports {
    pub source: Box<dyn Port + Send>,
    pub sink: Box<dyn Port + Send>,
    /// What the sink counts.
    pub sent: Arc<PortCounters>,
}

/// Workers, each with a source and a sink, and what keeps their rules alive.
pub struct Lan {
    pub workers: Vec<Worker>,
    /// For each worker the counters of its sink.
    pub sinks: Vec<Arc<PortCounters>>,
    _publisher: Publisher<Snapshot>,
    _v4: FibWriterV4,
    _v6: FibWriterV6,
}

impl Lan {
    /// `flows` flows of packets of `size` bytes.
    pub fn new(arena: &'static Arena, workers: usize, flows: u32, size: Size, arrivals: Arrivals) -> Lan {
        Lan::with_ports(arena, workers, flows, arrivals, |flows| {
            let sink = Sink::default();
            let sent = Arc::clone(sink.counters());
            Ports {
                source: Box::new(Source::new(size, flows)),
                sink: Box::new(sink),
                sent,
            }
        })
    }

    /// The same with other ports, made from the flows that arrive there. Each worker has room for all flows.
    pub fn with_ports(
        arena: &'static Arena,
        workers: usize,
        flows: u32,
        arrivals: Arrivals,
        ports: impl FnMut(Arc<[u32]>) -> Ports,
    ) -> Lan {
        let exits = [(HERE, Exit::Lan(1, Some(OUT)))];
        Lan::build(arena, workers, flows, arrivals, &exits, None, ports)
    }

    /// One worker whose packets leave in a tunnel, by the sink.
    pub fn tunnel(arena: &'static Arena, flows: u32, ports: impl FnMut(Arc<[u32]>) -> Ports) -> Lan {
        let exits = [(HERE, Exit::Tunnel(PeerId(0)))];
        let end = Some((true, SOMEWHERE));
        Lan::build(arena, 1, flows, Arrivals::Aligned, &exits, end, ports)
    }

    /// One worker of a site with one end of a session, whose other end is at `endpoint`: what goes to the site's own place, 0 for the near end and else 1, leaves by the first port, the
    /// source; what goes to the other end's in a tunnel by the second one, the sink.
    #[cfg(feature = "dpdk")]
    pub fn site(
        arena: &'static Arena,
        flows: u32,
        near: bool,
        endpoint: SocketAddr,
        ports: impl FnMut(Arc<[u32]>) -> Ports,
    ) -> Lan {
        let exits = [
            (u8::from(!near), Exit::Lan(0, Some(OUT))),
            (u8::from(near), Exit::Tunnel(PeerId(0))),
        ];
        let end = Some((near, endpoint));
        Lan::build(arena, 1, flows, Arrivals::Aligned, &exits, end, ports)
    }

    /// `exits` are the ways to each place; `end` is what a session, if there is one, is with.
    fn build(
        arena: &'static Arena,
        workers: usize,
        flows: u32,
        arrivals: Arrivals,
        exits: &[(u8, Exit)],
        end: Option<(bool, SocketAddr)>,
        mut ports: impl FnMut(Arc<[u32]>) -> Ports,
    ) -> Lan {
        let mut random = SystemRandom;
        let keys = HashKeys::new(std::array::from_fn(|_| {
            let mut bytes = [0; 8];
            patronus_crypto::Random::fill(&mut random, &mut bytes);
            u64::from_ne_bytes(bytes)
        }));
        let (domain, readers) = Domain::new(workers);
        let plan = Plan {
            epoch: 1,
            policies: Vec::new(),
            groups: exits
                .iter()
                .map(|&(_, exit)| vec![Hop { exit, mtu: 1500 }])
                .collect(),
            lans: vec![true; 2],
            spread_over: workers,
        };
        let snapshot = Snapshot::compile(&plan, keys.clone()).expect("a good plan");
        let mut arriving = vec![Vec::new(); workers];
        for flow in shuffled(flows) {
            let owner = snapshot.worker(keys.hash(&key(flow))).unwrap_or(0);
            match arrivals {
                Arrivals::Aligned => arriving[owner].push(flow),
                Arrivals::Mixed => arriving.iter_mut().for_each(|flows| flows.push(flow)),
            }
        }
        let (publisher, published) = publish(&domain, Box::new(snapshot));
        let limits = Limits {
            routes: 1 << 16,
            nodes: 1 << 12,
        };
        let mut v4 = FibWriterV4::new(&domain, limits).expect("memory for routes");
        let v6 = FibWriterV6::new(&domain, limits).expect("memory for routes");
        for (&(place, _), group) in exits.iter().zip(1..) {
            let group = Group::new(group).expect("a group");
            for number in 0..DESTINATIONS {
                v4.insert(&domain, destination(place, number).octets(), 24, group)
                    .expect("room for routes");
            }
        }
        let slow = Arc::new(ToSlowPath::new(workers).expect("a descriptor"));
        let mut lan = Lan {
            workers: Vec::new(),
            sinks: Vec::new(),
            _publisher: publisher,
            _v4: v4,
            _v6: v6,
        };
        let crews = Crew::assemble(workers).expect("descriptors");
        for ((mut crew, reader), flows_here) in crews.into_iter().zip(readers).zip(arriving) {
            let rules = Rules {
                snapshot: published.clone(),
                v4: Arc::clone(lan._v4.fib()),
                v6: Arc::clone(lan._v6.fib()),
                reader,
            };
            let Ports { source, sink, sent } = ports(flows_here.into());
            lan.sinks.push(sent);
            let port = |port| LanPort { port, ethernet: true };
            let (mut lans, mut wans) = (vec![Some(port(source))], vec![None]);
            let mut frames = FrameCache::new(arena);
            let stats = Placed::default();
            let mut wg = Wg::new(aead::default(), 1, 1420, 0);
            if let Some((near, endpoint)) = end {
                let mut cx = Context {
                    now: now(),
                    frames: &mut frames,
                    stats: &stats,
                    slow: &slow,
                    wake_slow: false,
                    clock: &SystemClock,
                    crew: &mut crew,
                    observing: None,
                };
                pair::add_peer(&mut wg, &mut cx, near, endpoint);
                wans = vec![Some(WanPort {
                    ifindex: 0,
                    port: sink,
                })];
            } else {
                lans.push(Some(port(sink)));
            }
            lan.workers.push(Worker::new(Parts {
                wg,
                lans,
                wans,
                router: Some(
                    Router::new(flows.max(64) as usize, keys.clone(), rules).expect("memory for flows"),
                ),
                frames,
                crew,
                stats,
                slow: Arc::clone(&slow),
                clock: Box::new(SystemClock),
                idle: IdleLadder {
                    spin: std::time::Duration::ZERO,
                },
            }));
        }
        lan
    }
}

/// What the clock says now, for a turn.
pub fn now() -> Time {
    SystemClock.mono()
}

/// All numbers below `count`, each once, in an order that no prefetcher follows.
fn shuffled(count: u32) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..count).collect();
    let mut state = 1u64;
    for at in (1..numbers.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        numbers.swap(at, ((state >> 33) % (at as u64 + 1)) as usize);
    }
    numbers
}

/// Exchanges the first six bytes and the next six, in a register.
#[inline]
fn exchange(frame: &mut [u8; 16]) {
    const ADDRESS: u128 = (1 << 48) - 1;
    let word = u128::from_le_bytes(*frame);
    let exchanged = (word >> 48) & ADDRESS | (word & ADDRESS) << 48 | word & !(ADDRESS | ADDRESS << 48);
    *frame = exchanged.to_le_bytes();
}

/// A packet through two ports and nothing between them but an exchange of the link addresses: what ports and frames cost.
pub struct Wire {
    source: Box<dyn Port + Send>,
    /// The same port, if there is none.
    sink: Option<Box<dyn Port + Send>>,
    frames: FrameCache,
}

impl Wire {
    pub fn new(arena: &'static Arena, flows: u32, size: Size) -> Wire {
        let source = Source::new(size, shuffled(flows).into());
        Wire::with_ports(arena, Box::new(source), Some(Box::new(Sink::default())))
    }

    /// From a port to another one, or back to the first.
    pub fn with_ports(
        arena: &'static Arena,
        source: Box<dyn Port + Send>,
        sink: Option<Box<dyn Port + Send>>,
    ) -> Wire {
        Wire {
            source,
            sink,
            frames: FrameCache::new(arena),
        }
    }

    /// One burst. Returns how many packets.
    pub fn burst(&mut self) -> usize {
        let mut burst = Burst::new();
        let _ = self.source.rx_burst(&mut self.frames, &mut burst);
        for pkt in burst.iter_mut() {
            if let Some(frame) = pkt.data_mut().first_chunk_mut() {
                exchange(frame);
            }
        }
        let packets = burst.len();
        let sink = self.sink.as_mut().unwrap_or(&mut self.source);
        let _ = sink.tx_burst(&mut self.frames, &mut burst);
        packets
    }
}
