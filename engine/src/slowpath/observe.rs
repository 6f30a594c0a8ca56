//! Traces and captures, for whoever asks on the query socket: gives the workers observers, sends on what they tell, and takes the observers back.
//!
//! Runs on the slow-path thread and never waits for the asker: what he does not take stays with the workers, who have room for so much and count the
//! rest as lost. One trace or capture is on at a time. It ends when he goes, when he shuts his sending side, when as many packets were told about as
//! he asked for, or when he has taken nothing for [`STALL`].

use std::sync::Arc;

use patronus_crypto::{Duration, PeerId, Time};
use patronus_observe::{Head, Kind, Point, Port, RECORD, Record, Request, key_text};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};
use zerocopy::IntoBytes;

use super::SlowPath;
use crate::channel::Command;
use crate::observe::{Entry, Limits, ROUNDS, Task, Told, observer};
use crate::stats::DropReason;
use crate::uapi::server::STALL;

/// Memory for records that wait, of all workers together, bytes.
const MEMORY: usize = 32 << 20;
/// Records of a worker that wait, at least and at most: at least a burst at a point.
const RECORDS: [usize; 2] = [64, 4096];
/// Bytes that are collected before they are sent.
const CHUNK: usize = 256 << 10;
/// How long packets are followed, and waited for, after the last one has begun.
const FOLLOW: Duration = Duration::from_millis(1000);
/// How long records are waited for that workers may be writing.
const SETTLE: Duration = Duration::from_millis(50);

/// A trace or a capture that is on.
pub(super) struct Observation {
    connection: OwnedFd,
    kind: Kind,
    told: Vec<Told>,
    limits: Arc<Limits>,
    out: Vec<u8>,
    sent: usize,
    /// The asker has shut his sending side.
    stopped: bool,
    end_at: Option<Time>,
    /// The last record is on its way.
    ended: bool,
    progress: Time,
}

/// What to do with an observation after a look at it.
#[derive(PartialEq, Eq)]
enum After {
    GoOn,
    End,
}

impl Observation {
    fn tend(&mut self, now: Time, complete: &mut dyn FnMut(&mut Record)) -> After {
        if !self.stopped {
            match net::recv(&self.connection, &mut [0; 64], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => {
                    self.stopped = true;
                    // Else there would always be more, and no end.
                    self.limits.close();
                }
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return After::End,
            }
        }
        if self.sent == self.out.len() {
            self.collect(complete);
        }
        self.end_if_due(now);
        match self.send(now) {
            Ok(()) if self.ended && self.sent == self.out.len() => After::End,
            Ok(()) if now.since(self.progress) < STALL => After::GoOn,
            _ => After::End,
        }
    }

    /// Takes what workers have told, and gives the memory back.
    fn collect(&mut self, complete: &mut dyn FnMut(&mut Record)) {
        self.out.clear();
        self.sent = 0;
        let lost = self.limits.lost();
        let mut some = true;
        while some && self.out.len() < CHUNK {
            some = false;
            for Told { free, full } in &mut self.told {
                let Some(mut entry) = full.pop() else { continue };
                some = true;
                entry.record.lost = lost;
                complete(&mut entry.record);
                self.out.extend(entry.record.as_bytes());
                self.out.extend(entry.data());
                // There is room: this is where it came from.
                let _ = free.push(entry);
            }
        }
    }

    fn end_if_due(&mut self, now: Time) {
        if self.end_at.is_none() && (self.stopped || self.limits.is_reached()) {
            let follow = self.kind == Kind::Trace && !self.stopped;
            self.end_at = Some(now.after(if follow { FOLLOW } else { SETTLE }));
        }
        if self.end_at.is_some_and(|at| at <= now) && self.out.is_empty() && !self.ended {
            self.ended = true;
            let end = Record {
                point: Point::End as u8,
                lost: self.limits.lost(),
                ..Record::NONE
            };
            self.out.extend(end.as_bytes());
        }
    }

