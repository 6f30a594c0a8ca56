//! Answers to questions about the engine ([`Question`]), for whoever shows it to people: copies in lines of text, made when they are asked for.
//!
//! Called on the slow-path thread, from the UAPI's server. Only public keys are in them.

use std::fmt::{Display, Write};
use std::net::IpAddr;

use patronus_crypto::{PeerId, PublicKey, Time};

use super::SlowPath;
use super::core::Peer;
use crate::control::{Control, Refusals};
use crate::path::PathName;
use crate::plan::Via;
use crate::uapi::{Question, Reply};

/// Peers for which the host is asked whether it has a route: each question is a system call.
const ROUTES_ASKED_FOR: usize = 64;

/// A key as the rest of the protocol writes it.
pub(super) struct Hex(pub PublicKey);

impl Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Appends a line. Writing into memory cannot fail.
fn line(out: &mut Reply, name: &str, value: impl Display) {
    let _ = writeln!(out, "{name}={value}");
}

impl SlowPath {
    pub(super) fn answer(&self, question: Question, out: &mut Reply) {
        match question {
            Question::Stats => self.tell_stats(out),
            Question::Peers => self.tell_peers(out),
            Question::Lanes => self.tell_lanes(out),
            Question::Paths => self.tell_paths(out),
            Question::Routes => self.tell_routes(out),
            Question::Links => self.tell_links(out),
            Question::Memory => self.tell_memory(out),
        }
    }

    fn tell_stats(&self, out: &mut Reply) {
        for (i, stats) in self.stats.iter().enumerate() {
            stats.write(&format!("worker{i}."), out);
        }
        let device = self.core.device();
        for (refusal, value) in device.counters().iter() {
            line(out, &format!("handshake.{}", refusal.name()), value);
        }
        let refusals = self.control.as_ref().map(Control::refusals);
        for (name, value) in refusals.iter().flat_map(Refusals::named) {
            line(out, &format!("control.{name}"), value);
        }
        line(out, "controls-unknown", self.core.unknown_controls());
        for (id, peer) in self.core.peers().filter(|(id, _)| self.core.is_remote(*id)) {
            let Some(own) = device.public_key() else { continue };
            for (tag, lane) in self.core.lanes(id) {
                let (path, traffic) = (tag.path(&own, &peer.key), device.traffic(lane));
                let (local, remote) = (path.local.number(), path.remote.number());
                let name = format!(
                    "remote.{:?}.link{local}-link{remote}.lane{}",
                    peer.key,
                    tag.lane()
                );
                let last = device.last_handshake(lane).map_or(0, |at| at.secs);
                line(out, &format!("{name}.sent-bytes"), traffic.sent_bytes());
                line(out, &format!("{name}.received-bytes"), traffic.received_bytes());
                line(out, &format!("{name}.last-handshake"), last);
            }
        }
        for (name, counter, value) in self.counters.totals() {
            line(out, &format!("{name}.{counter}"), value);
        }
    }

    fn tell_peers(&self, out: &mut Reply) {
        let device = self.core.device();
        line(out, "interface", self.tun.name());
        if let Some(own) = device.public_key() {
            line(out, "public_key", Hex(own));
        }
        line(out, "listen_port", self.udp.port);
        line(out, "fwmark", self.udp.fwmark);
        line(out, "up", u8::from(self.link_up));
        line(out, "open", u8::from(self.core.is_open()));
        let mut asked = 0;
        for (id, peer) in self.core.peers() {
            line(out, "peer", Hex(peer.key));
            self.tell_peer(id, peer, &mut asked, out);
        }
    }

    fn tell_peer(&self, id: PeerId, peer: &Peer, asked: &mut usize, out: &mut Reply) {
        let device = self.core.device();
        // With its lanes: what is sent and received in them is the peer's as well.
        let sessions = || device.lanes(id).map(|(_, lane)| lane).chain([id]);
        let sent: u64 = sessions().map(|id| device.traffic(id).sent_bytes()).sum();
        let received: u64 = sessions().map(|id| device.traffic(id).received_bytes()).sum();
        let handshakes = sessions().filter_map(|id| device.last_handshake(id));
        let newest = handshakes.max_by_key(|at| (at.secs, at.nanos));
        line(out, "remote", u8::from(self.core.is_remote(id)));
        line(out, "preshared", u8::from(device.psk(id).is_some()));
        if let Some(endpoint) = peer.endpoint.remote() {
            line(out, "endpoint", endpoint);
            if newest.is_none() && *asked < ROUTES_ASKED_FOR {
                *asked += 1;
                line(out, "routed", u8::from(self.host_leads_to(endpoint.ip())));
            }
        }
        line(out, "tries", peer.tries);
        line(out, "last_handshake", newest.map_or(0, |at| at.secs));
        line(out, "sent_bytes", sent);
        line(out, "received_bytes", received);
        line(out, "keepalive", device.persistent_keepalive(id));
        for prefix in self.core.allowed_ips().of_peer(id) {
            line(out, "allowed_ip", prefix);
        }
    }

    /// Whether datagrams to that address leave the host at all. Who cannot be asked has not said that there is no route.
    fn host_leads_to(&self, to: IpAddr) -> bool {
        let mut links = (0..self.uplinks.len()).filter_map(|at| self.core.ifindex(at));
        let mark = self.udp.fwmark;
        if !self.has_links() {
            return !matches!(self.routes.next_hop(None, to, None, mark), Ok(None));
        }
        links.any(|link| self.routes.leads_to(to, link, mark).unwrap_or(true))
    }

