//! The main thread: holds what the site is to be against what the engine has, and carries out orders, one after the other.
//!
//! It sleeps until the engine says something or is gone, somebody orders something, a signal comes, or a time is over. The engine is told a site when
//! it has another one than is wanted, and never otherwise, so that a restart of this process changes nothing. What is tried and not confirmed is on
//! disk ([`confirmation`](crate::confirmation)) before the engine hears of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use patronus_config::plan::Process;
use patronus_config::{Config, Plan, diff};
use patronus_io::signal::{self, Asked};
use patronus_link::{Attached, Command, DRILL_MAX, Event, content_of};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use crate::confirmation::{Deadline, Record, Store, Told, Tried};
use crate::decisions::Decisions;
use crate::engine::Engine;
use crate::history::{History, Recorder};
use crate::keep::Keeper;
use crate::known::{Attachment, Board, Known};
use crate::message::{Code, Failure, Order};
use crate::notify::Notifier;
use crate::paths::{Paths, Shared};
use crate::site_file::{self, Loaded};
use crate::wake::{Inbox, Job, Outcome, Reply};

/// How long the engine may take to say what has come of a site: a full one takes well under a second.
const ANSWER: Duration = Duration::from_secs(20);

/// What the main thread is made from.
pub struct Parts {
    /// The site's file.
    pub file: PathBuf,
    /// The engine's socket, if it is not the one that the site's file says.
    pub engine: Option<PathBuf>,
    /// Where the record is kept.
    pub store: Store,
    /// Where decisions are written down.
    pub decisions: Decisions,
    /// Where what has to survive is written down.
    pub keeper: Keeper,
    /// Orders.
    pub inbox: Inbox,
    /// What everybody may know.
    pub board: Arc<Board>,
    /// SIGHUP, SIGINT, SIGTERM.
    pub signals: OwnedFd,
    /// systemd.
    pub notifier: Notifier,
}

/// The main thread's state.
pub struct Control {
    file: PathBuf,
    store: Store,
    inbox: Inbox,
    board: Arc<Board>,
    signals: OwnedFd,
    notifier: Notifier,
    engine: Engine,
    /// What is to be in force.
    wanted: Loaded,
    record: Record,
    /// The engine that is attached, and what it has.
    attachment: Option<Attachment>,
    /// What it was told and has not answered.
    flight: Option<Flight>,
    /// The highest number that an engine was told.
    generation: u64,
    /// Why it does not have what is wanted.
    refused: Option<String>,
    applied: u64,
    refusals: u64,
    history: Arc<History>,
    recorder: Recorder,
    paths: Paths,
    alive_at: Instant,
}

/// A site on its way to the engine.
struct Flight {
    candidate: Loaded,
    generation: u64,
    until: Instant,
    why: Why,
    /// Which key files it came with.
    keys: Option<u64>,
    /// Who has ordered it, and how it differs.
    reply: Option<(Reply, Plan)>,
}

/// Why the engine is told something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It has something else.
    CatchUp,
    /// Somebody wants it, and confirms it within this time if one is given.
    Apply(Option<Duration>),
    /// It was not confirmed, or is not wanted any more.
    GoBack,
}

impl Control {
    /// Reads the site's file and what was recorded. An error is why there is nothing to be in force.
    pub fn new(parts: Parts) -> Result<Control, Failure> {
        let (wanted, record) = begin(&parts.file, &parts.store)?;
        wanted.log_warnings();
        let engine = parts
            .engine
            .as_ref()
            .unwrap_or(&wanted.config.control.engine_socket);
        let mut paths = Paths::new(Shared::default(), Arc::new(parts.decisions), parts.keeper);
        paths.configure(&wanted.site, &wanted.config);
        let history = Arc::new(History::default());
        Ok(Control {
            engine: Engine::new(engine),
            file: parts.file,
            store: parts.store,
            inbox: parts.inbox,
            board: parts.board,
            signals: parts.signals,
            notifier: parts.notifier,
            paths,
            wanted,
            record,
            attachment: None,
            flight: None,
            generation: 0,
            refused: None,
            applied: 0,
            refusals: 0,
            recorder: Recorder::new(Arc::clone(&history)),
            history,
            alive_at: Instant::now(),
        })
    }

