//! NICs over DPDK: opened, looked after, and opened again.

use std::fmt::Display;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use patronus_mem::Arena;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::seat::{Seat, SeatPort};
use super::{DESCRIPTORS, NicConfig, NicEvent, NicQueues, NicsConfig, NicsError, free_pages};
use crate::PortCounters;
use crate::dpdk::{Device, DeviceConfig, Dpdk, DpdkError, DpdkPort, Options};
use crate::exception::{self, Exception, ExceptionPath, Rule, RunningPath, SplitPort, Take};
use crate::netlink::RouteQuery;
use crate::schedule::{Wakeup, set_wakeup, wakeup};

/// Between two looks at a NIC: whether it is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How soon one that was refused is tried again.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// How long a connection to another process may take.
const CONNECT: Duration = Duration::from_secs(2);

/// Drivers of virtual devices that stand on an interface of the kernel's, and do not say when that goes.
const OVER_INTERFACES: [&str; 2] = ["net_af_packet", "net_pcap"];
/// The driver whose frames lack checksums that the kernel leaves to a wire.
const PACKET_SOCKETS: &str = "net_af_packet";
/// Shared memory with another process.
const MEMIF: &str = "net_memif";
/// Its socket, if the device does not name one.
const MEMIF_SOCKET: &str = "/run/memif.sock";

/// Why shared memory is not there.
const NOBODY: &str = "nobody answers at its socket";

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
    queues: NicQueues,
    rule: Rule,
    /// What the rule says.
    takes: Option<Take>,
    path: Option<Path>,
    current: Arc<Current>,
    state: State,
    look_at: Option<Instant>,
    /// What was said last, so that it is said once.
    said: Option<NicEvent>,
}

/// Its interface of the kernel's.
struct Path {
    ifindex: u32,
    stage: Stage,
}

enum Stage {
    /// Nobody runs it yet.
    Made(Option<ExceptionPath>),
    Runs(RunningPath),
}

/// The device as the exception path sees it, whose thread looks at it all the time.
struct Current {
    device: Mutex<Option<Arc<Device>>>,
    /// Of the device; one of our own before there was any.
    mac: Mutex<[u8; 6]>,
    most: u16,
    mtu: AtomicU32,
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
    As,
    /// Another one has its name.
    Replaced,
}

struct Open {
    device: Arc<Device>,
    /// The number of the interface that it stands on.
    ifindex: Option<u32>,
    /// When it must have a carrier, or it has lost the process at the other end.
    connected_by: Option<Instant>,
}

impl Nics {
    /// Starts DPDK over the arena's frames, opens the devices that are there, and makes the interface of each NIC. Called once in a process, before other threads are
    /// spawned: those that DPDK makes have the rights of the caller. [`tend`](Self::tend) says afterwards what has become of each device.
    pub fn start(config: &NicsConfig, arena: &'static Arena) -> Result<Nics, NicsError> {
        let pci = config.nics.iter().filter(|nic| nic.is_card());
        let options = Options {
            memory: memory(config)?,
            huge_pages: config.huge_pages,
            pci: pci.map(|nic| nic.device.clone()).collect(),
        };
        let refused = |why: &dyn Display| NicsError::Refused(why.to_string());
        // DPDK's thread for interrupts takes over how this one wakes. It unmaps memory that net_memif's queues are read from: not in the middle of a worker's call, then.
        let before = wakeup();
        let waiting = before.map(|_| set_wakeup(Wakeup::Waiting));
        let dpdk = Dpdk::start(&options, arena);
        if let (Some(before), Some(Ok(()))) = (before, waiting) {
            set_wakeup(before).map_err(|error| refused(&error))?;
        }
        let maker = Maker {
            dpdk: dpdk.map_err(|error| refused(&error))?,
            workers: config.workers,
            interfaces: RouteQuery::new().map_err(|error| refused(&error))?,
            is_done: false,
        };
        let mut nics = Vec::new();
        for (nic, number) in config.nics.iter().zip(0..) {
            let mut nic = Nic::new(nic, config.workers, number);
            if let NicEvent::Refused(why) = nic.try_open(&maker, None) {
                return Err(NicsError::Refused(format!("{}: {why}", nic.config.interface)));
            }
            nic.make_interface(config.workers, arena)
                .map_err(|error| NicsError::Refused(unmade(&nic.config.interface, &error)))?;
            nics.push(nic);
        }
        Ok(Nics { maker, nics })
    }

