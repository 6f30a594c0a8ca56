//! A scan of this process's own memory: no key is left after its time (conformance items 54 and 75), with every backend.
//!
//! One test in its own binary, because the scan sees what every thread of the process left behind. What is searched for is itself
//! kept masked, so that the search does not find itself.

mod common;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Mutex;

use common::Seeded;
use patronus_crypto::aead::{Aead, Job};
use patronus_crypto::keypair::Keypair;
use patronus_crypto::x25519::Dh;
use patronus_crypto::{
    Device, Limits, Now, Output, Outputs, PublicKey, Random, Time, WallClock, aead, x25519,
};
use patronus_mem::{Secret, wipe_stack};

/// How every byte of a needle is hidden.
const MASK: u8 = 0xa7;

/// A secret to look for, masked.
#[derive(Clone)]
struct Needle {
    what: &'static str,
    masked: [u8; 24],
}

/// Remembers the middle of a key: its ends are changed by clamping.
#[inline(never)]
fn needle(what: &'static str, key: &[u8; 32]) -> Needle {
    let mut masked = [0; 24];
    for (masked, &byte) in masked.iter_mut().zip(&key[4..28]) {
        *masked = std::hint::black_box(byte) ^ MASK;
    }
    Needle { what, masked }
}

/// How often each needle is in memory: every readable and writable mapping, stacks and heap among them.
fn scan(needles: &[Needle]) -> Vec<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = File::open("/proc/self/mem").unwrap();
    let mut found = vec![0; needles.len()];
    let mut chunk = vec![0u8; (1 << 20) + 32];
    let own = chunk.as_ptr() as usize..chunk.as_ptr() as usize + chunk.len();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        if !rights.starts_with("rw") || line.ends_with("[vvar]") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let parse = |text| usize::from_str_radix(text, 16).unwrap();
        let (mut at, end) = (parse(start), parse(end));
        while at < end {
            let len = (end - at).min(1 << 20);
            // A needle may lie across the border of two chunks.
            let ahead = (end - at - len).min(32);
            let chunk = &mut chunk[..len + ahead];
            if memory.seek(SeekFrom::Start(at as u64)).is_ok() && memory.read_exact(chunk).is_ok() {
                for (needle, found) in needles.iter().zip(&mut found) {
                    *found += count(chunk, len, &needle.masked, |offset| own.contains(&(at + offset)));
                }
            }
            at += len;
        }
    }
    found
}

fn count(chunk: &[u8], starts: usize, masked: &[u8; 24], skip: impl Fn(usize) -> bool) -> usize {
    let first = masked[0] ^ MASK;
    let candidates = memchr::memchr_iter(first, &chunk[..starts]);
    candidates
        .filter(|&offset| {
            let here = chunk[offset..].iter();
            here.len() >= 24 && here.zip(masked).all(|(byte, masked)| byte ^ MASK == *masked) && !skip(offset)
        })
        .count()
}

/// Notes every secret that a backend computes.
struct Recorded {
    dh: &'static dyn Dh,
    seen: Mutex<Vec<Needle>>,
}

impl Dh for Recorded {
    fn name(&self) -> &'static str {
        self.dh.name()
    }

    fn public(&self, private: &Secret<32>) -> [u8; 32] {
        self.seen
            .lock()
            .unwrap()
            .push(needle("private key of a handshake", private));
        self.dh.public(private)
    }

    fn shared(&self, private: &Secret<32>, public: &[u8; 32]) -> Option<Secret<32>> {
        let shared = self.dh.shared(private, public);
        self.seen
            .lock()
            .unwrap()
            .extend(shared.as_ref().map(|shared| needle("shared secret", shared)));
        shared
    }
}

/// A device, and the sessions that its worker would hold.
struct End {
    device: Device,
    #[expect(clippy::vec_box, reason = "the boxes go back to the device")]
    keypairs: Vec<Box<Keypair>>,
    rng: Seeded,
    out: Outputs,
}

impl End {
    fn new(seed: u64, dh: &'static dyn Dh, now: Now) -> End {
        let mut rng = Seeded(seed);
        let mut out = Outputs::new();
        let mut device = Device::new(Limits::default(), dh, now, &mut rng);
        device.set_private_key(Some(Secret::with(|key| rng.fill(key))), &mut out);
        device.set_up(true, &mut out);
        End {
            device,
            keypairs: Vec::new(),
            rng,
            out,
        }
    }

    /// Carries out what the device wants; returns what it sends.
    fn carry_out(&mut self) -> Option<Vec<u8>> {
        let mut sent = None;
        for output in self.out.drain() {
            match output {
                Output::Send { msg, .. } => sent = Some(msg.to_vec()),
                Output::Install { keypair, .. } => self.keypairs.push(keypair),
                Output::EraseKeys { .. } => {
                    self.keypairs
                        .drain(..)
                        .for_each(|keypair| self.device.retire(keypair));
                }
                _ => {}
            }
        }
        sent
    }

    fn receive(&mut self, now: &Now, msg: &[u8]) -> Option<Vec<u8>> {
        let from = "192.0.2.1:1".parse().unwrap();
        self.device
            .receive(now, &from, msg, 0, &mut self.rng, &mut self.out);
        self.carry_out()
    }
}

