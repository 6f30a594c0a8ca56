//! Somebody on the way withholds initiations and delivers them later: out of order, and after a restart.

use patronus_crypto::messages::{self, Kind as Message};
use patronus_crypto::{Duration, PeerId, Refusal, Tag, WallClock};
use patronus_mem::Outer;
use patronus_sim::START;
use patronus_sim::network::Datagram;

use super::pair::{A, B, Pair, hear, kind, listen, ms, secs};

fn is_initiation(bytes: &[u8]) -> bool {
    messages::kind(bytes) == Ok(Message::Initiation)
}

/// What both sites know: sessions, where they are, when they were made.
type Known = Vec<(usize, Option<Tag>, PeerId, Option<WallClock>, Outer)>;

fn known(pair: &Pair) -> (Known, [usize; 2]) {
    let mut all = Known::new();
    for site in [A, B] {
        let core = &pair.sites[site].core;
        let base = pair.base(site);
        let lanes = core.lanes(base).map(|(tag, id)| (Some(tag), id));
        for (tag, id) in lanes.chain([(None, base)]) {
            let endpoint = core.peer(id).unwrap().endpoint;
            all.push((site, tag, id, core.device().last_handshake(id), endpoint));
        }
    }
    let indices = [A, B].map(|site| pair.sites[site].core.device().indices_in_use());
    (all, indices)
}

fn refused(pair: &Pair, site: usize) -> u64 {
    let counters = pair.sites[site].core.device().counters();
    counters.get(Refusal::OldTimestamp) + counters.get(Refusal::Withheld)
}

/// Delivers these, in both orders: each is refused, and nobody knows anything else than before.
#[track_caller]
fn come_to_nothing(pair: &mut Pair, stale: &[(usize, usize, Datagram)]) {
    let before = (known(pair), [A, B].map(|site| refused(pair, site)));
    let twice = stale.iter().chain(stale.iter().rev());
    twice.for_each(|message| pair.repeat(message.clone()));
    pair.run(ms(100));
    let count = |site| 2 * stale.iter().filter(|(to, ..)| *to == site).count() as u64;
    let after = [A, B].map(|site| refused(pair, site));
    let expected = [A, B].map(|site| before.1[site] + count(site));
    assert_eq!((known(pair), after), (before.0, expected));
    pair.exchange();
}

/// The first initiations, and those of the time when sessions are renewed; newer ones make the sessions. One side calls only, so that all are of
/// sessions that it has called for again.
#[test]
fn out_of_order_with_newer_ones() {
    let mut pair = Pair::new(kind(2, 2), kind(2, 2));
    pair.run(secs(5));
    let opener = pair.heard.last().map(|(to, ..)| 1 - to).unwrap();
    pair.heard.clear();
    for site in [A, B] {
        pair.restart(site);
    }
    let mut stale = Vec::new();
    for (held, free) in [(12, 10), (125, 20)] {
        pair.withheld = Box::new(|_, bytes| is_initiation(bytes));
        pair.run(secs(held));
        stale.append(&mut pair.heard);
        pair.withheld = Box::new(move |site, bytes| site != opener && is_initiation(bytes));
        pair.run(secs(free));
        pair.heard.clear();
    }
    stale.retain(|(to, ..)| *to != opener);
    assert!(stale.len() >= 2 + 5, "{}", stale.len());
    for site in [A, B] {
        assert_eq!(pair.open_lanes(site, Duration::ZERO).len(), 4, "at site {site}");
    }
    come_to_nothing(&mut pair, &stale);
    pair.withheld = Box::new(|_, _| false);
    pair.run(secs(100));
    come_to_nothing(&mut pair, &stale);
}

/// Whoever is started anew has newer timestamps; who stays remembers them.
#[test]
fn after_a_restart_of_who_sent_them() {
    for restarted in [A, B] {
        let mut pair = Pair::new(kind(2, 2), kind(1, 2));
        pair.run(secs(10));
        let mut stale = std::mem::take(&mut pair.heard);
        stale.retain(|(to, ..)| *to != restarted);
        pair.restart(restarted);
        stale.iter().for_each(|message| pair.repeat(message.clone()));
        let then = pair.now.since(START);
        pair.run(secs(20));
        for site in [A, B] {
            let open = pair.open_lanes(site, then).len();
            assert_eq!(open, 4, "site {site} of {restarted}");
        }
        come_to_nothing(&mut pair, &stale);
    }
}