    /// Sends what the connection takes.
    fn send(&mut self, now: Time) -> Result<(), Errno> {
        while self.sent < self.out.len() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match net::send(&self.connection, &self.out[self.sent..], flags) {
                Ok(sent) => {
                    self.sent += sent;
                    self.progress = now;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // Nothing is waiting for him.
        self.progress = now;
        Ok(())
    }

    /// When it has to be looked at, whatever happens.
    fn deadline(&self) -> Option<Time> {
        match self.sent < self.out.len() {
            true => Some(self.progress.after(STALL)),
            // A full chunk was sent: there may be more.
            false if self.out.len() >= CHUNK => Some(Time::default()),
            false => self.end_at,
        }
    }

    /// What it waits for on its connection.
    fn wants(&self) -> PollFlags {
        let mut wants = PollFlags::empty();
        wants.set(PollFlags::IN, !self.stopped);
        wants.set(PollFlags::OUT, self.sent < self.out.len());
        wants
    }
}

impl SlowPath {
    /// Begins what `request` asks for, or says why not.
    pub(super) fn begin_observation(&mut self, request: &str, connection: OwnedFd) {
        let begun = match self.observation {
            Some(_) => {
                let why = "another trace or capture is on: it has to end first";
                Err((why.to_owned(), Errno::BUSY))
            }
            None => self.task(request).map_err(|why| (why, Errno::INVAL)),
        };
        let (task, limits) = match begun {
            Ok(begun) => begun,
            Err((why, errno)) => {
                let answer = format!("error={why}\nerrno={}\n\n", errno.raw_os_error());
                let _ = net::send(
                    &connection,
                    answer.as_bytes(),
                    SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
                );
                return;
            }
        };
        let out = format!("record={RECORD}\n{}errno=0\n\n", self.head()).into_bytes();
        let workers = self.stats.len();
        let size = size_of::<Entry>() + task.snap as usize;
        let records = (MEMORY / workers / size).clamp(RECORDS[0], RECORDS[1]);
        let limits = Arc::new(limits);
        let mut told = Vec::new();
        self.core.tell_each(|worker| {
            let (observer, end) = observer(&task, worker, &limits, records);
            told.push(end);
            Command::Observe(Some(Box::new(observer)))
        });
        self.observation = Some(Observation {
            connection,
            kind: task.kind,
            told,
            limits,
            out,
            sent: 0,
            stopped: false,
            end_at: None,
            ended: false,
            progress: self.core.mono(),
        });
        let what = match task.kind {
            Kind::Trace => "trace",
            Kind::Capture => "capture",
        };
        self.core.log().verbose(format_args!("a {what} has begun"));
    }

    fn task(&mut self, request: &str) -> Result<(Task, Limits), String> {
        let request = Request::parse(request.lines()).map_err(|error| error.to_string())?;
        let mut filter = request.parsed_filter().map_err(|error| error.to_string())?;
        filter
            .resolve(|key| self.peer_of_key(key))
            .map_err(|error| error.to_string())?;
        self.observations = (self.observations + 1) % ROUNDS;
        let task = Task {
            kind: request.kind,
            filter,
            sides: request.sides,
            snap: request.snap,
            udp_port: self.udp.port,
            round: self.observations,
        };
        Ok((task, Limits::new(request.packets, request.bytes)))
    }

    /// The number of the one peer whose key begins so.
    fn peer_of_key(&self, key: &str) -> Result<u32, String> {
        let begins = |peer: &[u8; 32]| key_text(peer).starts_with(key);
        let mut peers = self.core.peers().filter(|(_, peer)| begins(&peer.key.0));
        match (peers.next(), peers.next()) {
            (Some((id, _)), None) => Ok(id.0),
            (None, _) => Err("no peer has a public key that begins so".to_owned()),
            (Some(_), Some(_)) => Err("several peers have public keys that begin so".to_owned()),
        }
    }

    fn head(&self) -> Head {
        let now = self.core.now();
        let wall = now.wall.secs * 1_000_000_000 + u64::from(now.wall.nanos);
        let ip = |name: &str| Port {
            name: name.to_owned(),
            ethernet: false,
        };
        let mut lans = vec![ip(self.tun.name())];
        lans.extend(self.lans.iter().map(|lan| Port {
            name: lan.name().to_owned(),
            ethernet: true,
        }));
        Head {
            wall_offset: wall.wrapping_sub(now.mono.0),
            udp_port: self.udp.port,
            lans,
            links: self
                .uplinks
                .iter()
                .map(|uplink| ip(uplink.name().unwrap_or("wan")))
                .collect(),
            reasons: DropReason::ALL
                .iter()
                .map(|reason| reason.name().to_owned())
                .collect(),
        }
    }

    /// Sends on what the workers tell.
    pub(super) fn tend_observation(&mut self) {
        let Some(mut observation) = self.observation.take() else {
            return;
        };
        let own = self.core.device().public_key();
        let mut complete = |record: &mut Record| {
            let Some(peer) = self.core.peer(PeerId(record.peer)) else {
                return;
            };
            record.key = peer.key.0;
            if let (Some(lane), Some(own)) = (&peer.lane, own) {
                let path = lane.tag.path(&own, &peer.key);
                record.lane = [path.local.number(), path.remote.number(), lane.tag.lane()];
            }
        };
        match observation.tend(self.core.mono(), &mut complete) {
            After::GoOn => self.observation = Some(observation),
            After::End => self.core.tell_all(|| Command::Observe(None)),
        }
    }

    /// What there is to wait for, if one is on and waits for something: an asker who has gone is told of without being asked for, again and again.
    pub(super) fn observation_poll(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let observation = self.observation.as_ref()?;
        let wants = observation.wants();
        (!wants.is_empty()).then(|| (observation.connection.as_fd(), wants))
    }

    /// When there is something to do though nothing has come.
    pub(super) fn observation_deadline(&self) -> Option<Time> {
        self.observation.as_ref()?.deadline()
    }
}

#[cfg(test)]
mod tests {
    use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};
    use patronus_observe::{BYTES_MAX, Filter, PACKETS_MAX, Sides};
    use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::observe::{Observing, Seen, View};

    #[test]
    fn who_wants_no_more_is_told_the_end_while_packets_come() {
        let arena = Arena::new(&ArenaConfig {
            frames: 64,
            jumbo_frames: 2,
        });
        let mut packets = Burst::new();
        let packet = FrameCache::new(arena.unwrap()).alloc().unwrap();
        packets.push(packet);
        let task = Task {
            kind: Kind::Capture,
            filter: Filter::parse("").unwrap(),
            sides: Sides::Both,
            snap: 64,
            udp_port: 0,
            round: 1,
        };
        let limits = Arc::new(Limits::new(PACKETS_MAX, BYTES_MAX));
        let (mut observer, told) = observer(&task, 0, &limits, 64);
        let flags = SocketFlags::CLOEXEC;
        let (connection, asker) =
            net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let begin = SystemClock.mono();
        let mut observation = Observation {
            connection,
            kind: Kind::Capture,
            told: vec![told],
            limits,
            out: Vec::new(),
            sent: 0,
            stopped: false,
            end_at: None,
            ended: false,
            progress: begin,
        };
        net::shutdown(&asker, Shutdown::Write).unwrap();
        let ends = (0..20).any(|look| {
            let seen = Seen::at(Point::LanRx, View::Ip, 0);
            Observing::of(Some(&mut observer), &SystemClock)
                .unwrap()
                .see_all(&mut packets, &seen);
            let now = begin.after(Duration::from_millis(10 * look));
            observation.tend(now, &mut |_| {}) == After::End
        });
        assert!(ends);
    }
}
