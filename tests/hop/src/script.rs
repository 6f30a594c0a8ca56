//! What people write to change the link: one command a line, in a file, on the command line or on standard input.
//!
//! ```text
//! [at TIME] [DIRECTION] WORD ARGUMENTS [DIRECTION]
//! ```
//!
//! Called by `main` before the link runs and by [`crate::bridge`] for each line that it reads. An error says where (line and column),
//! what was expected, and which words there are. docs/impairment.md has the language in full.

use std::fmt;
use std::net::Ipv4Addr;

use crate::dice::Chance;
use crate::settings::{Delay, Loss, Rate, Reorder, Settings, Shape};
use crate::{Direction, Time};

/// Commands that may wait for their time.
pub const COMMANDS_MAX: usize = 4096;

/// A line that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Nanoseconds after the start of the link; `None` is at once.
    pub at: Option<Time>,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Change what directions do to packets.
    Set(Scope, Change),
    /// Give packets of this direction other UDP ports and, if there is an address, that source.
    Nat(Direction, Option<Ipv4Addr>),
    /// No NAT any more.
    NatOff,
    /// Forget the ports of the NAT and give others.
    Rebind,
    /// Begin the sequences of chance anew.
    Seed(u64),
    /// Say what happened so far.
    Show,
    /// End the program.
    End,
}

/// One direction or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One.
    One(Direction),
    /// Both.
    Both,
}

impl Scope {
    /// The directions.
    pub fn directions(self) -> impl Iterator<Item = Direction> {
        Direction::BOTH
            .into_iter()
            .filter(move |direction| matches!(self, Scope::Both) || self == Scope::One(*direction))
    }
}

/// A change of [`Settings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Another delay.
    Delay(Delay),
    /// Another loss.
    Loss(Loss),
    /// Another bottleneck or none.
    Rate(Option<Rate>),
    /// Another way to reorder or none.
    Reorder(Option<Reorder>),
    /// Another chance of second copies.
    Duplicate(Chance),
    /// Another chance of damage.
    Corrupt(Chance),
    /// Another MTU or none.
    Mtu(Option<u32>),
    /// Cut or mended.
    Cut(bool),
    /// A perfect link.
    Clear,
}

impl Change {
    /// The settings with the change.
    pub fn apply(self, mut settings: Settings) -> Settings {
        match self {
            Change::Delay(delay) => settings.delay = delay,
            Change::Loss(loss) => settings.loss = loss,
            Change::Rate(rate) => settings.rate = rate,
            Change::Reorder(reorder) => settings.reorder = reorder,
            Change::Duplicate(chance) => settings.duplicate = chance,
            Change::Corrupt(chance) => settings.corrupt = chance,
            Change::Mtu(mtu) => settings.mtu = mtu,
            Change::Cut(cut) => settings.cut = cut,
            Change::Clear => settings = Settings::default(),
        }
        settings
    }
}

/// What is wrong with a line, for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The line, from 1; 0 where there is only one.
    pub line: usize,
    /// The character in it, from 1.
    pub column: usize,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, ", self.line)?;
        }
        write!(f, "column {}: {}", self.column, self.message)
    }
}

impl std::error::Error for Error {}

/// The words that a command can begin with.
const WORDS: [&str; 15] = [
    "delay",
    "loss",
    "rate",
    "reorder",
    "duplicate",
    "corrupt",
    "mtu",
    "cut",
    "mend",
    "clear",
    "nat",
    "rebind",
    "seed",
    "show",
    "end",
];
const DIRECTIONS: &str = "a->b, b->a or both";
/// Letters that a word may differ by from the one that was meant, and at most half of its own.
const MISSPELT: usize = 2;

/// Reads a whole script: the commands in the order of their times, or the first error of each bad line.
pub fn parse(text: &str) -> Result<Vec<Command>, Vec<Error>> {
    let mut commands = Vec::new();
    let mut errors = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        match parse_line(line) {
            Ok(command) => commands.extend(command),
            Err(error) => errors.push(Error {
                line: number,
                ..error
            }),
        }
    }
    if commands.len() > COMMANDS_MAX {
        errors.push(Error {
            line: text.lines().count(),
            column: 1,
            message: format!(
                "{} commands are more than the {COMMANDS_MAX} that a script may have",
                commands.len()
            ),
        });
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    // Stable: commands of the same time keep their order.
    commands.sort_by_key(|command| command.at.unwrap_or(0));
    Ok(commands)
}

