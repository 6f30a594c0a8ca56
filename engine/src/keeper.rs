//! The keeper: a process beside the engine that may still attach programs to interfaces and open sockets that take frames.
//!
//! After set-up the engine can do neither (`sandbox`), and interfaces come and go. So a process of the same program is started beforehand with the names of the
//! interfaces that stand in the configuration. The engine can tell it one thing: take this one, by its number in that list. It then puts the program there and
//! sends what a port is made of, as descriptors. As long as the interface is there it tells the program which addresses are the host's own. Whoever has taken the
//! engine over gets nothing by it that the engine did not have.
//!
//! Between the two is a socket of packets: two bytes from the engine, which port and its number; back one kind of packet each, see [`Said`]. The keeper ends when the
//! engine does.
//!
//! [`serve()`] is that process. [`Keeper`] is the engine's end: on the main thread at the start, on the slow-path thread afterwards, which never waits for it.

mod serve;

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;

use patronus_io::Port;
use patronus_io::afpacket::PacketPort;
use patronus_io::wan::{AnyQueue, QueuePlace};
use patronus_io::xdp::{Names, XdpMode, XdpPort};
use patronus_mem::{Arena, FrameCache};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};

use crate::beside;
use crate::engine::WORKERS_MAX;
use crate::lans::{EthernetConfig, PortChoice};
use crate::plan::Lan;
use crate::wans::{Chooser, QueueLink};

pub use serve::serve;

/// The option that makes a process of this program a keeper. Its value is the number of workers; what it keeps follows.
pub const OPTION: &str = "--interface-keeper";

/// Bytes of a packet at most.
const PACKET: usize = 4096;
/// Descriptors that come with one: a program's link, a map, and two sockets for each worker.
const FDS: usize = 2 + 2 * WORKERS_MAX;
/// Frames that a queue of AF_XDP may hold, in both directions.
pub const QUEUE_FRAMES: usize = 4096;
/// How long the start of the engine waits for an interface.
const START: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// What an interface is for, and its place among those.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A LAN.
    Lan(u8),
    /// A LAN, by packet sockets although the choice was left open.
    LanByPackets(u8),
    /// A link by AF_XDP.
    Link(u8),
}

impl Place {
    fn encode(self) -> [u8; 2] {
        match self {
            Place::Lan(at) => [b'L', at],
            Place::LanByPackets(at) => [b'P', at],
            Place::Link(at) => [b'W', at],
        }
    }

    fn decode([kind, at]: [u8; 2]) -> Option<Place> {
        match kind {
            b'L' => Some(Place::Lan(at)),
            b'P' => Some(Place::LanByPackets(at)),
            b'W' => Some(Place::Link(at)),
            _ => None,
        }
    }
}

/// What the keeper keeps: the LANs, and the links by AF_XDP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Each gets a port of every interface.
    pub workers: usize,
    /// By place.
    pub lans: Vec<EthernetConfig>,
    /// By place.
    pub links: Vec<String>,
}

impl Kept {
    /// How many queues AF_XDP may have: of every interface whose frames may come by it.
    pub fn queues(&self) -> usize {
        let lans = self.lans.iter();
        let lans = lans.filter(|lan| lan.port != PortChoice::AfPacket).count();
        self.workers * (lans + self.links.len())
    }

    /// As arguments of a process.
    fn arguments(&self) -> Vec<OsString> {
        let mut all: Vec<OsString> = vec![OPTION.into(), self.workers.to_string().into()];
        for lan in &self.lans {
            all.push(format!("{}:{}", lan.port.name(), lan.interface).into());
        }
        all.extend(self.links.iter().map(|link| format!("link:{link}").into()));
        all
    }

    /// The reverse, of what follows the option. `None` if it is not what [`arguments`](Self::arguments) makes.
    pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Kept> {
        let workers = arguments.next()?.to_str()?.parse().ok()?;
        let (mut lans, mut links) = (Vec::new(), Vec::new());
        for argument in arguments {
            let argument = argument.into_string().ok()?;
            let (kind, interface) = argument.split_once(':')?;
            let interface = interface.to_owned();
            match PortChoice::by_name(kind) {
                Some(port) => lans.push(EthernetConfig { interface, port }),
                None if kind == "link" => links.push(interface),
                None => return None,
            }
        }
        (1..=WORKERS_MAX)
            .contains(&workers)
            .then_some(Kept { workers, lans, links })
    }
}

/// How the frames of an interface come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// By AF_XDP, whose program runs there; with checksums that are not there yet.
    Xdp(XdpMode, bool),
    /// By packet sockets; with a program that keeps them from the host.
    Packets(bool),
}

