//! Keypairs: when a key may be used, when it is to be replaced, and the three places a peer's sessions stand in.

use patronus_crypto::aead::{self, Job, TAG};
use patronus_crypto::keypair::{Keypair, Keypairs, Reject, Session};
use patronus_crypto::timeouts::{REJECT_AFTER_MESSAGES, Timeouts};
use patronus_crypto::{Duration, PeerId, Time};
use proptest::prelude::*;

const START: Time = Time::from_secs(1000);

fn at(seconds: u64) -> Time {
    START.after(Duration::from_secs(seconds))
}

fn keypair(local_index: u32, initiator: bool) -> Box<Keypair> {
    let mut keypair = Keypair::vacant(8192);
    let session = Session {
        peer: PeerId(3),
        local_index,
        remote_index: !local_index,
        initiator,
        created: START,
    };
    keypair.arm(session, &Timeouts::protocol(), &[1; 32], &[2; 32]);
    keypair
}

#[test]
fn c31_counters_start_at_zero_and_never_repeat() {
    let mut keypair = keypair(1, true);
    for expected in 0..1000 {
        assert_eq!(keypair.next_counter(START), Some(expected));
    }
    assert_eq!(keypair.sent(), 1000);
}

#[test]
fn c33_counters_at_the_limit_are_not_opened() {
    let keypair = keypair(1, true);
    assert_eq!(keypair.may_receive(REJECT_AFTER_MESSAGES - 1, START), Ok(()));
    for counter in [REJECT_AFTER_MESSAGES, REJECT_AFTER_MESSAGES + 1, u64::MAX] {
        assert_eq!(keypair.may_receive(counter, START), Err(Reject::CounterLimit));
    }
}

#[test]
fn c53_a_key_dies_at_180_seconds_both_ways() {
    let mut pair = keypair(1, false);
    let last = Time(at(180).0 - 1);
    assert!(pair.next_counter(last).is_some());
    assert_eq!(pair.may_receive(7, last), Ok(()));
    assert!(!pair.sending_expired(last));
    assert_eq!(pair.may_receive(7, at(180)), Err(Reject::Expired));
    assert!(pair.sending_expired(at(180)));
    assert_eq!(pair.next_counter(at(180)), None);
    // Dead for sending is dead, even should a clock go back.
    assert_eq!(pair.next_counter(START), None);
}

/// The age is looked at for every packet, so a burst that straddles the moment is cut in it.
#[test]
fn c53_a_key_dies_in_the_middle_of_a_burst() {
    let mut pair = keypair(1, true);
    let burst = (0..8).map(|n| Time(at(180).0 - 4 + n));
    let counters: Vec<_> = burst.map(|now| pair.next_counter(now)).collect();
    assert_eq!(
        counters,
        [Some(0), Some(1), Some(2), Some(3), None, None, None, None]
    );
}

#[test]
fn c56_time_asleep_counts() {
    // Time is the boot-time clock's: after a night's sleep the key is a night old.
    let mut pair = keypair(1, true);
    assert_eq!(pair.may_receive(0, at(8 * 3600)), Err(Reject::Expired));
    assert_eq!(pair.next_counter(at(8 * 3600)), None);
}

#[test]
fn c74_a_clock_that_runs_backwards_is_no_age() {
    let mut pair = keypair(1, true);
    let before = Time(0);
    assert_eq!(pair.next_counter(before), Some(0));
    assert_eq!(pair.may_receive(0, before), Ok(()));
    assert!(!pair.rekey_due_on_send(before));
    assert!(!pair.rekey_due_on_receive(before));
    assert!(!pair.sending_expired(before));
}

#[test]
fn c50_initiator_rekeys_on_send_at_120_seconds() {
    let mut pair = keypair(1, true);
    assert!(!pair.rekey_due_on_send(Time(at(120).0 - 1)));
    assert!(pair.rekey_due_on_send(at(120)));
    let mut pair = keypair(1, false);
    assert!(
        !pair.rekey_due_on_send(at(179)),
        "a responder never rekeys by time"
    );
}

/// While a rekey is due it is asked for again, but not with every packet.
#[test]
fn c50_a_rekey_that_is_due_is_asked_for_again() {
    let mut pair = keypair(1, true);
    let second = Duration::from_secs(1).as_nanos() as u64;
    let asked = (0..1000)
        .filter(|n| pair.rekey_due_on_send(Time(at(120).0 + n * second / 1000)))
        .count();
    assert_eq!(asked, 4, "every 5 s / 16, within one second");
    assert!(pair.rekey_due_on_send(at(125)));
    let pause = Duration::from_secs(5).as_nanos() as u64 / 16;
    assert!(!pair.rekey_due_on_send(Time(at(125).0 + pause - 1)));
    assert!(pair.rekey_due_on_send(Time(at(125).0 + pause)));
}