/// Reads one line; `None` for an empty one or a comment.
pub fn parse_line(line: &str) -> Result<Option<Command>, Error> {
    let mut words = Words::of(line);
    if words.peek().is_none() {
        return Ok(None);
    }
    let at = if words.take("at") {
        Some(words.argument("a time after the start, such as 2s or 1500ms", time)?)
    } else {
        None
    };
    let before = words.direction();
    let action = action(&mut words, before)?;
    if let Some(word) = words.peek() {
        let message = format!("`{}` is more than was expected here", word.text);
        return Err(error(word.column, message));
    }
    Ok(Some(Command { at, action }))
}

fn action(words: &mut Words<'_>, before: Option<Scope>) -> Result<Action, Error> {
    let expected = format!("a direction ({DIRECTIONS}) or one of: {}", WORDS.join(", "));
    let Some(word) = words.next() else {
        return Err(error(words.end, format!("expected {expected}")));
    };
    let change = match word.text {
        "delay" => Change::Delay(delay(words)?),
        "loss" => Change::Loss(loss(words)?),
        "rate" => Change::Rate(rate(words)?),
        "reorder" => Change::Reorder(reorder(words)?),
        "duplicate" => Change::Duplicate(chance_or_off(words)?),
        "corrupt" => Change::Corrupt(chance_or_off(words)?),
        "mtu" => Change::Mtu(mtu(words)?),
        "cut" => Change::Cut(true),
        "mend" => Change::Cut(false),
        "clear" => Change::Clear,
        "nat" => return nat(words, before),
        other => {
            let plain = match other {
                "rebind" => Action::Rebind,
                "seed" => Action::Seed(words.argument("a number, such as 42", |text| text.parse().ok())?),
                "show" => Action::Show,
                "end" => Action::End,
                _ => return Err(error(word.column, unknown(other, &expected))),
            };
            return match before {
                None => Ok(plain),
                Some(_) => Err(error(
                    word.column,
                    format!("`{other}` takes no direction in front of it"),
                )),
            };
        }
    };
    Ok(Action::Set(
        direction(words, before)?.unwrap_or(Scope::Both),
        change,
    ))
}

/// The direction in front of the word or at the end, but not both.
fn direction(words: &mut Words<'_>, before: Option<Scope>) -> Result<Option<Scope>, Error> {
    let column = words.column();
    match (before, words.direction()) {
        (Some(_), Some(_)) => Err(error(column, "the direction stands in front already".to_owned())),
        (before, after) => Ok(before.or(after)),
    }
}

fn delay(words: &mut Words<'_>) -> Result<Delay, Error> {
    if words.take("off") {
        return Ok(Delay::default());
    }
    let fixed = words.argument("a delay, such as 20ms, or off", time)?;
    let mut delay = Delay {
        fixed,
        ..Delay::default()
    };
    if words.take("jitter") {
        let column = words.column();
        delay.jitter = words.argument("a time, such as 5ms", time)?;
        if words.take("normal") {
            delay.shape = Shape::Normal;
        } else {
            words.take("uniform");
        }
        if delay.shape == Shape::Uniform && delay.jitter > fixed {
            let message = "uniform jitter is at most the delay itself: nothing arrives before it was sent";
            return Err(error(column, message.to_owned()));
        }
    }
    Ok(delay)
}

fn loss(words: &mut Words<'_>) -> Result<Loss, Error> {
    if !words.take("burst") {
        return Ok(Loss::Independent(chance_or_off(words)?));
    }
    let enter = words.argument("the chance that a burst begins with a packet, such as 1%", chance)?;
    let leave = words.argument("the chance that it ends with a packet, such as 25%", chance)?;
    let mut bad = Chance::ALWAYS;
    let mut good = Chance::NEVER;
    if words.take("bad") {
        bad = words.argument("the loss during a burst, such as 80%", chance)?;
    }
    if words.take("good") {
        good = words.argument("the loss between bursts, such as 0.1%", chance)?;
    }
    Ok(Loss::Bursts {
        enter,
        leave,
        bad,
        good,
    })
}

fn rate(words: &mut Words<'_>) -> Result<Option<Rate>, Error> {
    if words.take("off") {
        return Ok(None);
    }
    let bits_per_second = words.argument("a rate, such as 10Mbit or 512kbit, or off", bit_rate)?;
    // A tenth of a second, and two long frames at least.
    let mut rate = Rate {
        bits_per_second,
        queue_bytes: (bits_per_second / 80).max(3028),
        queue_packets: 1000,
    };
    if words.take("queue") {
        rate.queue_bytes = words.argument("the queue's bytes, such as 64KiB or 100kB", bytes)?;
    }
    if words.take("packets") {
        let expected = "the queue's packets, 1 to 65536";
        rate.queue_packets = words.argument(expected, |text| number(text, 1, 65536))? as u32;
    }
    Ok(Some(rate))
}

