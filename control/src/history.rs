//! What has happened lately, as the engine has said: sessions, endpoints, links, paths. Logged, and kept for whoever asks.
//!
//! The main thread adds, threads of connections copy; the lock is held for no longer than that. What is kept is bounded, and so is what is logged: tens of
//! thousands of peers may come at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use patronus_abi::channel::PathName;
use patronus_config::Config;
use patronus_config::value::PublicKey;
use patronus_link::Event;
use rustix::time::{ClockId, clock_gettime};
use tracing::info;

/// Events that are kept.
pub const KEPT: usize = 1024;
/// Lines that are logged in a second at most; how many more there were is logged afterwards.
const LINES: u32 = 20;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The engine has said it.
    Event(Event),
    /// It had more to say than there was room for.
    Lost {
        /// When, nanoseconds of CLOCK_BOOTTIME.
        at: u64,
        /// So much.
        events: u64,
    },
}

/// The last of it.
#[derive(Default)]
pub struct History(Mutex<VecDeque<Happened>>);

impl History {
    /// What is kept, the oldest first.
    pub fn get(&self) -> Vec<Happened> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }

    fn add(&self, happened: Happened) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(happened);
    }
}

/// The main thread's end.
pub struct Recorder {
    history: Arc<History>,
    /// Lines in this second, and when it began.
    lines: u32,
    since: Instant,
    unsaid: u64,
}

impl Recorder {
    /// Records into this history.
    pub fn new(history: Arc<History>) -> Recorder {
        Recorder {
            history,
            lines: 0,
            since: Instant::now(),
            unsaid: 0,
        }
    }

    /// Keeps what the engine has said, and logs it.
    pub fn note(&mut self, event: Event, config: &Config) {
        if self.may_log()
            && let Some((what, who, text)) = words(&event, &|key| called(config, key), &|class| {
                class_of(config, class)
            })
        {
            info!(what, who, "{text}");
        }
        self.history.add(Happened::Event(event));
    }

    /// The engine had so much more to say.
    pub fn lost(&mut self, events: u64) {
        self.history.add(Happened::Lost {
            at: boot_time(),
            events,
        });
    }

    fn may_log(&mut self) -> bool {
        if self.since.elapsed() >= Duration::from_secs(1) {
            let more = std::mem::take(&mut self.unsaid);
            if more > 0 {
                info!(
                    more,
                    "more has happened: `patronus show events` has the last of it"
                );
            }
            (self.lines, self.since) = (0, Instant::now());
        }
        let may = self.lines < LINES;
        self.lines += u32::from(may);
        self.unsaid += u64::from(!may);
        may
    }
}

/// Now, nanoseconds of CLOCK_BOOTTIME, as the engine gives times.
pub fn boot_time() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// An event in words: its kind, whom it is about, and what has happened. None: it is an answer.
pub fn words(
    event: &Event,
    called: &dyn Fn(&[u8; 32]) -> String,
    class_of: &dyn Fn(u8) -> String,
) -> Option<(&'static str, String, String)> {
    Some(match event {
        Event::Session { peer, lane, up, .. } => {
            let what = if *up {
                "there is a session"
            } else {
                "the session is over"
            };
            ("session", called(peer), format!("{what}{}", on(*lane)))
        }
        Event::Endpoint { peer, lane, to, .. } => {
            ("endpoint", called(peer), format!("is at {to} now{}", on(*lane)))
        }
        Event::PeerMoved {
            peer, from, to, why, ..
        } => {
            let instead = from.map_or_else(String::new, |from| format!(" instead of {from}"));
            let text = format!("the session goes by link {to}{instead}: {}", why.word());
            ("link of a peer", called(peer), text)
        }
        Event::Link { up, name, .. } => {
            let what = if *up { "is there" } else { "is gone" };
            ("link", name.clone(), what.to_owned())
        }
        Event::PathState {
            remote,
            path,
            state,
            why,
            ..
        } => {
            let text = format!("path {path} is {}: {}", state.word(), why.word());
            ("path", called(remote), text)
        }
        Event::Moved {
            remote,
            class,
            from,
            to,
            why,
            ..
        } => {
            let name =
                |path: &Option<PathName>| path.map_or_else(|| "none".to_owned(), |path| path.to_string());
            let (from, to, why, class) = (name(from), name(to), why.word(), class_of(*class));
            let text = format!("flows of class {class} go by path {to} instead of {from}: {why}");
            ("flows", called(remote), text)
        }
        Event::Applied { .. } | Event::Refused { .. } | Event::CommandsRefused { .. } | Event::Unknown(_) => {
            return None;
        }
    })
}