    /// What is to be in force.
    pub fn config(&self) -> &Config {
        &self.wanted.config
    }

    /// Runs until a signal ends it.
    pub fn run(mut self) -> io::Result<()> {
        self.tell();
        self.notifier.ready("looking for the engine");
        loop {
            match signal::take(&self.signals) {
                Some(Asked::End) => {
                    self.notifier.stopping();
                    self.paths.finish();
                    info!("ended by a signal; the engine goes on with what it has");
                    return Ok(());
                }
                Some(Asked::Reload) => self.reload(),
                None => {}
            }
            if let Some(attached) = self.engine.attach() {
                self.attached(&attached);
            }
            self.hear_engine();
            self.paths.look_at_caps();
            self.look_at_paths();
            // Before orders are taken: one that waits for an answer that never comes keeps the others waiting.
            self.look_at_deadlines();
            self.take_orders();
            self.notify_alive();
            self.sleep()?;
        }
    }

    fn attached(&mut self, attached: &Attached) {
        let Some(statistics) = self.engine.statistics() else {
            return;
        };
        self.attachment = Some(Attachment {
            boot: attached.boot,
            generation: attached.generation,
            statistics,
        });
        self.refused = None;
        self.paths.attached(attached.boot);
        let wanted = content_of(&self.wanted.site);
        let has_site = wanted.is_ok_and(|wanted| attached.generation > 0 && wanted == attached.content);
        if has_site && !self.has_other_keys(attached.boot) {
            info!("the engine has what is wanted");
            self.tell();
        } else {
            let candidate = self.wanted.clone();
            self.send(candidate, Why::CatchUp, None);
        }
    }

    /// Whether key files are others than this engine was told. Of one that somebody else has told nobody knows.
    fn has_other_keys(&self, boot: [u8; 16]) -> bool {
        let Some(told) = self.record.told.as_ref().filter(|told| told.boot == boot) else {
            return false;
        };
        let keys = self.wanted.open_keys().ok();
        let now = keys.and_then(|keys| site_file::identity(&keys).ok());
        now.is_some_and(|now| now != told.keys)
    }

    fn hear_engine(&mut self) {
        let mut events = Vec::new();
        let lost = self.engine.events(&mut events);
        for event in events {
            match event {
                Event::Applied {
                    generation, changes, ..
                } => self.answered(generation, Ok(changes)),
                Event::Refused { generation, reason } => self.answered(generation, Err(reason)),
                Event::CommandsRefused { count, reason } => warn!(count, reason, "commands were refused"),
                event @ (Event::PathState { .. }
                | Event::Moved { .. }
                | Event::Session { .. }
                | Event::Endpoint { .. }
                | Event::PeerMoved { .. }
                | Event::Link { .. }) => {
                    self.paths.hear(&event, &self.wanted.config);
                    self.recorder.note(event, &self.wanted.config);
                }
                Event::Unknown(kind) => warn!(kind, "the engine says something unknown"),
            }
        }
        if lost > 0 {
            self.recorder.lost(lost);
        }
        if self.attachment.is_some() && !self.engine.is_attached() {
            self.lose_engine();
        }
    }

    fn look_at_paths(&mut self) {
        let Some(attachment) = &self.attachment else {
            return;
        };
        // While a site is on its way nobody knows which classes the engine has, and where it refuses what is wanted it has others: orders name them by their numbers.
        let may_order = self.flight.is_none() && self.refused.is_none();
        let (table, config) = (&attachment.statistics, &self.wanted.config);
        self.paths.look(&mut self.engine, table, config, may_order);
    }

