//! Two hundred seeds a day, half as many of steering, and that a seed is a run.

use patronus_sim::{Failure, Options, Summary, run, steered};

type Run = fn(u64, &Options) -> Result<Summary, Failure>;

fn seeds(run: Run, option: &str, seeds: std::ops::Range<u64>) -> Summary {
    let mut sum = Summary::default();
    for seed in seeds {
        match run(seed, &Options::default()) {
            Ok(summary) => sum.add(&summary),
            Err(failure) => {
                panic!("seed {seed}:\n{failure}\nagain: patronus-sim {option}--seed {seed} --trace")
            }
        }
    }
    sum
}

fn check(sum: &Summary) {
    println!("{sum}");
    // The weather was as bad as meant, and the tunnels worked.
    assert!(sum.received * 2 > sum.sent && sum.received < sum.sent, "{sum}");
    assert!(sum.in_lanes > 100, "{sum}");
    assert!(
        sum.put_together > 100,
        "{} packets in fragments",
        sum.put_together
    );
    assert!(sum.harmed > 1000 && sum.restarts > 10, "{sum}");
}

#[test]
fn the_first_hundred_seeds() {
    check(&seeds(run, "", 0..100));
}

#[test]
fn the_second_hundred_seeds() {
    check(&seeds(run, "", 100..200));
}

fn check_steering(sum: &Summary) {
    println!("{sum}");
    // There was something to be sure of, and something to do wrong.
    assert!(sum.certain * 4 > sum.sent && sum.received < sum.sent, "{sum}");
    assert!(
        sum.tempted > 100 && sum.held > 1000 && sum.doubled > 1000,
        "{sum}"
    );
}

#[test]
fn the_first_fifty_seeds_of_steering() {
    check_steering(&seeds(steered::run, "--steering ", 0..50));
}

#[test]
fn the_second_fifty_seeds_of_steering() {
    check_steering(&seeds(steered::run, "--steering ", 50..100));
}

#[test]
fn a_seed_is_a_run() {
    for (seed, run) in [3, 4, 5].into_iter().zip([run as Run, run, steered::run]) {
        let [one, other] = [0, 0].map(|_| run(seed, &Options::default()).expect("a seed that passes"));
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
    }
}