/// Which session is meant, if it is not the base session.
fn on(lane: Option<(PathName, u8)>) -> String {
    lane.map_or_else(String::new, |(path, number)| {
        format!(" (path {path}, lane {number})")
    })
}

/// What the file calls a peer, or else its key.
pub fn called(config: &Config, key: &[u8; 32]) -> String {
    let peer = config
        .peers
        .iter()
        .find(|peer| peer.public_key.get_ref().0 == *key);
    let name = peer.and_then(|peer| peer.name.as_ref());
    name.map_or_else(
        || PublicKey(*key).to_string(),
        |name| name.get_ref().as_str().to_owned(),
    )
}

/// The name of the class that has this number, or else the number: it is one of another site's.
pub fn class_of(config: &Config, number: u8) -> String {
    let name = config.class_name(number);
    name.map_or_else(|| number.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use patronus_abi::channel::{LinkWhy, MoveWhy};

    use super::*;

    fn link(at: u64) -> Event {
        Event::Link {
            at,
            link: 1,
            up: true,
            name: "wan0".to_owned(),
        }
    }

    #[test]
    fn the_last_is_kept_and_not_everything_is_logged() {
        let config = patronus_config::parse_file(
            std::path::Path::new("site.toml"),
            "[site]\nprivate_key_file = 'k'\n",
        );
        let config = config.expect("a site");
        let history = Arc::new(History::default());
        let mut recorder = Recorder::new(Arc::clone(&history));
        let all = 2 * KEPT as u64;
        (0..all).for_each(|at| recorder.note(link(at), &config));
        recorder.lost(7);
        let kept = history.get();
        assert_eq!(kept.len(), KEPT);
        assert_eq!(kept[KEPT - 2], Happened::Event(link(all - 1)));
        assert!(matches!(kept[KEPT - 1], Happened::Lost { events: 7, .. }));
        assert!(recorder.unsaid > 0, "{LINES} lines a second at most");
    }

    #[test]
    fn a_peer_is_called_what_the_file_calls_it() {
        let peer = [7; 32];
        let at = "192.0.2.1:51820".parse().expect("an endpoint");
        let path = PathName { local: 1, remote: 2 };
        let moved = Event::Endpoint {
            at: 1,
            peer,
            lane: Some((path, 3)),
            to: at,
        };
        let said = |event: &Event| {
            let called = |key: &[u8; 32]| format!("site {}", key[0]);
            words(event, &called, &|class| format!("class {class}")).expect("no answer")
        };
        let text = "is at 192.0.2.1:51820 now (path 1-2, lane 3)";
        assert_eq!(said(&moved), ("endpoint", "site 7".to_owned(), text.to_owned()));
        let moved = Event::PeerMoved {
            at: 1,
            peer,
            from: Some(1),
            to: 2,
            why: LinkWhy::GatewaySilent,
        };
        let (_, _, text) = said(&moved);
        assert_eq!(text, "the session goes by link 2 instead of 1: gateway-silent");
    }

    #[test]
    fn a_class_is_called_what_the_file_calls_it() {
        let config = patronus_config::parse_file(
            std::path::Path::new("site.toml"),
            "[site]\nprivate_key_file = 'k'\n[[class]]\nname = 'zeta'\n[[policy]]\naction = 'route'\nclass = 'voice'\n",
        );
        let config = config.expect("a site");
        let names: Vec<String> = (0..4).map(|number| class_of(&config, number)).collect();
        assert_eq!(names, ["default", "voice", "zeta", "3"]);
        let moved = Event::Moved {
            at: 1,
            remote: [7; 32],
            class: 1,
            from: None,
            to: Some(PathName { local: 1, remote: 2 }),
            why: MoveWhy::Up,
        };
        let class = |number| class_of(&config, number);
        let (_, _, text) = words(&moved, &|_| String::new(), &class).expect("no answer");
        assert_eq!(text, "flows of class voice go by path 1-2 instead of none: up");
    }
}
