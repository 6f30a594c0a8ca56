//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use patronus_crypto::Duration;
use patronus_engine::control::User;
use patronus_engine::devices::{Wanted, report};
use patronus_engine::engine::{Config, DpdkConfig, WORKERS_MAX};
use patronus_engine::keeper::Kept;
use patronus_engine::log::{Level, Log};
use patronus_engine::site::Site;
use patronus_io::nics::BUILT_IN;
use patronus_observe::Request;

/// Where `wg` looks for userspace interfaces.
const UAPI_DIR: &str = "/var/run/wireguard";
/// Where the system's log listens.
const SYSTEM_LOG: &str = "/dev/log";
/// Peers that an interface may have.
const MAX_PEERS: usize = 1 << 16;

const HELP: &str = "\
patronus-engine NAME      create the WireGuard interface NAME and serve it in the background
patronus-engine --config FILE   the same for a whole site from its file; SIGHUP: read it again (docs/config.md)
patronus-engine --control PATH  the same as the control process says that attaches to this socket
patronus-engine --check-config FILE    say what is wrong with a site's file, if anything is
patronus-engine --stats NAME    print the counters of a running engine
patronus-engine devices [--config FILE]    show network cards, or what a site's file names, and what DPDK needs to
                          drive them (docs/dpdk.md); with --addresses only the PCI addresses in the file
patronus-engine --trace NAME [FILTER]      show where packets pass in a running engine, and why (docs/trace.md)
patronus-engine --capture NAME [FILTER]    write packets of a running engine to a pcapng file

  -f, --foreground        stay in the foreground (also: WG_PROCESS_FOREGROUND=1)
      --workers N         packet threads, 1 to 64 (default 1)
      --cores LIST        pin the workers to these cores, such as 1,2 (default: not pinned)
      --link INTERFACE    send and receive by this interface's own default route; once for each WAN link (default:
                          wherever the host's routes lead). INTERFACE,af_xdp: past the kernel's network stack
      --spin MICROSECONDS look for packets this long before going to sleep (default 0); lowers the round-trip
                          time of a quiet tunnel, costs the CPU time of as much waiting; try 3000
      --aead NAME         cryptography backend: ours-avx512, ours-avx512-noifma, ours-avx2, aws-lc, rustcrypto or
                          ours-portable (default: the first of them that the processor can run)
      --control-user NAME who may attach beside root and this user: this user and its group, or UID:GID
      --no-realtime       workers never run in real time, whatever keeps them from running in time
      --no-offload        neither segmentation nor checksum offload
      --no-wan-offload    no segmentation offload on the UDP sockets
      --packets N         with --trace and --capture: end after so many packets (a trace: 20)
      --write FILE        with --capture: the file; `-` (default): standard output
      --sides WHICH       with --capture: outer packets (on the WAN), inner ones (on the LAN), or both (default)
      --snap N            with --capture: at most so many bytes of each packet (default 9216)
      --bytes N           with --capture: end after so many bytes of packets
      --version           print the version
  -h, --help              print this

Configure the interface with wg(8) and ip(8), or all at once with wg-quick(8):
  WG_QUICK_USERSPACE_IMPLEMENTATION=patronus-engine wg-quick up FILE
LOG_LEVEL=verbose, error (default) or silent sets how much is said on standard error, and in the
background in the system's log too (there on standard error only if it is set).
";

