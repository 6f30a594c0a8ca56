//! Reclamation by quiescent states: who replaces something that others may be reading learns when nobody can be reading it any more.
//! Readers pay a load and a store for each burst, and never wait (P. E. McKenney, J. D. Slingwine, "Read-Copy Update",
//! PDCS 1998; T. E. Hart et al., "Making lockless synchronization fast", IPDPS 2006).
//!
//! A [`Domain`] has an epoch that only grows. Whoever has taken something out of the readers' sight begins a new epoch and
//! keeps it as a [`Grace`]. A [`Reader`] that holds nothing says so by noting the epoch that it sees. When all readers have noted
//! that epoch or a later one, or are parked, the grace is over. [`Published`] is one pointer on top of this.
//!
//! Why that is enough. A reader that notes epoch `e` has read the counter with acquire after the writer raised it to `e` with
//! release, so it also sees everything taken out before: what it reads from now on is the new thing. And it has
//! noted `e` with release after its last use of the old thing, which the writer sees by acquire before it frees it. A parked reader holds
//! nothing; when it comes back it notes an epoch, and a fence against the writer's makes sure that either the writer sees it noted or
//! it sees what the writer took out as gone.

use std::ptr::NonNull;

use crossbeam_utils::CachePadded;

use crate::facade::{Arc, AtomicPtr, AtomicU64, Ordering, UnsafeCell, fence};

/// What a parked reader has noted: later than every epoch.
const PARKED: u64 = u64::MAX;

struct Shared {
    epoch: CachePadded<AtomicU64>,
    /// For each reader the epoch that it noted last.
    noted: Box<[CachePadded<AtomicU64>]>,
}

/// The writer's side: knows all readers.
pub struct Domain {
    shared: Arc<Shared>,
}

/// Which domain: kept beside what is read, to tell its readers from others.
#[derive(Clone)]
pub struct DomainId(Arc<Shared>);

/// One reader: belongs to one thread at a time. Begins parked.
pub struct Reader {
    shared: Arc<Shared>,
    number: usize,
}

/// The time until nobody can hold any more what was taken out before [`Domain::begin_grace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grace(u64);

impl Domain {
    /// A domain of that many readers, all parked.
    pub fn new(readers: usize) -> (Domain, Vec<Reader>) {
        let shared = Arc::new(Shared {
            epoch: CachePadded::new(AtomicU64::new(0)),
            noted: (0..readers)
                .map(|_| CachePadded::new(AtomicU64::new(PARKED)))
                .collect(),
        });
        let reader = |number| Reader {
            shared: Arc::clone(&shared),
            number,
        };
        let readers = (0..readers).map(reader).collect();
        (Domain { shared }, readers)
    }

    /// Which domain this is.
    pub fn id(&self) -> DomainId {
        DomainId(Arc::clone(&self.shared))
    }

    /// Whether it is that one.
    pub fn is(&self, domain: &DomainId) -> bool {
        Arc::ptr_eq(&self.shared, &domain.0)
    }

    /// After something was taken out of the readers' sight.
    pub fn begin_grace(&mut self) -> Grace {
        // Release: a reader that sees this epoch sees what was taken out as gone. Nobody else writes it.
        let epoch = self.shared.epoch.load(Ordering::Relaxed) + 1;
        self.shared.epoch.store(epoch, Ordering::Release);
        Grace(epoch)
    }

    /// Whether nobody can hold any more what was taken out before that.
    pub fn is_over(&self, grace: Grace) -> bool {
        // Against the one in `Reader::resume`.
        fence(Ordering::SeqCst);
        // Acquire: what the readers did before they noted it is done before the caller frees anything.
        self.shared
            .noted
            .iter()
            .all(|noted| noted.load(Ordering::Acquire) >= grace.0)
    }
}

impl Reader {
    /// Says that this reader holds nothing from before: once for each burst. It needs the reader for itself, so what was
    /// borrowed through it is given back.
    ///
    /// # Panics
    ///
    /// If the reader is parked: only [`resume`](Reader::resume) may end that.
    #[inline]
    pub fn quiescent(&mut self) {
        assert!(!self.is_parked(), "a parked reader resumes first");
        self.note();
    }

    #[inline]
    fn note(&mut self) {
        let epoch = self.shared.epoch.load(Ordering::Acquire);
        self.shared.noted[self.number].store(epoch, Ordering::Release);
    }

    /// Says that this reader will hold nothing until it resumes: before it blocks.
    #[inline]
    pub fn park(&mut self) {
        self.shared.noted[self.number].store(PARKED, Ordering::Release);
    }

