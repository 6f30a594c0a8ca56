//! Timers on a virtual clock (conformance items 47 to 58).

mod common;

use std::collections::BTreeSet;

use common::*;
use patronus_crypto::messages::Kind;
use patronus_crypto::timeouts::Timeouts;
use patronus_crypto::{Device, Duration, Limits, Outputs, Random, Refusal, Time, x25519};
use proptest::prelude::*;

/// A session between A and B, thirty seconds old and idle.
fn connected() -> Net {
    let mut net = Net::pair();
    net.connect();
    net.run(secs(30));
    net.log.clear();
    net
}

/// Loses everything from now on.
fn cut(net: &mut Net) {
    net.pass = Box::new(|_| false);
}

/// When a site sent messages of one kind, in time since `from`.
fn times(net: &Net, site: usize, kind: Kind, from: Time) -> Vec<Duration> {
    net.sent(site, kind)
        .iter()
        .map(|datagram| datagram.at.since(from))
        .collect()
}

fn within(d: Duration, from: Duration, to: Duration) -> bool {
    (from..=to).contains(&d)
}

/// R28: was counted from the last packet received. R34: was not done at all.
#[test]
fn c47_r28_r34_silence_after_data_starts_a_handshake_at_15_seconds() {
    let mut net = connected();
    cut(&mut net);
    let start = net.now;
    // From the first packet, however many follow.
    for _ in 0..140 {
        net.data(A, b"?");
        net.run(ms(100));
    }
    assert_eq!(net.count(A, Kind::Initiation), 0);
    net.run(secs(2));
    let sent = times(&net, A, Kind::Initiation, start);
    assert_eq!(sent.len(), 1);
    assert!(within(sent[0], secs(15), ms(15_333)), "{sent:?}");
    assert_eq!(net.link(A).sources_cleared, 1);
}

#[test]
fn c47_any_authentic_packet_stops_the_clock() {
    let mut net = connected();
    net.data(A, b"?");
    net.run(secs(14));
    // B's passive keepalive came at 10 s.
    assert_eq!(net.count(B, Kind::Data), 1);
    net.run(secs(60));
    assert_eq!(net.count(A, Kind::Initiation), 0);
    // And the next packet starts it anew.
    cut(&mut net);
    let start = net.now;
    net.data(A, b"?");
    net.run(secs(16));
    assert!(within(
        times(&net, A, Kind::Initiation, start)[0],
        secs(15),
        ms(15_333)
    ));
}

#[test]
fn c47_a_keepalive_expects_no_answer() {
    let mut net = connected();
    cut(&mut net);
    net.data(A, b"");
    net.run(secs(100));
    assert_eq!(net.count(A, Kind::Initiation), 0);
}

/// R17 and R31: the delay was not random, or as coarse as a timer tick.
#[test]
fn c47_c51_r17_r31_jitter_lies_between_0_and_333_ms() {
    let mut first = Vec::new();
    let mut retries = Vec::new();
    for seed in 0..60 {
        let mut net = Net::empty();
        net.add_site(1000 + seed, Limits::default(), x25519::default());
        net.add_site(2000 + seed, Limits::default(), x25519::default());
        net.introduce(A, B);
        net.introduce(B, A);
        net.connect();
        net.run(secs(30));
        net.log.clear();
        cut(&mut net);
        let start = net.now;
        net.data(A, b"?");
        net.run(secs(45));
        let sent = times(&net, A, Kind::Initiation, start);
        first.push(sent[0] - secs(15));
        retries.extend(sent.windows(2).map(|pair| pair[1] - pair[0] - secs(5)));
    }
    for jitters in [first, retries] {
        assert!(jitters.iter().all(|&jitter| jitter <= ms(333)));
        let mean = jitters.iter().sum::<Duration>() / jitters.len() as u32;
        assert!(within(mean, ms(130), ms(205)), "mean {mean:?}");
        assert!(
            jitters.iter().any(|&jitter| jitter > ms(280)) && jitters.iter().any(|&jitter| jitter < ms(50))
        );
        assert!(
            jitters.iter().collect::<BTreeSet<_>>().len() > 50,
            "not in steps of a tick"
        );
    }
}

