//! NICs over DPDK: opened, looked after, and opened again.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use patronus_mem::Arena;

use super::seat::{Seat, SeatPort};
use super::{DESCRIPTORS, NicConfig, NicEvent, NicPorts, NicsConfig, NicsError};
use crate::PortCounters;
use crate::dpdk::{Device, DeviceConfig, Dpdk, DpdkError, DpdkPort, Options};
use crate::netlink::RouteQuery;

/// Between two looks at a NIC: at its link, whether it is there, and for one that is not.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How soon one that was refused is tried again.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// How long a connection to another process may take.
const CONNECT: Duration = Duration::from_secs(2);

/// Drivers of virtual devices that stand on an interface of the kernel's, and do not say when that goes.
const OVER_INTERFACES: [&str; 2] = ["net_af_packet", "net_pcap"];
/// Shared memory with another process.
const MEMIF: &str = "net_memif";

/// The NICs of an engine.
pub struct Nics {
    maker: Maker,
    nics: Vec<Nic>,
}

/// What it takes to open one.
struct Maker {
    dpdk: &'static Dpdk,
    workers: u16,
    interfaces: RouteQuery,
    /// None may be opened in this turn any more.
    is_done: bool,
}

struct Nic {
    config: NicConfig,
    seats: Vec<Arc<Seat>>,
    counters: Vec<Arc<PortCounters>>,
    /// Until somebody takes them.
    ports: NicPorts,
    state: State,
    look_at: Option<Instant>,
    /// What was said last, so that it is said once.
    said: Option<NicEvent>,
}

enum State {
    /// Not there.
    Absent,
    /// There.
    Open(Open),
    /// Its queues are on their way back.
    Closing,
}

/// What has become of what a NIC stands on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    Up,
    /// Down, or gone.
    Down,
    /// Another one has its name.
    Replaced,
}

struct Open {
    device: Arc<Device>,
    /// The number of the interface that it stands on.
    ifindex: Option<u32>,
    up: bool,
    /// When it must have a carrier, or it has lost the process at the other end.
    connected_by: Option<Instant>,
}

impl Nics {
    /// Starts DPDK over the arena's frames. No NIC is open yet, but [`tend`](Self::tend) says what becomes of each. Called once in a process, before other threads are
    /// spawned: those that DPDK makes have the rights of the caller.
    pub fn start(config: &NicsConfig, arena: &'static Arena) -> Result<Nics, NicsError> {
        let pci = config.nics.iter().filter(|nic| nic.device.contains(':'));
        let options = Options {
            memory: config.memory_mib,
            huge_pages: config.huge_pages,
            pci: pci.map(|nic| nic.device.clone()).collect(),
        };
        let refused = |why: &dyn Display| NicsError::Refused(why.to_string());
        let maker = Maker {
            dpdk: Dpdk::start(&options, arena).map_err(|error| refused(&error))?,
            workers: config.workers,
            interfaces: RouteQuery::new().map_err(|error| refused(&error))?,
            is_done: false,
        };
        let nics = config.nics.iter().map(|nic| Nic::new(nic, config.workers));
        Ok(Nics {
            maker,
            nics: nics.collect(),
        })
    }

    /// A NIC's ports, by worker, the first time.
    pub fn take_ports(&mut self, nic: usize) -> NicPorts {
        std::mem::take(&mut self.nics[nic].ports)
    }

    /// Looks after the NICs that are due, and says what has become of them. Returns when the next one is due. Opens one at most, which takes milliseconds.
    pub fn tend(&mut self, now: Instant, mut say: impl FnMut(usize, NicEvent)) -> Instant {
        self.maker.is_done = false;
        for (at, nic) in self.nics.iter_mut().enumerate() {
            if nic.look_at.is_none_or(|due| due <= now) {
                nic.look_at = Some(now + LOOK_EVERY);
                nic.tend(&mut self.maker, now, |event| say(at, event));
            }
        }
        let due = self.nics.iter().filter_map(|nic| nic.look_at).min();
        due.unwrap_or(now + LOOK_EVERY)
    }
}

impl Nic {
    fn new(config: &NicConfig, workers: u16) -> Nic {
        let seats: Vec<Arc<Seat>> = (0..workers).map(|_| Arc::default()).collect();
        let counters: Vec<Arc<PortCounters>> = (0..workers).map(|_| Arc::default()).collect();
        let ports = seats.iter().zip(&counters);
        let ports = ports
            .map(|(seat, counters)| Box::new(SeatPort::new(Arc::clone(seat), Arc::clone(counters))) as _);
        Nic {
            config: config.clone(),
            ports: ports.collect(),
            seats,
            counters,
            state: State::Absent,
            look_at: None,
            said: None,
        }
    }