/// Seals and opens with a session's keys, as a worker does.
#[inline(never)]
fn use_keys(aead: &dyn Aead, sender: &Keypair, receiver: &Keypair) {
    for counter in 0..4 {
        let mut packet = vec![0x11; 100 * (counter as usize + 1) + 16];
        let mut jobs = [Job::new(sender.send_key(), counter, &mut packet)];
        aead.seal(&mut jobs);
        assert!(jobs[0].ok);
        let mut jobs = [Job::new(receiver.receive_key(), counter, &mut packet)];
        aead.open(&mut jobs);
        assert!(jobs[0].ok);
    }
}

fn at(mono: u64) -> Now {
    Now {
        mono: Time::from_secs(1000 + mono),
        wall: WallClock {
            secs: 1_780_000_000 + mono,
            nanos: 0,
        },
    }
}

/// A handshake and traffic, then the end of the session by time or by removal of the peer. What is to be gone is gone.
fn keys_are_gone(dh: &'static Recorded, aead: &'static dyn Aead, seed: u64, remove: bool) {
    let now = at(0);
    let (mut a, mut b) = (End::new(2 * seed, dh, now), End::new(2 * seed + 1, dh, now));
    let (key_a, key_b): (PublicKey, PublicKey) =
        (a.device.public_key().unwrap(), b.device.public_key().unwrap());
    let (peer_b, peer_a) = (
        a.device.add_peer(key_b).unwrap(),
        b.device.add_peer(key_a).unwrap(),
    );
    for (end, peer) in [(&mut a, peer_b), (&mut b, peer_a)] {
        end.device
            .set_psk(peer, Some(Secret::with(|psk| Seeded(seed + 77).fill(psk))));
    }
    // Static keys and what follows from them alone live as long as the peer does.
    let shared = std::mem::take(&mut *dh.seen.lock().unwrap())
        .pop()
        .expect("both static keys' secret");
    let lasting = [
        needle("static key", a.device.private_key().unwrap()),
        needle("static key", b.device.private_key().unwrap()),
        needle("pre-shared key", a.device.psk(peer_b).unwrap()),
        shared,
    ];
    assert_eq!(
        scan(&lasting),
        [1, 1, 2, 2],
        "the scan finds keys that are in use"
    );

    a.device.want_handshake(peer_b, &now, &mut a.rng, &mut a.out);
    let initiation = a.carry_out().expect("an initiation");
    let waiting: Vec<Needle> = dh.seen.lock().unwrap().clone();
    // While the handshake lasts, the initiator's ephemeral key is kept; what it computed with it is not.
    for (needle, count) in waiting.iter().zip(scan(&waiting)) {
        let kept = usize::from(needle.what == "private key of a handshake");
        assert_eq!(count, kept, "{} after an initiation ({})", needle.what, dh.name());
    }
    let response = b.receive(&now, &initiation).expect("a response");
    a.receive(&now, &response);
    assert_eq!((a.keypairs.len(), b.keypairs.len()), (1, 1));

    let ephemeral: Vec<Needle> = dh.seen.lock().unwrap().clone();
    // es, e; e's and s's on both sides.
    assert_eq!(ephemeral.len(), 2 + 1 + 3 + 2);
    for (needle, count) in ephemeral.iter().zip(scan(&ephemeral)) {
        assert_eq!(count, 0, "{} after a handshake ({})", needle.what, dh.name());
    }

    use_keys(aead, &a.keypairs[0], &b.keypairs[0]);
    use_keys(aead, &b.keypairs[0], &a.keypairs[0]);
    let session = [
        needle("key one way", a.keypairs[0].send_key()),
        needle("key the other way", b.keypairs[0].send_key()),
    ];
    wipe_stack();
    // Each side has both keys, in locked memory; what the backends left on the stack of this thread was wiped, as a worker does not.
    assert_eq!(
        scan(&session),
        [2, 2],
        "the scan finds keys that are in use ({})",
        aead.name()
    );

    if remove {
        for (end, peer) in [(&mut a, peer_b), (&mut b, peer_a)] {
            end.device.remove_peer(peer);
            end.keypairs
                .drain(..)
                .for_each(|keypair| end.device.retire(keypair));
        }
    } else {
        for end in [&mut a, &mut b] {
            end.device.poll(&at(539), &mut end.rng, &mut end.out);
            end.carry_out();
            assert_eq!(end.keypairs.len(), 1);
            end.device.poll(&at(540), &mut end.rng, &mut end.out);
            end.carry_out();
            assert!(end.keypairs.is_empty(), "erased after 540 s");
        }
    }
    assert_eq!(
        scan(&session),
        [0, 0],
        "session keys after their time ({}, {})",
        dh.name(),
        aead.name()
    );
}

#[test]
fn c54_c75_no_key_is_left_after_its_time() {
    let mut seed = 1000;
    for dh in x25519::all() {
        let dh: &'static Recorded = Box::leak(Box::new(Recorded {
            dh: *dh,
            seen: Mutex::default(),
        }));
        for aead in aead::all() {
            for remove in [false, true] {
                seed += 1;
                keys_are_gone(dh, *aead, seed, remove);
            }
        }
    }
}
