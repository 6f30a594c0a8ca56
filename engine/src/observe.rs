//! Traces and captures: what workers note of packets while one is on ([`patronus_observe`] has the filter and the records).
//!
//! The slow path makes an [`Observer`] for each worker, with memory for as many records as may wait, and sends it over by command; at the end it
//! gets it back and frees it. While a worker has one, its stages let it [see](Observing::see) their packets. While it has none, that costs a look
//! at an `Option` for each burst and stage.
//!
//! A packet that the filter is about is marked (`PktBuf::mark`), and told about at every point from there on, sealed or opened, also by other
//! workers. A record goes into memory that comes from the slow path through one ring ([`patronus_sync::ring()`]) and back through another. With
//! no memory at hand the record is lost and counted: a worker waits for nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use patronus_crypto::messages::{HEADER, TAG};
use patronus_crypto::{PeerId, Time};
use patronus_io::ip::{PROTO_TCP, PROTO_UDP, Packet};
use patronus_mem::{BURST_MAX, Burst, Outer, PktBuf};
use patronus_observe::{Exit, Filter, Form, Headers, Kind, Matched, NO_PEER, Point, Record, Sides, Subject};
use patronus_sync::{Consumer, Producer, ring};

use crate::clock::Clock;
use crate::ethernet::ETHERNET_HEADER;
use crate::stats::DropReason;
use crate::worker::PORTS_MAX;

/// A record, and room for a packet's bytes.
pub struct Entry {
    /// The record.
    pub record: Record,
    bytes: Box<[u8]>,
}

impl Entry {
    /// An empty one.
    pub fn new(snap: usize) -> Entry {
        Entry {
            record: Record::NONE,
            bytes: vec![0; snap].into(),
        }
    }

    /// The packet's bytes.
    pub fn data(&self) -> &[u8] {
        &self.bytes[..self.record.captured as usize]
    }
}

/// What is left of what was asked for, for all workers together, and how much found no room.
pub struct Limits {
    packets: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
}

impl Limits {
    /// So many packets, and so many bytes of packets.
    pub fn new(packets: u64, bytes: u64) -> Limits {
        Limits {
            packets: AtomicU64::new(packets),
            bytes: AtomicU64::new(bytes),
            lost: AtomicU64::new(0),
        }
    }

    /// Takes a packet and its bytes, if both are left: nobody else gets them.
    fn take(&self, bytes: u64) -> bool {
        take(&self.bytes, bytes) && take(&self.packets, 1)
    }

    /// No more is wanted, whatever is left.
    pub fn close(&self) {
        self.packets.store(0, Ordering::Relaxed);
    }

    /// Whether no more is wanted.
    pub fn is_reached(&self) -> bool {
        self.packets.load(Ordering::Relaxed) == 0 || self.bytes.load(Ordering::Relaxed) == 0
    }

    /// Records that found no room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Takes `some` of what is left; when less is left, all of it, and then no more.
fn take(left: &AtomicU64, some: u64) -> bool {
    let less = |left: u64| (left > 0).then(|| left.saturating_sub(some));
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
        .is_ok()
}

/// What a trace or a capture is about.
#[derive(Clone)]
pub struct Task {
    /// Which of the two.
    pub kind: Kind,
    /// Which packets.
    pub filter: Filter,
    /// Which of them a capture shows.
    pub sides: Sides,
    /// Bytes of each packet.
    pub snap: u32,
    /// Our UDP port.
    pub udp_port: u16,
    /// A number that the marks of this one are told by from those of an earlier one, below [`ROUNDS`].
    pub round: u16,
}

/// A [`Task::round`] is less than this.
pub const ROUNDS: u16 = PktBuf::MARKS / 2 - 1;

/// The slow path's end of an observer.
pub struct Told {
    /// Empty entries, to the worker.
    pub free: Producer<Box<Entry>>,
    /// Records, from the worker.
    pub full: Consumer<Box<Entry>>,
}

/// What a worker has while a trace or a capture is on.
pub struct Observer {
    task: Task,
    worker: u16,
    limits: Arc<Limits>,
    free: Consumer<Box<Entry>>,
    full: Producer<Box<Entry>>,
    /// Something was told since the slow path was last woken.
    told: bool,
    /// The interfaces of the links.
    links: ArrayVec<u32, PORTS_MAX>,
    /// When the burst came that is worked on.
    arrived: Time,
    /// The sessions of the datagrams that are being opened: their frames, sessions and peers.
    sessions: ArrayVec<(u32, PeerId, PeerId), BURST_MAX>,
}

/// One worker's observer with room for so many records, and the slow path's end of it.
pub fn observer(task: &Task, worker: usize, limits: &Arc<Limits>, records: usize) -> (Observer, Told) {
    let (mut free, taken) = ring(records);
    for _ in 0..records {
        // As many as the ring takes.
        let _ = free.push(Box::new(Entry::new(task.snap as usize)));
    }
    let (full, told) = ring(records);
    let observer = Observer {
        task: task.clone(),
        worker: worker as u16,
        limits: Arc::clone(limits),
        free: taken,
        full,
        told: false,
        links: ArrayVec::new(),
        arrived: Time::default(),
        sessions: ArrayVec::new(),
    };
    (observer, Told { free, full: told })
}

impl Observer {
    /// Takes note of the links' interfaces; 0: any.
    pub fn set_links(&mut self, links: impl Iterator<Item = u32>) {
        self.links = links.take(PORTS_MAX).collect();
    }

