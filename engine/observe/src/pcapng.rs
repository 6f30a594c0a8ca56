//! A capture as a pcapng file (IETF draft-ietf-opsawg-pcapng), in the machine's byte order: the four kinds of block that a capture needs.
//!
//! Each LAN port and each link is an interface of the file. What is seen on a link has no IP and UDP header in the engine, which gives
//! messages to sockets: they are made here from the addresses, with a time to live of 64 and without a UDP checksum.

use std::io::{self, Write};
use std::net::IpAddr;

use crate::head::Head;
use crate::record::{Form, Point, Record};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

const LINK_ETHERNET: u16 = 1;
/// LINKTYPE_RAW: begins with an IPv4 or IPv6 header.
const LINK_RAW: u16 = 101;

const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_IFDROP: u16 = 5;

const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Longest headers that are made up: IPv6 and UDP.
const MADE_MAX: usize = 48;

/// A pcapng file in the making.
pub struct Pcapng<W: Write> {
    out: W,
    head: Head,
}

impl<W: Write> Pcapng<W> {
    /// Begins a file.
    pub fn begin(mut out: W, head: &Head) -> io::Result<Pcapng<W>> {
        let mut section = Vec::new();
        section.extend(BYTE_ORDER.to_ne_bytes());
        // Version 1.0.
        section.extend(1u16.to_ne_bytes());
        section.extend(0u16.to_ne_bytes());
        // Of unknown length.
        section.extend(u64::MAX.to_ne_bytes());
        option(&mut section, SHB_USERAPPL, b"patronus");
        option(&mut section, OPT_END, &[]);
        block(&mut out, SECTION, &section)?;
        let lans = head.lans.iter();
        for (name, ethernet) in lans.chain(&head.links).map(|port| (&*port.name, port.ethernet)) {
            interface(&mut out, name, ethernet)?;
        }
        // What goes no further is on no interface.
        interface(&mut out, "dropped", false)?;
        interface(&mut out, "dropped-frames", true)?;
        Ok(Pcapng {
            out,
            head: head.clone(),
        })
    }

    /// Writes a packet.
    pub fn packet(&mut self, record: &Record, data: &[u8]) -> io::Result<()> {
        let made = match Form::of(record.form) {
            Some(Form::Message) => headers(record, self.head.udp_port),
            _ => Vec::new(),
        };
        let time = record.time.wrapping_add(self.head.wall_offset);
        let words = [
            self.interface_of(record),
            (time >> 32) as u32,
            time as u32,
            (made.len() + data.len()) as u32,
            (made.len() as u32).saturating_add(record.length),
        ];
        let mut body = Vec::with_capacity(data.len() + 2 * MADE_MAX);
        words.iter().for_each(|word| body.extend(word.to_ne_bytes()));
        body.extend(made);
        body.extend(data);
        body.resize(body.len().next_multiple_of(4), 0);
        let inbound = match Point::of(record.point) {
            Some(Point::LanRx | Point::WanRx) => true,
            Some(Point::LanTx | Point::WanTx) => false,
            _ => record.inbound != 0,
        };
        let flags = if inbound { INBOUND } else { OUTBOUND };
        option(&mut body, EPB_FLAGS, &flags.to_ne_bytes());
        if let Some(comment) = self.comment(record) {
            option(&mut body, OPT_COMMENT, comment.as_bytes());
        }
        option(&mut body, OPT_END, &[]);
        block(&mut self.out, PACKET, &body)
    }

    fn comment(&self, record: &Record) -> Option<String> {
        let why = (record.point == Point::Drop as u8)
            .then(|| format!("dropped: {}", self.head.reason(record.reason)));
        let peer = (record.key != [0; 32]).then(|| format!("peer {}", crate::story::key(&record.key)));
        match (why, peer) {
            (Some(why), Some(peer)) => Some(format!("{why}; {peer}")),
            (why, peer) => why.or(peer),
        }
    }

    fn interface_of(&self, record: &Record) -> u32 {
        let (lans, links) = (self.head.lans.len(), self.head.links.len());
        let number = match Point::of(record.point) {
            Some(Point::LanRx | Point::LanTx) if usize::from(record.place) < lans => record.place.into(),
            Some(Point::WanRx | Point::WanTx) if usize::from(record.place) < links => {
                lans + usize::from(record.place)
            }
            _ if record.form == Form::Ethernet as u8 => lans + links + 1,
            _ => lans + links,
        };
        number as u32
    }

