//! What to do about something that is wrong, where the place itself does not say it: an example of the key.

use std::net::IpAddr;

use crate::keys::{self, Kind, TABLES};
use crate::value::Network;

/// What helps if nothing else does.
const ANYWHERE: &str = "docs/config.md explains every table and key";

/// A hint for what is wrong in this line of a file, from 1 on. `missing` is the key that is not there.
pub(crate) fn example(text: &str, line: usize, missing: Option<&str>) -> String {
    let mut above = text.lines().take(line).collect::<Vec<_>>().into_iter().rev();
    let here = above.clone().next().unwrap_or_default();
    let header = above.find(|line| line.trim_start().starts_with('['));
    let table = header.map_or("", |line| {
        let inner = line.trim().trim_start_matches('[');
        inner.split(']').next().unwrap_or_default().trim()
    });
    let name = missing.or_else(|| here.split_once('=').map(|(name, _)| name.trim()));
    let Some(name) = name else {
        return ANYWHERE.to_owned();
    };
    match keys::find(table, name).or_else(|| within(table, name)) {
        Some(key) => format!("for example: {} = {}", key.name, key.example),
        None => ANYWHERE.to_owned(),
    }
}

/// The key in one of the tables that stand in a key of this one.
fn within(table: &str, name: &str) -> Option<&'static keys::Key> {
    let table = TABLES.iter().find(|one| one.name == table)?;
    let mut inner = table.keys.iter().filter_map(|key| match key.kind {
        Kind::Tables(keys) => Some(keys),
        _ => None,
    });
    inner.find_map(|keys| keys.iter().find(|key| key.name == name))
}

/// What may have been meant by a text that is no duration.
pub(crate) fn duration(text: &str) -> Option<String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = match text[number.len()..].trim() {
        "" | "sec" | "secs" | "second" | "seconds" | "S" => "s",
        "msec" | "millis" | "milliseconds" | "MS" => "ms",
        "min" | "mins" | "minute" | "minutes" | "M" => "m",
        "hour" | "hours" | "H" => "h",
        _ => return None,
    };
    whole(number).then(|| format!("did you mean \"{number}{unit}\"?"))
}

/// What may have been meant by a text that is no rate.
pub(crate) fn rate(text: &str) -> Option<String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || "/ ".contains(c));
    let unit = match text[number.len()..].trim_start().as_bytes() {
        [b'k' | b'K', ..] => "kbps",
        [b'm' | b'M', ..] | [] => "Mbps",
        [b'g' | b'G', ..] => "Gbps",
        _ => return None,
    };
    (whole(number) && number.bytes().any(|b| b != b'0')).then(|| format!("did you mean \"{number}{unit}\"?"))
}

/// What may have been meant by a text that is no amount of data.
pub(crate) fn data_cap(text: &str) -> Option<String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = match text[number.len()..].trim_start().as_bytes() {
        [b'm' | b'M', ..] => "MB",
        [b'g' | b'G', ..] | [] => "GB",
        [b't' | b'T', ..] => "TB",
        _ => return None,
    };
    (whole(number) && number.bytes().any(|b| b != b'0')).then(|| format!("did you mean \"{number}{unit}\"?"))
}

/// What may have been meant by a text that is no size of memory.
pub(crate) fn memory(text: &str) -> Option<String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = match text[number.len()..].trim_start().as_bytes() {
        [b'm' | b'M', ..] | [] => "MiB",
        [b'g' | b'G', ..] => "GiB",
        _ => return None,
    };
    whole(number).then(|| format!("did you mean \"{number}{unit}\"?"))
}

/// What may have been meant by a text that is no part of a hundred.
pub(crate) fn loss(text: &str) -> Option<String> {
    let meant = format!("{text}%");
    meant
        .parse::<crate::value::Loss>()
        .is_ok()
        .then(|| format!("did you mean \"{meant}\"?"))
}

/// What may have been meant by a text that is no network.
pub(crate) fn network(text: &str) -> Option<String> {
    let (addr, len) = text.split_once('/')?;
    let addr: IpAddr = addr.trim().parse().ok()?;
    let len = match len.trim().parse::<std::net::Ipv4Addr>() {
        Ok(mask) if mask.to_bits().leading_ones() == mask.to_bits().count_ones() => {
            mask.to_bits().leading_ones() as u8
        }
        _ => len.trim().parse().ok()?,
    };
    Network::around(addr, len).map(|network| format!("did you mean \"{network}\"?"))
}

/// What may have been meant by a text that is nowhere to be found.
pub(crate) fn endpoint(text: &str) -> Option<String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(addr) = bare.parse::<IpAddr>() {
        let at = std::net::SocketAddr::from((addr, 51820));
        return Some(format!("with a UDP port: \"{at}\""));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let is_name = host
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
        && host.bytes().any(|b| b.is_ascii_alphabetic());
    (is_name && (port.is_empty() || whole(port)))
        .then(|| "names are not looked up: `getent hosts` tells the address of one".to_owned())
}

/// What may have been meant by a text that is no place to listen at.
pub(crate) fn listen(text: &str) -> Option<String> {
    let port = text.trim_start_matches(':');
    port.parse::<u16>()
        .ok()
        .map(|port| format!("with an address: \"127.0.0.1:{port}\""))
}

/// What may have been meant by a text that is no name.
pub(crate) fn name(text: &str) -> Option<String> {
    let meant = text.trim().replace(|c: char| c.is_whitespace() || c == '/', "-");
    let is_one = meant != text && meant.parse::<crate::matching::Name>().is_ok();
    is_one.then(|| format!("did you mean \"{meant}\"?"))
}

/// What may have been meant by a text that is no Ethernet address.
pub(crate) fn mac(text: &str) -> Option<String> {
    let meant = text.trim().replace('-', ":");
    meant
        .parse::<crate::value::Mac>()
        .is_ok()
        .then(|| format!("did you mean \"{meant}\"?"))
}

fn whole(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}
