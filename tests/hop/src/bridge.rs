//! Two interfaces, joined: the loop that takes frames from each, asks the link what becomes of them, and sends them on in time.
//!
//! One thread, which `main` calls [`run`] on; everything belongs to it. It sleeps in `ppoll` until a frame comes, one has to leave, a
//! command is due, or a line or signal arrives.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use patronus_io::packet::{self, FRAMES_MAX, Receiver};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

use crate::link::{Leaving, Link, Packet};
use crate::nat::{Nat, Outcome};
use crate::script::{self, Action, Command};
use crate::wire::{Frame, Pool, complete};
use crate::{Direction, Time};

/// Bytes of a line on standard input.
const LINE_MAX: usize = 4096;
/// Bytes that may wait in the kernel to be sent.
const SEND_BUFFER: usize = 4 << 20;
/// Packets that leave in one direction before arrivals are looked at again.
const TURN: usize = 2 * FRAMES_MAX;
/// Longest sleep, nanoseconds: nothing depends on it.
const SLEEP_MAX: Time = 1_000_000_000;

/// What to join, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// The two interfaces, in the calling thread's network namespace.
    pub interfaces: [String; 2],
    /// Where chance begins.
    pub seed: u64,
    /// Run before everything else on the machine that is not in real time.
    pub realtime: bool,
    /// Commands in the order of their times.
    pub script: Vec<Command>,
}

/// One interface.
struct Side {
    receiver: Receiver,
    sender: OwnedFd,
}

/// The whole link.
struct Bridge {
    sides: [Side; 2],
    links: [Link<Frame>; 2],
    lateness: [Lateness; 2],
    nat: Option<Nat>,
    /// Questions that the NAT answered itself, by the direction that they came in.
    answered: [u64; 2],
    pool: Pool,
    leaving: Vec<Frame>,
    /// Commands that wait, the next one last.
    script: Vec<Command>,
    seed: u64,
    begun: Time,
    ended: bool,
}

/// Joins the interfaces until a signal or the command `end` comes, and then says what happened.
pub fn run(config: Config) -> io::Result<()> {
    let signals = patronus_io::signal::termination()?;
    // Timeouts of ppoll may otherwise be late by 50 microseconds (prctl(2), PR_SET_TIMERSLACK).
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    if config.realtime {
        patronus_io::schedule::set_realtime().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("--realtime: {error}; it needs CAP_SYS_NICE"),
            )
        })?;
    }
    let mut bridge = Bridge::new(config)?;
    say("ready\n")?;
    let mut input = Input::new();
    while !bridge.ended {
        bridge.run_script()?;
        let (mut readable, mut signalled) = (false, false);
        bridge.wait(&input, &signals, &mut readable, &mut signalled)?;
        for direction in Direction::BOTH {
            bridge.receive(direction)?;
        }
        for direction in Direction::BOTH {
            bridge.release(direction);
        }
        if readable {
            for line in input.lines()? {
                say(&bridge.answer(&line)?)?;
            }
        }
        bridge.ended |= signalled;
    }
    say(&bridge.report()?)
}

impl Bridge {
    fn new(config: Config) -> io::Result<Bridge> {
        let [a, b] = &config.interfaces;
        let sides = [Side::open(a)?, Side::open(b)?];
        let mut script = config.script;
        script.reverse();
        Ok(Bridge {
            sides,
            links: [0, 1].map(|direction| Link::new(config.seed, direction)),
            lateness: [Lateness::default(), Lateness::default()],
            nat: None,
            answered: [0; 2],
            pool: Pool::default(),
            leaving: Vec::with_capacity(FRAMES_MAX),
            script,
            seed: config.seed,
            begun: now(),
            ended: false,
        })
    }

    /// Carries out the commands that are due.
    fn run_script(&mut self) -> io::Result<()> {
        let since = now().saturating_sub(self.begun);
        while let Some(command) = self.script.pop_if(|next| next.at.unwrap_or(0) <= since) {
            let said = self.perform(&command.action)?;
            if !said.is_empty() {
                say(&said)?;
            }
        }
        Ok(())
    }

