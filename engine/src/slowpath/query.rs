//! Questions about flows, on the query socket: which policy, class, remote and path, since when; and which flows there are.
//!
//! Workers know, and are asked by command; so the asker waits, and the slow path does not. His connection is kept meanwhile and goes back to the server with the answer.

use std::fmt::Write;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use patronus_crypto::{Duration, Time};
use patronus_io::ip::{FlowKey, PROTO_TCP, PROTO_UDP};
use rustix::io::Errno;

use super::SlowPath;
use super::answers::Hex;
use crate::channel::Command;
use crate::explain::{Asked, Explained, Query, Steered, Whither};
use crate::path::PathName;
use crate::snapshot::Exit;
use crate::uapi::Reply;

/// Questions that are being answered at a time.
const QUESTIONS_MAX: usize = 8;
/// Flows that are told of at most, of all workers together.
pub const FLOWS_MAX: usize = 1000;
/// Workers answer within a turn; who has not by then is stuck.
const PATIENCE: Duration = Duration::from_secs(2);

/// A question that is being answered.
pub(super) struct Pending {
    number: u64,
    connection: OwnedFd,
    asked: Asked,
    /// Answers that have not come yet.
    left: usize,
    /// Which worker has told what.
    told: Vec<(usize, Explained)>,
    most: usize,
    until: Time,
}

/// What somebody wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    asked: Asked,
    most: usize,
}

impl Request {
    /// `ask=why`, and the flow in lines; or `ask=flows`, and how many at most.
    fn parse(text: &str) -> Option<Request> {
        let mut lines = text.lines();
        let what = lines.next()?;
        let (mut src, mut dst) = (None::<IpAddr>, None::<IpAddr>);
        let (mut protocol, mut ports, mut dscp, mut most) = (0u8, [0u16; 2], 0u8, FLOWS_MAX);
        for line in lines {
            let (name, value) = line.split_once('=')?;
            match name {
                "src" => src = Some(value.parse().ok()?),
                "dst" => dst = Some(value.parse().ok()?),
                "protocol" => protocol = value.parse().ok()?,
                "src_port" => ports[0] = value.parse().ok()?,
                "dst_port" => ports[1] = value.parse().ok()?,
                "dscp" => dscp = value.parse().ok().filter(|dscp| *dscp < 64)?,
                "most" => most = value.parse().ok()?,
                _ => return None,
            }
        }
        if !matches!(protocol, PROTO_TCP | PROTO_UDP) {
            ports = [0; 2];
        }
        let [from, to] = ports;
        let asked = match (what, src, dst) {
            ("ask=why", Some(IpAddr::V4(src)), Some(IpAddr::V4(dst))) => {
                let key = FlowKey::v4(src.octets(), dst.octets(), protocol, from, to);
                Asked::Flow(key.with_dscp(dscp))
            }
            ("ask=why", Some(IpAddr::V6(src)), Some(IpAddr::V6(dst))) => {
                let key = FlowKey::v6(src.octets(), dst.octets(), protocol, from, to);
                Asked::Flow(key.with_dscp(dscp))
            }
            ("ask=flows", None, None) => Asked::Flows(0),
            _ => return None,
        };
        Some(Request {
            asked,
            most: most.min(FLOWS_MAX),
        })
    }
}

impl SlowPath {
    /// Asks the workers what somebody wants to know.
    pub(super) fn begin_query(&mut self, request: &str, connection: OwnedFd) {
        let now = self.core.mono();
        let refused = match Request::parse(request) {
            None => Errno::INVAL,
            Some(_) if self.queries.len() >= QUESTIONS_MAX => Errno::BUSY,
            Some(Request { asked, most }) => {
                self.asked += 1;
                let number = self.asked;
                self.queries.push(Pending {
                    number,
                    connection,
                    asked,
                    left: self.stats.len(),
                    told: Vec::new(),
                    most,
                    until: now.after(PATIENCE),
                });
                self.core
                    .tell_each(|worker| Command::Ask(Box::new(Query::new(number, worker, asked))));
                return;
            }
        };
        let mut reply = Reply::new();
        reply.end(Err(refused));
        self.uapi_answer(connection, reply);
    }

    /// A worker has answered.
    pub(super) fn take_answer(&mut self, query: Query) {
        let Some(at) = self.queries.iter().position(|one| one.number == query.number) else {
            return;
        };
        let pending = &mut self.queries[at];
        let room = pending.most.saturating_sub(pending.told.len());
        let told = query
            .told
            .iter()
            .take(room.max(usize::from(pending.asked != Asked::Flows(0))));
        pending.told.extend(told.map(|told| (query.worker, *told)));
        match query.next.filter(|_| pending.told.len() < pending.most) {
            Some(from) => {
                let next = Query::new(query.number, query.worker, Asked::Flows(from));
                self.core.tell_worker(query.worker, Command::Ask(Box::new(next)));
            }
            None => {
                pending.left -= 1;
                if pending.left == 0 {
                    let pending = self.queries.swap_remove(at);
                    self.finish_query(pending);
                }
            }
        }
    }

    /// Answers with what there is whom a worker lets wait.
    pub(super) fn tend_queries(&mut self) {
        let now = self.core.mono();
        while let Some(at) = self.queries.iter().position(|one| one.until <= now) {
            let pending = self.queries.swap_remove(at);
            self.finish_query(pending);
        }
    }

    /// When somebody has waited long enough.
    pub(super) fn queries_deadline(&self) -> Option<Time> {
        self.queries.iter().map(|one| one.until).min()
    }