    /// Whether anything was told since the last call.
    pub fn take_told(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    /// What the mark on a packet says.
    fn marked(&self, packet: &PktBuf) -> Option<Matched> {
        let of_this = packet.mark() / 2 == self.task.round + 1;
        let sure = if packet.mark() % 2 == 1 {
            Matched::Yes
        } else {
            Matched::Maybe
        };
        of_this.then_some(sure)
    }

    fn mark(&self, packet: &mut PktBuf, matched: Matched) {
        let number = (self.task.round + 1) * 2;
        packet.set_mark(match matched {
            Matched::No => 0,
            Matched::Maybe => number,
            Matched::Yes => number + 1,
        });
    }

    /// Whether a capture shows such packets.
    fn shows(&self, point: Point, form: Form) -> bool {
        let sides = self.task.sides;
        match (self.task.kind, point) {
            (Kind::Trace, _) => true,
            (Kind::Capture, Point::LanRx | Point::LanTx) => sides.inner(),
            (Kind::Capture, Point::WanRx | Point::WanTx) => sides.outer(),
            (Kind::Capture, Point::Drop) if form == Form::Message => sides.outer(),
            (Kind::Capture, Point::Drop) => sides.inner(),
            (Kind::Capture, _) => false,
        }
    }

    /// Whether the filter is asked here. A trace is about what is inside, and does not begin where that is not to be seen yet, or any more.
    fn asks(&self, seen: &Seen) -> bool {
        let sealed = match seen.view {
            View::Sent => true,
            View::Received => seen.point != Point::SlowPath,
            View::Ip | View::Ethernet | View::Sealing | View::Any => false,
        };
        self.task.kind == Kind::Capture || !sealed
    }

    /// Whether there may be one more packet of those that the filter is about.
    fn may_begin(&self) -> bool {
        // A capture counts what it shows.
        self.task.kind == Kind::Capture || self.limits.take(0)
    }

    fn link_of(&self, outer: &Outer) -> u16 {
        let is_it = |link: &u32| *link == 0 || *link == outer.ifindex();
        self.links.iter().position(is_it).map_or(u16::MAX, |at| at as u16)
    }
}

/// As what a packet is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// An IP packet.
    Ip,
    /// An Ethernet frame.
    Ethernet,
    /// An IP packet between the header and the padding of a message that is about to be sealed.
    Sealing,
    /// A message that goes to the network.
    Sent,
    /// A message from the network.
    Received,
    /// An IP packet if it looks like one, and a message from the network otherwise.
    Any,
}

/// Where a packet is, and what was decided there.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Where.
    pub point: Point,
    /// As what.
    pub view: View,
    /// The LAN port, the link or the other worker.
    pub place: u16,
    /// The session, or who routes to it, and its peer.
    pub session: Option<(PeerId, PeerId)>,
    /// The next-hop group's number, or 0.
    pub group: u32,
    /// The policy's number from 1 on, or 0.
    pub policy: u32,
    /// How it leaves.
    pub exit: Exit,
    /// Why it does not.
    pub reason: Option<DropReason>,
}

impl Seen {
    /// At a point, and nothing more to be said.
    pub fn at(point: Point, view: View, place: usize) -> Seen {
        Seen {
            point,
            view,
            place: place as u16,
            session: None,
            group: 0,
            policy: 0,
            exit: Exit::None,
            reason: None,
        }
    }
}

/// What there is to see of a packet.
struct Sight<'a> {
    form: Form,
    data: &'a [u8],
    /// The bytes at the point, where `data` is less.
    headers: Option<Headers>,
    inbound: bool,
}

/// A worker's observer, lent to a stage for a burst.
pub struct Observing<'a> {
    observer: &'a mut Observer,
    clock: &'a dyn Clock,
}

