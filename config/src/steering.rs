//! Classes: what a kind of traffic needs of a path, and how it is spread over paths. How paths are probed.

use std::collections::BTreeSet;
use std::fmt;
use std::iter;
use std::str::FromStr;

use patronus_abi::site::{self, PROBE_RATE};
use serde::Deserialize;
use toml::Spanned;

use crate::matching::{Dscp, Name};
use crate::number::Number;
use crate::schema::Config;
use crate::value::{Expected, Loss, Millis, from_text_or_number};

/// How flows of a class use the paths to a remote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each flow by one path, which it leaves in a pause between its packets.
    #[default]
    Pinned,
    /// All flows by the path of the lowest cost that is good enough.
    ActiveBackup,
    /// Each packet by two paths; the second to arrive is thrown away.
    Duplicate,
    /// Flows in proportion to the rates of the links.
    Weighted,
    /// Each flow by the path with the shortest round trip.
    LowestLatency,
}

impl Mode {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Pinned => "pinned",
            Mode::ActiveBackup => "active_backup",
            Mode::Duplicate => "duplicate",
            Mode::Weighted => "weighted",
            Mode::LowestLatency => "lowest_latency",
        }
    }
}

/// Which packets of a class stay together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sticky {
    /// Those of a flow.
    #[default]
    Flow,
    /// Those of a source: of an address of IPv4, or of 64 bits of one of IPv6.
    Source,
}

impl Sticky {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Sticky::Flow => "flow",
            Sticky::Source => "source",
        }
    }
}

/// What DSCP the datagrams of a class have on the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterDscp {
    /// The packet's own.
    Copy,
    /// This one.
    Set(Dscp),
}

impl FromStr for OuterDscp {
    type Err = Expected;

    fn from_str(text: &str) -> Result<OuterDscp, Expected> {
        const EXPECTED: Expected = Expected::of(
            "\"copy\", or a DSCP: \"ef\", \"cs0\" to \"cs7\", \"af11\" to \"af43\" or a number from 0 to 63",
        );
        match text {
            "copy" => Ok(OuterDscp::Copy),
            _ => text.parse().map(OuterDscp::Set).map_err(|_| EXPECTED),
        }
    }
}

impl fmt::Display for OuterDscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OuterDscp::Copy => f.write_str("copy"),
            OuterDscp::Set(dscp) => dscp.fmt(f),
        }
    }
}

from_text_or_number!(
    OuterDscp,
    63,
    |number| OuterDscp::Set(Dscp(number as u8)),
    "\"copy\", or a DSCP: a name such as \"ef\", or a number from 0 to 63"
);

/// What a kind of traffic needs. What is not there is not asked of a path.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// What policies call it.
    pub name: Spanned<Name>,
    /// Round trip at most.
    pub latency: Option<Spanned<Millis>>,
    /// Variation of the delay at most.
    pub jitter: Option<Spanned<Millis>>,
    /// Lost packets at most, each way.
    pub loss: Option<Spanned<Loss>>,
    /// How its flows use the paths.
    #[serde(default)]
    pub mode: Mode,
    /// How long a path that was left has to be good before flows go back.
    #[serde(default = "half_a_minute")]
    pub hold: Spanned<Millis>,
    /// Which packets stay together.
    #[serde(default)]
    pub sticky: Sticky,
    /// The DSCP of the datagrams on the outside. None: 0.
    pub dscp: Option<OuterDscp>,
}

fn half_a_minute() -> Spanned<Millis> {
    nowhere(Millis(30_000))
}

/// Classes that are there without being defined. A `[[class]]` of the same name takes the place of one.
///
/// Their limits lie between what a telephone call bears (150 ms one way: ITU-T G.114) and where vendors call a path critical for it.
pub fn built_in() -> [Class; 4] {
    let class = |name, latency: u64, jitter: u64, loss: u32| Class {
        name: nowhere(Name::of(name)),
        latency: limit(latency).map(Millis).map(nowhere),
        jitter: limit(jitter).map(Millis).map(nowhere),
        loss: limit(loss).map(Loss).map(nowhere),
        mode: Mode::Pinned,
        hold: half_a_minute(),
        sticky: Sticky::Flow,
        dscp: None,
    };
    let [voice, video, interactive, bulk] = BUILT_IN;
    [
        class(voice, 150, 30, 1000),
        class(video, 200, 50, 500),
        class(interactive, 200, 0, 3000),
        class(bulk, 0, 0, 0),
    ]
}

/// The names of the classes that there are: the one of what comes under no other, those of the file, and those that are built in and that a policy names.
/// Each once, in the order of their numbers, which does not depend on where in the file they stand.
pub(crate) fn class_names(config: &Config) -> impl Iterator<Item = &str> {
    let own = config.classes.iter().map(|class| class.name.get_ref());
    let named = config.policies.iter().filter_map(|policy| policy.class.as_ref());
    let names = own.chain(named.map(Spanned::get_ref)).map(Name::as_str);
    let names: BTreeSet<&str> = names.filter(|name| *name != site::Class::DEFAULT).collect();
    iter::once(site::Class::DEFAULT).chain(names)
}

/// What they are called.
pub(crate) const BUILT_IN: [&str; 4] = ["voice", "video", "interactive", "bulk"];

/// How the paths to remotes are probed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probe {
    /// How often a path to a remote that packets go to.
    pub interval: Spanned<Millis>,
    /// How often one to a remote that none go to.
    pub idle: Spanned<Millis>,
    /// Probes of the engine in a second at most.
    pub rate: ProbeRate,
}

/// Probes in a second.
pub type ProbeRate = Number<{ *PROBE_RATE.start() as u64 }, { *PROBE_RATE.end() as u64 }>;

impl Default for Probe {
    fn default() -> Probe {
        Probe {
            interval: nowhere(Millis(50)),
            idle: nowhere(Millis(1000)),
            rate: const { ProbeRate::new(20_000).unwrap() },
        }
    }
}

/// None for 0: not limited.
fn limit<T: Default + PartialEq>(value: T) -> Option<T> {
    Some(value).filter(|value| *value != T::default())
}

/// What stands in no file has no place there.
fn nowhere<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}
