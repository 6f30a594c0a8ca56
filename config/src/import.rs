//! From a wg-quick file (wg-quick(8), wg(8)) to a site's file.
//!
//! Called by the command line's `import`. What our file has no word for is not lost silently: a note says what it was and what to do instead.
//! Secrets go into key files of their own; neither the file, nor a note, nor an error repeats one.

mod read;
mod write;

use std::fmt;

use zeroize::Zeroizing;

use crate::error::Error;
use crate::value::{Endpoint, InterfaceName, Network, PublicKey};

/// What has become of a wg-quick file.
#[derive(Debug)]
pub struct Imported {
    /// The site's file.
    pub toml: String,
    /// The files with keys that it names, to be written beside it with mode 0600.
    pub key_files: Vec<KeyFile>,
    /// What could not be carried over, and what to do instead.
    pub notes: Vec<String>,
}

/// A file with a key.
pub struct KeyFile {
    /// What it is called.
    pub name: String,
    /// What it holds.
    pub text: Zeroizing<String>,
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFile")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Keys whose values are not repeated.
const SECRET_KEYS: [&str; 2] = ["PrivateKey", "PresharedKey"];

/// What is in the section [Interface].
#[derive(Default)]
struct Interface<'a> {
    private_key: Option<&'a str>,
    listen_port: Option<u16>,
    fwmark: Option<u32>,
    addresses: Vec<String>,
    dns: Vec<String>,
    mtu: Option<u16>,
    table: Option<&'a str>,
    /// What is run when, with the interface's name.
    commands: Vec<(&'static str, String)>,
    saves: bool,
}

/// What is in a section [Peer].
#[derive(Default)]
struct Peer<'a> {
    comments: Vec<&'a str>,
    public_key: Option<PublicKey>,
    psk: Option<&'a str>,
    allowed_ips: Vec<Network>,
    endpoint: Option<Endpoint>,
    /// An endpoint that has a name instead of an address.
    host: Option<&'a str>,
    keepalive: Option<u16>,
    /// Where its section begins.
    at: usize,
}

/// What a file says.
struct Given<'a> {
    interface: Interface<'a>,
    /// By their keys, each once.
    peers: Vec<(PublicKey, Peer<'a>)>,
    /// What has been said of it so far.
    notes: Vec<String>,
}

/// Makes a site's file from the text of a wg-quick file. `name` is what the interface is to be called, which is what such a file is called without
/// `.conf`.
pub fn import_wg_quick(text: &str, name: &str) -> Result<Imported, Error> {
    let interface: InterfaceName = name.parse().map_err(|expected: crate::value::Expected| {
        Error::nowhere(expected.instead_of(name, None)).with_hint("say how the interface is to be called")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let given = read::read(text, interface.as_str()).map_err(Error::without_keys)?;
    let imported = given.write(interface.as_str());
    crate::parse(&imported.toml).map(|_| imported)
}
