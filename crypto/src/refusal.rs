//! Why a handshake message was refused, and how often.
//!
//! Counted by the [`Device`](crate::Device) on the slow-path thread.

use std::fmt;

macro_rules! refusals {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// Why a handshake message was refused, or why one was not sent.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Refusal {
            $($(#[$doc])+ $variant,)+
        }

        impl Refusal {
            /// Every reason.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$variant,)+];

            /// The reason's name in counters.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Refusal::$variant => $name,)+
                }
            }
        }
    };
}

refusals! {
    /// No message has this length.
    Length = "handshake_length",
    /// Unknown type, non-zero reserved byte, or a data message where only handshakes are taken.
    Type = "handshake_type",
    /// The interface is down.
    Down = "handshake_interface_down",
    /// We have no private key.
    NoPrivateKey = "handshake_no_private_key",
    /// The first MAC is wrong: the sender does not know our public key.
    Mac1 = "handshake_mac1",
    /// We are under load and the message carried no valid cookie. It was answered by a cookie reply.
    CookieRequired = "handshake_cookie_required",
    /// The source used up its share while we were under load.
    RateLimited = "handshake_rate_limited",
    /// So many sources sent handshakes while we were under load that this one found no room in the table.
    TooManySources = "handshake_too_many_sources",
    /// A Diffie-Hellman result was zero: somebody's public key is of low order.
    LowOrderKey = "handshake_low_order_key",
    /// An initiation's static key does not open.
    StaticKey = "initiation_static_key",
    /// An initiation came from a key that is no peer's.
    UnknownPeer = "initiation_unknown_peer",
    /// An initiation's timestamp does not open.
    Timestamp = "initiation_timestamp",
    /// An initiation's timestamp is not newer than the newest from that peer.
    OldTimestamp = "initiation_old_timestamp",
    /// An initiation of a remote is much older than the newest one of that remote: somebody withheld it.
    Withheld = "initiation_withheld",
    /// An initiation of a remote is for a lane that was not agreed on.
    UnknownLane = "initiation_unknown_lane",
    /// An initiation of a remote came in on another link than the one that it is for.
    OtherLink = "initiation_other_link",
    /// An initiation came too soon after the last one from that peer.
    Flood = "initiation_flood",
    /// A response names an index that is not ours.
    ResponseIndex = "response_unknown_index",
    /// A response names a handshake that waits for none.
    ResponseState = "response_unexpected",
    /// A response does not open: wrong keys, or a wrong pre-shared key.
    ResponseTag = "response_tag",
    /// A cookie reply names an index that is not ours.
    CookieIndex = "cookie_reply_unknown_index",
    /// A cookie reply came without a message of ours that it could answer.
    CookieUnexpected = "cookie_reply_unexpected",
    /// A cookie reply does not open.
    CookieTag = "cookie_reply_tag",
    /// An initiation of ours was not sent because the wall clock is implausibly far ahead.
    ClockAhead = "initiation_not_sent_clock_ahead",
}

/// How often each [`Refusal`] happened.
#[derive(Clone, PartialEq, Eq)]
pub struct DropCounters([u64; Refusal::ALL.len()]);

impl DropCounters {
    pub(crate) const fn new() -> Self {
        DropCounters([0; Refusal::ALL.len()])
    }

    pub(crate) fn count(&mut self, refusal: Refusal) {
        self.0[refusal as usize] += 1;
    }

    /// How often `refusal` happened.
    pub fn get(&self, refusal: Refusal) -> u64 {
        self.0[refusal as usize]
    }

    /// Every reason and its count.
    pub fn iter(&self) -> impl Iterator<Item = (Refusal, u64)> + '_ {
        Refusal::ALL.iter().map(|&refusal| (refusal, self.get(refusal)))
    }

    /// All refusals together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl fmt::Debug for DropCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.iter()
                    .filter(|&(_, n)| n != 0)
                    .map(|(refusal, n)| (refusal.name(), n)),
            )
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_counter() {
        let mut counters = DropCounters::new();
        for (n, &refusal) in Refusal::ALL.iter().enumerate() {
            for _ in 0..=n {
                counters.count(refusal);
            }
            assert!(
                Refusal::ALL[..n]
                    .iter()
                    .all(|earlier| earlier.name() != refusal.name())
            );
        }
        let counted: Vec<u64> = counters.iter().map(|(_, count)| count).collect();
        assert_eq!(counted, (1..=Refusal::ALL.len() as u64).collect::<Vec<_>>());
    }

    #[test]
    fn what_never_happened_is_not_shown() {
        let mut counters = DropCounters::new();
        assert_eq!(format!("{counters:?}"), "{}");
        counters.count(Refusal::Mac1);
        assert_eq!(
            format!("{counters:?}"),
            format!("{{{:?}: 1}}", Refusal::Mac1.name())
        );
    }
}
