//! What workers and the slow path say to each other, and how one wakes the other.
//!
//! Seven bounded queues and nothing else is shared, but for what is known of paths ([`path`](crate::path)): commands to each worker; notices, handshake messages, control
//! messages, changes of paths, answers to pings and questions for neighbours to the slow path. (What workers share with each other is in [`crew`](crate::crew).) A worker never waits on any of them. The slow path may: what finds a command queue full stays with the
//! slow path, in order, until there is room.

use std::net::SocketAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;
use patronus_crypto::keypair::Keypair;
use patronus_crypto::{PeerId, Time};
use patronus_io::Port;
use patronus_mem::{BURST_MAX, Outer};
use patronus_sync::Bell;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::allowedips::AllowedIps;
use crate::explain::Query;
use crate::neighbour::Place;
use crate::observe::Observer;
use crate::path::Paths;
use crate::probe::{PathChange, ProbeSet, Probing, Suspects};
use crate::remote::message;
use crate::standby::echo::{Answer, Ping};
use crate::steer::{Manners, Order};
use crate::wg::PeerSlot;
use crate::worker::LanPort;

/// Handshake messages that may wait for the slow path. At an eighth of this it is under load and asks for cookies
/// (as Linux does with its queue of 4,096).
pub const HANDSHAKE_QUEUE: usize = 4096;
/// Notices that may wait for the slow path before workers take no more packets and commands.
pub const NOTICE_QUEUE: usize = 16384;
/// The most notices that a worker leaves between two looks at [`ToSlowPath::has_room`]. For each packet of a burst from the
/// network: a session confirmed and one retired, a handshake wanted, an endpoint moved, a timer started; where it is routed into another tunnel,
/// there a handshake and a timer; the same for errors about such packets; and if all those sessions were waited for by as
/// many packets as may wait, two more timers. A port may be gone as well, and a command was obeyed just before: the rest.
pub const NOTICES_PER_STEP: usize = 12 * BURST_MAX;
/// Commands that may wait for a worker.
pub const COMMAND_QUEUE: usize = 4096;

/// Control messages that may wait for the slow path. They are repeated until they are acknowledged.
pub const CONTROL_QUEUE: usize = 1024;

/// Changes of paths that may wait for the slow path, for people and control to be told of. What paths are stands on their boards.
pub const PATH_QUEUE: usize = 4096;

/// Answers to pings that may wait for the slow path. One that is lost is as good as one that the network has lost.
pub const ANSWER_QUEUE: usize = 1024;

/// Neighbours that may wait to be asked for. Who found it full is asked for by the next packet.
pub const NEIGHBOUR_QUEUE: usize = 1024;

/// The longest handshake message, an initiation.
pub const HANDSHAKE_MAX: usize = 148;

/// Where what goes to the endpoints of a link leaves.
pub struct WanPort {
    /// The link's interface; 0: any.
    pub ifindex: u32,
    /// The port.
    pub port: Box<dyn Port + Send>,
}

impl WanPort {
    /// Whether what goes to an endpoint of this interface (0: of none in particular) leaves here.
    #[inline]
    pub fn leads_to(&self, ifindex: u32) -> bool {
        self.ifindex == 0 || ifindex == 0 || self.ifindex == ifindex
    }
}

/// Families of outer addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Both.
    pub const BOTH: Families = Families { v4: true, v6: true };
    /// Neither.
    pub const NONE: Families = Families { v4: false, v6: false };

    /// Whether the remote address of a datagram is of one of them.
    #[inline]
    pub fn has(self, outer: &Outer) -> bool {
        match outer.remote() {
            Some(SocketAddr::V4(_)) => self.v4,
            Some(SocketAddr::V6(_)) => self.v6,
            None => false,
        }
    }
}