#[test]
fn c50_initiator_rekeys_on_receive_at_165_seconds_once() {
    let mut pair = keypair(1, true);
    assert!(!pair.rekey_due_on_receive(Time(at(165).0 - 1)));
    assert!(pair.rekey_due_on_receive(at(165)));
    assert!(!pair.rekey_due_on_receive(at(166)));
    assert!(!pair.rekey_due_on_receive(at(179)));
    let mut pair = keypair(1, false);
    assert!(
        !pair.rekey_due_on_receive(at(179)),
        "a responder never rekeys by time"
    );
}

#[test]
fn shortened_times_shorten_all_of_it() {
    let mut pair = Keypair::vacant(128);
    let session = Session {
        peer: PeerId(0),
        local_index: 1,
        remote_index: 2,
        initiator: true,
        created: START,
    };
    pair.arm(session, &Timeouts::shortened(10), &[1; 32], &[2; 32]);
    assert!(!pair.rekey_due_on_send(at(11)));
    assert!(pair.rekey_due_on_send(at(12)));
    assert!(pair.rekey_due_on_receive(at(17)));
    assert!(pair.next_counter(at(17)).is_some());
    assert_eq!(pair.may_receive(0, at(18)), Err(Reject::Expired));
    assert_eq!(pair.next_counter(at(18)), None);
}

#[test]
fn c32_a_copy_in_the_same_burst_is_accepted_once() {
    let mut pair = keypair(1, true);
    assert_eq!(pair.may_receive(4, START), Ok(()));
    assert_eq!(pair.may_receive(4, START), Ok(()), "asking marks nothing");
    assert!(pair.accept(4));
    assert!(!pair.accept(4));
    assert_eq!(pair.may_receive(4, START), Err(Reject::Replayed));
    assert_eq!(pair.may_receive(5, START), Ok(()));
}

#[test]
fn c75_a_wiped_keypair_has_no_keys_and_no_use() {
    let mut pair = keypair(1, true);
    pair.accept(9);
    pair.next_counter(START);
    assert_eq!((**pair.send_key(), **pair.receive_key()), ([1; 32], [2; 32]));
    pair.wipe();
    assert_eq!((**pair.send_key(), **pair.receive_key()), ([0; 32], [0; 32]));
    assert!(!pair.rekey_due_on_send(at(179)));
    assert!(!pair.rekey_due_on_receive(at(179)));
    assert_eq!(
        pair.may_receive(10, START),
        Err(Reject::Expired),
        "an all-zero key opens nothing"
    );
    assert!(pair.sending_expired(START));
    assert_eq!(pair.next_counter(START), None);
}

#[test]
fn a_vacant_keypair_has_no_use() {
    let mut pair = Keypair::vacant(128);
    assert_eq!(pair.next_counter(Time(0)), None);
    assert_eq!(pair.may_receive(0, Time(0)), Err(Reject::Expired));
    assert!(pair.sending_expired(Time(0)));
}

/// A box that is used again is as good as new.
#[test]
fn an_armed_again_keypair_is_a_new_one() {
    let mut pair = keypair(1, true);
    pair.next_counter(START);
    assert!(pair.rekey_due_on_send(at(170)) && pair.rekey_due_on_receive(at(170)));
    assert_eq!(pair.next_counter(at(180)), None);
    for counter in 0..100 {
        pair.accept(counter);
    }
    pair.wipe();
    let session = Session {
        peer: PeerId(8),
        local_index: 5,
        remote_index: 6,
        initiator: true,
        created: at(500),
    };
    pair.arm(session, &Timeouts::protocol(), &[3; 32], &[4; 32]);
    assert_eq!(
        (pair.peer, pair.local_index, pair.remote_index),
        (PeerId(8), 5, 6)
    );
    assert_eq!((**pair.send_key(), **pair.receive_key()), ([3; 32], [4; 32]));
    assert_eq!(pair.next_counter(at(500)), Some(0));
    assert_eq!(pair.may_receive(0, at(500)), Ok(()));
    assert!(pair.accept(0));
    assert!(pair.rekey_due_on_send(at(620)));
    assert!(pair.rekey_due_on_receive(at(665)));
    // Not even the pause between two requests is carried over.
    pair.arm(session, &Timeouts::protocol(), &[3; 32], &[4; 32]);
    assert!(pair.rekey_due_on_send(at(620)));
}