    fn finish_query(&mut self, pending: Pending) {
        let mut reply = Reply::new();
        let mut told = pending.told;
        if let Asked::Flow(_) = pending.asked {
            // Of its worker, or of the one that has seen it last.
            let is_owner =
                |(worker, told): &(usize, Explained)| told.owner.is_none_or(|owner| owner == *worker);
            told.retain(is_owner);
            let seen = |told: &Explained| (told.idle, told.steered.map(|steered| steered.seen));
            told.sort_by_key(|(_, told)| {
                let (idle, seen) = seen(told);
                (idle.unwrap_or(Duration::MAX), seen.unwrap_or(Duration::MAX))
            });
            told.truncate(1);
        }
        for (worker, told) in &told {
            self.write_explained(*worker, told, &mut reply);
        }
        let result = if pending.left == 0 {
            Ok(())
        } else {
            Err(Errno::TIMEDOUT)
        };
        reply.end(result);
        self.uapi_answer(pending.connection, reply);
    }

    fn write_explained(&self, worker: usize, told: &Explained, out: &mut Reply) {
        let key = &told.key;
        let (src, dst): (IpAddr, IpAddr) = match key.is_ipv6() {
            true => (key.src_v6().into(), key.dst_v6().into()),
            false => (key.src_v4().into(), key.dst_v4().into()),
        };
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(out, "{name}={value}");
        };
        let (from, to) = (key.src_port(), key.dst_port());
        line(
            "flow",
            &format_args!("{src} {dst} {} {from} {to} {}", key.protocol(), key.dscp()),
        );
        line("worker", &worker);
        if let Some(idle) = told.idle {
            line("idle_ms", &idle.as_millis());
        }
        if let Some(bytes) = told.bytes {
            line("bytes", &bytes);
        }
        if let Some(policy) = told.policy {
            let policies = self.site.as_ref().map(|site| &site.told().policies[..]);
            let name = policies.and_then(|all| all.get(policy as usize)?.name.clone());
            line("policy", &name.unwrap_or_else(|| format!("#{}", policy + 1)));
        }
        line("class", &self.core.class_name(told.class).unwrap_or("default"));
        let exit = match told.whither {
            Whither::Dropped => "dropped",
            Whither::NoRoute | Whither::Exit(Exit::Unreachable) => "unreachable",
            Whither::Exit(Exit::Discard) => "discard",
            Whither::Exit(Exit::Lan(0, _)) => "host",
            Whither::Exit(Exit::Lan(..) | Exit::Neighbour(..)) => "lan",
            Whither::Exit(Exit::Tunnel(_)) => "tunnel",
        };
        line("exit", &exit);
        let Some(peer) = told.peer() else { return };
        if let Some(peer) = self.core.peer(peer) {
            line("peer", &Hex(peer.key));
        }
        if let Some(bucket) = told.bucket {
            line("bucket", &bucket);
        }
        let Some(steered) = &told.steered else { return };
        let Steered {
            path,
            home,
            second,
            since,
            seen,
        } = steered;
        for (name, path) in [("path", path), ("home", home), ("second", second)] {
            if let Some(path) = path {
                line(name, path);
            }
        }
        if path.is_some() {
            line("since_ms", &since.as_millis());
            line("bucket_idle_ms", &seen.as_millis());
        }
        let up = self.core.board(peer).map_or(0, |board| board.up());
        if let Some((order, paths)) = self.core.order_of(peer, told.class) {
            line("ordered", &u8::from(self.core.is_ordered(peer, told.class)));
            for place in order.rank() {
                let name: PathName = paths[usize::from(*place)].0;
                let good = u8::from(order.good() & 1 << place != 0);
                let up = u8::from(up & 1 << place != 0);
                line("candidate", &format_args!("{name} {good} {up}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_or_refused() {
        let why = "ask=why\nsrc=10.0.0.1\ndst=10.1.0.1\nprotocol=17\nsrc_port=1\ndst_port=2\ndscp=46";
        let key = FlowKey::v4([10, 0, 0, 1], [10, 1, 0, 1], 17, 1, 2).with_dscp(46);
        assert_eq!(Request::parse(why).unwrap().asked, Asked::Flow(key));
        // What has no ports has none here.
        let icmp = why.replace("=17", "=1");
        let key = FlowKey::v4([10, 0, 0, 1], [10, 1, 0, 1], 1, 0, 0).with_dscp(46);
        assert_eq!(Request::parse(&icmp).unwrap().asked, Asked::Flow(key));
        let v6 = "ask=why\nsrc=fd00::1\ndst=fd00::2";
        assert!(matches!(Request::parse(v6).unwrap().asked, Asked::Flow(key) if key.is_ipv6()));
        let flows = |most: &str| Request::parse(&format!("ask=flows\nmost={most}"));
        assert_eq!(flows("5").unwrap().most, 5);
        assert_eq!(flows("5000").unwrap().most, FLOWS_MAX);
        for wrong in [
            "",
            "ask=who",
            "ask=why",
            "ask=why\nsrc=10.0.0.1",
            "ask=why\nsrc=10.0.0.1\ndst=fd00::1",
            "ask=why\nsrc=10.0.0.1\ndst=10.0.0.2\ndscp=64",
            "ask=why\nsrc=10.0.0.1\ndst=10.0.0.2\ncolour=3",
            "ask=flows\nmost=-1",
            "ask=flows\nsrc=10.0.0.1\ndst=10.0.0.2",
        ] {
            assert_eq!(Request::parse(wrong), None, "{wrong}");
        }
    }
}
