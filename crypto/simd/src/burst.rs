//! A burst on its way through a kernel: in which order its packets go, and which of their blocks share a pass.

use crate::chacha::flush;
use crate::one::blocks_max;
use crate::tags::{alone, has_chunks};
use crate::vector::{Entries, WIDE};
use crate::{BURST, Packet, TAG, wipe};
use arrayvec::ArrayVec;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use subtle::ConstantTimeEq;

/// Packets whose [`Keys`] stand together.
pub(crate) const KEYS: usize = 16;
/// Blocks that are listed before they are worked on.
pub(crate) const LANES_MAX: usize = 32;
/// Fewer packets than this have their Poly1305 keys made in the same passes as the rest.
const MANY: usize = 13;
/// Blocks of key stream that are kept until the tags are known, where few packets are opened.
const KEPT: usize = 28;
/// Stack that functions of this file use for what is secret, bytes, besides that of [`Entries`].
const STACK: usize = 3584;
/// Stack for one packet, bytes, besides [`Entries::STACK_CHUNKS`].
const STACK_ONE: usize = 2560;

/// A packet as the kernels see it.
#[repr(align(16))]
pub(crate) struct Work<'a> {
    /// The last row of the state with a counter of zero: the nonce behind it.
    pub(crate) row: [u32; 4],
    /// 32 bytes.
    pub(crate) key: *const u8,
    /// `len` bytes of text, with the tag behind.
    text: *mut u8,
    pub(crate) len: usize,
    aad: &'a [u8],
    /// Its place in the caller's burst.
    at: u8,
    /// The packet stays borrowed.
    packet: PhantomData<&'a mut [u8]>,
}

impl<'a> Work<'a> {
    #[inline(always)]
    fn new(at: usize, packet: &'a mut Packet<'_>) -> Option<Work<'a>> {
        let len = packet.text_len()?;
        let word = |n| {
            u32::from_le_bytes([
                packet.nonce[n],
                packet.nonce[n + 1],
                packet.nonce[n + 2],
                packet.nonce[n + 3],
            ])
        };
        Some(Work {
            row: [0, word(0), word(4), word(8)],
            key: packet.key.as_ptr(),
            text: packet.buf.as_mut_ptr(),
            len,
            aad: packet.aad,
            at: at as u8,
            packet: PhantomData,
        })
    }

    #[inline(always)]
    pub(crate) fn text(&self) -> &[u8] {
        // SAFETY: the text belongs to a packet that is exclusively borrowed for as long as this lives, and nobody has a reference to it
        // while tags are made.
        unsafe { std::slice::from_raw_parts(self.text, self.len) }
    }

    #[inline(always)]
    pub(crate) fn aad(&self) -> &[u8] {
        self.aad
    }

    /// What is behind the last whole block of 16 bytes, filled up with zeros; none if there is nothing.
    #[inline(always)]
    pub(crate) fn rest(&self) -> Option<[u64; 2]> {
        let rest = self.len % 16;
        // SAFETY: behind the text there are the 16 bytes of the tag.
        let all = unsafe { self.text.add(self.len - rest).cast::<u128>().read_unaligned() };
        let all = u128::from_le(all) & ((1 << (8 * rest)) - 1);
        (rest > 0).then_some([all as u64, (all >> 64) as u64])
    }

    #[inline(always)]
    pub(crate) fn blocks(&self) -> usize {
        self.len.div_ceil(64)
    }

    /// The place of a block of text.
    #[inline(always)]
    pub(crate) fn block(&self, block: usize) -> (*mut u8, u8) {
        (
            self.text.wrapping_add(block * 64),
            (self.len - block * 64).min(64) as u8,
        )
    }

    #[inline(always)]
    pub(crate) fn set_tag(&mut self, tag: [u8; TAG]) {
        // SAFETY: the tag's room is behind the text, in the same packet.
        unsafe { self.text.add(self.len).cast::<[u8; TAG]>().write(tag) };
    }

    #[inline(always)]
    pub(crate) fn has_tag(&self, tag: &[u8; TAG]) -> bool {
        // SAFETY: as in `set_tag`.
        let there = unsafe { self.text.add(self.len).cast::<[u8; TAG]>().read() };
        u128::from_ne_bytes(there)
            .ct_eq(&u128::from_ne_bytes(*tag))
            .into()
    }
}