    /// Has each NIC's exception path run on a thread of its own, which has the rights of the caller. `say` says what happens to the interfaces.
    pub fn run(
        &mut self,
        now: fn() -> Instant,
        say: impl FnMut(usize, Exception) + Clone + Send + 'static,
    ) -> io::Result<()> {
        for (at, nic) in self.nics.iter_mut().enumerate() {
            let mut say = say.clone();
            if let Some(Path { stage, .. }) = &mut nic.path
                && let Stage::Made(made) = stage
                && let Some(path) = made.take()
            {
                *stage = Stage::Runs(path.start(now, move |event| say(at, event))?);
            }
        }
        Ok(())
    }

    /// The NIC with this interface.
    pub fn number(&self, interface: &str) -> Option<usize> {
        self.nics.iter().position(|nic| nic.config.interface == interface)
    }

    /// The number of its interface.
    pub fn ifindex(&self, nic: usize) -> u32 {
        self.nics[nic].path.as_ref().map_or(0, |path| path.ifindex)
    }

    /// Its link address.
    pub fn mac(&self, nic: usize) -> [u8; 6] {
        exception::Nic::mac(&self.nics[nic].current)
    }

    /// What its exception path counts, once that runs.
    pub fn host_counters(&self, nic: usize) -> Option<&Arc<PortCounters>> {
        match &self.nics[nic].path {
            Some(Path {
                stage: Stage::Runs(path),
                ..
            }) => Some(path.counters()),
            _ => None,
        }
    }

    /// A NIC's queues, by worker, the first time.
    pub fn take_queues(&mut self, nic: usize) -> NicQueues {
        std::mem::take(&mut self.nics[nic].queues)
    }

    /// Which frames of a NIC are the engine's; none: all are the host's. An error if there are too many addresses: nothing changes.
    pub fn set(&mut self, nic: usize, take: Option<Take>) -> io::Result<()> {
        let nic = &mut self.nics[nic];
        if nic.takes == take {
            return Ok(());
        }
        match &take {
            Some(take) => nic.rule.set(take)?,
            None => nic.rule.clear(),
        }
        nic.takes = take;
        Ok(())
    }

    /// Looks after the devices that are due, and says what has become of them. Returns when the next one is due. Opens one at most, which takes milliseconds.
    pub fn tend(&mut self, now: Instant, mut say: impl FnMut(usize, NicEvent)) -> Instant {
        self.maker.is_done = false;
        for (at, nic) in self.nics.iter_mut().enumerate() {
            if nic.look_at.is_none_or(|due| due <= now) {
                nic.look_at = Some(now + LOOK_EVERY);
                let said = nic.said.clone();
                nic.tend(&mut self.maker, now);
                if let Some(event) = nic.said.clone().filter(|event| Some(event) != said.as_ref()) {
                    say(at, event);
                }
            }
        }
        let due = self.nics.iter().filter_map(|nic| nic.look_at).min();
        due.unwrap_or(now + LOOK_EVERY)
    }
}

/// How much memory DPDK is to take: in whole pages of the wanted size. It takes the largest that fit, so a wanted size of 1 GiB is one that it takes.
fn memory(config: &NicsConfig) -> Result<u32, NicsError> {
    let Some(page) = config.huge_page_mib.filter(|_| config.huge_pages) else {
        return Ok(config.memory_mib);
    };
    let memory = config.memory_mib.next_multiple_of(page);
    let (pages, kib, free) = (memory / page, u64::from(page) << 10, free_pages(page));
    if free >= pages {
        return Ok(memory);
    }
    let size = if page < 1024 {
        format!("{page}M")
    } else {
        format!("{}G", page / 1024)
    };
    Err(NicsError::Refused(format!(
        "DPDK wants {pages} huge pages of {size}iB and {free} are free: `hugepagesz={size} hugepages={pages}` on the kernel's command line, or `echo {pages} > \
         /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages` while memory is whole; or change `huge_page_size` in [dpdk]"
    )))
}

