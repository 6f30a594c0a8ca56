//! Lanes between two engines: the real workers and the real slow path.

mod hour;
mod pair;
mod paths;
mod steering;
mod stock;
mod withheld;

use patronus_crypto::{Duration, PublicKey};
use patronus_engine::stats::DropReason;
use patronus_sim::START;
use patronus_sim::site::PeerPlan;

use pair::{A, B, Kind, Pair, hear, kind, listen, ms, secs};

#[test]
fn lanes_of_every_path_open_by_themselves_and_carry() {
    for workers in [(1, 1), (2, 2), (1, 3), (3, 2)] {
        let mut pair = Pair::new(kind(workers.0, 2), kind(workers.1, 2));
        pair.run(secs(5));
        let lanes = 2 * workers.0.max(workers.1);
        let [at_a, at_b] = [A, B].map(|site| pair.open_lanes(site, Duration::ZERO));
        assert_eq!(at_a.len(), lanes, "{workers:?}");
        assert!(at_a.keys().eq(at_b.keys()), "the same ones");
        pair.carried.clear();
        pair.exchange();
        assert_eq!(pair.used(A, 100), [0, 1], "flows are spread over both links");
        // An hour later they are still there: rekeyed, kept alive.
        pair.run(secs(3600));
        let [at_a, at_b] = [A, B].map(|site| pair.open_lanes(site, secs(3400)));
        assert_eq!((at_a.len(), at_b.len()), (lanes, lanes));
        pair.exchange();
    }
}

/// The links between all groups: four paths whose delays differ by 200 ms, so that one session over all of them would lose what its
/// window has left behind. 60,000 packets of each direction, in 0.3 s.
#[test]
fn unequal_paths_drop_nothing_as_too_old() {
    let four = Kind {
        links: vec![(1, false), (1, false)],
        ..kind(2, 2)
    };
    let mut pair = Pair::new(four.clone(), four);
    pair.delay = Box::new(|here, there| match (here, there) {
        (0, 0) => ms(10),
        (0, _) => ms(75),
        (_, 0) => ms(140),
        _ => ms(210),
    });
    pair.run(secs(10));
    assert_eq!(pair.open_lanes(A, Duration::ZERO).len(), 8);
    pair.carried.clear();
    for sequence in 0..600 {
        for flow in 0..100 {
            pair.send(A, flow, sequence);
            pair.send(B, flow, sequence);
        }
        pair.run(Duration::from_micros(500));
    }
    pair.run(secs(2));
    for site in [A, B] {
        assert_eq!(pair.delivered[site].len(), 60_000);
        assert_eq!(pair.sites[site].dropped(DropReason::DecapReplay), 0);
        let mut next = [0; 100];
        for tag in &pair.delivered[site] {
            assert_eq!(
                tag.sequence,
                next[usize::from(tag.flow)],
                "in order within each flow"
            );
            next[usize::from(tag.flow)] += 1;
        }
    }
    assert_eq!(pair.used(A, 10_000), [0, 1]);
}

#[test]
fn a_link_that_goes_and_comes_back() {
    let mut pair = Pair::new(kind(2, 2), kind(1, 2));
    pair.run(secs(5));
    pair.sites[A].close_link(0);
    pair.run(ms(100));
    pair.carried.clear();
    pair.exchange();
    assert_eq!(pair.used(A, 1), [1]);
    pair.run(secs(2));
    for site in [A, B] {
        assert_eq!(pair.sites[site].core.lanes(pair.base(site)).count(), 2, "{site}");
    }
    let then = pair.now.since(START);
    pair.sites[A].open_link(0);
    pair.run(secs(15));
    assert_eq!(pair.sites[A].core.lanes(pair.base(A)).count(), 4);
    assert_eq!(pair.open_lanes(A, then).len(), 2, "those of that link are new");
    pair.exchange();
    assert_eq!(pair.used(A, 100), [0, 1]);
}

#[test]
fn either_side_starts_anew() {
    for restarted in [A, B] {
        let mut pair = Pair::new(kind(2, 2), kind(2, 2));
        pair.run(secs(5));
        pair.exchange();
        pair.restart(restarted);
        let then = pair.now.since(START);
        pair.run(secs(20));
        for site in [A, B] {
            assert_eq!(pair.open_lanes(site, then).len(), 4, "site {site} of {restarted}");
        }
        pair.exchange();
    }
}

