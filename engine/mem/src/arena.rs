//! The frames of all packets, made once at start-up, and each thread's cache of free ones.
//!
//! The arena is shared; a [`FrameCache`] belongs to one thread (workers and the slow path) and makes allocation two loads and a
//! store. Frames travel freely between threads inside [`PktBuf`]s.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;

use crossbeam_queue::ArrayQueue;

use crate::map;
use crate::pktbuf::Line;
use crate::processor::{prefetch_at, prefetch_write_at};
use crate::{Annex, FRAME, HEADROOM, JUMBO_MAX, Outer, PktBuf, SMALL_MAX, TAILROOM};

/// Bytes from one small frame to the next. One cache line more than the frame: with a power of two the first lines of all packets would
/// share two sets of a 32 KiB first-level cache, so that a burst of small packets would not stay in it.
const STRIDE: usize = FRAME + 64;

/// Bytes of a jumbo frame.
const JUMBO_FRAME: usize = HEADROOM + JUMBO_MAX + TAILROOM;

/// Bytes from one jumbo frame to the next: whole pages, and an odd number of them.
const JUMBO_STRIDE: usize = 17 * 4096;

/// Bytes of the longest header that is put before a packet right after it was handed over.
const HEADER_MAX: usize = 16;

/// Free frames of one size that a cache holds at most: four bursts that another worker was given and four that it gave back, so that a turn of
/// a worker that hands over what it receives stays off the shared list. Jumbo frames are few.
const CACHED: usize = 512;
const CACHED_JUMBO: usize = 8;

/// One cache holds at most this part of an arena's frames of a size, so that the caches of a small arena cannot starve each other.
const CACHED_PART: usize = 32;

/// How many frames to make.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Small frames, [`FRAME`] bytes each. They are resident from the start.
    pub frames: usize,
    /// Frames for packets longer than [`SMALL_MAX`]. They take memory only once they are used.
    pub jumbo_frames: usize,
}

/// What stands before the first metadata line, so that a line finds its arena.
#[repr(C, align(64))]
struct Header {
    arena: &'static Arena,
}

const _: () = assert!(size_of::<Header>() == size_of::<Line>());

/// All frames and their free lists.
///
/// Line `i` (0 to `small`) describes small frame `i`, the lines from `small` on describe jumbo frames. An index is in a free list, in one
/// cache, in one [`PktBuf`], or [lent](crate::Lent), never in two of them.
pub struct Arena {
    lines: NonNull<Line>,
    frames: NonNull<u8>,
    jumbos: NonNull<u8>,
    small: u32,
    total: u32,
    /// Bytes of the reserved huge pages that the small frames are on, if they are.
    reserved: Option<usize>,
    free: ArrayQueue<u32>,
    free_jumbo: ArrayQueue<u32>,
}

