//! The handshake itself: Noise IKpsk2 over Curve25519, ChaCha20-Poly1305 and BLAKE2s (WireGuard paper, section 5.4).
//!
//! Called by the [`Device`](crate::Device) on the slow-path thread. These are the computations and nothing else: whose turn it
//! is, replays, limits and timers are the device's business. Chaining keys and ephemeral keys live in locked memory and are
//! erased as soon as the step that needs them is done.
//!
//! The caller wipes the stack after each of these functions; none of them is inlined into it.

use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};
use patronus_mem::Secret;

use crate::hash;
use crate::messages::{Initiation, Response, TAG};
use crate::refusal::Refusal;
use crate::tai64n::Tai64n;
use crate::x25519::Dh;
use crate::{PublicKey, Random};

/// Hash("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"), the first chaining key.
const INITIAL_CHAIN: [u8; 32] = [
    0x60, 0xe2, 0x6d, 0xae, 0xf3, 0x27, 0xef, 0xc0, 0x2e, 0xc3, 0x35, 0xe2, 0xa0, 0x25, 0xd2, 0xd0, 0x16,
    0xeb, 0x42, 0x06, 0xf8, 0x72, 0x77, 0xf5, 0x2d, 0x38, 0xd1, 0x98, 0x8b, 0x78, 0xcd, 0x36,
];

/// Hash([`INITIAL_CHAIN`] || "WireGuard v1 zx2c4 Jason@zx2c4.com"), the first transcript hash.
const INITIAL_HASH: [u8; 32] = [
    0x22, 0x11, 0xb3, 0x61, 0x08, 0x1a, 0xc5, 0x66, 0x69, 0x12, 0x43, 0xdb, 0x45, 0x8a, 0xd5, 0x32, 0x2d,
    0x9c, 0x6c, 0x66, 0x22, 0x93, 0xe8, 0xb7, 0x0e, 0xe1, 0x9c, 0x65, 0xba, 0x07, 0x9e, 0xf3,
];

/// Curve25519 as the handshake uses it: operations are counted, since they are what an attacker wants us to spend.
pub(crate) struct Curve {
    dh: &'static dyn Dh,
    operations: u64,
}

impl Curve {
    pub(crate) fn new(dh: &'static dyn Dh) -> Curve {
        Curve { dh, operations: 0 }
    }

    /// Scalar multiplications so far.
    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    pub(crate) fn public(&mut self, private: &Secret<32>) -> PublicKey {
        self.operations += 1;
        PublicKey(self.dh.public(private))
    }

    /// The shared secret, unless a low-order public key makes it zero.
    pub(crate) fn shared(&mut self, private: &Secret<32>, public: &[u8; 32]) -> Result<Secret<32>, Refusal> {
        self.operations += 1;
        self.dh.shared(private, public).ok_or(Refusal::LowOrderKey)
    }

    /// A fresh ephemeral key pair.
    fn ephemeral(&mut self, rng: &mut dyn Random) -> (Secret<32>, [u8; 32]) {
        let private = Secret::with(|private| {
            rng.fill(private);
            clamp(private);
        });
        let public = self.public(&private);
        (private, public.0)
    }
}

/// Clears and sets the bits of a private key that Curve25519 fixes (RFC 7748, section 5).
pub(crate) fn clamp(private: &mut [u8; 32]) {
    private[0] &= 0xf8;
    private[31] = private[31] & 0x7f | 0x40;
}

/// Our own static key pair.
pub(crate) struct Identity {
    pub(crate) private: Secret<32>,
    pub(crate) public: PublicKey,
}

/// Chaining key and transcript hash, which both sides carry through the handshake.
struct Transcript {
    chain: Secret<32>,
    /// Over what is on the wire and public keys: no secret.
    hash: [u8; 32],
}

impl Transcript {
    /// The state before the first message to `responder`.
    fn new(responder: &PublicKey) -> Transcript {
        let hash = hash::hash(&[&INITIAL_HASH, &responder.0]);
        Transcript {
            chain: Secret::with(|chain| *chain = INITIAL_CHAIN),
            hash,
        }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash::hash(&[&self.hash, data]);
    }

    /// Kdf1 into the chaining key.
    fn mix(&mut self, input: &[u8; 32]) {
        let key = hash::extract(&self.chain, input);
        hash::expand(&key, [&mut *self.chain]);
    }

    /// Kdf2 into the chaining key and a key to seal with.
    fn mix_for_key(&mut self, input: &[u8; 32]) -> Secret<32> {
        let key = hash::extract(&self.chain, input);
        Secret::with(|out| hash::expand(&key, [&mut *self.chain, out]))
    }

