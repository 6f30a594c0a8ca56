//! Bursts of packets through every AEAD: all kernels of ours and both libraries seal the same, open what was sealed, refuse what was altered,
//! leave no plain text of that behind, and write nowhere else.

use std::ops::Range;
use std::sync::OnceLock;

use patronus_crypto::aead::{self, Aead, Job, TAG};
use patronus_mem::Secret;

use super::input::Input;

/// Longest text, bytes.
pub const TEXT_MAX: usize = 9000;
/// Packets in a burst: more than the engine has, and no multiple of anything.
pub const PACKETS_MAX: usize = 83;
/// Bytes of an input for the numbers that everything is filled with, and for each packet.
pub const SEED_LEN: usize = 8;
pub const PACKET_LEN: usize = 8;

/// What stands between the buffers of a burst.
const BETWEEN: u8 = 0xa5;
/// Most bytes in front of a buffer: any place in a cache line.
const GAP_MAX: usize = 64;
const KEYS: usize = 64;
/// Counters around which something may carry or be cut off.
const COUNTERS: [u64; 6] = [0, 1, u32::MAX as u64, 1 << 32, u64::MAX - 1, u64::MAX];

/// SplitMix64: whatever the input does not say.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// One packet of the burst.
struct Packet {
    key: usize,
    counter: u64,
    /// Where its buffer is in the burst's memory.
    at: Range<usize>,
    /// The bit that is altered before it is opened.
    forged: Option<usize>,
}

impl Packet {
    /// Length, place, key, counter, and which bit is altered; its buffer begins somewhere behind `end`.
    fn read(input: &mut Input<'_>, numbers: &mut Numbers, end: usize) -> Packet {
        let len = usize::from(input.u16()) % (TEXT_MAX + TAG + 1);
        let start = end + usize::from(input.u8()) % GAP_MAX;
        let key = usize::from(input.u8()) % KEYS;
        let kind = usize::from(input.u8());
        let counter = COUNTERS.get(kind).copied().unwrap_or_else(|| numbers.next());
        let alter = input.u8();
        let bit = usize::from(input.u16());
        Packet {
            key,
            counter,
            at: start..start + len,
            forged: (alter & 3 == 3 && len > 0).then(|| bit % (8 * len)),
        }
    }

    fn has_tag(&self) -> bool {
        self.at.len() >= TAG
    }

    /// Where its text is.
    fn text(&self) -> Range<usize> {
        self.at.start..self.at.end.saturating_sub(TAG).max(self.at.start)
    }
}

/// The first eight bytes are where all other numbers come from; behind them every eight bytes are a packet.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut seed = [0; SEED_LEN];
    let front = input.take(SEED_LEN);
    seed[..front.len()].copy_from_slice(front);
    let mut numbers = Numbers(u64::from_le_bytes(seed));
    let mut packets: Vec<Packet> = Vec::new();
    while !input.is_empty() && packets.len() < PACKETS_MAX {
        let end = packets.last().map_or(0, |packet| packet.at.end);
        packets.push(Packet::read(&mut input, &mut numbers, end));
    }
    let mut plain = vec![BETWEEN; packets.last().map_or(0, |packet| packet.at.end) + GAP_MAX];
    for packet in &packets {
        numbers.fill(&mut plain[packet.at.clone()]);
    }
    let sealed = seal(&packets, &plain);
    open(&packets, &plain, sealed);
    if let Some(packet) = packets.first() {
        whole(&plain[packet.at.clone()], &mut numbers);
    }
}

/// Every AEAD seals the same; this is it.
fn seal(packets: &[Packet], plain: &[u8]) -> Vec<u8> {
    let reference = aead::by_name("aws-lc").expect("a library is always there");
    let mut expected = plain.to_vec();
    reference.seal(&mut jobs(packets, &mut expected));
    for aead in aead::all() {
        let mut memory = plain.to_vec();
        let mut jobs = jobs(packets, &mut memory);
        aead.seal(&mut jobs);
        let done: Vec<bool> = jobs.iter().map(|job| job.ok).collect();
        for (at, packet) in packets.iter().enumerate() {
            let what = || told(*aead, "seal", at, packets);
            assert_eq!(done[at], packet.has_tag(), "{}", what());
            let at = packet.at.clone();
            assert_eq!(memory[at.clone()], expected[at], "{}", what());
        }
        assert_eq!(memory, expected, "{}: what is between buffers", aead.name());
    }
    expected
}

