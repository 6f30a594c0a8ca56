//! Values with a meaning: what they look like, and what is said of those that do not.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use patronus_abi::device::{DPDK_MEMORY, is_device};

use crate::error::plain;

/// Why a text is no such value: what was expected, with an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected(&'static str);

impl Expected {
    pub(crate) const fn of(what: &'static str) -> Expected {
        Expected(what)
    }

    /// What is said of a value that is something else, and behind [`HINT`] what may have been meant.
    pub(crate) fn instead_of(self, text: &str, meant: Option<String>) -> String {
        let hint = meant.map(|meant| format!("{HINT}{}", plain(&meant)));
        format!("`{}`: {self}{}", plain(text), hint.unwrap_or_default())
    }
}

/// Between what is wrong and what may have been meant. What people write never has it: it is no [`plain`] text.
pub(crate) const HINT: char = '\u{1f}';

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

/// Deserializes through [`FromStr`], naming the value that was wrong.
macro_rules! from_text {
    ($name:ident, $expected:literal) => {
        crate::value::from_text!($name, $expected, |_| None);
    };
    ($name:ident, $expected:literal, $meant:expr) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        let wrong = |expected: crate::value::Expected| {
                            let meant: fn(&str) -> Option<String> = $meant;
                            E::custom(expected.instead_of(text, meant(text)))
                        };
                        text.parse().map_err(wrong)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
pub(crate) use from_text;

/// Deserializes from a text, or a number up to `MAX`.
macro_rules! from_text_or_number {
    ($name:ident, $max:literal, $number:expr, $expected:literal) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Either;
                impl serde::de::Visitor<'_> for Either {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        let wrong =
                            |expected: crate::value::Expected| E::custom(expected.instead_of(text, None));
                        text.parse().map_err(wrong)
                    }

                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$name, E> {
                        match number {
                            0..=$max => Ok($number(number)),
                            _ => Err(E::custom(format_args!(
                                "`{number}`: expected {}",
                                $expected
                            ))),
                        }
                    }
                }
                deserializer.deserialize_any(Either)
            }
        }
    };
}
pub(crate) use from_text_or_number;

/// A whole number in front of its unit, which is one of these.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A duration in whole milliseconds, with its unit: `"25s"`, `"50ms"`, `"2m"`, `"1h"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl From<Millis> for Duration {
    fn from(millis: Millis) -> Duration {
        Duration::from_millis(millis.0)
    }
}

impl FromStr for Millis {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Millis, Expected> {
        const EXPECTED: Expected = Expected("a whole number and a unit: \"50ms\", \"25s\", \"2m\" or \"1h\"");
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        with_unit(text, &units).map(Millis).ok_or(EXPECTED)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0 {
            0 => (0, "ms"),
            millis if millis % 3_600_000 == 0 => (millis / 3_600_000, "h"),
            millis if millis % 60_000 == 0 => (millis / 60_000, "m"),
            millis if millis % 1000 == 0 => (millis / 1000, "s"),
            millis => (millis, "ms"),
        };
        write!(f, "{number}{unit}")
    }
}

from_text!(
    Millis,
    "a duration with its unit, such as \"25s\" or \"50ms\"",
    crate::hints::duration
);

/// Memory in whole mebibytes, with its unit: `"64MiB"`, `"1GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mebibytes(pub u32);

impl Default for Mebibytes {
    /// What DPDK gets unless told otherwise.
    fn default() -> Mebibytes {
        Mebibytes(DPDK_MEMORY)
    }
}

impl FromStr for Mebibytes {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Mebibytes, Expected> {
        const EXPECTED: Expected = Expected("a whole number and a unit: \"64MiB\" or \"1GiB\"");
        let size = with_unit(text, &[("MiB", 1), ("GiB", 1024)]).ok_or(EXPECTED)?;
        u32::try_from(size).map(Mebibytes).map_err(|_| EXPECTED)
    }
}

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            size if size > 0 && size % 1024 == 0 => write!(f, "{}GiB", size / 1024),
            size => write!(f, "{size}MiB"),
        }
    }
}

