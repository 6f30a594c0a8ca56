//! What the process gives up once it is set up.
//!
//! Called by the main thread before it spawns the first worker, so that every thread inherits it: all capabilities but
//! the few that its sockets need, the way to gain others, core dumps, and every system call that the engine does not make.
//! docs/threat-model.md says against whom.

use std::collections::BTreeMap;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::stdio::dup2_stderr;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter, apply_filter_all_threads};

/// What could not be given up.
#[derive(Debug)]
pub enum SandboxError {
    /// This step failed.
    Step(&'static str, Errno),
    /// The system-call filter could not be built or was refused.
    Filter(String),
}

impl std::fmt::Display for SandboxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SandboxError::Step(step, errno) => write!(f, "cannot {step}: {errno}"),
            SandboxError::Filter(why) => write!(f, "cannot install the system-call filter: {why}"),
        }
    }
}

impl std::error::Error for SandboxError {}

/// Room for locked memory: without limit if we may still say so, otherwise as much as we may have without asking.
pub fn allow_locked_memory() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if setrlimit(Resource::Memlock, unlimited).is_err() {
        let maximum = getrlimit(Resource::Memlock).maximum;
        let all = Rlimit {
            current: maximum,
            maximum,
        };
        // Lowered meanwhile by somebody else: what cannot be locked is said.
        let _ = setrlimit(Resource::Memlock, all);
    }
}

/// Bytes that may be locked without the right to exceed the limit (`CAP_IPC_LOCK`); `None`: all that is wanted.
pub fn locked_memory_limit() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// Says by limits whether workers may run in real time, at the lowest priority, or failing that be as little nice as there is, when they are kept from running in time (courtesy.rs). Where we
/// may not raise them, they stay as they are.
pub fn limit_priority(may: bool) {
    for (resource, most) in [(Resource::Rtprio, 1), (Resource::Nice, NICE_LEAST)] {
        let limit = getrlimit(resource);
        let wanted = |limit: Option<u64>| match limit {
            _ if !may => Some(0),
            None => None,
            Some(limit) => Some(limit.max(most)),
        };
        let wanted = Rlimit {
            current: wanted(limit.current),
            maximum: wanted(limit.maximum),
        };
        // Refused where the limit is too low; it says itself what is possible then.
        let _ = setrlimit(resource, wanted);
    }
}

/// Whether the limit lets workers run in real time.
pub fn limit_allows_realtime() -> bool {
    getrlimit(Resource::Rtprio).current != Some(0)
}

/// Whether this process may do so whatever the limit is.
pub fn may_exceed_priority() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_NICE))
}

/// RLIMIT_NICE for a nice value of -20 (getrlimit(2)).
const NICE_LEAST: u64 = 40;

/// No core dumps, no reading of this process's memory by its equals. Called first of all, before a key can arrive.
pub fn hide_memory() -> Result<(), SandboxError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(|e| SandboxError::Step("forbid core dumps", e))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| SandboxError::Step("make the process non-dumpable", e))
}

/// What the engine may still do beside its own sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    /// Locks more memory than it may.
    pub lock: bool,
    /// Opens devices of DPDK's again.
    pub nics: bool,
    /// Runs in real time beyond what the limit allows.
    pub nice: bool,
}

/// Keeps `CAP_NET_ADMIN`, which `SO_MARK` and socket buffers beyond the system's limit need, and `CAP_NET_BIND_SERVICE`, for
/// UDP ports below 1,024, which are often the only open ones; drops the rest.
///
/// With `lock`, `CAP_IPC_LOCK` too: an interface that comes back has packet memory locked for it, which counts beside everything else.
/// With `nics`, `CAP_NET_RAW`: a device that stands on an interface comes back with it. With `nice`, `CAP_SYS_NICE`.
pub fn drop_privileges(rights: Rights) -> Result<(), SandboxError> {
    let mut kept = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_BIND_SERVICE);
    kept.set(CapabilitySet::IPC_LOCK, rights.lock);
    kept.set(CapabilitySet::NET_RAW, rights.nics);
    kept.set(CapabilitySet::SYS_NICE, rights.nice);
    keep_only(kept)
}

/// Before DPDK is started, whose threads keep what the caller has: what the engine keeps itself, and with `cards` what drivers need to reach
/// them without an IOMMU: physical addresses (`CAP_SYS_ADMIN`) and registers (`CAP_SYS_RAWIO`).
pub fn drop_privileges_for_nics(cards: bool) -> Result<(), SandboxError> {
    let mut kept = CapabilitySet::NET_ADMIN
        .union(CapabilitySet::NET_BIND_SERVICE)
        .union(CapabilitySet::NET_RAW)
        .union(CapabilitySet::IPC_LOCK);
    kept.set(CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYS_RAWIO), cards);
    keep_only(kept)
}