    /// Undoes [`park`](Reader::park): before it reads anything.
    #[inline]
    pub fn resume(&mut self) {
        self.note();
        // Against the one in `Domain::is_over`: either that sees the epoch just noted, or what was taken out before is
        // gone for this reader.
        fence(Ordering::SeqCst);
    }

    /// Whether the reader is awake and of this domain, so that what it looks at there stays.
    #[inline]
    pub fn is_awake_in(&self, domain: &DomainId) -> bool {
        Arc::ptr_eq(&self.shared, &domain.0) && !self.is_parked()
    }

    #[inline]
    fn is_parked(&self) -> bool {
        self.shared.noted[self.number].load(Ordering::Relaxed) == PARKED
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.park();
    }
}

/// What readers look at: one value that a [`Publisher`] replaces.
pub struct Published<T>(Arc<Place<T>>);

/// Replaces a [`Published`] value.
pub struct Publisher<T>(Arc<Place<T>>);

struct Place<T> {
    /// Made by `Box::into_raw`, and owned.
    current: AtomicPtr<T>,
    /// Replaced values that a reader may still hold, oldest first: pointers and not boxes, which would claim to be alone. Only the
    /// publisher touches it.
    retired: UnsafeCell<Vec<(Grace, NonNull<T>)>>,
    /// Only this domain's readers may look.
    domain: DomainId,
}

// SAFETY: readers get `&T` on their threads (`Sync`), and values are dropped on another thread than made them (`Send`); `retired` is only
// touched through the one publisher, which is borrowed mutably for that, and by `drop`.
unsafe impl<T: Send + Sync> Send for Place<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Place<T> {}

/// Publishes `value` to the readers of `domain`.
pub fn publish<T: Send + Sync>(domain: &Domain, value: Box<T>) -> (Publisher<T>, Published<T>) {
    let place = Arc::new(Place {
        current: AtomicPtr::new(Box::into_raw(value)),
        retired: UnsafeCell::new(Vec::new()),
        domain: domain.id(),
    });
    (Publisher(Arc::clone(&place)), Published(place))
}

impl<T: Send + Sync> Published<T> {
    /// The value as it is now, until the reader is next quiescent.
    ///
    /// # Panics
    ///
    /// If the reader is parked or of another domain.
    #[inline]
    pub fn get<'a>(&'a self, reader: &'a Reader) -> &'a T {
        assert!(
            reader.is_awake_in(&self.0.domain),
            "read by a reader of this domain that is awake"
        );
        let current = self.0.current.load(Ordering::Acquire);
        // SAFETY: the pointer is to a value that is not freed before this reader notes an epoch or parks, for which it
        // would have to be borrowed mutably, nor before the place is dropped.
        unsafe { &*current }
    }
}

impl<T> Clone for Published<T> {
    fn clone(&self) -> Self {
        Published(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync> Publisher<T> {
    /// Puts `value` in the place of the present one, which is freed by a later [`collect`](Publisher::collect).
    ///
    /// # Panics
    ///
    /// If it was published to another domain.
    pub fn replace(&mut self, domain: &mut Domain, value: Box<T>) {
        assert!(domain.is(&self.0.domain), "one domain");
        // Release: the new value is written before a reader finds it.
        let old = self.0.current.swap(Box::into_raw(value), Ordering::AcqRel);
        let grace = domain.begin_grace();
        let old = NonNull::new(old).expect("made by Box::into_raw");
        // SAFETY: this is the only publisher, borrowed mutably.
        self.0
            .retired
            .with_mut(|retired| unsafe { (*retired).push((grace, old)) });
    }

    /// Frees the replaced values that nobody can hold any more; returns how many are left. A publisher that finds many has a reader
    /// that is neither quiescent nor parked, and should not replace more.
    pub fn collect(&mut self, domain: &Domain) -> usize {
        assert!(domain.is(&self.0.domain), "one domain");
        self.0.retired.with_mut(|retired| {
            // SAFETY: this is the only publisher, borrowed mutably.
            let retired = unsafe { &mut *retired };
            let over = retired.partition_point(|(grace, _)| domain.is_over(*grace));
            for (_, value) in retired.drain(..over) {
                // SAFETY: the pointer came from `Box::into_raw`, nobody else has it now, and it leaves the list.
                drop(unsafe { Box::from_raw(value.as_ptr()) });
            }
            retired.len()
        })
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let current = self.current.load(Ordering::Relaxed);
        // SAFETY: the pointer came from `Box::into_raw`; every handle, and with it every borrow, is gone.
        drop(unsafe { Box::from_raw(current) });
        self.retired.with_mut(|retired| {
            // SAFETY: this is the last reference.
            for (_, value) in unsafe { &mut *retired }.drain(..) {
                // SAFETY: as for the present one.
                drop(unsafe { Box::from_raw(value.as_ptr()) });
            }
        });
    }
}