// SAFETY: the lines and frames are only reached through the index of a free frame, which has one owner; the free lists are
// made for sharing.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes the frames, the small ones on reserved huge pages of 2 MiB if there are free ones. The arena lives as long as the process.
    pub fn new(config: &ArenaConfig) -> io::Result<&'static Arena> {
        Arena::build(config, map::resident)
    }

    /// The same with the small frames on reserved pages of 1 GiB, of which it takes whole ones, if there are free ones.
    pub fn on_giant_pages(config: &ArenaConfig) -> io::Result<&'static Arena> {
        Arena::build(config, map::resident_on_giant)
    }

    fn build(
        config: &ArenaConfig,
        make: impl FnOnce(usize) -> io::Result<map::Mapping>,
    ) -> io::Result<&'static Arena> {
        let too_many = || io::Error::new(io::ErrorKind::InvalidInput, "too many packet frames");
        let small = u32::try_from(config.frames).map_err(|_| too_many())?;
        let jumbo = u32::try_from(config.jumbo_frames).map_err(|_| too_many())?;
        let total = small
            .checked_add(jumbo)
            .filter(|n| *n <= u32::MAX >> 1)
            .ok_or_else(too_many)?;

        let headers = map::resident((total as usize + 1) * size_of::<Line>())?
            .leak()
            .cast::<Line>();
        // SAFETY: the mapping holds `total` lines behind the header.
        let lines = unsafe { headers.add(1) };
        let frames = make((small as usize * STRIDE).max(1))?;
        let reserved = frames.reserved();
        let frames = frames.leak();
        let jumbos = map::sparse((jumbo as usize * JUMBO_STRIDE).max(1))?;

        let free = ArrayQueue::new((small as usize).max(1));
        let free_jumbo = ArrayQueue::new((jumbo as usize).max(1));
        for index in 0..total {
            let (base, capacity, list) = if index < small {
                // SAFETY: the mapping holds `small` strides.
                (unsafe { frames.add(index as usize * STRIDE) }, FRAME, &free)
            } else {
                // SAFETY: the mapping holds `jumbo` strides.
                (
                    unsafe { jumbos.add((index - small) as usize * JUMBO_STRIDE) },
                    JUMBO_FRAME,
                    &free_jumbo,
                )
            };
            let line = Line {
                base,
                index,
                capacity: capacity as u32,
                outer: Outer::NONE,
            };
            // SAFETY: the mapping holds `total` lines, aligned to pages.
            unsafe { lines.add(index as usize).write(line) };
            let pushed = list.push(index);
            debug_assert!(pushed.is_ok(), "the list has room for every frame of its size");
        }
        let arena: &'static Arena = Box::leak(Box::new(Arena {
            lines,
            frames,
            jumbos,
            small,
            total,
            reserved,
            free,
            free_jumbo,
        }));
        // SAFETY: the mapping begins with room for the header.
        unsafe { headers.cast::<Header>().write(Header { arena }) };
        Ok(arena)
    }

    /// Whether the small frames are on huge pages that the machine has reserved. On other memory the kernel may still use huge pages.
    pub fn is_huge(&self) -> bool {
        self.reserved.is_some()
    }

    /// Has what is not on reserved huge pages stay in memory, within the limit on locked memory (RLIMIT_MEMLOCK) or by the right to exceed it
    /// (CAP_IPC_LOCK). Jumbo frames still take memory only once they are used. False if that cannot be had.
    pub fn lock(&self) -> bool {
        let locked = self.lockable().map(|(start, len)| map::lock(start, len));
        !locked.contains(&false)
    }

    /// Bytes that [`lock`](Arena::lock) locks.
    pub fn lockable_len(&self) -> usize {
        self.lockable().iter().map(|(_, len)| len).sum()
    }

    /// Lines, small frames and jumbo frames; nothing of what is on reserved huge pages, which stay anyway.
    fn lockable(&self) -> [(NonNull<u8>, usize); 3] {
        let small = self.small as usize;
        let jumbo = self.total as usize - small;
        // SAFETY: the lines' mapping begins one line earlier.
        let lines = unsafe { self.lines.sub(1) }.cast();
        let frames = if self.is_huge() { 0 } else { small * STRIDE };
        [
            (lines, (self.total as usize + 1) * size_of::<Line>()),
            (self.frames, frames),
            (self.jumbos, jumbo * JUMBO_STRIDE),
        ]
    }

    /// All frames of both sizes.
    pub fn frames(&self) -> usize {
        self.total as usize
    }

    /// Frames that are neither in a packet nor in a thread's cache. When all packets and caches are dropped this is
    /// [`frames`](Arena::frames) again.
    pub fn free_frames(&self) -> usize {
        self.free.len() + self.free_jumbo.len()
    }

    /// The first small frame, and the bytes from one to the next.
    pub(crate) fn small_frames(&self) -> (NonNull<u8>, usize) {
        (self.frames, STRIDE)
    }

    pub(crate) fn first_line(&self) -> NonNull<Line> {
        self.lines
    }

    pub(crate) fn small_count(&self) -> usize {
        self.small as usize
    }

    /// Bytes of a page of the small frames.
    pub(crate) fn page(&self) -> usize {
        self.reserved.unwrap_or_else(map::page_size)
    }

    /// The number of the packet's frame, if that is a small one of this arena. It follows from where the line is, which is not looked at.
    #[inline]
    pub(crate) fn small_index(&self, pkt: &PktBuf) -> Option<u32> {
        let at = pkt.line_ptr().addr().get().wrapping_sub(self.lines.addr().get());
        let index = at / size_of::<Line>();
        (index < self.small as usize).then_some(index as u32)
    }

    /// The packet in small frame `index`, which has no other owner. `None`, and the frame is free, if it has no such place.
    ///
    /// # Safety
    /// No other handle has it and it is in no free list.
    #[inline]
    pub(crate) unsafe fn by_index(&self, index: u32, offset: u32, len: u32) -> Option<PktBuf> {
        assert!(index < self.small, "a small frame");
        // SAFETY: the index is one of the arena's lines; the caller vouches for the rest.
        let pkt = unsafe { PktBuf::from_small_line(self.line_at(index), offset, len) };
        if pkt.is_none() {
            self.release(index);
        }
        pkt
    }

    #[inline]
    fn line_at(&self, index: u32) -> NonNull<Line> {
        assert!(index < self.total);
        // SAFETY: the arena has `total` lines and the index is smaller.
        unsafe { self.lines.add(index as usize) }
    }

    /// The arena that a packet's line belongs to.
    #[inline]
    pub(crate) fn of_line(line: NonNull<Line>) -> &'static Arena {
        // SAFETY: lines are only made in `new`, in one mapping with the header before line 0, and `index` never changes.
        unsafe {
            line.sub(line.as_ref().index as usize + 1)
                .cast::<Header>()
                .as_ref()
                .arena
        }
    }

    /// Asks for a packet that another core had, before it is looked at: its first line, and what is before that if a header may begin there. Where they are is
    /// worked out from the frame's number, so that nothing has to be waited for.
    #[inline]
    pub fn prefetch(&self, pkt: &PktBuf) {
        let line = pkt.line_ptr().as_ptr();
        prefetch_at(line);
        let index = line.addr().wrapping_sub(self.lines.as_ptr().addr()) / size_of::<Line>();
        // In a jumbo frame this is beside the point, and as harmless as any address.
        let first = index.wrapping_mul(STRIDE).wrapping_add(pkt.headroom());
        let [first, before] =
            [first, first.wrapping_sub(HEADER_MAX)].map(|at| self.frames.as_ptr().wrapping_add(at));
        prefetch_write_at(first);
        if before.addr() / 64 != first.addr() / 64 {
            prefetch_write_at(before);
        }
    }

    /// Puts a frame into its free list. The caller gives up the only handle to it.
    pub(crate) fn release(&self, index: u32) {
        let list = if index < self.small {
            &self.free
        } else {
            &self.free_jumbo
        };
        let pushed = list.push(index);
        debug_assert!(pushed.is_ok(), "the list has room for every frame of its size");
    }
}

