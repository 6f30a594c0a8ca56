//! Locked memory for keys. Made by `crypto` for every key it holds; taken and given back on the slow path only, read by the workers.
//!
//! Secrets live in slabs of 64-byte slots. A slab is locked in memory, kept out of core dumps, reads as zero in a forked child,
//! and lies between two inaccessible pages. Slabs are never given back to the system.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize;

use crate::map;

/// Bytes of a slot, the largest secret.
const SLOT: usize = 64;

/// Bytes of a slab. By so much the memory for keys grows: 1,024 slots.
const SLAB: usize = 64 << 10;

/// Bytes of dead stack that [`wipe_stack`] overwrites: more than any handshake computation uses.
const STACK: usize = 16 << 10;

/// A slot without an owner. All its bytes are zero.
struct Free(NonNull<[u8; SLOT]>);

// SAFETY: a free slot is plain memory that lives as long as the process.
unsafe impl Send for Free {}

/// Slabs that have their addresses and are locked, and take no memory yet.
struct Ahead {
    next: NonNull<u8>,
    left: usize,
}

// SAFETY: nobody else has these addresses.
unsafe impl Send for Ahead {}

struct Slabs {
    free: Vec<Free>,
    slots: usize,
    ahead: Ahead,
}

static SLABS: Mutex<Slabs> = Mutex::new(Slabs {
    free: Vec::new(),
    slots: 0,
    ahead: Ahead {
        next: NonNull::dangling(),
        left: 0,
    },
});
static REFUSED: AtomicBool = AtomicBool::new(false);

