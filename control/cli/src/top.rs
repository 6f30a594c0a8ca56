//! `top`: paths and the busiest flows in the terminal, drawn anew every second; printed once where there is no terminal to draw on.
//!
//! Escape sequences of ECMA-48 that every terminal of today knows, and termios(3): a screen that is drawn as a whole needs no library.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use patronus_control::client::Client;
use patronus_control::message::{Code, FlowFilter, Order};
use patronus_control::view::{Measured, Window};
use patronus_io::signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

use crate::ask::connect;
use crate::flows::{self, Busy, Rates};
use crate::output::{Exit, Outcome, Output, Table, Wrong, escaped};
use crate::paths::{self, COMMON};
use crate::show::{bytes, read};

/// How often it is drawn.
const EVERY: Duration = Duration::from_secs(1);

/// How many flows are shown one by one where nobody says how much room there is.
const FLOWS: usize = 10;
/// What a terminal is taken for that does not know its size (a serial line).
const SIZE: (usize, usize) = (24, 80);
/// Columns that a narrow terminal has no room for, what matters least first: P99, round trips of a minute, jitter, for how long, classes.
const SPARE: [usize; 6] = [5, 13, 7, 6, 3, 12];

/// `patronus top`.
pub fn top(output: Output, socket: &Path, remote: Option<String>, once: bool) -> Outcome {
    let asked = Order::Quality { remote };
    let mut client = connect(socket)?;
    if once || output.json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return print(output, &mut client, asked);
    }
    let failed = |error: io::Error| Wrong::failed(format!("the terminal: {error}"));
    // Before the terminal is changed, so that a signal does not leave it so.
    let signals = signal::termination().map_err(failed)?;
    let screen = Screen::enter().map_err(failed)?;
    let ended = watch(&screen, client, socket, &asked, &signals);
    drop(screen);
    ended
}

/// Once, for scripts.
fn print(output: Output, client: &mut Client, asked: Order) -> Outcome {
    let shown = client.ask(asked)?;
    if output.json {
        return output.print(&shown, "");
    }
    let mut rates = Rates::default();
    let mut flows = look_at_flows(client, &mut rates)?;
    if !flows.is_empty() {
        // A rate takes two looks.
        std::thread::sleep(EVERY);
        flows = look_at_flows(client, &mut rates)?;
    }
    let mut text = table(&read::<Vec<Measured>>(&shown)?).to_string();
    if !flows.is_empty() {
        let sums = flows::by_class_and_path(&flows);
        let single = flows::busiest(&flows[..flows.len().min(FLOWS)]);
        text.push_str(&format!("\n{sums}\n{single}"));
    }
    output.print(&shown, text)
}

fn look_at_flows(client: &mut Client, rates: &mut Rates) -> Result<Vec<Busy>, Wrong> {
    let shown = client.ask(Order::Flows(FlowFilter::default()))?;
    Ok(rates.take(Instant::now(), read(&shown)?))
}

/// What is drawn.
#[derive(Default)]
struct View {
    paths: Vec<Measured>,
    flows: Vec<Busy>,
    /// The first path.
    first: usize,
    /// Why this is what was seen last and not what is.
    wrong: Option<String>,
}

impl View {
    /// Looks anew. The control process may be started again meanwhile.
    fn look(&mut self, client: &mut Client, asked: &Order, rates: &mut Rates) -> Result<(), Wrong> {
        let shown = client.ask(asked.clone())?;
        self.paths = read(&shown)?;
        self.flows = look_at_flows(client, rates)?;
        self.wrong = None;
        Ok(())
    }

    /// The lines of a screen with this much room.
    fn lines(&self, rows: usize, columns: usize) -> Vec<String> {
        let up = self.paths.iter().filter(|path| path.health.state == "up").count();
        let all = self.paths.len();
        let head = match &self.wrong {
            Some(wrong) => format!("patronus top: {}", escaped(wrong).replace(['\n', '\t'], " ")),
            None => format!("patronus top: {up} of {all} paths up; q quits, up and down scroll"),
        };
        let paths = table(&self.paths[self.first.min(all)..]).within(columns, &SPARE);
        let mut lines = vec![head];
        // Half of the screen for flows, if there are so many, and at least their headings and a few.
        let of_flows = match self.flows.is_empty() {
            true => 0,
            false => (rows / 2).max(rows.saturating_sub(all + 2)),
        };
        let of_paths = rows.saturating_sub(of_flows);
        lines.extend(paths.to_string().lines().map(str::to_owned));
        lines.truncate(of_paths);
        if of_flows > 0 {
            let sums = flows::by_class_and_path(&self.flows).to_string();
            let sums = sums.lines().take(of_flows / 2).map(str::to_owned);
            let single = flows::busiest(&self.flows[..self.flows.len().min(rows)]);
            let single = single.within(columns, &[5, 3, 6]).to_string();
            lines.push(String::new());
            lines.extend(sums);
            lines.push(String::new());
            lines.extend(single.lines().map(str::to_owned));
        }
        let cut = |line: &String| line.chars().take(columns).collect();
        lines.iter().take(rows).map(cut).collect()
    }
}