from_text!(
    Mebibytes,
    "memory with its unit, such as \"64MiB\" or \"1GiB\"",
    crate::hints::memory
);

/// A device that DPDK drives: a PCI address, or a virtual device's name and arguments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Device(String);

impl Device {
    /// As DPDK has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Device {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Device, Expected> {
        if is_device(text) {
            return Ok(Device(text.to_owned()));
        }
        // What lspci shows on a machine with one domain, and what people take over from elsewhere.
        let whole = format!("0000:{text}");
        Err(match text.parse::<InterfaceName>() {
            _ if is_device(&whole) => {
                Expected("a PCI address with its domain, as `lspci -D` shows it: 0000:03:00.0")
            }
            _ if is_device(&text.to_ascii_lowercase()) => {
                Expected("small letters, as DPDK has them: 0000:0a:00.0, net_memif0,role=server")
            }
            Ok(_) if !text.starts_with("net_") => Expected(
                "a PCI address such as 0000:03:00.0 (`ethtool -i INTERFACE` shows an interface's as bus-info), or a virtual device such as \
                 net_memif0,role=server",
            ),
            _ => Expected(
                "a PCI address such as 0000:03:00.0, or a virtual device and its arguments, such as net_memif0,role=server: no spaces, \
                 quotation marks or brackets, 255 characters at most",
            ),
        })
    }
}

from_text!(
    Device,
    "a device, such as \"0000:03:00.0\" or \"net_memif0,role=server\""
);

