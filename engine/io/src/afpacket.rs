//! AF_PACKET: an Ethernet interface through packet sockets, where AF_XDP cannot be had (packet(7)).
//!
//! [`PacketTap`] decides which frames of an interface are ours and belongs to whoever owns the configuration; [`PacketPort`] is one worker's
//! share of them. A packet socket sees copies, so the tap also keeps the host from handling the same frames: a program at the interface's
//! ingress, behind the sockets, drops exactly what they take. Before Linux 6.6 there is none, and the tap only works where the host does not
//! forward. Both the sockets and the program go with the process; the host does with the frames then what it does without us.
//!
//! Several workers: the kernel spreads flows over the sockets by a hash of addresses and UDP or TCP ports that is the same for both
//! directions.

mod filter;
mod port;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use crate::bpf::{self, Kind};
use crate::{packet, sys};
pub use port::PacketPort;

/// Addresses that a tap names at most.
pub const ADDRESSES_MAX: usize = 64;

/// Ports that share the frames of an interface at most.
pub const PORTS_MAX: usize = 64;

/// Bytes of frames that may wait to be received, as the kernel counts them, and to leave.
const BUFFER: libc::c_int = 8 << 20;

/// Flows are spread by their hash, under a number that no other group has.
const FANOUT: libc::c_int =
    ((libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID) << 16) as libc::c_int;

/// What keeps the host from forwarding or answering what the engine has taken.
enum Guard {
    /// A program that drops it.
    Program(OwnedFd),
    /// Only that it forwards nothing.
    NotForwarding,
}

/// An interface whose transit frames the engine takes: IP packets to other hosts, in frames to us. What is for the host itself stays with the
/// host: its own addresses, link-local, multicast and broadcast ones, everything that is not IP, and VLANs.
pub struct PacketTap {
    ifindex: u32,
    ports: usize,
    guard: Guard,
    addresses: Vec<IpAddr>,
    /// The ports' sockets, to change their filters. With its port a socket leaves the group.
    sockets: Vec<Weak<OwnedFd>>,
    /// The number of the sockets' group, once there is one.
    group: Option<libc::c_int>,
}

impl PacketTap {
    /// Takes transit frames from the host from now on, for up to `ports` ports; until there is one, nobody gets them. `addresses` are all the
    /// host's own. Needs CAP_NET_ADMIN, CAP_BPF and, for the ports, CAP_NET_RAW.
    ///
    /// Where the kernel has no programs at the ingress (before Linux 6.6, or without CAP_BPF) this fails if the host forwards what comes
    /// in by the interface: it would do so beside the engine, past its policies.
    pub fn attach(ifindex: u32, ports: usize, addresses: &[IpAddr]) -> io::Result<PacketTap> {
        if !(1..=PORTS_MAX).contains(&ports) {
            let why = format!("{ports} ports on an interface: 1 to {PORTS_MAX} are possible");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        check(addresses)?;
        let program = bpf::load(Kind::Ingress, &filter::drops(addresses));
        let guard = match program.and_then(|program| bpf::attach_ingress(program.as_fd(), ifindex)) {
            Ok(link) => Guard::Program(link),
            Err(error) => {
                refuse_forwarding(ifindex, &error)?;
                Guard::NotForwarding
            }
        };
        Ok(PacketTap {
            ifindex,
            ports,
            guard,
            addresses: addresses.to_vec(),
            sockets: Vec::with_capacity(ports),
            group: None,
        })
    }

    /// The host's own addresses are these from now on.
    pub fn set(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        check(addresses)?;
        // The host first: in between, a frame may be lost, but is never handled twice.
        if let Guard::Program(link) = &self.guard {
            let program = bpf::load(Kind::Ingress, &filter::drops(addresses))?;
            bpf::replace(link.as_fd(), program.as_fd())?;
        }
        self.addresses = addresses.to_vec();
        let filter = filter::takes(addresses);
        self.sockets
            .iter()
            .filter_map(Weak::upgrade)
            .try_for_each(|socket| set_filter(socket.as_fd(), &filter))
    }

    /// Whether a program keeps the frames from the host. If not, it was found not to forward, and has to stay so.
    pub fn is_guarded(&self) -> bool {
        matches!(self.guard, Guard::Program(_))
    }

    /// The program's attachment, if there is one: it stays as long as anybody has this open.
    pub fn link(&self) -> Option<BorrowedFd<'_>> {
        match &self.guard {
            Guard::Program(link) => Some(link.as_fd()),
            Guard::NotForwarding => None,
        }
    }