    /// What is wanted stays so: the next engine is told it. What was on its way is not: nobody knows whether it arrived, or what it has done.
    fn lose_engine(&mut self) {
        self.attachment = None;
        if let Some(flight) = self.flight.take() {
            let reason = "the engine was lost while it was told";
            let failure = Failure::new(Code::NoEngine, reason);
            self.failed(
                flight,
                reason,
                failure.hint("what was in force before is what the next one is told"),
            );
        }
        self.tell();
    }

    /// The engine has said what has come of a site.
    fn answered(&mut self, generation: u64, outcome: Result<u64, String>) {
        let Some(flight) = self.flight.take_if(|flight| flight.generation == generation) else {
            return;
        };
        match outcome {
            Ok(changes) => {
                info!(generation, changes, "applied");
                if let Some(attachment) = &mut self.attachment {
                    attachment.generation = generation;
                }
                self.refused = None;
                self.note_keys(flight.keys);
                self.finish(flight);
            }
            Err(reason) => {
                self.refusals += 1;
                let failure = Failure::new(Code::Refused, format!("the engine refuses: {reason}"));
                self.failed(flight, &reason, failure.hint("what was in force before still is"));
            }
        }
        self.tell();
    }

    /// The engine has these key files from now on.
    fn note_keys(&mut self, keys: Option<u64>) {
        let boot = self.attachment.as_ref().map(|attachment| attachment.boot);
        let told = boot.zip(keys).map(|(boot, keys)| Told { boot, keys });
        if self.record.told != told {
            self.record.told = told;
            self.write_record();
        }
    }

    /// The candidate is in force from now on, as far as there is an engine.
    fn finish(&mut self, flight: Flight) {
        self.wanted = flight.candidate;
        self.paths.configure(&self.wanted.site, &self.wanted.config);
        self.applied += 1;
        let kept = match flight.why {
            Why::Apply(None) => self.record_applied(),
            _ => Ok(()),
        };
        if let Some((reply, plan)) = flight.reply {
            let done = kept.map(|()| self.report(&plan, flight.why));
            // Who does not wait any more has gone.
            let _ = reply.send(done);
        }
    }

    fn report(&self, plan: &Plan, why: Why) -> Value {
        let confirm = match why {
            Why::Apply(Some(time)) => Some(time.as_secs()),
            _ => None,
        };
        json!({
            "changes": plan.changes,
            "text": plan.to_string(),
            "engine": self.attachment.is_some(),
            "confirm_within": confirm,
        })
    }

    /// The engine does not have it. What was to be in force stays so, but for what was not confirmed: the engine that comes is not told that again.
    fn failed(&mut self, flight: Flight, reason: &str, failure: Failure) {
        error!("{failure}");
        if let Why::Apply(Some(_)) = flight.why {
            self.record.tried = None;
            self.write_record();
        }
        if matches!(flight.why, Why::CatchUp | Why::GoBack) {
            self.refused = Some(reason.to_owned());
        }
        if flight.why == Why::GoBack {
            self.wanted = flight.candidate;
            self.paths.configure(&self.wanted.site, &self.wanted.config);
        }
        if let Some((reply, _)) = flight.reply {
            let _ = reply.send(Err(failure));
        }
    }

    fn take_orders(&mut self) {
        self.inbox.hear();
        while self.flight.is_none() {
            let Some(Job { order, reply }) = self.inbox.take() else {
                return;
            };
            let outcome = match order {
                Order::Apply { confirm, restart } => {
                    let confirm = confirm.map(|seconds| Duration::from_secs(seconds.into()));
                    self.apply(confirm, restart, Some(reply.clone())).err().map(Err)
                }
                Order::Drill { link, seconds } => Some(self.drill(link, seconds)),
                Order::Confirm => Some(self.confirm()),
                Order::Rollback => self.go_back(Some(reply.clone())).err().map(Err),
                Order::Show { .. }
                | Order::Flows(_)
                | Order::Quality { .. }
                | Order::Plan { .. }
                | Order::Observe { .. }
                | Order::Why { .. }
                | Order::WhyFlow(_)
                | Order::Decisions { .. } => {
                    Some(Err(Failure::new(Code::BadRequest, "not for the main thread")))
                }
            };
            if let Some(outcome) = outcome {
                let _ = reply.send(outcome);
            }
            self.tell();
        }
    }