/// What the command line asks for.
pub enum Action {
    /// Print this and end.
    Print(String),
    /// Print the counters of the engine behind this socket.
    Stats(PathBuf),
    /// Trace or capture packets of the engine behind this socket.
    Observe {
        /// The socket.
        socket: PathBuf,
        /// What is wanted.
        request: Request,
        /// Where a capture goes; `-`: standard output.
        file: PathBuf,
    },
    /// Say whether this site can be run.
    Check(PathBuf),
    /// Read this file for the engine at the other end of standard input.
    Read(PathBuf),
    /// Keep these interfaces for the engine at the other end of standard input.
    Keep(Kept),
    /// Start again in the background with these arguments.
    Background(Vec<OsString>),
    /// Run here as the control process says that attaches.
    Control {
        /// The socket.
        path: PathBuf,
        /// Who may attach.
        user: User,
        /// How, where the site does not say.
        config: Box<Config>,
    },
    /// Run here.
    Run {
        /// How.
        config: Box<Config>,
        /// The site, if it has a file.
        site: Option<Box<Site>>,
        /// Whether a process waits to hear that the interface is ready.
        announce: bool,
    },
}

/// Understands the command line; an error is one sentence.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Action, String> {
    use lexopt::prelude::*;
    let arguments: Vec<OsString> = arguments.collect();
    if arguments.first().is_some_and(|word| word == "devices") {
        return devices(&arguments[1..]).map(Action::Print);
    }
    let mut parser = lexopt::Parser::from_args(arguments.iter().cloned());
    let mut name: Option<String> = None;
    let mut config = defaults();
    let (mut foreground, mut announce, mut stats) = (false, false, false);
    let mut observe: Option<Request> = None;
    let mut write: Option<PathBuf> = None;
    let mut file: Option<PathBuf> = None;
    let mut control: Option<PathBuf> = None;
    let mut user = User::default();
    // The first option that says what stands in a file, if there is one.
    let mut in_file = None;
    while let Some(argument) = parser.next().map_err(|e| e.to_string())? {
        if let Long(
            option @ ("workers" | "spin" | "cores" | "link" | "aead" | "no-offload" | "no-wan-offload"),
        ) = &argument
        {
            in_file.get_or_insert_with(|| format!("--{option}"));
        }
        match argument {
            Long("config") => file = Some(path(&mut parser)?),
            Long("control") => control = Some(path(&mut parser)?),
            Long("control-user") => user = control_user(&mut parser)?,
            Long("check-config") => return Ok(Action::Check(path(&mut parser)?)),
            // Not in the help: the engine starts these itself.
            Long("config-reader") => return Ok(Action::Read(path(&mut parser)?)),
            Long("interface-keeper") => {
                let rest = parser.raw_args().map_err(|e| e.to_string())?;
                let kept = Kept::parse(rest).map(Action::Keep);
                return kept.ok_or_else(|| "--interface-keeper is for the engine itself".to_owned());
            }
            Short('h') | Long("help") => return Ok(Action::Print(HELP.to_owned())),
            Long("version") => return Ok(Action::Print(version())),
            Short('f') | Long("foreground") => foreground = true,
            Long("stats") => stats = true,
            Long("trace") => observe = Some(Request::trace()),
            Long("capture") => observe = Some(Request::capture()),
            Long("write") => write = Some(text(&mut parser)?.into()),
            Long(option @ ("packets" | "sides" | "snap" | "bytes")) => {
                let option = option.to_owned();
                let value = text(&mut parser)?;
                let request = observe.as_mut();
                let request =
                    request.ok_or_else(|| format!("--{option} goes behind --trace or --capture"))?;
                request
                    .set(&option, &value)
                    .map_err(|error| format!("--{error}"))?;
            }
            Long("workers") => config.workers = number(&mut parser, "--workers", 1, WORKERS_MAX)?,
            Long("spin") => {
                config.spin = Duration::from_micros(number(&mut parser, "--spin", 0, 1_000_000)? as u64)
            }
            Long("cores") => config.cores = cores(&mut parser)?,
            Long("link") => link(&mut parser, &mut config)?,
            Long("aead") => config.aead = Some(text(&mut parser)?),
            Long("no-realtime") => config.realtime = false,
            Long("no-offload") => config.offload = false,
            Long("no-wan-offload") => config.wan_offload = false,
            // Not in the help: for the background process, and for tests.
            Long("announce") => announce = true,
            Long("test-timer-divisor") => {
                config.timer_divisor = number(&mut parser, "--test-timer-divisor", 1, 1000)? as u32;
            }
            Long("uapi-dir") => config.uapi_dir = text(&mut parser)?.into(),
            Value(value) if name.is_none() => {
                name = Some(
                    value
                        .into_string()
                        .map_err(|_| "the interface's name must be text")?,
                );
            }
            Value(word) if observe.is_some() => {
                let filter = &mut observe.as_mut().expect("looked at just now").filter;
                filter.push_str(word.to_str().ok_or("a filter is text")?);
                filter.push(' ');
            }
            Value(value) => return Err(format!("one interface at a time: what is `{}`?", value.display())),
            other => return Err(format!("{}; see --help", other.unexpected())),
        }
    }
    if let Some(file) = file {
        if let Some(option) = in_file.or(name) {
            return Err(format!("with --config, what `{option}` says stands in the file"));
        }
        return with_file(&file, config, foreground, announce);
    }
    if let Some(path) = control {
        if let Some(option) = in_file.or(name) {
            return Err(format!(
                "with --control, what `{option}` says is the control process's to say"
            ));
        }
        config.persistent = true;
        let config = Box::new(config);
        return Ok(Action::Control { path, user, config });
    }
    let name = name.ok_or("which interface? `patronus-engine NAME`, for example wg0; see --help")?;
    if stats {
        return Ok(Action::Stats(config.uapi_dir.join(format!("{name}.sock"))));
    }
    if let Some(mut request) = observe {
        request.filter.truncate(request.filter.trim_end().len());
        request.parsed_filter().map_err(|error| error.to_string())?;
        let socket = config.uapi_dir.join(format!("{name}.sock"));
        let file = write.unwrap_or_else(|| "-".into());
        return Ok(Action::Observe {
            socket,
            request,
            file,
        });
    }
    if goes_to_background(foreground, announce) {
        let mut again = vec![OsString::from("--announce")];
        again.extend(arguments);
        return Ok(Action::Background(again));
    }
    config.name = name;
    Ok(run(config, None, announce))
}

