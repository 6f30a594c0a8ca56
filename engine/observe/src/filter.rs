//! The filter: which packets a trace or a capture is about. A subset of libpcap's language (pcap-filter(7)), and a few words of our own.
//!
//! ```text
//! filter  = term { "and" term } | term { "or" term }        mixed only with parentheses: in pcap both bind alike, elsewhere not
//! term    = ( "not" | "!" ) term | "(" filter ")" | test
//! test    = [ "src" | "dst" ] [ "host" | "net" ] ADDRESS[/LENGTH]
//!         | [ "tcp" | "udp" ] [ "src" | "dst" ] "port" NUMBER[-NUMBER]
//!         | "ip" | "ip6" | "tcp" | "udp" | "icmp" | "icmp6" | "proto" NUMBER
//!         | "inbound" | "outbound" | "peer" KEY
//! ```
//!
//! Parsed on the slow path and by whoever asks; tested on workers, for every packet while a trace or a capture is on, which allocates nothing.

use std::fmt;
use std::net::IpAddr;

/// Bytes of a filter's text at most.
pub const FILTER_MAX: usize = 1024;
/// Tests in a filter at most.
const TESTS_MAX: usize = 64;
/// Parentheses and negations in each other at most.
const DEPTH_MAX: usize = 16;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// What a packet's headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol, behind IPv6's extension headers.
    pub protocol: u8,
    /// Source and destination port of TCP and UDP; none in a fragment that is not the first.
    pub ports: Option<(u16, u16)>,
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its headers, if it is an IP packet.
    pub headers: Option<Headers>,
    /// It came from a WAN link.
    pub inbound: bool,
    /// The number of the peer that it comes from or goes to; `None`: nobody knows yet.
    pub peer: Option<u32>,
}

/// Which packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Expr);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expr {
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Not(Box<Expr>),
    Net(End, IpAddr, u8),
    Port(End, u16, u16),
    Protocol(u8),
    Family {
        v6: bool,
    },
    Inbound(bool),
    /// The text that stands for a peer, where it stands, and the peer's number once somebody has looked it up.
    Peer(String, usize, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Src,
    Dst,
    Either,
}

impl End {
    fn is(self, src: bool, dst: bool) -> bool {
        match self {
            End::Src => src,
            End::Dst => dst,
            End::Either => src || dst,
        }
    }
}

/// What is wrong with a filter, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    /// Bytes of the text before the mistake.
    pub at: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "filter, column {}: {}", self.at + 1, self.message)
    }
}

impl std::error::Error for FilterError {}

impl Filter {
    /// Understands a filter; an empty one is about all packets.
    ///
    /// # Errors
    /// Says where the text stops making sense, and what could stand there.
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        if text.len() > FILTER_MAX {
            let message = format!("longer than {FILTER_MAX} bytes");
            return Err(FilterError {
                at: FILTER_MAX,
                message,
            });
        }
        let mut parser = Parser {
            words: words(text),
            next: 0,
            end: text.len(),
            tests: 0,
        };
        if parser.words.is_empty() {
            return Ok(Filter(Expr::All(Vec::new())));
        }
        let filter = parser.filter(0)?;
        match parser.peek() {
            None => Ok(Filter(filter)),
            Some(word) => Err(parser.here(format!("`and`, `or` or the end, not `{word}`"))),
        }
    }

    /// Looks up the peers that the filter names; `find` gives the number of the one peer whose key begins so, or says why there is none.
    ///
    /// # Errors
    /// What `find` said, and where in the text.
    pub fn resolve(&mut self, mut find: impl FnMut(&str) -> Result<u32, String>) -> Result<(), FilterError> {
        self.0.resolve(&mut find)
    }

    /// Whether the packet is one of those; `None`: that depends on whose it is.
    pub fn test(&self, subject: &Subject) -> Option<bool> {
        self.0.test(subject)
    }
}

