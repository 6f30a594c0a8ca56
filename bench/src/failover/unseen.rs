//! A link gets worse, and only probes show it: a packet now and then keeps the paths in use and is too rare to tell anything. When flows of the class go by another
//! path is in the decision log of site a.

use super::course::{Fault, Ground, Trial};
use super::rig::Rig;
use super::stream::Stream;
use patronus_netns::{Error, Result};
use serde_json::Value;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// From one packet to the next.
const RARELY: Duration = Duration::from_millis(500);
/// Until both sides probe as often as they do where packets go, and have measured for a while.
const WARM: Duration = Duration::from_secs(12);
/// From the end of a fault to the next one.
const CALM: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

/// Lets the fault happen so many times to the path that the class goes by, or until something goes wrong.
pub fn trials(rig: &mut Rig, fault: &Fault, class: &str, runs: u32) -> (Vec<Trial>, Option<Error>) {
    let mut trials = Vec::new();
    let outcome = run(rig, fault, class, runs, &mut trials);
    (trials, outcome.err())
}

fn run(rig: &mut Rig, fault: &Fault, class: &str, runs: u32, trials: &mut Vec<Trial>) -> Result<()> {
    let clock = Instant::now();
    let [a, b] = rig.sites();
    let _streams = [
        Stream::start(a, b, clock, RARELY)?,
        Stream::start(b, a, clock, RARELY)?,
    ];
    std::thread::sleep(WARM);
    for number in 1..=runs {
        let decided = rig.decisions(0);
        let wire = decided.iter().rev().find_map(|decision| goes_to(decision, class));
        let wire = wire.ok_or_else(|| rig.told(&Error::new(format!("class {class} goes nowhere"))))?;
        let begun = now();
        rig.command(wire, &fault.begin)?;
        let start = Instant::now();
        let mut moved = None;
        while moved.is_none() && start.elapsed() < fault.limit {
            std::thread::sleep(LOOK);
            let decided = rig.decisions(0);
            let newer = decided.iter().rev().map_while(|decision| {
                let at = Duration::try_from_secs_f64(decision["at"].as_f64()?).ok()?;
                (at >= begun).then_some((at, decision))
            });
            let moves = newer.filter(|(_, decision)| goes_to(decision, class).is_some_and(|to| to != wire));
            moved = moves.last().map(|(at, _)| at - begun);
        }
        rig.command(wire, &fault.end)?;
        trials.push(Trial {
            moved,
            ..Trial::default()
        });
        eprintln!("{number} of {runs}: {moved:?}");
        std::thread::sleep(CALM);
    }
    Ok(())
}

/// The time since 1970, as in the log.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The wire by which the class goes from this decision on, if it is one about that.
fn goes_to(decision: &Value, class: &str) -> Option<usize> {
    let is_it = decision["kind"] == "moved" && decision["class"] == class;
    let path = decision["to"].as_str().filter(|_| is_it)?;
    // A path is called by its links' numbers, which count from 1 and are the same at both ends.
    path.split('-').next()?.parse::<usize>().ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_say_by_which_wire_a_class_goes() {
        let wire = |text: &str| goes_to(&serde_json::from_str(text).unwrap(), "stream");
        assert_eq!(
            wire(r#"{"kind":"moved","class":"stream","from":"1-1","to":"3-3"}"#),
            Some(2)
        );
        assert_eq!(
            wire(r#"{"kind":"moved","class":"voice","from":"1-1","to":"3-3"}"#),
            None
        );
        assert_eq!(wire(r#"{"kind":"down","path":"1-1"}"#), None);
        assert_eq!(wire(r#"{"kind":"moved","class":"stream","from":"1-1"}"#), None);
    }
}