impl<'a> Observing<'a> {
    /// Lends it out, if there is one.
    #[inline]
    pub fn of(observer: Option<&'a mut Observer>, clock: &'a dyn Clock) -> Option<Observing<'a>> {
        let observer = observer?;
        Some(Observing { observer, clock })
    }

    /// All packets of a burst are at this point.
    #[cold]
    pub fn see_all(&mut self, packets: &mut Burst, seen: &Seen) {
        if matches!(seen.point, Point::WanRx | Point::TakeOver) {
            self.observer.arrived = self.clock.mono();
        }
        packets.iter_mut().for_each(|packet| self.see(packet, seen));
    }

    /// A packet is given up.
    #[cold]
    pub fn dropped(&mut self, packet: &mut PktBuf, reason: DropReason, view: View) {
        let frame = packet.frame();
        let session = self.observer.sessions.iter().find(|(this, ..)| *this == frame);
        let seen = Seen {
            reason: Some(reason),
            session: session.map(|(_, session, peer)| (*session, *peer)),
            ..Seen::at(Point::Drop, view, 0)
        };
        self.see(packet, &seen);
    }

    /// This datagram is about to be opened with that session.
    pub fn expect(&mut self, packet: &PktBuf, session: PeerId, peer: PeerId) {
        let _ = self.observer.sessions.try_push((packet.frame(), session, peer));
    }

    /// These packets were opened, of those that were expected.
    #[cold]
    pub fn opened(&mut self, packets: &mut Burst) {
        let sessions = std::mem::take(&mut self.observer.sessions);
        for packet in packets.iter_mut() {
            let frame = packet.frame();
            let session = sessions.iter().find(|(this, ..)| *this == frame);
            let seen = Seen {
                session: session.map(|(_, session, peer)| (*session, *peer)),
                ..Seen::at(Point::Decap, View::Ip, 0)
            };
            self.see(packet, &seen);
        }
    }

    /// A packet is at this point.
    #[cold]
    pub fn see(&mut self, packet: &mut PktBuf, seen: &Seen) {
        let before = self.observer.marked(packet);
        let matched = match before {
            Some(Matched::Yes) => Matched::Yes,
            _ if !self.observer.asks(seen) => return,
            _ => match self.ask(packet, seen, before) {
                Some(matched) => matched,
                None => return,
            },
        };
        if before != Some(matched) {
            self.observer.mark(packet, matched);
        }
        let sight = look(packet, seen, self.observer.task.udp_port);
        let arrived = sight.inbound && before.is_none() && matched == Matched::Yes;
        let unseen = matches!(seen.point, Point::Decap | Point::Drop | Point::SlowPath);
        if arrived && unseen && self.observer.task.kind == Kind::Trace {
            // It came with the burst; what it was nobody knew.
            let link = self.observer.link_of(packet.outer());
            let came = Seen::at(Point::WanRx, View::Received, link.into());
            let at = self.observer.arrived;
            self.tell(packet, &came, Matched::Yes, at);
        }
        // Who holds back what may be meant has to hear what it was.
        let decided = before.is_some() && before != Some(matched);
        if decided || self.observer.shows(seen.point, sight.form) {
            let now = self.clock.mono();
            self.tell(packet, seen, matched, now);
        }
    }

    /// What the filter says; `None`: the packet is none of those, and nobody was told that it might be.
    fn ask(&self, packet: &PktBuf, seen: &Seen, before: Option<Matched>) -> Option<Matched> {
        let sight = look(packet, seen, self.observer.task.udp_port);
        let subject = Subject {
            headers: sight.headers,
            inbound: sight.inbound,
            peer: seen.session.map(|(_, peer)| peer.0),
        };
        match self.observer.task.filter.test(&subject) {
            Some(true) => self.observer.may_begin().then_some(Matched::Yes),
            Some(false) => before.map(|_| Matched::No),
            // What comes out of a tunnel is somebody's, and is asked about once it is known whose. When no more is wanted, none of those can be meant.
            None => {
                (seen.point != Point::WanRx && !self.observer.limits.is_reached()).then_some(Matched::Maybe)
            }
        }
    }

    fn tell(&mut self, packet: &PktBuf, seen: &Seen, matched: Matched, at: Time) {
        let observer = &mut *self.observer;
        let sight = look(packet, seen, observer.task.udp_port);
        let shown = matched != Matched::No && observer.shows(seen.point, sight.form);
        let snap = match shown {
            false => 0,
            true => observer.task.snap as usize,
        };
        let captured = sight.data.len().min(snap);
        let counts = observer.task.kind == Kind::Capture && shown && matched == Matched::Yes;
        if counts && !observer.limits.take(captured as u64) {
            return;
        }
        let Some(mut entry) = observer.free.pop() else {
            observer.limits.lost.fetch_add(1, Ordering::Relaxed);
            observer.told = true;
            return;
        };
        entry.bytes[..captured].copy_from_slice(&sight.data[..captured]);
        let record = record(packet, seen, &sight);
        entry.record = Record {
            time: at.0,
            worker: observer.worker,
            matched: matched as u8,
            captured: captured as u32,
            ..record
        };
        // There are as many places as entries.
        let left = observer.full.push(entry);
        debug_assert!(left.is_ok());
        observer.told = true;
    }
}

