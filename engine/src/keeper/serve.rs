//! The keeper's side: takes interfaces when it is told to, and follows the host's addresses on them.

use std::fmt::Display;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::sync::Arc;

use patronus_io::afpacket::PacketTap;
use patronus_io::netlink::{AddressEvent, Addresses, Interface, RouteQuery, is_veth, receive_queues};
use patronus_io::signal;
use patronus_io::xdp::{Take, XdpProgram};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::{BEHIND, DESCRIPTION, FDS, How, INSTEAD, Kept, MISSING, PACKET, Place, REFUSED, TAKEN, Taken};
use crate::lans::{LanError, PortChoice};
use crate::plan::Lan;
use crate::sandbox;
use crate::wans::WanError;

/// Serves the engine at the other end of standard input, until it ends. An error is why not.
pub fn serve(kept: Kept) -> Result<(), String> {
    // A terminal's signals are meant for the engine, which ends us by its own end.
    let _held = signal::termination().map_err(|error| error.to_string())?;
    sandbox::drop_keeper_privileges().map_err(|error| error.to_string())?;
    let mut server = Server::new(kept).map_err(|error| error.to_string())?;
    sandbox::leave_standard_error().map_err(|error| error.to_string())?;
    sandbox::filter_keeper_system_calls().map_err(|error| error.to_string())?;
    match server.run() {
        // Nobody is there any more to hear it.
        Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// What stands on a LAN's interface.
struct Standing {
    ifindex: u32,
    program: Program,
    /// What it was told last.
    told: Told,
    /// That it could not be told has been said.
    behind: bool,
}

enum Program {
    Xdp(XdpProgram),
    Packets {
        tap: PacketTap,
        /// Those that receive: open here too, so that their filters can be changed.
        _sockets: Vec<Arc<OwnedFd>>,
    },
}

/// What a program has to know.
#[derive(PartialEq, Eq)]
struct Told {
    mac: [u8; 6],
    addresses: Vec<IpAddr>,
}

struct Server {
    engine: io::Stdin,
    kept: Kept,
    routes: RouteQuery,
    addresses: Addresses,
    /// By place.
    lans: Vec<Option<Standing>>,
    /// By place.
    links: Vec<Option<XdpProgram>>,
}

/// An interface that runs.
struct Ready {
    ifindex: u32,
    interface: Interface,
}

/// What became of a question.
enum Answer {
    Missing,
    Refused(String),
    Taken([u8; DESCRIPTION], Vec<OwnedFd>),
}

/// What stays here of a LAN, and what the engine gets.
type Parts = (Program, How, Vec<OwnedFd>);

impl Server {
    fn new(kept: Kept) -> io::Result<Server> {
        Ok(Server {
            engine: io::stdin(),
            routes: RouteQuery::new()?,
            addresses: Addresses::new()?,
            lans: kept.lans.iter().map(|_| None).collect(),
            links: kept.links.iter().map(|_| None).collect(),
            kept,
        })
    }

    fn run(&mut self) -> Result<(), Errno> {
        loop {
            let mut fds = [
                PollFd::new(&self.engine, PollFlags::IN),
                PollFd::from_borrowed_fd(self.addresses.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            let asked = !fds[0].revents().is_empty();
            // First: what is asked for may be newer than what was last heard.
            self.follow()?;
            if asked && !self.hear()? {
                return Ok(());
            }
        }
    }

    /// Does what the engine asks. False if there is no engine any more.
    fn hear(&mut self) -> Result<bool, Errno> {
        let mut question = [0; 2];
        match rustix::net::recv(&self.engine, &mut question, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(false),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
            Err(error) => return Err(error),
        }
        let Some(place) = Place::decode(question) else {
            return Ok(true);
        };
        let answer = match place {
            Place::Lan(at) | Place::LanByPackets(at) if usize::from(at) < self.lans.len() => {
                self.take_lan(place, at.into())?
            }
            Place::Link(at) if usize::from(at) < self.links.len() => self.take_link(at.into()),
            _ => return Ok(true),
        };
        match answer {
            Answer::Missing => self.say(MISSING, place, b"", &[])?,
            Answer::Refused(why) => self.say(REFUSED, place, why.as_bytes(), &[])?,
            Answer::Taken(description, fds) => {
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                self.say(TAKEN, place, &description, &fds)?;
            }
        }
        Ok(true)
    }

    fn take_lan(&mut self, place: Place, at: usize) -> Result<Answer, Errno> {
        // What stood there, if anything did, goes first.
        self.lans[at] = None;
        let config = self.kept.lans[at].clone();
        let name = &config.interface;
        let ready = match self.ready(name) {
            Ok(Some(ready)) => ready,
            Ok(None) => return Ok(Answer::Missing),
            Err(error) => return Ok(refused(LanError::System(name.clone(), "ask for it", error))),
        };
        let Some(mac) = ready.interface.mac else {
            return Ok(refused(LanError::NoAddress(name.clone())));
        };
        let told = Told {
            mac,
            addresses: self.own(ready.ifindex),
        };
        let choice = match (config.port, place) {
            (PortChoice::Any, Place::LanByPackets(_)) => PortChoice::AfPacket,
            (choice, _) => choice,
        };
        let opened = match choice {
            PortChoice::AfPacket => self.by_packets(name, &ready, &told),
            PortChoice::AfXdp => self.by_xdp(name, &ready, &told),
            PortChoice::Any => match self.by_xdp(name, &ready, &told) {
                Ok(opened) => Ok(opened),
                Err(why) => {
                    let opened = self.by_packets(name, &ready, &told);
                    if opened.is_ok() {
                        self.say(INSTEAD, place, why.to_string().as_bytes(), &[])?;
                    }
                    opened
                }
            },
        };
        let (program, how, fds) = match opened {
            Ok(opened) => opened,
            Err(why) => return Ok(refused(why)),
        };
        self.lans[at] = Some(Standing {
            ifindex: ready.ifindex,
            program,
            told,
            behind: false,
        });
        Ok(ready.taken(how, fds))
    }

    fn by_xdp(&self, name: &str, ready: &Ready, told: &Told) -> Result<Parts, LanError> {
        let system = |what| move |error| LanError::System(name.to_owned(), what, error);
        let queues = receive_queues(name).unwrap_or(ready.interface.queues) as usize;
        if queues != self.kept.workers {
            return Err(LanError::Queues(name.to_owned(), queues, self.kept.workers));
        }
        let program = XdpProgram::attach(ready.ifindex, queues as u32, &told.transit());
        let program = program.map_err(system("attach a program"))?;
        let link = program.link().try_clone_to_owned();
        let mut fds = vec![link.map_err(system("attach a program"))?];
        for queue in 0..queues as u32 {
            fds.push(program.socket(queue).map_err(system("open a queue"))?);
        }
        // A driver that does not say is none.
        let unfinished = is_veth(name).unwrap_or(false);
        let how = How::Xdp(program.mode(), unfinished);
        Ok((Program::Xdp(program), how, fds))
    }

    fn by_packets(&self, name: &str, ready: &Ready, told: &Told) -> Result<Parts, LanError> {
        let system = |what| move |error| LanError::System(name.to_owned(), what, error);
        let guard = "keep the host from what it brings";
        let tap = PacketTap::attach(ready.ifindex, self.kept.workers, &told.addresses);
        let mut tap = tap.map_err(system(guard))?;
        let link = tap.link().map(|link| link.try_clone_to_owned());
        let link = link.transpose().map_err(system(guard))?;
        let how = How::Packets(link.is_some());
        let mut fds: Vec<OwnedFd> = link.into_iter().collect();
        let mut _sockets = Vec::new();
        for _ in 0..self.kept.workers {
            let (receive, transmit) = tap.sockets().map_err(system("open a packet socket"))?;
            fds.push(receive.try_clone().map_err(system("open a packet socket"))?);
            fds.push(transmit);
            _sockets.push(receive);
        }
        Ok((Program::Packets { tap, _sockets }, how, fds))
    }

    /// Opens the queues of a link, a queue for each worker. Nothing arrives by them until the engine has set the names.
    fn take_link(&mut self, at: usize) -> Answer {
        self.links[at] = None;
        match self.open_link(at) {
            Ok(Some((program, answer))) => {
                self.links[at] = Some(program);
                answer
            }
            Ok(None) => Answer::Missing,
            Err(why) => refused(why),
        }
    }

    fn open_link(&self, at: usize) -> Result<Option<(XdpProgram, Answer)>, WanError> {
        let system = |what| move |error| WanError::System(what, error);
        let name = &self.kept.links[at];
        let Some(ready) = self.ready(name).map_err(system("ask for it"))? else {
            return Ok(None);
        };
        ready.interface.mac.ok_or(WanError::NoAddress)?;
        let queues = receive_queues(name).unwrap_or(ready.interface.queues) as usize;
        if queues != self.kept.workers {
            return Err(WanError::Queues(queues, self.kept.workers));
        }
        let attached = XdpProgram::attach_named(ready.ifindex, queues as u32);
        let (program, names) = attached.map_err(system("attach a program"))?;
        let mut fds = Vec::new();
        for shared in [program.link(), names.map()] {
            fds.push(shared.try_clone_to_owned().map_err(system("attach a program"))?);
        }
        for queue in 0..queues as u32 {
            fds.push(program.socket(queue).map_err(system("open a queue"))?);
        }
        let taken = ready.taken(How::Xdp(program.mode(), false), fds);
        Ok(Some((program, taken)))
    }

    /// An interface, if it is there and runs.
    fn ready(&self, name: &str) -> io::Result<Option<Ready>> {
        let Some(ifindex) = self.routes.running(name)? else {
            return Ok(None);
        };
        // One that is newer than what was heard is asked for again.
        let interface = self.addresses.interface(ifindex);
        Ok(interface.map(|interface| Ready { ifindex, interface }))
    }

    /// The host's addresses on an interface. Those on others are reached through the engine, by its policies.
    fn own(&self, ifindex: u32) -> Vec<IpAddr> {
        self.addresses.on(ifindex).map(|prefix| prefix.address).collect()
    }

    /// Hears of addresses and interfaces, and tells the programs.
    fn follow(&mut self) -> Result<(), Errno> {
        let mut events = Vec::new();
        let read = self.addresses.read(&mut events);
        for event in &events {
            if let AddressEvent::Gone(ifindex) = event {
                let stood_there = |standing: &mut Standing| standing.ifindex == *ifindex;
                self.lans
                    .iter_mut()
                    .for_each(|lan| drop(lan.take_if(stood_there)));
            }
        }
        for at in 0..self.lans.len() {
            let Some(standing) = &self.lans[at] else { continue };
            let interface = self.addresses.interface(standing.ifindex);
            let now = Told {
                mac: interface.and_then(|i| i.mac).unwrap_or(standing.told.mac),
                addresses: self.own(standing.ifindex),
            };
            let result = match &read {
                Ok(()) if now == standing.told => Ok(()),
                Ok(()) => self.tell(at, now),
                Err(error) => Err(io::Error::other(error.to_string())),
            };
            self.report(at, result)?;
        }
        Ok(())
    }

    fn tell(&mut self, at: usize, now: Told) -> io::Result<()> {
        let Some(standing) = &mut self.lans[at] else {
            return Ok(());
        };
        match &mut standing.program {
            Program::Xdp(program) => program.set(&now.transit())?,
            Program::Packets { tap, .. } => tap.set(&now.addresses)?,
        }
        standing.told = now;
        Ok(())
    }

    /// Says once that a program could not be told.
    fn report(&mut self, at: usize, result: io::Result<()>) -> Result<(), Errno> {
        let Some(standing) = &mut self.lans[at] else {
            return Ok(());
        };
        let before = std::mem::replace(&mut standing.behind, result.is_err());
        match result {
            Err(why) if !before => self.say(BEHIND, Place::Lan(at as u8), why.to_string().as_bytes(), &[]),
            _ => Ok(()),
        }
    }

    fn say(&self, kind: u8, place: Place, content: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let [port, at] = place.encode();
        let head = [kind, port, at];
        let content = &content[..content.len().min(PACKET - head.len())];
        let packet = [IoSlice::new(&head), IoSlice::new(content)];
        rustix::net::sendmsg(&self.engine, &packet, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl Ready {
    fn taken(&self, how: How, fds: Vec<OwnedFd>) -> Answer {
        let lan = Lan {
            mac: self.interface.mac,
            mtu: self.interface.mtu.min(u16::MAX.into()) as u16,
        };
        Answer::Taken(Taken::encode(self.ifindex, lan, how), fds)
    }
}

impl Told {
    fn transit(&self) -> Take {
        Take::Transit {
            mac: self.mac,
            addresses: self.addresses.clone(),
        }
    }
}

fn refused(why: impl Display) -> Answer {
    Answer::Refused(why.to_string())
}
