//! Commands and events: what goes in comes out, and words at random are refused or mean one thing.

use std::net::{IpAddr, SocketAddr};

use patronus_abi::Prefix;
use patronus_abi::channel::{
    COMMAND_WORDS, Command, DRILL_MAX, EVENT_TEXT_MAX, EVENT_WORDS, Event, LinkWhy, MoveWhy, NextHop,
    PATH_WORDS, PATHS_MAX, PathName, PathRecord, PathReport, PathState, PathWhy, Ranked, SUSPECT_MAX,
    SUSPECTS_MAX,
};
use proptest::prelude::*;

fn prefix() -> impl Strategy<Value = Prefix> {
    (any::<IpAddr>(), 0u8..=128)
        .prop_map(|(addr, len)| Prefix::new(addr, len.min(if addr.is_ipv4() { 32 } else { 128 })).unwrap())
}

fn hop() -> impl Strategy<Value = NextHop> {
    prop_oneof![
        Just(NextHop::Discard),
        Just(NextHop::Host),
        any::<[u8; 32]>().prop_map(NextHop::Peer),
        (any::<u16>(), any::<IpAddr>()).prop_map(|(lan, addr)| NextHop::Neighbour(lan, addr)),
    ]
}

fn path() -> impl Strategy<Value = PathName> {
    (1u8..16, 1u8..16).prop_map(|(local, remote)| PathName { local, remote })
}

fn order() -> impl Strategy<Value = Vec<Ranked>> {
    let paths = prop::collection::hash_set(path(), 0..=PATHS_MAX);
    let ranked = paths.prop_map(|paths| paths.into_iter().collect::<Vec<_>>());
    (ranked.prop_shuffle(), any::<[u8; PATHS_MAX]>()).prop_map(|(paths, grades)| {
        let ranked = paths.into_iter().zip(grades);
        ranked.map(|(path, grade)| Ranked { path, grade }).collect()
    })
}

fn path_state() -> impl Strategy<Value = PathState> {
    (1u8..4).prop_map(|number| PathState::read(number).unwrap())
}

fn path_why() -> impl Strategy<Value = PathWhy> {
    (1u8..7).prop_map(|number| PathWhy::read(number).unwrap())
}