fn record(packet: &PktBuf, seen: &Seen, sight: &Sight<'_>) -> Record {
    let outer = packet.outer();
    // What a message carries is not to be seen.
    let inner = sight.headers.filter(|_| sight.form != Form::Message);
    let ports = inner.and_then(|headers| headers.ports).unwrap_or_default();
    Record {
        remote: outer
            .remote()
            .map(|remote| remote.ip().into())
            .unwrap_or_default(),
        local: outer.local().map(Into::into).unwrap_or_default(),
        remote_port: outer.remote().map_or(0, |remote| remote.port()),
        tos: outer.tos(),
        src: inner.map(|headers| headers.src.into()).unwrap_or_default(),
        dst: inner.map(|headers| headers.dst.into()).unwrap_or_default(),
        src_port: ports.0,
        dst_port: ports.1,
        protocol: inner.map_or(0, |headers| headers.protocol),
        frame: packet.frame(),
        length: sight.data.len() as u32,
        peer: seen.session.map_or(NO_PEER, |(session, _)| session.0),
        group: seen.group,
        policy: seen.policy,
        place: seen.place,
        reason: seen.reason.map_or(0, |reason| reason as u16),
        point: seen.point as u8,
        exit: seen.exit as u8,
        form: sight.form as u8,
        inbound: sight.inbound.into(),
        ..Record::NONE
    }
}

fn look<'a>(packet: &'a PktBuf, seen: &Seen, udp_port: u16) -> Sight<'a> {
    let data = packet.data();
    // What is going out has the addresses of where it goes.
    let came = !packet.outer().is_none();
    let inner = |form: Form, data: &'a [u8], ip: &'a [u8], inbound: bool| Sight {
        form,
        data,
        headers: headers(ip),
        inbound,
    };
    let message = |inbound: bool| Sight {
        form: Form::Message,
        data,
        headers: outer_headers(packet.outer(), udp_port, inbound),
        inbound,
    };
    match seen.view {
        View::Ip => inner(Form::Ip, data, data, came),
        View::Ethernet => inner(
            Form::Ethernet,
            data,
            data.get(ETHERNET_HEADER..).unwrap_or_default(),
            came,
        ),
        View::Sealing => {
            let end = data.len().saturating_sub(TAG);
            let padded = data.get(HEADER..end).unwrap_or_default();
            let ip = Packet::parse(padded).map_or(padded, |packet| packet.bytes());
            inner(Form::Ip, ip, ip, false)
        }
        View::Sent => message(false),
        View::Received => message(true),
        // A message begins with a small number, an IP packet with its version.
        View::Any if came && Packet::parse(data).is_err() => message(true),
        View::Any => inner(Form::Ip, data, data, came),
    }
}

fn headers(bytes: &[u8]) -> Option<Headers> {
    let packet = Packet::parse(bytes).ok()?;
    let transport = packet.transport().ok();
    let has_ports = |transport: &patronus_io::ip::Transport| {
        transport.first && matches!(transport.protocol, PROTO_TCP | PROTO_UDP)
    };
    let ports = transport.filter(has_ports).and_then(|transport| {
        let [a, b, c, d] = *packet.bytes().get(transport.offset..)?.first_chunk()?;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    });
    Some(Headers {
        src: packet.src(),
        dst: packet.dst(),
        protocol: transport.map_or(0, |transport| transport.protocol),
        ports,
    })
}

fn outer_headers(outer: &Outer, udp_port: u16, inbound: bool) -> Option<Headers> {
    let remote = outer.remote()?;
    let unknown = match remote.is_ipv4() {
        true => [0; 4].into(),
        false => [0; 16].into(),
    };
    let (theirs, ours) = (
        (remote.ip(), remote.port()),
        (outer.local().unwrap_or(unknown), udp_port),
    );
    let (from, to) = if inbound { (theirs, ours) } else { (ours, theirs) };
    Some(Headers {
        src: from.0,
        dst: to.0,
        protocol: PROTO_UDP,
        ports: Some((from.1, to.1)),
    })
}