/// An interface that was taken.
#[derive(Debug)]
pub struct Taken {
    /// Its number.
    pub ifindex: u32,
    /// What routes have to know of it.
    pub lan: Lan,
    how: How,
    fds: Vec<OwnedFd>,
}

/// What keeps an interface's frames from the host, or gives a link its datagrams. They are the host's again when every process has dropped it.
pub struct Guard {
    _link: Option<OwnedFd>,
}

/// A port of an interface for each worker.
pub type LanPorts = Vec<Box<dyn Port + Send>>;

impl Taken {
    /// Where the program of AF_XDP runs, if that is how its frames come.
    pub fn mode(&self) -> Option<XdpMode> {
        match self.how {
            How::Xdp(mode, _) => Some(mode),
            How::Packets(_) => None,
        }
    }

    /// The ports of a LAN, with packets in this arena.
    pub fn into_lan(self, arena: &'static Arena) -> io::Result<(Guard, LanPorts)> {
        let mut fds = self.fds.into_iter();
        let mut ports: LanPorts = Vec::new();
        let link = match self.how {
            How::Xdp(..) | How::Packets(true) => fds.next(),
            How::Packets(false) => None,
        };
        match self.how {
            How::Xdp(_, unfinished) => {
                let mut frames = FrameCache::new(arena);
                for (socket, queue) in fds.zip(0..) {
                    let port = XdpPort::over(socket, self.ifindex, queue, &mut frames)?;
                    ports.push(Box::new(port.with_unfinished_checksums(unfinished)));
                }
            }
            How::Packets(_) => {
                while let (Some(receive), Some(transmit)) = (fds.next(), fds.next()) {
                    ports.push(Box::new(PacketPort::over(receive, transmit)));
                }
            }
        }
        Ok((Guard { _link: link }, ports))
    }

    /// The queues of a link, with packets in this arena.
    pub fn into_link(self, arena: &'static Arena) -> io::Result<QueueLink> {
        let mut fds = self.fds.into_iter();
        let (Some(link), Some(names)) = (fds.next(), fds.next()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let mut frames = FrameCache::new(arena);
        let queues = fds.zip(0..).map(|(socket, queue)| {
            let port = XdpPort::over(socket, self.ifindex, queue, &mut frames)?;
            Ok(QueuePlace::new(Box::new(port) as AnyQueue))
        });
        Ok(QueueLink {
            ifindex: self.ifindex,
            chooser: Chooser::Program(Names::over(names)?),
            queues: queues.collect::<io::Result<_>>()?,
            guard: Some(Guard { _link: Some(link) }),
        })
    }
}

/// What the keeper says.
#[derive(Debug)]
pub enum Said {
    /// The interface was taken.
    Taken(Place, Taken),
    /// It is not there, or does not run.
    Missing(Place),
    /// It cannot be taken, for this reason.
    Refused(Place, String),
    /// It was taken in another way than first tried, for this reason.
    Instead(Place, String),
    /// What the host's own addresses are cannot be said to its program, for this reason.
    Behind(Place, String),
    /// The keeper has ended.
    Ended,
}

const TAKEN: u8 = b'T';
const MISSING: u8 = b'M';
const REFUSED: u8 = b'R';
const INSTEAD: u8 = b'I';
const BEHIND: u8 = b'B';

/// The engine's end.
pub struct Keeper {
    socket: OwnedFd,
    has_ended: bool,
}

impl Keeper {
    /// Starts the process. It takes the rights of this one, so this is called before they are given up.
    pub fn start(kept: &Kept) -> io::Result<Keeper> {
        Ok(Keeper {
            socket: beside::start(kept.arguments())?,
            has_ended: false,
        })
    }

    /// Asks for an interface. What comes of it is [taken](Keeper::take) later; nothing may, if too much is asked.
    pub fn ask(&self, place: Place) {
        // What has become of the keeper is found when its answer is read.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = rustix::net::send(&self.socket, &place.encode(), flags);
    }

    /// What it has said, without waiting.
    pub fn take(&mut self) -> Option<Said> {
        if self.has_ended {
            return None;
        }
        match receive(self.socket.as_fd()) {
            Ok(Some(said)) => Some(said),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Ok(None) | Err(_) => {
                self.has_ended = true;
                Some(Said::Ended)
            }
        }
    }

    /// What it says next, for the start of the engine, which can do nothing meanwhile.
    pub fn wait(&mut self) -> Option<Said> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        // Interrupted or too late: there is nothing then.
        let _ = poll(&mut fds, Some(&START));
        self.take()
    }

    /// Readable when it has said something; none once it has ended.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.has_ended).then_some(self.socket.as_fd())
    }
}

