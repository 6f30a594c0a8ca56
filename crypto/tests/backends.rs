//! Every AEAD and X25519 backend against the reference one and against what callers rely on.

use patronus_crypto::aead::{self, Aead, Job, TAG};
use patronus_crypto::x25519;
use patronus_mem::Secret;
use proptest::prelude::*;

fn secret(bytes: [u8; 32]) -> Secret<32> {
    Secret::with(|out| *out = bytes)
}

fn reference() -> &'static dyn Aead {
    aead::by_name("rustcrypto").unwrap()
}

/// A text with room for its tag.
fn roomy(text: &[u8]) -> Vec<u8> {
    [text, &[0xee; TAG]].concat()
}

#[test]
fn c08_backends_have_names_and_a_default() {
    for aead in aead::all() {
        assert_eq!(aead::by_name(aead.name()).unwrap().name(), aead.name());
    }
    for dh in x25519::all() {
        assert_eq!(x25519::by_name(dh.name()).unwrap().name(), dh.name());
    }
    assert_eq!(aead::default().name(), aead::all()[0].name());
    assert_eq!(x25519::default().name(), x25519::all()[0].name());
    assert!(aead::by_name("rot13").is_err());
    assert!(x25519::by_name("rot13").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A burst of different keys and lengths is sealed as the reference seals each packet alone, and opens again.
    #[test]
    fn a_burst_is_its_packets(
        packets in prop::collection::vec(
            (any::<[u8; 32]>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..2000)),
            0..=64,
        )
    ) {
        let keys: Vec<_> = packets.iter().map(|p| secret(p.0)).collect();
        let expected: Vec<Vec<u8>> = packets.iter().map(|(key, counter, text)| {
            let mut buf = roomy(text);
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&counter.to_le_bytes());
            assert!(reference().seal_one(key, &nonce, &[], &mut buf));
            buf
        }).collect();
        for aead in aead::all() {
            let mut bufs: Vec<_> = packets.iter().map(|p| roomy(&p.2)).collect();
            let mut jobs: Vec<_> = bufs.iter_mut().zip(&keys).zip(&packets)
                .map(|((buf, key), packet)| Job::new(key, packet.1, buf)).collect();
            aead.seal(&mut jobs);
            prop_assert!(jobs.iter().all(|job| job.ok));
            prop_assert_eq!(&bufs, &expected, "{}", aead.name());

            let mut jobs: Vec<_> = bufs.iter_mut().zip(&keys).zip(&packets)
                .map(|((buf, key), packet)| Job::new(key, packet.1, buf)).collect();
            aead.open(&mut jobs);
            prop_assert!(jobs.iter().all(|job| job.ok));
            for (buf, packet) in bufs.iter().zip(&packets) {
                prop_assert_eq!(&buf[..packet.2.len()], &packet.2[..], "{}", aead.name());
            }
        }
    }

    /// One flipped bit anywhere, another counter or another key: refused, no plain text left, and the rest of the burst
    /// is opened all the same.
    #[test]
    fn a_forged_packet_is_refused_alone(
        key in any::<[u8; 32]>(),
        counter in 1u64..u64::MAX,
        text in prop::collection::vec(any::<u8>(), 32..600),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
        forgery in 0u8..3,
    ) {
        let good_key = secret(key);
        let mut sealed = roomy(&text);
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        prop_assert!(reference().seal_one(&key, &nonce, &[], &mut sealed));
        let mut forged = sealed.clone();
        let (mut forged_key, mut forged_counter) = (key, counter);
        match forgery {
            0 => forged[at.index(sealed.len())] ^= 1 << bit,
            1 => forged_key[at.index(32)] ^= 1 << bit,
            _ => forged_counter ^= 1 << (at.index(8) * 8 + usize::from(bit)),
        }
        let forged_key = secret(forged_key);
        for aead in aead::all() {
            let mut bufs = [sealed.clone(), forged.clone(), sealed.clone()];
            let [first, second, third] = &mut bufs;
            let mut jobs = [
                Job::new(&good_key, counter, first),
                Job::new(&forged_key, forged_counter, second),
                Job::new(&good_key, counter, third),
            ];
            aead.open(&mut jobs);
            prop_assert_eq!(jobs.each_ref().map(|job| job.ok), [true, false, true], "{}", aead.name());
            prop_assert_eq!(&bufs[0][..text.len()], &text[..]);
            prop_assert_eq!(&bufs[2][..text.len()], &text[..]);
            // Either the cipher text is still there or nothing is: never what decryption would have made of it.
            let left = &bufs[1][..text.len()];
            prop_assert!(left == &forged[..text.len()] || left.iter().all(|&b| b == 0), "{}", aead.name());
        }
    }

    /// X25519 agrees between backends and between both ends.
    #[test]
    fn key_agreement_agrees(ours in any::<[u8; 32]>(), theirs in any::<[u8; 32]>(), public in any::<[u8; 32]>()) {
        let (ours, theirs) = (secret(ours), secret(theirs));
        let oracle = x25519::by_name("dalek").unwrap();
        for dh in x25519::all() {
            prop_assert_eq!(dh.public(&ours), oracle.public(&ours));
            let here = dh.shared(&ours, &dh.public(&theirs)).unwrap();
            let there = dh.shared(&theirs, &dh.public(&ours)).unwrap();
            prop_assert_eq!(*here, *there);
            // Any 32 bytes are a public key; agreement on the ones nobody would send matters as well.
            prop_assert_eq!(dh.shared(&ours, &public).map(|s| *s), oracle.shared(&ours, &public).map(|s| *s));
        }
    }
}