/// R14: was counted from the last packet sent.
#[test]
fn c48_r14_data_is_answered_by_a_keepalive_after_10_seconds() {
    let mut net = connected();
    net.run(secs(20));
    let start = net.now;
    net.data(A, b"?");
    net.run(secs(40));
    let sent = net.sent(B, Kind::Data);
    assert_eq!(sent.len(), 1);
    assert!(sent[0].is_keepalive());
    assert_eq!(sent[0].at.since(start), secs(10) + net.latency);
}

#[test]
fn c48_more_data_meanwhile_makes_a_second_keepalive() {
    let mut net = connected();
    let start = net.now;
    net.data(A, b"1");
    net.run(secs(3));
    net.data(A, b"2");
    net.run(secs(3));
    net.data(A, b"3");
    net.run(secs(60));
    let sent = times(&net, B, Kind::Data, start);
    let latency = net.latency;
    assert_eq!(sent, [secs(10) + latency, secs(20) + latency]);
}

#[test]
fn c48_whatever_is_sent_makes_the_keepalive_unnecessary() {
    let mut net = connected();
    net.data(A, b"?");
    net.run(secs(9));
    net.data(B, b"!");
    net.run(secs(5));
    assert_eq!(net.count(B, Kind::Data), 1);
    // A handshake message is as good.
    let mut net = connected();
    let start = net.now;
    net.data(A, b"?");
    net.run(secs(9));
    let peer = net.link(B).peer;
    net.want_handshake(B, peer);
    net.run(secs(30));
    let keepalives = net.sent(B, Kind::Data);
    assert_eq!(keepalives.len(), 1, "the one that confirms the new key");
    assert!(keepalives[0].at.since(start) < secs(10));
}

/// R13: keepalives answered keepalives.
#[test]
fn c49_r13_two_idle_peers_are_silent() {
    let mut net = connected();
    net.data(A, b"?");
    net.run(secs(15));
    net.log.clear();
    net.run(secs(600));
    assert!(net.log.is_empty(), "{:?}", net.log);
    for site in [A, B] {
        assert_eq!(
            net.device(site).next_deadline(),
            None,
            "an idle peer costs nothing"
        );
    }
}

/// R19: rekeys for no reason.
#[test]
fn c50_r19_the_initiator_rekeys_on_send_after_120_seconds() {
    let mut net = Net::pair();
    net.connect();
    let made = net.link(A).keypairs.current().unwrap().created;
    while net.now.since(made) < secs(120) - ms(600) {
        net.data(A, b"?");
        net.data(B, b"!");
        net.run(ms(500));
    }
    assert_eq!(
        (net.count(A, Kind::Initiation), net.count(B, Kind::Initiation)),
        (0, 0)
    );
    net.run_to(made.after(secs(120)));
    net.data(B, b"the responder does not");
    net.run(ms(100));
    assert_eq!(
        (net.count(A, Kind::Initiation), net.count(B, Kind::Initiation)),
        (0, 0)
    );
    net.data(A, b"?");
    net.run(ms(100));
    assert_eq!(
        (net.count(A, Kind::Initiation), net.count(B, Kind::Initiation)),
        (1, 0)
    );
    // Once.
    for _ in 0..100 {
        net.data(A, b"?");
        net.data(B, b"!");
        net.run(ms(500));
    }
    assert_eq!(
        (net.count(A, Kind::Initiation), net.count(B, Kind::Initiation)),
        (1, 0)
    );
}

#[test]
fn c50_the_initiator_rekeys_on_receive_after_165_seconds_and_once() {
    let mut net = Net::pair();
    net.connect();
    let made = net.link(A).keypairs.current().unwrap().created;
    // A only receives; its keepalives are no data of its own, but they are sent: keep it quiet by not letting it owe any.
    net.run_to(made.after(secs(164)));
    net.data(B, b"!");
    net.run(ms(100));
    assert_eq!(net.count(A, Kind::Initiation), 0);
    net.run_to(made.after(secs(165)));
    net.pass = Box::new(|datagram| datagram.kind() == Kind::Data);
    net.data(B, b"!");
    net.run(ms(100));
    assert_eq!(net.count(A, Kind::Initiation), 1);
    for _ in 0..20 {
        net.data(B, b"!");
        net.run(ms(100));
    }
    assert_eq!(net.count(A, Kind::Initiation), 1);
}

