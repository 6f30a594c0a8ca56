//! Datagrams to inner packets: find the session, open, check for replay, length and source.
//!
//! Runs on a worker. The order of the steps is the security of the protocol: before a packet is authenticated nothing
//! changes, neither the replay window nor the peer's endpoint nor a timer.

use arrayvec::ArrayVec;
use patronus_crypto::aead::Job;
use patronus_crypto::keypair::Reject;
use patronus_crypto::messages::{self, DATA_MIN, DataHeader, HEADER, Kind, TAG};
use patronus_crypto::timers::Wake;
use patronus_crypto::{PeerId, Time};
use patronus_io::ip::{self, ECN_MASK, Malformed, Packet};
use patronus_mem::{BURST_MAX, Burst, PktBuf};
use patronus_observe::Point;

use super::{Context, PeerSlot, Role, Wg, ecn};
use crate::channel::{ControlMessage, HandshakeMessage, Notice, PingAnswer};
use crate::crew::Handing;
use crate::mss;
use crate::observe::{Seen, View};
use crate::remote::message::{self, Probe, Sizing};
use crate::standby::echo::{self, Answer};
use crate::stats::{DropReason, Lap, Stage};

/// What a datagram says in the clear: which session it is of, and which of its packets.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    peer: PeerId,
    index: u32,
    counter: u64,
}

/// Datagrams, and for each its claim: what is left when headers have been read, and what a datagram takes along to another worker.
#[derive(Default)]
pub struct Claimed {
    packets: Burst,
    claims: ArrayVec<Claim, BURST_MAX>,
}

impl Claimed {
    /// True if there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Puts a datagram at the end; there is room.
    #[inline]
    pub fn push(&mut self, packet: PktBuf, claim: Claim) {
        self.packets.push(packet);
        self.claims.push(claim);
    }

    /// The datagrams, writable.
    pub fn packets_mut(&mut self) -> &mut Burst {
        &mut self.packets
    }
}

/// What a datagram is, by its header alone.
enum Verdict {
    Open(Claim),
    HandOff(usize, Claim),
    Handshake,
    Drop(DropReason),
}

/// What the data packets of one peer in a burst amount to.
#[derive(Default)]
struct Received {
    messages: u64,
    bytes: u64,
    data: bool,
    /// Packets of hosts were among them.
    carried: bool,
}

impl Wg {
    /// Turns the datagrams of `wire` into inner packets in `inner`, both at most a burst; `wire` is empty afterwards.
    /// Handshake messages go to the slow path. Peers whose session was confirmed by this burst are added to
    /// `confirmed`: what waited for that may now be sent.
    pub fn decap(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Burst,
        inner: &mut Burst,
        confirmed: &mut ArrayVec<PeerId, BURST_MAX>,
    ) {
        debug_assert!(inner.is_empty());
        let (lap, packets) = (Lap::start(), wire.len());
        let mut ours = Claimed::default();
        for packet in wire.drain(..) {
            match self.examine(cx, packet.data()) {
                Verdict::Open(claim) => {
                    self.prefetch_slot(claim.peer);
                    ours.push(packet, claim);
                }
                Verdict::HandOff(worker, claim) => cx.hand_over(worker, packet, Handing::Decap(claim)),
                Verdict::Handshake => pass_to_slow_path(cx, packet),
                Verdict::Drop(reason) => cx.discard(reason, packet),
            }
        }
        self.decap_ours(cx, &mut ours, inner, confirmed);
        cx.stats.burst(Stage::Decap, packets, lap);
    }

    /// The same for datagrams whose headers another worker has read: the sessions are ours. `claimed` is empty afterwards.
    pub fn decap_claimed(
        &mut self,
        cx: &mut Context<'_>,
        claimed: &mut Claimed,
        inner: &mut Burst,
        confirmed: &mut ArrayVec<PeerId, BURST_MAX>,
    ) {
        let (lap, packets) = (Lap::start(), claimed.packets.len());
        claimed
            .claims
            .iter()
            .for_each(|claim| self.prefetch_slot(claim.peer));
        self.decap_ours(cx, claimed, inner, confirmed);
        cx.stats.burst(Stage::Decap, packets, lap);
    }