    /// Puts the file in force. The answer comes when the engine has said what has come of it.
    fn apply(
        &mut self,
        confirm: Option<Duration>,
        restart: bool,
        reply: Option<Reply>,
    ) -> Result<(), Failure> {
        if self.is_tried() {
            let said = "what was applied last is not confirmed yet";
            return Err(Failure::new(Code::Busy, said)
                .hint("`patronus confirm` keeps it, `patronus rollback` goes back"));
        }
        let candidate = site_file::load(&self.file)?;
        candidate.log_warnings();
        let plan = diff(&self.wanted.config, &candidate.config);
        if plan.restarts(Process::Engine) && !restart && self.attachment.is_some() {
            return Err(needs_restart(&plan));
        }
        if plan.restarts(Process::Engine) && confirm.is_some() {
            let said =
                "what takes a restart of the engine cannot be tried: to go back would take another one";
            return Err(Failure::new(Code::BadRequest, said).hint("leave out `--confirm`"));
        }
        candidate.open_keys()?;
        if let Some(time) = confirm {
            self.record.tried = Some(Tried {
                text: candidate.text.to_string(),
                until: Some(Deadline::after(time)),
            });
            self.store
                .write(&self.record)
                .map_err(|error| not_written(&error))?;
        }
        let reply = reply.map(|reply| (reply, plan));
        match restart {
            // The engine that comes is told.
            true => self.settle(candidate, Why::Apply(confirm), reply),
            false => self.send(candidate, Why::Apply(confirm), reply),
        }
        Ok(())
    }

    /// Tells the engine, if there is one.
    fn send(&mut self, candidate: Loaded, why: Why, reply: Option<(Reply, Plan)>) {
        let Some(attachment) = &self.attachment else {
            return self.settle(candidate, why, reply);
        };
        let generation = attachment.generation.max(self.generation).saturating_add(1);
        self.generation = generation;
        let flight = |candidate, keys| Flight {
            candidate,
            keys,
            generation,
            until: Instant::now() + ANSWER,
            why,
            reply,
        };
        let published = candidate.open_keys().and_then(|keys| {
            let published = self.engine.publish(&candidate.site, generation, &keys);
            published.map_err(|reason| {
                Failure::new(Code::NoEngine, format!("the engine cannot be told: {reason}"))
            })?;
            Ok(site_file::identity(&keys).ok())
        });
        match published {
            Ok(keys) => self.flight = Some(flight(candidate, keys)),
            Err(failure) => {
                let flight = flight(candidate, None);
                self.failed(flight, &failure.message.clone(), failure);
            }
        }
        self.tell();
    }

    /// Without an engine, or for the one that comes.
    fn settle(&mut self, candidate: Loaded, why: Why, reply: Option<(Reply, Plan)>) {
        let flight = Flight {
            candidate,
            generation: 0,
            until: Instant::now(),
            why,
            keys: None,
            reply,
        };
        self.finish(flight);
        self.tell();
    }

    /// Has the engine treat a link as cut for a while.
    fn drill(&mut self, link: u8, seconds: u32) -> Outcome {
        let most = DRILL_MAX / 1000;
        if seconds > most {
            let said = format!("a drill of {seconds} s: {most} s at most");
            return Err(Failure::new(Code::BadRequest, said));
        }
        let links = &self.wanted.site.links;
        let Some(known) = links.iter().find(|known| known.id == link) else {
            return Err(Failure::new(Code::BadRequest, format!("there is no link {link}")));
        };
        let length = seconds * 1000;
        if self.attachment.is_none() || !self.engine.command(&Command::Drill { link, length }) {
            return Err(Failure::new(Code::NoEngine, "the engine cannot be told"));
        }
        info!(link, seconds, "a drill");
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(json!({
            "link": link,
            "interface": known.interface,
            "seconds": seconds,
            "at": at.map_or(0.0, |at| at.as_secs_f64()),
        }))
    }