/// A public key, as `wg pubkey` prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl FromStr for PublicKey {
    type Err = Expected;

    fn from_str(text: &str) -> Result<PublicKey, Expected> {
        const EXPECTED: Expected =
            Expected("a key as `wg pubkey` prints it: 44 characters, the last one `=`");
        let mut key = [0; 32];
        let decoded = Base64::decode(text, &mut key).map_err(|_| EXPECTED)?;
        if decoded.len() == 32 {
            Ok(PublicKey(key))
        } else {
            Err(EXPECTED)
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Base64::encode_string(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

from_text!(PublicKey, "a public key, as `wg pubkey` prints it");

/// A network: address and length of the prefix. A plain address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    /// The first address.
    pub addr: IpAddr,
    /// Bits of the prefix.
    pub len: u8,
}

impl FromStr for Network {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Network, Expected> {
        const EXPECTED: Expected = Expected("a network such as 10.1.0.0/16 or 2001:db8:1::/48");
        const HOST_BITS: Expected = Expected("a network, with no bit set behind the prefix");
        let (addr, len) = match text.split_once('/') {
            // A number may begin with a sign, a length may not.
            Some((_, len)) if !len.bytes().all(|b| b.is_ascii_digit()) => return Err(EXPECTED),
            Some((addr, len)) => (addr, Some(len.parse::<u8>().map_err(|_| EXPECTED)?)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| EXPECTED)?;
        let (bits, width) = match addr {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
            IpAddr::V6(ip) => (ip.to_bits(), 128),
        };
        let len = len.unwrap_or(width);
        if len > width {
            return Err(EXPECTED);
        }
        match bits.unbounded_shl(len.into()) {
            0 => Ok(Network { addr, len }),
            _ => Err(HOST_BITS),
        }
    }
}

impl Network {
    /// The network with a prefix of this length that the address is in; none if no address is so long.
    pub fn around(addr: IpAddr, len: u8) -> Option<Network> {
        let addr = match addr {
            IpAddr::V4(ip) if len <= 32 => IpAddr::from((ip.to_bits() & mask(32 - len) as u32).to_be_bytes()),
            IpAddr::V6(ip) if len <= 128 => IpAddr::from((ip.to_bits() & mask(128 - len)).to_be_bytes()),
            _ => return None,
        };
        Some(Network { addr, len })
    }
}

/// All bits but the lowest `host`.
fn mask(host: u8) -> u128 {
    u128::MAX.unbounded_shl(host.into())
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

from_text!(
    Network,
    "a network, such as \"10.1.0.0/16\"",
    crate::hints::network
);

/// An address of the host's, and the network that it is on. A plain address is on a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddress {
    /// The address.
    pub addr: IpAddr,
    /// Bits of the network's prefix.
    pub len: u8,
}

impl FromStr for HostAddress {
    type Err = Expected;

    fn from_str(text: &str) -> Result<HostAddress, Expected> {
        const EXPECTED: Expected = Expected("an address of this host with its prefix, such as 10.1.0.1/24");
        let (addr, len) = text
            .split_once('/')
            .map_or((text, None), |(addr, len)| (addr, Some(len)));
        let addr: IpAddr = addr.parse().map_err(|_| EXPECTED)?;
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        let len = match len {
            None => whole,
            // A number may begin with a sign, a length may not.
            Some(len) if len.bytes().all(|b| b.is_ascii_digit()) => len.parse().map_err(|_| EXPECTED)?,
            Some(_) => return Err(EXPECTED),
        };
        match len <= whole && !addr.is_unspecified() && !addr.is_multicast() {
            true => Ok(HostAddress { addr, len }),
            false => Err(EXPECTED),
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

from_text!(HostAddress, "an address with its prefix, such as \"10.1.0.1/24\"");

/// Where a peer is: address and UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint(pub SocketAddr);

impl FromStr for Endpoint {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Endpoint, Expected> {
        const EXPECTED: Expected =
            Expected("an address and a UDP port, such as 198.51.100.1:51820 or [2001:db8::1]:51820");
        let addr: SocketAddr = text.parse().map_err(|_| EXPECTED)?;
        let usable = addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast();
        if usable { Ok(Endpoint(addr)) } else { Err(EXPECTED) }
    }
}

from_text!(
    Endpoint,
    "an address and a UDP port, such as \"198.51.100.1:51820\"",
    crate::hints::endpoint
);

/// The name of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InterfaceName {
    fn default() -> InterfaceName {
        InterfaceName("wg0".to_owned())
    }
}

impl FromStr for InterfaceName {
    type Err = Expected;

    fn from_str(text: &str) -> Result<InterfaceName, Expected> {
        const EXPECTED: Expected =
            Expected("an interface's name: 1 to 15 characters without spaces, slashes or colons");
        let fits = (1..=15).contains(&text.len()) && text != "." && text != "..";
        let plain = text
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if fits && plain {
            Ok(InterfaceName(text.to_owned()))
        } else {
            Err(EXPECTED)
        }
    }
}

from_text!(InterfaceName, "the name of a network interface");

/// An Ethernet address, such as `02:00:5e:10:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Mac, Expected> {
        const EXPECTED: Expected = Expected("the Ethernet address of one station, such as 02:00:5e:10:00:01");
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut mac {
            let part = parts.next().ok_or(EXPECTED)?;
            let hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *octet = hex
                .then(|| u8::from_str_radix(part, 16).ok())
                .flatten()
                .ok_or(EXPECTED)?;
        }
        // The lowest bit of the first octet says that it is of several stations.
        let one_station = mac[0] & 1 == 0 && mac != [0; 6];
        if parts.next().is_none() && one_station {
            Ok(Mac(mac))
        } else {
            Err(EXPECTED)
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

from_text!(
    Mac,
    "an Ethernet address, such as \"02:00:5e:10:00:01\"",
    crate::hints::mac
);

/// What a line carries, in bits per second, with its unit: `"512kbps"`, `"100Mbps"`, `"10Gbps"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

impl FromStr for Rate {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Rate, Expected> {
        const EXPECTED: Expected =
            Expected("a whole number and a unit, in bits per second: \"512kbps\", \"100Mbps\" or \"10Gbps\"");
        let units = [("kbps", 1000), ("Mbps", 1_000_000), ("Gbps", 1_000_000_000)];
        let rate = with_unit(text, &units).filter(|rate| *rate > 0);
        rate.map(Rate).ok_or(EXPECTED)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0 {
            rate if rate % 1_000_000_000 == 0 => (rate / 1_000_000_000, "Gbps"),
            rate if rate % 1_000_000 == 0 => (rate / 1_000_000, "Mbps"),
            rate => (rate / 1000, "kbps"),
        };
        write!(f, "{number}{unit}")
    }
}

from_text!(
    Rate,
    "a rate with its unit, such as \"100Mbps\"",
    crate::hints::rate
);

/// Bytes that may go by a link in a month, with their unit, in powers of ten: `"500MB"`, `"20GB"`, `"1TB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DataCap(pub u64);

impl FromStr for DataCap {
    type Err = Expected;

    fn from_str(text: &str) -> Result<DataCap, Expected> {
        const EXPECTED: Expected =
            Expected("a whole number of bytes and a unit, in powers of ten: \"500MB\", \"20GB\" or \"1TB\"");
        let units = [
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
        ];
        let bytes = with_unit(text, &units).filter(|bytes| *bytes > 0);
        bytes.map(DataCap).ok_or(EXPECTED)
    }
}

impl fmt::Display for DataCap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0 {
            bytes if bytes % 1_000_000_000_000 == 0 => (bytes / 1_000_000_000_000, "TB"),
            bytes if bytes % 1_000_000_000 == 0 => (bytes / 1_000_000_000, "GB"),
            bytes => (bytes / 1_000_000, "MB"),
        };
        write!(f, "{number}{unit}")
    }
}

from_text!(
    DataCap,
    "bytes with their unit, such as \"20GB\"",
    crate::hints::data_cap
);

/// A share of the packets, in thousandths of a percent: `"1%"`, `"0.3%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss(pub u32);

impl FromStr for Loss {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Loss, Expected> {
        const EXPECTED: Expected = Expected(
            "a part of a hundred from \"0%\" to \"100%\", such as \"1%\" or \"0.3%\", with three decimals at most",
        );
        let number = text.strip_suffix('%').ok_or(EXPECTED)?.trim_end();
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) {
            return Err(EXPECTED);
        }
        let whole: u32 = whole.parse().map_err(|_| EXPECTED)?;
        let part: u32 = format!("{part:0<3}").parse().map_err(|_| EXPECTED)?;
        let loss = whole * 1000 + part;
        if loss <= 100_000 {
            Ok(Loss(loss))
        } else {
            Err(EXPECTED)
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = format!(".{:03}", self.0 % 1000);
        let part = part.trim_end_matches('0').trim_end_matches('.');
        write!(f, "{}{part}%", self.0 / 1000)
    }
}

from_text!(Loss, "a part of a hundred, such as \"0.3%\"", crate::hints::loss);

/// Where to wait for connections: address and TCP port. The address may be that of no interface in particular.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

impl FromStr for Listen {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Listen, Expected> {
        const EXPECTED: Expected =
            Expected("an address of this host and a TCP port, such as 127.0.0.1:9586 or [::1]:9586");
        let addr: SocketAddr = text.parse().map_err(|_| EXPECTED)?;
        if addr.ip().is_multicast() {
            Err(EXPECTED)
        } else {
            Ok(Listen(addr))
        }
    }
}

from_text!(
    Listen,
    "an address and a TCP port, such as \"127.0.0.1:9586\"",
    crate::hints::listen
);

/// The name of a group of users (group(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupName(String);

impl GroupName {
    pub(crate) fn new(name: &str) -> GroupName {
        GroupName(name.to_owned())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = Expected;

    fn from_str(text: &str) -> Result<GroupName, Expected> {
        const EXPECTED: Expected = Expected(
            "a group of users: 1 to 32 letters, digits, `-`, `_` and `.`, beginning with a letter or `_`",
        );
        let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let plain = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if begins && plain && text.len() <= 32 {
            Ok(GroupName(text.to_owned()))
        } else {
            Err(EXPECTED)
        }
    }
}

from_text!(GroupName, "the name of a group of users");
