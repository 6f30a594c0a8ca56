//! Where an encapsulated packet came from or goes to: written by the UDP port on receive and by the encapsulation stage on
//! send, carried in the packet's metadata line.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

const FAMILY_NONE: u8 = 0;
const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;

/// The outer addresses of a packet: the other side's address and UDP port, our own address, and the outer DSCP and ECN byte.
///
/// An unspecified own address means "let the kernel choose".
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Outer {
    remote: [u8; 16],
    local: [u8; 16],
    ifindex: u32,
    port: u16,
    family: u8,
    tos: u8,
}

const _: () = assert!(size_of::<Outer>() == 40);

impl Outer {
    /// No address: what a fresh frame and a packet from inside the tunnel carry.
    pub const NONE: Outer = Outer {
        remote: [0; 16],
        local: [0; 16],
        ifindex: 0,
        port: 0,
        family: FAMILY_NONE,
        tos: 0,
    };

    /// The path to `remote`, from whatever address the kernel chooses. A scope id is kept as the interface index.
    pub fn new(remote: SocketAddr) -> Outer {
        let (family, ifindex) = match remote {
            SocketAddr::V4(_) => (FAMILY_V4, 0),
            SocketAddr::V6(v6) => (FAMILY_V6, v6.scope_id()),
        };
        Outer {
            remote: bytes(remote.ip()),
            ifindex,
            port: remote.port(),
            family,
            ..Outer::NONE
        }
    }

    /// The other side's address and UDP port. The scope id is set only where it means something: for a link-local
    /// IPv6 address.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self.ip(&self.remote)? {
            IpAddr::V4(ip) => Some(SocketAddr::new(ip.into(), self.port)),
            IpAddr::V6(ip) => {
                let scope = if ip.is_unicast_link_local() {
                    self.ifindex
                } else {
                    0
                };
                Some(SocketAddrV6::new(ip, self.port, 0, scope).into())
            }
        }
    }

    /// Whether the other side has this address.
    #[inline]
    pub fn is_to(&self, ip: IpAddr) -> bool {
        match (self.family, ip) {
            (FAMILY_V4, IpAddr::V4(ip)) => self.remote[..4] == ip.octets(),
            (FAMILY_V6, IpAddr::V6(ip)) => self.remote == ip.octets(),
            _ => false,
        }
    }

    /// Our own address: where the packet arrived, or the source to send from. `None` if it is not known.
    pub fn local(&self) -> Option<IpAddr> {
        self.ip(&self.local).filter(|ip| !ip.is_unspecified())
    }

    /// Sets our own address and the interface that the packet arrived on (0: not known). An address of another
    /// family than the remote's counts as `None`; the scope of a link-local remote is never lost to a 0.
    pub fn set_local(&mut self, local: Option<IpAddr>, ifindex: u32) {
        self.local = match local {
            Some(ip) if ip.is_ipv4() == (self.family == FAMILY_V4) && self.family != FAMILY_NONE => bytes(ip),
            _ => [0; 16],
        };
        if ifindex != 0 || !self.remote_is_link_local() {
            self.ifindex = ifindex;
        }
    }

    /// Forgets our own address. Where the remote was heard stays known.
    pub fn forget_source(&mut self) {
        self.set_local(None, self.ifindex);
    }

    /// Forgets our own address and the interface; a link-local remote keeps its scope.
    pub fn leave_link(&mut self) {
        self.set_local(None, 0);
    }

    /// Index of the interface that the packet arrived on, or the scope of a link-local remote; 0 if not known.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The outer IP header's DSCP and ECN byte (RFC 2474, RFC 3168).
    pub fn tos(&self) -> u8 {
        self.tos
    }

    /// Sets the outer IP header's DSCP and ECN byte.
    pub fn set_tos(&mut self, tos: u8) {
        self.tos = tos;
    }

    /// True if both go between the same addresses and UDP ports: everything but the DSCP and ECN byte is equal.
    #[inline]
    pub fn same_path(&self, other: &Outer) -> bool {
        Outer {
            tos: other.tos,
            ..*self
        } == *other
    }

    /// A quick hash of the remote address and UDP port, for small tables that may collide. It is not seeded: never let
    /// more than speed depend on it.
    #[inline]
    pub fn path_hash(&self) -> u32 {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let ip = u128::from_ne_bytes(self.remote);
        let low = (ip as u64 ^ u64::from(self.port)).wrapping_mul(ODD);
        let all = (low ^ (ip >> 64) as u64).wrapping_mul(ODD);
        (all >> 32) as u32
    }

    /// True if there is no remote address.
    #[inline]
    pub fn is_none(&self) -> bool {
        self.family == FAMILY_NONE
    }

    /// True if the remote address is an IPv6 address.
    pub fn is_ipv6(&self) -> bool {
        self.family == FAMILY_V6
    }

    fn remote_is_link_local(&self) -> bool {
        self.family == FAMILY_V6 && Ipv6Addr::from(self.remote).is_unicast_link_local()
    }

    fn ip(&self, address: &[u8; 16]) -> Option<IpAddr> {
        match self.family {
            FAMILY_V4 => {
                let [a, b, c, d, ..] = *address;
                Some(Ipv4Addr::new(a, b, c, d).into())
            }
            FAMILY_V6 => Some(Ipv6Addr::from(*address).into()),
            _ => None,
        }
    }
}

