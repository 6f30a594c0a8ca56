//! What can stand in the file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::value::{Endpoint, InterfaceName, Millis, Network, PublicKey};

/// A whole configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This site.
    pub site: Site,
    /// How its engine runs.
    #[serde(default)]
    pub engine: Engine,
    /// Its WAN attachments. None: whatever the host's routes say.
    #[serde(default, rename = "link")]
    pub links: Vec<Link>,
    /// Whom it talks to: any WireGuard implementation.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
}

/// This site.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The file with its private key, as `wg genkey` makes it; for its owner's eyes only.
    pub private_key_file: PathBuf,
    /// UDP port to listen on; 0: any that is free.
    #[serde(default)]
    pub listen_port: u16,
    /// Mark of outgoing packets (SO_MARK, socket(7)); 0 for none.
    #[serde(default)]
    pub fwmark: u32,
}

/// How the engine runs. None of this can be changed while it does.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Name of the TUN.
    pub interface: InterfaceName,
    /// Packet threads, 1 to 64.
    pub workers: Spanned<usize>,
    /// Cores to pin them to, in turn. Empty: the scheduler decides.
    pub cores: Vec<usize>,
    /// How long a worker looks for work before it sleeps.
    pub spin: Millis,
    /// Cryptography backend. None: the default.
    pub aead: Option<String>,
    /// Segmentation and checksum offload.
    pub offload: bool,
}

impl Default for Engine {
    fn default() -> Engine {
        Engine {
            interface: InterfaceName::default(),
            workers: Spanned::new(0..0, 1),
            cores: Vec::new(),
            spin: Millis::default(),
            aead: None,
            offload: true,
        }
    }
}

/// One WAN attachment of the site.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// 1 to 15, for good: paths are named by it on both sides.
    pub id: Spanned<u8>,
    /// The network interface that it is.
    pub interface: Spanned<InterfaceName>,
}

/// A peer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// What messages call it. None: the start of its key.
    pub name: Option<String>,
    /// Its public key.
    pub public_key: Spanned<PublicKey>,
    /// The file with the pre-shared key, as `wg genpsk` makes it.
    pub preshared_key_file: Option<PathBuf>,
    /// Where it is. None: it calls us.
    pub endpoint: Option<Endpoint>,
    /// The networks behind it.
    #[serde(default)]
    pub allowed_ips: Vec<Spanned<Network>>,
    /// How often to send something, so that firewalls and NAT on the way keep their state. None: never.
    pub keepalive: Option<Spanned<Millis>>,
}

impl Config {
    /// Makes paths that are relative begin at `folder`.
    pub(crate) fn resolve_paths(&mut self, folder: &Path) {
        let keys = self
            .peers
            .iter_mut()
            .filter_map(|peer| peer.preshared_key_file.as_mut());
        for path in keys.chain([&mut self.site.private_key_file]) {
            *path = folder.join(&*path);
        }
    }
}
