//! Commands and events: what goes in comes out, and words at random are refused or mean one thing.

use std::net::IpAddr;

use patronus_abi::Prefix;
use patronus_abi::channel::{COMMAND_WORDS, Command, EVENT_TEXT_MAX, EVENT_WORDS, Event, NextHop};
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
