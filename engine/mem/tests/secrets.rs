//! Keys: where they live, and that nothing of them stays.

#![cfg(not(miri))]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};

use patronus_mem::{
    Arena, ArenaConfig, Secret, lock_secrets_ahead, reserve_secrets, secrets_len, secrets_locked, wipe_stack,
};

/// Tests that look at a slot after its secret is gone must not share the slots with other tests.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn c75_moved_in_and_wiped_where_it_was() {
    let _alone = alone();
    let mut bytes = [7; 32];
    let secret = Secret::new(&mut bytes);
    assert_eq!((*secret, bytes), ([7; 32], [0; 32]));
    let mut copy = secret.clone();
    copy[0] = 8;
    assert_eq!((secret[0], copy[0]), (7, 8));
    assert_ne!(secret.as_ptr(), copy.as_ptr());
    assert_eq!(*Secret::<64>::with(|bytes| bytes.fill(3)), [3; 64]);
    assert_eq!(*Secret::<1>::zeroed(), [0]);
}

#[test]
fn c75_debug_shows_nothing() {
    let _alone = alone();
    assert_eq!(format!("{:?}", Secret::new(&mut [0x41; 32])), "Secret<32>(..)");
}

#[test]
fn c75_zeroed_when_dropped() {
    let _alone = alone();
    let secret = Secret::<64>::with(|bytes| bytes.fill(0x5a));
    let slot: *const u8 = secret.as_ptr();
    // SAFETY: the slot lives as long as the process, and no other test takes it meanwhile.
    let look = || unsafe { std::slice::from_raw_parts(slot, 64).to_vec() };
    assert_eq!(look(), [0x5a; 64]);
    drop(secret);
    assert_eq!(look(), [0; 64]);
}

#[test]
fn c75_a_new_secret_is_zero_whatever_was_there() {
    let _alone = alone();
    for _ in 0..3 {
        let mut secrets: Vec<Secret<64>> = (0..3000).map(|_| Secret::zeroed()).collect();
        for secret in &mut secrets {
            assert_eq!(**secret, [0; 64]);
            secret.fill(0xff);
        }
    }
}

/// The lines of /proc/self/smaps about the mapping that holds an address: its range, permissions and flags.
struct Mapping {
    start: usize,
    end: usize,
    permissions: String,
    flags: String,
}

fn mappings() -> Vec<Mapping> {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("smaps");
    let mut all: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or("");
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            all.last_mut().expect("a mapping").flags = format!("{flags} ");
        } else if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            let permissions = words.next().expect("permissions").to_owned();
            all.push(Mapping {
                start,
                end,
                permissions,
                flags: String::new(),
            });
        }
    }
    all
}

#[test]
fn c75_memory_is_locked_guarded_and_not_dumped() {
    let _alone = alone();
    assert!(secrets_locked(), "this test needs 64 KiB of lockable memory");
    let secret = Secret::<32>::zeroed();
    let at = secret.as_ptr() as usize;
    let all = mappings();
    let of = |address| {
        all.iter()
            .find(|m| (m.start..m.end).contains(&address))
            .expect("a mapping")
    };
    let slab = of(at);
    for flag in [" lo ", " dd ", " wf "] {
        assert!(slab.flags.contains(flag), "{flag}missing in{}", slab.flags);
    }
    assert!(slab.permissions.starts_with("rw-p"), "{}", slab.permissions);
    assert!(of(slab.start - 1).permissions.starts_with("---p"));
    assert!(of(slab.end).permissions.starts_with("---p"));
}

#[test]
fn c75_a_forked_child_reads_zeros() {
    let _alone = alone();
    let secret = Secret::<32>::with(|bytes| bytes.fill(9));
    // SAFETY: the child only reads memory and leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let clean = *secret == [0; 32];
        // SAFETY: ends the child without running anything of the test's.
        unsafe { libc::_exit(if clean { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: the pointer is valid and the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "status {status}"
    );
    assert_eq!(*secret, [9; 32]);
}

/// Set where a test runs itself again with a limit of its own on locked memory.
const AGAIN: &str = "PATRONUS_TEST_LIMITED";

fn is_limited() -> bool {
    std::env::var_os(AGAIN).is_some()
}

/// Runs a test again in a process that may lock so many bytes and has no right to lock more.
fn run_limited(test: &str, bytes: u64) {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args(["--exact", test]).env(AGAIN, "1");
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit {
                rlim_cur: bytes,
                rlim_max: bytes,
            };
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit);
            // CAP_IPC_LOCK, number 14, would overrule the limit; without the right to drop it we do not have it.
            libc::prctl(libc::PR_CAPBSET_DROP, 14, 0, 0, 0);
            Ok(())
        });
    }
    let output = command.output().expect("run itself");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn c75_refused_lock_is_said_and_survived() {
    if !is_limited() {
        return run_limited("c75_refused_lock_is_said_and_survived", 0);
    }
    assert!(!lock_secrets_ahead(5000));
    reserve_secrets(5000);
    let secret = Secret::new(&mut [5; 32]);
    assert_eq!(*secret, [5; 32]);
    assert!(!secrets_locked());
}