#[test]
fn a_buffer_without_room_for_a_tag_is_refused_and_left_alone() {
    let key = secret([7; 32]);
    for aead in aead::all() {
        for len in 0..TAG {
            let mut buf = vec![0x55; len];
            let mut job = [Job::new(&key, 1, &mut buf)];
            aead.seal(&mut job);
            assert!(!job[0].ok, "{} {len}", aead.name());
            aead.open(&mut job);
            assert!(!job[0].ok, "{} {len}", aead.name());
            assert!(buf.iter().all(|&b| b == 0x55));
        }
        // An empty text is a keepalive: a tag and nothing else.
        let mut buf = vec![0; TAG];
        let mut job = [Job::new(&key, 1, &mut buf)];
        aead.seal(&mut job);
        assert!(job[0].ok);
        job[0].ok = false;
        aead.open(&mut job);
        assert!(job[0].ok);
        aead.seal(&mut []);
        aead.open(&mut []);
    }
}

/// The nonce is four zero bytes and the counter, little-endian.
#[test]
fn c04_nonce_is_the_counter_in_little_endian() {
    let key = secret([9; 32]);
    let counter = 0x0123_4567_89ab_cdef;
    for aead in aead::all() {
        let mut buf = roomy(b"payload");
        let mut job = [Job::new(&key, counter, &mut buf)];
        aead.seal(&mut job);
        let nonce = [0, 0, 0, 0, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01];
        assert!(
            reference().open_one(&key, &nonce, &[], &mut buf),
            "{}",
            aead.name()
        );
        assert_eq!(&buf[..7], b"payload");
    }
}

/// Points of low order, and the encodings of them above the field's prime, give an all-zero secret, which no backend
/// hands out (RFC 7748, section 7; the values follow from the curve's cofactor of 8).
#[test]
fn c08_low_order_points_give_no_secret() {
    let hex = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ];
    let private = secret([0x77; 32]);
    for dh in x25519::all() {
        for point in hex {
            let mut public = [0; 32];
            for (byte, digits) in public.iter_mut().zip(point.as_bytes().chunks(2)) {
                *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
            }
            assert!(dh.shared(&private, &public).is_none(), "{} {point}", dh.name());
            // The top bit is ignored.
            public[31] |= 0x80;
            assert!(
                dh.shared(&private, &public).is_none(),
                "{} {point} with the top bit",
                dh.name()
            );
        }
        let mut base = [0; 32];
        base[0] = 9;
        assert_eq!(dh.shared(&private, &base).map(|s| *s), Some(dh.public(&private)));
    }
}

#[test]
fn backends_are_found_by_their_names() {
    const NAMES: [&str; 6] = [
        "ours-avx512",
        "ours-avx512-noifma",
        "ours-avx2",
        "ours-portable",
        "aws-lc",
        "rustcrypto",
    ];
    let aeads: Vec<_> = aead::all().iter().map(|aead| aead.name()).collect();
    assert!(aeads.iter().all(|name| NAMES.contains(name)), "{aeads:?}");
    for name in NAMES {
        match aead::by_name(name) {
            Ok(aead) => assert_eq!(aead.name(), name),
            // Only what the processor lacks may be missing, and the message says so.
            Err(e) => {
                assert!(name.starts_with("ours-avx"), "{name}");
                assert!(e.to_string().contains("needs a processor with avx"), "{e}");
            }
        }
    }
    let said = aead::by_name("").err().unwrap().to_string();
    assert!(
        said.contains("there is no AEAD backend ``") && said.contains("aws-lc"),
        "{said}"
    );
    let curves: Vec<_> = x25519::all().iter().map(|dh| dh.name()).collect();
    assert_eq!(curves, ["aws-lc", "dalek"]);
}
