//! How a worker sleeps until a port, another thread or the clock has something for it.

use std::io;

use patronus_crypto::{Duration, Time};
use patronus_io::{PORT_FDS, Port};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};

use super::{Ready, Worker, lan_bit, wan_bit};
use crate::clock::Clock;
use crate::courtesy::Courtesy;
use crate::stats::WorkerStats;

/// The descriptors that a worker sleeps on.
pub(super) struct Poller {
    epoll: OwnedFd,
    /// What a look finds that went wrong: as good as an event from everywhere.
    pub(super) every_port: Ready,
    /// Ports without descriptors, which nothing wakes us for.
    pub(super) polled: Ready,
    events: Vec<epoll::Event>,
    /// Whether the last look found a call of another thread.
    pub(super) called: bool,
    /// Whether the last look found the timer of `courtesy`.
    timer_fired: bool,
    /// Whether the last sleep ended with work: an idle tunnel is not measured.
    traffic: bool,
    /// None where the system or whoever started the process has another idea of how to wake.
    courtesy: Option<Courtesy>,
}

/// What a descriptor in the poller stands for, besides the ports, which are known by their bits.
const INBOX: u64 = 32;
const TIMER: u64 = 33;

impl Poller {
    pub(super) fn new(worker: &Worker) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut poller = Poller {
            events: Vec::with_capacity(2 * PORT_FDS),
            every_port: worker.every_port(),
            polled: Ready::NONE,
            called: false,
            timer_fired: false,
            traffic: false,
            courtesy: Courtesy::begin(&epoll, EventData::new_u64(TIMER)),
            epoll,
        };
        poller.add(worker.crew.inbox().waker.as_fd(), INBOX)?;
        for (at, lan) in worker.lans.iter().enumerate() {
            for fd in lan.iter().flat_map(|lan| lan.port.wait_fds()) {
                poller.add(fd, lan_bit(at).into())?;
            }
            let is_polled = lan.as_ref().is_some_and(|lan| lan.port.wait_fds().is_empty());
            poller.polled.set(lan_bit(at), is_polled);
        }
        for (at, wan) in worker.wans.iter().enumerate() {
            poller.replace(wan_bit(at), None, wan.as_ref().map(|wan| &*wan.port));
        }
        Ok(poller)
    }

    fn add(&self, fd: impl AsFd, what: u64) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(what),
            EventFlags::IN,
        )?)
    }

    pub(super) fn replace(
        &mut self,
        bit: u32,
        old: Option<&(dyn Port + Send)>,
        new: Option<&(dyn Port + Send)>,
    ) {
        for fd in old.iter().flat_map(|port| port.wait_fds()) {
            let _ = epoll::delete(&self.epoll, fd);
        }
        for fd in new.iter().flat_map(|port| port.wait_fds()) {
            // Out of memory for a watch: the port is still read whenever something else wakes the worker.
            let _ = self.add(fd, bit.into());
        }
        let is_polled = new.is_some_and(|port| port.wait_fds().is_empty());
        self.polled.set(bit, is_polled);
    }

    /// A turn begins.
    pub(super) fn turn(&mut self, now: Time) {
        if let Some(courtesy) = &mut self.courtesy {
            courtesy.turn(now);
        }
    }

    /// Waits for something to do, until then at the latest, and for the timer that tells how long waking takes. With how much too late does no harm.
    pub(super) fn sleep(
        &mut self,
        clock: &dyn Clock,
        stats: &WorkerStats,
        (due, bearable): (Option<Time>, Duration),
    ) -> Ready {
        if self.traffic
            && let Some(courtesy) = &mut self.courtesy
        {
            courtesy.before_sleep(clock.mono(), stats.received());
        }
        // What is overdue already says nothing about waking.
        let begun = clock.mono();
        let alarm = due.filter(|due| *due > begun);
        let most = due.map(|due| due.since(begun));
        let most = most.and_then(|most| Timespec::try_from(most).ok());
        let ready = self.look(most.as_ref());
        if let Some(courtesy) = &mut self.courtesy {
            let now = clock.mono();
            let late = alarm.map_or(Duration::ZERO, |due| now.since(due));
            if courtesy.woke(now, now.since(begun), late, bearable) {
                stats.realtime.add(1);
            }
            if self.timer_fired {
                courtesy.timer_fired(now);
            }
        }
        self.traffic = ready != Ready::NONE || self.called;
        ready
    }

    pub(super) fn look(&mut self, timeout: Option<&Timespec>) -> Ready {
        self.events.clear();
        (self.called, self.timer_fired) = (false, false);
        if epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout).is_err() {
            // Interrupted.
            return self.every_port;
        }
        let mut ready = self.polled;
        for event in &self.events {
            match event.data.u64() {
                INBOX => self.called = true,
                TIMER => self.timer_fired = true,
                bit => ready.set(bit as u32, true),
            }
        }
        ready
    }
}