const SECRETS: usize = 5000;

fn small_arena() -> &'static Arena {
    let config = ArenaConfig {
        frames: 300,
        jumbo_frames: 4,
    };
    Arena::new(&config).expect("memory for packets")
}

/// So many secrets are made one by one after everything else was locked, and all are locked.
fn make_secrets() {
    let secrets: Vec<_> = (0..SECRETS).map(|n| Secret::new(&mut [n as u8; 32])).collect();
    assert!(secrets_locked());
    let all = mappings();
    for secret in &secrets {
        let at = secret.as_ptr() as usize;
        let slab = all.iter().find(|m| (m.start..m.end).contains(&at));
        assert!(slab.expect("a mapping").flags.contains(" lo "));
    }
}

#[test]
fn c75_keys_have_their_room_before_packets_take_the_rest() {
    let name = "c75_keys_have_their_room_before_packets_take_the_rest";
    if !is_limited() {
        // For the keys and not for the packets beside them.
        let keys = secrets_len(SECRETS) as u64;
        return run_limited(name, keys + small_arena().lockable_len() as u64 - 4096);
    }
    let arena = small_arena();
    assert!(lock_secrets_ahead(SECRETS));
    assert!(arena.is_huge() || !arena.lock());
    make_secrets();
}

#[test]
fn c75_keys_and_packets_are_locked_where_both_have_room() {
    let name = "c75_keys_and_packets_are_locked_where_both_have_room";
    if !is_limited() {
        let keys = secrets_len(SECRETS) as u64;
        return run_limited(name, keys + small_arena().lockable_len() as u64 + 3 * 4096);
    }
    assert!(lock_secrets_ahead(SECRETS) && lock_secrets_ahead(SECRETS));
    assert!(small_arena().lock());
    make_secrets();
}

#[test]
fn c75_keys_that_have_no_room_ahead_are_locked_as_they_come() {
    let name = "c75_keys_that_have_no_room_ahead_are_locked_as_they_come";
    if !is_limited() {
        return run_limited(name, secrets_len(SECRETS) as u64);
    }
    assert!(!lock_secrets_ahead(100 * SECRETS));
    make_secrets();
}

#[test]
fn secrets_are_shared_by_threads() {
    let _alone = alone();
    let shared = Secret::<32>::with(|bytes| bytes.fill(1));
    std::thread::scope(|scope| {
        for n in 0..4 {
            let shared = &shared;
            scope.spawn(move || {
                for _ in 0..2000 {
                    let mut own = shared.clone();
                    own.fill(n);
                    assert_eq!((*own, **shared), ([n; 32], [1; 32]));
                }
            });
        }
    });
}

/// Bytes of the stack of the thread below, and what is left on it.
const STACK: usize = 256 << 10;
const MARK: u64 = 0x7061_7472_6f6e_7573;

#[inline(never)]
fn leave_marks() {
    let mut marks = [0_u64; 1000];
    for mark in &mut marks {
        // SAFETY: a reference is a valid pointer.
        unsafe { std::ptr::write_volatile(mark, MARK) };
    }
    std::hint::black_box(&marks);
}

/// What the thread runs, and how it and the test wait for each other: a thread that has ended has given its stack back.
struct Run {
    wipe: bool,
    meet: Barrier,
}

extern "C" fn run(run: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `marks_left` passes a `Run` that outlives the thread.
    let run = unsafe { &*run.cast::<Run>() };
    leave_marks();
    if run.wipe {
        wipe_stack();
    }
    run.meet.wait();
    run.meet.wait();
    std::ptr::null_mut()
}

/// Runs a thread on a stack of our own and counts the marks that are left on it.
fn marks_left(wipe: bool) -> usize {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let plan = Run {
        wipe,
        meet: Barrier::new(2),
    };
    // SAFETY: a new mapping becomes the stack of a thread, which waits while it is read and ends before this returns.
    unsafe {
        let stack = libc::mmap(std::ptr::null_mut(), STACK, protection, flags, -1, 0);
        assert_ne!(stack, libc::MAP_FAILED);
        let mut attributes = std::mem::zeroed();
        assert_eq!(libc::pthread_attr_init(&mut attributes), 0);
        assert_eq!(libc::pthread_attr_setstack(&mut attributes, stack, STACK), 0);
        let mut thread = std::mem::zeroed();
        let argument = (&raw const plan).cast_mut().cast();
        assert_eq!(libc::pthread_create(&mut thread, &attributes, run, argument), 0);
        plan.meet.wait();
        let words = stack.cast::<u64>();
        let marks = (0..STACK / 8)
            .filter(|n| words.add(*n).read_volatile() == MARK)
            .count();
        plan.meet.wait();
        assert_eq!(libc::pthread_join(thread, std::ptr::null_mut()), 0);
        marks
    }
}

#[test]
fn c75_wipe_stack_leaves_nothing_of_what_ran_before() {
    assert!(marks_left(false) > 500, "otherwise the test shows nothing");
    assert_eq!(marks_left(true), 0);
}
