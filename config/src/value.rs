//! Values with a meaning: what they look like, and what is said of those that do not.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use patronus_abi::device::{DPDK_MEMORY, is_device};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// Why a text is no such value: what was expected, with an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected(&'static str);

impl Expected {
    pub(crate) const fn of(what: &'static str) -> Expected {
        Expected(what)
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

/// Deserializes through [`FromStr`], naming the value that was wrong.
macro_rules! from_text {
    ($name:ident, $expected:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse()
                            .map_err(|expected| E::custom(format_args!("`{text}`: {expected}")))
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
pub(crate) use from_text;

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
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTED)?;
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim_start() {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(EXPECTED),
        };
        let number: u64 = number.parse().map_err(|_| EXPECTED)?;
        number.checked_mul(unit).map(Millis).ok_or(EXPECTED)
    }
}

from_text!(Millis, "a duration with its unit, such as \"25s\" or \"50ms\"");

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
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTED)?;
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim_start() {
            "MiB" => 1,
            "GiB" => 1024,
            _ => return Err(EXPECTED),
        };
        let number: u32 = number.parse().map_err(|_| EXPECTED)?;
        number.checked_mul(unit).map(Mebibytes).ok_or(EXPECTED)
    }
}

from_text!(Mebibytes, "memory with its unit, such as \"64MiB\" or \"1GiB\"");

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
    /// Whether the address is in it.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let host = u32::MAX.unbounded_shr(self.len.into());
                own.to_bits() & !host == ip.to_bits() & !host
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let host = u128::MAX.unbounded_shr(self.len.into());
                own.to_bits() & !host == ip.to_bits() & !host
            }
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

from_text!(Network, "a network, such as \"10.1.0.0/16\"");

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
    "an address and a UDP port, such as \"198.51.100.1:51820\""
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

from_text!(Mac, "an Ethernet address, such as \"02:00:5e:10:00:01\"");
