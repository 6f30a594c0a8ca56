//! Two sites for most tests, and small questions about them.

use crate::{engine_program, hop_program};
use patronus_netns::{Daemon, DaemonOptions, HopPlan, Kind, TwoSites};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long anything that must happen may take. Generous: the machine may be busy, and a peer that has to notice that the other end
/// was restarted calls anew only after 15 s (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT, whitepaper 6.2).
pub const LIMIT: Duration = Duration::from_secs(30);

/// The interface of the path between two sites, at either end.
pub const OUTER: &str = "path";

/// How to start the engine under test, with more arguments.
pub fn engine_options(args: &[&str]) -> DaemonOptions {
    DaemonOptions {
        program: Some(engine_program().to_owned()),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: Vec::new(),
    }
}

/// How to start the impairment hop, with options and commands.
pub fn hop_plan(args: &[&str]) -> HopPlan {
    HopPlan {
        program: Some(hop_program().to_owned()),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
    }
}

/// Two sites, ours being the engine under test.
pub fn sites(a: Kind, b: Kind) -> TwoSites {
    let mut plan = TwoSites::new(a, b);
    if a == Kind::Engine {
        plan.options_a = engine_options(&[]);
    }
    if b == Kind::Engine {
        plan.options_b = engine_options(&[]);
    }
    plan
}

/// Two sites with the engine, every time of the protocol divided by `divisor`.
pub fn divided(divisor: u32) -> TwoSites {
    let mut plan = TwoSites::new(Kind::Engine, Kind::Engine);
    let divisor = divisor.to_string();
    plan.options_a = engine_options(&["--test-timer-divisor", &divisor]);
    plan.options_b = plan.options_a.clone();
    plan
}

/// The endpoint that a daemon shows for its first peer.
pub fn endpoint_of(daemon: &Daemon) -> Option<SocketAddr> {
    daemon.peers().ok()?.first()?.endpoint
}

/// Waits until `check` holds; false if that takes longer than [`LIMIT`].
pub fn eventually(mut check: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if check() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    check()
}
