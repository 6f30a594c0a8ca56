//! Puts an engine together: TUN, frames, workers, slow path.
//!
//! The order matters: devices and sockets are made with privileges, then the process gives them up, then threads are
//! spawned, which inherit what is left.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use patronus_crypto::aead::Aead;
use patronus_crypto::{Device, Duration, Limits, PeerId, Random, aead, x25519};
use patronus_io::Port;
use patronus_io::netlink::{Addresses, LinkWatch, RouteQuery};
use patronus_io::nics::{self, NicConfig, Nics, NicsConfig};
use patronus_io::solicit::Solicitor;
use patronus_io::tun::{Tun, TunConfig, TunDevice, TunPort};
use patronus_io::udp::UdpConfig;
use patronus_mem::{Arena, ArenaConfig, FrameCache, lock_secrets_ahead, secrets_len};
use rustix::fd::OwnedFd;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::channel::ToSlowPath;
use crate::clock::{Clock, SystemClock, SystemRandom};
use crate::control::Control;
use crate::crew::Crew;
use crate::flow::HashKeys;
use crate::keeper::{Keeper, Kept, QUEUE_FRAMES};
use crate::lans::LanConfig;
use crate::log::{Level, Log};
use crate::plan::{Builder, Frame, Lan};
use crate::reader::Reader;
use crate::route::Router;
use crate::sandbox::{self, SandboxError};
use crate::site::{Own, Site};
use crate::slowpath::{self, EthernetLan, Neighbourhood, Opening, SlowPath, Workers, peer_numbers};
use crate::stats::{Directory, Placed};
use crate::uapi::UapiServer;
use crate::wg::{JUMBO_SHARE, Wg};
use crate::worker::{IdleLadder, LanPort, PORTS_MAX, Parts, Worker};

/// Workers that there may be: more have never been tried.
pub const WORKERS_MAX: usize = 64;
/// Small frames, of 2 KiB each, in memory from the start.
const FRAMES: usize = 16384;
/// Frames for packets beyond 1,856 bytes.
const JUMBO_FRAMES: usize = FRAMES / JUMBO_SHARE;
/// Socket buffers, bytes: what a worker may miss while the other threads of a small machine have their time slices, 6 ms at
/// 10 Gb/s. The kernel doubles it for its own book-keeping.
const SOCKET_BUFFER: usize = 8 << 20;
/// Packets that the TUN holds for the engine. 500, the kernel's default, overflow in one time slice of a sender.
pub const TUN_QUEUE: u32 = 4000;
/// Keys that belong to no peer: the device's own, and those of a computation under way.
const SECRETS_BESIDE: usize = 64;
/// The MTU of a tunnel over a path of 1,500: 80 bytes for the largest outer headers.
pub const DEFAULT_MTU: u32 = 1420;

/// How to run an engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the interface.
    pub name: String,
    /// Workers, one or more.
    pub workers: usize,
    /// Cores to pin the workers to, in turn; empty: the scheduler decides.
    pub cores: Vec<usize>,
    /// How long a worker looks for work before it blocks.
    pub spin: Duration,
    /// Interfaces of the WAN links, at most [`PORTS_MAX`]; none: wherever the host's routes lead.
    pub links: Vec<String>,
    /// Those of `links` whose datagrams pass by the kernel's network stack (AF_XDP), if that can be had.
    pub af_xdp: Vec<String>,
    /// The NICs that those of `links` are that DPDK drives.
    pub nic_links: Vec<NicConfig>,
    /// Peers that there may be.
    pub max_peers: usize,
    /// The AEAD backend's name; none: the default.
    pub aead: Option<String>,
    /// The protocol's times are divided by this: tests only, and it can only shorten.
    pub timer_divisor: u32,
    /// Where the UAPI socket is made.
    pub uapi_dir: PathBuf,
    /// Whether workers may run in real time while they are kept from running in time otherwise.
    pub realtime: bool,
    /// Segmentation and checksum offload in the ports.
    pub offload: bool,
    /// Segmentation offload in the UDP sockets, where `offload` is.
    pub wan_offload: bool,
    /// The Ethernet LANs.
    pub ethernet: Vec<LanConfig>,
    /// How DPDK runs, if one of them wants it.
    pub dpdk: DpdkConfig,
    /// Whether workers have a router, and of what size.
    pub router: Option<RouterConfig>,
    /// Whether some peers are sites of our own.
    pub remotes: bool,
    /// Whether the interface stays when the engine is gone, so that what is routed there goes nowhere meanwhile, and is taken again by the next one.
    pub persistent: bool,
    /// Where messages go.
    pub log: Log,
}

