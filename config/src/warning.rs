//! What is said of a file that is not wrong.

use std::fmt;
use std::path::Path;

use crate::error::Error;
use crate::schema::Config;
use crate::steering::Class;

/// Something that should be looked at: where in the file, what, and what to do.
#[derive(Clone, Debug)]
pub struct Warning(Error);

/// Those of a file. They belong to the text, not to what it means: two files that mean the same are equal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warnings(pub Vec<Warning>);

impl PartialEq for Warnings {
    fn eq(&self, _: &Warnings) -> bool {
        true
    }
}

impl Warning {
    /// Line and column, from 1 on.
    pub fn place(&self) -> Option<(usize, usize)> {
        self.0.place()
    }

    /// What should be looked at.
    pub fn message(&self) -> &str {
        self.0.message()
    }

    /// What to do.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint()
    }

    pub(crate) fn in_file(self, path: &Path) -> Warning {
        Warning(self.0.in_file(path))
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All that there are. One for each key, however often it stands there.
pub(crate) fn of(text: &str, config: &Config) -> Warnings {
    const STEERING: &str = "flows are not steered by quality yet: they go where the routes say";
    let (links, policies) = (config.links.iter(), config.policies.iter());
    let rates = links
        .clone()
        .flat_map(|link| [&link.rate_up, &link.rate_down])
        .flatten();
    let rates: Vec<_> = rates.map(|rate| rate.span()).collect();
    let costs: Vec<_> = links
        .filter_map(|link| link.cost.as_ref())
        .map(|cost| cost.span())
        .collect();
    let classes: Vec<_> = config
        .classes
        .iter()
        .map(|Class { name, .. }| name.span())
        .collect();
    let named: Vec<_> = policies
        .filter_map(|policy| policy.class.as_ref())
        .map(|class| class.span())
        .collect();
    let unused = [
        ("the rate of a link", rates),
        ("the `cost` of a link", costs),
        ("[[class]]", classes),
        ("the `class` of a policy", named),
    ];
    let mut warnings = Vec::new();
    for (what, places) in unused {
        let Some(first) = places.first() else { continue };
        let mut said = format!("{what} is understood, but nothing uses it yet");
        if let more @ 1.. = places.len() - 1 {
            said.push_str(&format!(" (here, and {more} more)"));
        }
        warnings.push(Warning(Error::at(text, first.clone(), said).with_hint(STEERING)));
    }
    if let Some(metrics) = &config.metrics
        && !metrics.listen.get_ref().0.ip().is_loopback()
    {
        let said =
            "everybody who reaches this address can read the metrics, public keys and endpoints among them";
        let hint = "let a firewall decide who does, or listen on 127.0.0.1";
        warnings.push(Warning(
            Error::at(text, metrics.listen.span(), said).with_hint(hint),
        ));
    }
    Warnings(warnings)
}
