//! Ethernet LANs: interfaces whose frames the workers take, by AF_XDP past the kernel's network stack or else by packet sockets.
//!
//! Made by the main thread at the start, while that is still allowed; the ports go to the workers, and what stands on the interfaces to the
//! slow path, which keeps it there as long as the engine runs.

use std::fmt;
use std::io;
use std::net::IpAddr;

use patronus_io::Port;
use patronus_io::afpacket::PacketTap;
use patronus_io::netlink::{Addresses, Interface, RouteQuery, is_veth, receive_queues};
use patronus_io::xdp::{Take, XdpMode, XdpProgram};
use patronus_mem::{Arena, FrameCache};

use crate::log::Log;
use crate::plan::Lan;

/// How the frames of an interface are taken and given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortChoice {
    /// By AF_XDP where that can be had, else by packet sockets.
    Any,
    /// By AF_XDP.
    AfXdp,
    /// By packet sockets.
    AfPacket,
}

/// An interface that is to be a LAN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EthernetConfig {
    /// Its name.
    pub interface: String,
    /// How its frames are taken and given.
    pub port: PortChoice,
}

/// What keeps an interface's frames from the host. They are the host's again when this is dropped.
pub enum Guard {
    /// A program that hands them to AF_XDP sockets.
    Xdp(XdpProgram),
    /// A program behind packet sockets.
    Packet(PacketTap),
}

/// An interface, and a port of it for each worker.
pub struct EthernetLan {
    /// Its name.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
    /// What stands on the interface.
    pub guard: Guard,
    /// By worker.
    pub ports: Vec<Box<dyn Port + Send>>,
    /// What routes have to know of it.
    pub lan: Lan,
}

/// Why an interface cannot be a LAN.
#[derive(Debug)]
pub enum LanError {
    /// There is none, or it is down.
    NotRunning(String),
    /// It has so many queues, which each want a worker, and there are so many workers.
    Queues(String, usize, usize),
    /// It has no Ethernet address.
    NoAddress(String),
    /// The system refused this.
    System(String, &'static str, io::Error),
}

impl fmt::Display for LanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LanError::NotRunning(name) => write!(
                f,
                "LAN interface {name} does not run: there is no such interface, or it is down or has no carrier"
            ),
            LanError::Queues(name, queues, workers) => write!(
                f,
                "LAN interface {name} has {queues} receive queues and there are {workers} workers: for AF_XDP each needs one of its own; \
                 `ethtool -L {name} combined {workers}`, or `workers = {queues}` in [engine], or `port = \"af_packet\"`"
            ),
            LanError::NoAddress(name) => write!(f, "LAN interface {name} is no Ethernet"),
            LanError::System(name, what, error) => write!(f, "LAN interface {name}: cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for LanError {}

/// What it takes to open LANs.
pub struct Opener<'a> {
    /// Each gets a port.
    pub workers: usize,
    /// To ask for interfaces.
    pub routes: &'a RouteQuery,
    /// The host's own addresses, which stay the host's.
    pub addresses: &'a Addresses,
    /// Where frames are.
    pub arena: &'static Arena,
    /// Where it is said which way an interface was taken, if that was left open.
    pub log: &'a Log,
}

/// Says which AF_XDP an interface got: a driver that cannot run the program costs the host a packet buffer for every frame, which somebody who
/// chose the interface for speed has to know.
pub fn say_how(log: &Log, what: &str, name: &str, mode: XdpMode, queues: usize) {
    let said = format_args!(
        "{what} {name} is used through AF_XDP: its program runs {mode}, the kernel copies packets (copy mode), receive queues: {queues}"
    );
    match mode {
        XdpMode::Native => log.verbose(said),
        XdpMode::Generic => log.notice(said),
    }
}

impl Opener<'_> {
    /// Takes over what an interface brings for other hosts. What is for the host's own addresses stays the host's.
    pub fn open(&self, config: &EthernetConfig) -> Result<EthernetLan, LanError> {
        let name = &config.interface;
        let system = |what| move |error| LanError::System(name.clone(), what, error);
        let running = self.routes.running(name).map_err(system("ask for it"))?;
        let ifindex = running.ok_or_else(|| LanError::NotRunning(name.clone()))?;
        let interface = self.addresses.interface(ifindex);
        let mac = interface.and_then(|interface| interface.mac);
        let (Some(interface), Some(mac)) = (interface, mac) else {
            return Err(LanError::NoAddress(name.clone()));
        };
        let (guard, ports) = match config.port {
            PortChoice::AfXdp => self.xdp(name, ifindex, &interface, mac)?,
            PortChoice::AfPacket => self.packet(name, ifindex)?,
            PortChoice::Any => match self.xdp(name, ifindex, &interface, mac) {
                Ok(opened) => opened,
                Err(why) => {
                    let opened = self.packet(name, ifindex)?;
                    self.log.notice(format_args!(
                        "LAN {name} is used through packet sockets (af_packet), because AF_XDP cannot be had: {why}"
                    ));
                    opened
                }
            },
        };
        Ok(EthernetLan {
            name: name.clone(),
            ifindex,
            guard,
            ports,
            lan: Lan {
                mac: Some(mac),
                mtu: interface.mtu.min(u16::MAX.into()) as u16,
            },
        })
    }

    fn xdp(
        &self,
        name: &str,
        ifindex: u32,
        interface: &Interface,
        mac: [u8; 6],
    ) -> Result<(Guard, Vec<Box<dyn Port + Send>>), LanError> {
        let system = |what| move |error| LanError::System(name.to_owned(), what, error);
        let queues = receive_queues(name).unwrap_or(interface.queues) as usize;
        if queues != self.workers {
            return Err(LanError::Queues(name.to_owned(), queues, self.workers));
        }
        let take = Take::Transit {
            mac,
            addresses: self.own(ifindex),
        };
        let program =
            XdpProgram::attach(ifindex, queues as u32, &take).map_err(system("attach a program"))?;
        // A driver that does not say is none.
        let unfinished = is_veth(name).unwrap_or(false);
        let mut frames = FrameCache::new(self.arena);
        let mut ports: Vec<Box<dyn Port + Send>> = Vec::new();
        for queue in 0..queues as u32 {
            let port = program.port(queue, &mut frames).map_err(system("open a queue"))?;
            ports.push(Box::new(port.with_unfinished_checksums(unfinished)));
        }
        say_how(self.log, "LAN", name, program.mode(), ports.len());
        Ok((Guard::Xdp(program), ports))
    }

    fn packet(&self, name: &str, ifindex: u32) -> Result<(Guard, Vec<Box<dyn Port + Send>>), LanError> {
        let system = |what| move |error| LanError::System(name.to_owned(), what, error);
        let tap = PacketTap::attach(ifindex, self.workers, &self.own(ifindex));
        let mut tap = tap.map_err(system("keep the host from what it brings"))?;
        let mut ports: Vec<Box<dyn Port + Send>> = Vec::new();
        for _ in 0..self.workers {
            ports.push(Box::new(tap.port().map_err(system("open a packet socket"))?));
        }
        Ok((Guard::Packet(tap), ports))
    }

    /// The host's addresses on an interface. Those on others are reached through the engine, by its policies.
    fn own(&self, ifindex: u32) -> Vec<IpAddr> {
        self.addresses.on(ifindex).map(|prefix| prefix.address).collect()
    }
}