/// How DPDK runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DpdkConfig {
    /// Mebibytes for what drivers need besides packets.
    pub memory_mib: u32,
    /// That memory is on huge pages.
    pub huge_pages: bool,
    /// Their size, mebibytes. None: whichever there are.
    pub huge_page_mib: Option<u32>,
}

impl Default for DpdkConfig {
    fn default() -> DpdkConfig {
        DpdkConfig {
            memory_mib: patronus_abi::device::DPDK_MEMORY,
            huge_pages: true,
            huge_page_mib: None,
        }
    }
}

/// The size of routers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouterConfig {
    /// Flows that each worker remembers.
    pub flows: usize,
    /// Prefixes that there may be.
    pub routes: usize,
}

/// Why an engine does not start, in a sentence that says what to do.
#[derive(Debug)]
pub enum StartError {
    /// The TUN device could not be made.
    Tun(String, io::Error),
    /// The UAPI socket could not be made.
    Uapi(PathBuf, io::Error),
    /// An option has no meaning.
    Option(String),
    /// Memory, threads or descriptors.
    System(&'static str, io::Error),
    /// Privileges could not be given up.
    Sandbox(SandboxError),
    /// An interface cannot be a LAN.
    Lan(String),
    /// The site's file asks for what cannot be had.
    Site(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Tun(name, e) => match e.kind() {
                io::ErrorKind::NotFound => {
                    f.write_str("/dev/net/tun is not there: load the module with `modprobe tun` or give the container the device")
                }
                io::ErrorKind::PermissionDenied => {
                    write!(f, "no permission to create interface {name}: run as root, or with CAP_NET_ADMIN and the right to open /dev/net/tun")
                }
                io::ErrorKind::ResourceBusy => write!(f, "interface {name} exists already: delete it or choose another name"),
                io::ErrorKind::InvalidInput => {
                    write!(f, "`{name}` is not an interface name: use 1 to 15 characters without spaces or slashes")
                }
                _ => write!(f, "cannot create interface {name}: {e}"),
            },
            StartError::Uapi(path, e) if e.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "{} is in use: another process serves this interface; end it first", path.display())
            }
            StartError::Uapi(path, e) => write!(f, "cannot serve {}: {e}", path.display()),
            StartError::Option(what) => f.write_str(what),
            StartError::System(what, e) => write!(f, "cannot {what}: {e}"),
            StartError::Sandbox(e) => e.fmt(f),
            StartError::Lan(e) => f.write_str(e),
            StartError::Site(e) => f.write_str(e),
        }
    }
}

impl std::error::Error for StartError {}

/// Where an engine's site comes from, now and later.
pub enum Source {
    /// There is none: `wg` configures the interface.
    None,
    /// A file, which is read again on SIGHUP.
    File(Box<Site>),
    /// The control process.
    Control(Box<Controlled>),
}

/// An engine under control.
pub struct Controlled {
    /// Where control attaches.
    pub control: Control,
    /// Where counters are shown.
    pub directory: Option<Directory>,
    /// The first site that control has published,
    pub site: Box<Site>,
    /// and what tells it from others.
    pub content: [u8; 32],
}

