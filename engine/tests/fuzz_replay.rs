//! A short, repeatable run of the fuzz targets (tests/fuzz): every seed, and a fixed set of inputs made from the seeds. No
//! instrumentation and no nightly compiler; what it cannot find, `cargo fuzz` may.

#[path = "../../tests/fuzz/src/lib.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

/// Made-up inputs are at most this long.
const MAX_LEN: usize = 4096;

/// SplitMix64: the same inputs in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 8] = [0, 1, 4, 6, 0x7f, 0x80, 0xfe, 0xff];
        if self.below(3) == 0 {
            TELLING[self.below(8)]
        } else {
            self.next() as u8
        }
    }

    /// Somewhere in `0..=len`, near the front more often.
    fn place(&mut self, len: usize) -> usize {
        let most = if self.below(2) == 0 { len } else { len.min(48) };
        self.below(most + 1)
    }

    fn mutate(&mut self, input: &mut Vec<u8>, others: &[Vec<u8>]) {
        let at = self.place(input.len());
        match self.below(8) {
            0 => input.truncate(at),
            1 => {
                let byte = self.byte();
                input.insert(at, byte);
            }
            2 => {
                let len = self.below(9).min(input.len() - at);
                input.drain(at..at + len);
            }
            3 => {
                let other = &others[self.below(others.len())];
                let from = self.place(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            4 => {
                let len = self.below(33).min(input.len() - at);
                let copy = input[at..at + len].to_vec();
                let to = self.place(input.len());
                input.splice(to..to, copy);
            }
            5 => {
                let bit = 1 << self.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bit;
                }
            }
            6 => {
                let step = [1, 255, 16, 240][self.below(4)];
                if let Some(byte) = input.get_mut(at) {
                    *byte = byte.wrapping_add(step);
                }
            }
            _ => {
                let with = self.byte();
                if let Some(byte) = input.get_mut(at) {
                    *byte = with;
                }
            }
        }
        input.truncate(MAX_LEN);
    }

    fn random(&mut self) -> Vec<u8> {
        let len = self.below(200);
        (0..len).map(|_| self.byte()).collect()
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fuzz/seeds")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("the seeds")
        .map(|entry| entry.expect("a seed").path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| std::fs::read(path).expect("a seed"))
        .collect()
}

/// Runs one input and, if it fails, says which it was.
fn run(target: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("input in hexadecimal: {hex}");
        resume_unwind(panic);
    }
}

fn replay(name: &str, target: fn(&[u8]), inputs: usize) {
    let seeds = seeds(name);
    assert!(!seeds.is_empty());
    for seed in &seeds {
        run(target, seed);
        for len in 0..seed.len().min(200) {
            run(target, &seed[..len]);
        }
    }
    let mut numbers = Numbers(0x5eed);
    for n in 0..inputs {
        let mut input = if n % 16 == 0 {
            numbers.random()
        } else {
            seeds[numbers.below(seeds.len())].clone()
        };
        for _ in 0..=numbers.below(6) {
            numbers.mutate(&mut input, &seeds);
        }
        run(target, &input);
    }
}

/// Packets that [`aead`] runs through every AEAD, unless the environment says otherwise.
const AEAD_PACKETS: usize = 100_000;

/// A burst of so many packets for the AEADs, as [`targets::aead`] reads it.
fn burst(numbers: &mut Numbers, packets: usize) -> Vec<u8> {
    use targets::aead::{PACKET_LEN, SEED_LEN, TEXT_MAX};
    // All alike, small, middling, or anything; long ones seldom, because they take the longest.
    let most = [1500, 300, 300, 2000, 2000, 2000, TEXT_MAX][numbers.below(7)];
    let alike = (numbers.below(3) == 0).then(|| numbers.below(most));
    let mut input = numbers.next().to_le_bytes()[..SEED_LEN].to_vec();
    for _ in 0..packets {
        let len = alike.unwrap_or_else(|| numbers.below(most + 17));
        input.extend_from_slice(&(len as u16).to_be_bytes());
        input.extend_from_slice(&numbers.next().to_le_bytes()[..PACKET_LEN - 2]);
    }
    input
}

/// Seeds, then bursts of a fixed random sequence: as many packets as PATRONUS_FUZZ_PACKETS says.
#[test]
fn aead() {
    use targets::aead::PACKETS_MAX;
    replay("aead", targets::aead::run, 300);
    let wanted = std::env::var("PATRONUS_FUZZ_PACKETS");
    let wanted = wanted.map_or(AEAD_PACKETS, |number| {
        number.parse().expect("a number of packets")
    });
    let mut numbers = Numbers(0xaead);
    let mut done = 0;
    while done < wanted {
        let packets = match numbers.below(4) {
            0 => 1 + numbers.below(4),
            1 => 32,
            _ => 1 + numbers.below(PACKETS_MAX),
        };
        run(targets::aead::run, &burst(&mut numbers, packets));
        done += packets;
    }
    eprintln!("{done} packets through every AEAD of this machine");
}

#[test]
fn c65_messages() {
    replay("messages", targets::messages::run, 50_000);
}

#[test]
fn control() {
    replay("control", targets::control::run, 30_000);
}

#[test]
fn c65_handshake() {
    replay("handshake", targets::handshake::run, 600);
}

#[test]
fn observe() {
    replay("observe", targets::observe::run, 30_000);
}

#[test]
fn c80_uapi() {
    replay("uapi", targets::uapi::run, 30_000);
}

#[test]
fn c66_ip() {
    replay("ip", targets::ip::run, 50_000);
}

#[test]
fn c46_c66_offload() {
    replay("offload", targets::offload::run, 20_000);
}

#[test]
fn config() {
    replay("config", targets::config::run, 20_000);
}

#[test]
fn wg_quick() {
    replay("wg_quick", targets::wg_quick::run, 30_000);
}

#[test]
fn site() {
    replay("site", targets::site::run, 50_000);
}
