//! How frames get to a path's other end: link addresses and headers, found out by the slow path and used by the worker.
//!
//! [`Ways`] belongs to the worker's port. A path that it does not know yet it asks for, over a ring, and meanwhile the packets
//! go through the kernel's socket, which also makes the kernel find the neighbour. [`WayFinder`] belongs to the slow path: it asks the kernel
//! for route and neighbour (rtnetlink), answers over another ring, and answers anew when the kernel says that something has changed.
//! From time to time it lets one packet go through the kernel again, so that a neighbour that is in use stays checked.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use patronus_mem::Outer;
use patronus_sync::{Consumer, Producer, ring};
use rustix::event::{EventfdFlags, eventfd};

use super::header::Way;
use crate::netlink::{NeighbourWatch, NextHop, RouteQuery};

/// Paths that are known at a time. One more, and all are forgotten and found again.
const PATHS_MAX: usize = 1 << 14;
/// Paths that are found by a look at one place: those of the latest packets.
const RECENT: usize = 256;
/// Questions and answers that may be under way.
const UNDER_WAY: usize = 1024;
/// Answers that the worker takes in at a time.
const ANSWERS_MAX: usize = 64;
/// Paths that are looked at in one go, so that a change of all routes does not hold up the slow path.
const LOOKS_MAX: usize = 64;
/// After so long one packet of a path goes through the kernel, and the path is looked at again: nobody tells of a path MTU.
const REFRESH: Duration = Duration::from_secs(20);
/// When to try again what the system, or a worker that sleeps, had no room for.
const AGAIN: Duration = Duration::from_millis(500);

/// Between which addresses and UDP ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Path {
    remote: SocketAddr,
    local: Option<IpAddr>,
}

impl Path {
    fn of(outer: &Outer) -> Option<Path> {
        Some(Path {
            remote: outer.remote()?,
            local: outer.local(),
        })
    }
}

enum Question {
    /// Which way?
    Way(Path),
    /// The worker has forgotten everything.
    Forgotten,
}

/// What the slow path says of a path.
enum Answer {
    /// The way is this one, or there is none for us.
    Way(Path, Option<Box<Way>>),
    /// The next packet shall go through the kernel.
    KernelOnce(Path),
}

/// What the worker knows of a path.
struct Known {
    way: Option<Box<Way>>,
    kernel_once: bool,
}

/// Where a path stands in the list of what is known.
#[derive(Clone, Copy)]
struct Recent {
    outer: Outer,
    at: usize,
}

impl Recent {
    const NONE: Recent = Recent {
        outer: Outer::NONE,
        at: usize::MAX,
    };
}

/// The interface that frames leave by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its number.
    pub ifindex: u32,
    /// Its link address.
    pub mac: [u8; 6],
    /// The longest IP packet that it takes, bytes.
    pub mtu: usize,
    /// The UDP port that datagrams are sent from.
    pub udp_port: u16,
    /// The mark that decides about routes; 0 for none.
    pub fwmark: u32,
}

/// The worker's side.
pub struct Ways {
    known: Vec<Known>,
    /// Where in it a path is.
    places: HashMap<Path, usize>,
    /// The same of some, by a quick hash that anybody can make collide: then the other one is asked, whose hash nobody can.
    recent: Box<[Recent; RECENT]>,
    questions: Producer<Question>,
    answers: Consumer<Answer>,
    /// Readable for the slow path when there is a question.
    call: OwnedFd,
}

/// Both sides for one worker's port.
pub fn ways(link: Link) -> io::Result<(Ways, WayFinder)> {
    let (questions, asked) = ring(UNDER_WAY);
    let (answers, heard) = ring(UNDER_WAY);
    let call = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    let finder = WayFinder {
        link,
        asked,
        answers,
        called: call.try_clone()?,
        routes: RouteQuery::new()?,
        watch: NeighbourWatch::new()?,
        paths: HashMap::new(),
        queue: VecDeque::new(),
        refreshes: VecDeque::new(),
    };
    let ways = Ways {
        known: Vec::with_capacity(PATHS_MAX),
        places: HashMap::with_capacity(PATHS_MAX),
        recent: Box::new([Recent::NONE; RECENT]),
        questions,
        answers: heard,
        call,
    };
    Ok((ways, finder))
}