fn reorder(words: &mut Words<'_>) -> Result<Option<Reorder>, Error> {
    let chance = chance_or_off(words)?;
    let mut by = 10_000_000;
    if words.take("by") {
        by = words.argument("how long packets are held back, such as 10ms", time)?;
    }
    Ok((chance != Chance::NEVER).then_some(Reorder { chance, by }))
}

fn mtu(words: &mut Words<'_>) -> Result<Option<u32>, Error> {
    if words.take("off") {
        return Ok(None);
    }
    let expected = "the longest IP packet in bytes, 1 to 65535, or off";
    let mtu = words.argument(expected, |text| number(text, 1, 65535))?;
    Ok(Some(mtu as u32))
}

fn nat(words: &mut Words<'_>, before: Option<Scope>) -> Result<Action, Error> {
    let column = words.column();
    if words.take("off") {
        return Ok(Action::NatOff);
    }
    let Some(Scope::One(direction)) = direction(words, before)? else {
        let message = "expected the direction from the inside to the outside, a->b or b->a, or off";
        return Err(error(column, message.to_owned()));
    };
    let address = match words.take("address") {
        true => Some(words.argument("an IPv4 address, such as 192.0.2.7", |text| text.parse().ok())?),
        false => None,
    };
    Ok(Action::Nat(direction, address))
}

fn chance_or_off(words: &mut Words<'_>) -> Result<Chance, Error> {
    if words.take("off") {
        return Ok(Chance::NEVER);
    }
    words.argument("a share of the packets, such as 5% or 0.01%, or off", chance)
}

/// A percentage with up to seven decimals.
fn chance(text: &str) -> Option<Chance> {
    let billionths = decimal(text.strip_suffix('%')?, 7)?;
    (billionths <= 1_000_000_000).then(|| Chance::billionths(billionths as u32))
}

/// A time in nanoseconds, an hour at most.
fn time(text: &str) -> Option<Time> {
    if text == "0" {
        return Some(0);
    }
    let units = [("ns", 0), ("us", 3), ("ms", 6), ("s", 9)];
    let nanos = with_unit(text, &units)?;
    (nanos <= 3_600_000_000_000).then_some(nanos)
}

/// Bits a second, 1 at least.
fn bit_rate(text: &str) -> Option<u64> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    let units = [("kbit", 3), ("Mbit", 6), ("Gbit", 9), ("bit", 0)];
    with_unit(text, &units).filter(|rate| (1..=1_000_000_000_000).contains(rate))
}

/// Bytes, a gigabyte at most.
fn bytes(text: &str) -> Option<u64> {
    let bytes = match text.strip_suffix("KiB") {
        Some(number) => decimal(number, 0)?.checked_mul(1024)?,
        None => with_unit(text, &[("kB", 3), ("MB", 6), ("B", 0)])?,
    };
    (bytes <= 1_000_000_000).then_some(bytes)
}

/// A decimal number and a unit that stands for a power of ten.
fn with_unit(text: &str, units: &[(&str, u32)]) -> Option<u64> {
    let (number, power) = units
        .iter()
        .find_map(|(unit, power)| Some((text.strip_suffix(unit)?, *power)))?;
    decimal(number, power)
}

/// A decimal number times ten to the power, which must come out whole.
fn decimal(text: &str, power: u32) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let missing = power.checked_sub(u32::try_from(part.len()).ok()?)?;
    if whole.is_empty() || !digits(whole) || !digits(part) {
        return None;
    }
    let number: u64 = format!("{whole}{part}").parse().ok()?;
    number.checked_mul(10u64.checked_pow(missing)?)
}

fn number(text: &str, min: u64, max: u64) -> Option<u64> {
    text.parse().ok().filter(|n| (min..=max).contains(n))
}

fn unknown(word: &str, expected: &str) -> String {
    let names = WORDS.iter().chain(&["a->b", "b->a", "both", "at"]);
    let near = names
        .map(|name| (strsim::damerau_levenshtein(name, word), name))
        .filter(|(distance, _)| *distance <= MISSPELT.min(word.chars().count() / 2))
        .min();
    match near {
        Some((_, name)) => format!("`{word}` is no word here; did you mean `{name}`?"),
        None => format!("`{word}` is no word here; expected {expected}"),
    }
}

