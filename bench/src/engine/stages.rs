//! What packets cost by stage, from the engine's own counters.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use patronus_engine::stats::{Stage, WorkerStats};
use patronus_mem::cycles;

/// Nanoseconds for each packet that a stage took in, by the stage's name; of stages that took none, nothing.
pub type Stages = BTreeMap<&'static str, f64>;

/// Packets and cycles of each stage.
#[derive(Clone, Default)]
pub struct Counted(Vec<(u64, u64)>);

impl Counted {
    /// What workers have counted so far, added up.
    pub fn of<'a>(workers: impl IntoIterator<Item = &'a WorkerStats>) -> Counted {
        let mut counted = Counted(vec![(0, 0); Stage::ALL.len()]);
        for stats in workers {
            for (sum, stage) in counted.0.iter_mut().zip(Stage::ALL) {
                let stage = stats.stage(*stage);
                sum.0 += stage.packets.get();
                sum.1 += stage.cycles.get();
            }
        }
        counted
    }

    /// What each packet cost since `before`.
    pub fn since(&self, before: &Counted) -> Stages {
        let stages = self.0.iter().zip(&before.0).zip(Stage::ALL);
        let costs = stages.map(|((after, before), stage)| {
            let (packets, cycles) = (after.0 - before.0, after.1 - before.1);
            (
                stage.name(),
                packets,
                cycles as f64 * ns_a_cycle() / packets as f64,
            )
        });
        let costs = costs.filter(|(_, packets, _)| *packets > 0);
        costs.map(|(name, _, ns)| (name, ns)).collect()
    }
}

/// Nanoseconds of a cycle of the counter that stages are measured by.
fn ns_a_cycle() -> f64 {
    static MEASURED: OnceLock<f64> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let (start, before) = (Instant::now(), cycles());
        std::thread::sleep(Duration::from_millis(50));
        start.elapsed().as_nanos() as f64 / cycles().saturating_sub(before).max(1) as f64
    })
}

#[cfg(test)]
mod tests {
    use patronus_engine::stats::Lap;

    use super::*;

    #[test]
    fn stages_cost_what_they_took_between_two_looks() {
        let stats = WorkerStats::default();
        let work = |packets, time| {
            let lap = Lap::start();
            std::thread::sleep(time);
            stats.burst(Stage::Route, packets, lap);
        };
        work(1, Duration::from_millis(200));
        let before = Counted::of([&stats]);
        work(10, Duration::from_millis(20));
        let stages = Counted::of([&stats]).since(&before);
        assert_eq!(stages.keys().copied().collect::<Vec<_>>(), ["route"]);
        // Only what came after the first look counts; where there is no counter that is nothing.
        assert!(stages["route"] < 20e6, "{stages:?}");
        assert!(cycles() == 0 || stages["route"] > 1e6, "{stages:?}");
    }
}