/// For the processes beside the engine: nothing more is said to whoever started it, who may wait until everybody has closed his pipe.
pub fn leave_standard_error() -> Result<(), SandboxError> {
    let step = |e| SandboxError::Step("leave standard error", e);
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).map_err(step)?;
    dup2_stderr(null).map_err(step)
}

/// For the process that reads files: keeps `CAP_DAC_READ_SEARCH`, without which it could not read what the engine could at its start.
pub fn drop_reader_privileges() -> Result<(), SandboxError> {
    keep_only(CapabilitySet::DAC_READ_SEARCH)
}

/// For the process that takes interfaces: keeps what programs and packet sockets need.
pub fn drop_keeper_privileges() -> Result<(), SandboxError> {
    let kept = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);
    keep_only(kept.union(CapabilitySet::BPF))
}

fn keep_only(kept: CapabilitySet) -> Result<(), SandboxError> {
    clear_ambient_capability_set().map_err(|e| SandboxError::Step("clear ambient capabilities", e))?;
    for capability in CapabilitySet::all().difference(kept).iter() {
        match remove_capability_from_bounding_set(capability) {
            // EINVAL: a capability that this kernel does not know. EPERM: we may not, and have none to lose.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(e) => return Err(SandboxError::Step("reduce the bounding set", e)),
        }
    }
    let now = rustix::thread::capabilities(None).map_err(|e| SandboxError::Step("read capabilities", e))?;
    let kept = now.permitted.intersection(kept);
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(|e| SandboxError::Step("drop capabilities", e))?;
    set_no_new_privs(true).map_err(|e| SandboxError::Step("set no_new_privs", e))
}

/// Lets this thread and its children make only the system calls of [`ALLOWED`]; the others fail with EPERM. With `nics`, those of [`NICS_ALLOWED`] as well, and the
/// threads of DPDK's, which are there already, come under it too.
pub fn filter_system_calls(nics: bool) -> Result<(), SandboxError> {
    match nics {
        false => filter(ALLOWED.iter()),
        true => apply_filter_all_threads(&program(ALLOWED.iter().chain(NICS_ALLOWED))?)
            .map_err(|e| SandboxError::Filter(e.to_string())),
    }
}

/// For the process that reads files: only the system calls of [`READER_ALLOWED`].
pub fn filter_reader_system_calls() -> Result<(), SandboxError> {
    filter(READER_ALLOWED.iter())
}

/// For the process that takes interfaces: only the system calls of [`READER_ALLOWED`] and [`KEEPER_ALLOWED`].
pub fn filter_keeper_system_calls() -> Result<(), SandboxError> {
    filter(READER_ALLOWED.iter().chain(KEEPER_ALLOWED))
}

fn filter<'a>(allowed: impl Iterator<Item = &'a i64>) -> Result<(), SandboxError> {
    apply_filter(&program(allowed)?).map_err(|e| SandboxError::Filter(e.to_string()))
}

fn program<'a>(allowed: impl Iterator<Item = &'a i64>) -> Result<BpfProgram, SandboxError> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|e| SandboxError::Filter(format!("{e}")))?;
    let rules: BTreeMap<i64, Vec<_>> = allowed.map(|&call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch);
    filter
        .and_then(TryInto::try_into)
        .map_err(|e| SandboxError::Filter(e.to_string()))
}

/// Every system call that the engine makes after set-up.
const ALLOWED: &[i64] = &[
    // Packets.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendto,
    // Waiting.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_create1,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    // Clocks and randomness.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    // Sockets that are made anew when the interface comes up or its UDP port changes, and UAPI clients.
    libc::SYS_socket,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_accept4,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_close,
    libc::SYS_shutdown,
    // A control process that attaches: memory that is shared with it, what it publishes there, whose it is and what its key files lie on.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fstatfs,
    // The sockets' files: whether they are still there, and their removal.
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_brk,
    // Threads, their start and their end.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_prctl,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Whose key files are ours.
    libc::SYS_geteuid,
    // Background: a session of its own, standard streams to /dev/null, opened beforehand.
    libc::SYS_setsid,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    libc::SYS_dup3,
];

/// What DPDK calls beside [`ALLOWED`]: its thread for interrupts makes what it waits on anew, a virtual device that comes back listens to another process, and they
/// share memory.
const NICS_ALLOWED: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_create,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Every system call that the process makes that reads files: it opens them, and has one socket.
const READER_ALLOWED: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_getrandom,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What the process that takes interfaces calls beside [`READER_ALLOWED`], where its files are settings of the system (`/proc/sys`).
const KEEPER_ALLOWED: &[i64] = &[
    libc::SYS_bpf,
    libc::SYS_socket,
    libc::SYS_bind,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_ioctl,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
];