/// R29: the responder initiated, or sent keepalives without a session. R30: two handshakes at a time.
#[test]
fn c50_r29_r30_the_responder_never_rekeys_by_time() {
    let mut net = Net::pair();
    net.connect();
    // B sends all the time, A never has anything to say: its passive keepalives renew the session.
    for _ in 0..1000 {
        net.data(B, b"!");
        net.run(ms(500));
    }
    assert_eq!(net.count(B, Kind::Initiation), 0);
    assert!((3..=5).contains(&net.count(A, Kind::Initiation)));
    assert_eq!(net.link(A).received.len(), 1000);
}

#[test]
fn c51_twenty_attempts_then_giving_up() {
    let mut net = Net::pair();
    cut(&mut net);
    let start = net.now;
    net.data(A, b"lost");
    net.run(secs(200));
    let sent = times(&net, A, Kind::Initiation, start);
    assert_eq!(sent.len(), 20);
    for (n, at) in (0..).zip(&sent) {
        assert!(
            within(*at, secs(5) * n, (secs(5) + ms(333)) * n),
            "retry {n} at {at:?}"
        );
    }
    assert_eq!(net.link(A).sources_cleared, 19, "at every retry");
    assert_eq!((net.link(A).staged_dropped, net.link(A).staged.len()), (1, 0));
    // Every attempt is a new one.
    let distinct: BTreeSet<_> = net
        .sent(A, Kind::Initiation)
        .iter()
        .map(|d| d.bytes[8..40].to_vec())
        .collect();
    assert_eq!(distinct.len(), 20);
    // New data starts over, with all attempts.
    net.log.clear();
    net.data(A, b"again");
    net.run(secs(200));
    assert_eq!(net.count(A, Kind::Initiation), 20);
}

#[test]
fn c51_more_data_while_trying_starts_the_count_again() {
    let mut net = Net::pair();
    cut(&mut net);
    net.data(A, b"1");
    net.run(secs(60));
    net.data(A, b"2");
    net.run(secs(60));
    assert_eq!(net.link(A).staged_dropped, 0);
    assert!(net.count(A, Kind::Initiation) > 20);
    net.run(secs(60));
    assert_eq!(net.link(A).staged_dropped, 1);
}

/// R37: a handshake was lost now and then.
#[test]
fn c51_r37_one_lost_message_costs_one_retry() {
    for lost in [Kind::Initiation, Kind::Response] {
        let mut net = Net::pair();
        let mut left = 1;
        net.pass = Box::new(move |datagram| {
            let lose = left > 0 && datagram.kind() == lost;
            left -= i32::from(lose);
            !lose
        });
        net.data(A, b"x");
        net.run(ms(5_500));
        assert_eq!(net.link(B).received, [b"x"], "{lost:?}");
        assert_eq!(net.count(A, Kind::Initiation), 2);
    }
}

/// R20: a response was dropped because it took long.
#[test]
fn r20_a_response_may_take_almost_as_long_as_a_retry() {
    let mut net = Net::pair();
    net.latency = ms(2_450);
    net.data(A, b"x");
    net.run(secs(8));
    assert_eq!(net.link(B).received, [b"x"]);
    assert_eq!(net.count(A, Kind::Initiation), 1);
}

#[test]
fn c52_at_most_one_initiation_in_five_seconds() {
    let mut net = Net::pair();
    cut(&mut net);
    let start = net.now;
    let peer = net.link(A).peer;
    for _ in 0..600 {
        net.want_handshake(A, peer);
        net.data(A, b"x");
        net.run(ms(100));
    }
    let sent = times(&net, A, Kind::Initiation, start);
    assert!(sent.len() <= 12);
    assert!(sent.windows(2).all(|pair| pair[1] - pair[0] >= secs(5)));
}