/// The local indices in `previous`, `current` and `next`.
fn places(pairs: &Keypairs) -> [Option<u32>; 3] {
    [pairs.previous(), pairs.current(), pairs.next()].map(|pair| pair.map(|pair| pair.local_index))
}

fn indices(retired: impl IntoIterator<Item = Box<Keypair>>) -> Vec<u32> {
    let mut indices: Vec<_> = retired.into_iter().map(|pair| pair.local_index).collect();
    indices.sort_unstable();
    indices
}

#[test]
fn c17_initiators_session_is_current_at_once() {
    let mut pairs = Keypairs::new();
    assert!(pairs.install(keypair(1, true)).is_empty());
    assert_eq!(places(&pairs), [None, Some(1), None]);
    assert!(pairs.install(keypair(2, true)).is_empty());
    assert_eq!(places(&pairs), [Some(1), Some(2), None]);
    assert_eq!(indices(pairs.install(keypair(3, true))), [1]);
    assert_eq!(places(&pairs), [Some(2), Some(3), None]);
}

#[test]
fn c16_responder_sends_only_after_a_packet_under_the_new_key() {
    let mut pairs = Keypairs::new();
    assert!(pairs.install(keypair(1, false)).is_empty());
    assert_eq!(places(&pairs), [None, None, Some(1)]);
    assert!(pairs.current_mut().is_none(), "nothing to send under yet");
    assert!(pairs.by_index(1).is_some(), "but it receives");
    let (confirmed, displaced) = pairs.received_under(1);
    assert!(confirmed && displaced.is_none());
    assert_eq!(places(&pairs), [None, Some(1), None]);
    assert!(!pairs.received_under(1).0, "only the first packet confirms");
}

#[test]
fn c17_responders_session_waits_and_displaces_previous_and_next() {
    let mut pairs = Keypairs::new();
    pairs.install(keypair(1, true));
    pairs.install(keypair(2, true));
    assert_eq!(
        indices(pairs.install(keypair(3, false))),
        [1],
        "previous makes way"
    );
    assert_eq!(places(&pairs), [None, Some(2), Some(3)]);
    assert_eq!(
        indices(pairs.install(keypair(4, false))),
        [3],
        "an unused next makes way"
    );
    assert_eq!(places(&pairs), [None, Some(2), Some(4)]);
    let (confirmed, displaced) = pairs.received_under(4);
    assert!(confirmed && displaced.is_none());
    assert_eq!(places(&pairs), [Some(2), Some(4), None]);
}

#[test]
fn c17_initiators_session_demotes_an_unused_next() {
    let mut pairs = Keypairs::new();
    pairs.install(keypair(1, true));
    pairs.install(keypair(2, true));
    pairs.install(keypair(3, false));
    assert_eq!(places(&pairs), [None, Some(2), Some(3)]);
    assert_eq!(indices(pairs.install(keypair(4, true))), [2]);
    assert_eq!(places(&pairs), [Some(3), Some(4), None]);
    // A packet under the demoted session still opens, but moves nothing.
    assert!(pairs.by_index(3).is_some());
    assert!(!pairs.received_under(3).0);
    assert_eq!(places(&pairs), [Some(3), Some(4), None]);
}

#[test]
fn c17_packets_under_previous_still_open_until_the_fourth_key() {
    let mut pairs = Keypairs::new();
    pairs.install(keypair(1, false));
    pairs.received_under(1);
    pairs.install(keypair(2, false));
    pairs.received_under(2);
    assert_eq!(places(&pairs), [Some(1), Some(2), None]);
    assert_eq!(pairs.by_index(1).unwrap().may_receive(0, START), Ok(()));
    assert!(!pairs.received_under(1).0);
    assert!(!pairs.received_under(2).0);
    assert!(!pairs.received_under(99).0);
    assert_eq!(indices(pairs.install(keypair(3, false))), [1]);
    assert!(pairs.by_index(1).is_none());
    let (confirmed, displaced) = pairs.received_under(3);
    assert!(confirmed && displaced.is_none());
    assert_eq!(places(&pairs), [Some(2), Some(3), None]);
}

