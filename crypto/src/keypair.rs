//! The keys of one session, and the three places a peer's sessions stand in.
//!
//! Made by the slow path when a handshake completes, then owned by the peer's worker, which asks nobody: age, counters and
//! the replay window are all here. Boxes go back to the slow path when they are retired and are used again, so that
//! nothing is allocated after set-up.

use crate::replay::ReplayWindow;
use crate::timeouts::{REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES, Timeouts};
use crate::{Duration, PeerId, Time};
use arrayvec::ArrayVec;
use patronus_mem::{Secret, prefetch};
use zeroize::Zeroize;

/// The times of a keypair without keys: it is too old for anything from the start.
const DEAD: Timeouts = Timeouts {
    reject_after_time: Duration::ZERO,
    ..Timeouts::protocol()
};

/// Why a packet may not be opened, or not be accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// The key is older than REJECT_AFTER_TIME.
    Expired,
    /// The counter is at or above REJECT_AFTER_MESSAGES.
    CounterLimit,
    /// The counter was received before, or is too far behind to tell.
    Replayed,
}

/// What the handshake knows about a session besides its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// Whose session it is.
    pub peer: PeerId,
    /// The index under which the peer addresses us.
    pub local_index: u32,
    /// The index under which we address the peer.
    pub remote_index: u32,
    /// Whether we sent the initiation.
    pub initiator: bool,
    /// When the handshake completed on our side.
    pub created: Time,
}

/// One session's keys, counters and replay window. What a packet looks at lies in the first two cache lines: with a thousand peers, each packet
/// waits for every line of another one.
#[repr(C, align(64))]
pub struct Keypair {
    /// When the handshake completed on our side.
    pub created: Time,
    /// The counter of the next packet to send.
    counter: u64,
    send: Secret<32>,
    receive: Secret<32>,
    window: ReplayWindow,
    /// The index under which the peer addresses us.
    pub local_index: u32,
    /// The index under which we address the peer.
    pub remote_index: u32,
    /// Before this time, `rekey_due_on_send` does not ask again.
    ask_again: Time,
    /// Whose session it is.
    pub peer: PeerId,
    /// Whether we sent the initiation.
    pub initiator: bool,
    may_send: bool,
    asked_on_receive: bool,
    cleared: [u8; 1],
    times: Timeouts,
    /// Room that a move would fill with whatever stands on the stack: a handshake's keys stood there.
    cleared_too: [u8; 48],
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(Keypair, ask_again) == 64);
    assert!(offset_of!(Keypair, times) == offset_of!(Keypair, cleared) + 1);
    assert!(size_of::<Keypair>() == offset_of!(Keypair, cleared_too) + 48);
};

impl Keypair {
    /// A keypair without keys: it neither sends nor receives until it is [armed](Self::arm). Allocates the replay window
    /// and two locked slots; nothing after it does.
    pub fn vacant(window_bits: u32) -> Box<Keypair> {
        Box::new(Keypair {
            peer: PeerId(0),
            local_index: 0,
            remote_index: 0,
            initiator: false,
            created: Time(0),
            send: Secret::zeroed(),
            receive: Secret::zeroed(),
            counter: 0,
            window: ReplayWindow::new(window_bits),
            times: DEAD,
            may_send: false,
            ask_again: Time(0),
            asked_on_receive: false,
            cleared: [0; 1],
            cleared_too: [0; 48],
        })
    }

    /// Makes this the keypair of a new session. `send` and `receive` are copied; the caller wipes its own.
    pub fn arm(&mut self, session: Session, times: &Timeouts, send: &[u8; 32], receive: &[u8; 32]) {
        self.peer = session.peer;
        self.local_index = session.local_index;
        self.remote_index = session.remote_index;
        self.initiator = session.initiator;
        self.created = session.created;
        self.send.copy_from_slice(send);
        self.receive.copy_from_slice(receive);
        self.counter = 0;
        self.window.clear();
        self.times = *times;
        self.may_send = true;
        self.ask_again = Time(0);
        self.asked_on_receive = false;
    }