fn error(column: usize, message: String) -> Error {
    Error {
        line: 0,
        column,
        message,
    }
}

/// A word and the column of its first character.
#[derive(Clone, Copy)]
struct Word<'a> {
    text: &'a str,
    column: usize,
}

/// The words of a line that are left, and the column behind the last one.
struct Words<'a> {
    rest: std::iter::Peekable<std::vec::IntoIter<Word<'a>>>,
    end: usize,
}

impl<'a> Words<'a> {
    /// What stands before a `#`.
    fn of(line: &'a str) -> Words<'a> {
        let line = line.split('#').next().unwrap_or_default();
        let column = |at: usize| line[..at].chars().count() + 1;
        let start = line.as_ptr() as usize;
        let words: Vec<Word<'a>> = line
            .split_whitespace()
            .map(|text| Word {
                text,
                column: column(text.as_ptr() as usize - start),
            })
            .collect();
        Words {
            rest: words.into_iter().peekable(),
            end: column(line.trim_end().len()) + 1,
        }
    }

    fn peek(&mut self) -> Option<Word<'a>> {
        self.rest.peek().copied()
    }

    fn next(&mut self) -> Option<Word<'a>> {
        self.rest.next()
    }

    /// Where the next word is or would be.
    fn column(&mut self) -> usize {
        self.peek().map_or(self.end, |word| word.column)
    }

    /// Takes the next word if it is this one.
    fn take(&mut self, text: &str) -> bool {
        self.rest.next_if(|word| word.text == text).is_some()
    }

    /// Takes the next word if it is a direction.
    fn direction(&mut self) -> Option<Scope> {
        let scope = match self.peek()?.text {
            "a->b" => Scope::One(Direction::AToB),
            "b->a" => Scope::One(Direction::BToA),
            "both" => Scope::Both,
            _ => return None,
        };
        self.next();
        Some(scope)
    }

    /// Takes the next word, which must be what `read` can read.
    fn argument<T>(&mut self, expected: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
        let column = self.column();
        let Some(word) = self.next() else {
            return Err(error(column, format!("expected {expected}")));
        };
        read(word.text).ok_or_else(|| error(column, format!("expected {expected}, not `{}`", word.text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action_of(line: &str) -> Action {
        let command = parse_line(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        command.expect("a command").action
    }

    fn set(line: &str) -> Change {
        match action_of(line) {
            Action::Set(Scope::Both, change) => change,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_word_is_understood() {
        let loss = |ppb| Loss::Independent(Chance::billionths(ppb));
        let fixed = |fixed, jitter, shape| Change::Delay(Delay { fixed, jitter, shape });
        let cases = [
            ("delay 20ms", fixed(20_000_000, 0, Shape::Uniform)),
            (
                "delay 1.5s jitter 250us",
                fixed(1_500_000_000, 250_000, Shape::Uniform),
            ),
            ("delay 0 jitter 3ns normal", fixed(0, 3, Shape::Normal)),
            ("delay off", Change::Delay(Delay::default())),
            ("loss 5%", Change::Loss(loss(50_000_000))),
            ("loss 0.0000001%", Change::Loss(loss(1))),
            ("loss off", Change::Loss(loss(0))),
            ("rate off", Change::Rate(None)),
            ("reorder off", Change::Reorder(None)),
            ("duplicate 100%", Change::Duplicate(Chance::ALWAYS)),
            ("corrupt 1%", Change::Corrupt(Chance::billionths(10_000_000))),
            ("mtu 1400", Change::Mtu(Some(1400))),
            ("mtu off", Change::Mtu(None)),
            ("cut", Change::Cut(true)),
            ("mend", Change::Cut(false)),
            ("clear   # all of it", Change::Clear),
        ];
        for (line, change) in cases {
            assert_eq!(set(line), change, "{line}");
        }
        assert_eq!(action_of("rebind"), Action::Rebind);
        assert_eq!(action_of("seed 7"), Action::Seed(7));
        assert_eq!(action_of("show"), Action::Show);
        assert_eq!(action_of("end"), Action::End);
        assert_eq!(action_of("nat off"), Action::NatOff);
        assert_eq!(action_of("nat b->a"), Action::Nat(Direction::BToA, None));
        let address = Some(Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(
            action_of("a->b nat address 192.0.2.7"),
            Action::Nat(Direction::AToB, address)
        );
        assert_eq!(parse_line("  # nothing"), Ok(None));
    }

    #[test]
    fn bursts_rates_and_reordering() {
        let percent = |p: u32| Chance::billionths(p * 10_000_000);
        let bursts = Loss::Bursts {
            enter: percent(1),
            leave: percent(20),
            bad: percent(80),
            good: percent(0),
        };
        assert_eq!(set("loss burst 1% 20% bad 80%"), Change::Loss(bursts));
        let rate = |bits_per_second, queue_bytes, queue_packets| {
            Change::Rate(Some(Rate {
                bits_per_second,
                queue_bytes,
                queue_packets,
            }))
        };
        assert_eq!(set("rate 10Mbit"), rate(10_000_000, 125_000, 1000));
        assert_eq!(set("rate 8kbit/s"), rate(8000, 3028, 1000));
        assert_eq!(
            set("rate 2.5Gbit queue 64KiB packets 9"),
            rate(2_500_000_000, 65536, 9)
        );
        let by = |by| {
            Change::Reorder(Some(Reorder {
                chance: percent(2),
                by,
            }))
        };
        assert_eq!(
            (set("reorder 2%"), set("reorder 2% by 3ms")),
            (by(10_000_000), by(3_000_000))
        );
    }

    #[test]
    fn directions_stand_in_front_or_at_the_end() {
        let cut = |scope| Action::Set(scope, Change::Cut(true));
        for (line, scope) in [
            ("a->b cut", Scope::One(Direction::AToB)),
            ("cut b->a", Scope::One(Direction::BToA)),
            ("cut both", Scope::Both),
            ("cut", Scope::Both),
        ] {
            assert_eq!(action_of(line), cut(scope), "{line}");
        }
        let timed = parse_line("at 4s cut a->b").unwrap().unwrap();
        assert_eq!(timed.at, Some(4_000_000_000));
    }

    #[test]
    fn errors_say_where_and_what_was_expected() {
        let cases = [
            ("a->b los 5%", 6, "did you mean `loss`"),
            (
                "frobnicate",
                1,
                "expected a direction (a->b, b->a or both) or one of: delay, loss",
            ),
            ("loss 5", 6, "a share of the packets, such as 5%"),
            ("loss 101%", 6, "not `101%`"),
            ("loss", 6, "expected a share"),
            ("at 2 cut", 4, "such as 2s"),
            ("at 2s", 7, "expected a direction"),
            ("delay 5ms jitter 6ms", 18, "nothing arrives before it was sent"),
            ("delay 2h", 7, "such as 20ms"),
            ("delay 1.0000000001s", 7, "such as 20ms"),
            ("rate 10", 6, "such as 10Mbit"),
            ("rate 1Mbit packets 0", 20, "1 to 65536"),
            ("mtu 70000", 5, "1 to 65535"),
            ("nat", 5, "from the inside to the outside"),
            ("nat both", 5, "from the inside to the outside"),
            ("a->b rebind", 6, "takes no direction"),
            ("a->b cut b->a", 10, "in front already"),
            ("cut now", 5, "more than was expected"),
            ("bad", 1, "`bad` is no word here; expected a direction"),
            ("ä delay", 1, "`ä` is no word"),
        ];
        for (line, column, says) in cases {
            let error = parse_line(line).expect_err(line);
            assert_eq!(error.column, column, "{line}: {error}");
            assert!(error.message.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn scripts_are_sorted_by_time_and_all_bad_lines_are_named() {
        let commands = parse("at 2s cut\nloss 1%\n\nat 1s mend\nat 2s clear\n").unwrap();
        let times: Vec<_> = commands.iter().map(|command| command.at.unwrap_or(0)).collect();
        assert_eq!(times, [0, 1_000_000_000, 2_000_000_000, 2_000_000_000]);
        assert_eq!(commands[3].action, Action::Set(Scope::Both, Change::Clear));
        let errors = parse("cut\nbad\ncut\n  loss 5\n").unwrap_err();
        let shown: Vec<String> = errors.iter().map(Error::to_string).collect();
        assert!(shown[0].starts_with("line 2, column 1: "), "{shown:?}");
        assert!(shown[1].starts_with("line 4, column 8: "), "{shown:?}");
        let long = "cut\n".repeat(COMMANDS_MAX + 1);
        assert!(parse(&long).unwrap_err()[0].message.contains("4096"));
    }
}
