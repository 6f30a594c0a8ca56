//! Large arrays that are made once and looked up at random: routes, flows.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::map::{self, Mapping};

/// A fixed array in memory that is resident from the start and on huge pages where the machine has them: a random access then
/// misses the cache and not the translation of addresses as well.
pub struct Table<T> {
    _mapping: Mapping,
    first: NonNull<T>,
    len: usize,
}

// SAFETY: the table owns its elements as a boxed slice would.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T> Table<T> {
    /// A table of `len` elements, each made by `element`.
    pub fn new(len: usize, mut element: impl FnMut() -> T) -> io::Result<Table<T>> {
        const {
            assert!(!std::mem::needs_drop::<T>(), "elements are never dropped");
            assert!(align_of::<T>() <= 4096, "mappings are aligned to pages");
        }
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = map::resident(bytes.max(1))?;
        let first = mapping.start().cast::<T>();
        for at in 0..len {
            // SAFETY: the mapping has room for `len` elements and is aligned for them.
            unsafe { first.add(at).write(element()) };
        }
        Ok(Table {
            _mapping: mapping,
            first,
            len,
        })
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `new` has written `len` elements, which live as long as the mapping.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Table<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; the table is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}