/// Who was started anew remembers no timestamp. When it has got newer ones, what is older comes to nothing.
#[test]
fn after_a_restart_of_who_gets_them() {
    for restarted in [A, B] {
        let mut pair = Pair::new(kind(2, 2), kind(1, 2));
        pair.run(secs(10));
        let mut stale = std::mem::take(&mut pair.heard);
        stale.retain(|(to, ..)| *to == restarted);
        pair.run(secs(100));
        pair.restart(restarted);
        let then = pair.now.since(START);
        pair.run(secs(20));
        for site in [A, B] {
            let open = pair.open_lanes(site, then).len();
            assert_eq!(open, 4, "site {site} of {restarted}");
        }
        // It has called itself, and has heard of the other one nothing newer, until that calls.
        if pair.sites[restarted]
            .core
            .device()
            .counters()
            .get(Refusal::OldTimestamp)
            == 0
        {
            pair.run(secs(130));
        }
        stale.iter().for_each(|message| pair.repeat(message.clone()));
        pair.exchange();
        for site in [A, B] {
            let open = pair.open_lanes(site, then).len();
            assert_eq!(open, 4, "site {site} of {restarted}");
        }
        pair.run(secs(300));
        pair.exchange();
    }
}

/// Before it has heard anything newer it answers, as WireGuard does; but a session that nobody uses is none. It does not talk to a remote
/// that is not there, and when that is back, everything is as if nothing had been.
#[test]
fn before_a_restarted_site_has_heard_newer_ones() {
    let (log, ear) = listen();
    let mut pair = Pair::with_log(kind(2, 2), kind(1, 2), log);
    pair.run(secs(10));
    for restarted in [A, B] {
        let mut stale = std::mem::take(&mut pair.heard);
        stale.retain(|(to, ..)| *to == restarted);
        pair.withheld = Box::new(move |site, _| site != restarted);
        pair.restart(restarted);
        pair.carried.clear();
        stale.iter().for_each(|message| pair.repeat(message.clone()));
        pair.run(secs(20));
        let sent = pair.carried.keys().filter(|(site, _)| *site == restarted).count();
        assert_eq!(sent, 0, "in a session that nobody has confirmed");
        // The other one finds its paths silent, which is all that there is to say.
        let said = hear(&ear);
        assert!(
            said.iter().all(|line| line.contains(" path ")),
            "nor is it missed: {said:?}"
        );
        pair.withheld = Box::new(|_, _| false);
        let then = pair.now.since(START);
        pair.run(secs(40));
        for site in [A, B] {
            let open = pair.open_lanes(site, then).len();
            assert_eq!(open, 4, "site {site} of {restarted}");
        }
        pair.exchange();
    }
}

/// A lane's initiation that is repeated to a site that was started anew does not keep it from opening the lane itself.
#[test]
fn a_repeated_initiation_opens_no_lane() {
    let mut pair = Pair::new(kind(1, 2), kind(1, 2));
    pair.run(secs(5));
    let opener = pair.heard.last().map(|(to, ..)| 1 - to).unwrap();
    let other = 1 - opener;
    // Its last ones are those of lanes.
    let of_lanes: Vec<_> = std::mem::take(&mut pair.heard).split_off(1);
    pair.restart(other);
    // From now on the opener's initiations for lanes get lost, those of the base session do not.
    pair.run(ms(200));
    let then = pair.now.since(START);
    pair.withheld = Box::new(move |site, bytes| site == opener && is_initiation(bytes));
    of_lanes.iter().for_each(|message| pair.repeat(message.clone()));
    pair.run(secs(60));
    assert_eq!(pair.open_lanes(other, then).len(), 2, "by its own call");
    pair.exchange();
}