    /// Asks for what a packet looks at, before it is looked at.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(&self.created);
        prefetch(&self.ask_again);
    }

    /// The same for what opening a packet with this counter takes, behind the keypair itself.
    #[inline]
    pub fn prefetch_receive(&self, counter: u64) {
        prefetch(&*self.receive);
        self.window.prefetch(counter);
    }

    /// The same for what sealing takes.
    #[inline]
    pub fn prefetch_send(&self) {
        prefetch(&*self.send);
    }

    /// Erases the keys. The keypair neither sends nor receives until it is armed again.
    pub fn wipe(&mut self) {
        self.send.zeroize();
        self.receive.zeroize();
        self.times = DEAD;
        self.may_send = false;
    }

    /// The key that seals what we send.
    #[inline]
    pub fn send_key(&self) -> &Secret<32> {
        &self.send
    }

    /// The key that opens what we receive.
    #[inline]
    pub fn receive_key(&self) -> &Secret<32> {
        &self.receive
    }

    /// Packets sent under this key so far.
    pub fn sent(&self) -> u64 {
        self.counter
    }

    /// The counter for one packet to send now, never given twice; `None` if the key is too old or used up, and from then
    /// on for good.
    #[inline]
    pub fn next_counter(&mut self, now: Time) -> Option<u64> {
        if !self.may_send {
            return None;
        }
        if self.counter >= REJECT_AFTER_MESSAGES || self.aged(self.times.reject_after_time, now) {
            self.may_send = false;
            return None;
        }
        let counter = self.counter;
        self.counter += 1;
        Some(counter)
    }

    /// Whether a packet with this counter is worth opening. Changes nothing: the packet is not authenticated yet.
    #[inline]
    pub fn may_receive(&self, counter: u64, now: Time) -> Result<(), Reject> {
        if self.aged(self.times.reject_after_time, now) {
            Err(Reject::Expired)
        } else if counter >= REJECT_AFTER_MESSAGES {
            Err(Reject::CounterLimit)
        } else if !self.window.check(counter) {
            Err(Reject::Replayed)
        } else {
            Ok(())
        }
    }

    /// Marks an authenticated packet's counter as received. False if it is a copy of one accepted before.
    #[inline]
    pub fn accept(&mut self, counter: u64) -> bool {
        self.window.mark(counter)
    }

    /// Whether, after sending under this key, a new handshake is due: for an initiator by age, for either side by messages.
    /// Once it is due, asks again every sixteenth of REKEY_TIMEOUT, so that a request that came too soon after another
    /// handshake is not lost and a fast sender does not repeat it with every packet.
    #[inline]
    pub fn rekey_due_on_send(&mut self, now: Time) -> bool {
        let due = self.may_send
            && (self.counter > REKEY_AFTER_MESSAGES
                || self.initiator && self.aged(self.times.rekey_after_time, now));
        if !due || now < self.ask_again {
            return false;
        }
        self.ask_again = now.after(self.times.rekey_timeout / 16);
        true
    }

    /// Whether, after receiving under this key, a new handshake is due because the key will be dead before silence would be
    /// noticed (at 165 seconds). Only for an initiator, and only once.
    #[inline]
    pub fn rekey_due_on_receive(&mut self, now: Time) -> bool {
        let due = self.may_send
            && self.initiator
            && !self.asked_on_receive
            && self.aged(self.times.rekey_on_receive_after(), now);
        self.asked_on_receive |= due;
        due
    }

    /// Whether nothing may be sent under this key any more.
    pub fn sending_expired(&self, now: Time) -> bool {
        !self.may_send
            || self.counter >= REJECT_AFTER_MESSAGES
            || self.aged(self.times.reject_after_time, now)
    }

    /// Whether the key has reached `age`. An age reached exactly counts.
    #[inline]
    fn aged(&self, age: Duration, now: Time) -> bool {
        // In nanoseconds: each packet asks, and a duration made of them takes a division.
        now.0.saturating_sub(self.created.0) >= age.as_nanos() as u64
    }
}

/// Keypairs taken out of their places, to be given back to the slow path.
pub type Retired = ArrayVec<Box<Keypair>, 3>;

/// The sessions of one peer, as its worker sees them.
///
/// We send under `current` only. We receive under all three: `previous` for packets that were on their way during a
/// handshake, `next` for a session that we answered and whose initiator has not used it yet.
#[derive(Default)]
pub struct Keypairs {
    previous: Option<Box<Keypair>>,
    current: Option<Box<Keypair>>,
    next: Option<Box<Keypair>>,
}

impl Keypairs {
    /// No session.
    pub const fn new() -> Self {
        Keypairs {
            previous: None,
            current: None,
            next: None,
        }
    }

    /// Puts the session of a completed handshake in its place, and returns those it displaced.
    ///
    /// As the initiator we know that the peer has the keys: the new session is `current` at once. An answered session that
    /// the peer never used becomes `previous` rather than being lost, in case its packets are still on their way. As the
    /// responder we may not send before the peer has shown that it has the keys: the new session waits in `next`.
    pub fn install(&mut self, new: Box<Keypair>) -> Retired {
        let mut retired = Retired::new();
        if new.initiator {
            retired.extend(self.previous.take());
            match self.next.take() {
                Some(next) => {
                    retired.extend(self.current.take());
                    self.previous = Some(next);
                }
                None => self.previous = self.current.take(),
            }
            self.current = Some(new);
        } else {
            retired.extend(self.previous.take());
            retired.extend(self.next.replace(new));
        }
        retired
    }