/// Indices of free frames, the last one freed on top because it is the warmest.
struct Stack<const N: usize> {
    len: usize,
    /// It holds at most this many, 2 to `N`.
    limit: usize,
    slots: [u32; N],
}

impl<const N: usize> Stack<N> {
    /// An empty stack for an arena with `frames` of this size.
    fn new(frames: u32) -> Stack<N> {
        Stack {
            len: 0,
            limit: (frames as usize / CACHED_PART).clamp(2, N),
            slots: [0; N],
        }
    }

    /// Takes the top, after moving half a stack in from the shared list if there is none.
    #[inline]
    fn pop(&mut self, shared: &ArrayQueue<u32>) -> Option<u32> {
        if self.len == 0 {
            self.refill(shared);
        }
        self.top()
    }

    /// Takes the top, if there is one.
    #[inline]
    fn top(&mut self) -> Option<u32> {
        self.len = self.len.checked_sub(1)?;
        Some(self.slots[self.len])
    }

    /// Puts an index on top, after moving the older half of a full stack to the shared list.
    #[inline]
    fn push(&mut self, index: u32, shared: &ArrayQueue<u32>) {
        if self.len >= self.limit {
            self.spill(shared, self.limit / 2);
        }
        self.slots[self.len] = index;
        self.len += 1;
    }

    #[cold]
    fn refill(&mut self, shared: &ArrayQueue<u32>) {
        while self.len < self.limit / 2
            && let Some(index) = shared.pop()
        {
            self.slots[self.len] = index;
            self.len += 1;
        }
    }