/// R53: the timers of the initiation we had out when we answered the peer's.
#[test]
fn c52_r53_no_initiation_within_five_seconds_of_a_response() {
    let mut net = Net::pair();
    // A's first initiation is lost; B calls two seconds later; its session is never confirmed because A's answer is lost.
    net.pass = Box::new(|datagram| {
        datagram.kind() == Kind::Initiation && datagram.from.ip().to_string() == "192.0.2.2"
    });
    let start = net.now;
    net.data(A, b"from a");
    net.run(secs(2));
    let peer = net.link(B).peer;
    net.want_handshake(B, peer);
    net.run(ms(2_999));
    net.pass = Box::new(|datagram| datagram.from.ip().to_string() == "192.0.2.1");
    net.run(ms(3_500));
    let sent = times(&net, A, Kind::Initiation, start);
    let answered = times(&net, A, Kind::Response, start)[0];
    assert_eq!(sent.len(), 2, "it goes on although the first retry was too early");
    assert!(
        within(sent[1] - answered, secs(5), ms(5_333)),
        "{sent:?} after {answered:?}"
    );
}

#[test]
fn c52_r53_a_confirmed_answer_ends_our_own_retries() {
    let mut net = Net::pair();
    let mut lost = false;
    net.pass = Box::new(move |_| std::mem::replace(&mut lost, true));
    net.data(A, b"from a");
    net.run(secs(2));
    net.data(B, b"from b");
    net.run(secs(60));
    assert_eq!(net.count(A, Kind::Initiation), 1);
    assert_eq!(net.link(B).received, [b"from a"]);
    assert_eq!(net.link(A).received, [b"from b"]);
    assert_eq!(net.device(A).indices_in_use(), 1);
}

/// R33 and R3: sending went on under a key that was almost or quite worn out.
#[test]
fn c53_r33_a_session_is_dead_at_180_seconds_both_ways() {
    let mut net = Net::pair();
    net.connect();
    let made = net.link(A).keypairs.current().unwrap().created;
    net.pass = Box::new(|datagram| datagram.kind() == Kind::Data);
    net.run_to(made.after(secs(180) - Duration::from_nanos(1)));
    net.data(A, b"the last one");
    assert_eq!(net.count(A, Kind::Data), 1);
    assert_eq!(net.count(A, Kind::Initiation), 1, "and a rekey with it");
    net.run_to(made.after(secs(180)));
    net.data(A, b"one too many");
    assert_eq!(net.count(A, Kind::Data), 1);
    // On arrival it is too old: B made its keys later than A received the answer, by the time it takes to travel.
    net.run(secs(1));
    let received = net.link(B).received.len();
    assert_eq!(
        received, 0,
        "arrives at 180 s and 20 ms, by B's clock at 180 s and 40 ms"
    );
}

#[test]
fn c54_everything_is_erased_540_seconds_after_the_last_session() {
    let mut net = Net::pair();
    net.connect();
    let made = net.link(A).keypairs.current().unwrap().created;
    cut(&mut net);
    net.run_to(made.after(secs(540) - ms(1)));
    assert_eq!(net.link(A).erased, 0);
    net.run(ms(1));
    assert_eq!(net.link(A).erased, 1);
    assert_eq!(net.device(A).indices_in_use(), 0);
    assert_eq!(net.device(A).next_deadline(), None);
}

#[test]
fn c54_a_handshake_in_progress_is_erased_too() {
    let mut net = Net::pair();
    cut(&mut net);
    net.data(A, b"x");
    net.run(secs(120));
    // Given up at about 100 s.
    assert_eq!(net.device(A).indices_in_use(), 1);
    net.run(secs(540));
    assert_eq!((net.device(A).indices_in_use(), net.link(A).erased), (0, 1));
}

#[test]
fn c54_each_new_session_starts_the_540_seconds_again() {
    let mut net = Net::pair();
    net.connect();
    for _ in 0..5 {
        net.run(secs(300));
        net.data(A, b"x");
    }
    net.run(secs(1));
    assert_eq!((net.link(A).erased, net.link(B).erased), (0, 0));
}