    fn decap_ours(
        &mut self,
        cx: &mut Context<'_>,
        ours: &mut Claimed,
        inner: &mut Burst,
        confirmed: &mut ArrayVec<PeerId, BURST_MAX>,
    ) {
        for slot in ours.claims.iter().filter_map(|claim| self.slot(claim.peer)) {
            slot.prefetch_session();
        }
        if cx.observing.is_some() {
            self.observe_claims(cx, ours);
        }
        self.check(cx, ours);
        let Claimed {
            packets: mut claimed,
            claims,
        } = std::mem::take(ours);
        let good = self.open(&mut claimed, &claims);
        self.accept(cx, claimed, &claims, &good, inner, confirmed);
        if let Some(observing) = &mut cx.observing {
            observing.opened(inner);
        }
    }

    /// Tells an observer whose datagrams these claim to be.
    #[cold]
    fn observe_claims(&self, cx: &mut Context<'_>, ours: &Claimed) {
        let Some(observing) = &mut cx.observing else {
            return;
        };
        for (packet, claim) in ours.packets.iter().zip(&ours.claims) {
            let tunnel = self.slot(claim.peer).map_or(claim.peer, PeerSlot::tunnel);
            observing.expect(packet, claim.peer, tunnel);
        }
    }

    /// Looks at the header, changes nothing.
    fn examine(&self, cx: &Context<'_>, datagram: &[u8]) -> Verdict {
        match messages::kind(datagram) {
            Ok(Kind::Data) => {}
            Ok(_) => return Verdict::Handshake,
            Err(_) => return Verdict::Drop(DropReason::DecapNotWireguard),
        }
        let header = datagram
            .first_chunk()
            .expect("a data message is longer than its header");
        let DataHeader {
            receiver: index,
            counter,
        } = DataHeader::read(header);
        let Some(peer) = self.index.get(index) else {
            return Verdict::Drop(DropReason::DecapUnknownIndex);
        };
        let claim = Claim { peer, index, counter };
        match cx.crew.other_owner(peer) {
            Some(other) => Verdict::HandOff(other, claim),
            None => Verdict::Open(claim),
        }
    }

    /// Leaves those whose sessions are there and may receive these counters; changes nothing else.
    fn check(&self, cx: &mut Context<'_>, all: &mut Claimed) {
        let mut refused = 0;
        for (at, claim) in all.claims.iter().enumerate() {
            refused |= u64::from(self.may_receive(cx.now, claim).is_err()) << at;
        }
        if refused != 0 {
            self.refuse_claims(cx, all, refused);
        }
    }

    /// Drops those whose bits are set.
    #[cold]
    fn refuse_claims(&self, cx: &mut Context<'_>, all: &mut Claimed, refused: u64) {
        let Claimed {
            packets: mut claimed,
            claims,
        } = std::mem::take(all);
        for (at, (packet, claim)) in claimed.drain(..).zip(claims).enumerate() {
            match self.may_receive(cx.now, &claim) {
                Err(reason) if refused & 1 << at != 0 => cx.discard(reason, packet),
                _ => all.push(packet, claim),
            }
        }
    }

    fn may_receive(&self, now: Time, claim: &Claim) -> Result<(), DropReason> {
        let keypair = self.slot(claim.peer).and_then(|s| s.keypairs.get(claim.index));
        let keypair = keypair.ok_or(DropReason::DecapUnknownIndex)?;
        keypair.prefetch_receive(claim.counter);
        keypair
            .may_receive(claim.counter, now)
            .map_err(|reject| match reject {
                Reject::Expired | Reject::CounterLimit => DropReason::DecapExpired,
                Reject::Replayed => DropReason::DecapReplay,
            })
    }