/// The packets of a burst, the longest first.
pub(crate) struct Works<'a>(ArrayVec<Work<'a>, BURST>);

impl<'a> Works<'a> {
    /// Those of the packets that can be worked on at all.
    #[inline(always)]
    fn new<E: Entries>(e: E, packets: &'a mut [Packet<'_>]) -> Works<'a> {
        let mut works = ArrayVec::new();
        let lens = packets.iter().map(|packet| packet.buf.len());
        if packets.len() == 1 || lens.clone().max() == lens.min() {
            for (at, packet) in packets.iter_mut().enumerate() {
                works.extend(Work::new(at, packet));
            }
        } else {
            let mut order = [0; BURST];
            let mut lens = [0; BURST];
            for (len, packet) in lens.iter_mut().zip(&*packets) {
                *len = packet.buf.len().min(u32::MAX as usize >> 8) as u32;
            }
            e.sort(&lens[..packets.len()], &mut order);
            let mut packets = packets.iter_mut().map(Some).collect::<ArrayVec<_, BURST>>();
            for at in &order[..packets.len()] {
                let at = usize::from(*at);
                works.extend(packets[at].take().and_then(|packet| Work::new(at, packet)));
            }
        }
        Works(works)
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    #[inline(always)]
    pub(crate) fn get(&self, at: u8) -> &Work<'a> {
        &self.0[usize::from(at)]
    }

    /// A bit for each packet's place in the caller's burst.
    fn all(&self) -> u64 {
        self.0.iter().fold(0, |all, work| all | 1 << work.at)
    }
}

/// The first half of sixteen packets' key stream block 0: the words upright, packets in the order of [`Works`].
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Keys {
    pub(crate) words: [[u32; KEYS]; 8],
}

impl Keys {
    pub(crate) const NONE: Keys = Keys {
        words: [[0; KEYS]; 8],
    };

    /// One packet's, as four words of 64 bits.
    #[inline(always)]
    pub(crate) fn get(keys: &[Keys], at: usize) -> [u64; 4] {
        let (words, at) = (&keys[at / KEYS].words, at % KEYS);
        let mut key = [0; 4];
        for (n, key) in key.iter_mut().enumerate() {
            *key = u64::from(words[2 * n][at]) | u64::from(words[2 * n + 1][at]) << 32;
        }
        key
    }

    pub(crate) fn set(&mut self, at: usize, block: &[u8; 64]) {
        for (words, bytes) in self.words.iter_mut().zip(block.as_chunks::<4>().0) {
            words[at] = u32::from_le_bytes(*bytes);
        }
    }
}

/// Blocks whose key stream is to be made and XORed onto something.
pub(crate) struct Lanes {
    pub(crate) to: [*mut u8; LANES_MAX],
    pub(crate) len: [u8; LANES_MAX],
    /// Whose they are.
    pub(crate) of: [u8; LANES_MAX],
    pub(crate) counter: [u32; LANES_MAX],
    pub(crate) count: usize,
    /// Blocks in a row of the same packet: which, and where they begin.
    pub(crate) run_of: [u8; LANES_MAX],
    pub(crate) run_at: [u8; LANES_MAX],
    pub(crate) runs: usize,
}

impl Lanes {
    #[inline(always)]
    fn new() -> Lanes {
        Lanes {
            to: [std::ptr::null_mut(); LANES_MAX],
            len: [0; LANES_MAX],
            of: [0; LANES_MAX],
            counter: [0; LANES_MAX],
            count: 0,
            run_of: [0; LANES_MAX],
            run_at: [0; LANES_MAX],
            runs: 0,
        }
    }

    /// Lanes behind the last one do what that does, and its result goes nowhere.
    #[inline(always)]
    fn fill(&mut self) {
        if self.count > 0 {
            let last = self.of[self.count - 1];
            self.of[self.count..].fill(last);
        }
    }

    /// XORs the key stream onto what is listed, and empties the list.
    #[inline(always)]
    fn flush<E: Entries>(&mut self, e: E, works: &Works<'_>) {
        self.fill();
        flush(e, works, self);
        self.count = 0;
        self.runs = 0;
    }