/// Whoever removes the other and adds it again has forgotten everything about it, without having been started anew.
#[test]
fn a_site_that_forgets_the_other_is_told_again() {
    for forgetful in [A, B] {
        let mut pair = Pair::new(kind(2, 2), kind(1, 2));
        pair.run(secs(5));
        pair.sites[forgetful].remove_peer(1 - forgetful);
        pair.run(ms(500));
        pair.introduce(forgetful);
        let then = pair.now.since(START);
        pair.run(secs(20));
        for site in [A, B] {
            assert_eq!(pair.open_lanes(site, then).len(), 4, "site {site} of {forgetful}");
        }
        pair.exchange();
    }
}

/// A link that is away for a moment: the one side has lost its sessions, and the other one does not go on in them.
#[test]
fn a_link_that_flaps_leaves_no_half_open_lane() {
    for side in [A, B] {
        let mut pair = Pair::new(kind(1, 2), kind(2, 2));
        pair.run(secs(5));
        let then = pair.now.since(START);
        pair.sites[side].close_link(1);
        pair.sites[side].open_link(1);
        pair.run(secs(3));
        for site in [A, B] {
            assert_eq!(pair.open_lanes(site, then).len(), 2, "site {site}");
        }
        pair.exchange();
    }
}

#[test]
fn who_is_behind_a_nat_calls() {
    let natted = Kind {
        links: vec![(0, true), (1, false)],
        ..kind(1, 2)
    };
    for natted_side in [A, B] {
        let mut kinds = [kind(1, 2), kind(1, 2)];
        kinds[natted_side] = natted.clone();
        let [a, b] = kinds;
        let mut pair = Pair::new(a, b);
        pair.run(secs(20));
        assert_eq!(pair.open_lanes(A, Duration::ZERO).len(), 2, "{natted_side}");
        pair.exchange();
    }
    // Between two that cannot be called there is no path; by the other link there is.
    let mut pair = Pair::new(natted.clone(), natted);
    pair.run(secs(20));
    assert_eq!(pair.sites[A].core.lanes(pair.base(A)).count(), 1);
    assert_eq!(pair.open_lanes(A, Duration::ZERO).len(), 1);
    pair.exchange();
}

/// The NAT in front of a site forgets everything. Who is behind it has nothing to say, and the other one does: it is through again as soon as a probe comes from the new port,
/// whichever of the path's lanes that is in.
#[test]
fn a_nat_that_rebinds_costs_a_probe() {
    let natted = Kind {
        links: vec![(0, true), (1, true)],
        ..kind(2, 2)
    };
    let mut pair = Pair::new(natted, kind(2, 2));
    pair.run(secs(20));
    pair.exchange();
    for port in 0..10 {
        // At another moment between two probes each time.
        pair.run(ms(1000 + 37 * port));
        pair.delivered = [Vec::new(), Vec::new()];
        pair.rebind();
        let every = ms(10);
        for sequence in 0..200 {
            (0..16).for_each(|flow| pair.send(B, flow, sequence));
            pair.run(every);
        }
        pair.run(secs(1));
        for flow in 0..16 {
            let of_flow = pair.delivered[A].iter().filter(|tag| tag.flow == flow);
            let numbers: Vec<u32> = of_flow.map(|tag| tag.sequence).collect();
            let gap = every * *numbers.first().expect("it is through again");
            // A probe's interval of 500 ms, an eighth of it more, and the way.
            assert!(gap <= ms(600), "{gap:?}");
            assert_eq!(numbers.last(), Some(&199));
        }
        pair.exchange();
    }
}

