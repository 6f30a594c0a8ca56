//! Two hundred seeds a day, and that a seed is a run.

use patronus_sim::{Options, Summary, run};

fn seeds(seeds: std::ops::Range<u64>) -> Summary {
    let mut sum = Summary::default();
    for seed in seeds {
        match run(seed, &Options::default()) {
            Ok(summary) => sum.add(&summary),
            Err(failure) => panic!("seed {seed}:\n{failure}\nagain: patronus-sim --seed {seed} --trace"),
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
    check(&seeds(0..100));
}

#[test]
fn the_second_hundred_seeds() {
    check(&seeds(100..200));
}

#[test]
fn a_seed_is_a_run() {
    for seed in [3, 4, 5] {
        let [one, other] = [0, 0].map(|_| run(seed, &Options::default()).expect("a seed that passes"));
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
    }
}
