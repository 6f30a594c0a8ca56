//! Handshake messages, in and out.

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use patronus_mem::wipe_stack;

use super::output::{Output, Outputs, To};
use super::{Device, Local};
use crate::keypair::{Keypair, Session};
use crate::messages::{self, CookieReply, Initiation, Malformed, Message, Response};
use crate::noise::{self, SessionKeys, Waiting};
use crate::ratelimit::Verdict;
use crate::refusal::Refusal;
use crate::{LinkId, Now, PeerId, Random, Time, WallClock};

/// How long we count as under load after the queue was last long.
const LOAD_LINGERS: crate::Duration = crate::Duration::from_secs(1);

impl Device {
    /// Takes a datagram that is not data. `queue_len`: how many more are waiting, from which we see whether we are under load.
    pub fn receive(
        &mut self,
        now: &Now,
        from: &SocketAddr,
        msg: &[u8],
        queue_len: usize,
        rng: &mut dyn Random,
        out: &mut Outputs,
    ) {
        self.receive_on(None, now, from, msg, queue_len, rng, out);
    }

    /// The same for one that came in on this link (`None`: not known), which has to be the one of the lane that it is for.
    #[expect(clippy::too_many_arguments)]
    pub fn receive_on(
        &mut self,
        link: Option<LinkId>,
        now: &Now,
        from: &SocketAddr,
        msg: &[u8],
        queue_len: usize,
        rng: &mut dyn Random,
        out: &mut Outputs,
    ) {
        self.latest = now.mono;
        let operations = self.dh_operations();
        if let Err(refusal) = self.take(link, now, from, msg, queue_len, rng, out) {
            self.counters.count(refusal);
        }
        if self.dh_operations() != operations {
            wipe_stack();
        }
    }

    /// What costs nothing is checked first, and nothing that costs a Diffie-Hellman before both MACs.
    #[inline(never)]
    #[expect(clippy::too_many_arguments)]
    fn take(
        &mut self,
        link: Option<LinkId>,
        now: &Now,
        from: &SocketAddr,
        msg: &[u8],
        queue_len: usize,
        rng: &mut dyn Random,
        out: &mut Outputs,
    ) -> Result<(), Refusal> {
        let parsed = messages::parse(msg).map_err(|malformed| match malformed {
            Malformed::Length => Refusal::Length,
            Malformed::Type => Refusal::Type,
        })?;
        if !self.up {
            return Err(Refusal::Down);
        }
        match parsed {
            Message::Initiation(initiation) => {
                self.admit(now.mono, from, msg, initiation.sender, queue_len, rng, out)?;
                self.take_initiation(link, now, &initiation, rng, out)
            }
            Message::Response(response) => {
                self.admit(now.mono, from, msg, response.sender, queue_len, rng, out)?;
                self.take_response(now, &response, out)
            }
            Message::CookieReply(reply) => self.take_cookie(now.mono, &reply, out),
            Message::Data(..) => Err(Refusal::Type),
        }
    }

    /// Whether a message may cost us a Diffie-Hellman: mac1, and under load mac2 and the source's share.
    #[expect(clippy::too_many_arguments)]
    fn admit(
        &mut self,
        now: Time,
        from: &SocketAddr,
        msg: &[u8],
        sender: u32,
        queue_len: usize,
        rng: &mut dyn Random,
        out: &mut Outputs,
    ) -> Result<(), Refusal> {
        let under_load = self.is_under_load(now, queue_len);
        let Local { checker, .. } = self.local.as_mut().ok_or(Refusal::NoPrivateKey)?;
        if !checker.mac1_is_valid(msg) {
            return Err(Refusal::Mac1);
        }
        if !under_load {
            return Ok(());
        }
        if !checker.mac2_is_valid(msg, from, &self.times, now, rng) {
            if let Some(reply) = checker.reply(msg, sender, from, &self.times, now, rng) {
                let msg = payload(&reply.encode());
                out.push(Output::Send {
                    to: To::Source,
                    msg,
                    handshake: false,
                });
            }
            return Err(Refusal::CookieRequired);
        }
        match self.limiter.allow(from.ip(), now) {
            Verdict::Allowed => Ok(()),
            Verdict::Limited => Err(Refusal::RateLimited),
            Verdict::Full => Err(Refusal::TooManySources),
        }
    }

    fn is_under_load(&mut self, now: Time, queue_len: usize) -> bool {
        if queue_len >= self.limits.load_threshold {
            self.under_load = Some(now);
        } else if self
            .under_load
            .is_some_and(|since| now.since(since) >= LOAD_LINGERS)
        {
            self.under_load = None;
        }
        self.under_load.is_some()
    }