fn command() -> impl Strategy<Value = Command> {
    let hops = prop::collection::vec(hop(), 1..=4);
    prop_oneof![
        (prefix(), any::<(u16, u32, u32)>(), hops).prop_map(|(prefix, (owner, epoch, preference), hops)| {
            Command::RouteAdd {
                prefix,
                owner,
                epoch,
                preference,
                hops,
            }
        }),
        (prefix(), any::<u16>()).prop_map(|(prefix, owner)| Command::RouteDel { prefix, owner }),
        any::<(u16, u32)>().prop_map(|(owner, epoch)| Command::Sweep { owner, epoch }),
        (any::<([u8; 32], u8)>(), order()).prop_map(|((remote, class), paths)| Command::Order {
            remote,
            class,
            paths
        }),
        (1u8..16, 0..=DRILL_MAX).prop_map(|(link, length)| Command::Drill { link, length }),
        (
            any::<[u8; 32]>(),
            prop::collection::hash_set(path(), 0..=SUSPECTS_MAX),
            0..=SUSPECT_MAX
        )
            .prop_map(|(remote, paths, length)| Command::Suspect {
                remote,
                paths: paths.into_iter().collect(),
                length
            }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<(u64, u64, [u8; 32])>().prop_map(|(generation, changes, public_key)| Event::Applied {
            generation,
            changes,
            public_key
        }),
        (any::<u64>(), ".{0,40}").prop_map(|(generation, reason)| Event::Refused { generation, reason }),
        (any::<u64>(), ".{0,40}").prop_map(|(count, reason)| Event::CommandsRefused { count, reason }),
        (any::<(u64, [u8; 32])>(), path(), path_state(), path_why()).prop_map(
            |((at, remote), path, state, why)| Event::PathState {
                at,
                remote,
                path,
                state,
                why
            }
        ),
        (
            any::<(u64, [u8; 32], u8)>(),
            prop::option::of(path()),
            prop::option::of(path()),
            1u8..4
        )
            .prop_map(|((at, remote, class), from, to, why)| Event::Moved {
                at,
                remote,
                class,
                from,
                to,
                why: MoveWhy::read(why).unwrap()
            }),
        (
            any::<(u64, [u8; 32], bool)>(),
            prop::option::of((path(), any::<u8>()))
        )
            .prop_map(|((at, peer, up), lane)| Event::Session { at, peer, lane, up }),
        (
            any::<(u64, [u8; 32], IpAddr, u16)>(),
            prop::option::of((path(), any::<u8>()))
        )
            .prop_map(|((at, peer, ip, port), lane)| Event::Endpoint {
                at,
                peer,
                lane,
                to: SocketAddr::new(ip, port)
            }),
        (
            any::<(u64, [u8; 32])>(),
            prop::option::of(1u8..16),
            1u8..16,
            1u8..9
        )
            .prop_map(|((at, peer), from, to, why)| Event::PeerMoved {
                at,
                peer,
                from,
                to,
                why: LinkWhy::read(why).unwrap()
            }),
        (any::<(u64, u8, bool)>(), ".{0,40}").prop_map(|((at, link, up), name)| Event::Link {
            at,
            link,
            up,
            name
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn commands_come_out_as_they_went_in(command in command()) {
        prop_assert_eq!(Command::read(command.words().unwrap()), Ok(command));
    }

    #[test]
    fn events_come_out_as_they_went_in(event in event()) {
        prop_assert_eq!(Event::read(event.words()), event);
    }

    #[test]
    fn a_path_comes_out_as_it_went_in(
        words: [u64; PATH_WORDS], sequence: u64, path in path(), state in path_state(), why in path_why(), some: [bool; 3],
    ) {
        let value = |at: usize| (words[at] as u32).max(1);
        let report = PathReport {
            remote: [words[0] as u8; 32],
            path,
            state,
            why,
            since: words[1],
            mtu: some[0].then_some((words[2] as u16).max(1)),
            in_use: some[1],
            interval: some[2].then(|| value(3)),
            remote_interval: some[1].then(|| value(4)),
            rtt: some[0].then(|| value(5)),
            rtt_min: some[2].then(|| value(6)),
            jitter_in: words[7] as u32,
            jitter_out: words[8] as u32,
            in_sent: words[9],
            in_received: words[10],
            out_sent: words[11],
            out_received: words[12],
            sent_bytes: words[13],
            received_bytes: words[14],
            probes_sent: words[15],
            probes_received: words[16],
            samples: words[17],
            recent: std::array::from_fn(|at| words[at] as u32),
        };
        prop_assert_eq!(PathRecord::read(report.record(sequence).words()), Some(report));
        // What a reader finds there may be anything.
        if let Some(read) = PathRecord::read(words) {
            prop_assert_eq!(PathRecord::read(read.record(0).words()), Some(read));
        }
    }

    /// Other words are another command, or none.
    #[test]
    fn a_command_has_one_form(command in command(), at in 0..COMMAND_WORDS, bit in 0u32..64) {
        let mut words = command.words().unwrap();
        words[at] ^= 1 << bit;
        if let Ok(other) = Command::read(words) {
            prop_assert!(other != command);
            prop_assert_eq!(other.words(), Some(words));
        }
    }

    #[test]
    fn words_at_random(command: [u64; COMMAND_WORDS], event: [u64; EVENT_WORDS]) {
        if let Ok(command_read) = Command::read(command) {
            prop_assert_eq!(command_read.words(), Some(command));
        }
        Event::read(event);
    }
}

#[test]
fn routes_have_one_to_four_next_hops() {
    for count in [0, 5] {
        let command = Command::RouteAdd {
            prefix: Prefix::FIRST,
            owner: 0,
            epoch: 0,
            preference: 0,
            hops: vec![NextHop::Discard; count],
        };
        assert_eq!(command.words(), None);
    }
}

#[test]
fn drills_are_of_a_link_and_end() {
    for (link, length) in [(0, 1000), (16, 1000), (1, DRILL_MAX + 1)] {
        let words = Command::Drill { link, length }.words().unwrap();
        assert!(Command::read(words).is_err(), "{link} {length}");
    }
}

#[test]
fn suspects_are_few_and_for_a_while() {
    let path = |local| PathName { local, remote: 1 };
    let suspect = |paths: &[PathName], length| Command::Suspect {
        remote: [7; 32],
        paths: paths.to_vec(),
        length,
    };
    let many: Vec<PathName> = (1..=SUSPECTS_MAX as u8 + 1).map(path).collect();
    assert_eq!(suspect(&many, 1).words(), None);
    for wrong in [
        suspect(&many[1..], SUSPECT_MAX + 1),
        suspect(&[path(1), path(1)], 1),
    ] {
        assert!(Command::read(wrong.words().unwrap()).is_err(), "{wrong:?}");
    }
}

#[test]
fn long_text_is_cut_between_characters() {
    let reason = "ü".repeat(EVENT_TEXT_MAX);
    let Event::Refused { reason, .. } = Event::read(
        Event::Refused {
            generation: 1,
            reason,
        }
        .words(),
    ) else {
        panic!("another event")
    };
    assert_eq!(reason, "ü".repeat(EVENT_TEXT_MAX / 2));
}