/// Why there is no interface of this name.
fn unmade(name: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::AlreadyExists => format!(
            "there is an interface {name} already, and the engine makes one of that name for the host: choose another name"
        ),
        io::ErrorKind::NotFound => {
            format!(
                "cannot make interface {name}: /dev/net/tun is not there: load the module with `modprobe tun`"
            )
        }
        _ => format!("cannot make interface {name}: {error}"),
    }
}

impl Nic {
    fn new(config: &NicConfig, workers: u16, number: u8) -> Nic {
        Nic {
            config: config.clone(),
            seats: (0..workers).map(|_| Arc::default()).collect(),
            counters: (0..workers).map(|_| Arc::default()).collect(),
            queues: Vec::new(),
            rule: Rule::new(),
            takes: None,
            path: None,
            current: Arc::new(Current {
                device: Mutex::default(),
                // Of local administration (IEEE 802).
                mac: Mutex::new([2, 0, 0, 0, 0, number]),
                most: config.mtu,
                mtu: AtomicU32::new(config.mtu.into()),
            }),
            state: State::Absent,
            look_at: None,
            said: None,
        }
    }

    /// Makes its interface, and the workers' queues.
    fn make_interface(&mut self, workers: u16, arena: &'static Arena) -> io::Result<()> {
        let current = Box::new(Arc::clone(&self.current));
        let (path, sides) = ExceptionPath::create(&self.config.interface, current, workers.into(), arena)?;
        let unfinished = self.config.is_of(PACKET_SOCKETS);
        let seats = self.seats.iter().zip(&self.counters).zip(sides);
        let queues = seats.map(|((seat, counters), side)| {
            let port = SeatPort::new(Arc::clone(seat), Arc::clone(counters));
            let port = SplitPort::new(port, self.rule.sieve(), side);
            Box::new(port.with_unfinished_checksums(unfinished)) as _
        });
        self.queues = queues.collect();
        self.path = Some(Path {
            ifindex: path.host().ifindex(),
            stage: Stage::Made(Some(path)),
        });
        Ok(())
    }