    fn confirm(&mut self) -> Outcome {
        if !self.is_tried() {
            return Err(Failure::new(Code::NothingPending, "there is nothing to confirm"));
        }
        self.record_applied()?;
        info!("confirmed");
        Ok(json!({ "confirmed": true }))
    }

    /// What is in force was wanted for good.
    fn record_applied(&mut self) -> Result<(), Failure> {
        self.record = Record {
            applied: self.wanted.text.to_string(),
            tried: None,
            told: self.record.told.take(),
        };
        self.store
            .write(&self.record)
            .map_err(|error| not_written(&error))
    }

    /// What is in force has to be confirmed.
    fn is_tried(&self) -> bool {
        self.confirm_by().is_some()
    }

    fn confirm_by(&self) -> Option<&Deadline> {
        self.record.tried.as_ref()?.until.as_ref()
    }

    /// Goes back to what was applied for good.
    fn go_back(&mut self, reply: Option<Reply>) -> Result<(), Failure> {
        if !self.is_tried() {
            return Err(Failure::new(
                Code::NothingPending,
                "there is nothing to go back from",
            ));
        }
        let before = site_file::understand(&self.file, &self.record.applied)?;
        if let Some(tried) = &mut self.record.tried {
            tried.until = None;
        }
        self.write_record();
        let plan = diff(&self.wanted.config, &before.config);
        self.send(before, Why::GoBack, reply.map(|reply| (reply, plan)));
        Ok(())
    }

    fn write_record(&self) {
        if let Err(error) = self.store.write(&self.record) {
            error!(%error, "what is in force cannot be written down");
        }
    }

    /// SIGHUP.
    fn reload(&mut self) {
        self.notifier.reloading();
        let applied = match self.flight {
            None => self.apply(None, false, None),
            Some(_) => Err(Failure::new(Code::Busy, "the engine has not answered yet")),
        };
        if let Err(failure) = applied {
            error!("the file is not applied: {failure}");
        }
        self.tell();
        self.notifier.ready("the site's file was read again");
    }

    fn look_at_deadlines(&mut self) {
        if let Some(flight) = self.flight.take_if(|flight| flight.until <= Instant::now()) {
            // Nobody knows whether it will have it yet: the hello of the next attachment says so, and then it is told what is wanted.
            let reason = "the engine does not answer";
            self.engine.lose(reason);
            self.attachment = None;
            self.failed(flight, reason, Failure::new(Code::Timeout, reason));
            self.tell();
        }
        let is_over = self.confirm_by().is_some_and(|until| until.left().is_zero());
        if is_over && self.flight.is_none() {
            warn!("not confirmed in time: going back to what was in force before");
            if let Err(failure) = self.go_back(None) {
                error!("cannot go back: {failure}");
                self.record.tried = None;
                self.write_record();
            }
            self.tell();
        }
    }

    fn notify_alive(&mut self) {
        if let Some(every) = self.notifier.watchdog()
            && Instant::now() >= self.alive_at
        {
            self.notifier.alive();
            self.alive_at = Instant::now() + every;
        }
    }