/// `devices`, with these arguments behind it.
fn devices(arguments: &[OsString]) -> Result<String, String> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_args(arguments.iter().cloned());
    let (mut file, mut addresses) = (None, false);
    while let Some(argument) = parser.next().map_err(|e| e.to_string())? {
        match argument {
            Long("config") => file = Some(path(&mut parser)?),
            Long("addresses") => addresses = true,
            other => return Err(format!("{}; see --help", other.unexpected())),
        }
    }
    let wanted = file.map(|file| Wanted::load(&file)).transpose()?;
    match (wanted, addresses) {
        (Some(wanted), true) => Ok(wanted.addresses()),
        (None, true) => {
            Err("--addresses wants a file: `patronus-engine devices --config FILE --addresses`".to_owned())
        }
        (wanted, false) => Ok(report(Path::new("/"), wanted.as_ref())),
    }
}

/// The same for a site from its file. It is read here, so that what is wrong is said at once and where it was typed.
fn with_file(file: &Path, config: Config, foreground: bool, announce: bool) -> Result<Action, String> {
    let site = Site::load(file)?;
    if !announce {
        site.warn();
    }
    if goes_to_background(foreground, announce) {
        // By its whole path: the process in the background is in another directory.
        let mut again: Vec<OsString> = vec!["--announce".into(), "--config".into(), file.into()];
        let divisor = config.timer_divisor.to_string();
        again.extend(["--test-timer-divisor".into(), divisor.into()]);
        again.extend(["--uapi-dir".into(), config.uapi_dir.into_os_string()]);
        return Ok(Action::Background(again));
    }
    Ok(run(site.engine(config), Some(Box::new(site)), announce))
}