/// Keeps the memory of this process to itself, and sets its limits. Called before a key can arrive.
pub fn prepare(config: &Config) -> Result<(), StartError> {
    sandbox::hide_memory().map_err(StartError::Sandbox)?;
    sandbox::allow_locked_memory();
    sandbox::limit_priority(config.realtime);
    Ok(())
}

/// Makes the interface and everything behind it, and configures it as the site of `source` says if there is one. The slow path comes back ready to run on
/// the calling thread.
pub fn start(config: &Config, mut source: Source) -> Result<SlowPath, StartError> {
    prepare(config)?;
    let directory = match &mut source {
        Source::Control(controlled) => controlled.directory.take(),
        Source::None | Source::File(_) => None,
    };
    let started = put_together(config, &source, directory);
    match (source, started) {
        (Source::File(site), Ok(mut slow_path)) => {
            slow_path.begin_with(site).map_err(StartError::Site)?;
            Ok(slow_path)
        }
        (Source::Control(controlled), Ok(mut slow_path)) => {
            slow_path.begin_under(*controlled).map_err(StartError::Site)?;
            Ok(slow_path)
        }
        (Source::Control(mut controlled), Err(error)) => {
            let generation = controlled.site.generation();
            controlled.control.refused(generation, error.to_string());
            Err(error)
        }
        (_, started) => started,
    }
}

/// Makes everything, and gives up what it took to make it.
fn put_together(
    config: &Config,
    source: &Source,
    directory: Option<Directory>,
) -> Result<SlowPath, StartError> {
    let aead = match &config.aead {
        None => aead::default(),
        Some(name) => aead::by_name(name).map_err(|e| StartError::Option(e.to_string()))?,
    };
    check_cores(&config.cores)?;
    check_links(&config.links)?;
    warn_of_strict_filters(&config.log, &config.links);
    warn_of_priority(config);
    let reader = match source {
        Source::File(site) => Some(Reader::start(site.path())),
        Source::None | Source::Control(_) => None,
    };
    let reader = reader
        .transpose()
        .map_err(system("start the process that reads the configuration"))?;
    let kept = kept(config);
    let keeper = (!kept.lans.is_empty() || !kept.links.is_empty()).then(|| Keeper::start(&kept));
    let keeper = keeper
        .transpose()
        .map_err(system("start the process that takes interfaces"))?;
    let nics = wanted_nics(config);
    let locks_later = kept.queues() > 0 || !nics.nics.is_empty();
    let rights = sandbox::Rights {
        lock: locks_later && sandbox::locked_memory_limit().is_some(),
        nics: !nics.nics.is_empty(),
        nice: wants_realtime(config) && !sandbox::limit_allows_realtime(),
    };
    let mut means = acquire(config, &kept, keeper, &nics)?;
    if let Source::Control(controlled) = source {
        let user = controlled.control.user();
        let admitted = if user.is_somebody() {
            means.uapi.admit(user)
        } else {
            Ok(())
        };
        admitted.map_err(system("let the control process ask questions"))?;
    }
    if rights.nics {
        start_nics(&nics, &mut means.opening)?;
    }
    sandbox::drop_privileges(rights).map_err(StartError::Sandbox)?;
    sandbox::filter_system_calls(rights.nics).map_err(StartError::Sandbox)?;
    means
        .opening
        .run_nics(&config.log)
        .map_err(system("start a thread"))?;
    launch(config, aead, means, reader, directory)
}

