//! An hour of traffic between two engines that nobody tells anything: after the start there is no control, no command and no new configuration.
//! What keeps sessions alive is the engine's alone: the slow-path core's timers, and what workers ask of it.

use patronus_crypto::Duration;
use patronus_engine::clock::Clock;

use super::pair::{A, B, Kind, Pair, kind, secs};

/// A lane is renewed at the first packet after REKEY_AFTER_TIME, 120 s (WireGuard, section 6.1), a keepalive after 10 s at the latest. A handshake takes
/// 0.1 s, a call of both sides at once another 5. It would die at 180 s.
const LANE_RENEWED: u64 = 120 + 10 + 5;
/// The base beside lanes that carry everything has only keepalives, every 25 s, and one side's put off the other's: whoever has begun its session renews it
/// after 125 s, whatever was sent.
const BASE_RENEWED: u64 = 125 + 5;
/// Packets a second and direction, one of each flow.
const FLOWS: u16 = 32;

/// Seconds since the oldest handshake of a site's lanes with the other, and since that of the base session.
fn ages(pair: &Pair, site: usize) -> (u64, u64) {
    let core = &pair.sites[site].core;
    let wall = pair.clock.now().wall.secs;
    let age = |id| wall - core.device().last_handshake(id).expect("a session").secs;
    let lanes = core.lanes(pair.base(site)).map(|(_, id)| age(id));
    (lanes.max().expect("a lane"), age(pair.base(site)))
}

/// Every second of an hour: as many lanes as there were, each with a session that was renewed in time, and every packet of both directions arrives
/// within its second.
fn an_hour(a: Kind, b: Kind, lanes: usize) {
    let mut pair = Pair::new(a, b);
    pair.run(secs(5));
    for site in [A, B] {
        assert_eq!(pair.open_lanes(site, Duration::ZERO).len(), lanes, "site {site}");
    }
    let mut oldest = 0;
    for second in 0..3600 {
        for flow in 0..FLOWS {
            pair.send(A, flow, second);
            pair.send(B, flow, second);
        }
        pair.run(secs(1));
        for site in [A, B] {
            assert_eq!(pair.sites[site].core.lanes(pair.base(site)).count(), lanes);
            let (lane, base) = ages(&pair, site);
            assert!(
                lane <= LANE_RENEWED && base <= BASE_RENEWED,
                "site {site}, second {second}: {lane} and {base} s old"
            );
            oldest = oldest.max(lane);
            let mut delivered = std::mem::take(&mut pair.delivered[site]);
            delivered.sort_by_key(|tag| tag.flow);
            let expected = (0..FLOWS).map(|flow| (flow, second));
            assert!(
                delivered.iter().map(|tag| (tag.flow, tag.sequence)).eq(expected),
                "site {site}, second {second}: {} of {FLOWS} arrived",
                delivered.len()
            );
        }
    }
    for site in [A, B] {
        assert!(pair.sites[site].downs().is_empty(), "site {site}");
    }
    assert!(oldest > 100, "sessions are renewed when they are due, not before");
}

#[test]
fn an_hour_without_control() {
    an_hour(kind(2, 2), kind(2, 2), 4);
}

/// Every path between links of one group, each with a lane for each worker.
#[test]
fn an_hour_without_control_over_four_paths() {
    let four = Kind {
        links: vec![(1, false), (1, false)],
        ..kind(3, 2)
    };
    an_hour(four.clone(), Kind { workers: 1, ..four }, 12);
}