/// From the slow path to a worker.
pub enum Command {
    /// A peer of this worker.
    AddPeer(Box<PeerSlot>),
    /// Forget the peer; its slot comes back as a notice.
    RemovePeer(PeerId),
    /// The allowed-ips of all peers.
    Routes(Arc<AllowedIps>),
    /// A session just negotiated.
    Install(Box<Keypair>),
    /// A receiver index that another worker owns: where to hand its packets.
    IndexAdded(u32, PeerId),
    /// That index is gone.
    IndexRemoved(u32),
    /// Where the peer is now; `Outer::NONE` if unknown.
    Endpoint(PeerId, Outer),
    /// A lane of the same path was heard at the latter place, and no more at the former: this one too is there now, unless it was heard elsewhere itself.
    Follow(PeerId, SocketAddr, Outer),
    /// Forget the address that the peer was last answered from, or every peer's.
    ClearSource(Option<PeerId>),
    /// A link's interface is gone: what went to peers there goes another way.
    LeaveLink(u32),
    /// What comes in on this interface says no more where the peer is, which has been moved away from there; none: everything does.
    Shun(PeerId, Option<u32>),
    /// Send an empty packet if there is a session.
    Keepalive(PeerId),
    /// Whether the slow path wants the peer's answers to pings.
    Pinged(PeerId, bool),
    /// Send the peer this ping if there is a session.
    Ping(PeerId, Box<Ping>),
    /// The peer is a site of our own and may send control messages.
    Remote(PeerId),
    /// Send this control message if there is a session.
    Control(PeerId, Box<message::Bytes>),
    /// This lane belongs to that worker; `None`: it is none any more, or was none.
    Place(PeerId, Option<u8>),
    /// The paths towards a remote, and the lanes by which this worker sends on them.
    Paths(PeerId, Box<Paths>),
    /// The same paths, for the worker that probes them.
    Probe(PeerId, Box<ProbeSet>),
    /// How often paths are probed.
    Probing(Probing),
    /// Paths to a remote that are probed faster for a while, for the worker that probes.
    Suspect(PeerId, Suspects),
    /// Packets of hosts go to or come from a remote, the first ones for a while. From another worker to the one that probes; lost if there is no room.
    Used(PeerId),
    /// How packets of each class are steered.
    Classes(Manners),
    /// In which order a class uses the paths towards a remote.
    Order(PeerId, u8, Box<Order>),
    /// The remote has been started anew: its sequence numbers begin anew.
    Restarted(PeerId),
    /// Nothing has been heard on the lane for a while: others are better.
    Silent(PeerId),
    /// The handshake was given up: drop what waits for it.
    DropStaged(PeerId),
    /// Drop all sessions of the peer.
    EraseKeys(PeerId),
    /// The current session may receive but not send.
    ExpireSending(PeerId),
    /// The port of a WAN link, none while there is none.
    Wan(usize, Option<WanPort>),
    /// By this link the host has routes for these families.
    Sends(usize, Families),
    /// A LAN port, none while its interface is not there.
    Lan(usize, Option<LanPort>),
    /// For a while nothing goes by the link in this place, as if it were cut: a drill. None: it is over.
    Drill(Option<Drill>),
    /// The TUN's MTU.
    Mtu(usize),
    /// More is known of neighbours: packets may wait for that.
    Neighbours,
    /// Say what becomes of flows; the answer is a notice.
    Ask(Box<Query>),
    /// A trace or a capture has begun, or is over.
    Observe(Option<Box<Observer>>),
    /// End the thread.
    Stop,
}

/// A link that is as good as cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drill {
    /// Its place.
    pub wan: usize,
    /// Until then.
    pub until: Time,
}

/// From a worker to the slow path. Nothing here may be lost, so a worker makes sure of room before it takes packets.
pub enum Notice {
    /// A packet waits for a session, or the session wants renewing.
    WantHandshake(PeerId),
    /// The first packet arrived under a session that the peer began.
    KeyConfirmed(PeerId),
    /// A timer of the peer must be watched from now on.
    Watch(PeerId),
    /// The peer was heard from another address.
    Endpoint(PeerId, Outer),
    /// A session is over: free its index, clear its keys.
    Retired(Box<Keypair>),
    /// A removed peer's slot, to be freed off the data path.
    Slot(Box<PeerSlot>),
    /// A replaced routing table, likewise.
    Routes(Arc<AllowedIps>),
    /// Replaced paths, likewise.
    Paths(Box<Paths>),
    /// The same from who probes them.
    Probe(Box<ProbeSet>),
    /// A replaced order, likewise.
    Order(Box<Order>),
    /// An answer.
    Told(Box<Query>),
    /// The observer of a trace or a capture that is over, likewise.
    Observer(Box<Observer>),
    /// A replaced WAN port, likewise.
    Wan(Box<dyn Port + Send>),
    /// A replaced LAN port, likewise.
    Lan(Box<dyn Port + Send>),
    /// A LAN port is gone, or cannot be used any more for this reason; the worker has let go of it.
    LanGone(usize, Option<std::io::Error>),
    /// The worker cannot wait for its ports, for this reason, and has ended.
    Failed(std::io::Error),
}

