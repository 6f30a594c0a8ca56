//! Values in shared memory that only this process writes and others read: counters, mostly.
//!
//! A [`Segment`] gives each value a place of its own, one behind the other, and never twice. What is placed is reached through shared references only, so
//! it is changed by atomics only, whoever holds it; a value that is not placed anywhere has the same type, in memory of its own.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use zerocopy::FromBytes;

use crate::region::{Mapping, own};

/// What keeps the memory of a placed value.
enum Keeper<T> {
    Segment { _mapping: Arc<Mapping> },
    Own { _value: Arc<T> },
}

/// A value that can be shared by reference, wherever it is.
pub struct Placed<T> {
    at: NonNull<T>,
    _keeper: Keeper<T>,
}

// SAFETY: a shared reference to a `T` and what keeps it, both of which may go to other threads.
unsafe impl<T: Send + Sync> Send for Placed<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Placed<T> {}

impl<T> Deref for Placed<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: aligned, inside of what the keeper keeps, and a value of the type, as whoever made this has seen to. Nobody has it exclusively.
        unsafe { self.at.as_ref() }
    }
}

impl<T> Clone for Placed<T> {
    fn clone(&self) -> Self {
        let _keeper = match &self._keeper {
            Keeper::Segment { _mapping } => Keeper::Segment {
                _mapping: Arc::clone(_mapping),
            },
            Keeper::Own { _value } => Keeper::Own {
                _value: Arc::clone(_value),
            },
        };
        Placed { at: self.at, _keeper }
    }
}

impl<T> From<Arc<T>> for Placed<T> {
    fn from(value: Arc<T>) -> Self {
        Placed {
            at: NonNull::from(&*value),
            _keeper: Keeper::Own { _value: value },
        }
    }
}

impl<T: Default> Default for Placed<T> {
    fn default() -> Self {
        Placed::from(Arc::<T>::default())
    }
}

/// Memory that this process alone can write, and how much of it is given away.
pub struct Segment {
    mapping: Arc<Mapping>,
    next: usize,
    end: usize,
}

impl Segment {
    /// A new file in memory of `len` zero bytes, which others may map to read. What is not written takes no memory.
    pub fn create(name: &str, len: usize) -> io::Result<(Segment, OwnedFd)> {
        let (mapping, fd) = own(name, len)?;
        let segment = Segment {
            mapping: Arc::new(mapping),
            next: 0,
            end: len,
        };
        Ok((segment, fd))
    }

    /// Places one more value, with what stands there (zeros), and tells where, bytes. `None` if there is no room.
    ///
    /// What is to change has to be an atomic: anything else in it stays zero.
    pub fn place<T: FromBytes + Sync + 'static>(&mut self) -> Option<(Placed<T>, usize)> {
        const { assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0) };
        let at = self.next.checked_next_multiple_of(align_of::<T>())?;
        let next = at.checked_add(size_of::<T>())?;
        let place = self
            .mapping
            .place(at, size_of::<T>())
            .filter(|_| next <= self.end)?;
        self.next = next;
        // Zeros are a value of the type (`FromBytes`), aligned as it has to be, since the mapping begins with a page; the bytes are given to nobody else, in this
        // process or another: they lie behind what was given before and before what was split off, and the file cannot be mapped to write any more.
        let placed = Placed {
            at: place.cast(),
            _keeper: Keeper::Segment {
                _mapping: Arc::clone(&self.mapping),
            },
        };
        Some((placed, at))
    }

    /// What is from this place on, as a segment of its own. Of this one the rest stays.
    pub fn split_off(&mut self, at: usize) -> Segment {
        let at = at.clamp(self.next, self.end);
        Segment {
            mapping: Arc::clone(&self.mapping),
            next: at,
            end: std::mem::replace(&mut self.end, at),
        }
    }

    /// Leaves out what is before this place, if anything is left of that.
    pub fn skip_to(&mut self, at: usize) {
        self.next = self.next.max(at).min(self.end);
    }
}
