//! For tuning: every kernel beside ring, nanoseconds a packet (least and median), and ring's median divided by the kernel's.
//!
//! `tune OP BURST ROUNDS SIZE...`, OP being seal or open; size 0 is IMIX (64, 576 and 1,420 in 7:4:1).

use patronus_crypto_simd::{Isa, Kernel, Packet, TAG};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::hint::black_box;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let op = args[1].clone();
    let burst: usize = args[2].parse().unwrap();
    let rounds: usize = args[3].parse().unwrap();
    let kernels: Vec<Kernel> = Isa::ALL.into_iter().filter_map(Kernel::new).collect();
    print!("{op} {burst}: size      ring");
    for k in &kernels {
        print!(" | {:>22?}", k.isa());
    }
    println!();
    for size in &args[4..] {
        row(&op, burst, rounds, size.parse().unwrap(), &kernels);
    }
}

fn sizes(size: usize, burst: usize) -> Vec<usize> {
    let imix = [64, 576, 64, 64, 576, 64, 1420, 64, 576, 64, 64, 576];
    (0..burst)
        .map(|n| if size == 0 { imix[n * 7 % 12] } else { size })
        .collect()
}

struct Bed {
    keys: Vec<[u8; 32]>,
    bufs: Vec<Vec<u8>>,
    sealed: Vec<Vec<u8>>,
}

fn nonce(n: usize) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&(n as u64 + 77).to_le_bytes());
    nonce
}

impl Bed {
    fn packets(&mut self) -> Vec<Packet<'_>> {
        self.keys
            .iter()
            .zip(&mut self.bufs)
            .enumerate()
            .map(|(n, (k, b))| Packet::new(k, nonce(n), &[], &mut b[16..]))
            .collect()
    }
}

fn row(op: &str, burst: usize, rounds: usize, size: usize, kernels: &[Kernel]) {
    let keys: Vec<[u8; 32]> = (0..burst)
        .map(|n| std::array::from_fn(|i| (n * 37 + i * 11) as u8))
        .collect();
    let bufs: Vec<Vec<u8>> = sizes(size, burst)
        .into_iter()
        .map(|s| (0..s + TAG + 16).map(|i| (i * 7) as u8).collect())
        .collect();
    let rings: Vec<LessSafeKey> = keys
        .iter()
        .map(|k| LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, k).unwrap()))
        .collect();
    let mut bed = Bed {
        keys,
        sealed: bufs.clone(),
        bufs,
    };
    let mut plain = bed.bufs.clone();
    // Right first.
    for ((n, b), k) in bed.sealed.iter_mut().enumerate().zip(&rings) {
        let len = b.len() - TAG;
        let (text, tag) = b[16..].split_at_mut(len - 16);
        let t = k
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce(n)), Aad::empty(), text)
            .unwrap();
        tag.copy_from_slice(t.as_ref());
    }
    plain.iter_mut().for_each(|p| {
        let l = p.len();
        p.truncate(l - TAG);
    });
    for k in kernels {
        bed.bufs
            .iter_mut()
            .zip(&plain)
            .for_each(|(b, p)| b[..p.len()].copy_from_slice(p));
        let mut packets = bed.packets();
        k.seal(&mut packets);
        assert!(packets.iter().all(|p| p.ok));
        assert!(bed.bufs == bed.sealed, "{:?} {size} seal", k.isa());
        let mut packets = bed.packets();
        k.open(&mut packets);
        assert!(packets.iter().all(|p| p.ok), "{:?} {size} open", k.isa());
        assert!(
            bed.bufs.iter().zip(&plain).all(|(b, p)| b[..p.len()] == p[..]),
            "{:?} open",
            k.isa()
        );
    }
    let reps = (200_000 / (burst * (size.max(200) + 200))).max(1);
    let opening = op == "open";
    let mut times = vec![Vec::new(); kernels.len() + 1];
    for _ in 0..rounds {
        for who in 0..=kernels.len() {
            let sealed = bed.sealed.clone();
            let mut packets = bed.packets();
            let begun = Instant::now();
            for _ in 0..reps {
                if opening {
                    packets
                        .iter_mut()
                        .zip(&sealed)
                        .for_each(|(p, s)| p.buf.copy_from_slice(&s[16..]));
                }
                if who > 0 {
                    let kernel = kernels[who - 1];
                    if opening {
                        kernel.open(&mut packets)
                    } else {
                        kernel.seal(&mut packets)
                    }
                } else {
                    for ((n, p), k) in packets.iter_mut().enumerate().zip(&rings) {
                        let nonce = Nonce::assume_unique_for_key(nonce(n));
                        if opening {
                            k.open_in_place(nonce, Aad::empty(), p.buf).unwrap();
                        } else {
                            let len = p.buf.len() - TAG;
                            let (text, tag) = p.buf.split_at_mut(len);
                            let t = k.seal_in_place_separate_tag(nonce, Aad::empty(), text).unwrap();
                            tag.copy_from_slice(t.as_ref());
                        }
                    }
                }
                black_box(&packets);
            }
            let took = begun.elapsed().as_nanos() as f64;
            times[who].push(took / (reps * burst) as f64);
        }
    }
    let figures: Vec<(f64, f64)> = times
        .into_iter()
        .map(|mut t| {
            t.sort_by(f64::total_cmp);
            (t[0], t[t.len() / 2])
        })
        .collect();
    print!("{op} {burst}: {size:5} {:6.0} {:5.0}", figures[0].0, figures[0].1);
    for f in &figures[1..] {
        print!(
            " | {:6.1} {:6.1} {:5.2} {:4.2}",
            f.0,
            f.1,
            figures[0].1 / f.1,
            figures[0].0 / f.0
        );
    }
    println!();
}
