//! What a policy asks of a packet: protocol, ports, DSCP; and where it sends it.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use crate::value::{Expected, from_text, from_text_or_number};

/// An IP protocol by number (IANA, "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol(pub u8);

/// The names that are understood; every other protocol has its number.
const PROTOCOLS: [(&str, u8); 8] = [
    ("icmp", 1),
    ("tcp", 6),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("icmpv6", 58),
    ("ospf", 89),
    ("sctp", 132),
];

impl Protocol {
    /// Whether its packets have ports that policies can ask for.
    pub fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17)
    }
}

impl FromStr for Protocol {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Protocol, Expected> {
        const EXPECTED: Expected = Expected::of(
            "a protocol: \"tcp\", \"udp\", \"icmp\", \"icmpv6\", \"gre\", \"esp\", \"ospf\", \"sctp\" or a number from 0 to 255",
        );
        let named = PROTOCOLS.iter().find(|(name, _)| *name == text);
        named.map(|(_, number)| Protocol(*number)).ok_or(EXPECTED)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

/// UDP or TCP ports, one or from one to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(pub RangeInclusive<u16>);

impl FromStr for Ports {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Ports, Expected> {
        const EXPECTED: Expected = Expected::of("a port from 0 to 65535, or a range such as \"1024-65535\"");
        let port = |text: &str| {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first.trim()), port(last.trim())) {
            (Some(first), Some(last)) if first <= last => Ok(Ports(first..=last)),
            _ => Err(EXPECTED),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (first, last) if first == last => first.fmt(f),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// A differentiated services code point (RFC 2474), 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dscp(pub u8);

impl FromStr for Dscp {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Dscp, Expected> {
        const EXPECTED: Expected =
            Expected::of("a DSCP: \"ef\", \"cs0\" to \"cs7\", \"af11\" to \"af43\" or a number from 0 to 63");
        let dscp = match text.as_bytes() {
            b"be" => 0,
            b"ef" => 46,
            [b'c', b's', class @ b'0'..=b'7'] => 8 * (class - b'0'),
            // RFC 2597, section 6.
            [b'a', b'f', class @ b'1'..=b'4', drop @ b'1'..=b'3'] => 8 * (class - b'0') + 2 * (drop - b'0'),
            _ => return Err(EXPECTED),
        };
        Ok(Dscp(dscp))
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 8, self.0 % 8) {
            (_, _) if self.0 == 46 => f.write_str("ef"),
            (class, 0) => write!(f, "cs{class}"),
            (class @ 1..=4, drop @ (2 | 4 | 6)) => write!(f, "af{class}{}", drop / 2),
            _ => self.0.fmt(f),
        }
    }
}

from_text_or_number!(
    Protocol,
    255,
    |number| Protocol(number as u8),
    "a protocol: a name such as \"udp\", or a number from 0 to 255"
);
from_text_or_number!(
    Ports,
    65535,
    |number| Ports(number as u16..=number as u16),
    "a port from 0 to 65535, or a range such as \"1024-65535\""
);
from_text_or_number!(
    Dscp,
    63,
    |number| Dscp(number as u8),
    "a DSCP: a name such as \"ef\", or a number from 0 to 63"
);

/// Where packets go next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// To the peer or the LAN of this name.
    Named(String),
    /// To the neighbour with this address, on the LAN that it is on.
    Neighbour(IpAddr),
    /// Nowhere.
    Discard,
}

impl FromStr for Via {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Via, Expected> {
        Ok(match text.parse() {
            Ok(address) => Via::Neighbour(address),
            Err(_) if text == "discard" => Via::Discard,
            Err(_) => Via::Named(text.parse::<Name>()?.0),
        })
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Via::Named(name) => f.write_str(name),
            Via::Neighbour(address) => address.fmt(f),
            Via::Discard => f.write_str("discard"),
        }
    }
}

from_text!(
    Via,
    "a peer's or a LAN's name, a neighbour's address or \"discard\""
);

/// What something is called in the file and in messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// A name of the program's own.
    pub(crate) fn of(name: &str) -> Name {
        Name(name.to_owned())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Name, Expected> {
        const EXPECTED: Expected = Expected::of(
            "a name: 1 to 63 letters, digits, `-`, `_` and `.`, which is no address and not `discard`",
        );
        let fits = (1..=63).contains(&text.len()) && text != "discard" && text.parse::<IpAddr>().is_err();
        let plain = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if fits && plain {
            Ok(Name(text.to_owned()))
        } else {
            Err(EXPECTED)
        }
    }
}

from_text!(Name, "a name", crate::hints::name);

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq)]
pub struct OneOrMore<T>(pub Vec<Spanned<T>>);

impl<T> Default for OneOrMore<T> {
    fn default() -> Self {
        OneOrMore(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMore<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Values<T> {
            type Value = Vec<Spanned<T>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value, or a list of values in brackets")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                one(de::value::StrDeserializer::new(text))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                one(de::value::I64Deserializer::new(number))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(values)
            }
        }
        /// Without a place of its own: it has the whole value's.
        fn one<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<Spanned<T>>, D::Error> {
            Ok(vec![Spanned::new(0..0, T::deserialize(from)?)])
        }
        let whole = deserializer.deserialize_any(Values(std::marker::PhantomData))?;
        Ok(OneOrMore(whole))
    }
}