impl Expr {
    fn resolve(&mut self, find: &mut dyn FnMut(&str) -> Result<u32, String>) -> Result<(), FilterError> {
        match self {
            Expr::All(all) | Expr::Any(all) => all.iter_mut().try_for_each(|one| one.resolve(find)),
            Expr::Not(one) => one.resolve(find),
            Expr::Peer(key, at, number) => {
                *number = find(key).map_err(|message| FilterError { at: *at, message })?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn test(&self, subject: &Subject) -> Option<bool> {
        match self {
            Expr::All(all) => combined(all, subject, false),
            Expr::Any(any) => combined(any, subject, true),
            Expr::Not(one) => one.test(subject).map(|is| !is),
            Expr::Inbound(inbound) => Some(subject.inbound == *inbound),
            Expr::Peer(_, _, number) => subject.peer.map(|peer| peer == *number),
            test => Some(subject.headers.is_some_and(|headers| test.is_in(&headers))),
        }
    }

    fn is_in(&self, headers: &Headers) -> bool {
        match *self {
            Expr::Net(end, net, len) => end.is(within(headers.src, net, len), within(headers.dst, net, len)),
            Expr::Port(end, low, high) => headers.ports.is_some_and(|(src, dst)| {
                let asked = low..=high;
                end.is(asked.contains(&src), asked.contains(&dst))
            }),
            Expr::Protocol(protocol) => headers.protocol == protocol,
            Expr::Family { v6 } => headers.src.is_ipv6() == v6,
            _ => false,
        }
    }
}

/// Whether all are true, or, for `decisive`, any is: one that is `decisive` decides, whatever nobody knows about the others.
fn combined(tests: &[Expr], subject: &Subject, decisive: bool) -> Option<bool> {
    let mut known = true;
    for test in tests {
        match test.test(subject) {
            Some(is) if is == decisive => return Some(decisive),
            Some(_) => {}
            None => known = false,
        }
    }
    known.then_some(!decisive)
}

fn within(address: IpAddr, net: IpAddr, len: u8) -> bool {
    let (address, net, width) = match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(n)) => (u128::from(a.to_bits()), u128::from(n.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(n)) => (a.to_bits(), n.to_bits(), 128),
        _ => return false,
    };
    let differs = address ^ net;
    differs.checked_shr(width - u32::from(len)).unwrap_or(0) == 0
}

/// Words and where they begin.
fn words(text: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let len = match c {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '(' | ')' | '!' => 1,
            _ if rest.starts_with("&&") || rest.starts_with("||") => 2,
            _ => rest
                .find(|c: char| c.is_whitespace() || "()!&|".contains(c))
                .unwrap_or(rest.len())
                .max(c.len_utf8()),
        };
        words.push((at, &text[at..at + len]));
        at += len;
    }
    words
}

struct Parser<'a> {
    words: Vec<(usize, &'a str)>,
    next: usize,
    end: usize,
    tests: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).map(|(_, word)| *word)
    }

    fn take(&mut self, expected: &[&str]) -> Option<&'a str> {
        let word = self.peek().filter(|word| expected.contains(word))?;
        self.next += 1;
        Some(word)
    }

    /// An error about the next word.
    fn here(&self, expected: String) -> FilterError {
        let at = self.words.get(self.next).map_or(self.end, |(at, _)| *at);
        let message = format!("expected {expected}");
        FilterError { at, message }
    }

    fn found(&self) -> String {
        self.peek()
            .map_or("the end".to_owned(), |word| format!("`{word}`"))
    }

    fn filter(&mut self, depth: usize) -> Result<Expr, FilterError> {
        const AND: [&str; 2] = ["and", "&&"];
        const OR: [&str; 2] = ["or", "||"];
        let mut terms = vec![self.term(depth)?];
        let (joined, other) = match self.peek() {
            Some(word) if AND.contains(&word) => (AND, OR),
            Some(word) if OR.contains(&word) => (OR, AND),
            _ => return Ok(terms.remove(0)),
        };
        while self.take(&joined).is_some() {
            terms.push(self.term(depth)?);
        }
        if self.peek().is_some_and(|word| other.contains(&word)) {
            return Err(self.here("parentheses where `and` and `or` are mixed".to_owned()));
        }
        Ok(match joined {
            AND => Expr::All(terms),
            _ => Expr::Any(terms),
        })
    }

    fn term(&mut self, depth: usize) -> Result<Expr, FilterError> {
        if depth > DEPTH_MAX {
            return Err(self.here(format!("no more than {DEPTH_MAX} parentheses in each other")));
        }
        if self.take(&["not", "!"]).is_some() {
            return Ok(Expr::Not(Box::new(self.term(depth + 1)?)));
        }
        if self.take(&["("]).is_some() {
            let inside = self.filter(depth + 1)?;
            let closed = self.take(&[")"]);
            return match closed {
                Some(_) => Ok(inside),
                None => Err(self.here(format!("`)`, not {}", self.found()))),
            };
        }
        if self.tests == TESTS_MAX {
            return Err(self.here(format!("no more than {TESTS_MAX} tests")));
        }
        self.tests += 1;
        self.test()
    }

    fn test(&mut self) -> Result<Expr, FilterError> {
        let Some(word) = self.peek() else {
            return Err(
                self.here("a test such as `src 10.1.0.0/16` or `udp port 53`, not the end".to_owned())
            );
        };
        let simple = match word {
            "ip" => Some(Expr::Family { v6: false }),
            "ip6" => Some(Expr::Family { v6: true }),
            "icmp" => Some(Expr::Protocol(ICMP)),
            "icmp6" => Some(Expr::Protocol(ICMPV6)),
            "inbound" => Some(Expr::Inbound(true)),
            "outbound" => Some(Expr::Inbound(false)),
            _ => None,
        };
        if let Some(simple) = simple {
            self.next += 1;
            return Ok(simple);
        }
        if self.take(&["proto"]).is_some() {
            return self.number("an IP protocol, 0 to 255").map(Expr::Protocol);
        }
        if self.take(&["peer"]).is_some() {
            return self.peer();
        }
        match self.take(&["tcp", "udp"]) {
            Some(name) => self.protocol_with_ports(if name == "tcp" { TCP } else { UDP }),
            None => self.address_or_port(),
        }
    }

    /// `tcp` or `udp`, and perhaps ports.
    fn protocol_with_ports(&mut self, protocol: u8) -> Result<Expr, FilterError> {
        let protocol = Expr::Protocol(protocol);
        if !matches!(self.peek(), Some("src" | "dst" | "port" | "portrange")) {
            return Ok(protocol);
        }
        let end = self.end_of_packet();
        match self.take(&["port", "portrange"]) {
            Some(_) => Ok(Expr::All(vec![protocol, self.ports(end)?])),
            None => Err(self.here(format!("`port`, not {}", self.found()))),
        }
    }

    fn address_or_port(&mut self) -> Result<Expr, FilterError> {
        let end = self.end_of_packet();
        if self.take(&["port", "portrange"]).is_some() {
            return self.ports(end);
        }
        let named = self.take(&["host", "net"]).is_some() || end != End::Either;
        let expected = if named {
            "an IP address, perhaps with a prefix length"
        } else {
            "a test such as `src 10.1.0.0/16`, `tcp`, `udp port 53` or `peer KEY`"
        };
        let expected = || format!("{expected}, not {}", self.found());
        let word = self.peek().ok_or_else(|| self.here(expected()))?;
        let (address, len) = match word.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (word, None),
        };
        let address: IpAddr = address.parse().map_err(|_| self.here(expected()))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let len = match len.map(str::parse::<u8>) {
            None => width,
            Some(Ok(len)) if len <= width => len,
            Some(_) => return Err(self.here(format!("a prefix length from 0 to {width} behind the `/`"))),
        };
        self.next += 1;
        Ok(Expr::Net(end, address, len))
    }

    fn end_of_packet(&mut self) -> End {
        match self.take(&["src", "dst"]) {
            Some("src") => End::Src,
            Some(_) => End::Dst,
            None => End::Either,
        }
    }

    fn ports(&mut self, end: End) -> Result<Expr, FilterError> {
        let expected = "a port or a range such as 8000-8080, 0 to 65535";
        let word = self.peek().unwrap_or_default();
        let (low, high) = word.split_once('-').unwrap_or((word, word));
        match (low.parse(), high.parse()) {
            (Ok(low), Ok(high)) if low <= high => {
                self.next += 1;
                Ok(Expr::Port(end, low, high))
            }
            _ => Err(self.here(format!("{expected}, not {}", self.found()))),
        }
    }

    fn number(&mut self, expected: &str) -> Result<u8, FilterError> {
        let number = self.peek().and_then(|word| word.parse().ok());
        let number = number.ok_or_else(|| self.here(format!("{expected}, not {}", self.found())))?;
        self.next += 1;
        Ok(number)
    }

    fn peer(&mut self) -> Result<Expr, FilterError> {
        let is_key = |word: &&str| {
            word.chars()
                .all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c))
        };
        let Some(word) = self.peek().filter(is_key) else {
            return Err(self.here(format!(
                "a peer's public key or its first characters, not {}",
                self.found()
            )));
        };
        let at = self.words[self.next].0;
        self.next += 1;
        // Number 2^32 - 1 is nobody's: a filter that was not looked up is about no peer.
        Ok(Expr::Peer(word.to_owned(), at, u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(src: &str, dst: &str, protocol: u8, ports: Option<(u16, u16)>) -> Subject {
        let headers = Headers {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            protocol,
            ports,
        };
        Subject {
            headers: Some(headers),
            inbound: false,
            peer: None,
        }
    }

    fn test(filter: &str, subject: &Subject) -> Option<bool> {
        Filter::parse(filter).unwrap().test(subject)
    }

    #[test]
    fn what_people_write_means_what_it_says() {
        let dns = subject("10.1.2.3", "10.2.0.1", UDP, Some((4000, 53)));
        for (filter, expected) in [
            ("", true),
            ("src 10.1.0.0/16 and udp port 53", true),
            ("src net 10.1.0.0/16 && udp dst port 53", true),
            ("dst 10.1.0.0/16", false),
            ("host 10.2.0.1", true),
            ("10.2.0.1", true),
            ("udp src port 53", false),
            ("tcp port 53", false),
            ("portrange 50-60", true),
            ("port 54-4001", true),
            ("ip6 or icmp or icmp6", false),
            ("not (tcp or dst port 54)", true),
            ("!tcp", true),
            ("proto 17", true),
            ("inbound", false),
            ("outbound", true),
            ("::/0", false),
            ("0.0.0.0/0", true),
        ] {
            assert_eq!(test(filter, &dns), Some(expected), "{filter}");
        }
    }

    #[test]
    fn what_is_no_ip_packet_has_no_address() {
        let frame = Subject {
            headers: None,
            inbound: false,
            peer: None,
        };
        assert_eq!(test("host 10.0.0.1", &frame), Some(false));
        assert_eq!(test("", &frame), Some(true));
    }

    #[test]
    fn a_peer_is_unknown_until_it_is_known() {
        let mut packet = subject("10.1.2.3", "10.2.0.1", TCP, Some((1, 2)));
        let mut filter = Filter::parse("tcp and peer abc=").unwrap();
        filter
            .resolve(|key| if key == "abc=" { Ok(7) } else { Err("no".into()) })
            .unwrap();
        assert_eq!(filter.test(&packet), None);
        packet.peer = Some(7);
        assert_eq!(filter.test(&packet), Some(true));
        packet.peer = Some(8);
        assert_eq!(filter.test(&packet), Some(false));
        packet.peer = None;
        assert_eq!(test("udp and peer x", &packet), Some(false));
        assert_eq!(test("tcp or peer x", &packet), Some(true));
        assert_eq!(test("not peer x", &packet), None);
        let error = Filter::parse("tcp and peer nobody").unwrap();
        let error = error
            .clone()
            .resolve(|_| Err("no peer's key begins so".into()))
            .unwrap_err();
        assert_eq!(error.to_string(), "filter, column 14: no peer's key begins so");
    }

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        for (filter, at, message) in [
            ("src 10.1.0.0/33", 4, "a prefix length from 0 to 32"),
            ("src 10.1.0", 4, "an IP address"),
            (
                "src",
                3,
                "an IP address, perhaps with a prefix length, not the end",
            ),
            ("tcp and", 7, "a test such as"),
            ("tcp and or udp", 8, "a test such as"),
            ("tcp and udp or icmp", 12, "parentheses"),
            ("(tcp", 4, "`)`, not the end"),
            ("tcp)", 3, "`and`, `or` or the end, not `)`"),
            ("udp port http", 9, "a port or a range"),
            ("port 5-3", 5, "a port or a range"),
            ("udp src 10.0.0.1", 8, "`port`"),
            ("proto 256", 6, "an IP protocol"),
            ("peer )", 5, "a peer's public key"),
            ("udp port 53 bogus", 12, "`and`, `or` or the end"),
            ("ünsinn", 0, "a test such as"),
            ("tcp & udp", 4, "`and`, `or` or the end"),
        ] {
            let error = Filter::parse(filter).unwrap_err();
            assert_eq!(error.at, at, "{filter}: {error}");
            assert!(error.message.contains(message), "{filter}: {error}");
        }
        let deep = format!("{}tcp{}", "(".repeat(20), ")".repeat(20));
        assert!(
            Filter::parse(&deep)
                .unwrap_err()
                .message
                .contains("16 parentheses")
        );
        let long = vec!["tcp"; 65].join(" or ");
        assert!(Filter::parse(&long).unwrap_err().message.contains("64 tests"));
        assert!(Filter::parse(&" ".repeat(1025)).is_err());
    }
}
