//! The two MACs at the end of handshake messages, and cookies (WireGuard paper, sections 5.3 and 5.4.7).
//!
//! Called by the [`Device`](crate::Device) on the slow-path thread. mac1 shows that the sender knows our public key and is checked
//! before anything else. mac2 shows that the sender receives at the address it claims: we ask for it, by a cookie reply, when
//! we are under load.

use std::net::{IpAddr, SocketAddr};

use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305};
use patronus_mem::Secret;
use subtle::ConstantTimeEq;

use crate::hash;
use crate::messages::{CookieReply, MAC, TAG};
use crate::refusal::Refusal;
use crate::timeouts::Timeouts;
use crate::{PublicKey, Random, Time};

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// The keys that follow from the public key of a message's receiver. No secrets: who knows the public key has them.
struct Keys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl Keys {
    fn of(receiver: &PublicKey) -> Keys {
        Keys {
            mac1: hash::hash(&[LABEL_MAC1, &receiver.0]),
            cookie: hash::hash(&[LABEL_COOKIE, &receiver.0]),
        }
    }
}

/// A handshake message cut before its two MACs; `None` if it is too short to have them.
fn split(message: &[u8]) -> Option<(&[u8], &[u8; MAC], &[u8; MAC])> {
    let (rest, mac2) = message.split_last_chunk::<MAC>()?;
    let (body, mac1) = rest.split_last_chunk::<MAC>()?;
    Some((body, mac1, mac2))
}

/// The receiving half: checks the MACs of what is sent to us, and gives out cookies.
pub(crate) struct Checker {
    keys: Keys,
    /// What the cookies are made with, and since when.
    secret: Option<(Secret<32>, Time)>,
}

impl Checker {
    /// The checker for messages to the owner of `public`.
    pub(crate) fn new(public: &PublicKey) -> Checker {
        Checker {
            keys: Keys::of(public),
            secret: None,
        }
    }

    /// Whether the message's mac1 is right.
    pub(crate) fn mac1_is_valid(&self, message: &[u8]) -> bool {
        split(message).is_some_and(|(body, mac1, _)| hash::mac(&self.keys.mac1, &[body]).ct_eq(mac1).into())
    }

    /// Whether the message's mac2 is right: its sender has the cookie that we give to `from`.
    pub(crate) fn mac2_is_valid(
        &mut self,
        message: &[u8],
        from: &SocketAddr,
        times: &Timeouts,
        now: Time,
        rng: &mut dyn Random,
    ) -> bool {
        let cookie = self.cookie(from, times, now, rng);
        split(message)
            .is_some_and(|(body, mac1, mac2)| hash::mac_by_cookie(&cookie, &[body, mac1]).ct_eq(mac2).into())
    }

    /// The answer to a message with a valid mac1, whose sender index is `sender`: a cookie, readable only for who sent
    /// just this message.
    pub(crate) fn reply(
        &mut self,
        message: &[u8],
        sender: u32,
        from: &SocketAddr,
        times: &Timeouts,
        now: Time,
        rng: &mut dyn Random,
    ) -> Option<CookieReply> {
        let (_, mac1, _) = split(message)?;
        let mut cookie = self.cookie(from, times, now, rng);
        let mut nonce = [0; 24];
        rng.fill(&mut nonce);
        let cipher = XChaCha20Poly1305::new((&self.keys.cookie).into());
        let tag = cipher
            .encrypt_inout_detached((&nonce).into(), mac1, cookie.as_mut_slice().into())
            .ok()?;
        let mut sealed_cookie = [0; 16 + TAG];
        sealed_cookie[..16].copy_from_slice(&cookie);
        sealed_cookie[16..].copy_from_slice(&tag);
        Some(CookieReply {
            receiver: sender,
            nonce,
            sealed_cookie,
        })
    }

    /// The cookie of `from`: a MAC over address and port, under a secret that changes.
    fn cookie(&mut self, from: &SocketAddr, times: &Timeouts, now: Time, rng: &mut dyn Random) -> [u8; 16] {
        let fresh = |since: Time| now.since(since) < times.cookie_secret_max_age;
        let secret = match self.secret.take() {
            Some((secret, since)) if fresh(since) => (secret, since),
            _ => (Secret::with(|secret| rng.fill(secret)), now),
        };
        let (secret, _) = self.secret.insert(secret);
        let port = from.port().to_be_bytes();
        match from.ip() {
            IpAddr::V4(v4) => hash::mac(secret, &[&v4.octets(), &port]),
            IpAddr::V6(v6) => hash::mac(secret, &[&v6.octets(), &port]),
        }
    }
}