/// Whether a site's routes and policies can be had.
pub fn check(site: &Site) -> Result<(), StartError> {
    let defaults = Config {
        name: String::new(),
        workers: 1,
        cores: Vec::new(),
        spin: Duration::ZERO,
        links: Vec::new(),
        af_xdp: Vec::new(),
        nic_links: Vec::new(),
        max_peers: 0,
        aead: None,
        timer_divisor: 1,
        uapi_dir: PathBuf::new(),
        realtime: true,
        offload: true,
        wan_offload: true,
        ethernet: Vec::new(),
        dpdk: DpdkConfig::default(),
        router: None,
        remotes: false,
        persistent: false,
        log: Log::new("", Level::default()),
    };
    let config = site.engine(defaults);
    let Some(router) = config.router else {
        return Ok(());
    };
    let ethernet = Lan {
        mac: Some([2, 0, 0, 0, 0, 0]),
        mtu: DEFAULT_MTU as u16,
    };
    let lans = std::iter::once(HOST).chain(config.ethernet.iter().map(|_| ethernet));
    let frame = Frame {
        lans: lans.collect(),
        routes: router.routes,
        workers: config.workers,
        keys: HashKeys::new([0; 7]),
    };
    let (builder, _) =
        Builder::new(frame, DEFAULT_MTU as u16).map_err(system("reserve memory for routes"))?;
    let wanted = site
        .rules()
        .wanted(site.allowed_ips(|_| PeerId(0)), &Own::default(), |_| {
            Some(PeerId(0))
        });
    builder
        .check(&wanted)
        .map_err(|error| StartError::Site(error.to_string()))
}

/// The host behind the TUN takes packets of any length.
const HOST: Lan = Lan {
    mac: None,
    mtu: u16::MAX,
};

/// What takes privileges or files to get.
struct Means {
    signals: OwnedFd,
    tun: TunDevice,
    tun_ports: Vec<TunPort>,
    mtu: usize,
    watch: LinkWatch,
    routes: RouteQuery,
    /// Where packets are routed, or there are remotes.
    addresses: Option<Addresses>,
    uapi: UapiServer,
    arena: &'static Arena,
    opening: Opening,
    /// By link, where there are several.
    solicitors: Vec<Option<Solicitor>>,
    null: OwnedFd,
}

/// What the keeper is to take.
fn kept(config: &Config) -> Kept {
    let links = config.links.iter().filter(|link| config.af_xdp.contains(link));
    Kept {
        workers: config.workers,
        lans: config
            .ethernet
            .iter()
            .filter_map(|lan| match lan {
                LanConfig::Interface(lan) => Some(lan.clone()),
                LanConfig::Nic(_) => None,
            })
            .collect(),
        links: links.cloned().collect(),
    }
}

/// The NICs that DPDK is to drive.
fn wanted_nics(config: &Config) -> NicsConfig {
    let lans = config.ethernet.iter().filter_map(|lan| match lan {
        LanConfig::Nic(nic) => Some(nic),
        LanConfig::Interface(_) => None,
    });
    NicsConfig {
        memory_mib: config.dpdk.memory_mib,
        huge_pages: config.dpdk.huge_pages,
        huge_page_mib: config.dpdk.huge_page_mib,
        workers: config.workers as u16,
        nics: config.nic_links.iter().chain(lans).cloned().collect(),
    }
}

/// Keeps keys and packets from being swapped out, keys first: those that come later have their room before packets take what is left of the limit. What packets are
/// in is said.
fn lock_memory(config: &Config, arena: &Arena) {
    let secrets = secrets(config.max_peers);
    let locked = lock_secrets_ahead(secrets) && arena.lock();
    let log = &config.log;
    let none_spare = "the machine has no reserved huge pages to spare (vm.nr_hugepages)";
    match (arena.is_huge(), locked) {
        (true, true) => log.verbose(format_args!("packets are in reserved huge pages")),
        (false, true) => log.verbose(format_args!("packets are in locked memory: {none_spare}")),
        (huge, false) => {
            let which = if huge { "jumbo packets" } else { "packets" };
            let why = if huge { "" } else { none_spare };
            let comma = if huge { "" } else { ", and " };
            log.error(format_args!(
                "{which} are in memory that may be swapped out: {why}{comma}{}",
                Unlockable {
                    arena: arena.lockable_len(),
                    keys: secrets_len(secrets),
                    peers: config.max_peers,
                }
            ));
        }
    }
}

/// Why memory is not locked: so many bytes are wanted.
struct Unlockable {
    arena: usize,
    keys: usize,
    peers: usize,
}