    /// Kdf3 of the pre-shared key: into the chaining key, the transcript hash and a key to seal with.
    fn mix_psk(&mut self, psk: Option<&Secret<32>>) -> Secret<32> {
        let key = hash::extract(&self.chain, psk.map_or(&[0; 32][..], |psk| &psk[..]));
        let mut tau = Secret::<32>::zeroed();
        let sealing = Secret::with(|out| hash::expand(&key, [&mut *self.chain, &mut *tau, out]));
        self.mix_hash(&*tau);
        sealing
    }

    /// Seals `text` in place under a key that is used once, with the transcript as additional data; returns the tag.
    fn seal(&mut self, key: &Secret<32>, text: &mut [u8]) -> [u8; TAG] {
        let cipher = ChaCha20Poly1305::new((&**key).into());
        let tag = cipher
            .encrypt_inout_detached(&[0; 12].into(), &self.hash, (&mut *text).into())
            .expect("the texts of a handshake are short");
        self.hash = hash::hash(&[&self.hash, text, &tag]);
        tag.into()
    }

    /// Opens `sealed`, `N` bytes of text and a tag.
    fn open<const N: usize>(&mut self, key: &Secret<32>, sealed: &[u8]) -> Option<[u8; N]> {
        let (text, tag) = sealed.split_last_chunk::<TAG>()?;
        let mut text: [u8; N] = text.try_into().ok()?;
        let cipher = ChaCha20Poly1305::new((&**key).into());
        cipher
            .decrypt_inout_detached(
                &[0; 12].into(),
                &self.hash,
                text.as_mut_slice().into(),
                tag.into(),
            )
            .ok()?;
        self.mix_hash(sealed);
        Some(text)
    }

    /// The two keys of the session: what the initiator sends under, and what the responder sends under.
    fn split(self) -> (Secret<32>, Secret<32>) {
        let key = hash::extract(&self.chain, &[]);
        let (mut first, mut second) = (Secret::zeroed(), Secret::zeroed());
        hash::expand(&key, [&mut *first, &mut *second]);
        (first, second)
    }
}

/// What both sides share when a handshake is done.
pub(crate) struct SessionKeys {
    pub(crate) send: Secret<32>,
    pub(crate) receive: Secret<32>,
}

/// The initiator's state while it waits for a response.
pub(crate) struct Waiting {
    transcript: Transcript,
    ephemeral: Secret<32>,
    /// Our index, by which the response finds us.
    pub(crate) index: u32,
}

/// Makes the first message, to `remote`. `shared` is the secret of both static keys.
#[inline(never)]
pub(crate) fn initiate(
    curve: &mut Curve,
    identity: &Identity,
    remote: &PublicKey,
    shared: &Secret<32>,
    stamp: Tai64n,
    index: u32,
    rng: &mut dyn Random,
) -> Result<(Waiting, Initiation), Refusal> {
    let mut transcript = Transcript::new(remote);
    let (private, ephemeral) = curve.ephemeral(rng);
    transcript.mix_hash(&ephemeral);
    transcript.mix(&ephemeral);

    let key = transcript.mix_for_key(&*curve.shared(&private, &remote.0)?);
    let mut sealed_static = [0; 32 + TAG];
    sealed_static[..32].copy_from_slice(&identity.public.0);
    let tag = transcript.seal(&key, &mut sealed_static[..32]);
    sealed_static[32..].copy_from_slice(&tag);

    let key = transcript.mix_for_key(shared);
    let mut sealed_timestamp = [0; 12 + TAG];
    sealed_timestamp[..12].copy_from_slice(&stamp.0);
    let tag = transcript.seal(&key, &mut sealed_timestamp[..12]);
    sealed_timestamp[12..].copy_from_slice(&tag);

    let message = Initiation {
        sender: index,
        ephemeral,
        sealed_static,
        sealed_timestamp,
    };
    Ok((
        Waiting {
            transcript,
            ephemeral: private,
            index,
        },
        message,
    ))
}

/// An initiation of which we know by now who claims to have sent it.
pub(crate) struct Claimed {
    transcript: Transcript,
    ephemeral: [u8; 32],
    sender: u32,
    /// The static key inside. Whoever sent this knows our public key; whether it owns this key, the timestamp shows.
    pub(crate) remote: PublicKey,
}