    /// Moves the oldest `n` to the shared list.
    #[cold]
    fn spill(&mut self, shared: &ArrayQueue<u32>, n: usize) {
        for index in &self.slots[..n] {
            let pushed = shared.push(*index);
            debug_assert!(pushed.is_ok(), "the list has room for every frame of its size");
        }
        self.slots.copy_within(n..self.len, 0);
        self.len -= n;
    }
}

/// One thread's free frames. Dropping it gives them back to the arena.
pub struct FrameCache {
    arena: &'static Arena,
    small: Stack<CACHED>,
    jumbo: Stack<CACHED_JUMBO>,
    pub(crate) annex: Option<Annex>,
    /// One thread at a time: a cache may move to another thread but is never shared.
    not_sync: PhantomData<Cell<()>>,
}

impl FrameCache {
    /// An empty cache over `arena`.
    pub fn new(arena: &'static Arena) -> FrameCache {
        FrameCache {
            arena,
            small: Stack::new(arena.small),
            jumbo: Stack::new(arena.total - arena.small),
            annex: None,
            not_sync: PhantomData,
        }
    }

    /// A small frame, empty, with [`HEADROOM`] before it; `None` if all are in use.
    #[inline]
    pub fn alloc(&mut self) -> Option<PktBuf> {
        let index = self.pop_small()?;
        Some(self.take(index))
    }

    /// An empty frame that holds `len` bytes with [`HEADROOM`] before and [`TAILROOM`] behind them. `None` if all of that size
    /// are in use or `len` is more than [`JUMBO_MAX`].
    #[inline]
    pub fn alloc_for(&mut self, len: usize) -> Option<PktBuf> {
        if len <= SMALL_MAX {
            return self.alloc();
        }
        if len > JUMBO_MAX {
            return None;
        }
        let index = self.jumbo.pop(&self.arena.free_jumbo)?;
        Some(self.take(index))
    }

    /// The frame `index`, which was taken from this cache's stacks.
    #[inline]
    fn take(&self, index: u32) -> PktBuf {
        // SAFETY: indices in free lists are below `total`, so this is one of the arena's lines; the index left the free
        // list and is now only in the new handle.
        unsafe { PktBuf::from_line(self.arena.lines.add(index as usize)) }
    }

    /// Takes a packet's frame back.
    #[inline]
    pub fn free(&mut self, pkt: PktBuf) {
        let line = pkt.into_line();
        // SAFETY: the handle was the line's only owner and is gone; its index never changes.
        let index = unsafe { line.as_ref().index };
        if index >= self.arena.total || line != self.arena.line_at(index) {
            // A frame of another arena goes home.
            Arena::of_line(line).release(index);
        } else if index < self.arena.small {
            self.small.push(index, &self.arena.free);
        } else {
            self.jumbo.push(index, &self.arena.free_jumbo);
        }
    }

    /// The number of a free small frame, which is the caller's now.
    #[inline]
    pub(crate) fn pop_small(&mut self) -> Option<u32> {
        if self.small.len == 0 {
            self.refill_small();
        }
        self.small.top()
    }

    /// From the shared list, and if that is empty, from the annex.
    #[cold]
    fn refill_small(&mut self) {
        self.small.refill(&self.arena.free);
        if self.small.len == 0 {
            self.empty_annex();
        }
    }

    fn empty_annex(&mut self) {
        if let Some(annex) = self.annex {
            // SAFETY: the cache is borrowed exclusively, and who attached the annex vouches for what is done with it.
            unsafe { (annex.empty)(annex.number, self) };
        }
    }

    /// Takes it back.
    #[inline]
    pub(crate) fn push_small(&mut self, frame: u32) {
        assert!(frame < self.arena.small, "a small frame");
        self.small.push(frame, &self.arena.free);
    }

    /// The arena that the frames come from.
    pub fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// Gives all cached frames back to the arena.
    pub fn flush(&mut self) {
        self.empty_annex();
        self.small.spill(&self.arena.free, self.small.len);
        self.jumbo.spill(&self.arena.free_jumbo, self.jumbo.len);
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        self.flush();
        if let Some(annex) = self.annex {
            (annex.close)(annex.number);
        }
    }
}
