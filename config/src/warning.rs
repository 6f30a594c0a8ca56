//! What is said of a file that is not wrong.

use std::fmt;
use std::path::Path;

use crate::error::Error;
use crate::schema::Config;

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

/// All that there are.
pub(crate) fn of(text: &str, config: &Config) -> Warnings {
    let mut warnings = Vec::new();
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