    fn tell_lanes(&self, out: &mut Reply) {
        let device = self.core.device();
        let Some(own) = device.public_key() else { return };
        for (base, peer) in self.core.peers().filter(|(id, _)| self.core.is_remote(*id)) {
            for (tag, lane) in self.core.lanes(base) {
                let (path, traffic) = (tag.path(&own, &peer.key), device.traffic(lane));
                let (local, remote) = (path.local.number(), path.remote.number());
                let name = format_args!("{} {local} {remote} {}", Hex(peer.key), tag.lane()).to_string();
                line(out, "lane", name);
                let endpoint = self.core.peer(lane).and_then(|lane| lane.endpoint.remote());
                if let Some(endpoint) = endpoint {
                    line(out, "endpoint", endpoint);
                }
                let last = device.last_handshake(lane).map_or(0, |at| at.secs);
                line(out, "last_handshake", last);
                line(out, "sent_bytes", traffic.sent_bytes());
                line(out, "received_bytes", traffic.received_bytes());
            }
        }
    }

    /// What was never measured is not told.
    fn tell_paths(&self, out: &mut Reply) {
        let now = self.core.mono();
        for (base, peer) in self.core.peers().filter(|(id, _)| self.core.is_remote(*id)) {
            for report in self.core.path_reports(base) {
                let PathName { local, remote } = report.path;
                line(out, "path", format_args!("{} {local} {remote}", Hex(peer.key)));
                line(out, "state", report.state.word());
                line(out, "why", report.why.word());
                line(out, "since_ms", now.since(Time(report.since)).as_millis());
                line(out, "in_use", u8::from(report.in_use));
                let measured = [
                    ("mtu", report.mtu.map(u32::from)),
                    ("interval_us", report.interval),
                    ("remote_interval_us", report.remote_interval),
                    ("rtt_us", report.rtt),
                    ("rtt_min_us", report.rtt_min),
                    ("jitter_in_us", report.remote_interval.map(|_| report.jitter_in)),
                    ("jitter_out_us", report.remote_interval.map(|_| report.jitter_out)),
                ];
                for (name, value) in measured {
                    value.into_iter().for_each(|value| line(out, name, value));
                }
                line(out, "in_sent", report.in_sent);
                line(out, "in_received", report.in_received);
                line(out, "out_sent", report.out_sent);
                line(out, "out_received", report.out_received);
                line(out, "sent_bytes", report.sent_bytes);
                line(out, "received_bytes", report.received_bytes);
                line(out, "probes_sent", report.probes_sent);
                line(out, "probes_received", report.probes_received);
                line(out, "samples", report.samples);
            }
        }
    }

    fn tell_routes(&self, out: &mut Reply) {
        let Some(routing) = &self.routing else {
            for (prefix, peer) in self.core.allowed_ips().iter() {
                line(out, "route", prefix);
                self.tell_via(&Via::Tunnel(peer), out);
            }
            return;
        };
        let builder = &routing.builder;
        for (prefix, vias) in &builder.wanted().routes {
            line(out, "route", prefix);
            vias.iter().for_each(|via| self.tell_via(via, out));
        }
        let configured = &builder.wanted().routes;
        for (prefix, vias) in builder
            .dynamic_routes()
            .filter(|(prefix, _)| !configured.contains_key(prefix))
        {
            line(out, "route", prefix);
            line(out, "dynamic", 1);
            vias.iter().for_each(|via| self.tell_via(via, out));
        }
    }

    fn tell_via(&self, via: &Via, out: &mut Reply) {
        match via {
            Via::Tunnel(peer) => {
                let key = self.core.peer(*peer).map(|peer| Hex(peer.key));
                // Gone since: what leads there goes nowhere.
                let Some(key) = key else {
                    return line(out, "via", "discard");
                };
                line(out, "via", format_args!("peer {key}"));
            }
            Via::Lan(0, _) => line(out, "via", "host"),
            Via::Lan(lan, Some(address)) => line(out, "via", format_args!("lan {lan} {address}")),
            Via::Lan(lan, None) | Via::Connected(lan) => line(out, "via", format_args!("lan {lan}")),
            Via::Discard => line(out, "via", "discard"),
        }
    }

    fn tell_links(&self, out: &mut Reply) {
        if !self.has_links() {
            return;
        }
        for (at, uplink) in self.uplinks.iter().enumerate() {
            line(out, "link", at);
            uplink.tell(&mut |name, value| line(out, name, value));
            let sends = self.core.sends(at);
            line(out, "running", u8::from(self.core.ifindex(at).is_some()));
            line(out, "leads_v4", u8::from(sends.v4));
            line(out, "leads_v6", u8::from(sends.v6));
        }
    }

    fn tell_memory(&self, out: &mut Reply) {
        line(out, "frames", self.arena.frames());
        line(out, "frames_free", self.arena.free_frames());
        line(out, "huge_pages", u8::from(self.arena.is_huge()));
        line(out, "indices", self.core.device().indices_in_use());
        line(out, "peers", self.core.peers().count());
        if let Some(routing) = &self.routing {
            line(out, "routes", routing.builder.wanted().routes.len());
            line(out, "dynamic_routes", routing.builder.dynamic_len());
            line(out, "policies", routing.builder.wanted().policies.len());
        }
    }
}