/// R15: was sent although there was traffic.
#[test]
fn c55_r15_a_persistent_keepalive_is_put_off_by_any_traffic() {
    let mut net = connected();
    let peer = net.link(A).peer;
    net.device(A).set_persistent_keepalive(peer, 25);
    net.run(ms(10));
    assert_eq!(net.count(A, Kind::Data), 1, "the first at once");
    // Received traffic counts, and so does sent.
    for _ in 0..3 {
        net.run(secs(8));
        net.data(B, b"!");
        net.run(secs(1));
        net.data(A, b"?");
    }
    assert_eq!(
        net.sent(A, Kind::Data)
            .iter()
            .filter(|datagram| datagram.is_keepalive())
            .count(),
        1
    );
    let last = net.now;
    net.log.clear();
    net.run(secs(65));
    let sent = times(&net, A, Kind::Data, last);
    // B answers the last data by a passive keepalive after 10 s, which puts ours off too.
    let latency = net.latency;
    let answered = secs(10) + latency * 2;
    assert_eq!(sent, [answered + secs(25), answered + secs(50)]);
}

#[test]
fn c55_a_handshake_puts_a_persistent_keepalive_off() {
    let mut net = connected();
    let peer = net.link(A).peer;
    net.device(A).set_persistent_keepalive(peer, 25);
    net.run(ms(10));
    let start = net.now;
    net.log.clear();
    net.run(secs(20));
    // It is lost, as are its repetitions; the session that there is still holds.
    net.pass = Box::new(|_| false);
    net.want_handshake(A, peer);
    net.run(secs(40));
    let initiations = times(&net, A, Kind::Initiation, start);
    let last = *initiations.last().expect("some");
    let sent = times(&net, A, Kind::Data, start);
    assert!(
        sent.iter().all(|at| *at >= secs(45)),
        "{sent:?} although there were handshake messages at {initiations:?}"
    );
    assert!(last > secs(40));
    net.run(secs(20));
}

#[test]
fn c55_without_a_session_it_starts_one() {
    let mut net = Net::pair();
    let peer = net.link(A).peer;
    net.device(A).set_persistent_keepalive(peer, 10);
    net.run(ms(100));
    assert!(net.link(B).keypairs.current().is_some());
    assert_eq!(net.device(A).persistent_keepalive(peer), 10);
    net.device(A).set_persistent_keepalive(peer, 0);
    net.log.clear();
    net.run(secs(530));
    assert!(net.log.is_empty(), "0 is off");
}

#[test]
fn c55_the_whole_range_of_intervals() {
    for interval in [1, 2, 65535] {
        let mut net = connected();
        let peer = net.link(A).peer;
        net.device(A).set_persistent_keepalive(peer, interval);
        net.run(ms(1));
        let start = net.now;
        net.log.clear();
        net.run(secs(u64::from(interval) + 1));
        let sent = net
            .log
            .iter()
            .find(|datagram| datagram.from == net.sites[A].addr)
            .unwrap();
        assert!(within(
            sent.at.since(start),
            secs(u64::from(interval)) - ms(1),
            secs(u64::from(interval))
        ));
    }
}

#[test]
fn c55_it_goes_on_calling_a_peer_that_does_not_answer() {
    let mut net = Net::pair();
    cut(&mut net);
    let peer = net.link(A).peer;
    net.device(A).set_persistent_keepalive(peer, 25);
    net.run(secs(1000));
    let sent = times(&net, A, Kind::Initiation, START);
    let longest = sent.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest <= ms(25_333), "{longest:?}");
    assert!(sent.last().unwrap() > &secs(970));
}

/// R35: timers ignored the time that the machine slept.
#[test]
fn c56_r35_after_a_suspend_the_key_is_old_and_a_handshake_follows_at_once() {
    let mut net = connected();
    net.now = net.now.after(secs(8 * 3600));
    net.step();
    net.data(A, b"awake");
    net.run(ms(100));
    assert_eq!(net.count(A, Kind::Initiation), 1);
    assert_eq!(net.link(B).received, [b"awake"]);
}

