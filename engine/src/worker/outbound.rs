//! From a LAN port into tunnels: what a worker takes in there is routed if it has a router, sealed, and sent.
//!
//! And what it has to say itself: errors, control messages, keepalives, pings.

use patronus_crypto::{PeerId, Time};
use patronus_mem::Burst;
use patronus_observe::Point;

use super::{LanPort, Stages, Worker};
use crate::ethernet;
use crate::observe::{Seen, View};
use crate::route::{Ingress, Parsed, Spread};
use crate::stats::{Lap, Stage};
use crate::wg::Context;

impl Worker {
    /// One burst from a LAN port. True if there may be more.
    pub(super) fn outbound(&mut self, now: Time, lan: usize) -> bool {
        let Some(LanPort { port, ethernet }) = &mut self.lans[lan] else {
            return false;
        };
        let (lap, ethernet) = (Lap::start(), *ethernet);
        let mut inner = Burst::new();
        if let Err(error) = port.rx_burst(&mut self.frames, &mut inner) {
            self.lan_gone(now, lan, error);
            return false;
        }
        let more = inner.room() == 0 || port.has_pending();
        if inner.is_empty() {
            return more;
        }
        self.stats.burst(Stage::LanRx, inner.len(), lap);
        if self.observer.is_some() {
            let view = if ethernet { View::Ethernet } else { View::Ip };
            self.observe(&mut inner, &Seen::at(Point::LanRx, view, lan));
        }
        if self.router.is_none() {
            self.seal_and_send(now, &mut inner);
        } else if ethernet {
            self.with_context(now, |_, cx| ethernet::strip(cx, &mut inner));
            self.route(now, &mut inner, Ingress::Ethernet, Spread::Yes);
        } else {
            self.route(now, &mut inner, Ingress::Tun, Spread::Yes);
        }
        more
    }

    /// Sends packets to the peers that the allowed-ips say.
    pub(super) fn seal_and_send(&mut self, now: Time, inner: &mut Burst) {
        self.seal_by(now, |stages, cx, wire| stages.wg.encap(cx, inner, wire));
        self.send_errors(now);
    }

    /// Sends what `seal` makes, and what has to come behind it.
    pub(super) fn seal_by(&mut self, now: Time, seal: impl FnOnce(Stages<'_>, &mut Context<'_>, &mut Burst)) {
        let mut wire = Burst::new();
        self.with_context(now, |stages, cx| seal(stages, cx, &mut wire));
        self.send(&mut wire);
        self.send_copies(now);
        while self.wg.has_later() {
            self.with_context(now, |stages, cx| stages.wg.encap_later(cx, &mut wire));
            self.send(&mut wire);
            self.send_copies(now);
        }
        self.send_unblocked(now);
    }

    /// Sends packets to where the router says.
    pub(super) fn route(&mut self, now: Time, inner: &mut Burst, from: Ingress, spread: Spread) {
        if inner.is_empty() {
            return;
        }
        self.sort_and_send(now, inner, from, spread);
        self.send_errors(now);
    }

    /// Sends packets to where the router says that another worker has parsed.
    pub(super) fn route_parsed(&mut self, now: Time, parsed: &mut Parsed, from: Ingress) {
        if parsed.is_empty() {
            return;
        }
        self.with_context(now, |stages, cx| {
            let router = stages.router.expect("only a worker with a router routes");
            router.route_parsed(cx, parsed, from, stages.exits);
        });
        self.send_exits(now);
        self.send_errors(now);
    }

    fn sort_and_send(&mut self, now: Time, inner: &mut Burst, from: Ingress, spread: Spread) {
        self.with_context(now, |stages, cx| {
            let router = stages.router.expect("only a worker with a router routes");
            router.route(cx, inner, from, spread, stages.exits);
        });
        self.send_exits(now);
    }

    /// Sends what the router has sorted.
    fn send_exits(&mut self, now: Time) {
        if !self.exits.tunnels.packets.is_empty() {
            self.seal_by(now, |stages, cx, wire| {
                stages.wg.encap_bound(cx, &mut stages.exits.tunnels, wire);
            });
        }
        for lan in 0..self.exits.lans.len() {
            if !self.exits.lans[lan].is_empty() {
                let mut burst = std::mem::take(&mut self.exits.lans[lan]);
                self.deliver(now, lan, &mut burst);
            }
        }
    }

    /// Sends packets that waited for neighbours of whom more is known now.
    pub(super) fn send_waiting(&mut self, now: Time) {
        self.with_context(now, |stages, cx| {
            if let Some(router) = stages.router {
                router.release(cx, stages.exits);
            }
        });
        self.send_exits(now);
        self.send_errors(now);
    }

    /// Tells senders why their packets went no further. There are no errors about errors, so this ends.
    pub(super) fn send_errors(&mut self, now: Time) {
        if !self.wg.icmp.waiting.is_empty() {
            let mut errors = std::mem::take(&mut self.wg.icmp.waiting);
            match self.router {
                None => self.deliver(now, 0, &mut errors),
                Some(_) => self.sort_and_send(now, &mut errors, Ingress::Own, Spread::No),
            }
        }
        if let Some(router) = &mut self.router
            && !router.icmp.waiting.is_empty()
        {
            let mut errors = std::mem::take(&mut router.icmp.waiting);
            self.sort_and_send(now, &mut errors, Ingress::Own, Spread::No);
        }
    }

    /// Sends what waited for a session with `peer`.
    pub(super) fn send_staged(&mut self, now: Time, peer: PeerId, keepalive: bool) {
        let mut more = true;
        while more {
            let mut wire = Burst::new();
            more = self.with_context(now, |stages, cx| {
                stages.wg.encap_staged(cx, peer, keepalive, &mut wire)
            });
            more &= !wire.is_empty();
            self.send(&mut wire);
        }
    }

    /// Sends the second ones of packets that go twice.
    #[inline]
    fn send_copies(&mut self, now: Time) {
        if self.wg.has_copies() {
            let mut wire = Burst::new();
            self.with_context(now, |stages, cx| stages.wg.encap_copies(cx, &mut wire));
            self.send(&mut wire);
        }
    }

    /// Sends what waited for the base session of remotes to which there are lanes by now.
    fn send_unblocked(&mut self, now: Time) {
        while let Some(remote) = self.wg.take_unblocked() {
            self.send_staged(now, remote, false);
        }
    }

    /// Sends a control message; without a session it is lost, and repeated like one.
    pub(super) fn send_control(&mut self, now: Time, peer: PeerId, bytes: &[u8]) {
        let mut wire = Burst::new();
        self.with_context(now, |stages, cx| {
            stages.wg.encap_control(cx, peer, bytes, &mut wire);
        });
        self.send(&mut wire);
    }

    /// Sends a ping; without a session it is lost, and so is its answer.
    pub(super) fn send_ping(&mut self, now: Time, peer: PeerId, ping: &[u8]) {
        let mut wire = Burst::new();
        self.with_context(now, |stages, cx| stages.wg.encap_ping(cx, peer, ping, &mut wire));
        self.send(&mut wire);
    }
}