    fn sleep(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let watchdog = self.notifier.watchdog().map(|_| self.alive_at);
        let flight = self.flight.as_ref().map(|flight| flight.until);
        let confirm = self.confirm_by().map(|until| now + until.left());
        let paths = self.attachment.as_ref().map(|_| self.paths.again_at());
        let caps = self.paths.caps_at();
        let next = [watchdog, flight, confirm, paths, caps, self.engine.again_at()];
        let left = next
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_duration_since(now));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        // Orders wait while the engine has not answered.
        if self.flight.is_none() {
            fds.push(PollFd::from_borrowed_fd(self.inbox.as_fd(), PollFlags::IN));
        }
        let engine = self.engine.fd();
        fds.extend(engine.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Publishes what there is to know.
    fn tell(&self) {
        let confirm_by = self.confirm_by().map(|until| Instant::now() + until.left());
        let status = match (&self.attachment, &self.refused, confirm_by) {
            (None, ..) => "no engine is attached",
            (_, Some(_), _) => "the engine refuses what the file says",
            (_, _, Some(_)) => "waiting for a confirmation",
            _ => "the engine has what the file says",
        };
        self.notifier.status(status);
        self.board.put(Known {
            file: self.file.clone(),
            config: Some(Arc::clone(&self.wanted.config)),
            text: Some(Arc::clone(&self.wanted.text)),
            engine: self.attachment.clone(),
            confirm_by,
            gone_back: self
                .record
                .tried
                .as_ref()
                .is_some_and(|tried| tried.until.is_none()),
            refused: self.refused.clone(),
            history: Arc::clone(&self.history),
            quality: self.paths.shared().clone(),
            decisions: Arc::clone(self.paths.decisions()),
            usages: self.paths.usages().clone(),
            applied: self.applied,
            refusals: self.refusals,
        });
    }
}

fn needs_restart(plan: &Plan) -> Failure {
    let why = plan
        .needs_restart
        .iter()
        .filter(|restart| restart.process == Process::Engine);
    let why: Vec<&str> = why.map(|restart| restart.why.as_str()).collect();
    let said = format!("the engine cannot take this while it runs: {}", why.join("; "));
    Failure::new(Code::NeedsRestart, said)
        .hint("`patronus apply --restart` starts it anew; sessions begin anew, which takes about a second")
}

fn not_written(error: &io::Error) -> Failure {
    Failure::new(
        Code::System,
        format!("what is in force cannot be written down: {error}"),
    )
}

/// What is to be in force at the start, and the record from now on.
fn begin(file: &std::path::Path, store: &Store) -> Result<(Loaded, Record), Failure> {
    let record = store.read().unwrap_or_else(|error| {
        error!(%error, "what was in force last cannot be read");
        None
    });
    let loaded = site_file::load(file);
    let Some(mut record) = record else {
        let loaded = loaded?;
        let record = Record {
            applied: loaded.text.to_string(),
            tried: None,
            told: None,
        };
        store.write(&record).map_err(|error| not_written(&error))?;
        return Ok((loaded, record));
    };
    let is_tried = |loaded: &Loaded, tried: &Tried| *loaded.text == *tried.text;
    match (&loaded, &record.tried) {
        // Whoever has tried it may still confirm it; if the time is over, the main loop goes back at once.
        (_, Some(Tried { text, until: Some(_) })) => match site_file::understand(file, text) {
            Ok(tried) => return Ok((tried, record)),
            // This release understands less than the one that has tried it, or somebody has edited the record.
            Err(failure) => {
                error!(
                    "what was tried and not confirmed cannot be understood any more, and what was in force before is: {failure}"
                );
                let before = site_file::understand(file, &record.applied)?;
                record.tried = record.tried.map(|tried| Tried { until: None, ..tried });
                store.write(&record).map_err(|error| not_written(&error))?;
                return Ok((before, record));
            }
        },
        (Ok(loaded), Some(tried)) if is_tried(loaded, tried) => {
            warn!("the file was not confirmed: what was in force before is so");
            return Ok((site_file::understand(file, &record.applied)?, record));
        }
        (Err(failure), _) => {
            error!("the file is not applied, and what was in force last is: {failure}");
            return Ok((site_file::understand(file, &record.applied)?, record));
        }
        _ => {}
    }
    let loaded = loaded?;
    record = Record {
        applied: loaded.text.to_string(),
        tried: None,
        told: record.told,
    };
    store.write(&record).map_err(|error| not_written(&error))?;
    Ok((loaded, record))
}
