//! The engine on a simulated network: real workers, stages and slow path, a virtual clock, one thread, and faults that a seed decides.
//!
//! See docs/simulator.md. The same seed is the same run, to the last packet.
//!
//! * [`world`]: a run and its parts, what goes wrong, what must hold
//! * [`steered`]: a run in which it is known which paths are good, and what must hold of steering
//! * [`site`]: one engine and the far ends of its ports
//! * [`network`]: paths, NATs and an eavesdropper
//! * [`book`], [`packet`]: what hosts send, and what they may receive
//! * [`trace`]: what happened
#![forbid(unsafe_code)]

pub mod book;
pub mod clock;
pub mod network;
pub mod packet;
pub mod rng;
pub mod site;
pub mod steered;
pub mod trace;
pub mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use patronus_crypto::{Duration, Time};

/// The virtual clock starts here: long after boot, so that subtraction has room.
pub const START: Time = Time::from_secs(1_000_000);

/// How to run a seed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Options {
    /// Steps with faults; none: as many as the seed says.
    pub steps: Option<usize>,
    /// Print every event as it happens.
    pub trace: bool,
}

/// What a run was like.
#[derive(Clone, Copy, Default, Debug)]
pub struct Summary {
    /// Packets that hosts sent.
    pub sent: u64,
    /// Packets that hosts received.
    pub received: u64,
    /// Packets among them that came in fragments.
    pub put_together: u64,
    /// ICMP errors that hosts received.
    pub errors: u64,
    /// Data messages on the network.
    pub datagrams: u64,
    /// Sessions of lanes in the end.
    pub in_lanes: u64,
    /// Datagrams lost, copied or damaged.
    pub harmed: u64,
    /// Sites that were restarted.
    pub restarts: u64,
    /// Time that passed inside.
    pub virtual_time: Duration,
    /// How long it took after the last fault until traffic flowed again.
    pub recovery: Duration,
    /// Of packets that were steered: those that had to arrive because they went by a good path,
    pub certain: u64,
    /// those that could have gone by a dead path that was not known as dead yet,
    pub tempted: u64,
    /// those that could have returned too early,
    pub held: u64,
    /// and those that went twice.
    pub doubled: u64,
}

impl Summary {
    /// Adds another run; of the recoveries the longest counts.
    pub fn add(&mut self, other: &Summary) {
        self.sent += other.sent;
        self.received += other.received;
        self.put_together += other.put_together;
        self.errors += other.errors;
        self.datagrams += other.datagrams;
        self.in_lanes += other.in_lanes;
        self.harmed += other.harmed;
        self.restarts += other.restarts;
        self.virtual_time += other.virtual_time;
        self.recovery = self.recovery.max(other.recovery);
        self.certain += other.certain;
        self.tempted += other.tempted;
        self.held += other.held;
        self.doubled += other.doubled;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} packets sent, {} received, {} errors, {} data messages, {} lanes, {} datagrams harmed, {} restarts, {} s of virtual time, recovery within {} s",
            self.sent,
            self.received,
            self.errors,
            self.datagrams,
            self.in_lanes,
            self.harmed,
            self.restarts,
            self.virtual_time.as_secs(),
            self.recovery.as_secs()
        )?;
        if self.certain > 0 {
            let Summary {
                certain,
                tempted,
                held,
                doubled,
                ..
            } = self;
            write!(
                f,
                "; steering: {certain} packets had to arrive, {tempted} met a dead path, {held} a hold, {doubled} went twice"
            )?;
        }
        Ok(())
    }
}

/// What did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The step in which it was noticed; behind the last one: in the recovery or at the end.
    pub step: usize,
    /// What it was.
    pub what: String,
    /// What happened before.
    pub events: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.events {
            writeln!(f, "  {event}")?;
        }
        write!(f, "in step {}: {}", self.step, self.what)
    }
}

/// Runs a seed of the [`world`].
pub fn run(seed: u64, options: &Options) -> Result<Summary, Failure> {
    guarded(|| world::World::new(seed, options).run())
}

/// A panic of the engine's is a failure like any other.
fn guarded(run: impl FnOnce() -> Result<Summary, Failure>) -> Result<Summary, Failure> {
    let outcome = catch_unwind(AssertUnwindSafe(run));
    outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
        Err(Failure {
            step: 0,
            what: format!("panic: {}", said.unwrap_or_default()),
            events: Vec::new(),
        })
    })
}