    /// An initiation that passed the MACs: proves its sender, answers it, and makes a session that the peer has to confirm.
    fn take_initiation(
        &mut self,
        link: Option<LinkId>,
        now: &Now,
        message: &Initiation,
        rng: &mut dyn Random,
        out: &mut Outputs,
    ) -> Result<(), Refusal> {
        let local = self.local.as_ref().ok_or(Refusal::NoPrivateKey)?;
        let claimed = noise::identify(&mut self.curve, &local.identity, message)?;
        let base = self.peer(&claimed.remote).ok_or(Refusal::UnknownPeer)?;
        let shared = self.get(base).and_then(|peer| peer.shared.as_ref());
        let proven = noise::authenticate(claimed, shared.ok_or(Refusal::LowOrderKey)?, message)?;
        let id = self.addressed(base, proven.stamp, link)?;
        let peer = self.peers[id.0 as usize].as_mut().ok_or(Refusal::UnknownPeer)?;
        if !peer.stamps.is_newer(proven.stamp) {
            return Err(Refusal::OldTimestamp);
        }
        if peer
            .last_initiation
            .is_some_and(|last| now.mono.since(last) < self.times.initiation_interval)
        {
            return Err(Refusal::Flood);
        }
        let stamp = proven.stamp;
        peer.stamps.accept(stamp);
        peer.last_initiation = Some(now.mono);
        // Both sides initiated. One of the two handshakes has to go, the same one for both sides: the side with the smaller key
        // keeps its own and answers all the same, because ours may have been lost. A stock peer always drops its own.
        if peer.public < local.identity.public
            && let Some(waiting) = peer.waiting.take()
        {
            self.indices.free(waiting.index);
        }
        let origin = self.peers[base.0 as usize].as_mut().ok_or(Refusal::UnknownPeer)?;
        if let Some(remote) = origin.as_remote_mut() {
            remote.accept(stamp);
        }

        let index = self.indices.allocate(id, rng);
        let responded = noise::respond(&mut self.curve, proven, origin.psk.as_ref(), index, rng);
        let (keys, response) = responded.inspect_err(|_| self.indices.free(index))?;
        let peer = self.peers[id.0 as usize].as_mut().ok_or(Refusal::UnknownPeer)?;
        let mut msg = payload(&response.encode());
        peer.macs.add_macs(&mut msg, &self.times, now.mono);
        peer.last_handshake_sent = Some(now.mono);
        peer.unconfirmed = Some(now.mono);
        peer.traffic.handshake_received(messages::INITIATION_LEN);
        peer.traffic.handshake_sent(msg.len());

        let session = Session {
            peer: id,
            local_index: index,
            remote_index: response.receiver,
            initiator: false,
            created: now.mono,
        };
        out.push(Output::MoveEndpoint { peer: id });
        self.session_derived(session, &keys, out);
        // After the session, so that the worker knows it before the peer can use it.
        out.push(Output::Send {
            to: To::Peer(id),
            msg,
            handshake: true,
        });
        Ok(())
    }

    /// A response that passed the MACs: completes our handshake, if it is for the one that waits.
    fn take_response(&mut self, now: &Now, message: &Response, out: &mut Outputs) -> Result<(), Refusal> {
        let local = self.local.as_ref().ok_or(Refusal::NoPrivateKey)?;
        let id = self
            .indices
            .peer(message.receiver)
            .ok_or(Refusal::ResponseIndex)?;
        let found = self.peers.get_mut(id.0 as usize).and_then(Option::as_mut);
        let peer = found.ok_or(Refusal::ResponseIndex)?;
        let waiting = peer
            .waiting
            .take_if(|waiting| waiting.index == message.receiver)
            .ok_or(Refusal::ResponseState)?;
        let base = peer.base(id);
        let psk = self.peers[base.0 as usize]
            .as_ref()
            .and_then(|base| base.psk.as_ref());
        let finished = noise::finish(&mut self.curve, &local.identity, &waiting, psk, message);
        let peer = self.peers[id.0 as usize].as_mut().ok_or(Refusal::ResponseIndex)?;
        let keys = match finished {
            Ok(keys) => keys,
            Err(refusal) => {
                // Anybody who saw our initiation can answer it wrongly; the right answer may still come.
                peer.waiting = Some(waiting);
                return Err(refusal);
            }
        };
        drop(waiting);
        peer.session = Some(now.mono);
        peer.traffic.handshake_received(messages::RESPONSE_LEN);
        let session = Session {
            peer: id,
            local_index: message.receiver,
            remote_index: message.sender,
            initiator: true,
            created: now.mono,
        };
        out.push(Output::MoveEndpoint { peer: id });
        self.session_derived(session, &keys, out);
        self.handshake_complete(id, now.wall);
        Ok(())
    }

    /// A cookie reply. Not authentic in the sense that it came from the peer, so it moves no endpoint and no timer; the next
    /// retry of the handshake will use the cookie.
    fn take_cookie(&mut self, now: Time, reply: &CookieReply, out: &mut Outputs) -> Result<(), Refusal> {
        let id = self.indices.peer(reply.receiver).ok_or(Refusal::CookieIndex)?;
        let peer = self.get_mut(id).ok_or(Refusal::CookieIndex)?;
        peer.macs.consume(reply, now)?;
        out.push(Output::Challenged { peer: id });
        Ok(())
    }

