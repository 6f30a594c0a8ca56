//! What happened during the story, in steps of a tenth of a second.

use crate::failover::stream::{Arrival, INTERVAL};
use std::time::Duration;

/// The length of a step.
pub const STEP: Duration = Duration::from_millis(100);

/// One step.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Bytes of TCP that arrived.
    pub bytes: u64,
    /// Packets from a to b that each link was given, probes included.
    pub packets: Vec<u64>,
    /// Delays of the stream there and back together, the median; `None`: one of them did not come.
    pub round_trip: Option<Duration>,
    /// Datagrams of the stream from a to b that were sent in this step and never came.
    pub lost: u64,
}

/// Something that was done to a link.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Which, from 0 on.
    pub link: usize,
    pub from: Duration,
    pub to: Duration,
    /// Nothing goes through; else it is only bad.
    pub cut: bool,
    pub says: String,
}

/// Flows that go by another link than before.
#[derive(Clone, Debug)]
pub struct Move {
    pub at: Duration,
    pub says: String,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Record {
    pub links: Vec<String>,
    pub steps: Vec<Step>,
    pub troubles: Vec<Trouble>,
    pub moves: Vec<Move>,
}

impl Record {
    /// Fills in what the streams say, there and back. Times count from `start`.
    pub fn streams(&mut self, start: Duration, arrivals: &[Vec<Arrival>; 2]) {
        let mut delays = vec![[Vec::new(), Vec::new()]; self.steps.len()];
        for (direction, arrivals) in arrivals.iter().enumerate() {
            for arrival in arrivals {
                if let Some(step) = step(arrival.came, start).and_then(|at| delays.get_mut(at)) {
                    step[direction].push(arrival.came.saturating_sub(arrival.sent));
                }
            }
        }
        for (step, [there, back]) in self.steps.iter_mut().zip(&mut delays) {
            step.round_trip = median(there).zip(median(back)).map(|(there, back)| there + back);
        }
        for sent in lost(&arrivals[0]) {
            if let Some(step) = step(sent, start).and_then(|at| self.steps.get_mut(at)) {
                step.lost += 1;
            }
        }
    }

    /// Goodput of a step in megabits a second.
    pub fn goodput(step: &Step) -> f64 {
        step.bytes as f64 * 8.0 / STEP.as_secs_f64() / 1e6
    }
}

fn step(at: Duration, start: Duration) -> Option<usize> {
    Some((at.checked_sub(start)?.as_nanos() / STEP.as_nanos()) as usize)
}

fn median(values: &mut [Duration]) -> Option<Duration> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// When each of the datagrams was sent that lie between others and did not come.
fn lost(arrivals: &[Arrival]) -> Vec<Duration> {
    let mut came: Vec<(u64, Duration)> = arrivals
        .iter()
        .map(|arrival| (arrival.sequence, arrival.sent))
        .collect();
    came.sort_unstable();
    let between = |pair: &[(u64, Duration)]| {
        let (first, sent) = pair[0];
        (first + 1..pair[1].0).map(move |sequence| sent + INTERVAL * (sequence - first) as u32)
    };
    came.windows(2).flat_map(between).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn arrivals(sent: impl Iterator<Item = u64>, delay: u64) -> Vec<Arrival> {
        let arrival = |sequence| Arrival {
            sequence,
            sent: MS(1000 + sequence),
            came: MS(1000 + sequence + delay),
        };
        sent.map(arrival).collect()
    }

    #[test]
    fn what_the_streams_say_goes_into_its_step() {
        let mut record = Record {
            steps: vec![Step::default(); 4],
            ..Record::default()
        };
        // 100 datagrams a step; from 150 to 249 nothing comes through from a to b.
        let there = arrivals((0..150).chain(250..400), 5);
        let back = arrivals(0..400, 10);
        record.streams(MS(1000), &[there, back]);
        let lost: Vec<u64> = record.steps.iter().map(|step| step.lost).collect();
        assert_eq!(lost, [0, 50, 50, 0]);
        assert_eq!(record.steps[0].round_trip, Some(MS(15)));
        assert_eq!(record.steps[3].round_trip, Some(MS(15)));
    }

    #[test]
    fn a_step_without_arrivals_has_no_round_trip() {
        let mut record = Record {
            steps: vec![Step::default(); 2],
            ..Record::default()
        };
        record.streams(MS(1000), &[arrivals(0..90, 5), arrivals(0..180, 5)]);
        assert!(record.steps[0].round_trip.is_some());
        assert_eq!(record.steps[1].round_trip, None);
    }
}
