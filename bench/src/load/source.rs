//! Packets as a router forwards them: whole IP packets put into the tunnel's interface, without a local UDP behind them, whose cost
//! would be paid by the cores that the daemons share.

use arrayvec::ArrayVec;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use patronus_netns::{Result, Site};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

/// Most packets of one system call.
pub const BATCH: usize = 64;
/// Bytes of IPv4 and UDP header.
pub const HEADERS: usize = IP + 8;
/// Longest packet that is sent, bytes.
const PACKET_MAX: usize = 1400;

const ETHERNET: usize = 14;
const IP: usize = 20;
/// Source port of flow 0; those of the others follow.
const FIRST_PORT: u16 = 40_000;

/// A packet to be sent.
pub struct Packet {
    /// The whole IP packet, bytes.
    pub length: usize,
    /// Number of its flow.
    pub flow: u16,
    /// The first bytes of its payload; the rest is zero.
    pub head: [u8; 12],
}

/// A socket on one site's interface and the headers of packets to the other site.
pub struct Source {
    socket: OwnedFd,
    /// What stands before the IP header: nothing, or an Ethernet header where there is no tunnel.
    link: Vec<u8>,
    from: Ipv4Addr,
    to: (Ipv4Addr, u16),
    /// Written anew for each batch, but for the zeros at the end of each.
    buffers: Vec<[u8; ETHERNET + PACKET_MAX]>,
}

impl Source {
    /// A source at `near` of packets to a UDP port of `far`.
    pub fn new(near: &Site, far: &Site, port: u16) -> Result<Source> {
        let name = near.interface.as_str();
        let socket = near.namespace.run(|| {
            let index = if_nametoindex(name).map_err(std::io::Error::from)?;
            patronus_io::packet::sender(index)
        })??;
        let (here, there) = (hardware_address(near)?, hardware_address(far)?);
        let link = match (here, there) {
            (Some(here), Some(there)) => [&there[..], &here, &[0x08, 0x00]].concat(),
            _ => Vec::new(),
        };
        Ok(Source {
            socket,
            link,
            from: near.inner_v4,
            to: (far.inner_v4, port),
            buffers: vec![[0; ETHERNET + PACKET_MAX]; BATCH],
        })
    }

    /// Sends at most [`BATCH`] packets. Gives how many the kernel took.
    pub fn send(&mut self, packets: impl Iterator<Item = Packet>) -> Result<u64> {
        let mut lengths = ArrayVec::<usize, BATCH>::new();
        let mut buffers = std::mem::take(&mut self.buffers);
        for (buffer, packet) in buffers.iter_mut().zip(packets) {
            let (link, bytes) = buffer.split_at_mut(self.link.len());
            link.copy_from_slice(&self.link);
            self.write(&mut bytes[..packet.length], &packet);
            lengths.push(self.link.len() + packet.length);
        }
        let sent = self.send_all(&buffers, &lengths);
        self.buffers = buffers;
        sent
    }

    fn send_all(&self, buffers: &[[u8; ETHERNET + PACKET_MAX]], lengths: &[usize]) -> Result<u64> {
        let slices: ArrayVec<[IoSlice<'_>; 1], BATCH> = buffers
            .iter()
            .zip(lengths)
            .map(|(buffer, length)| [IoSlice::new(&buffer[..*length])])
            .collect();
        let mut controls: ArrayVec<SendAncillaryBuffer<'_, '_, '_>, BATCH> =
            slices.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: ArrayVec<MMsgHdr<'_>, BATCH> = slices
            .iter()
            .zip(&mut controls)
            .map(|(slice, control)| MMsgHdr::new(slice, control))
            .collect();
        match sendmmsg(self.socket.as_fd(), &mut messages, SendFlags::empty()) {
            Ok(done) => Ok(done as u64),
            Err(rustix::io::Errno::INTR) => Ok(0),
            // No room in a queue: these packets are lost, as those that the queue drops without a word.
            Err(rustix::io::Errno::NOBUFS) => Ok(lengths.len() as u64),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes an IPv4 and UDP packet over zeros or over another one.
    fn write(&self, bytes: &mut [u8], packet: &Packet) {
        let length = packet.length as u16;
        let (ip, udp) = bytes.split_at_mut(IP);
        ip.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[12..16].copy_from_slice(&self.from.octets());
        ip[16..20].copy_from_slice(&self.to.0.octets());
        let ip_sum = checksum(&[ip]);
        ip[10..12].copy_from_slice(&ip_sum);

        let udp_length = (length - IP as u16).to_be_bytes();
        udp[..2].copy_from_slice(&(FIRST_PORT + packet.flow).to_be_bytes());
        udp[2..4].copy_from_slice(&self.to.1.to_be_bytes());
        udp[4..6].copy_from_slice(&udp_length);
        udp[6..8].fill(0);
        udp[8..20].copy_from_slice(&packet.head);
        let pseudo = [0, 17, udp_length[0], udp_length[1]];
        let sum = checksum(&[&ip[12..20], &pseudo, &udp[..20]]);
        udp[6..8].copy_from_slice(&sum);
    }
}

/// The Ethernet address of the site's interface; a TUN has none.
fn hardware_address(site: &Site) -> Result<Option<[u8; 6]>> {
    let found = site.namespace.run(|| {
        let mut addresses = getifaddrs()?;
        let own = addresses.find_map(|one| {
            let of_interface = one.interface_name == site.interface;
            one.address.filter(|_| of_interface)?.as_link_addr()?.addr()
        });
        Ok::<_, nix::Error>(own)
    })?;
    Ok(found.map_err(std::io::Error::from)?)
}

/// The Internet checksum (RFC 1071) of parts of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    match !(folded as u16) {
        // Zero means "none" in UDP; its other form is as good.
        0 => [0xff, 0xff],
        sum => sum.to_be_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_rfc_1071() {
        assert_eq!(
            checksum(&[&[0, 1, 0xf2, 3], &[0xf4, 0xf5, 0xf6, 0xf7]]),
            [0x22, 0x0d]
        );
        assert_eq!(checksum(&[&[0xff, 0xff]]), [0xff, 0xff]);
    }
}
