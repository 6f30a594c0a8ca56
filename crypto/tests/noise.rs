//! The handshake against a second implementation, written straight from the paper and in another style: one function after the
//! other, byte strings, nothing shared with the crate but the primitives underneath (conformance items 1, 4, 16 and 20).

mod common;

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::{AeadInOut, ChaCha20Poly1305};
use common::*;
use patronus_crypto::keypair::Keypair;
use patronus_crypto::{
    Device, Limits, Now, Output, Outputs, PeerId, PublicKey, Random, Time, WallClock, x25519,
};
use patronus_mem::Secret;
use proptest::prelude::*;

/// The paper's functions, by the paper's names (section 5.4).
mod paper {
    use super::*;

    pub const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
    pub const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

    pub fn hash(input: &[u8]) -> Vec<u8> {
        Blake2s256::digest(input).to_vec()
    }

    pub fn mac(key: &[u8], input: &[u8]) -> Vec<u8> {
        Blake2sMac::<U16>::new_from_slice(key)
            .unwrap()
            .chain_update(input)
            .finalize()
            .into_bytes()
            .to_vec()
    }

    pub fn hmac(key: &[u8], input: &[u8]) -> Vec<u8> {
        let xor = |pad: u8| -> Vec<u8> { (0..64).map(|n| pad ^ key.get(n).copied().unwrap_or(0)).collect() };
        hash(&[xor(0x5c), hash(&[&xor(0x36), input].concat())].concat())
    }

    pub fn kdf(n: u8, key: &[u8], input: &[u8]) -> Vec<Vec<u8>> {
        let tau0 = hmac(key, input);
        let mut outputs: Vec<Vec<u8>> = Vec::new();
        for i in 1..=n {
            let before = outputs.last().cloned().unwrap_or_default();
            outputs.push(hmac(&tau0, &[before, vec![i]].concat()));
        }
        outputs
    }

    pub fn aead(key: &[u8], counter: u64, plain: &[u8], auth: &[u8]) -> Vec<u8> {
        let nonce: Vec<u8> = [vec![0; 4], counter.to_le_bytes().to_vec()].concat();
        let nonce: [u8; 12] = nonce.try_into().unwrap();
        let mut text = plain.to_vec();
        let cipher = ChaCha20Poly1305::new_from_slice(key).unwrap();
        let tag = cipher
            .encrypt_inout_detached(&nonce.into(), auth, text.as_mut_slice().into())
            .unwrap();
        [text, tag.to_vec()].concat()
    }

    pub fn dh(private: &[u8; 32], public: &[u8; 32]) -> Vec<u8> {
        x25519_dalek::x25519(*private, *public).to_vec()
    }

    pub fn dh_public(private: &[u8; 32]) -> [u8; 32] {
        x25519_dalek::x25519(*private, x25519_dalek::X25519_BASEPOINT_BYTES)
    }
}

use paper::*;

/// Everything that goes into a handshake.
#[derive(Clone, Debug)]
struct Inputs {
    static_i: [u8; 32],
    static_r: [u8; 32],
    ephemeral_i: [u8; 32],
    ephemeral_r: [u8; 32],
    psk: [u8; 32],
    index_i: u32,
    index_r: u32,
    wall: (u64, u32),
}

/// Everything that comes out of it.
#[derive(PartialEq, Eq, Debug)]
struct Transcript {
    initiation: Vec<u8>,
    response: Vec<u8>,
    /// What the initiator sends under, and what it receives under.
    keys: (Vec<u8>, Vec<u8>),
}