/// Every AEAD opens what was not altered.
fn open(packets: &[Packet], plain: &[u8], mut sealed: Vec<u8>) {
    for packet in packets {
        if let Some(bit) = packet.forged {
            sealed[packet.at.start + bit / 8] ^= 1 << (bit % 8);
        }
    }
    for aead in aead::all() {
        let mut memory = sealed.clone();
        let mut jobs = jobs(packets, &mut memory);
        aead.open(&mut jobs);
        let done: Vec<bool> = jobs.iter().map(|job| job.ok).collect();
        let mut end = 0;
        for (at, packet) in packets.iter().enumerate() {
            let what = || told(*aead, "open", at, packets);
            assert_eq!(
                done[at],
                packet.has_tag() && packet.forged.is_none(),
                "{}",
                what()
            );
            let text = &memory[packet.text()];
            if done[at] {
                assert_eq!(text, &plain[packet.text()], "{}", what());
            } else {
                let is_sealed = *text == sealed[packet.text()];
                assert!(
                    is_sealed || text.iter().all(|byte| *byte == 0),
                    "{}: plain text",
                    what()
                );
            }
            if !packet.has_tag() {
                let at = packet.at.clone();
                assert_eq!(memory[at.clone()], sealed[at], "{}", what());
            }
            assert!(
                memory[end..packet.at.start].iter().all(|b| *b == BETWEEN),
                "{}",
                what()
            );
            end = packet.at.end;
        }
        assert!(
            memory[end..].iter().all(|b| *b == BETWEEN),
            "{}: behind the burst",
            aead.name()
        );
    }
}

/// One text with any nonce and additional data.
fn whole(plain: &[u8], numbers: &mut Numbers) {
    let (mut key, mut nonce) = ([0; 32], [0; 12]);
    numbers.fill(&mut key);
    numbers.fill(&mut nonce);
    let mut aad = vec![0; (numbers.next() % 80) as usize];
    numbers.fill(&mut aad);
    let mut expected: Option<Vec<u8>> = None;
    for aead in aead::all() {
        let mut buf = plain.to_vec();
        let done = aead.seal_one(&key, &nonce, &aad, &mut buf);
        assert_eq!(done, plain.len() >= TAG, "{}", aead.name());
        let expected = expected.get_or_insert_with(|| buf.clone());
        assert_eq!(
            buf,
            *expected,
            "{}, {} bytes of additional data",
            aead.name(),
            aad.len()
        );
        if done {
            let text = plain.len() - TAG;
            assert!(aead.open_one(&key, &nonce, &aad, &mut buf), "{}", aead.name());
            assert_eq!(buf[..text], plain[..text], "{}", aead.name());
            nonce[0] ^= 1;
            buf.copy_from_slice(expected);
            assert!(!aead.open_one(&key, &nonce, &aad, &mut buf), "{}", aead.name());
            nonce[0] ^= 1;
        }
    }
}

fn keys() -> &'static [Secret<32>] {
    static MADE: OnceLock<Vec<Secret<32>>> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut numbers = Numbers(0x6b65_7973);
        let keys = (0..KEYS).map(|_| Secret::with(|key| numbers.fill(key)));
        keys.collect()
    })
}

fn jobs<'a>(packets: &[Packet], memory: &'a mut [u8]) -> Vec<Job<'a>> {
    let (mut rest, mut end) = (memory, 0);
    let mut jobs = Vec::with_capacity(packets.len());
    for packet in packets {
        let (_, behind) = rest.split_at_mut(packet.at.start - end);
        let (buf, behind) = behind.split_at_mut(packet.at.len());
        (rest, end) = (behind, packet.at.end);
        jobs.push(Job::new(&keys()[packet.key], packet.counter, buf));
    }
    jobs
}

fn told(aead: &dyn Aead, what: &str, at: usize, packets: &[Packet]) -> String {
    let lens: Vec<usize> = packets.iter().map(|packet| packet.at.len()).collect();
    format!("{}: {what} packet {at} of buffers of {lens:?} bytes", aead.name())
}
