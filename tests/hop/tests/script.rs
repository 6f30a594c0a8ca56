//! Any text as a script: no panic, and an error's place lies in its line.

use patronus_hop::script::{COMMANDS_MAX, parse, parse_line};
use proptest::prelude::*;

/// Lines of the language's own words in any order, which come further than random letters.
fn words() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "at",
        "a->b",
        "both",
        "delay",
        "loss",
        "burst",
        "bad",
        "rate",
        "queue",
        "packets",
        "reorder",
        "by",
        "duplicate",
        "mtu",
        "cut",
        "nat",
        "address",
        "off",
        "jitter",
        "normal",
        "seed",
        "5%",
        "0.5%",
        "20ms",
        "1s",
        "10Mbit",
        "64KiB",
        "1400",
        "192.0.2.7",
        "ä",
        "#",
        "18446744073709551616ns",
        "-1",
    ]);
    prop::collection::vec(word, 0..8).prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn errors_lie_in_their_line(line in prop_oneof![words(), any::<String>(), "[ -~]{0,60}"]) {
        if let Err(error) = parse_line(&line) {
            prop_assert!((1..=line.chars().count() + 2).contains(&error.column), "{line:?}: {error}");
            prop_assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn scripts_give_their_commands_or_name_lines(lines in prop::collection::vec(words(), 0..20)) {
        match parse(&lines.join("\n")) {
            Ok(commands) => {
                prop_assert!(commands.len() <= lines.len().min(COMMANDS_MAX));
                prop_assert!(commands.is_sorted_by_key(|command| command.at.unwrap_or(0)));
            }
            Err(errors) => prop_assert!(errors.iter().all(|error| parse_line(lines[error.line - 1].as_str()).is_err())),
        }
    }
}
