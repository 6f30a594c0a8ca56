//! ChaCha20 (RFC 8439, section 2.3) over listed blocks of any packets, in two shapes.
//!
//! *Upright*, a register holds one word of as many blocks as it has words: no instruction is spent on moving words about during the rounds,
//! so this is for many blocks. *In rows*, it holds four words of each of a quarter as many blocks: a few blocks fill few registers, and
//! take no longer than the rounds wait for each other.

use crate::burst::{KEYS, Keys, LANES_MAX, Lanes, Work, Works};
use crate::vector::{Entries, Words};
use std::mem::MaybeUninit;

const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Columns: where the four words of a quarter round are, in each of four.
const COLUMNS: [[usize; 4]; 4] = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]];
/// Diagonals likewise.
const DIAGONALS: [[usize; 4]; 4] = [[0, 1, 2, 3], [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]];

/// Packets of a pass up to which words are repeated instead of transposed.
const FEW_RUNS: usize = 6;

/// The Poly1305 keys of all packets: upright, their words are already as Poly1305 wants them.
#[inline(always)]
pub(crate) fn keys<S: Words>(s: S, works: &Works<'_>, keys: &mut [Keys]) {
    let mut first = 0;
    while first < works.len() {
        let left = works.len() - first;
        if S::PASSES == 2 && left > S::LANES {
            upright_keys::<S, 2>(s, works, keys, first);
            first += 2 * S::LANES;
        } else {
            upright_keys::<S, 1>(s, works, keys, first);
            first += S::LANES;
        }
    }
}

#[inline(always)]
fn upright_keys<S: Words, const K: usize>(s: S, works: &Works<'_>, keys: &mut [Keys], first: usize) {
    let mut begin = MaybeUninit::<[[S::V; 16]; K]>::uninit();
    for k in 0..K {
        let mut of = [0; 16];
        for (n, of) in of.iter_mut().enumerate() {
            *of = (first + k * S::LANES + n).min(works.len() - 1) as u8;
        }
        // SAFETY: the array has `K` parts.
        unsafe {
            begin
                .as_mut_ptr()
                .cast::<[S::V; 16]>()
                .add(k)
                .write(transposed(s, works, &of, s.splat(0)))
        };
    }
    // SAFETY: all of its parts have been written.
    let begin = unsafe { begin.assume_init_ref() };
    let (x, _) = rounds::<S, K, 0>(s, begin, &[]);
    for (k, x) in x.iter().enumerate() {
        let at = first + k * S::LANES;
        for (words, x) in keys[at / KEYS].words.iter_mut().zip(x) {
            s.store(&mut words[at % KEYS..], *x);
        }
    }
}

/// XORs the key stream onto what `lanes` lists.
#[inline(always)]
pub(crate) fn flush<E: Entries>(e: E, works: &Works<'_>, lanes: &Lanes) {
    let (upright, rows) = (<E as Words>::LANES, <E as Words>::LANES / 4);
    let mut at = 0;
    while at < lanes.count {
        let left = lanes.count - at;
        if left <= 3 * rows {
            e.rows_only(works, lanes, at);
            at += 3 * rows;
        } else if E::PASSES == 1 || left <= upright {
            e.upright(works, lanes, at);
            at += upright;
        } else if left <= upright + 3 * rows {
            e.upright_and_rows(works, lanes, at);
            at += upright + 3 * rows;
        } else {
            e.two_upright(works, lanes, at);
            at += 2 * upright;
        }
    }
}

/// A pass of up to three registers for each row.
#[inline(always)]
pub(crate) fn rows_only<S: Words>(s: S, works: &Works<'_>, lanes: &Lanes, at: usize) {
    match (lanes.count - at).div_ceil(S::LANES / 4) {
        1 => mixed::<S, 0, 1>(s, works, lanes, at),
        2 => mixed::<S, 0, 2>(s, works, lanes, at),
        _ => mixed::<S, 0, 3>(s, works, lanes, at),
    }
}