#[test]
fn c57_wall_clock_jumps_do_not_touch_timers() {
    let run = |jumps: bool| {
        let mut net = Net::pair();
        let peer = net.link(A).peer;
        net.device(A).set_persistent_keepalive(peer, 25);
        for n in 0..100 {
            if jumps {
                // Up to twenty days to either side.
                net.sites[A].wall_offset = (i64::from(n) * 7919 % 40 - 20) * 86_400;
                net.sites[B].wall_offset = (i64::from(n) * 104_729 % 40 - 20) * 86_400;
            }
            net.data(n as usize % 2, b"x");
            net.run(secs(7));
        }
        net.log
            .iter()
            .map(|datagram| (datagram.at, datagram.from, datagram.bytes.len()))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn c58_two_keepalive_peers_do_not_fight_over_who_initiates() {
    let mut net = Net::pair();
    for site in [A, B] {
        let peer = net.link(site).peer;
        net.device(site).set_persistent_keepalive(peer, 25);
        net.run(secs(3));
    }
    net.log.clear();
    net.run(secs(3600));
    let (a, b) = (net.count(A, Kind::Initiation), net.count(B, Kind::Initiation));
    // One handshake for each life of a key, by one side at a time.
    assert!((20..=32).contains(&(a + b)), "{a} and {b} handshakes in an hour");
    let mut starts: Vec<Time> = [A, B]
        .iter()
        .flat_map(|&site| net.sent(site, Kind::Initiation))
        .map(|datagram| datagram.at)
        .collect();
    starts.sort_unstable();
    assert!(starts.windows(2).all(|pair| pair[1].since(pair[0]) > secs(100)));
}

#[test]
fn c58_even_if_they_start_in_the_same_instant() {
    let mut net = Net::pair();
    for site in [A, B] {
        let peer = net.link(site).peer;
        net.device(site).set_persistent_keepalive(peer, 25);
    }
    net.run(secs(3600));
    let (a, b) = (net.count(A, Kind::Initiation), net.count(B, Kind::Initiation));
    assert!(a + b <= 64, "{a} and {b} handshakes in an hour");
    for site in [A, B] {
        assert!(net.link(site).keypairs.current().is_some());
    }
}

#[test]
fn the_test_hook_shortens_every_timer_and_lengthens_none() {
    let limits = Limits {
        timer_divisor: 6,
        ..Limits::default()
    };
    let mut net = Net::pair_with(limits, x25519::default());
    assert_eq!(*net.device(A).timeouts(), Timeouts::shortened(6));
    net.data(A, b"x");
    net.run(ms(100));
    net.log.clear();
    for _ in 0..120 {
        net.data(A, b"x");
        net.run(ms(500));
    }
    // Rekeys every 20 s instead of 120.
    assert_eq!(net.count(A, Kind::Initiation), 3 - 1);
    assert_eq!(net.link(B).received.len(), 121);
}

#[test]
fn ten_thousand_deadlines_at_once_are_worked_off_in_portions() {
    let mut net = Net::empty();
    let site = net.add_site(1, Limits::default(), x25519::default());
    let mut peers = Vec::new();
    for seed in 0..300 {
        let peer = net.add_peer(site, public_key(5000 + seed), None);
        net.device(site).set_persistent_keepalive(peer, 1);
        peers.push(peer);
    }
    let now = net.now_of(site);
    let mut out = Outputs::new();
    let mut sent = 0;
    for round in 0.. {
        assert!(round < 10);
        let site = &mut net.sites[site];
        site.device.poll(&now, &mut site.rng, &mut out);
        let portion = out.drain().count();
        assert!(portion <= 64);
        sent += portion;
        if site.device.next_deadline().is_none_or(|at| at > now.mono) {
            break;
        }
    }
    assert_eq!(sent, 300);
}

/// However many packets pass before the slow path comes to it, they cause one notice.
#[test]
fn a_wake_is_said_once() {
    use patronus_crypto::timers::{Traffic, Wake};
    let traffic = Traffic::default();
    assert_eq!(traffic.received(START, 32, false), Wake::No);
    assert_eq!(traffic.sent(START, 32, false), Wake::No);
    assert_eq!(traffic.sent(START, 100, true), Wake::Due);
    assert_eq!(traffic.sent(START, 100, true), Wake::No);
    assert_eq!(traffic.received(START, 32, false), Wake::No);
    assert_eq!(traffic.received(START, 100, true), Wake::No);
    assert_eq!(traffic.sent(START, 32, false), Wake::No);
}

#[test]
fn while_a_peer_is_watched_the_worker_is_left_alone() {
    use patronus_crypto::timers::Wake;
    let mut rng = Seeded(1);
    let net = Net::empty();
    let mut device = Device::new(Limits::default(), x25519::default(), net.now_at(0), &mut rng);
    let mut out = Outputs::new();
    device.set_private_key(Some(private_key(1)), &mut out);
    device.set_up(true, &mut out);
    let peer = device.add_peer(public_key(2)).unwrap();
    let traffic = device.traffic(peer).clone();
    assert_eq!(traffic.sent(START, 100, true), Wake::Due);
    device.watch(peer);
    let deadline = device.next_deadline().unwrap();
    // Not at 15 s: another timer may start meanwhile that runs out sooner.
    assert_eq!(deadline.since(START), secs(10));
    for n in 0..10 {
        let now = START.after(secs(n));
        assert_eq!(traffic.received(now, 100, true), Wake::No);
        assert_eq!(traffic.sent(now, 100, true), Wake::No);
    }
    // The deadline comes; there was an answer meanwhile, so it is only moved.
    let mut now = net.now_at(0);
    now.mono = deadline;
    device.poll(&now, &mut rng, &mut out);
    assert!(out.is_empty());
    assert_eq!(device.next_deadline().unwrap().since(deadline), secs(10));
    // When it comes to nothing, the worker is on its own again.
    assert_eq!(traffic.received(deadline, 32, false), Wake::No);
    now.mono = device.next_deadline().unwrap();
    device.poll(&now, &mut rng, &mut out);
    assert_eq!(device.next_deadline(), None);
    assert_eq!(traffic.sent(now.mono, 100, true), Wake::Due);
    assert_eq!(device.counters().get(Refusal::ClockAhead), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the network does to two sites, the rules hold, and soon after it has come to its senses data flows again.
    #[test]
    fn c51_c52_any_loss_delay_and_load_is_survived(seed in any::<u64>(), loss in 0..100u32, minutes in 1..20u64) {
        let mut net = Net::pair();
        let mut chance = Seeded(seed);
        let mut fate = Seeded(seed ^ 0xffff);
        net.pass = Box::new(move |_| fate.below(100) >= loss);
        let end = net.now.after(secs(60 * minutes));
        while net.now < end {
            match chance.below(12) {
                0..=3 => net.data(A, b"a"),
                4..=7 => net.data(B, b"b"),
                8 => net.latency = ms(u64::from(chance.below(3000))),
                9 => net.sites[chance.below(2) as usize].queue_len = 512 * chance.below(2) as usize,
                10 => {
                    let site = chance.below(2) as usize;
                    let peer = net.link(site).peer;
                    net.device(site).set_persistent_keepalive(peer, chance.u32() as u16 % 30);
                }
                _ => net.run(secs(u64::from(chance.below(200)))),
            }
            net.run(ms(u64::from(chance.below(5000))));
            for site in [A, B] {
                prop_assert!(net.device(site).indices_in_use() <= 4);
            }
        }
        for site in [A, B] {
            let sent = times(&net, site, Kind::Initiation, START);
            prop_assert!(sent.windows(2).all(|pair| pair[1] - pair[0] >= secs(5)), "initiations too close: {sent:?}");
        }
        net.pass = Box::new(|_| true);
        net.latency = ms(20);
        net.sites.iter_mut().for_each(|site| site.queue_len = 0);
        // What is under way runs into its 15 seconds of silence, a retry and at worst another.
        net.run(secs(30));
        for site in [A, B] {
            net.link_mut(site).received.clear();
        }
        for _ in 0..25 {
            net.data(A, b"after all");
            net.data(B, b"after all");
            net.run(secs(1));
        }
        for site in [A, B] {
            let got = net.link(site).received.len();
            prop_assert!(got >= 5, "{got} packets in 25 seconds");
        }
    }
}
