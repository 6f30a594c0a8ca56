//! What is said of a file that is not wrong.

use std::fmt;
use std::path::Path;

use crate::error::Error;
use crate::schema::Config;

/// Something that should be looked at: where in the file, what, and what to do.
#[derive(Clone, Debug)]
pub struct Warning(Error);

/// Those of a file. They belong to the text, not to what it means: two files that mean the same are equal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warnings(pub Vec<Warning>);

impl PartialEq for Warnings {
    fn eq(&self, _: &Warnings) -> bool {
        true
    }
}

impl Warning {
    /// Line and column, from 1 on.
    pub fn place(&self) -> Option<(usize, usize)> {
        self.0.place()
    }

    /// What should be looked at.
    pub fn message(&self) -> &str {
        self.0.message()
    }

    /// What to do.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint()
    }

    pub(crate) fn in_file(self, path: &Path) -> Warning {
        Warning(self.0.in_file(path))
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All that there are.
pub(crate) fn of(text: &str, config: &Config) -> Warnings {
    let mut warnings = Vec::new();
    if let Some(metrics) = &config.metrics
        && !metrics.listen.get_ref().0.ip().is_loopback()
    {
        let said =
            "everybody who reaches this address can read the metrics, public keys and endpoints among them";
        let hint = "let a firewall decide who does, or listen on 127.0.0.1";
        warnings.push(Warning(
            Error::at(text, metrics.listen.span(), said).with_hint(hint),
        ));
    }
    if let Some(warning) = of_default_routes(text, config) {
        warnings.push(warning);
    }
    Warnings(warnings)
}

/// With a default route into the TUN the tunnel's own datagrams would go there too.
fn of_default_routes(text: &str, config: &Config) -> Option<Warning> {
    if !config.site.routes.get_ref() {
        return None;
    }
    let mut networks = config.peers.iter().flat_map(|peer| &peer.allowed_ips);
    let everything = networks.find(|network| network.get_ref().len == 0)?;
    let said = "`routes` leads no default route into the TUN: the tunnel's own datagrams would take it too";
    let hint = "add it with a rule of its own: `ip route add default dev NAME table 51820`, `ip rule add not fwmark MARK table 51820`";
    Some(Warning(Error::at(text, everything.span(), said).with_hint(hint)))
}