    #[inline(always)]
    fn push(&mut self, of: usize, counter: u32, to: *mut u8, len: u8) {
        let at = self.count;
        self.to[at] = to;
        self.len[at] = len;
        self.of[at] = of as u8;
        self.counter[at] = counter;
        self.count += 1;
    }

    #[inline(always)]
    fn begin_run(&mut self, of: usize) {
        self.run_of[self.runs] = of as u8;
        self.run_at[self.runs] = self.count as u8;
        self.runs += 1;
    }

    /// Lists a packet's blocks from number `block` on. Works on the list when it is full, and says whether that was so.
    #[inline(always)]
    fn push_text<E: Entries>(&mut self, e: E, works: &Works<'_>, of: usize, mut block: usize) -> bool {
        let work = &works.0[of];
        let blocks = work.blocks();
        let mut flushed = false;
        while block < blocks {
            self.begin_run(of);
            let end = blocks.min(block + LANES_MAX - self.count);
            for block in block..end {
                let (to, len) = work.block(block);
                // The text has at most 2^32 - 1 blocks, and 0 is that of the Poly1305 key.
                self.push(of, block as u32 + 1, to, len);
            }
            block = end;
            if self.count == LANES_MAX {
                self.flush(e, works);
                flushed = true;
            }
        }
        flushed
    }
}