/// A handshake message on its way to the slow path.
pub struct HandshakeMessage {
    /// Where it came from, and to which of our addresses.
    pub outer: Outer,
    /// The message.
    pub bytes: ArrayVec<u8, HANDSHAKE_MAX>,
}

/// The content of a packet that a remote has sent to our slow path.
pub struct ControlMessage {
    /// The remote, in whose base session it came.
    pub peer: PeerId,
    /// When that session was made.
    pub session: Time,
    /// The message and its padding.
    pub bytes: message::Bytes,
}

/// A peer's answer to a ping of the slow path's.
#[derive(Clone, Copy, Debug)]
pub struct PingAnswer {
    /// In whose session it came.
    pub peer: PeerId,
    /// What it says.
    pub answer: Answer,
}

/// Wakes a thread that may be asleep in `poll`: a [`Bell`], which tells whether it has to be, and a descriptor.
pub struct Waker {
    fd: OwnedFd,
    bell: Bell,
}

impl Waker {
    /// A waker for one sleeping thread.
    pub fn new() -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Waker {
            fd,
            bell: Bell::new(),
        })
    }

    /// By the sleeper, before it looks at its queues for the last time.
    pub fn announce_sleep(&self) {
        self.bell.lie_down();
    }

    /// By the sleeper, when it is up again. `called`: it found the descriptor readable.
    ///
    /// A call may be late: it is written after the sleeper has found the queue filled and did not sleep, or was up again for another
    /// reason. It then ends the next sleep, and is taken there: left unread, it would end every sleep from then on.
    pub fn awake(&self, called: bool) {
        self.bell.get_up();
        if called {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.fd, &mut count);
        }
    }

    /// By anybody, after filling a queue of the sleeper's.
    pub fn wake(&self) {
        if self.bell.ring() {
            self.call();
        }
    }

    /// The same by who calls [`wake`](Waker::wake) a little later: cheaper, and it may miss a sleeper who has only just announced it.
    #[inline]
    pub fn wake_early(&self) {
        if self.bell.ring_early() {
            self.call();
        }
    }

    #[cold]
    fn call(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The slow path's inbox, filled by all workers.
pub struct ToSlowPath {
    /// Handshake messages, dropped when full.
    pub handshakes: ArrayQueue<HandshakeMessage>,
    /// Control messages, dropped when full.
    pub controls: ArrayQueue<ControlMessage>,
    /// Answers to pings, dropped when full.
    pub answers: ArrayQueue<PingAnswer>,
    /// Neighbours that packets wait for, dropped when full.
    pub neighbours: ArrayQueue<Place>,
    /// Changes of paths, dropped when full.
    pub paths: ArrayQueue<PathChange>,
    /// Notices, never dropped.
    pub notices: ArrayQueue<Notice>,
    /// Wakes the slow path.
    pub waker: Waker,
}

impl ToSlowPath {
    /// An empty inbox for the notices of `workers` workers.
    pub fn new(workers: usize) -> std::io::Result<Self> {
        Ok(ToSlowPath {
            handshakes: ArrayQueue::new(HANDSHAKE_QUEUE),
            controls: ArrayQueue::new(CONTROL_QUEUE),
            answers: ArrayQueue::new(ANSWER_QUEUE),
            neighbours: ArrayQueue::new(NEIGHBOUR_QUEUE),
            paths: ArrayQueue::new(PATH_QUEUE),
            notices: ArrayQueue::new(NOTICE_QUEUE + workers * NOTICES_PER_STEP),
            waker: Waker::new()?,
        })
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        let asked = self.handshakes.is_empty() && self.controls.is_empty() && self.neighbours.is_empty();
        asked && self.paths.is_empty() && self.answers.is_empty() && self.notices.is_empty()
    }

    /// Whether the notices of a worker's next step are sure to fit, whatever the others do meanwhile: behind
    /// [`NOTICE_QUEUE`] there is room for one step of each.
    pub fn has_room(&self) -> bool {
        self.notices.len() < NOTICE_QUEUE
    }
}

/// A worker's inbox.
pub struct ToWorker {
    /// From the slow path.
    pub commands: ArrayQueue<Command>,
    /// Wakes the worker.
    pub waker: Waker,
}

impl ToWorker {
    /// An empty inbox.
    pub fn new() -> std::io::Result<Self> {
        Ok(ToWorker {
            commands: ArrayQueue::new(COMMAND_QUEUE),
            waker: Waker::new()?,
        })
    }
}