    /// Hands a new session to the worker.
    fn session_derived(&mut self, session: Session, keys: &SessionKeys, out: &mut Outputs) {
        let mut keypair = self
            .spare
            .pop()
            .unwrap_or_else(|| Keypair::vacant(self.limits.window_bits));
        keypair.arm(session, &self.times, &keys.send, &keys.receive);
        out.push(Output::Install {
            peer: session.peer,
            keypair,
        });
        let erase_at = session.created.after(self.times.erase_after());
        if let Some(peer) = self.get_mut(session.peer) {
            peer.timers.handshake_traversed(session.created);
            peer.timers.erase_at = Some(erase_at);
        }
        self.reschedule(session.peer);
    }

    /// Both sides are known to have the keys of the newest session.
    fn handshake_complete(&mut self, id: PeerId, wall: WallClock) {
        if let Some(peer) = self.get_mut(id) {
            peer.timers.retransmit_at = None;
            peer.timers.attempts = 0;
            peer.last_handshake = Some(wall);
        }
        self.reschedule(id);
    }

    /// A worker received the first packet under a session that we answered.
    pub fn key_confirmed(&mut self, peer: PeerId, now: &Now) {
        self.latest = now.mono;
        let Some(found) = self.get_mut(peer) else { return };
        found.session = found.unconfirmed.take().or(found.session);
        // An initiation of our own that is still out has been overtaken.
        if let Some(waiting) = found.waiting.take() {
            self.indices.free(waiting.index);
        }
        self.handshake_complete(peer, now.wall);
    }

    /// A worker needs a session: it has a packet and no key, or the key is due to be replaced. Starts a handshake unless a
    /// handshake message was sent to this peer within the last 5 s.
    pub fn want_handshake(&mut self, peer: PeerId, now: &Now, rng: &mut dyn Random, out: &mut Outputs) {
        self.latest = now.mono;
        if let Some(found) = self.get_mut(peer) {
            found.timers.attempts = 0;
            self.initiate(peer, now, rng, out);
        }
    }

    /// Sends an initiation, if one may be sent now.
    pub(super) fn initiate(&mut self, id: PeerId, now: &Now, rng: &mut dyn Random, out: &mut Outputs) {
        let Some(base) = self.get(id).map(|peer| peer.base(id)) else {
            return;
        };
        let has_keys = self.local.is_some() && self.get(base).is_some_and(|base| base.shared.is_some());
        let Some(peer) = self.peers[id.0 as usize].as_mut() else {
            return;
        };
        if !has_keys || !self.up || peer.must_pause(&self.times, now.mono) {
            return;
        }
        peer.last_handshake_sent = Some(now.mono);
        if !self.clock.plausible(now.mono, now.wall) {
            self.counters.count(Refusal::ClockAhead);
            // Tried again like a message that got lost, and given up like one.
            peer.timers.retransmit_at = Some(now.mono.after(self.times.rekey_timeout));
            return self.reschedule(id);
        }
        if let Some(waiting) = peer.waiting.take() {
            self.indices.free(waiting.index);
        }
        let index = self.indices.allocate(id, rng);
        let begun = self.begin(id, base, index, now.wall, rng);
        wipe_stack();
        let (Some(peer), Ok((waiting, message))) = (self.peers[id.0 as usize].as_mut(), begun) else {
            return self.indices.free(index);
        };
        let mut msg = payload(&message.encode());
        peer.macs.add_macs(&mut msg, &self.times, now.mono);
        peer.waiting = Some(waiting);
        peer.traffic.handshake_sent(msg.len());
        peer.timers.handshake_traversed(now.mono);
        let pause = self.times.rekey_timeout + self.jitter.draw(self.times.rekey_timeout_jitter);
        peer.timers.retransmit_at = Some(now.mono.after(pause));
        out.push(Output::Send {
            to: To::Peer(id),
            msg,
            handshake: true,
        });
        self.reschedule(id);
    }

    /// An initiation of the session `id` with the keys of its base. One that cannot be made is counted.
    fn begin(
        &mut self,
        id: PeerId,
        base: PeerId,
        index: u32,
        wall: WallClock,
        rng: &mut dyn Random,
    ) -> Result<(Waiting, Initiation), Refusal> {
        let newest = self.get(base).and_then(|base| base.as_remote()?.sent);
        let peer = self.get_mut(id).ok_or(Refusal::UnknownPeer)?;
        let stamp = peer.stamps.stamp_after(wall, newest);
        let local = self.local.as_ref().ok_or(Refusal::NoPrivateKey)?;
        let origin = self.peers[base.0 as usize].as_mut();
        let origin = origin.ok_or(Refusal::UnknownPeer)?;
        if let Some(remote) = origin.as_remote_mut() {
            remote.sent = Some(stamp);
        }
        let shared = origin.shared.as_ref().ok_or(Refusal::LowOrderKey)?;
        let (identity, curve) = (&local.identity, &mut self.curve);
        noise::initiate(curve, identity, &origin.public, shared, stamp, index, rng)
            .inspect_err(|&refusal| self.counters.count(refusal))
    }
}

fn payload(message: &[u8]) -> ArrayVec<u8, { messages::INITIATION_LEN }> {
    message.iter().copied().collect()
}
