//! How the kernel's scheduler treats the calling thread.

use std::io;
use std::ptr;

/// How a thread that wakes gets onto its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wakeup {
    /// As the scheduler sees fit, which may be in the middle of somebody else's work (SCHED_OTHER, sched(7)).
    Preempting,
    /// Never by interrupting anybody (SCHED_BATCH): when the one that runs goes to sleep, when another CPU has nothing to do, or
    /// when a time slice ends. The share of the CPU is the same.
    Waiting,
    /// Before every other thread that is not in real time, until it sleeps (SCHED_FIFO at its lowest priority, sched(7)). Needs `CAP_SYS_NICE` or a limit that allows it
    /// (RLIMIT_RTPRIO, getrlimit(2)).
    Realtime,
}

impl Wakeup {
    fn policy(self) -> libc::c_int {
        match self {
            Wakeup::Preempting => libc::SCHED_OTHER,
            Wakeup::Waiting => libc::SCHED_BATCH,
            Wakeup::Realtime => libc::SCHED_FIFO,
        }
    }
}

/// How the calling thread wakes. `None` if it was given another policy than these, which should be left alone.
pub fn wakeup() -> Option<Wakeup> {
    // SAFETY: takes a number and touches no memory; 0 is the calling thread.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    [Wakeup::Preempting, Wakeup::Waiting, Wakeup::Realtime]
        .into_iter()
        .find(|wakeup| libc::c_long::from(wakeup.policy()) == policy)
}

/// Sets how the calling thread wakes from now on.
pub fn set_wakeup(wakeup: Wakeup) -> io::Result<()> {
    // Others than real time have priority 0 only.
    set_policy(wakeup.policy(), i32::from(wakeup == Wakeup::Realtime))
}

/// Lets the calling thread wake in real time from now on.
pub fn set_realtime() -> io::Result<()> {
    set_wakeup(Wakeup::Realtime)
}

fn set_policy(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    // SAFETY: a plain structure of integers, for which zero is a value.
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = priority;
    // SAFETY: the kernel only reads `parameter`, which lives until the call returns; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, ptr::from_ref(&parameter)) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_set_and_read() {
        // On a thread of its own: a policy stays.
        let seen = std::thread::spawn(|| {
            [Wakeup::Waiting, Wakeup::Preempting].map(|wakeup| {
                set_wakeup(wakeup).expect("set");
                super::wakeup()
            })
        });
        assert_eq!(
            seen.join().expect("thread"),
            [Some(Wakeup::Waiting), Some(Wakeup::Preempting)]
        );
    }
}
