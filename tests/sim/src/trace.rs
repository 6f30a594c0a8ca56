//! What happened, for whoever has to find out why.

use std::collections::VecDeque;
use std::fmt;

use patronus_crypto::Time;

/// Events that a failing run shows.
const LAST: usize = 60;

/// The last events, or all of them as they happen.
pub struct Trace {
    aloud: bool,
    last: VecDeque<String>,
}

impl Trace {
    /// Prints every event if `aloud`.
    pub fn new(aloud: bool) -> Trace {
        Trace {
            aloud,
            last: VecDeque::new(),
        }
    }

    /// Notes an event.
    pub fn note(&mut self, at: Time, event: fmt::Arguments<'_>) {
        let millis = at.since(crate::START).as_millis();
        let line = format!("{:>7}.{:03} {event}", millis / 1000, millis % 1000);
        if self.aloud {
            println!("{line}");
        }
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The last events, oldest first.
    pub fn last(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }
}