    /// Sleeps until there is something to do.
    fn wait(
        &self,
        input: &Input,
        signals: &OwnedFd,
        readable: &mut bool,
        signalled: &mut bool,
    ) -> io::Result<()> {
        let leaving = self.links.iter().filter_map(Link::next_at);
        let command = self.script.last().map(|next| self.begun + next.at.unwrap_or(0));
        let time = now();
        let next = leaving.chain(command).min().unwrap_or(Time::MAX);
        let sleep = timespec(next.saturating_sub(time).min(SLEEP_MAX));
        let [a, b] = &self.sides;
        let stdin = rustix::stdio::stdin();
        let mut fds = vec![
            PollFd::new(&a.receiver, PollFlags::IN),
            PollFd::new(&b.receiver, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        if input.open {
            fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        match poll(&mut fds, Some(&sleep)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        *signalled = !fds[2].revents().is_empty();
        *readable = fds.get(3).is_some_and(|fd| !fd.revents().is_empty());
        Ok(())
    }

    /// Takes what arrived from one side and offers it to the link.
    fn receive(&mut self, direction: Direction) -> io::Result<()> {
        let Bridge {
            sides,
            links,
            nat,
            answered,
            pool,
            ..
        } = self;
        let side = direction.index();
        match sides[side].receiver.receive() {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // The interface is down; it may come back.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NETDOWN.raw_os_error()) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let read = now();
        for (received, bytes) in sides[side].receiver.frames() {
            let arrived = read.saturating_sub(received.age);
            let len = bytes.len();
            let done = complete(&received, bytes, pool, |mut frame, pool| {
                links[side].came(frame.frame_len());
                let outcome = match nat {
                    Some(nat) => nat.translate(direction, frame.bytes_mut()),
                    None => Outcome::On,
                };
                let left = match outcome {
                    Outcome::On => links[side].offer(arrived, frame),
                    Outcome::Drop => {
                        links[side].counters.dropped_nat += 1;
                        Some(frame)
                    }
                    Outcome::Answer => {
                        answered[side] += 1;
                        let back = &mut links[direction.other().index()];
                        back.came(frame.frame_len());
                        back.offer(arrived, frame)
                    }
                };
                if let Some(frame) = left {
                    pool.put(frame);
                }
            });
            if done.is_err() {
                links[side].came(len);
                links[side].counters.dropped_malformed += 1;
            }
        }
        Ok(())
    }

    /// Sends what has to leave in one direction.
    fn release(&mut self, direction: Direction) {
        let side = direction.index();
        let mut turn = 0;
        while turn < TURN {
            let time = now();
            while self.leaving.len() < FRAMES_MAX {
                match self.links[side].take(time) {
                    Some(Leaving::On(at, frame)) => {
                        self.lateness[side].add(time - at);
                        self.leaving.push(frame);
                    }
                    Some(Leaving::Cut(frame)) => self.pool.put(frame),
                    None => break,
                }
            }
            if self.leaving.is_empty() {
                return;
            }
            turn += self.leaving.len();
            self.send(direction);
        }
    }

    /// Sends `leaving`, in order. What the interface refuses is counted.
    fn send(&mut self, direction: Direction) {
        let socket = self.sides[direction.other().index()].sender.as_fd();
        let counters = &mut self.links[direction.index()].counters;
        let mut frames = [&[][..]; FRAMES_MAX];
        for (frame, bytes) in self.leaving.iter().zip(&mut frames) {
            *bytes = frame.bytes();
        }
        let mut rest = &frames[..self.leaving.len()];
        let mut waited = false;
        while !rest.is_empty() {
            let gone = match packet::send(socket, rest) {
                Ok(sent) => {
                    counters.sent += sent as u64;
                    counters.sent_bytes += rest[..sent].iter().map(|frame| frame.len() as u64).sum::<u64>();
                    sent
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !waited => {
                    waited = true;
                    wait_writable(socket);
                    0
                }
                Err(_) => {
                    counters.dropped_send += 1;
                    1
                }
            };
            rest = &rest[gone..];
        }
        self.leaving.drain(..).for_each(|frame| self.pool.put(frame));
    }

    /// Carries out a line from standard input; what to say to it.
    fn answer(&mut self, line: &str) -> io::Result<String> {
        match script::parse_line(line) {
            Ok(None) => Ok("ok\n".to_owned()),
            Ok(Some(command)) => match command.at {
                Some(at) => Ok(self.schedule(at, command)),
                None => Ok(self.perform(&command.action)? + "ok\n"),
            },
            Err(error) => Ok(format!("error: {error}\n")),
        }
    }

    fn schedule(&mut self, at: Time, command: Command) -> String {
        if self.script.len() >= script::COMMANDS_MAX {
            return format!(
                "error: {} commands wait already, which is the limit\n",
                self.script.len()
            );
        }
        // Behind those of the same time, which stand nearer to the end.
        let place = self.script.partition_point(|other| other.at.unwrap_or(0) > at);
        self.script.insert(place, command);
        "ok\n".to_owned()
    }

    fn perform(&mut self, action: &Action) -> io::Result<String> {
        match *action {
            Action::Set(scope, change) => {
                for direction in scope.directions() {
                    let link = &mut self.links[direction.index()];
                    link.set(change.apply(*link.settings()));
                }
            }
            Action::Nat(outward, address) => self.nat = Some(Nat::new(self.seed, outward, address)),
            Action::NatOff => self.nat = None,
            Action::Rebind => match &mut self.nat {
                Some(nat) => nat.rebind(),
                None => return Ok("nothing to rebind: there is no nat\n".to_owned()),
            },
            Action::Seed(seed) => {
                self.seed = seed;
                for (number, link) in self.links.iter_mut().enumerate() {
                    link.seed(seed, number);
                }
            }
            Action::Show => return self.report(),
            Action::End => self.ended = true,
        }
        Ok(String::new())
    }

    /// Every counter as a line, `DIRECTION.NAME=VALUE`.
    fn report(&mut self) -> io::Result<String> {
        let mut text = String::new();
        for direction in Direction::BOTH {
            let (side, name) = (direction.index(), direction.name());
            let mut line = |counter: &str, value: u64| text.push_str(&format!("{name}.{counter}={value}\n"));
            self.links[side]
                .counters
                .named()
                .for_each(|(counter, value)| line(counter, value));
            line("waiting", self.links[side].waiting() as u64);
            line("answered", self.answered[side]);
            line("missed", self.sides[side].receiver.missed()?);
            line("late_p50_ns", self.lateness[side].quantile(50));
            line("late_p99_ns", self.lateness[side].quantile(99));
        }
        Ok(text)
    }
}

impl Side {
    fn open(name: &str) -> io::Result<Side> {
        let explained = |error: io::Error| io::Error::new(error.kind(), format!("interface {name}: {error}"));
        let open = || -> io::Result<Side> {
            let probe = rustix::net::socket(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::DGRAM,
                None,
            )?;
            let index = rustix::net::netdevice::name_to_index(&probe, name)?;
            let sender = packet::sender(index)?;
            // Without CAP_NET_ADMIN the limit of the system holds.
            let forced = rustix::net::sockopt::set_socket_send_buffer_size_force(&sender, SEND_BUFFER);
            forced.or_else(|_| rustix::net::sockopt::set_socket_send_buffer_size(&sender, SEND_BUFFER))?;
            Ok(Side {
                receiver: Receiver::new(index)?,
                sender,
            })
        };
        open().map_err(explained)
    }
}

/// How late packets left, by the loop's own clock: a histogram with eight steps to each power of two.
struct Lateness {
    counts: [u64; 64 * 8],
    total: u64,
}

impl Default for Lateness {
    fn default() -> Lateness {
        Lateness {
            counts: [0; 64 * 8],
            total: 0,
        }
    }
}

impl Lateness {
    fn add(&mut self, nanos: u64) {
        // Below 8 a step for each number; above, the three bits behind the highest one.
        let step = match nanos.checked_ilog2() {
            Some(power @ 3..) => (power as usize - 2) * 8 + ((nanos >> (power - 3)) & 7) as usize,
            _ => nanos as usize,
        };
        self.counts[step] += 1;
        self.total += 1;
    }

    /// The lower end of the step that this percentage of the packets does not exceed.
    fn quantile(&self, percent: u64) -> u64 {
        let wanted = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (step, count) in (0u64..).zip(self.counts) {
            seen += count;
            if seen >= wanted {
                return if step < 8 {
                    step
                } else {
                    (8 + step % 8) << (step / 8 - 1)
                };
            }
        }
        0
    }
}

/// Lines from standard input.
struct Input {
    open: bool,
    partial: Vec<u8>,
}

impl Input {
    fn new() -> Input {
        Input {
            open: true,
            partial: Vec::new(),
        }
    }

    /// What can be read now, as far as it is whole lines. The end of the input ends reading and nothing else.
    fn lines(&mut self) -> io::Result<Vec<String>> {
        let mut buffer = [0; LINE_MAX];
        let count = match rustix::io::read(rustix::stdio::stdin(), &mut buffer[..]) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(Vec::new()),
            // A terminal that went away.
            Err(rustix::io::Errno::IO) => 0,
            Err(error) => return Err(error.into()),
        };
        self.open = count > 0;
        self.partial.extend_from_slice(&buffer[..count]);
        if !self.open && !self.partial.is_empty() {
            self.partial.push(b'\n');
        }
        let mut lines = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if self.partial.len() > LINE_MAX {
            return Err(io::Error::other(format!(
                "a line on standard input is longer than {LINE_MAX} bytes"
            )));
        }
        Ok(lines)
    }
}

/// `CLOCK_MONOTONIC`.
fn now() -> Time {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn timespec(nanos: Time) -> Timespec {
    Timespec {
        tv_sec: (nanos / 1_000_000_000) as i64,
        tv_nsec: (nanos % 1_000_000_000) as i64,
    }
}

/// Waits until the socket can send, a millisecond at most.
fn wait_writable(socket: BorrowedFd<'_>) {
    // However this ends, the frame is tried once more and then counted.
    let _ = poll(
        &mut [PollFd::from_borrowed_fd(socket, PollFlags::OUT)],
        Some(&timespec(1_000_000)),
    );
}

/// Whoever listened may be gone; that is no reason to cut the link.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_an_eighth() {
        let mut lateness = Lateness::default();
        assert_eq!(lateness.quantile(50), 0);
        for nanos in 1..=10_000u64 {
            lateness.add(nanos);
        }
        for percent in [1, 10, 50, 99, 100] {
            let (said, exact) = (lateness.quantile(percent), percent * 100);
            assert!(said <= exact && said * 9 >= exact * 8, "{percent} %: {said}");
        }
        lateness.add(u64::MAX);
        assert!(lateness.quantile(100) > u64::MAX / 2);
    }
}