/// The handshake as the paper's sections 5.4.2 to 5.4.5 write it down, both sides at once.
fn by_the_paper(inputs: &Inputs) -> Transcript {
    let (s_i, s_r) = (dh_public(&inputs.static_i), dh_public(&inputs.static_r));
    let (e_i, e_r) = (dh_public(&inputs.ephemeral_i), dh_public(&inputs.ephemeral_r));
    let macs = |message: Vec<u8>, to: &[u8; 32]| {
        let mac1 = mac(&hash(&[b"mac1----", &to[..]].concat()), &message);
        [message, mac1, vec![0; 16]].concat()
    };

    // First message.
    let mut c = hash(CONSTRUCTION);
    let mut h = hash(&[&c[..], IDENTIFIER].concat());
    h = hash(&[&h[..], &s_r].concat());
    h = hash(&[&h[..], &e_i].concat());
    c = kdf(1, &c, &e_i).remove(0);
    let k = kdf(2, &c, &dh(&inputs.ephemeral_i, &s_r));
    c = k[0].clone();
    let msg_static = aead(&k[1], 0, &s_i, &h);
    h = hash(&[&h[..], &msg_static].concat());
    let k = kdf(2, &c, &dh(&inputs.static_i, &s_r));
    c = k[0].clone();
    let seconds = 0x4000_0000_0000_000a_u64 + inputs.wall.0;
    let nanos = inputs.wall.1 / (1 << 24) * (1 << 24);
    let timestamp = [&seconds.to_be_bytes()[..], &nanos.to_be_bytes()].concat();
    let msg_timestamp = aead(&k[1], 0, &timestamp, &h);
    h = hash(&[&h[..], &msg_timestamp].concat());
    let head = [&[1, 0, 0, 0], &inputs.index_i.to_le_bytes()[..]].concat();
    let initiation = macs([head, e_i.to_vec(), msg_static, msg_timestamp].concat(), &s_r);

    // Second message.
    h = hash(&[&h[..], &e_r].concat());
    c = kdf(1, &c, &e_r).remove(0);
    c = kdf(1, &c, &dh(&inputs.ephemeral_r, &e_i)).remove(0);
    c = kdf(1, &c, &dh(&inputs.ephemeral_r, &s_i)).remove(0);
    let k = kdf(3, &c, &inputs.psk);
    c = k[0].clone();
    h = hash(&[&h[..], &k[1]].concat());
    let msg_empty = aead(&k[2], 0, b"", &h);
    let indices = [inputs.index_r.to_le_bytes(), inputs.index_i.to_le_bytes()].concat();
    let response = macs(
        [vec![2, 0, 0, 0], indices, e_r.to_vec(), msg_empty].concat(),
        &s_i,
    );

    let keys = kdf(2, &c, b"");
    Transcript {
        initiation,
        response,
        keys: (keys[0].clone(), keys[1].clone()),
    }
}

/// Gives out what it was told to, and zeros when that is used up.
struct Scripted(Vec<u8>);

impl Random for Scripted {
    fn fill(&mut self, buf: &mut [u8]) {
        let n = buf.len().min(self.0.len());
        buf[..n].copy_from_slice(&self.0[..n]);
        buf[n..].fill(0);
        self.0.drain(..n);
    }
}

fn device(
    dh: &'static dyn x25519::Dh,
    private: &[u8; 32],
    peer: &[u8; 32],
    psk: &[u8; 32],
    now: Now,
) -> Device {
    let mut device = Device::new(Limits::default(), dh, now, &mut Seeded(0));
    let mut out = Outputs::new();
    let mut private = *private;
    device.set_private_key(Some(Secret::new(&mut private)), &mut out);
    let peer = device.add_peer(PublicKey(*peer)).unwrap();
    let mut psk = *psk;
    device.set_psk(peer, Some(Secret::new(&mut psk)));
    device.set_up(true, &mut out);
    assert!(out.is_empty());
    device
}

fn message(out: &mut Outputs) -> (Vec<u8>, Option<Box<Keypair>>) {
    let (mut sent, mut installed) = (None, None);
    for output in out.drain() {
        match output {
            Output::Send { msg, .. } => sent = Some(msg.to_vec()),
            Output::Install { keypair, .. } => installed = Some(keypair),
            Output::MoveEndpoint { .. } => {}
            _ => panic!("unexpected output"),
        }
    }
    (sent.unwrap_or_default(), installed)
}

/// The same handshake by two devices. What each draws at random is an index and an ephemeral key, in this order.
fn by_the_device(dh: &'static dyn x25519::Dh, inputs: &Inputs) -> Transcript {
    let now = Now {
        mono: Time::from_secs(1000),
        wall: WallClock {
            secs: inputs.wall.0,
            nanos: inputs.wall.1,
        },
    };
    let (s_i, s_r) = (dh_public(&inputs.static_i), dh_public(&inputs.static_r));
    let mut initiator = device(dh, &inputs.static_i, &s_r, &inputs.psk, now);
    let mut responder = device(dh, &inputs.static_r, &s_i, &inputs.psk, now);
    let draws = |index: u32, key: &[u8; 32]| Scripted([&index.to_le_bytes()[..], key].concat());
    let from = "192.0.2.1:1".parse().unwrap();
    let mut out = Outputs::new();

    let mut rng = draws(inputs.index_i, &inputs.ephemeral_i);
    initiator.want_handshake(PeerId(0), &now, &mut rng, &mut out);
    let (initiation, _) = message(&mut out);
    let mut rng = draws(inputs.index_r, &inputs.ephemeral_r);
    responder.receive(&now, &from, &initiation, 0, &mut rng, &mut out);
    let (response, keypair_r) = message(&mut out);
    initiator.receive(&now, &from, &response, 0, &mut Scripted(vec![]), &mut out);
    let (_, keypair_i) = message(&mut out);

    let (keypair_i, keypair_r) = (keypair_i.expect("a session"), keypair_r.expect("a session"));
    assert!(keypair_i.initiator && !keypair_r.initiator);
    assert_eq!(
        (keypair_i.local_index, keypair_i.remote_index),
        (inputs.index_i, inputs.index_r)
    );
    assert_eq!(
        (keypair_r.local_index, keypair_r.remote_index),
        (inputs.index_r, inputs.index_i)
    );
    let keys = |send: &Secret<32>, receive: &Secret<32>| (send.to_vec(), receive.to_vec());
    let sides = keys(keypair_i.send_key(), keypair_i.receive_key());
    assert_eq!(sides, keys(keypair_r.receive_key(), keypair_r.send_key()));
    Transcript {
        initiation,
        response,
        keys: sides,
    }
}