fn run(mut config: Config, site: Option<Box<Site>>, announce: bool) -> Action {
    config.log = Log::new(&config.name, level());
    if announce {
        config.log.add_system_log(Path::new(SYSTEM_LOG));
    }
    Action::Run {
        config: Box::new(config),
        site,
        announce,
    }
}

/// Who may attach, by a name of this system or by numbers.
fn control_user(parser: &mut lexopt::Parser) -> Result<User, String> {
    const PASSWD: &str = "/etc/passwd";
    let name = text(parser)?;
    let passwd = std::fs::read_to_string(PASSWD).unwrap_or_default();
    User::named(&name, &passwd).ok_or_else(|| {
        format!("--control-user takes a user of {PASSWD}, or numbers such as 998:998, not `{name}`")
    })
}

fn goes_to_background(foreground: bool, announce: bool) -> bool {
    let stays = std::env::var_os("WG_PROCESS_FOREGROUND").is_some_and(|v| v == "1");
    !foreground && !announce && !stays
}

fn path(parser: &mut lexopt::Parser) -> Result<PathBuf, String> {
    let value = parser.value().map_err(|e| e.to_string())?;
    std::path::absolute(&value).map_err(|error| format!("{}: {error}", value.display()))
}

fn defaults() -> Config {
    Config {
        name: String::new(),
        workers: 1,
        cores: Vec::new(),
        links: Vec::new(),
        af_xdp: Vec::new(),
        nic_links: Vec::new(),
        spin: Duration::ZERO,
        max_peers: MAX_PEERS,
        aead: None,
        timer_divisor: 1,
        uapi_dir: UAPI_DIR.into(),
        realtime: true,
        offload: true,
        wan_offload: true,
        ethernet: Vec::new(),
        dpdk: DpdkConfig::default(),
        router: None,
        remotes: false,
        persistent: false,
        log: Log::new("", Level::default()),
    }
}

/// How much is to be said.
pub fn level() -> Level {
    Level::from_env(std::env::var("LOG_LEVEL").ok().as_deref())
}

fn version() -> String {
    let dpdk = if BUILT_IN { ", with DPDK" } else { "" };
    format!("patronus-engine {}{dpdk}\n", env!("CARGO_PKG_VERSION"))
}

fn text(parser: &mut lexopt::Parser) -> Result<String, String> {
    let value = parser.value().map_err(|e| e.to_string())?;
    value
        .into_string()
        .map_err(|v| format!("`{}` is not text", v.display()))
}

/// A link, by AF_XDP if it says so.
fn link(parser: &mut lexopt::Parser, config: &mut Config) -> Result<(), String> {
    let value = text(parser)?;
    let name = match value.strip_suffix(",af_xdp") {
        None => interface(&value)?,
        Some(name) => {
            config.af_xdp.push(name.to_owned());
            interface(name)?
        }
    };
    config.links.push(name);
    Ok(())
}

fn interface(name: &str) -> Result<String, String> {
    let fits = (1..=15).contains(&name.len()) && !name.contains(|c: char| c == '/' || c.is_whitespace());
    match fits {
        true => Ok(name.to_owned()),
        false => Err(format!(
            "--link takes an interface's name, 1 to 15 characters such as eth0, and `,af_xdp` behind it if that is wanted, not `{name}`"
        )),
    }
}

fn number(parser: &mut lexopt::Parser, option: &str, min: usize, max: usize) -> Result<usize, String> {
    let value = text(parser)?;
    match value.parse() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!(
            "{option} takes a number from {min} to {max}, not `{value}`"
        )),
    }
}

fn cores(parser: &mut lexopt::Parser) -> Result<Vec<usize>, String> {
    let value = text(parser)?;
    let cores: Result<Vec<usize>, _> = value.split(',').map(str::parse).collect();
    match cores {
        Ok(cores) if !cores.is_empty() && cores.iter().all(|&c| c < 1024) => Ok(cores),
        _ => Err(format!(
            "--cores takes core numbers with commas between, such as 0,1, not `{value}`"
        )),
    }
}