impl Ways {
    /// Takes in what the slow path has answered: once for each burst.
    #[inline]
    pub(super) fn listen(&mut self) {
        for answer in self.answers.drain(ANSWERS_MAX) {
            match answer {
                Answer::Way(path, way) => {
                    if let Some(at) = self.places.get(&path) {
                        self.known[*at].way = way;
                    }
                }
                Answer::KernelOnce(path) => {
                    if let Some(at) = self.places.get(&path) {
                        self.known[*at].kernel_once = true;
                    }
                }
            }
        }
    }

    /// The way to a packet's other end; `None`: let the kernel send it.
    #[inline]
    pub(super) fn to(&mut self, outer: &Outer) -> Option<&mut Way> {
        let recent = &self.recent[outer.path_hash() as usize % RECENT];
        let at = match recent.at < self.known.len() && recent.outer.same_path(outer) {
            true => recent.at,
            false => self.look_up(outer)?,
        };
        let known = &mut self.known[at];
        if std::mem::take(&mut known.kernel_once) {
            return None;
        }
        known.way.as_deref_mut()
    }

    /// Where a path stands; one that is not known is asked for.
    #[inline(never)]
    fn look_up(&mut self, outer: &Outer) -> Option<usize> {
        let path = Path::of(outer)?;
        let Some(at) = self.places.get(&path).copied() else {
            self.ask(path);
            return None;
        };
        self.recent[outer.path_hash() as usize % RECENT] = Recent { outer: *outer, at };
        Some(at)
    }

    #[cold]
    fn ask(&mut self, path: Path) {
        // If the ring has no room, the next packet asks.
        if self.known.len() == PATHS_MAX {
            if self.questions.push(Question::Forgotten).is_err() {
                return;
            }
            self.known.clear();
            self.places.clear();
            self.recent.fill(Recent::NONE);
        }
        if self.questions.push(Question::Way(path)).is_ok() {
            let nothing = Known {
                way: None,
                kernel_once: false,
            };
            self.places.insert(path, self.known.len());
            self.known.push(nothing);
            let _ = rustix::io::write(&self.call, &1u64.to_ne_bytes());
        }
    }
}

/// The slow path's side.
pub struct WayFinder {
    link: Link,
    asked: Consumer<Question>,
    answers: Producer<Answer>,
    called: OwnedFd,
    routes: RouteQuery,
    watch: NeighbourWatch,
    paths: HashMap<Path, Found>,
    /// Paths to look at, each once.
    queue: VecDeque<Path>,
    /// When which path is due to be refreshed, the next one first.
    refreshes: VecDeque<(Instant, Path)>,
}

/// What is known of a path.
#[derive(Default)]
struct Found {
    /// The neighbour that it leads over.
    hop: Option<IpAddr>,
    /// What the worker was told, if anything.
    told: Option<Option<Box<Way>>>,
    queued: bool,
}