    /// One more port. With several, the interface has to be up.
    pub fn port(&mut self) -> io::Result<PacketPort> {
        let (receive, transmit) = self.sockets()?;
        Ok(PacketPort::new(receive, transmit))
    }

    /// The two sockets of one more port, to receive and to send by, for [`PacketPort::over`] in another process. The first one is the port's only as long as somebody
    /// here has it: [`set`](PacketTap::set) changes what it takes.
    pub fn sockets(&mut self) -> io::Result<(Arc<OwnedFd>, OwnedFd)> {
        self.sockets.retain(|socket| socket.strong_count() > 0);
        if self.sockets.len() == self.ports {
            let why = format!(
                "there are {} ports on the interface already, as many as planned",
                self.ports
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let receive = Arc::new(self.receiver()?);
        let transmit = packet::sender(self.ifindex)?;
        force_buffer(transmit.as_fd(), libc::SO_SNDBUFFORCE);
        self.sockets.push(Arc::downgrade(&receive));
        Ok((receive, transmit))
    }

    fn receiver(&mut self) -> io::Result<OwnedFd> {
        let socket = packet::socket()?;
        let fd = socket.as_fd();
        // Nothing yet: before it is in the group, a socket would get every worker's frames.
        set_filter(fd, &filter::takes_nothing())?;
        let option = |name, value| sys::set_option(fd, libc::SOL_PACKET, name, value);
        // The header says what the kernel left undone: checksums, and the cutting of super-packets.
        option(libc::PACKET_VNET_HDR, 1)?;
        // Only saves work: what the filter takes came in.
        let _ = option(libc::PACKET_IGNORE_OUTGOING, 1);
        force_buffer(fd, libc::SO_RCVBUFFORCE);
        packet::bind(fd, self.ifindex, libc::ETH_P_ALL as u16)?;
        if self.ports > 1 {
            let group = self.group.unwrap_or(FANOUT);
            option(libc::PACKET_FANOUT, group)?;
            if self.group.is_none() {
                // In the lower half is the number that the kernel chose, in the upper one the way of spreading.
                self.group = Some(sys::get_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT)?);
            }
        }
        set_filter(fd, &filter::takes(&self.addresses))?;
        Ok(socket)
    }
}

/// Larger than the system's limit if we may, which only makes bursts smaller if not.
fn force_buffer(socket: BorrowedFd<'_>, option: libc::c_int) {
    let _ = sys::set_option(socket, libc::SOL_SOCKET, option, BUFFER);
}

fn check(addresses: &[IpAddr]) -> io::Result<()> {
    if addresses.len() <= ADDRESSES_MAX {
        return Ok(());
    }
    let why = format!(
        "{} addresses are the host's own, at most {ADDRESSES_MAX} are possible",
        addresses.len()
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

fn set_filter(socket: BorrowedFd<'_>, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel only reads the program and the instructions that it points to, which outlive the call.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Without a program at the ingress: an error if the host forwards, which says why there is none.
fn refuse_forwarding(ifindex: u32, missing: &io::Error) -> io::Result<()> {
    let name = rustix::net::netdevice::index_to_name(packet::socket()?, ifindex)?;
    let settings = [
        format!("net/ipv4/conf/{name}/forwarding"),
        "net/ipv6/conf/all/forwarding".to_owned(),
        format!("net/ipv6/conf/{name}/force_forwarding"),
    ];
    for setting in settings {
        let value = std::fs::read_to_string(format!("/proc/sys/{setting}"));
        // A setting that is not there forwards nothing.
        if value.is_ok_and(|value| value.trim() != "0") {
            let key = setting.replace('/', ".");
            return Err(io::Error::new(
                missing.kind(),
                format!(
                    "the host would forward what the engine forwards on {name}: no program can be attached to its ingress \
                     ({missing}), and {key} is not 0; set it to 0, or use Linux 6.6 or later"
                ),
            ));
        }
    }
    Ok(())
}
