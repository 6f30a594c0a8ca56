//! What is told about a packet at one point of its way: a record of fixed size, with as many of the packet's bytes behind it as were asked for.
//!
//! Written by a worker into memory that it was given beforehand, completed by the slow path, read by whoever asked. Numbers are in the byte order
//! of the machine: both ends are on it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! bytes {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $number,)* }

        impl $name {
            /// The one that this byte stands for.
            pub fn of(byte: u8) -> Option<$name> {
                match byte {
                    $($number => Some($name::$variant),)*
                    _ => None,
                }
            }

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

bytes! {
    /// Where on its way a packet was seen.
    pub enum Point {
        /// Taken from a LAN port.
        LanRx = 0 => "lan-rx",
        /// The router said where it goes.
        Route = 1 => "route",
        /// It waits until it is known where its next hop is.
        Hold = 2 => "hold",
        /// It waits for a session.
        Stage = 3 => "stage",
        /// About to be sealed.
        Encap = 4 => "encap",
        /// Given to a WAN port.
        WanTx = 5 => "wan-tx",
        /// Taken from a WAN port.
        WanRx = 6 => "wan-rx",
        /// Opened.
        Decap = 7 => "decap",
        /// Given to a LAN port.
        LanTx = 8 => "lan-tx",
        /// Another worker took it over.
        TakeOver = 9 => "take-over",
        /// It is for the slow path: a handshake message.
        SlowPath = 10 => "slow-path",
        /// It goes no further.
        Drop = 11 => "drop",
        /// No packet: the trace or the capture has ended.
        End = 255 => "end",
    }
}

bytes! {
    /// What the filter says about a packet.
    pub enum Matched {
        /// It is not one of those after all.
        No = 0 => "no",
        /// That depends on whose it is, which nobody knows yet.
        Maybe = 1 => "maybe",
        /// It is one of those.
        Yes = 2 => "yes",
    }
}

bytes! {
    /// How the router has a packet leave.
    pub enum Exit {
        /// Nothing was said.
        None = 0 => "none",
        /// In a tunnel.
        Tunnel = 1 => "tunnel",
        /// Through a LAN port, to a next hop or the host.
        Lan = 2 => "lan",
        /// Through a LAN port, to its receiver itself.
        Neighbour = 3 => "neighbour",
        /// Not at all: nobody knows where its next hop is.
        Unreachable = 4 => "unreachable",
        /// Not at all: the route says so.
        Discard = 5 => "discard",
        /// Not at all: a policy says so.
        Policy = 6 => "policy",
        /// Not at all: there is no route.
        NoRoute = 7 => "no-route",
    }
}

bytes! {
    /// What the bytes of a packet are at a point.
    pub enum Form {
        /// An IP packet.
        Ip = 0 => "ip",
        /// An Ethernet frame.
        Ethernet = 1 => "ethernet",
        /// A WireGuard message, without the headers before it: who sends it to whom says the record.
        Message = 2 => "message",
    }
}

/// An IP address, and whether there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Address([u8; 16]);

impl Address {
    /// None.
    pub const NONE: Address = Address([0; 16]);

    /// The address; `None` for the unspecified one.
    pub fn get(self) -> Option<IpAddr> {
        let ip = Ipv6Addr::from(self.0).to_canonical();
        (!ip.is_unspecified()).then_some(ip)
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Address {
        match ip {
            IpAddr::V4(v4) => Address(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Address(v6.octets()),
        }
    }
}

impl Point {
    /// Whether a capture shows packets here. Elsewhere it is only told that they are meant.
    pub fn is_captured(self) -> bool {
        use Point::{Drop, LanRx, LanTx, WanRx, WanTx};
        matches!(self, LanRx | LanTx | WanRx | WanTx | Drop)
    }
}

/// In [`Record::peer`]: nobody's.
pub const NO_PEER: u32 = u32::MAX;

/// Bytes of a record.
pub const RECORD: usize = size_of::<Record>();

/// What is told about a packet at one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// When, in nanoseconds of `CLOCK_BOOTTIME`.
    pub time: u64,
    /// How many records found no room so far, of all workers. The slow path fills it in.
    pub lost: u64,
    /// The peer's public key, zero for none. The slow path fills it in.
    pub key: [u8; 32],
    /// The other end of the tunnel, as the outer headers say or will say.
    pub remote: Address,
    /// Our end, if it is known.
    pub local: Address,
    /// The inner packet's source.
    pub src: Address,
    /// The inner packet's destination.
    pub dst: Address,
    /// The frame that the packet is in. As long as it is, no other packet has the number.
    pub frame: u32,
    /// Bytes of the packet at this point.
    pub length: u32,
    /// Bytes of the packet that follow the record.
    pub captured: u32,
    /// The number of the session's peer, or lane; [`NO_PEER`] for none.
    pub peer: u32,
    /// The next-hop group that the packet goes to; 0 for none.
    pub group: u32,
    /// The policy that decided, from 1 on; 0 for none.
    pub policy: u32,
    /// UDP port of the other end.
    pub remote_port: u16,
    /// The worker.
    pub worker: u16,
    /// The LAN port, the link, or the other worker.
    pub place: u16,
    /// At [`Point::Drop`] the reason's number.
    pub reason: u16,
    /// The inner packet's source port, 0 for none.
    pub src_port: u16,
    /// The inner packet's destination port, 0 for none.
    pub dst_port: u16,
    /// A [`Point`].
    pub point: u8,
    /// A [`Matched`].
    pub matched: u8,
    /// An [`Exit`].
    pub exit: u8,
    /// The inner packet's protocol.
    pub protocol: u8,
    /// The outer DSCP and ECN.
    pub tos: u8,
    /// 1: it came from a WAN link.
    pub inbound: u8,
    /// Local link, remote link and number of the lane; zero for a base session. The slow path fills it in.
    pub lane: [u8; 3],
    /// A [`Form`].
    pub form: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(RECORD == 160);

impl Record {
    /// Nothing.
    pub const NONE: Record = Record {
        time: 0,
        lost: 0,
        key: [0; 32],
        remote: Address::NONE,
        local: Address::NONE,
        src: Address::NONE,
        dst: Address::NONE,
        frame: 0,
        length: 0,
        captured: 0,
        peer: NO_PEER,
        group: 0,
        policy: 0,
        remote_port: 0,
        worker: 0,
        place: 0,
        reason: 0,
        src_port: 0,
        dst_port: 0,
        point: Point::End as u8,
        matched: Matched::Yes as u8,
        exit: Exit::None as u8,
        protocol: 0,
        tos: 0,
        inbound: 0,
        lane: [0; 3],
        form: Form::Ip as u8,
        reserved: [0; 2],
    };

    /// The other end of the tunnel.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.remote.get()?, self.remote_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_what_it_was() {
        for text in ["10.1.2.3", "2001:db8::1", "255.255.255.255"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).get(), Some(ip));
        }
        assert_eq!(Address::NONE.get(), None);
        assert_eq!(Address::from(IpAddr::from([0, 0, 0, 0])).get(), None);
    }
}
