//! The control process of a site, as far as it judges paths: the real judges, fed with the real reports, whose orders the engine's slow path takes.

use patronus_abi::channel::Event;
use patronus_abi::site::Class;
use patronus_control::quality::judge::Links;
use patronus_control::quality::{Change, EVERY, Quality, Wanted};
use patronus_crypto::{Duration, PeerId, Time};

use crate::site::Site;

/// Control, attached to an engine.
pub struct Governor {
    quality: Quality,
    /// When it reads the table of paths next.
    pub next: Time,
}

impl Governor {
    /// Control that has just been started. `links`: of the site's links, in their order, cost and whether they are metered.
    pub fn new(now: Time, class: &Class, links: &[(u16, bool)]) -> Governor {
        let mut wanted = Wanted {
            classes: vec![class.clone()],
            ..Wanted::default()
        };
        for (at, (cost, metered)) in links.iter().enumerate() {
            wanted.links[at + 1] = Links {
                cost: *cost,
                metered: *metered,
                weight: 1,
                capped: false,
            };
        }
        let mut quality = Quality::default();
        quality.configure(wanted);
        Governor { quality, next: now }
    }

    /// The engine has been started anew, and knows nothing.
    pub fn forget(&mut self) {
        self.quality.forget();
    }

    /// The engine says something.
    pub fn hear(&mut self, event: &Event) {
        if let Event::PathState {
            at,
            remote,
            path,
            state,
            why,
        } = event
        {
            self.quality.note(*at, remote, *path, *state, *why);
        }
    }

    /// Judges what was heard, and everything if it is time, and passes on its orders and which paths are suspect. What has changed, and how many paths are suspect until when.
    pub fn turn(&mut self, now: Time, site: &mut Site, base: PeerId) -> (Vec<Change>, Option<(usize, Time)>) {
        let is_due = self.next <= now;
        if is_due {
            self.quality.take(now.0, site.core.path_reports(base).into_iter());
            self.next = now.after(EVERY);
        }
        let changes = self.quality.judge(now.0, is_due);
        self.quality.order(now.0, |order| {
            // Paths may be gone by now.
            let _ = site.core.order_paths(base, order.class, order.paths);
            true
        });
        let mut suspects = None;
        if is_due {
            self.quality.suspect(now.0, |suspicion| {
                let (paths, length) = (&suspicion.paths, suspicion.length);
                let _ = site.core.suspect_paths(base, paths, length);
                suspects = Some((paths.len(), now.after(Duration::from_millis(length.into()))));
                true
            });
        }
        (changes, suspects)
    }
}
