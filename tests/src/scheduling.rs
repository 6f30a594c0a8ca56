//! Machines that are busy, and what the scheduler is told of an engine's workers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// Policies, as sched(7) numbers them.
pub const SCHED_OTHER: u32 = 0;
/// In real time.
pub const SCHED_FIFO: u32 = 1;
/// Never by interrupting.
pub const SCHED_BATCH: u32 = 3;

/// The policies of the workers of the engine with this process id (proc(5), `stat`, field 41).
pub fn worker_policies(pid: u32) -> BTreeSet<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stat = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap()
    };
    let policy = |stat: String| {
        let (name, fields) = stat.rsplit_once(')').unwrap();
        let policy = fields.split_whitespace().nth(41 - 3).unwrap();
        name.contains("(worker").then(|| policy.parse().unwrap())
    };
    tasks.map(stat).filter_map(policy).collect()
}

/// Does this while so many threads for each core never sleep.
pub fn on_busy_cores<T>(threads: usize, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    let cores = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        for _ in 0..cores * threads {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