/// The NAT gives out another port while packets of several lanes are under way, so that some are seen at one port and some at the next, all at once. Lanes follow each other, but
/// not in circles.
#[test]
fn lanes_that_are_seen_at_two_ports_at_once_settle() {
    let natted = Kind {
        links: vec![(0, true)],
        ..kind(3, 1)
    };
    let mut pair = Pair::new(natted, kind(3, 1));
    pair.run(secs(20));
    pair.exchange();
    for way in [ms(20), ms(19)] {
        pair.rebind();
        pair.delay = Box::new(move |_, _| way);
        (0..32).for_each(|flow| pair.send(A, flow, 0));
        pair.run(ms(1));
    }
    pair.run(secs(15));
    pair.exchange();
}

/// Configured as a remote on one side only, it is a peer like any other.
#[test]
fn a_stock_peer_has_a_base_session_and_no_lane() {
    let stock = Kind {
        remote: false,
        ..kind(1, 2)
    };
    let mut pair = Pair::new(kind(1, 2), stock);
    pair.run(secs(30));
    pair.exchange();
    assert_eq!(pair.sites[A].core.lanes(pair.base(A)).count(), 0);
    assert!(
        pair.sites[B].dropped(DropReason::DecapNotIp) >= 5,
        "hellos, and nothing else"
    );
    assert_eq!(pair.sites[B].core.device().counters().total(), 0);
}

/// A link that loses everything without a word: what is sent by it is lost until the silence is noticed, and then goes by the other one.
#[test]
fn a_silent_path_is_left() {
    let mut pair = Pair::new(kind(1, 2), kind(1, 2));
    pair.run(secs(5));
    pair.exchange();
    pair.dead.insert(1);
    let keep_sending = |pair: &mut Pair, seconds: u64| {
        for sequence in 0..seconds * 10 {
            for flow in 0..32 {
                pair.send(A, flow, sequence as u32);
                pair.send(B, flow, sequence as u32);
            }
            pair.run(ms(100));
        }
    };
    keep_sending(&mut pair, 20);
    pair.run(secs(1));
    pair.exchange();
    // It comes back, and is used again.
    pair.dead.clear();
    keep_sending(&mut pair, 60);
    pair.run(secs(1));
    pair.carried.clear();
    pair.exchange();
    assert_eq!(pair.used(A, 100), [0, 1]);
}

/// Half of the numbers are kept for peers. Lanes that found none are told of once, and added when others go.
#[test]
fn lanes_without_a_number_wait_for_one() {
    let (log, ear) = listen();
    let said = || hear(&ear).iter().filter(|line| line.contains("lane")).count();
    let short = Kind {
        peers: 2,
        ..kind(2, 2)
    };
    let mut pair = Pair::with_log(short, kind(2, 2), log);
    pair.run(secs(20));
    let lanes = |pair: &Pair, site: usize| pair.sites[site].core.lanes(pair.base(site)).count();
    assert_eq!([A, B].map(|site| lanes(&pair, site)), [2, 4]);
    assert_eq!(pair.open_lanes(A, Duration::ZERO).len(), 2);
    assert_eq!(said(), 1, "of two lanes");
    pair.exchange();
    // A second peer finds its number.
    let stranger = PeerPlan {
        key: PublicKey([7; 32]),
        endpoint: None,
        psk: [0; 32],
        keepalive: 0,
    };
    pair.sites[A].set_peer(7, &stranger);
    // The path whose lanes have numbers goes: those of the other one take them.
    pair.sites[A].close_link(0);
    pair.run(secs(20));
    assert_eq!(lanes(&pair, A), 2);
    let then = pair.now.since(START);
    pair.run(secs(300));
    assert_eq!(pair.open_lanes(A, then).len(), 2, "alive");
    assert_eq!(said(), 0);
    pair.exchange();
}

/// A remote that has more to say than its share is not listened to for a moment; the others are, and it is later.
#[test]
fn a_remote_that_talks_too_much_has_a_share() {
    let mut pair = Pair::new(kind(2, 2), kind(2, 2));
    pair.run(secs(5));
    for _ in 0..100 {
        pair.sites[B].close_link(1);
        pair.sites[B].open_link(1);
        pair.run(ms(1));
    }
    pair.run(ms(30));
    assert!(pair.sites[A].dropped(DropReason::ControlFlood) >= 50);
    let then = pair.now.since(START);
    pair.run(secs(20));
    assert_eq!(pair.open_lanes(A, then).len(), 2, "those of the link");
    pair.exchange();
}