    /// Notes how many packets are missing, and gives the file back.
    pub fn end(mut self, lost: u64) -> io::Result<W> {
        let mut body = Vec::new();
        // Of interface 0, at no time in particular.
        [0u32, 0, 0]
            .iter()
            .for_each(|word| body.extend(word.to_ne_bytes()));
        option(&mut body, ISB_IFDROP, &lost.to_ne_bytes());
        option(&mut body, OPT_END, &[]);
        block(&mut self.out, STATISTICS, &body)?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Lets the file be read as far as it is.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn interface(out: &mut impl Write, name: &str, ethernet: bool) -> io::Result<()> {
    let mut body = Vec::new();
    let kind = if ethernet { LINK_ETHERNET } else { LINK_RAW };
    body.extend(kind.to_ne_bytes());
    body.extend(0u16.to_ne_bytes());
    // No limit to the length of a packet: it is the reader's to ask for one.
    body.extend(0u32.to_ne_bytes());
    option(&mut body, IF_NAME, name.as_bytes());
    // Nanoseconds.
    option(&mut body, IF_TSRESOL, &[9]);
    option(&mut body, OPT_END, &[]);
    block(out, INTERFACE, &body)
}

/// A block; the body is a multiple of 4 long.
fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    debug_assert!(body.len().is_multiple_of(4));
    let length = (body.len() as u32 + 12).to_ne_bytes();
    out.write_all(&kind.to_ne_bytes())?;
    out.write_all(&length)?;
    out.write_all(body)?;
    out.write_all(&length)
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The IP and UDP header of a message. Empty if it has no addresses.
fn headers(record: &Record, own_port: u16) -> Vec<u8> {
    let Some(remote) = record.remote.get() else {
        return Vec::new();
    };
    let unknown = if remote.is_ipv4() {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    let local = record
        .local
        .get()
        .filter(|local| local.is_ipv4() == remote.is_ipv4());
    let local = (local.unwrap_or(unknown), own_port);
    let remote = (remote, record.remote_port);
    let (from, to) = match Point::of(record.point) {
        Some(Point::WanTx) => (local, remote),
        _ => (remote, local),
    };
    let udp = u16::try_from(record.length + 8).unwrap_or(u16::MAX);
    let mut made = Vec::with_capacity(MADE_MAX);
    match (from.0, to.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [hi, lo] = udp.saturating_add(20).to_be_bytes();
            made.extend([0x45, record.tos, hi, lo, 0, 0, 0x40, 0, 64, 17, 0, 0]);
            made.extend(src.octets());
            made.extend(dst.octets());
            let sum = made.chunks_exact(2).fold(0u32, |sum, pair| {
                sum + u32::from(pair[0]) * 256 + u32::from(pair[1])
            });
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !(sum + (sum >> 16)) as u16;
            made[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let [hi, lo] = udp.to_be_bytes();
            made.extend([0x60 | record.tos >> 4, record.tos << 4, 0, 0, hi, lo, 17, 64]);
            made.extend(src.octets());
            made.extend(dst.octets());
        }
        _ => return Vec::new(),
    }
    for word in [from.1, to.1, udp, 0] {
        made.extend(word.to_be_bytes());
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Port;

    fn head() -> Head {
        let port = |name: &str, ethernet| Port {
            name: name.to_owned(),
            ethernet,
        };
        Head {
            udp_port: 51820,
            lans: vec![port("wg0", false)],
            links: vec![port("eth0", false)],
            reasons: vec!["route-policy".to_owned()],
            ..Head::default()
        }
    }

    /// Kinds and bodies of the blocks.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut blocks = Vec::new();
        while let Some((kind, rest)) = file.split_first_chunk::<4>() {
            let length = u32::from_ne_bytes(*rest.first_chunk().unwrap()) as usize;
            assert_eq!(
                file[length - 4..length],
                file[4..8],
                "the length stands at both ends"
            );
            blocks.push((u32::from_ne_bytes(*kind), file[8..length - 4].to_vec()));
            file = &file[length..];
        }
        blocks
    }

    #[test]
    fn a_file_is_blocks() {
        let mut file = Pcapng::begin(Vec::new(), &head()).unwrap();
        let record = Record {
            point: Point::Drop as u8,
            length: 100,
            time: 5 << 32,
            ..Record::NONE
        };
        file.packet(&record, &[0x45; 21]).unwrap();
        let blocks = blocks(&file.end(3).unwrap());
        let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION, 1, 1, 1, 1, PACKET, STATISTICS]);
        let packet = &blocks[5].1;
        let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
        assert_eq!(
            [word(0), word(4), word(8), word(12), word(16)],
            [2, 5, 0, 21, 100]
        );
        let text = String::from_utf8_lossy(packet);
        assert!(text.contains("dropped: route-policy"), "{text}");
    }

    #[test]
    fn a_message_gets_headers() {
        for (remote, local, header) in [("192.0.2.1", "192.0.2.2", 20), ("2001:db8::1", "2001:db8::2", 40)] {
            let [remote, local]: [IpAddr; 2] = [remote, local].map(|text| text.parse().unwrap());
            for (point, from, to) in [(Point::WanRx, 7000u16, 51820u16), (Point::WanTx, 51820, 7000)] {
                let record = Record {
                    point: point as u8,
                    form: Form::Message as u8,
                    remote: remote.into(),
                    local: local.into(),
                    remote_port: 7000,
                    length: 32,
                    ..Record::NONE
                };
                let made = headers(&record, 51820);
                assert_eq!(made.len(), header + 8);
                assert_eq!(made[header..header + 2], from.to_be_bytes());
                assert_eq!(made[header + 2..header + 4], to.to_be_bytes());
                assert_eq!(made[header + 4..header + 6], 40u16.to_be_bytes());
                if header == 20 {
                    let sum = made[..20]
                        .chunks_exact(2)
                        .map(|p| u32::from(u16::from_be_bytes([p[0], p[1]])))
                        .sum::<u32>();
                    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
                }
            }
        }
        assert!(headers(&Record::NONE, 1).is_empty());
    }
}