    /// One call of the AEAD for the whole burst: which packets are authentic. A bad one holds no plaintext.
    fn open(&self, claimed: &mut Burst, claims: &[Claim]) -> ArrayVec<bool, BURST_MAX> {
        let mut jobs = ArrayVec::<Job<'_>, BURST_MAX>::new();
        for (packet, claim) in claimed.iter_mut().zip(claims) {
            let keypair = self.slot(claim.peer).and_then(|s| s.keypairs.get(claim.index));
            let keypair = keypair.expect("a claim names a session that is there");
            let buf = &mut packet.data_mut()[HEADER..];
            jobs.push(Job::new(keypair.receive_key(), claim.counter, buf));
        }
        if !jobs.is_empty() {
            self.aead.open(&mut jobs);
        }
        jobs.iter().map(|job| job.ok).collect()
    }

    /// The authentic packets take effect, one after another, in the order of their arrival.
    fn accept(
        &mut self,
        cx: &mut Context<'_>,
        mut claimed: Burst,
        claims: &[Claim],
        good: &[bool],
        inner: &mut Burst,
        confirmed: &mut ArrayVec<PeerId, BURST_MAX>,
    ) {
        let mut run = Received::default();
        for (i, (mut packet, claim)) in claimed.drain(..).zip(claims).enumerate() {
            match self.accept_one(cx, &packet, claim, good[i], confirmed) {
                Ok(()) => {
                    run.messages += 1;
                    run.bytes += packet.len() as u64;
                    run.data |= packet.len() > DATA_MIN;
                    match self.unwrap(cx, &mut packet, claim, &mut run.messages) {
                        Ok(true) => {
                            run.carried = true;
                            inner.push(packet);
                        }
                        Ok(false) => cx.frames.free(packet),
                        Err(reason) => cx.discard(reason, packet),
                    }
                }
                Err(reason) => cx.discard(reason, packet),
            }
            if claims.get(i + 1).is_none_or(|next| next.peer != claim.peer) {
                self.account_received(cx, claim.peer, std::mem::take(&mut run));
            }
        }
    }

    /// Replay, key confirmation, roaming: what an authentic packet does before its content is looked at.
    fn accept_one(
        &mut self,
        cx: &mut Context<'_>,
        packet: &PktBuf,
        claim: &Claim,
        good: bool,
        confirmed: &mut ArrayVec<PeerId, BURST_MAX>,
    ) -> Result<(), DropReason> {
        if !good {
            return Err(DropReason::DecapBadTag);
        }
        let now = cx.now;
        let slot = self.slot_mut(claim.peer).ok_or(DropReason::DecapUnknownIndex)?;
        // An earlier packet of this burst may have retired the session, or taken the counter.
        let keypair = slot
            .keypairs
            .by_index(claim.index)
            .ok_or(DropReason::DecapUnknownIndex)?;
        if !keypair.accept(claim.counter) {
            return Err(DropReason::DecapReplay);
        }
        let rekey = keypair.rekey_due_on_receive(now);
        let (is_confirmed, retired) = slot.keypairs.received_under(claim.index);
        let tunnel = slot.tunnel();
        if is_confirmed {
            slot.answered();
            confirmed.push(claim.peer);
            cx.tell(Notice::KeyConfirmed(claim.peer));
        }
        if rekey {
            cx.tell(Notice::WantHandshake(claim.peer));
        }
        if slot.heard(packet.outer()) {
            cx.tell(Notice::Endpoint(claim.peer, slot.endpoint));
        }
        if let Some(retired) = retired {
            self.retire(cx, retired);
        }
        if is_confirmed && tunnel != claim.peer {
            self.prober.opened(now, tunnel, claim.peer);
        }
        Ok(())
    }