    fn tend(&mut self, maker: &mut Maker, now: Instant, mut say: impl FnMut(NicEvent)) {
        match &mut self.state {
            State::Open(open) => {
                let stands = open.stands(&self.config, &maker.interfaces);
                if open.is_lost(&self.seats, stands, now) {
                    self.want_seats();
                    self.state = State::Closing;
                    self.said = Some(NicEvent::Lost);
                    say(NicEvent::Lost);
                } else if let Some(up) = open.follow_link(stands) {
                    say(NicEvent::Link(up));
                }
            }
            State::Closing => {
                if self.want_seats() {
                    // The device closes with the last of its queues.
                    self.seats.iter().for_each(|seat| drop(seat.empty()));
                    self.state = State::Absent;
                }
            }
            State::Absent if !std::mem::replace(&mut maker.is_done, true) => {
                let event = self.try_open(maker, now);
                if self.said.as_ref() != Some(&event) {
                    self.said = Some(event.clone());
                    say(event);
                }
            }
            // Another one's turn: soon.
            State::Absent => self.look_at = Some(now),
        }
    }

    /// Asks for all queues that are still with workers. True if there are none.
    fn want_seats(&self) -> bool {
        let mut there = self.seats.iter().filter(|seat| !seat.is_returned()).peekable();
        let all = there.peek().is_none();
        there.for_each(|seat| seat.want());
        all
    }

    fn try_open(&mut self, maker: &Maker, now: Instant) -> NicEvent {
        let ifindex = match self.config.stands_on() {
            None => None,
            Some(name) => match maker.interfaces.running(name) {
                Ok(Some(ifindex)) => Some(ifindex),
                Ok(None) => {
                    return NicEvent::Missing(format!(
                        "there is no interface {name}, or it is down or has no carrier"
                    ));
                }
                Err(error) => return NicEvent::Missing(format!("cannot ask for interface {name}: {error}")),
            },
        };
        let config = DeviceConfig {
            queues: maker.workers,
            descriptors: DESCRIPTORS,
            mtu: self.config.mtu,
            ..DeviceConfig::new(self.config.device.as_str())
        };
        match maker.dpdk.open(&config) {
            Ok((device, ports)) => self.opened(device, ports, ifindex, now),
            Err(DpdkError::Device(..)) if self.config.calls_another_process() => {
                NicEvent::Missing("nobody answers at its socket".to_owned())
            }
            Err(error) => {
                self.look_at = Some(now + REFUSED_RETRY);
                NicEvent::Refused(error.to_string())
            }
        }
    }

    fn opened(
        &mut self,
        device: Arc<Device>,
        ports: Vec<DpdkPort>,
        ifindex: Option<u32>,
        now: Instant,
    ) -> NicEvent {
        for ((mut port, seat), counters) in ports.into_iter().zip(&self.seats).zip(&self.counters) {
            port.count_into(Arc::clone(counters));
            seat.fill(port);
        }
        let mac = device.info().mac;
        let calls = self.config.calls_another_process();
        self.state = State::Open(Open {
            up: true,
            connected_by: calls.then(|| now + CONNECT),
            device,
            ifindex,
        });
        NicEvent::Opened(mac, self.config.mtu)
    }
}

impl Open {
    /// What has become of the interface that it stands on.
    fn stands(&self, config: &NicConfig, interfaces: &RouteQuery) -> Stands {
        let (Some(name), Some(before)) = (config.stands_on(), self.ifindex) else {
            return Stands::Up;
        };
        match interfaces.running(name) {
            Ok(Some(ifindex)) if ifindex != before => Stands::Replaced,
            Ok(None) => Stands::Down,
            // Who cannot be asked has not said that it is gone.
            Ok(Some(_)) | Err(_) => Stands::Up,
        }
    }

    /// Whether it has to be opened anew.
    fn is_lost(&mut self, seats: &[Arc<Seat>], stands: Stands, now: Instant) -> bool {
        let gone = stands == Stands::Replaced || self.device.is_removed();
        if gone || seats.iter().any(|seat| seat.is_returned()) {
            return true;
        }
        // Whoever calls has to call again; the driver does not.
        let Some(by) = &mut self.connected_by else {
            return false;
        };
        if self.device.link().up {
            *by = now;
        }
        *by < now
    }

    /// Whether the link is another one than it was: which.
    fn follow_link(&mut self, stands: Stands) -> Option<bool> {
        let up = self.device.look_at_link() && stands == Stands::Up;
        (std::mem::replace(&mut self.up, up) != up).then_some(up)
    }
}

impl NicConfig {
    fn is_of(&self, driver: &str) -> bool {
        self.device.starts_with(driver)
    }

    fn argument(&self, key: &str) -> Option<&str> {
        let mut arguments = self.device.split(',').skip(1);
        arguments.find_map(|argument| argument.strip_prefix(key)?.strip_prefix('='))
    }

    /// The interface of the kernel's that it is.
    fn stands_on(&self) -> Option<&str> {
        let is_over = OVER_INTERFACES.iter().any(|driver| self.is_of(driver));
        self.argument("iface").filter(|_| is_over)
    }

    /// Whether it is there only as long as another process listens, which it calls once.
    fn calls_another_process(&self) -> bool {
        self.is_of(MEMIF) && !matches!(self.argument("role"), Some("server" | "master"))
    }
}