/// Encrypts the packets and writes their tags: a bit for each one that was.
#[inline(never)]
pub(crate) fn seal<E: Entries>(e: E, packets: &mut [Packet<'_>]) {
    if let [packet] = packets
        && let Some(ok) = one(e, packet, |work| e.seal_one(work))
    {
        packet.ok = ok;
        return;
    }
    seal_burst(e, packets);
}

#[inline(never)]
fn seal_burst<E: Entries>(e: E, packets: &mut [Packet<'_>]) {
    let mut works = Works::new(e, packets);
    let done = works.all();
    if works.len() >= MANY {
        seal_many(e, &mut works);
        wipe::below(STACK + E::STACK);
    } else if works.len() > 0 {
        seal_few(e, &mut works);
        wipe::below(STACK + E::STACK);
    }
    drop(works);
    set_ok(packets, done);
}

/// Checks the packets' tags, and decrypts those that are right.
#[inline(never)]
pub(crate) fn open<E: Entries>(e: E, packets: &mut [Packet<'_>]) {
    if let [packet] = packets
        && let Some(ok) = one(e, packet, |work| e.open_one(work))
    {
        packet.ok = ok;
        return;
    }
    open_burst(e, packets);
}

#[inline(never)]
fn open_burst<E: Entries>(e: E, packets: &mut [Packet<'_>]) {
    let mut works = Works::new(e, packets);
    let mut done = 0;
    if works.len() >= MANY {
        done = open_many(e, &mut works);
        wipe::below(STACK + E::STACK);
    } else if works.len() > 0 {
        done = open_few(e, &mut works);
        wipe::below(STACK + E::STACK);
    }
    drop(works);
    set_ok(packets, done);
}

/// What `work` says of a packet, if it is one that a single pass is enough for.
#[inline(always)]
fn one<E: Entries>(_e: E, packet: &mut Packet<'_>, work: impl Fn(&mut Work<'_>) -> bool) -> Option<bool> {
    let mut only = Work::new(0, packet)?;
    if only.blocks() > blocks_max::<E>() {
        return None;
    }
    let ok = work(&mut only);
    wipe::below(
        STACK_ONE
            + if has_chunks::<E>(&only) {
                E::STACK_CHUNKS
            } else {
                0
            },
    );
    Some(ok)
}

#[inline(always)]
fn set_ok(packets: &mut [Packet<'_>], done: u64) {
    for (at, packet) in packets.iter_mut().enumerate() {
        packet.ok = done >> at & 1 == 1;
    }
}

#[inline(never)]
fn seal_many<E: Entries>(e: E, works: &mut Works<'_>) {
    let mut keys = [Keys::NONE; BURST / KEYS];
    e.keys(works, &mut keys);
    let mut lanes = Lanes::new();
    // Packets whose text is in the registers' past are authenticated while it is near.
    let mut tagged = 0;
    for of in 0..=works.len() {
        let end = if of < works.len() {
            let flushed = lanes.push_text(e, works, of, 0);
            if flushed { of } else { 0 }
        } else {
            lanes.flush(e, works);
            works.len() + E::GROUP - 1
        };
        while tagged + E::GROUP <= end {
            write_tags(e, works, &keys, tagged);
            tagged += E::GROUP;
        }
    }
}

#[inline(never)]
fn seal_few<E: Entries>(e: E, works: &mut Works<'_>) {
    let mut kept = Kept::new();
    let mut lanes = Lanes::new();
    push_keys(&mut lanes, works, &mut kept);
    for of in 0..works.len() {
        lanes.push_text(e, works, of, 0);
    }
    lanes.flush(e, works);
    let mut keys = [Keys::NONE];
    for at in 0..works.len() {
        keys[0].set(at, kept.get(at));
    }
    for first in (0..works.len()).step_by(E::GROUP) {
        write_tags(e, works, &keys, first);
    }
}

#[inline(never)]
fn open_many<E: Entries>(e: E, works: &mut Works<'_>) -> u64 {
    let mut keys = [Keys::NONE; BURST / KEYS];
    e.keys(works, &mut keys);
    let mut lanes = Lanes::new();
    let mut done = 0;
    for first in (0..works.len()).step_by(E::GROUP) {
        let good = check_tags(e, works, &keys, first);
        for of in first..works.len().min(first + E::GROUP) {
            let bit = 1 << works.0[of].at;
            if good & bit != 0 {
                lanes.push_text(e, works, of, 0);
            }
        }
        done |= good;
    }
    lanes.flush(e, works);
    done
}

#[inline(never)]
fn open_few<E: Entries>(e: E, works: &mut Works<'_>) -> u64 {
    // The lanes that the keys leave are for the first blocks of texts, whose key stream is kept until the tags are known.
    let mut kept = Kept::new();
    let mut lanes = Lanes::new();
    push_keys(&mut lanes, works, &mut kept);
    for (of, work) in works.0.iter().enumerate() {
        for block in 0..work.blocks().min(KEPT - lanes.count) {
            if block == 0 {
                lanes.begin_run(of);
            }
            lanes.push(of, block as u32 + 1, kept.add(), 64);
        }
    }
    lanes.flush(e, works);
    let mut keys = [Keys::NONE];
    for at in 0..works.len() {
        keys[0].set(at, kept.get(at));
    }
    let mut done = 0;
    for first in (0..works.len()).step_by(E::GROUP) {
        done |= check_tags(e, works, &keys, first);
    }
    let mut next = works.len();
    for of in 0..works.len() {
        let work = &works.0[of];
        let first = work.blocks().min(kept.count - next);
        if done >> work.at & 1 == 1 {
            for block in 0..first {
                let (to, len) = work.block(block);
                // SAFETY: the text belongs to a packet that is exclusively borrowed, and this is the only reference to it.
                let text = unsafe { std::slice::from_raw_parts_mut(to, len.into()) };
                xor(text, kept.get(next + block));
            }
            lanes.push_text(e, works, of, first);
        }
        next += first;
    }
    lanes.flush(e, works);
    done
}

/// Blocks of key stream: zeros at first, onto which it is XORed.
struct Kept {
    blocks: [MaybeUninit<[u8; 64]>; KEPT],
    count: usize,
}

impl Kept {
    #[inline(always)]
    fn new() -> Kept {
        Kept {
            blocks: [const { MaybeUninit::uninit() }; KEPT],
            count: 0,
        }
    }

    #[inline(always)]
    fn add(&mut self) -> *mut u8 {
        let block = self.blocks[self.count].write([0; 64]);
        self.count += 1;
        block.as_mut_ptr()
    }

    #[inline(always)]
    fn get(&self, at: usize) -> &[u8; 64] {
        assert!(at < self.count);
        // SAFETY: `add` has written it.
        unsafe { self.blocks[at].assume_init_ref() }
    }
}

#[inline(always)]
fn xor(text: &mut [u8], stream: &[u8; 64]) {
    if let Ok(text) = <&mut [u8; 64]>::try_from(&mut *text) {
        text.iter_mut().zip(stream).for_each(|(byte, key)| *byte ^= key);
    } else {
        text.iter_mut().zip(stream).for_each(|(byte, key)| *byte ^= key);
    }
}

/// Lists block 0 of every packet, to be kept.
#[inline(always)]
fn push_keys(lanes: &mut Lanes, works: &Works<'_>, kept: &mut Kept) {
    for of in 0..works.len() {
        lanes.begin_run(of);
        lanes.push(of, 0, kept.add(), 64);
    }
}

/// The tags of the packets from number `first` on: of a group, or those that are left.
#[inline(always)]
fn make_tags<E: Entries>(e: E, works: &Works<'_>, keys: &[Keys], first: usize, tags: &mut [[u8; TAG]; WIDE]) {
    let group = &works.0[first..works.len().min(first + E::GROUP)];
    if side_by_side_is_better(group, E::GROUP) {
        e.side_by_side(group, keys, first, tags);
    } else {
        for (n, (work, tag)) in group.iter().zip(tags).enumerate() {
            *tag = alone(e, work, Keys::get(keys, first + n));
        }
    }
}

/// Whether a group is worked on faster one packet in each place than one packet after another.
#[inline(always)]
fn side_by_side_is_better(group: &[Work<'_>], places: usize) -> bool {
    (group.len() == places || group.len() > 2) && group.iter().all(|work| work.aad.is_empty())
}

#[inline(always)]
fn write_tags<E: Entries>(e: E, works: &mut Works<'_>, keys: &[Keys], first: usize) {
    let mut tags = [[0; TAG]; WIDE];
    make_tags(e, works, keys, first, &mut tags);
    for (work, tag) in works.0[first..].iter_mut().zip(tags).take(E::GROUP) {
        work.set_tag(tag);
    }
}

/// A bit for the place of each packet whose tag is right.
#[inline(always)]
fn check_tags<E: Entries>(e: E, works: &Works<'_>, keys: &[Keys], first: usize) -> u64 {
    let mut tags = [[0; TAG]; WIDE];
    make_tags(e, works, keys, first, &mut tags);
    let group = works.0[first..].iter().zip(&tags).take(E::GROUP);
    group.fold(0, |good, (work, tag)| {
        good | u64::from(work.has_tag(tag)) << work.at
    })
}

/// The places of `lens` with the longest first: each one's rank is counted, which needs no branch that depends on them.
#[inline(always)]
pub(crate) fn sort(lens: &[u32], order: &mut [u8; BURST]) {
    // All different: the place is part of it, the first of like ones first.
    let mut ranked = [0; BURST];
    for (n, (ranked, len)) in ranked.iter_mut().zip(lens).enumerate() {
        *ranked = len << 8 | (BURST - 1 - n) as u32;
    }
    for (n, own) in ranked[..lens.len()].iter().enumerate() {
        // What is behind `lens` is zero, and never longer.
        let rank: u32 = ranked.iter().map(|other| u32::from(other > own)).sum();
        order[rank as usize] = n as u8;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Calls `f` with the buffers as packets, the longest first, and with the place in `bufs` of each.
    pub(crate) fn works(bufs: &mut [Vec<u8>], f: impl FnOnce(&[Work<'_>], &[usize])) {
        let mut order: Vec<usize> = (0..bufs.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(bufs[*at].len()));
        let mut packets: Vec<Packet<'_>> = bufs
            .iter_mut()
            .map(|buf| Packet::new(&[0; 32], [0; 12], &[], buf))
            .collect();
        let mut works: Vec<Work<'_>> = packets
            .iter_mut()
            .enumerate()
            .filter_map(|(at, packet)| Work::new(at, packet))
            .collect();
        works.sort_by_key(|work| std::cmp::Reverse(work.len));
        f(&works, &order);
    }

    #[test]
    fn the_longest_come_first_and_like_ones_in_their_order() {
        for lens in [
            vec![],
            vec![5],
            vec![1, 2, 3],
            vec![3, 3, 1, 9, 3, 0, 9],
            (0..64).map(|n| n * 37 % 11).collect(),
        ] {
            let mut order = [0; BURST];
            sort(&lens, &mut order);
            let mut expected: Vec<u8> = (0..lens.len() as u8).collect();
            expected.sort_by_key(|at| std::cmp::Reverse(lens[usize::from(*at)]));
            assert_eq!(order[..lens.len()], expected);
        }
    }
}
