//! What the control process does beside planning: metrics, a socket for people, BGP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use crate::number::Number;
use crate::value::{GroupName, Listen, Network};

/// Metrics for Prometheus, over HTTP.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where to answer.
    pub listen: Spanned<Listen>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 9586));
        Metrics {
            listen: Spanned::new(0..0, Listen(here)),
        }
    }
}

/// How people and the engine reach the control process.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// The socket for the command line.
    pub socket: PathBuf,
    /// Whose members may look at everything but packets and decisions.
    pub group: GroupName,
    /// Whose members may change things and look at packets and decisions, beside root.
    pub admin_group: GroupName,
    /// The engine's socket.
    pub engine_socket: PathBuf,
}

impl Default for Control {
    fn default() -> Control {
        Control {
            socket: "/run/patronus/control.sock".into(),
            group: GroupName::new("patronus"),
            admin_group: GroupName::new("patronus-admin"),
            engine_socket: "/run/patronus/engine.sock".into(),
        }
    }
}

/// The number of an autonomous system (RFC 6793).
pub type Asn = Number<1, 4_294_967_294>;

/// Routes by BGP.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bgp {
    /// This site's autonomous system.
    pub asn: Asn,
    /// What it is called among routers; usually one of its addresses.
    pub router_id: Ipv4Addr,
    /// What it tells its neighbours of, beside what its LANs have.
    #[serde(default)]
    pub announce: Vec<Spanned<Network>>,
    /// Whom it talks to.
    #[serde(default, rename = "neighbour")]
    pub neighbours: Vec<BgpNeighbour>,
}

/// Another router.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BgpNeighbour {
    /// Its address.
    pub address: Spanned<IpAddr>,
    /// Its autonomous system.
    pub asn: Asn,
    /// The file with the password of the TCP session (RFC 2385).
    pub password_file: Option<PathBuf>,
}