impl WayFinder {
    /// What to wait on; then [`serve`](WayFinder::serve).
    pub fn wait_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.called.as_fd(), self.watch.as_fd()]
    }

    /// The link has another address or MTU, or the UDP port or the mark is another one.
    pub fn set_link(&mut self, link: Link) {
        self.link = link;
        self.queue_all();
    }

    /// Answers what was asked and what has changed. Returns when to come back without being called.
    pub fn serve(&mut self, now: Instant) -> Option<Instant> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.called, &mut count);
        self.notice_changes();
        self.take_questions(now);
        self.refresh(now);
        for _ in 0..LOOKS_MAX {
            let Some(path) = self.queue.front().copied() else {
                return self.refreshes.front().map(|(due, _)| *due);
            };
            if !self.look(path) {
                return Some(now + AGAIN);
            }
            self.queue.pop_front();
            if let Some(found) = self.paths.get_mut(&path) {
                found.queued = false;
            }
        }
        Some(now)
    }

    fn notice_changes(&mut self) {
        match self.watch.read() {
            Ok(changes) if !changes.routes => {
                for (path, found) in &mut self.paths {
                    let over = |(ifindex, address): &(u32, IpAddr)| {
                        *ifindex == self.link.ifindex && found.hop == Some(*address)
                    };
                    if !found.queued && changes.neighbours.iter().any(over) {
                        found.queued = true;
                        self.queue.push_back(*path);
                    }
                }
            }
            // What was not heard may be anything.
            _ => self.queue_all(),
        }
    }

    fn queue_all(&mut self) {
        for (path, found) in &mut self.paths {
            if !std::mem::replace(&mut found.queued, true) {
                self.queue.push_back(*path);
            }
        }
    }

    fn take_questions(&mut self, now: Instant) {
        for question in self.asked.drain(UNDER_WAY) {
            match question {
                Question::Way(path) => {
                    self.queue.push_back(path);
                    self.refreshes.push_back((now + REFRESH, path));
                    let new = Found {
                        queued: true,
                        ..Found::default()
                    };
                    self.paths.insert(path, new);
                }
                Question::Forgotten => {
                    self.paths.clear();
                    self.queue.clear();
                    self.refreshes.clear();
                }
            }
        }
    }

    fn refresh(&mut self, now: Instant) {
        while let Some((_, path)) = self.refreshes.pop_front_if(|(due, _)| *due <= now) {
            self.refreshes.push_back((now + REFRESH, path));
            let Some(found) = self.paths.get_mut(&path) else {
                continue;
            };
            if matches!(found.told, Some(Some(_))) {
                // If the ring is full, another time.
                let _ = self.answers.push(Answer::KernelOnce(path));
            }
            if !std::mem::replace(&mut found.queued, true) {
                self.queue.push_back(path);
            }
        }
    }

    /// Asks the kernel for the way of a path, and tells the worker if it is another one. False: not now.
    fn look(&mut self, path: Path) -> bool {
        let Ok((hop, way)) = self.find(&path) else {
            return false;
        };
        let Some(found) = self.paths.get_mut(&path) else {
            return true;
        };
        found.hop = hop;
        if found.told.as_ref() != Some(&way) {
            if self.answers.push(Answer::Way(path, way.clone())).is_err() {
                return false;
            }
            found.told = Some(way);
        }
        true
    }

    /// The neighbour that the path leads over, and the way if that is known.
    fn find(&self, path: &Path) -> io::Result<(Option<IpAddr>, Option<Box<Way>>)> {
        // Only a link-local address has to be told where it is; all others are where the routes lead.
        let on_link = matches!(path.remote, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local());
        let interface = on_link.then_some(self.link.ifindex);
        let hop = self
            .routes
            .next_hop(path.local, path.remote.ip(), interface, self.link.fwmark)?;
        let Some(hop) = hop.filter(|hop| hop.ifindex == self.link.ifindex && is_ours(path.local)) else {
            return Ok((None, None));
        };
        let mac = self.routes.neighbour(self.link.ifindex, hop.address)?;
        let way = mac.and_then(|mac| self.way(path, &hop, mac));
        Ok((Some(hop.address), way))
    }

    fn way(&self, path: &Path, hop: &NextHop, mac: [u8; 6]) -> Option<Box<Way>> {
        let source = SocketAddr::new(path.local.or(hop.source)?, self.link.udp_port);
        let mtu = hop
            .mtu
            .map_or(self.link.mtu, |mtu| self.link.mtu.min(mtu as usize));
        Way::new(self.link.mac, mac, mtu, source, path.remote).map(Box::new)
    }
}

/// Whether an address is still one of this host's. For IPv4 the kernel says so with the route, for IPv6 it does not.
fn is_ours(local: Option<IpAddr>) -> bool {
    match local {
        Some(ip @ IpAddr::V6(v6)) if !v6.is_unicast_link_local() => UdpSocket::bind((ip, 0)).is_ok(),
        _ => true,
    }
}