#[test]
fn c18_expired_sending_still_receives() {
    let mut pairs = Keypairs::new();
    pairs.install(keypair(1, true));
    pairs.install(keypair(2, true));
    pairs.install(keypair(3, false));
    pairs.expire_sending();
    let current = pairs.current_mut().unwrap();
    assert!(current.sending_expired(START));
    assert_eq!(current.next_counter(START), None);
    assert_eq!(current.may_receive(0, START), Ok(()));
    assert!(
        !current.rekey_due_on_send(at(150)),
        "a session that sends nothing asks for nothing"
    );
    pairs.received_under(3);
    assert_eq!(pairs.current_mut().unwrap().next_counter(START), None);
    // The next handshake is not touched by it.
    pairs.install(keypair(4, true));
    assert_eq!(pairs.current_mut().unwrap().next_counter(START), Some(0));
}

#[test]
fn c54_clearing_takes_every_session_out() {
    let mut pairs = Keypairs::new();
    assert!(pairs.clear().is_empty());
    pairs.install(keypair(1, true));
    pairs.install(keypair(2, false));
    assert_eq!(indices(pairs.clear()), [1, 2]);
    assert_eq!(places(&pairs), [None; 3]);
    assert!(pairs.by_index(1).is_none() && pairs.current().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens in whatever order: every keypair is in one place or given back, never lost and never twice, and
    /// a responder's session is never sent under before it was confirmed.
    #[test]
    fn c17_no_keypair_is_lost(events in prop::collection::vec((0u8..8, any::<prop::sample::Index>()), 1..60)) {
        let mut pairs = Keypairs::new();
        let mut alive = std::collections::BTreeSet::new();
        let mut confirmed = std::collections::BTreeSet::new();
        for (number, (event, which)) in (1u32..).zip(events) {
            let known: Vec<u32> = places(&pairs).into_iter().flatten().collect();
            let retired = match event {
                0..=1 => {
                    alive.insert(number);
                    confirmed.insert(number);
                    indices(pairs.install(keypair(number, true)))
                }
                2..=3 => {
                    alive.insert(number);
                    indices(pairs.install(keypair(number, false)))
                }
                4..=6 if !known.is_empty() => {
                    let index = known[which.index(known.len())];
                    confirmed.insert(index);
                    let waiting = places(&pairs)[2] == Some(index);
                    let (moved, displaced) = pairs.received_under(index);
                    prop_assert_eq!(moved, waiting);
                    indices(displaced)
                }
                4..=6 => continue,
                _ => indices(pairs.clear()),
            };
            for index in retired {
                prop_assert!(alive.remove(&index), "{} was given back twice", index);
            }
            let [previous, _, next] = places(&pairs);
            prop_assert!(previous.is_none() || next.is_none(), "a session waits beside an old one");
            let mut held: Vec<u32> = places(&pairs).into_iter().flatten().collect();
            held.sort_unstable();
            prop_assert_eq!(&held, &alive.iter().copied().collect::<Vec<_>>());
            for &index in &held {
                prop_assert_eq!(pairs.by_index(index).map(|pair| pair.local_index), Some(index));
            }
            if let Some(current) = pairs.current() {
                prop_assert!(confirmed.contains(&current.local_index));
            }
        }
    }
}

/// Both ends together: what one seals the other opens, over every backend, with each key in its direction.
#[test]
fn a_packet_crosses_a_session() {
    for aead in aead::all() {
        let (mut here, mut there) = (Keypair::vacant(8192), Keypair::vacant(8192));
        let session = |initiator| Session {
            peer: PeerId(0),
            local_index: 1,
            remote_index: 2,
            initiator,
            created: START,
        };
        here.arm(session(true), &Timeouts::protocol(), &[1; 32], &[2; 32]);
        there.arm(session(false), &Timeouts::protocol(), &[2; 32], &[1; 32]);
        for (sender, receiver) in [(0, 1), (1, 0)] {
            let ends = [&mut here, &mut there];
            let counter = ends[sender].next_counter(START).unwrap();
            let mut packet = *b"sixteen bytes...and a tag.......";
            let mut jobs = [Job::new(ends[sender].send_key(), counter, &mut packet)];
            aead.seal(&mut jobs);
            assert!(jobs[0].ok);
            assert_eq!(ends[receiver].may_receive(counter, START), Ok(()));
            let mut jobs = [Job::new(ends[receiver].receive_key(), counter, &mut packet)];
            aead.open(&mut jobs);
            assert!(jobs[0].ok && ends[receiver].accept(counter));
            assert_eq!(
                packet[..packet.len() - TAG],
                b"sixteen bytes...and a tag......."[..packet.len() - TAG]
            );
        }
    }
}