fn watch(screen: &Screen, client: Client, socket: &Path, asked: &Order, signals: &OwnedFd) -> Outcome {
    let failed = |error: io::Error| Wrong::failed(format!("the terminal: {error}"));
    let (mut view, mut rates, mut client) = (View::default(), Rates::default(), Some(client));
    loop {
        let looked = match &mut client {
            Some(client) => view.look(client, asked, &mut rates),
            None => connect(socket).and_then(|new| view.look(client.insert(new), asked, &mut rates)),
        };
        if let Err(wrong) = looked {
            // Neither who is not let in nor who asks for what there is not will have more luck later.
            if wrong.exit == Exit::NotAllowed || wrong.failure.code == Code::BadRequest {
                return Err(wrong);
            }
            view.wrong = Some(wrong.failure.message);
            client = None;
        }
        let until = Instant::now() + EVERY;
        loop {
            view.first = view.first.min(view.paths.len().saturating_sub(1));
            screen.draw(&view).map_err(failed)?;
            match next_key(signals, until).map_err(failed)? {
                Key::None => break,
                Key::Quit => return Ok(()),
                Key::Down => view.first += 1,
                Key::Up => view.first = view.first.saturating_sub(1),
            }
        }
    }
}

/// What somebody has typed.
enum Key {
    /// Nothing, for long enough.
    None,
    Quit,
    Down,
    Up,
}

fn next_key(signals: &OwnedFd, until: Instant) -> io::Result<Key> {
    let stdin = io::stdin();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Ok(Key::None),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !fds[1].revents().is_empty() {
            return Ok(Key::Quit);
        }
        let mut typed = [0; 16];
        let len = stdin.lock().read(&mut typed)?;
        match &typed[..len] {
            // The end of input among it.
            [] | [b'q' | b'Q', ..] => return Ok(Key::Quit),
            [b'j', ..] | b"\x1b[B" | b"\x1bOB" => return Ok(Key::Down),
            [b'k', ..] | b"\x1b[A" | b"\x1bOA" => return Ok(Key::Up),
            _ => {}
        }
    }
}

/// The terminal, with a screen of our own. Given back as it was.
struct Screen {
    before: Termios,
}

impl Screen {
    fn enter() -> io::Result<Screen> {
        let before = tcgetattr(io::stdin())?;
        let mut now = before.clone();
        // Keys come one by one and are not shown; Ctrl-C is a signal as ever.
        now.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        // Whoever is stopped leaves the terminal as it is: nobody is.
        now.special_codes[SpecialCodeIndex::VSUSP] = 0;
        tcsetattr(io::stdin(), OptionalActions::Flush, &now)?;
        let screen = Screen { before };
        // The other screen, and no cursor.
        write_all("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    fn draw(&self, view: &View) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout())?;
        let known = |value: u16, usual| if value == 0 { usual } else { usize::from(value) };
        let (rows, columns) = (known(size.ws_row, SIZE.0), known(size.ws_col, SIZE.1));
        // What was there before goes behind each line, and below the last, which has no end: that would scroll.
        let lines = view.lines(rows, columns).into_iter();
        let lines: Vec<String> = lines.map(|line| format!("{line}\x1b[K")).collect();
        write_all(&format!("\x1b[H{}\x1b[J", lines.join("\r\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write_all("\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

fn write_all(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn table(all: &[Measured]) -> Table {
    let more = ["SENDS", "RECEIVES", "CLASSES", "RTT OF A MINUTE", "DATA CAP"];
    let has_caps = all.iter().any(|path| path.health.data_used.is_some());
    let headings = [&COMMON[..], &more[..more.len() - usize::from(!has_caps)]].concat();
    let mut table = Table::new(&headings);
    for path in all {
        let health = &path.health;
        let ten = path.windows.iter().find(|window| window.seconds == 10);
        let rate = |rate: Option<u64>| rate.map_or_else(paths::none, |rate| format!("{}/s", bytes(rate)));
        let links = [path.local_link, path.remote_link];
        let row = paths::common(&path.remote, links, health, ten.unwrap_or(&Window::default()));
        let row = row.into_iter().chain([
            rate(health.sent_rate),
            rate(health.received_rate),
            paths::classes(health),
            sparkline(&path.history),
        ]);
        let used = |part: f64| format!("{:.0} % used", (part * 100.0).floor());
        let data = has_caps.then(|| health.data_used.map_or_else(paths::none, used));
        table.row(row.chain(data));
    }
    table
}

/// A column for each two seconds, as high as the longer round trip among what is shown; blank where nothing was measured.
fn sparkline(history: &[Option<f64>]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = history.iter().flatten().copied().fold(0.0, f64::max);
    let bar = |two: &[Option<f64>]| {
        let highest = two.iter().flatten().copied().reduce(f64::max);
        highest.map_or(' ', |rtt| {
            let at = if most > 0.0 { rtt / most * 7.0 } else { 0.0 };
            BARS[(at.round() as usize).min(7)]
        })
    };
    history.chunks(2).map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_has_no_more_lines_and_columns_than_there_are() {
        let path = Measured {
            remote: "branch-office".to_owned(),
            ..Measured::default()
        };
        let mut view = View {
            paths: vec![path; 30],
            ..View::default()
        };
        for (rows, columns) in [(1, 20), (2, 80), (24, 80), (60, 200)] {
            let lines = view.lines(rows, columns);
            assert_eq!(lines.len(), rows.min(32));
            assert!(lines.iter().all(|line| line.chars().count() <= columns));
        }
        // What is lost and how much goes is to be seen on the smallest one that is usual.
        let text = view.lines(24, 80).join("\n");
        assert!(text.contains("LOSS IN") && text.contains("RECEIVES"), "{text}");
        view.first = 29;
        assert_eq!(view.lines(24, 80).len(), 3);
    }

    #[test]
    fn a_sparkline_is_blank_where_nothing_was_measured() {
        let line = sparkline(&[None, None, Some(0.01), None, Some(0.02), Some(0.08), None]);
        assert_eq!(line, " ▂█ ");
        assert_eq!(sparkline(&[]), "");
    }
}
