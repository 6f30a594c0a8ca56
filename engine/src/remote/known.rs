//! All remotes, and in which order they want to be asked: a hub has thousands of them, and looks for the next deadline in every turn.

use std::collections::{BTreeMap, BTreeSet};

use patronus_crypto::{PeerId, Time};

use super::Remote;

/// Remotes by the numbers of their base sessions.
#[derive(Default)]
pub struct KnownRemotes {
    remotes: BTreeMap<PeerId, Remote>,
    /// The deadlines of those that have one.
    deadlines: BTreeSet<(Time, PeerId)>,
}

impl KnownRemotes {
    /// Adds a remote, in the place of the one that was there.
    pub fn insert(&mut self, id: PeerId, remote: Remote) {
        self.remove(id);
        self.deadlines.extend(remote.next_deadline().map(|at| (at, id)));
        self.remotes.insert(id, remote);
    }

    /// Removes a remote, if it is there.
    pub fn remove(&mut self, id: PeerId) {
        if let Some(at) = self.remotes.remove(&id).and_then(|gone| gone.next_deadline()) {
            self.deadlines.remove(&(at, id));
        }
    }

    /// That remote.
    pub fn get(&self, id: PeerId) -> Option<&Remote> {
        self.remotes.get(&id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (PeerId, &Remote)> {
        self.remotes.iter().map(|(id, remote)| (*id, remote))
    }

    /// Changes a remote, if it is there.
    pub fn change(&mut self, id: PeerId, step: impl FnOnce(&mut Remote)) {
        let Some(remote) = self.remotes.get_mut(&id) else {
            return;
        };
        let before = remote.next_deadline();
        step(remote);
        let after = remote.next_deadline();
        if before != after {
            if let Some(at) = before {
                self.deadlines.remove(&(at, id));
            }
            self.deadlines.extend(after.map(|at| (at, id)));
        }
    }

    /// When the first of them wants to be asked.
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Whose time has come, the longest overdue first.
    pub fn due(&self, now: Time) -> Vec<PeerId> {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, id)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use patronus_crypto::{Duration, PublicKey};
    use proptest::prelude::*;

    use super::super::message::BootId;
    use super::super::{Own, hello};
    use super::*;

    fn own() -> Own {
        let hello = hello(BootId::default(), 1, 1, &[]);
        Own {
            key: PublicKey([0; 32]),
            hello,
        }
    }

    proptest! {
        /// Whatever happens to them: who is due, and when the next one is, are what a search finds.
        #[test]
        fn deadlines_are_those_that_a_search_finds(
            steps in prop::collection::vec((0..6u32, 0..5u8, 0..3000u64), 1..60),
        ) {
            let (mut known, own) = (KnownRemotes::default(), own());
            let mut now = Time::from_secs(1000);
            for (number, what, pause) in steps {
                let id = PeerId(number);
                now = now.after(Duration::from_millis(pause));
                match what {
                    0 => known.insert(id, Remote::new(PublicKey([1; 32]), BootId::default())),
                    1 => known.remove(id),
                    2 => known.change(id, |remote| remote.base_session(now)),
                    3 => known.change(id, Remote::base_lost),
                    _ => known.change(id, |remote| remote.poll(&own, now, &mut Vec::new())),
                }
                let search = known.iter().filter_map(|(id, remote)| Some((remote.next_deadline()?, id)));
                let mut search: Vec<_> = search.collect();
                search.sort_unstable();
                prop_assert_eq!(known.next_deadline(), search.first().map(|(at, _)| *at));
                let due = search.iter().filter(|(at, _)| *at <= now).map(|(_, id)| *id);
                prop_assert_eq!(known.due(now), due.collect::<Vec<_>>());
            }
        }
    }
}
