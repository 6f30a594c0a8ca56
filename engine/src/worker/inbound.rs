//! From a WAN port out of tunnels, and what other workers have taken in for flows and sessions of this one.

use arrayvec::ArrayVec;
use patronus_crypto::{PeerId, Time};
use patronus_mem::{BURST_MAX, Burst};
use patronus_observe::Point;

use super::{BURSTS_PER_TURN, Poller, Told, Worker};
use crate::channel::WanPort;
use crate::crew::Taken;
use crate::observe::{Seen, View};
use crate::route::{Ingress, Spread};
use crate::stats::{DropReason, Lap, Stage};
use crate::wg::{Context, Wg};

/// Peers whose session a burst has confirmed.
type Confirmed = ArrayVec<PeerId, BURST_MAX>;

impl Worker {
    /// One burst from a WAN port. True if there may be more.
    pub(super) fn inbound(
        &mut self,
        now: Time,
        wan: usize,
        poller: Option<&mut Poller>,
    ) -> Result<bool, Told> {
        let Some(WanPort { port, .. }) = &mut self.wans[wan] else {
            return Ok(false);
        };
        let lap = Lap::start();
        let mut wire = Burst::new();
        // A UDP socket's errors are about single datagrams or peers; the port has counted them.
        let _ = port.rx_burst(&mut self.frames, &mut wire);
        let more = wire.room() == 0 || port.has_pending();
        if !wire.is_empty() {
            self.stats.burst(Stage::WanRx, wire.len(), lap);
            if self.observer.is_some() {
                self.observe(&mut wire, &Seen::at(Point::WanRx, View::Received, wan));
            }
            if self.is_cut(wan) {
                self.drop_in_drill(&mut wire, DropReason::DrillReceived, View::Received);
            }
            // A packet of a session that was installed after this turn began may be here already: its sender was faster
            // than the turn. The command came before the packet, so obeying now makes the session known.
            self.obey(now, poller)?;
            self.open_and_deliver(now, |wg, cx, inner, confirmed| {
                wg.decap(cx, &mut wire, inner, confirmed);
            });
        }
        Ok(more)
    }

    /// Gives on what `open` makes of datagrams.
    fn open_and_deliver(
        &mut self,
        now: Time,
        open: impl FnOnce(&mut Wg, &mut Context<'_>, &mut Burst, &mut Confirmed),
    ) {
        let mut inner = Burst::new();
        let mut confirmed = Confirmed::new();
        self.with_context(now, |stages, cx| open(stages.wg, cx, &mut inner, &mut confirmed));
        match self.router {
            None => self.deliver(now, 0, &mut inner),
            Some(_) => self.route(now, &mut inner, Ingress::Tunnel, Spread::No),
        }
        for peer in confirmed {
            self.send_staged(now, peer, false);
        }
    }

    /// What other workers took in for flows and sessions of this one.
    pub(super) fn handed_over(&mut self, now: Time, mut poller: Option<&mut Poller>) -> Result<(), Told> {
        for number in 0..self.crew.workers() {
            for _ in 0..BURSTS_PER_TURN {
                if !self.has_room() {
                    return Ok(());
                }
                if self.expected[number].is_empty() && !self.take(number) {
                    break;
                }
                let spare = self.spare.take().unwrap_or_default();
                let mut taken = std::mem::replace(&mut self.expected[number], spare);
                // The next ones come while these are worked off.
                self.take(number);
                if self.observer.is_some() {
                    self.observe_taken(&mut taken, number);
                }
                self.work_off(now, &mut taken, poller.as_deref_mut())?;
                self.spare = Some(taken);
            }
        }
        Ok(())
    }

    /// Takes a burst from each of the other workers. The packets come out of those workers' caches while this one's own are worked on.
    pub(super) fn expect(&mut self) {
        for number in 0..self.expected.len() {
            if self.expected[number].is_empty() {
                self.take(number);
            }
        }
    }

    fn take(&mut self, number: usize) -> bool {
        self.crew
            .take(number, &mut self.expected[number], self.frames.arena())
    }

    fn work_off(&mut self, now: Time, taken: &mut Taken, poller: Option<&mut Poller>) -> Result<(), Told> {
        self.route_parsed(now, &mut taken.from_tun, Ingress::Tun);
        self.route_parsed(now, &mut taken.from_ethernet, Ingress::Ethernet);
        if !taken.encap.is_empty() {
            self.seal_and_send(now, &mut taken.encap);
        }
        if !taken.seal.packets.is_empty() {
            self.seal_by(now, |stages, cx, wire| {
                stages.wg.encap_bound(cx, &mut taken.seal, wire);
            });
            self.send_errors(now);
        }
        if !taken.decap.is_empty() {
            // As in `inbound`: the session may be newer than this turn.
            self.obey(now, poller)?;
            self.open_and_deliver(now, |wg, cx, inner, confirmed| {
                wg.decap_claimed(cx, &mut taken.decap, inner, confirmed);
            });
        }
        Ok(())
    }
}