/// The next packet; `None` at the end.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<Said>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut packet = [0; PACKET];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut ancillary, flags)?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = rights.flatten().collect();
    Ok(understand(&packet[..received.bytes], fds))
}

fn understand(packet: &[u8], fds: Vec<OwnedFd>) -> Option<Said> {
    let (&[kind, port, at], content) = packet.split_first_chunk()?;
    let place = Place::decode([port, at])?;
    let text = || String::from_utf8_lossy(content).into_owned();
    match kind {
        TAKEN => Some(Said::Taken(place, Taken::decode(content, fds)?)),
        MISSING => Some(Said::Missing(place)),
        REFUSED => Some(Said::Refused(place, text())),
        INSTEAD => Some(Said::Instead(place, text())),
        BEHIND => Some(Said::Behind(place, text())),
        _ => None,
    }
}

/// Of an interface that was taken: its number, how, what more there is to that, MTU, link address.
const DESCRIPTION: usize = 4 + 1 + 1 + 2 + 6;

impl Taken {
    fn encode(ifindex: u32, lan: Lan, how: How) -> [u8; DESCRIPTION] {
        let (how, more) = match how {
            How::Xdp(XdpMode::Native, unfinished) => (b'N', unfinished),
            How::Xdp(XdpMode::Generic, unfinished) => (b'G', unfinished),
            How::Packets(guarded) => (b'P', guarded),
        };
        let mut bytes = [0; DESCRIPTION];
        bytes[..4].copy_from_slice(&ifindex.to_ne_bytes());
        bytes[4..6].copy_from_slice(&[how, more.into()]);
        bytes[6..8].copy_from_slice(&lan.mtu.to_ne_bytes());
        bytes[8..].copy_from_slice(&lan.mac.unwrap_or_default());
        bytes
    }

    fn decode(bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Taken> {
        let bytes: &[u8; DESCRIPTION] = bytes.try_into().ok()?;
        let (ifindex, rest) = bytes.split_first_chunk()?;
        let (&[how, more], rest) = rest.split_first_chunk()?;
        let (mtu, mac) = rest.split_first_chunk()?;
        Some(Taken {
            ifindex: u32::from_ne_bytes(*ifindex),
            lan: Lan {
                mac: Some(mac.try_into().ok()?),
                mtu: u16::from_ne_bytes(*mtu),
            },
            how: match how {
                b'N' => How::Xdp(XdpMode::Native, more != 0),
                b'G' => How::Xdp(XdpMode::Generic, more != 0),
                b'P' => How::Packets(more != 0),
                _ => return None,
            },
            fds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept() -> impl Strategy<Value = Kept> {
        let ports = vec![PortChoice::Any, PortChoice::AfXdp, PortChoice::AfPacket];
        let lan = (prop::sample::select(ports), "[a-z:.0-9]{1,15}");
        let lan = lan.prop_map(|(port, interface)| EthernetConfig { interface, port });
        let lans = prop::collection::vec(lan, 0..5);
        let links = prop::collection::vec("[a-z:.0-9]{1,15}", 0..5);
        (1..=WORKERS_MAX, lans, links).prop_map(|(workers, lans, links)| Kept { workers, lans, links })
    }

    proptest! {
        #[test]
        fn what_is_kept_passes_through_the_command_line(kept in kept()) {
            let mut arguments = kept.arguments().into_iter();
            prop_assert_eq!(arguments.next(), Some(OsString::from(OPTION)));
            prop_assert_eq!(Kept::parse(arguments), Some(kept));
        }

        #[test]
        fn what_is_said_is_understood_or_is_the_end(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = understand(&bytes, Vec::new());
        }
    }

    #[test]
    fn every_interface_that_af_xdp_may_have_counts() {
        let lan = |port| EthernetConfig {
            interface: "a".to_owned(),
            port,
        };
        let mut kept = Kept {
            workers: 3,
            lans: vec![lan(PortChoice::AfPacket)],
            links: Vec::new(),
        };
        assert_eq!(kept.queues(), 0);
        kept.lans.extend([lan(PortChoice::Any), lan(PortChoice::AfXdp)]);
        kept.links.push("b".to_owned());
        assert_eq!(kept.queues(), 9);
    }

    #[test]
    fn an_interface_is_described() {
        let lan = Lan {
            mac: Some([2, 3, 4, 5, 6, 7]),
            mtu: 9000,
        };
        for how in [
            How::Xdp(XdpMode::Native, true),
            How::Xdp(XdpMode::Generic, false),
            How::Packets(true),
            How::Packets(false),
        ] {
            let taken = Taken::decode(&Taken::encode(77, lan, how), Vec::new()).unwrap();
            assert_eq!((taken.ifindex, taken.lan, taken.how), (77, lan, how));
        }
    }
}
