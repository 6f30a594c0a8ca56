//! A small deterministic mutator, for the replay without a fuzzer.

/// xorshift64*: the same sequence everywhere.
pub struct Sequence(u64);

impl Sequence {
    /// A sequence; `seed` must not be 0.
    pub fn new(seed: u64) -> Sequence {
        assert_ne!(seed, 0);
        Sequence(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

impl patronus_crypto::Random for Sequence {
    fn fill(&mut self, buf: &mut [u8]) {
        for byte in buf {
            *byte = (self.next() >> 56) as u8;
        }
    }
}

/// Values at which length and offset checks break.
const EDGES: [u16; 12] = [0, 1, 4, 7, 8, 15, 16, 20, 40, 1500, 0x7fff, 0xffff];

/// One to four changes to `input`.
pub fn mutate(sequence: &mut Sequence, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..=sequence.below(4) {
        change(sequence, &mut out, other);
    }
    out
}

fn change(sequence: &mut Sequence, out: &mut Vec<u8>, other: &[u8]) {
    let at = sequence.below(out.len());
    match sequence.below(8) {
        0 | 1 if !out.is_empty() => out[at] ^= 1 << sequence.below(8),
        2 if !out.is_empty() => out[at] = sequence.next() as u8,
        3 if out.len() >= 2 => {
            let at = at.min(out.len() - 2);
            let edge = EDGES[sequence.below(EDGES.len())];
            out[at..at + 2].copy_from_slice(&edge.to_be_bytes());
        }
        4 => out.truncate(at),
        5 => out.extend((0..sequence.below(64)).map(|_| 0)),
        6 => {
            // The front of one and the back of another.
            out.truncate(at);
            out.extend_from_slice(&other[sequence.below(other.len())..]);
        }
        _ => {
            let end = at + sequence.below(out.len() - at + 1).min(32);
            let piece = out[at..end].to_vec();
            out.splice(at..at, piece);
        }
    }
}