/// A pass of `K` times the lanes upright, and `Q` registers for each row behind: neither waits for the other.
#[inline(always)]
pub(crate) fn mixed<S: Words, const K: usize, const Q: usize>(
    s: S,
    works: &Works<'_>,
    lanes: &Lanes,
    at: usize,
) {
    let mut room = [const { MaybeUninit::uninit() }; K];
    for (k, begin) in room.iter_mut().enumerate() {
        upright(s, works, lanes, at + k * S::LANES, begin);
    }
    // SAFETY: these have just been written.
    let begin = unsafe { &*room.as_ptr().cast::<[[S::V; 16]; K]>() };
    let rows = S::LANES / 4;
    let mut begin_rows = [[s.splat(0); 4]; Q];
    for (q, begin) in begin_rows.iter_mut().enumerate() {
        *begin = in_rows(s, works, lanes, at + K * S::LANES + q * rows);
    }
    let (x, y) = rounds(s, begin, &begin_rows);
    for (k, x) in x.into_iter().enumerate() {
        let at = at + k * S::LANES;
        let end = (at + S::LANES).min(lanes.count);
        // SAFETY: the list's places belong to the packets of the burst, which is exclusively borrowed, or to its caller.
        unsafe { s.xor_upright(x, &lanes.to[at..end], &lanes.len[at..end]) };
    }
    for (q, y) in y.into_iter().enumerate() {
        let at = (at + K * S::LANES + q * rows).min(lanes.count);
        let end = (at + rows).min(lanes.count);
        // SAFETY: as above.
        unsafe { s.xor_rows(y, &lanes.to[at..end], &lanes.len[at..end]) };
    }
}

/// Writes the state before the rounds, upright, for the lanes from `at` on.
#[inline(always)]
fn upright<S: Words>(s: S, works: &Works<'_>, lanes: &Lanes, at: usize, to: &mut MaybeUninit<[S::V; 16]>) {
    let counters = s.load(&lanes.counter[at..]);
    if lanes.runs <= FEW_RUNS {
        repeated(s, works, lanes, at, to.write([counters; 16]));
    } else {
        let mut of = [0; 16];
        of[..S::LANES].copy_from_slice(&lanes.of[at..at + S::LANES]);
        to.write(transposed(s, works, &of, counters));
    }
}

/// The state before the rounds, for lanes of any packets.
#[inline(always)]
fn transposed<S: Words>(s: S, works: &Works<'_>, of: &[u8; 16], counters: S::V) -> [S::V; 16] {
    let mut keys = [std::ptr::null(); 16];
    let mut nonces = [std::ptr::null(); 16];
    for lane in 0..S::LANES {
        let work = works.get(of[lane]);
        keys[lane] = work.key;
        nonces[lane] = work.row.as_ptr().cast();
    }
    let mut x = [counters; 16];
    for n in 0..4 {
        x[n] = s.splat(CONSTANTS[n]);
    }
    // SAFETY: a key has 32 bytes and a row 16.
    let (key, nonce) = unsafe { (s.upright8(&keys), s.upright3(&nonces)) };
    x[4..12].copy_from_slice(&key);
    x[13..].copy_from_slice(&nonce);
    x
}

/// The same for lanes of a few packets, one after another. The counters are there.
#[inline(always)]
fn repeated<S: Words>(s: S, works: &Works<'_>, lanes: &Lanes, at: usize, x: &mut [S::V; 16]) {
    for n in 0..4 {
        x[n] = s.splat(CONSTANTS[n]);
    }
    let mut begun = false;
    for run in 0..lanes.runs {
        let end = if run + 1 < lanes.runs {
            lanes.run_at[run + 1] as usize
        } else {
            LANES_MAX
        };
        let begin = lanes.run_at[run] as usize;
        if end <= at || begin >= at + S::LANES {
            continue;
        }
        let mask = !0u16 << begin.saturating_sub(at);
        let work = works.get(lanes.run_of[run]);
        // SAFETY: a key has 32 bytes.
        let key = unsafe { work.key.cast::<[u32; 8]>().read_unaligned() };
        if begun {
            for n in 0..8 {
                x[4 + n] = s.splat_some(x[4 + n], mask, key[n].to_le());
            }
            for n in 1..4 {
                x[12 + n] = s.splat_some(x[12 + n], mask, work.row[n]);
            }
        } else {
            for n in 0..8 {
                x[4 + n] = s.splat(key[n].to_le());
            }
            for n in 1..4 {
                x[12 + n] = s.splat(work.row[n]);
            }
        }
        begun = true;
    }
}