/// A counting pattern, so that the vector below can be made by anybody.
fn pattern(start: u8) -> [u8; 32] {
    std::array::from_fn(|n| start.wrapping_add(n as u8))
}

fn vector() -> Inputs {
    Inputs {
        static_i: pattern(0x00),
        static_r: pattern(0x20),
        ephemeral_i: pattern(0x40),
        ephemeral_r: pattern(0x60),
        psk: pattern(0x80),
        index_i: 0x1122_3344,
        index_r: 0x5566_7788,
        wall: (1_780_000_000, 123_456_789),
    }
}

#[test]
fn c01_c04_a_whole_handshake_byte_for_byte() {
    let expected = by_the_paper(&vector());
    assert_eq!((expected.initiation.len(), expected.response.len()), (148, 92));
    for dh in x25519::all() {
        assert_eq!(by_the_device(*dh, &vector()), expected, "{}", dh.name());
    }
}

/// The same, frozen. The bytes were made by a third implementation (Python's integers and hashlib), which is why they may be
/// trusted more than either of the two here.
#[test]
fn c01_a_frozen_handshake() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let transcript = by_the_device(x25519::default(), &vector());
    assert_eq!(hex(&transcript.initiation), FROZEN_INITIATION.concat());
    assert_eq!(hex(&transcript.response), FROZEN_RESPONSE.concat());
    assert_eq!(
        (&hex(&transcript.keys.0)[..], &hex(&transcript.keys.1)[..]),
        FROZEN_KEYS
    );
}

const FROZEN_INITIATION: [&str; 3] = [
    "010000004433221179a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51af0225eb421886af8f54f",
    "b31289d49dcd82b0f6f3279d40d7cff913fece0c64ad226eef3320755b393b72f16842c8d7ee78a74e9371747e8288f4ecc1",
    "0ed3b474b34d4fade080a25c43f61673f88be129ddd3a7c92840a414e18a3bb300000000000000000000000000000000",
];
const FROZEN_RESPONSE: [&str; 2] = [
    "020000008877665544332211675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52f4a2d4e022f35",
    "74dc04117dd9a0ffc2ddb39bc5f35c036f86d7a34557cf63ff7100000000000000000000000000000000",
];
const FROZEN_KEYS: (&str, &str) = (
    "f26d13be8f8fe7fe36805b47503285e73bcb2fc6fe3ef37834e5f6128ad8cf50",
    "083bdab92ffb8da7ab5063bb2d96de2b7e09008d8e07bcf96ac25c340a778665",
);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn c07_any_keys_make_the_papers_handshake(
        keys in any::<[[u8; 32]; 5]>(),
        indices in any::<(u32, u32)>(),
        wall in (1_740_000_000..1_900_000_000u64, 0..1_000_000_000u32),
    ) {
        let [static_i, static_r, ephemeral_i, ephemeral_r, psk] = keys;
        let (index_i, index_r) = indices;
        let inputs = Inputs { static_i, static_r, ephemeral_i, ephemeral_r, psk, index_i, index_r, wall };
        let expected = by_the_paper(&inputs);
        for dh in x25519::all() {
            prop_assert_eq!(&by_the_device(*dh, &inputs), &expected);
        }
    }
}

/// Without a pre-shared key, the paper mixes in 32 zeros.
#[test]
fn c07_no_psk_is_a_psk_of_zeros() {
    let inputs = Inputs {
        psk: [0; 32],
        ..vector()
    };
    assert_eq!(by_the_device(x25519::default(), &inputs), by_the_paper(&inputs));
}