    /// Told of every authenticated packet, with the index it came under. The first one under `next` confirms that
    /// session: it becomes `current`. True if that happened just now, and the session that was displaced.
    #[inline]
    pub fn received_under(&mut self, local_index: u32) -> (bool, Option<Box<Keypair>>) {
        if self
            .next
            .as_ref()
            .is_none_or(|next| next.local_index != local_index)
        {
            return (false, None);
        }
        let displaced = self.previous.take();
        self.previous = self.current.take();
        self.current = self.next.take();
        (true, displaced)
    }

    /// The session that the peer addresses by `local_index`.
    #[inline]
    pub fn by_index(&mut self, local_index: u32) -> Option<&mut Keypair> {
        [&mut self.current, &mut self.next, &mut self.previous]
            .into_iter()
            .flatten()
            .map(Box::as_mut)
            .find(|keypair| keypair.local_index == local_index)
    }

    /// The session that the peer addresses by `local_index`, to look at.
    #[inline]
    pub fn get(&self, local_index: u32) -> Option<&Keypair> {
        [&self.current, &self.next, &self.previous]
            .into_iter()
            .flatten()
            .map(Box::as_ref)
            .find(|keypair| keypair.local_index == local_index)
    }

    /// The session to send under.
    #[inline]
    pub fn current(&self) -> Option<&Keypair> {
        self.current.as_deref()
    }

    /// The session to send under.
    #[inline]
    pub fn current_mut(&mut self) -> Option<&mut Keypair> {
        self.current.as_deref_mut()
    }

    /// The session before the current one.
    pub fn previous(&self) -> Option<&Keypair> {
        self.previous.as_deref()
    }

    /// The session that waits to be confirmed.
    pub fn next(&self) -> Option<&Keypair> {
        self.next.as_deref()
    }

    /// Takes every session out.
    pub fn clear(&mut self) -> Retired {
        [self.previous.take(), self.current.take(), self.next.take()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Forbids sending under the sessions there are, as when our own private key was changed. They still receive.
    pub fn expire_sending(&mut self) {
        for keypair in [&mut self.previous, &mut self.current, &mut self.next]
            .into_iter()
            .flatten()
        {
            keypair.may_send = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_secs(1000);

    fn keypair_at(counter: u64, initiator: bool) -> Box<Keypair> {
        let mut keypair = Keypair::vacant(128);
        let session = Session {
            peer: PeerId(0),
            local_index: 1,
            remote_index: 2,
            initiator,
            created: NOW,
        };
        keypair.arm(session, &Timeouts::protocol(), &[1; 32], &[2; 32]);
        keypair.counter = counter;
        keypair
    }

    #[test]
    fn r03_the_counter_stops_at_the_limit() {
        let mut keypair = keypair_at(REJECT_AFTER_MESSAGES - 2, true);
        assert_eq!(keypair.next_counter(NOW), Some(REJECT_AFTER_MESSAGES - 2));
        assert!(!keypair.sending_expired(NOW));
        assert_eq!(keypair.next_counter(NOW), Some(REJECT_AFTER_MESSAGES - 1));
        assert!(keypair.sending_expired(NOW));
        for _ in 0..3 {
            assert_eq!(keypair.next_counter(NOW), None);
        }
        assert_eq!(keypair.sent(), REJECT_AFTER_MESSAGES);
    }

    #[test]
    fn r04_counters_have_64_bits() {
        let mut keypair = keypair_at(u64::from(u32::MAX), true);
        assert_eq!(keypair.next_counter(NOW), Some(0xffff_ffff));
        assert_eq!(keypair.next_counter(NOW), Some(0x1_0000_0000));
    }

    #[test]
    fn c50_either_side_rekeys_on_send_by_messages() {
        for initiator in [true, false] {
            let mut keypair = keypair_at(REKEY_AFTER_MESSAGES, initiator);
            assert!(!keypair.rekey_due_on_send(NOW));
            keypair.next_counter(NOW);
            assert!(keypair.rekey_due_on_send(NOW));
            assert!(
                !keypair.rekey_due_on_receive(NOW),
                "receiving is not what used the key up"
            );
        }
    }

    #[test]
    fn c53_a_used_up_key_still_receives() {
        let mut keypair = keypair_at(REJECT_AFTER_MESSAGES, true);
        assert_eq!(keypair.next_counter(NOW), None);
        assert_eq!(keypair.may_receive(0, NOW), Ok(()));
    }
}