    fn tend(&mut self, maker: &mut Maker, now: Instant) {
        match &mut self.state {
            State::Open(open) => {
                let stands = open.stands(&self.config, &maker.interfaces);
                let calls = self.config.calls_another_process();
                if open.is_lost(&self.seats, stands, calls, now) {
                    self.current.set(None);
                    self.want_seats();
                    self.state = State::Closing;
                    self.said = Some(NicEvent::Lost);
                } else {
                    self.said.get_or_insert(NicEvent::Opened);
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
                self.said = Some(self.try_open(maker, Some(now)));
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

    /// Without `now`, at the start.
    fn try_open(&mut self, maker: &Maker, now: Option<Instant>) -> NicEvent {
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
        self.config.clear_socket();
        // DPDK would say so each time.
        if self.config.calls_another_process() && !self.config.has_owner() {
            return NicEvent::Missing(NOBODY.to_owned());
        }
        let config = DeviceConfig {
            queues: maker.workers,
            descriptors: DESCRIPTORS,
            mtu: self.config.mtu,
            ..DeviceConfig::new(self.config.device.as_str())
        };
        match maker.dpdk.open(&config) {
            Ok((device, ports)) => {
                self.opened(device, ports, ifindex);
                NicEvent::Opened
            }
            Err(DpdkError::Device(..)) if self.config.calls_another_process() => {
                NicEvent::Missing(NOBODY.to_owned())
            }
            Err(error) => {
                self.look_at = now.map(|now| now + REFUSED_RETRY);
                NicEvent::Refused(error.to_string())
            }
        }
    }

    fn opened(&mut self, device: Arc<Device>, ports: Vec<DpdkPort>, ifindex: Option<u32>) {
        for ((mut port, seat), counters) in ports.into_iter().zip(&self.seats).zip(&self.counters) {
            port.count_into(Arc::clone(counters));
            seat.fill(port);
        }
        self.current.set(Some(&device));
        self.state = State::Open(Open {
            connected_by: None,
            device,
            ifindex,
        });
    }
}

impl Open {
    /// What has become of the interface that it stands on.
    fn stands(&self, config: &NicConfig, interfaces: &RouteQuery) -> Stands {
        let (Some(name), Some(before)) = (config.stands_on(), self.ifindex) else {
            return Stands::As;
        };
        match interfaces.running(name) {
            Ok(Some(ifindex)) if ifindex != before => Stands::Replaced,
            // One that is gone has no carrier. Who cannot be asked has not said anything.
            Ok(_) | Err(_) => Stands::As,
        }
    }

    /// Whether it has to be opened anew.
    fn is_lost(&mut self, seats: &[Arc<Seat>], stands: Stands, calls: bool, now: Instant) -> bool {
        let gone = stands == Stands::Replaced || self.device.is_removed();
        if gone || seats.iter().any(|seat| seat.is_returned()) {
            return true;
        }
        // Whoever calls another process has to call again; the driver does not.
        if !calls || self.device.link().up {
            self.connected_by = None;
            return false;
        }
        now > *self.connected_by.get_or_insert(now + CONNECT)
    }
}

impl Current {
    fn set(&self, device: Option<&Arc<Device>>) {
        if let Some(device) = device {
            *lock(&self.mac) = device.info().mac;
        }
        *lock(&self.device) = device.cloned();
    }
}

impl exception::Nic for Arc<Current> {
    fn mac(&self) -> [u8; 6] {
        *lock(&self.mac)
    }

    fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        match &*lock(&self.device) {
            Some(device) => device.set_mtu(mtu)?,
            None if mtu <= self.most.into() => {}
            None => return Err(io::ErrorKind::InvalidInput.into()),
        }
        self.mtu.store(mtu, Ordering::Relaxed);
        Ok(())
    }

    fn is_up(&self) -> bool {
        lock(&self.device)
            .as_ref()
            .is_some_and(|device| device.look_at_link())
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Whether a process has the socket of shared memory. Asked with a socket of another kind, so that nobody is called: a process whose caller hangs up before it has
    /// answered is ended by its DPDK (22.11).
    fn has_owner(&self) -> bool {
        let path = self.argument("socket").unwrap_or(MEMIF_SOCKET);
        let address = match self.socket_file() {
            Some(path) => SocketAddrUnix::new(path),
            None => SocketAddrUnix::new_abstract_name(path.as_bytes()),
        };
        let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
        let asking = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None);
        let asked = asking.and_then(|asking| rustix::net::connect(&asking, &address?));
        // For another reason than that nobody is there: DPDK finds out.
        !matches!(asked, Err(Errno::NOENT | Errno::CONNREFUSED))
    }

    /// The file of that socket, if it is one.
    fn socket_file(&self) -> Option<&str> {
        let is_file = self.argument("socket-abstract") == Some("no");
        is_file.then(|| self.argument("socket").unwrap_or(MEMIF_SOCKET))
    }

    /// Removes the socket that a process has left that was killed while it listened: else nobody can listen there again. What is no socket stays.
    fn clear_socket(&self) {
        let listens = self.is_of(MEMIF) && !self.calls_another_process();
        if let Some(path) = self.socket_file().filter(|_| listens)
            && std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
            && !self.has_owner()
        {
            // If it cannot be removed, listening fails and says so.
            let _ = rustix::fs::unlink(path);
        }
    }

    /// Whether it is there only as long as another process listens, which its driver calls once.
    fn calls_another_process(&self) -> bool {
        self.is_of(MEMIF) && !matches!(self.argument("role"), Some("server" | "master"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_was_left_is_removed_and_nothing_else() {
        let dir = std::env::temp_dir().join(format!("patronus-memif-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let [file, left] = ["file", "left"].map(|name| dir.join(name));
        std::fs::write(&file, "of somebody else").unwrap();
        drop(UnixListener::bind(&left).unwrap());
        for path in [&file, &left] {
            let device = format!(
                "net_memif0,role=server,socket-abstract=no,socket={}",
                path.display()
            );
            let nic = NicConfig {
                interface: "lan0".to_owned(),
                device,
                mtu: 1500,
            };
            nic.clear_socket();
        }
        assert!(file.exists() && !left.exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