/// The sending half, one per peer: puts the MACs on what we send, and takes the peer's cookies.
pub(crate) struct Generator {
    keys: Keys,
    /// The mac1 of our last message, until a cookie reply to it is taken.
    sent: Option<[u8; MAC]>,
    cookie: Option<([u8; 16], Time)>,
}

impl Generator {
    /// The generator for messages to the owner of `public`.
    pub(crate) fn new(public: &PublicKey) -> Generator {
        Generator {
            keys: Keys::of(public),
            sent: None,
            cookie: None,
        }
    }

    /// Writes both MACs at the end of `message`: mac2 if we have a cookie that is not about to expire, else zeros.
    pub(crate) fn add_macs(&mut self, message: &mut [u8], times: &Timeouts, now: Time) {
        let usable = times
            .cookie_secret_max_age
            .saturating_sub(times.cookie_secret_latency);
        let Some((rest, mac2)) = message.split_last_chunk_mut::<MAC>() else {
            return;
        };
        let Some((body, mac1)) = rest.split_last_chunk_mut::<MAC>() else {
            return;
        };
        *mac1 = hash::mac(&self.keys.mac1, &[body]);
        self.sent = Some(*mac1);
        *mac2 = match &self.cookie {
            Some((cookie, since)) if now.since(*since) < usable => hash::mac_by_cookie(cookie, &[body, mac1]),
            _ => [0; MAC],
        };
    }

    /// Takes the cookie of a reply to our last message. A reply to anything else, and the second reply to one message, changes
    /// nothing.
    pub(crate) fn consume(&mut self, reply: &CookieReply, now: Time) -> Result<(), Refusal> {
        let mac1 = self.sent.as_ref().ok_or(Refusal::CookieUnexpected)?;
        let mut sealed = reply.sealed_cookie;
        let (cookie, tag) = sealed.split_first_chunk_mut::<16>().ok_or(Refusal::CookieTag)?;
        let tag: &[u8; TAG] = (&*tag).try_into().map_err(|_| Refusal::CookieTag)?;
        let cipher = XChaCha20Poly1305::new((&self.keys.cookie).into());
        cipher
            .decrypt_inout_detached(
                (&reply.nonce).into(),
                mac1,
                cookie.as_mut_slice().into(),
                tag.into(),
            )
            .map_err(|_| Refusal::CookieTag)?;
        self.cookie = Some((*cookie, now));
        self.sent = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An initiation that Linux made, and the public key it was for: published with VPP (test/test_wireguard.py).
    const LINUX_INITIATION: &str = "0100000098b9032b55cc4b39e73c3d24a2a1ab884b524a811808bb86640fb70de93154fec1879125\
        ab012624a27f0b75c0a2582f438ddb5f8e768af40b4ab44402f9ff473e1b797e80d39d93c5480c82a3d4510f70396976586fb67300a5167b\
        ae6ca3ff3dfd00eb59be198810f5aa036abc243d2155ee4f2336483900aef80108752cd700000000000000000000000000000000";
    const LINUX_PUBLIC: &str = "691b871534f120221035e7e9d39a0a5a526fdf380ac5bf3e596ec924c8748f23";

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        std::array::from_fn(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
    }

    #[test]
    fn c01_mac1_of_an_initiation_made_by_linux() {
        let public = PublicKey(hex(LINUX_PUBLIC));
        let message: [u8; 148] = hex(LINUX_INITIATION);
        assert!(Checker::new(&public).mac1_is_valid(&message));
        let mut ours = message;
        ours[116..].fill(0xff);
        Generator::new(&public).add_macs(&mut ours, &Timeouts::protocol(), Time::from_secs(1));
        assert_eq!(ours, message);
    }

    #[test]
    fn messages_too_short_for_macs() {
        let mut generator = Generator::new(&PublicKey([1; 32]));
        let checker = Checker::new(&PublicKey([1; 32]));
        for len in 0..32 {
            let mut message = vec![0; len];
            generator.add_macs(&mut message, &Timeouts::protocol(), Time::from_secs(1));
            assert!(!checker.mac1_is_valid(&message));
        }
    }
}