/// The key stream blocks that follow from states upright and in rows.
#[inline(always)]
#[expect(clippy::type_complexity, reason = "the same as the arguments")]
fn rounds<S: Words, const K: usize, const Q: usize>(
    s: S,
    begin: &[[S::V; 16]; K],
    begin_rows: &[[S::V; 4]; Q],
) -> ([[S::V; 16]; K], [[S::V; 4]; Q]) {
    let mut x = *begin;
    let mut y = *begin_rows;
    for _ in 0..10 {
        quarters(s, &mut x, COLUMNS);
        quarter(s, &mut y);
        turn::<S, Q, 1, 3>(s, &mut y);
        quarters(s, &mut x, DIAGONALS);
        quarter(s, &mut y);
        turn::<S, Q, 3, 1>(s, &mut y);
    }
    for k in 0..K {
        for n in 0..16 {
            x[k][n] = s.add(x[k][n], begin[k][n]);
        }
    }
    for q in 0..Q {
        for n in 0..4 {
            y[q][n] = s.add(y[q][n], begin_rows[q][n]);
        }
    }
    (x, y)
}

/// Four quarter rounds (RFC 8439, section 2.1), side by side.
#[inline(always)]
fn quarters<S: Words, const K: usize>(s: S, x: &mut [[S::V; 16]; K], [a, b, c, d]: [[usize; 4]; 4]) {
    step::<S, K, 16>(s, x, a, b, d);
    step::<S, K, 12>(s, x, c, d, b);
    step::<S, K, 8>(s, x, a, b, d);
    step::<S, K, 7>(s, x, c, d, b);
}

#[inline(always)]
fn step<S: Words, const K: usize, const BY: i32>(
    s: S,
    x: &mut [[S::V; 16]; K],
    to: [usize; 4],
    from: [usize; 4],
    turned: [usize; 4],
) {
    for x in x {
        for n in 0..4 {
            x[to[n]] = s.add(x[to[n]], x[from[n]]);
        }
        for n in 0..4 {
            x[turned[n]] = s.xor(x[turned[n]], x[to[n]]);
        }
        for n in 0..4 {
            x[turned[n]] = s.rotate::<BY>(x[turned[n]]);
        }
    }
}

/// The state before the rounds, in rows, for the lanes from `at` on.
#[inline(always)]
fn in_rows<S: Words>(s: S, works: &Works<'_>, lanes: &Lanes, at: usize) -> [S::V; 4] {
    let [mut low, mut high, mut row] = [[std::ptr::null::<u8>(); 4]; 3];
    for n in 0..S::LANES / 4 {
        let work = works.get(lanes.of[at + n]);
        low[n] = work.key;
        high[n] = work.key.wrapping_add(16);
        row[n] = work.row.as_ptr().cast();
    }
    // SAFETY: a key has 32 bytes and a row 16.
    let (b, c, d) = unsafe { (s.rows(&low), s.rows(&high), s.rows(&row)) };
    [s.row(CONSTANTS), b, c, s.add(d, s.counters(&lanes.counter[at..]))]
}

/// The first blocks of one packet, from block 0 on, in rows.
#[inline(always)]
pub(crate) fn first_rows<S: Words, const Q: usize>(s: S, work: &Work<'_>) -> [[S::V; 4]; Q] {
    const FIRST: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    // SAFETY: a key has 32 bytes.
    let [low, high] = unsafe { work.key.cast::<[[u32; 4]; 2]>().read_unaligned() };
    let row = s.row(work.row);
    let mut begin = [[s.row(CONSTANTS), s.row(low), s.row(high), row]; Q];
    for (q, begin) in begin.iter_mut().enumerate() {
        begin[3] = s.add(row, s.counters(&FIRST[q * (S::LANES / 4)..]));
    }
    let (_, x) = rounds::<S, 0, Q>(s, &[], &begin);
    x
}

#[inline(always)]
fn quarter<S: Words, const Q: usize>(s: S, x: &mut [[S::V; 4]; Q]) {
    row_step::<S, Q, 16>(s, x, 0, 1, 3);
    row_step::<S, Q, 12>(s, x, 2, 3, 1);
    row_step::<S, Q, 8>(s, x, 0, 1, 3);
    row_step::<S, Q, 7>(s, x, 2, 3, 1);
}

#[inline(always)]
fn row_step<S: Words, const Q: usize, const BY: i32>(
    s: S,
    x: &mut [[S::V; 4]; Q],
    to: usize,
    from: usize,
    turned: usize,
) {
    for x in x {
        x[to] = s.add(x[to], x[from]);
        x[turned] = s.rotate::<BY>(s.xor(x[turned], x[to]));
    }
}

/// Columns to diagonals, or back.
#[inline(always)]
fn turn<S: Words, const Q: usize, const B: i32, const D: i32>(s: S, x: &mut [[S::V; 4]; Q]) {
    for x in x {
        x[1] = s.turn::<B>(x[1]);
        x[2] = s.turn::<2>(x[2]);
        x[3] = s.turn::<D>(x[3]);
    }
}
