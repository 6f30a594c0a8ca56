//! Deadlines: what happens because time passes.

use patronus_mem::wipe_stack;

use super::Device;
use super::output::{Output, Outputs};
use crate::timeouts::MAX_HANDSHAKE_ATTEMPTS;
use crate::timers::Due;
use crate::{Now, PeerId, Random, Time};

/// Peers whose deadlines one call of `poll` looks at, so that ten thousand that come due together do not hold up the queue of handshakes.
const PEERS_PER_POLL: usize = 64;

impl Device {
    /// When [`poll`](Self::poll) has to be called next; `None` if nothing is waiting for time to pass. May lie in the past.
    pub fn next_deadline(&self) -> Option<Time> {
        self.schedule.first().map(|(at, _)| at)
    }

    /// Does what is due, for a bounded number of peers: the next deadline may still be in the past afterwards.
    pub fn poll(&mut self, now: &Now, rng: &mut dyn Random, out: &mut Outputs) {
        self.latest = now.mono;
        for _ in 0..PEERS_PER_POLL {
            match self.schedule.first() {
                Some((at, peer)) if at <= now.mono => self.expire(peer, now, rng, out),
                _ => break,
            }
        }
    }

    /// A worker started a timer of a peer that nobody watched.
    pub fn watch(&mut self, peer: PeerId) {
        self.reschedule(peer);
    }

    /// Puts the peer where its next deadline is.
    pub(super) fn reschedule(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::as_mut) else {
            return;
        };
        let deadline = match self.up {
            true => peer
                .timers
                .next(&peer.traffic, &self.times, self.latest, &mut || {
                    self.jitter.draw(self.times.rekey_timeout_jitter)
                }),
            false => None,
        };
        self.schedule.set(id, deadline);
    }

    fn expire(&mut self, id: PeerId, now: &Now, rng: &mut dyn Random, out: &mut Outputs) {
        while let Some(due) = self.take_due(id, now.mono) {
            match due {
                Due::Retransmit => self.retransmit(id, now, rng, out),
                Due::NewHandshake => {
                    out.push(Output::ClearSource { peer: id });
                    self.want_handshake(id, now, rng, out);
                }
                Due::Keepalive | Due::PersistentKeepalive => self.keepalive(id, now, rng, out),
                Due::Erase => self.erase(id, out),
            }
        }
        self.reschedule(id);
    }

    fn take_due(&mut self, id: PeerId, now: Time) -> Option<Due> {
        let peer = self.peers.get_mut(id.0 as usize)?.as_mut()?;
        peer.timers.take_due(&peer.traffic, &self.times, now, &mut || {
            self.jitter.draw(self.times.rekey_timeout_jitter)
        })
    }

    /// No response came: tries again, or gives up after about 90 seconds.
    fn retransmit(&mut self, id: PeerId, now: &Now, rng: &mut dyn Random, out: &mut Outputs) {
        let erase_at = now.mono.after(self.times.erase_after());
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::as_mut) else {
            return;
        };
        if peer.timers.attempts > MAX_HANDSHAKE_ATTEMPTS {
            peer.timers.stop_keepalive(&peer.traffic);
            peer.timers.erase_at.get_or_insert(erase_at);
            out.push(Output::DropStaged { peer: id });
            return;
        }
        peer.timers.attempts += 1;
        if let Some(sent) = peer
            .last_handshake_sent
            .filter(|_| peer.must_pause(&self.times, now.mono))
        {
            // We answered an initiation of the peer meanwhile. If that handshake comes to nothing, ours goes on.
            let pause = self.times.rekey_timeout + self.jitter.draw(self.times.rekey_timeout_jitter);
            peer.timers.retransmit_at = Some(sent.after(pause));
            return;
        }
        out.push(Output::ClearSource { peer: id });
        self.initiate(id, now, rng, out);
    }

    /// An empty packet in the session there is; without one, a handshake.
    fn keepalive(&mut self, id: PeerId, now: &Now, rng: &mut dyn Random, out: &mut Outputs) {
        match self.get(id) {
            Some(peer) if peer.has_session(&self.times, now.mono) => out.push(Output::Keepalive { peer: id }),
            _ => self.want_handshake(id, now, rng, out),
        }
    }

    /// Long without a new session: nothing that could open a packet is kept.
    fn erase(&mut self, id: PeerId, out: &mut Outputs) {
        if let Some(peer) = self.get_mut(id) {
            let waiting = peer.waiting.take();
            peer.forget_session();
            if let Some(waiting) = waiting {
                self.indices.free(waiting.index);
            }
            wipe_stack();
            out.push(Output::EraseKeys { peer: id });
        }
    }
}
