//! The command line: what can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use patronus_config::value::{HostAddress, Network};
use patronus_control::message::Topic;

/// Where a site's file is unless somebody says otherwise.
pub const SITE: &str = "/etc/patronus/site.toml";
/// Where the control process listens unless somebody says otherwise.
pub const SOCKET: &str = "/run/patronus/control.sock";

/// Patronus: an SD-WAN edge that speaks WireGuard.
#[derive(Parser)]
#[command(name = "patronus", version, max_term_width = 100, after_help = EXIT)]
pub struct Options {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// Where the control process listens
    #[arg(long, global = true, value_name = "PATH", default_value = SOCKET, hide_default_value = true)]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT: &str = "\
Exit status: 0 done; 1 failed; 2 the command line is wrong; 3 the site's file is wrong; 4 nothing runs that
could be asked; 5 not allowed; 6 it takes a restart of the engine (apply --restart)";

/// What can be done.
#[derive(Subcommand)]
pub enum Command {
    /// Write a new site's file and its key
    Init(Init),
    /// Print what another site needs to know of this one
    Invite(Invite),
    /// Add a site to this one's file, from what `invite` has printed there
    Join(Join),
    /// Make a site's file from a wg-quick file, and say what could not be carried over
    Import(Import),
    /// Print the schema of a site's file, for editors (JSON Schema)
    Schema,
    /// Run a site in the foreground, engine and control process, until Ctrl-C
    Up(Up),
    /// End engine and control process, and leave nothing behind
    Down,
    /// Say what is wrong with a site's file
    Check(File),
    /// Say what applying the site's file would change
    Plan {
        /// Another file than the site's own
        file: Option<PathBuf>,
    },
    /// Put the site's file in force
    Apply(Apply),
    /// Keep what was applied with --confirm
    Confirm,
    /// Go back to what was in force before `apply --confirm`
    Rollback,
    /// The same as `apply`
    Reload,
    /// Show how it is
    Show {
        /// What
        #[arg(value_enum, default_value_t = What(Topic::Summary))]
        what: What,
        /// Which flows.
        #[command(flatten)]
        flows: Flows,
    },
    /// Say why flows go by the path that they go by
    #[command(
        override_usage = "patronus why [OPTIONS] REMOTE [CLASS]\n       patronus why [OPTIONS] SRC DST [PROTOCOL [SPORT [DPORT]]]"
    )]
    Why(Why),
    /// Watch paths: round trips, jitter, loss, rates; and flows; `q` quits
    Top {
        /// Only paths to this remote
        remote: Option<String>,
        /// Print it once, for scripts
        #[arg(long)]
        once: bool,
    },
    /// Cut a link for a while, and say what becomes of its paths and flows
    FailoverTest(Drill),
    /// Show where packets pass in the engine, and why (docs/trace.md)
    Trace(Trace),
    /// Write packets of the engine to a pcapng file
    Capture(Capture),
    /// Make a private key
    Keygen {
        /// Write it to this new file with mode 0600, and print the public key
        file: Option<PathBuf>,
    },
    /// Print the public key of a private one
    Pubkey {
        /// The private key's file; standard input without it
        file: Option<PathBuf>,
    },
    /// Make a pre-shared key
    Genpsk {
        /// Write it to this new file with mode 0600
        file: Option<PathBuf>,
    },
    /// Look for what keeps a site from working, or from working well
    Doctor(File),
}

/// Which flows are to be shown.
#[derive(Args)]
pub struct Flows {
    /// Only flows from or to this address or network
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    pub address: Option<Network>,
    /// Only flows from or to this UDP or TCP port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Only flows of this class
    #[arg(long, value_name = "NAME")]
    pub class: Option<String>,
}

/// A site's file.
#[derive(Args)]
pub struct File {
    /// The site's file
    #[arg(default_value = SITE)]
    pub file: PathBuf,
}

/// How a new site is.
#[derive(Args)]
pub struct Init {
    /// The folder for site.toml and site.key
    #[arg(long, value_name = "PATH", default_value = "/etc/patronus")]
    pub dir: PathBuf,
    /// An interface that leads to the internet; once for each. Asked for if there is a terminal
    #[arg(long = "link", value_name = "INTERFACE")]
    pub links: Vec<String>,
    /// No links: wherever the host's routes lead
    #[arg(long, conflicts_with = "links")]
    pub no_links: bool,
    /// UDP port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 51820)]
    pub listen_port: u16,
    /// This host's address at the tunnel, such as 10.1.0.1/24; once for each. Networks of the others are then routed there
    #[arg(long = "address", value_name = "ADDRESS", value_parser = address)]
    pub addresses: Vec<HostAddress>,
}

/// What another site is to know.
#[derive(Args)]
pub struct Invite {
    /// What the other site is to call this one
    #[arg(long, value_parser = name)]
    pub name: String,
    /// Where the other site can call this one; without it, this one calls
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = endpoint)]
    pub endpoint: Option<SocketAddr>,
    /// A network at this site; once for each (default: those of its LANs)
    #[arg(long = "network", value_name = "NETWORK", value_parser = network)]
    pub networks: Vec<Network>,
    /// As a plain WireGuard peer, although the site has links
    #[arg(long)]
    pub peer: bool,
    /// The site's file
    #[command(flatten)]
    pub site: File,
}