/// Opens an initiation as far as its sender's static key.
#[inline(never)]
pub(crate) fn identify(
    curve: &mut Curve,
    identity: &Identity,
    message: &Initiation,
) -> Result<Claimed, Refusal> {
    let mut transcript = Transcript::new(&identity.public);
    transcript.mix_hash(&message.ephemeral);
    transcript.mix(&message.ephemeral);

    let key = transcript.mix_for_key(&*curve.shared(&identity.private, &message.ephemeral)?);
    let remote = transcript
        .open(&key, &message.sealed_static)
        .ok_or(Refusal::StaticKey)?;
    Ok(Claimed {
        transcript,
        ephemeral: message.ephemeral,
        sender: message.sender,
        remote: PublicKey(remote),
    })
}

/// An initiation whose sender has proved who it is.
pub(crate) struct Proven {
    claimed: Claimed,
    pub(crate) stamp: Tai64n,
}

/// Opens the rest of an initiation. `shared` is the secret of our static key and the claimed one.
#[inline(never)]
pub(crate) fn authenticate(
    mut claimed: Claimed,
    shared: &Secret<32>,
    message: &Initiation,
) -> Result<Proven, Refusal> {
    let key = claimed.transcript.mix_for_key(shared);
    let stamp = claimed
        .transcript
        .open(&key, &message.sealed_timestamp)
        .ok_or(Refusal::Timestamp)?;
    Ok(Proven {
        claimed,
        stamp: Tai64n(stamp),
    })
}

/// Makes the second message, and with it the responder's keys. `index` is ours.
#[inline(never)]
pub(crate) fn respond(
    curve: &mut Curve,
    proven: Proven,
    psk: Option<&Secret<32>>,
    index: u32,
    rng: &mut dyn Random,
) -> Result<(SessionKeys, Response), Refusal> {
    let Claimed {
        mut transcript,
        ephemeral: remote_ephemeral,
        sender,
        remote,
    } = proven.claimed;
    let (private, ephemeral) = curve.ephemeral(rng);
    transcript.mix_hash(&ephemeral);
    transcript.mix(&ephemeral);
    transcript.mix(&*curve.shared(&private, &remote_ephemeral)?);
    transcript.mix(&*curve.shared(&private, &remote.0)?);
    let key = transcript.mix_psk(psk);
    let sealed_empty = transcript.seal(&key, &mut []);
    let (receive, send) = transcript.split();
    Ok((
        SessionKeys { send, receive },
        Response {
            sender: index,
            receiver: sender,
            ephemeral,
            sealed_empty,
        },
    ))
}

/// Takes the second message, and with it the initiator's keys. `waiting` stays as it was: a forged response must not end
/// a handshake.
#[inline(never)]
pub(crate) fn finish(
    curve: &mut Curve,
    identity: &Identity,
    waiting: &Waiting,
    psk: Option<&Secret<32>>,
    message: &Response,
) -> Result<SessionKeys, Refusal> {
    let mut transcript = Transcript {
        chain: waiting.transcript.chain.clone(),
        hash: waiting.transcript.hash,
    };
    transcript.mix_hash(&message.ephemeral);
    transcript.mix(&message.ephemeral);
    transcript.mix(&*curve.shared(&waiting.ephemeral, &message.ephemeral)?);
    transcript.mix(&*curve.shared(&identity.private, &message.ephemeral)?);
    let key = transcript.mix_psk(psk);
    transcript
        .open::<0>(&key, &message.sealed_empty)
        .ok_or(Refusal::ResponseTag)?;
    let (send, receive) = transcript.split();
    Ok(SessionKeys { send, receive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scalar_multiplication_is_counted() {
        let mut curve = Curve::new(crate::x25519::default());
        let private = Secret::with(|key| key.fill(0x42));
        let public = curve.public(&private);
        assert_eq!(curve.operations(), 1);
        assert!(curve.shared(&private, &public.0).is_ok());
        assert_eq!(curve.operations(), 2);
    }

    #[test]
    fn keys_are_clamped() {
        for (byte, first, last) in [(0x00, 0x00, 0x40), (0xff, 0xf8, 0x7f)] {
            let mut key = [byte; 32];
            clamp(&mut key);
            assert_eq!((key[0], key[31]), (first, last));
            assert!(key[1..31].iter().all(|other| *other == byte));
        }
    }

    #[test]
    fn c01_construction_and_identifier() {
        let chain = hash::hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
        assert_eq!(INITIAL_CHAIN, chain);
        assert_eq!(
            INITIAL_HASH,
            hash::hash(&[&chain, b"WireGuard v1 zx2c4 Jason@zx2c4.com"])
        );
    }
}