    /// Cuts the inner packet out of the opened datagram, the how-manieth of its run; a question about sizes is none that counts. `Ok(false)`: there is none, it is a keepalive, a control message or an answer to a ping of ours.
    fn unwrap(
        &mut self,
        cx: &mut Context<'_>,
        packet: &mut PktBuf,
        claim: &Claim,
        nth: &mut u64,
    ) -> Result<bool, DropReason> {
        packet.trim_front(HEADER);
        packet.truncate(packet.len() - TAG);
        if packet.is_empty() {
            cx.stats.keepalives_received.add(1);
            return Ok(false);
        }
        if message::is_doubled(packet.data()) {
            self.take_first(claim, packet)?;
        }
        let slot = self.slot(claim.peer).ok_or(DropReason::DecapUnknownIndex)?;
        let header = match Packet::parse(packet.data()) {
            Ok(header) => header,
            Err(Malformed::NotIp) if slot.role == Role::Remote && message::is_control(packet.data()) => {
                return self.pass_control(cx, claim, packet);
            }
            Err(Malformed::NotIp) if slot.role == Role::Lane && message::is_probe(packet.data()) => {
                let of = (slot.tunnel(), claim.peer);
                return self.take_probe(cx, of, packet, *nth);
            }
            // Nothing else that is known so far is said in a lane.
            Err(Malformed::NotIp) if slot.role == Role::Lane && message::is_sizing(packet.data()) => {
                let of = (slot.tunnel(), claim.peer);
                *nth -= u64::from(message::is_question(packet.data()));
                return self.take_sizing(cx, of, packet);
            }
            Err(Malformed::NotIp) => return Err(DropReason::DecapNotIp),
            Err(_) => return Err(DropReason::DecapBadLength),
        };
        let tunnel = slot.tunnel();
        if self.routes.lookup(header.src()) != Some(tunnel) {
            return Err(DropReason::DecapSource);
        }
        if slot.role == Role::Pinged
            && let Some(answer) = echo::answer(&header)
        {
            return self.pass_answer(cx, claim.peer, answer);
        }
        let (len, inner_tos) = (header.total_len(), header.tos());
        packet.truncate(len);
        if mss::may_be_syn(packet.data()) {
            // What class the answers are of is not known here.
            self.clamp(cx, packet, tunnel, self.manners.double());
        }
        let ecn = ecn::decapsulated(packet.outer().tos() & ECN_MASK, inner_tos & ECN_MASK);
        match ecn {
            Some(ecn) if ecn != inner_tos & ECN_MASK => ip::set_ecn(packet.data_mut(), ecn),
            Some(_) => {}
            None => return Err(DropReason::DecapCongestion),
        }
        Ok(true)
    }

    /// Cuts the inner packet out of one that goes twice, if this is the first of the two to arrive.
    #[cold]
    fn take_first(&mut self, claim: &Claim, packet: &mut PktBuf) -> Result<(), DropReason> {
        let (sequence, len) = message::read_doubled(packet.data()).ok_or(DropReason::DecapBadLength)?;
        let remote = self.slot(claim.peer).map(PeerSlot::tunnel);
        let paths = remote.and_then(|remote| self.paths_mut(remote));
        match paths.and_then(|paths| paths.steering.accept(claim.peer, sequence)) {
            Some(true) => {}
            Some(false) => return Err(DropReason::DecapDoubled),
            None => return Err(DropReason::DecapNotIp),
        }
        packet.truncate(len);
        packet.trim_front(message::DOUBLED);
        Ok(())
    }

    /// Copies a control message into the slow path's queue.
    fn pass_control(
        &mut self,
        cx: &mut Context<'_>,
        claim: &Claim,
        packet: &PktBuf,
    ) -> Result<bool, DropReason> {
        let slot = self.slot_mut(claim.peer).ok_or(DropReason::DecapUnknownIndex)?;
        if !slot.may_speak(cx.now) {
            return Err(DropReason::ControlFlood);
        }
        let session = slot.keypairs.get(claim.index);
        let session = session.ok_or(DropReason::DecapUnknownIndex)?.created;
        let bytes = packet.data();
        // The longest one and its padding.
        let bytes = bytes[..bytes.len().min(message::CONTROL_MAX)].try_into();
        let bytes = bytes.map_err(|_| DropReason::ControlQueueFull)?;
        let message = ControlMessage {
            peer: claim.peer,
            session,
            bytes,
        };
        let pushed = cx.slow.controls.push(message);
        pushed.map_err(|_| DropReason::ControlQueueFull)?;
        cx.stats.controls_received.add(1);
        cx.wake_slow = true;
        Ok(false)
    }

