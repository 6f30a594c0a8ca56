//! Paths that die without a word: both sites notice, use the others, and come back.

use std::collections::BTreeSet;

use patronus_abi::channel::Event;
use patronus_crypto::Duration;
use patronus_engine::path::{PathState, PathWhy};

use super::pair::{A, B, Pair, kind, ms, secs};

/// As long as a path may be dead until both know: three intervals of 500 ms, an eighth more for jitter, and the way.
const NOTICED: Duration = Duration::from_millis(3 * 500 + 4 * 63 + 40);

/// The links of site A whose paths are up, as a site sees them.
fn up(pair: &Pair, site: usize) -> BTreeSet<usize> {
    let reports = pair.sites[site].core.path_reports(pair.base(site));
    let up = reports.into_iter().filter(|report| report.state == PathState::Up);
    up.map(|report| usize::from(report.path.local) - 1).collect()
}

fn why(pair: &Pair, site: usize, link: u8) -> PathWhy {
    let reports = pair.sites[site].core.path_reports(pair.base(site));
    let path = reports.iter().find(|report| report.path.local == link + 1);
    path.expect("it is there").why
}

/// A packet of each of many flows both ways, every 50 ms.
fn keep_sending(pair: &mut Pair, time: Duration) {
    for sequence in 0..time.as_millis() as u32 / 50 {
        for flow in 0..16 {
            pair.send(A, flow, sequence);
            pair.send(B, flow, sequence);
        }
        pair.run(ms(50));
    }
}

#[test]
fn a_dead_path_is_left_by_both_and_comes_back() {
    for workers in [(1, 1), (2, 2), (3, 1)] {
        let mut pair = Pair::new(kind(workers.0, 2), kind(workers.1, 2));
        pair.run(secs(5));
        keep_sending(&mut pair, secs(12));
        let both = BTreeSet::from([0, 1]);
        assert_eq!([A, B].map(|site| up(&pair, site)), [both.clone(), both.clone()]);
        pair.dead.insert(0);
        keep_sending(&mut pair, NOTICED);
        for site in [A, B] {
            assert_eq!(up(&pair, site), BTreeSet::from([1]), "{workers:?}");
            assert_eq!(pair.sites[site].downs().len(), 1);
        }
        // Long before the lanes themselves are found silent.
        pair.exchange();
        pair.dead.clear();
        keep_sending(&mut pair, secs(9));
        assert_eq!([A, B].map(|site| up(&pair, site)), [both.clone(), both]);
        assert!([A, B].iter().all(|site| pair.sites[*site].downs().is_empty()));
        pair.exchange();
    }
}

#[test]
fn a_path_that_is_dead_one_way_is_left_by_both() {
    for deaf in [A, B] {
        let mut pair = Pair::new(kind(2, 2), kind(1, 2));
        pair.run(secs(5));
        keep_sending(&mut pair, secs(12));
        pair.withheld = Box::new(move |site, link, _| site != deaf && link == 0);
        keep_sending(&mut pair, NOTICED);
        assert_eq!(
            [A, B].map(|site| up(&pair, site)),
            [BTreeSet::from([1]), BTreeSet::from([1])]
        );
        let (silent, told) = (why(&pair, deaf, 0), why(&pair, 1 - deaf, 0));
        assert_eq!((silent, told), (PathWhy::Silent, PathWhy::NotHeard));
        pair.exchange();
        pair.withheld = Box::new(|_, _, _| false);
        keep_sending(&mut pair, secs(9));
        assert!([A, B].iter().all(|site| up(&pair, *site).len() == 2));
    }
}

/// One of two paths takes only short datagrams, and loses none of those that hosts send: that longer ones were tried is no loss.
#[test]
fn sizes_that_do_not_pass_are_not_lost() {
    let mut pair = Pair::new(kind(1, 2), kind(2, 2));
    pair.withheld = Box::new(|_, link, datagram| link == 0 && datagram.len() > 1380);
    pair.run(secs(5));
    keep_sending(&mut pair, secs(30));
    for site in [A, B] {
        let reports = pair.sites[site].core.path_reports(pair.base(site));
        for report in &reports {
            assert!(report.mtu.is_some(), "{report:?}");
            assert!(report.in_sent > 500, "{report:?}");
            assert_eq!(report.in_sent, report.in_received, "{report:?}");
        }
        assert!(reports.iter().any(|report| report.mtu < Some(1380)));
    }
}

/// What is left when nothing is up: everything as if nobody probed.
#[test]
fn without_a_path_that_is_up_packets_go_on() {
    let mut pair = Pair::new(kind(2, 2), kind(2, 2));
    pair.run(secs(5));
    keep_sending(&mut pair, secs(12));
    pair.dead.extend([0, 1]);
    keep_sending(&mut pair, secs(5));
    assert!([A, B].iter().all(|site| up(&pair, *site).is_empty()));
    pair.carried.clear();
    keep_sending(&mut pair, secs(1));
    assert!(!pair.used(A, 100).is_empty(), "somewhere");
    pair.dead.clear();
    keep_sending(&mut pair, secs(9));
    assert!([A, B].iter().all(|site| up(&pair, *site).len() == 2));
    pair.exchange();
}

/// Nothing is known of what was the path before: both sites say that it is down, use the other one meanwhile, and say when it is up.
#[test]
fn a_path_whose_link_is_another_one_than_before_is_told_of() {
    let mut pair = Pair::new(kind(2, 2), kind(1, 2));
    pair.run(secs(5));
    keep_sending(&mut pair, secs(12));
    let told = |pair: &mut Pair, site: usize| -> Vec<(u8, PathState, PathWhy)> {
        let news = pair.sites[site].core.take_news().events;
        let of_paths = news.into_iter().filter_map(|event| match event {
            Event::PathState { path, state, why, .. } => Some((path.local, state, why)),
            _ => None,
        });
        of_paths.collect()
    };
    [A, B].iter().for_each(|site| drop(told(&mut pair, *site)));
    pair.replace_link(A, 0);
    pair.run(ms(30));
    for site in [A, B] {
        let gone = (1, PathState::Down, PathWhy::NoSession);
        assert_eq!(told(&mut pair, site), [gone], "site {site}");
        assert_eq!(up(&pair, site), BTreeSet::from([1]));
    }
    pair.exchange();
    keep_sending(&mut pair, secs(5));
    for site in [A, B] {
        let back = (1, PathState::Up, PathWhy::Heard);
        assert_eq!(told(&mut pair, site), [back], "site {site}");
        assert_eq!(up(&pair, site), BTreeSet::from([0, 1]));
    }
}
