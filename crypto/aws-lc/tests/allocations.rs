//! Nothing on the data path allocates, in Rust or in C: every call of the C library's allocator is counted.
//!
//! Rust's own allocator ends in the same functions, so one count covers both. The functions are defined here, which takes
//! precedence over the C library's of the same names; they count, then do what those do.

use patronus_crypto::aead::{self, Job, TAG};
use patronus_crypto::keypair::{Keypair, Keypairs, Session};
use patronus_crypto::timeouts::Timeouts;
use patronus_crypto::{PeerId, Time, x25519};
use patronus_mem::Secret;
use std::cell::Cell;
use std::ffi::c_void;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more, and nobody to read it.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

// SAFETY (of the four names): each is defined once in this program, with the C library's signature and meaning.
#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut c_void {
    count();
    // SAFETY: any size may be asked for.
    unsafe { __libc_malloc(size) }
}

#[unsafe(no_mangle)]
extern "C" fn calloc(number: usize, size: usize) -> *mut c_void {
    count();
    // SAFETY: any size may be asked for.
    unsafe { __libc_calloc(number, size) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    count();
    // SAFETY: the caller's promise.
    unsafe { __libc_realloc(old, size) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> i32 {
    const ENOMEM: i32 = 12;
    count();
    // SAFETY: the caller promises a valid `out` and a power of two that is a multiple of a pointer's size.
    unsafe {
        *out = __libc_memalign(align, size);
        if (*out).is_null() { ENOMEM } else { 0 }
    }
}

/// How often this thread allocated while `f` ran.
fn allocations(f: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

#[test]
fn the_count_sees_rust_and_c() {
    assert_eq!(
        allocations(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(100)))),
        1
    );
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0u8; 100]))), 1);
    let in_c = allocations(|| {
        // SAFETY: what the library allocated is given back to it, once.
        unsafe { aws_lc_sys::OPENSSL_free(std::hint::black_box(aws_lc_sys::OPENSSL_malloc(100))) }
    });
    assert_eq!(in_c, 1);
    assert_eq!(allocations(|| ()), 0);
}

/// Seals and opens bursts of many keys and lengths, forged packets among them, from the first burst on.
#[test]
fn bursts_allocate_nothing() {
    let keys: Vec<_> = (0..64u8).map(|n| Secret::with(|key| key.fill(n))).collect();
    for aead in aead::all() {
        let mut bufs: Vec<Vec<u8>> = (0..64).map(|n| vec![7; n * 40 + TAG]).collect();
        for round in 0..100 {
            let mut jobs: Vec<_> = keys
                .iter()
                .zip(&mut bufs)
                .map(|(key, buf)| Job::new(key, round, buf))
                .collect();
            assert_eq!(allocations(|| aead.seal(&mut jobs)), 0, "{}: seal", aead.name());
            assert!(jobs.iter().all(|job| job.ok));
            for job in jobs.iter_mut().step_by(3) {
                job.buf[0] ^= 1;
            }
            assert_eq!(allocations(|| aead.open(&mut jobs)), 0, "{}: open", aead.name());
            assert!(jobs.iter().enumerate().all(|(n, job)| job.ok == (n % 3 != 0)));
        }
    }
}

#[test]
fn key_agreement_allocates_nothing() {
    patronus_mem::reserve_secrets(8);
    let private = Secret::with(|key| key.fill(5));
    for dh in x25519::all() {
        let mut public = [0; 32];
        assert_eq!(allocations(|| public = dh.public(&private)), 0, "{}", dh.name());
        assert_eq!(
            allocations(|| drop(dh.shared(&private, &public).unwrap())),
            0,
            "{}",
            dh.name()
        );
        assert_eq!(
            allocations(|| assert!(dh.shared(&private, &[0; 32]).is_none())),
            0,
            "{}",
            dh.name()
        );
    }
}

/// Keypairs go round in the same boxes: sessions are set up, used, displaced and set up again.
#[test]
fn sessions_allocate_nothing_after_set_up() {
    let mut pool: Vec<_> = (0..4).map(|_| Keypair::vacant(8192)).collect();
    let mut pairs = Keypairs::new();
    let allocated = allocations(|| {
        for index in 0..1000 {
            let mut keypair = pool.pop().expect("three places and one in hand");
            let session = Session {
                peer: PeerId(0),
                local_index: index,
                remote_index: index,
                initiator: index % 3 == 0,
                created: Time(0),
            };
            keypair.arm(session, &Timeouts::protocol(), &[1; 32], &[2; 32]);
            for mut retired in pairs.install(keypair) {
                retired.wipe();
                pool.push(retired);
            }
            for counter in [5, 9000, 0, 70_000] {
                let keypair = pairs.by_index(index).expect("just installed");
                if keypair.may_receive(counter, Time(1)).is_ok() {
                    keypair.accept(counter);
                }
                keypair.next_counter(Time(1));
                keypair.rekey_due_on_send(Time(1));
                keypair.rekey_due_on_receive(Time(1));
                pool.extend(pairs.received_under(index).1);
            }
        }
        pool.extend(pairs.clear());
    });
    assert_eq!(allocated, 0);
    assert_eq!(pool.len(), 4);
}