/// Whom to add.
#[derive(Args)]
pub struct Join {
    /// What `invite` has printed; standard input if it is `-`
    pub invitation: PathBuf,
    /// The site's file
    #[command(flatten)]
    pub site: File,
}

/// What to carry over.
#[derive(Args)]
pub struct Import {
    /// The wg-quick file; the interface is called as it is
    pub file: PathBuf,
    /// The folder for site.toml and the key files
    #[arg(long, value_name = "PATH", default_value = "/etc/patronus")]
    pub dir: PathBuf,
}

/// What to run.
#[derive(Args)]
pub struct Up {
    /// The site's file
    #[command(flatten)]
    pub site: File,
}

/// What to explain.
#[derive(Args)]
pub struct Why {
    /// A remote and perhaps a class; or a flow: source and destination, and as far as they matter protocol, source port
    /// and destination port (`-`: any)
    #[arg(required = true, num_args = 1..=5, value_name = "WHAT")]
    pub what: Vec<String>,
    /// The flow's DSCP, 0 to 63
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..64))]
    pub dscp: Option<u8>,
    /// How many of the last decisions to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub last: usize,
}

/// Which packets.
#[derive(Args)]
pub struct Observe {
    /// Which packets, such as `src 10.1.0.0/16 and udp port 53`; all of them without it
    pub filter: Vec<String>,
    /// End after so many packets
    #[arg(long, value_name = "N")]
    pub packets: Option<u64>,
    /// Ask the engine itself, on its query socket, without a control process; takes root
    #[arg(long, value_name = "PATH")]
    pub engine: Option<PathBuf>,
}

/// What to trace.
#[derive(Args)]
pub struct Trace {
    /// Which packets.
    #[command(flatten)]
    pub observe: Observe,
}

/// What to capture.
#[derive(Args)]
pub struct Capture {
    /// Which packets.
    #[command(flatten)]
    pub observe: Observe,
    /// Write to this file, with mode 0600 (default: standard output)
    #[arg(long, short, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// `outer` (on the WAN), `inner` (on the LAN) or `both`
    #[arg(long, value_name = "WHICH")]
    pub sides: Option<String>,
    /// At most so many bytes of each packet
    #[arg(long, value_name = "BYTES")]
    pub snap: Option<u32>,
    /// End after so many bytes of packets
    #[arg(long, value_name = "BYTES")]
    pub bytes: Option<u64>,
}

/// How to put the file in force.
#[derive(Args, Default)]
pub struct Apply {
    /// Go back unless `patronus confirm` follows within this time, such as 60s or 5m
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub confirm: Option<u32>,
    /// Restart the engine if the change takes that; sessions begin anew
    #[arg(long)]
    pub restart: bool,
}

/// What to cut.
#[derive(Args)]
pub struct Drill {
    /// The link's interface or number
    #[arg(long, value_name = "LINK")]
    pub link: String,
    /// For how long, 1s to 60s
    #[arg(long = "for", value_name = "TIME", value_parser = drill_seconds, default_value = "10s")]
    pub seconds: u32,
    /// End a drill before its time
    #[arg(long)]
    pub end: bool,
}

/// A topic as a word on the command line.
#[derive(Clone, Copy)]
pub struct What(pub Topic);

impl ValueEnum for What {
    fn value_variants<'a>() -> &'a [What] {
        const ALL: [What; Topic::ALL.len()] = {
            let mut all = [What(Topic::Summary); Topic::ALL.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = What(Topic::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.name()))
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

/// How long a drill lasts.
fn drill_seconds(text: &str) -> Result<u32, String> {
    let short = seconds(text).ok().filter(|seconds| *seconds <= 60);
    short.ok_or_else(|| "a time from 1s to 60s, in whole seconds".to_owned())
}

/// Whole seconds, from a time with its unit.
fn seconds(text: &str) -> Result<u32, String> {
    let time: patronus_config::value::Millis = text.parse().map_err(|error| format!("{error}"))?;
    match time.0 {
        millis @ 1000..=86_400_000 if millis % 1000 == 0 => Ok((millis / 1000) as u32),
        _ => Err("a time from 1s to 24h, in whole seconds".to_owned()),
    }
}

fn name(text: &str) -> Result<String, String> {
    let name: Result<patronus_config::matching::Name, _> = text.parse();
    name.map(|name| name.as_str().to_owned())
        .map_err(|error| format!("{error}"))
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an address and a port such as 198.51.100.1:51820 or [2001:db8::1]:51820; names are not looked up".to_owned()
    })
}

fn address(text: &str) -> Result<HostAddress, String> {
    text.parse().map_err(|error| format!("{error}"))
}

fn network(text: &str) -> Result<Network, String> {
    text.parse().map_err(|error| format!("{error}"))
}