    /// Copies a peer's answer to a ping into the slow path's queue, which all peers share: who answers more often than he is asked takes nobody's place.
    fn pass_answer(
        &mut self,
        cx: &mut Context<'_>,
        peer: PeerId,
        answer: Answer,
    ) -> Result<bool, DropReason> {
        let slot = self.slot_mut(peer).ok_or(DropReason::DecapUnknownIndex)?;
        if !slot.may_speak(cx.now) {
            return Err(DropReason::ControlFlood);
        }
        let pushed = cx.slow.answers.push(PingAnswer { peer, answer });
        pushed.map_err(|_| DropReason::ControlQueueFull)?;
        cx.stats.ping_answers_received.add(1);
        cx.wake_slow = true;
        Ok(false)
    }

    /// Listens to a probe.
    fn take_probe(
        &mut self,
        cx: &mut Context<'_>,
        of: (PeerId, PeerId),
        packet: &PktBuf,
        nth: u64,
    ) -> Result<bool, DropReason> {
        // As early as that can be known here: other bursts of this turn may have come before.
        let now = cx.clock.mono();
        let probe = Probe::decode(packet.data()).map_err(|_| DropReason::ProbeMalformed)?;
        let tell = |change| cx.tell_of_path(change);
        self.prober.hear(now, of, &probe, nth, tell)?;
        cx.stats.probes_received.add(1);
        Ok(false)
    }

    /// Acknowledges a size, or takes note that one has passed.
    fn take_sizing(
        &mut self,
        cx: &mut Context<'_>,
        (remote, lane): (PeerId, PeerId),
        packet: &PktBuf,
    ) -> Result<bool, DropReason> {
        match Sizing::decode(packet.data()).map_err(|_| DropReason::ProbeMalformed)? {
            Sizing::Ask(size) => {
                self.prober.may_ask(cx.now, remote, lane)?;
                let owed = self.size_acks.try_push((lane, size));
                owed.map_err(|_| DropReason::ProbeFlood)?;
            }
            Sizing::Ack(size) => self.prober.take_size(cx.now, remote, lane, size),
        }
        cx.stats.sizes_received.add(1);
        Ok(false)
    }

    fn account_received(&mut self, cx: &mut Context<'_>, peer: PeerId, run: Received) {
        if run.bytes == 0 {
            return;
        }
        let Some(slot) = self.slot_mut(peer) else { return };
        if slot.traffic.received(cx.now, run.bytes, run.data) == Wake::Due {
            cx.tell(Notice::Watch(peer));
        }
        if slot.role == Role::Lane && slot.traffic.tally_received(cx.now, run.messages, run.carried) {
            let remote = slot.tunnel();
            self.begin_use(cx, remote);
        }
    }
}

/// Copies a handshake message into the slow path's queue.
fn pass_to_slow_path(cx: &mut Context<'_>, mut packet: PktBuf) {
    if let Some(observing) = &mut cx.observing {
        observing.see(&mut packet, &Seen::at(Point::SlowPath, View::Received, 0));
    }
    let Ok(bytes) = packet.data().try_into() else {
        // `messages::kind` lets no handshake message through that is longer than the longest.
        return cx.discard(DropReason::DecapNotWireguard, packet);
    };
    let message = HandshakeMessage {
        outer: *packet.outer(),
        bytes,
    };
    if cx.slow.handshakes.push(message).is_err() {
        return cx.discard(DropReason::HandshakeQueueFull, packet);
    }
    cx.wake_slow = true;
    cx.frames.free(packet);
}
