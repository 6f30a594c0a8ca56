//! What no single value shows: numbers out of range, things that stand twice.

use std::collections::HashMap;
use std::hash::Hash;

use toml::Spanned;

use crate::error::Error;
use crate::schema::Config;

/// Packet threads at most.
const WORKERS_MAX: usize = 64;
/// Highest link id: it has four bits on the wire, and 0 is no link.
const LINK_MAX: u8 = 15;
/// Seconds between keepalives at most: 16 bits, as everywhere with WireGuard.
const KEEPALIVE_MAX: u64 = u16::MAX as u64;

pub(crate) fn check(text: &str, config: &Config) -> Result<(), Error> {
    let workers = &config.engine.workers;
    if !(1..=WORKERS_MAX).contains(workers.get_ref()) {
        let said = format!("{} workers: 1 to {WORKERS_MAX} are possible", workers.get_ref());
        return Err(Error::at(text, workers.span(), said));
    }
    for link in &config.links {
        if !(1..=LINK_MAX).contains(link.id.get_ref()) {
            let said = format!("a link's id is a number from 1 to {LINK_MAX}");
            return Err(Error::at(text, link.id.span(), said)
                .with_hint("it stays the link's name for good, so do not count anew"));
        }
    }
    let ids = config.links.iter().map(|link| &link.id);
    once(text, ids, "another link has this id")?;
    let interfaces = config.links.iter().map(|link| &link.interface);
    once(text, interfaces, "another link has this interface")?;
    once(
        text,
        config.peers.iter().map(|peer| &peer.public_key),
        "another peer has this public key",
    )?;
    let networks = config.peers.iter().flat_map(|peer| &peer.allowed_ips);
    once(text, networks, "this network stands here twice")?;
    for keepalive in config.peers.iter().filter_map(|peer| peer.keepalive.as_ref()) {
        let millis = keepalive.get_ref().0;
        if millis % 1000 != 0 || !(1..=KEEPALIVE_MAX).contains(&(millis / 1000)) {
            let said = format!("keepalives are sent every 1 to {KEEPALIVE_MAX} whole seconds");
            return Err(Error::at(text, keepalive.span(), said).with_hint("25s suits most NATs"));
        }
    }
    Ok(())
}

/// Refuses the second of two equal values, and says where the first one is.
fn once<'a, T: Eq + Hash + 'a>(
    text: &str,
    values: impl Iterator<Item = &'a Spanned<T>>,
    said: &str,
) -> Result<(), Error> {
    let mut seen = HashMap::new();
    for value in values {
        if let Some(first) = seen.insert(value.get_ref(), value.span().start) {
            let line = text[..first].matches('\n').count() + 1;
            return Err(Error::at(text, value.span(), said).with_hint(format!("the first is in line {line}")));
        }
    }
    Ok(())
}