impl fmt::Display for Unlockable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let (arena, keys, peers) = (mib(self.arena), mib(self.keys), self.peers);
        match sandbox::locked_memory_limit() {
            Some(limit) => write!(
                f,
                "{arena} MiB cannot be locked beside {keys} MiB for the keys of {peers} peers: the limit is {} MiB; raise it with \
                 `ulimit -l` or LimitMEMLOCK=, or give the process CAP_IPC_LOCK",
                limit >> 20
            ),
            None => write!(f, "the system refuses to lock {arena} MiB: it is short of memory"),
        }
    }
}

/// Keys that so many peers, and lanes, may have at a time; three of each peer's are what a file says, once more when it is read again, and in
/// the request that comes of that.
const fn secrets(max_peers: usize) -> usize {
    peer_numbers(max_peers) * patronus_crypto::SECRETS_PER_PEER + 3 * max_peers + SECRETS_BESIDE
}

fn acquire(
    config: &Config,
    kept: &Kept,
    keeper: Option<Keeper>,
    nics: &NicsConfig,
) -> Result<Means, StartError> {
    let signals = patronus_io::signal::termination().map_err(system("catch signals"))?;
    let (tun, tun_ports) = make_tun(config)?;
    let uapi = UapiServer::bind(&config.uapi_dir, tun.name())
        .map_err(|e| StartError::Uapi(config.uapi_dir.join(format!("{}.sock", config.name)), e))?;
    let frames = ArenaConfig {
        frames: FRAMES + QUEUE_FRAMES * kept.queues() + nics::QUEUE_FRAMES * config.workers * nics.nics.len(),
        jumbo_frames: JUMBO_FRAMES,
    };
    let arena = nics::arena(nics, &frames);
    let arena = arena.map_err(system("reserve memory for packets"))?;
    lock_memory(config, arena);
    let routes = RouteQuery::new().map_err(system("ask for routes"))?;
    let has_several_links = config.links.len() > 1;
    let wanted = config.router.is_some()
        || config.remotes
        || has_several_links
        || !config.af_xdp.is_empty()
        || !nics.nics.is_empty();
    let addresses = wanted.then(Addresses::new).transpose();
    let addresses = addresses.map_err(system("ask for addresses"))?;
    let mut opening = Opening {
        keeper,
        arena,
        lans: EthernetLan::all(&config.ethernet),
        nics: None,
        uplinks: slowpath::uplinks(&config.links, &config.af_xdp),
    };
    opening.open_all(&config.log).map_err(StartError::Lan)?;
    let solicitors = config.links.iter().filter(|_| has_several_links);
    let solicitors = solicitors.map(|link| solicitor(link, &config.log)).collect();
    Ok(Means {
        signals,
        opening,
        solicitors,
        mtu: tun.mtu().map_err(system("read the MTU"))? as usize,
        watch: LinkWatch::new(tun.ifindex()).map_err(system("watch interfaces"))?,
        routes,
        addresses,
        tun,
        tun_ports,
        uapi,
        arena,
        null: open_null().map_err(system("open /dev/null"))?,
    })
}

/// What asks for a link's gateway. Without the right to, the kernel's word is all there is, which comes later.
fn solicitor(link: &str, log: &Log) -> Option<Solicitor> {
    let said = |error| {
        log.verbose(format_args!(
            "link {link}: its gateway is not asked whether it is there (CAP_NET_RAW): {error}"
        ));
    };
    Solicitor::new().map_err(said).ok()
}

/// Starts DPDK and opens its devices. The threads that it makes keep the rights of this one, so that has given up before what none of them needs.
fn start_nics(wanted: &NicsConfig, opening: &mut Opening) -> Result<(), StartError> {
    let cards = wanted.nics.iter().any(NicConfig::is_card);
    sandbox::drop_privileges_for_nics(cards).map_err(StartError::Sandbox)?;
    let nics = Nics::start(wanted, opening.arena).map_err(|error| StartError::Lan(error.to_string()))?;
    opening.use_nics(nics);
    Ok(())
}