fn slabs() -> MutexGuard<'static, Slabs> {
    // The list is consistent between any two statements that touch it, so a panic elsewhere does not spoil it.
    SLABS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slabs {
    fn take(&mut self) -> io::Result<NonNull<[u8; SLOT]>> {
        if self.free.is_empty() {
            self.grow()?;
        }
        self.free
            .pop()
            .map(|slot| slot.0)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn grow(&mut self) -> io::Result<()> {
        // Room for every slot that exists, so that giving one back never allocates.
        let count = SLAB / SLOT;
        self.free.reserve(self.slots + count - self.free.len());
        let slab = match self.ahead.take()? {
            Some(slab) => slab,
            None => lone_slab()?,
        };
        self.slots += count;
        // SAFETY: a slab holds `count` slots.
        self.free.extend(
            (0..count)
                .rev()
                .map(|n| Free(unsafe { slab.cast::<[u8; SLOT]>().add(n) })),
        );
        Ok(())
    }
}

impl Ahead {
    /// The next slab, if there is one.
    fn take(&mut self) -> io::Result<Option<NonNull<u8>>> {
        if self.left == 0 {
            return Ok(None);
        }
        let slab = self.next;
        map::open(slab, SLAB)?;
        self.left -= 1;
        // SAFETY: within the mapping of `lock_ahead`, or at its last guard.
        self.next = unsafe { slab.add(SLAB + map::page_size()) };
        Ok(Some(slab))
    }
}

/// A slab by itself, between guards of its own.
fn lone_slab() -> io::Result<NonNull<u8>> {
    let slab = map::guarded(SLAB)?;
    if !protect(slab, SLAB) {
        REFUSED.store(true, Ordering::Relaxed);
    }
    Ok(slab)
}

/// Locks slabs, keeps them out of core dumps and out of forked children. True if they are locked.
fn protect(start: NonNull<u8>, len: usize) -> bool {
    map::never_copied(start, len);
    map::lock(start, len)
}

/// Has room for `count` secrets locked before there are any, within the limit on locked memory (RLIMIT_MEMLOCK) or by the right to exceed it (CAP_IPC_LOCK): for
/// use before other memory is locked and before privileges are dropped. What is not used takes no memory. False if so much cannot be locked; then secrets get
/// their memory one slab at a time, each locked as long as there is room.
pub fn lock_secrets_ahead(count: usize) -> bool {
    let mut slabs = slabs();
    let missing = count.saturating_sub(slabs.free.len());
    let wanted = missing.div_ceil(SLAB / SLOT);
    if wanted <= slabs.ahead.left {
        return true;
    }
    let guard = map::page_size();
    let Ok(start) = map::closed(wanted * (SLAB + guard) + guard) else {
        return false;
    };
    let len = wanted * (SLAB + guard) + guard;
    if !protect(start, len) {
        map::unmap(start, len);
        return false;
    }
    // SAFETY: the mapping begins with a guard.
    let next = unsafe { start.add(guard) };
    slabs.ahead = Ahead { next, left: wanted };
    true
}

/// Bytes that `count` secrets have locked, with what they take beside.
pub fn secrets_len(count: usize) -> usize {
    count.div_ceil(SLAB / SLOT) * (SLAB + map::page_size())
}

/// False if the system refused to lock the memory of secrets, so that they could be written to swap space. The first call
/// may map memory.
pub fn secrets_locked() -> bool {
    reserve_secrets(1);
    !REFUSED.load(Ordering::Relaxed)
}

/// Makes sure that `count` secrets can be made without asking the system for memory: for use before privileges are dropped.
///
/// # Panics
/// If the system has no memory.
pub fn reserve_secrets(count: usize) {
    let mut slabs = slabs();
    while slabs.free.len() < count {
        slabs.grow().expect("memory for keys");
    }
}

/// `N` secret bytes (64 at most) in locked memory. Zeroed when dropped; `Debug` shows no byte of them.
///
/// There is no `PartialEq`: secrets are compared in constant time, by the code that knows why.
pub struct Secret<const N: usize> {
    slot: NonNull<[u8; SLOT]>,
}

// SAFETY: a secret owns its slot.
unsafe impl<const N: usize> Send for Secret<N> {}
// SAFETY: through a shared reference the slot can only be read.
unsafe impl<const N: usize> Sync for Secret<N> {}

impl<const N: usize> Secret<N> {
    /// All zero.
    ///
    /// # Panics
    /// If the system has no memory.
    pub fn zeroed() -> Secret<N> {
        const { assert!(N > 0 && N <= SLOT, "a secret has 1 to 64 bytes") };
        Secret {
            slot: slabs().take().expect("memory for keys"),
        }
    }

    /// Moves `bytes` into locked memory and zeroes them where they were.
    pub fn new(bytes: &mut [u8; N]) -> Secret<N> {
        let mut secret = Secret::zeroed();
        secret.copy_from_slice(bytes);
        bytes.zeroize();
        secret
    }

    /// A secret that `fill` writes in place.
    pub fn with(fill: impl FnOnce(&mut [u8; N])) -> Secret<N> {
        let mut secret = Secret::zeroed();
        fill(&mut secret);
        secret
    }
}

impl<const N: usize> Deref for Secret<N> {
    type Target = [u8; N];

    #[inline]
    fn deref(&self) -> &[u8; N] {
        // SAFETY: the slot is owned, initialised and at least N bytes long (checked when it was made).
        unsafe { self.slot.cast::<[u8; N]>().as_ref() }
    }
}

impl<const N: usize> DerefMut for Secret<N> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8; N] {
        // SAFETY: as in `deref`, and borrowed exclusively.
        unsafe { self.slot.cast::<[u8; N]>().as_mut() }
    }
}

impl<const N: usize> Clone for Secret<N> {
    /// Copies into a slot of its own.
    fn clone(&self) -> Secret<N> {
        Secret::with(|bytes| bytes.copy_from_slice(&**self))
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret<{N}>(..)")
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.zeroize();
        slabs().free.push(Free(self.slot));
    }
}

/// Overwrites the 16 KiB of stack below the caller's frame, where functions that have returned may have left copies of keys. Called at
/// the end of a computation with secrets.
#[inline(never)]
pub fn wipe_stack() {
    let mut below = [const { MaybeUninit::<u64>::uninit() }; STACK / 8];
    for word in &mut below {
        // SAFETY: the pointer comes from a reference; a volatile store is not optimised away.
        unsafe { word.as_mut_ptr().write_volatile(0) };
    }
    std::hint::black_box(&below);
}