impl fmt::Debug for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outer")
            .field("remote", &self.remote())
            .field("local", &self.local())
            .field("ifindex", &self.ifindex)
            .field("tos", &self.tos)
            .finish()
    }
}

fn bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut all = [0; 16];
            all[..4].copy_from_slice(&ip.octets());
            all
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("test address")
    }

    #[test]
    fn remote_survives() {
        for text in ["192.0.2.1:51820", "[2001:db8::1]:1", "0.0.0.0:0", "[::]:65535"] {
            assert_eq!(Outer::new(addr(text)).remote(), Some(addr(text)));
        }
        assert_eq!(Outer::NONE.remote(), None);
        assert_eq!(Outer::NONE.local(), None);
        assert!(Outer::NONE.is_none() && !Outer::new(addr("192.0.2.1:1")).is_none());
    }

    #[test]
    fn scope_only_for_link_local() {
        let link_local = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, 7));
        let mut outer = Outer::new(link_local);
        assert_eq!(outer.remote(), Some(link_local));
        outer.set_local(None, 0);
        assert_eq!(
            outer.remote(),
            Some(link_local),
            "clearing the source must not lose the scope"
        );
        outer.set_local(None, 8);
        assert_eq!(outer.ifindex(), 8);

        let mut global = Outer::new(addr("[2001:db8::1]:9"));
        global.set_local(Some("2001:db8::2".parse().unwrap()), 3);
        assert_eq!(global.remote(), Some(addr("[2001:db8::1]:9")));
        assert_eq!(global.ifindex(), 3);
        global.set_local(None, 0);
        assert_eq!((global.ifindex(), global.local()), (0, None));
    }

    #[test]
    fn local_of_another_family_is_none() {
        let mut outer = Outer::new(addr("192.0.2.1:1"));
        outer.set_local(Some("2001:db8::2".parse().unwrap()), 0);
        assert_eq!(outer.local(), None);
        outer.set_local(Some("192.0.2.2".parse().unwrap()), 0);
        assert_eq!(outer.local(), Some("192.0.2.2".parse().unwrap()));
        let mut none = Outer::NONE;
        none.set_local(Some("192.0.2.2".parse().unwrap()), 0);
        assert_eq!(none, Outer::NONE);
    }

    #[test]
    fn same_path_ignores_only_tos() {
        let mut a = Outer::new(addr("192.0.2.1:1"));
        let b = a;
        a.set_tos(0xb8);
        assert!(a.same_path(&b) && b.same_path(&a) && a != b);
        assert!(!a.same_path(&Outer::new(addr("192.0.2.1:2"))));
        assert!(!a.same_path(&Outer::new(addr("192.0.2.2:1"))));
        assert!(
            !a.same_path(&Outer::new(addr("[c000:201::]:1"))),
            "same bytes, another family"
        );
        let mut other_source = b;
        other_source.set_local(Some("192.0.2.9".parse().unwrap()), 0);
        assert!(!a.same_path(&other_source));
        let mut other_interface = b;
        other_interface.set_local(None, 4);
        assert!(!a.same_path(&other_interface));
    }
}