/// Starts the workers and puts the slow path together.
fn launch(
    config: &Config,
    aead: &'static dyn Aead,
    means: Means,
    reader: Option<Reader>,
    mut directory: Option<Directory>,
) -> Result<SlowPath, StartError> {
    let (builder, mut routers) = match config.router {
        None => (None, Vec::new()),
        Some(router) => make_routers(config, router, &means).map_err(system("reserve memory for routes"))?,
    };
    routers.reverse();
    let inbox = ToSlowPath::new(config.workers).map_err(system("make a wake-up descriptor"))?;
    let inbox = Arc::new(inbox);
    let crews = Crew::assemble(config.workers).map_err(system("make a wake-up descriptor"))?;
    let inboxes = crews[0].inboxes().to_vec();
    let links = means.opening.uplinks.len();
    let (mut threads, mut stats, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for (crew, tun) in crews.into_iter().zip(means.tun_ports) {
        let me = crew.me();
        let counters = directory.as_mut().map(|directory| directory.worker(me));
        stats.push(counters.unwrap_or_default());
        ports.push((format!("tun{me}"), Arc::clone(tun.counters())));
        let staged_limit = FRAMES / 4 / config.workers;
        let mut lans = vec![Some(LanPort {
            port: Box::new(tun),
            ethernet: false,
        })];
        // The others come with the first commands.
        lans.extend(means.opening.lans.iter().map(|_| None));
        let worker = Worker::new(Parts {
            wg: Wg::new(aead, peer_numbers(config.max_peers), means.mtu, staged_limit),
            lans,
            wans: (0..links).map(|_| None).collect(),
            router: routers.pop(),
            frames: FrameCache::new(means.arena),
            crew,
            stats: Placed::clone(&stats[me]),
            slow: Arc::clone(&inbox),
            clock: Box::new(SystemClock),
            idle: IdleLadder { spin: config.spin },
        });
        let core = config.cores.iter().cycle().nth(me).copied();
        threads.push(spawn(worker, me, core).map_err(system("start a worker"))?);
    }
    let neighbourhood = (!means.opening.lans.is_empty()).then(|| {
        let interfaces = means.opening.lans.iter().map(EthernetLan::ifindex);
        Neighbourhood::new(std::iter::once(None).chain(interfaces).collect())
    });
    let neighbourhood = neighbourhood.transpose().map_err(system("ask for neighbours"))?;
    let mut random = SystemRandom;
    let limits = Limits {
        max_peers: peer_numbers(config.max_peers) as u32,
        timer_divisor: config.timer_divisor,
        ..Limits::default()
    };
    Ok(SlowPath::new(slowpath::Parts {
        device: Device::new(limits, x25519::default(), SystemClock.now(), &mut random),
        tun: means.tun,
        watch: means.watch,
        routes: means.routes,
        uapi: means.uapi,
        signals: means.signals,
        inbox,
        workers: Workers::new(&inboxes, threads),
        stats,
        max_peers: config.max_peers,
        ports,
        clock: Box::new(SystemClock),
        random: Box::new(random),
        log: config.log.clone(),
        udp: UdpConfig {
            ifindex: 0,
            port: 0,
            workers: config.workers,
            fwmark: 0,
            buffer_bytes: SOCKET_BUFFER,
            offload: config.offload && config.wan_offload,
        },
        null: means.null,
        builder,
        addresses: means.addresses,
        neighbourhood,
        solicitors: means.solicitors,
        opening: means.opening,
        reader,
        directory,
    }))
}

/// A router for each worker, and who keeps what they route by.
fn make_routers(
    config: &Config,
    router: RouterConfig,
    means: &Means,
) -> io::Result<(Option<Builder>, Vec<Router>)> {
    let mut random = [0; 56];
    SystemRandom.fill(&mut random);
    let mut words = [0; 7];
    for (word, bytes) in words.iter_mut().zip(random.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("chunks of eight"));
    }
    let keys = HashKeys::new(words);
    let lans = std::iter::once(HOST).chain(means.opening.lans.iter().map(EthernetLan::lan));
    let frame = Frame {
        lans: lans.collect(),
        routes: router.routes,
        workers: config.workers,
        keys: keys.clone(),
    };
    let (builder, rules) = Builder::new(frame, means.mtu.min(usize::from(u16::MAX)) as u16)?;
    let routers = rules
        .into_iter()
        .map(|rules| Router::new(router.flows, keys.clone(), rules));
    Ok((Some(builder), routers.collect::<io::Result<_>>()?))
}

fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System(what, error)
}

/// Refuses cores that are not there or that this process may not use.
fn check_cores(cores: &[usize]) -> Result<(), StartError> {
    let usable =
        sched_getaffinity(None).map_err(|e| StartError::System("read the usable cores", e.into()))?;
    match cores.iter().find(|core| !usable.is_set(**core)) {
        None => Ok(()),
        Some(core) => {
            let usable: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| usable.is_set(*core)).collect();
            Err(StartError::Option(format!(
                "there is no core {core} for this process: it may use {usable:?}"
            )))
        }
    }
}

/// Refuses more links than there may be, and one twice.
fn check_links(links: &[String]) -> Result<(), StartError> {
    if links.len() > PORTS_MAX {
        let said = format!("{} links: at most {PORTS_MAX} are possible", links.len());
        return Err(StartError::Option(said));
    }
    for (at, link) in links.iter().enumerate() {
        if links[..at].contains(link) {
            return Err(StartError::Option(format!("link {link} is given twice")));
        }
    }
    Ok(())
}

/// Whether there are paths to probe, and workers may run in real time for it.
fn wants_realtime(config: &Config) -> bool {
    config.realtime && config.remotes
}

/// Says that a busy machine may keep workers from probing in time.
fn warn_of_priority(config: &Config) {
    let may = sandbox::limit_allows_realtime() || sandbox::may_exceed_priority();
    if wants_realtime(config) && !may {
        config.log.error(format_args!(
            "workers may not run in real time: on a busy machine paths may seem silent, and flows move, for no reason; allow it with LimitRTPRIO=1, `ulimit -r 1` or \
             CAP_SYS_NICE, or do without it with --no-realtime"
        ));
    }
}

/// Says which links the host keeps from hearing what its routes would not send there (RFC 3704, section 2.2): all but one of them, mostly.
fn warn_of_strict_filters(log: &Log, links: &[String]) {
    const STRICT: &str = "1";
    let filter = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
    // The higher of the two numbers counts, and 2 is the loose filter.
    let of = |name: &str| filter(name).map_or(String::new(), |text| text.trim().to_owned());
    let all = of("all");
    for link in links {
        if all.as_str().max(&of(link)) == STRICT {
            log.error(format_args!(
                "link {link} has a strict reverse path filter, which drops what arrives by a link that is not the best route: sysctl -w net.ipv4.conf.{link}.rp_filter=2"
            ));
        }
    }
}

fn make_tun(config: &Config) -> Result<(TunDevice, Vec<TunPort>), StartError> {
    Tun::create(&TunConfig {
        name: &config.name,
        queues: config.workers,
        mtu: Some(DEFAULT_MTU),
        txqueuelen: TUN_QUEUE,
        offload: config.offload,
        persistent: config.persistent,
    })
    .map_err(|e| StartError::Tun(config.name.clone(), e))
}

fn open_null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    Ok(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

fn spawn(worker: Worker, number: usize, core: Option<usize>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("worker{number}"))
        .spawn(move || {
            if let Some(core) = core {
                let mut cpus = CpuSet::new();
                cpus.set(core);
                // A core that was taken away since leaves the thread where it is.
                let _ = sched_setaffinity(None, &cpus);
            }
            worker.run();
        })
}
