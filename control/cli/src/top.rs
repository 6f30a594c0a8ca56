//! `top`: paths in the terminal, drawn anew every second; printed once where there is no terminal to draw on.
//!
//! Escape sequences of ECMA-48 that every terminal of today knows, and termios(3): a screen that is drawn as a whole needs no library.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use patronus_control::client::Client;
use patronus_control::message::{Order, Topic};
use patronus_control::view::{Measured, Window};
use patronus_io::signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::ask::connect;
use crate::output::{Outcome, Output, Table, Wrong};
use crate::paths;
use crate::show::{bytes, read};

/// How often it is drawn.
const EVERY: Duration = Duration::from_secs(1);

/// `patronus top`.
pub fn top(output: Output, socket: &Path, once: bool) -> Outcome {
    let mut client = connect(socket)?;
    if once || output.json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let shown = client.ask(Order::Show { what: Topic::Quality })?;
        let text = table(&read::<Vec<Measured>>(&shown)?);
        return output.print(&shown, text);
    }
    let failed = |error: io::Error| Wrong::failed(format!("the terminal: {error}"));
    // Before the terminal is changed, so that a signal does not leave it so.
    let signals = signal::termination().map_err(failed)?;
    let screen = Screen::enter().map_err(failed)?;
    let ended = watch(&screen, &mut client, &signals);
    drop(screen);
    ended
}

fn watch(screen: &Screen, client: &mut Client, signals: &OwnedFd) -> Outcome {
    let failed = |error: io::Error| Wrong::failed(format!("the terminal: {error}"));
    let mut first = 0;
    loop {
        let shown = client.ask(Order::Show { what: Topic::Quality })?;
        let paths: Vec<Measured> = read(&shown)?;
        let until = Instant::now() + EVERY;
        loop {
            first = first.min(paths.len().saturating_sub(1));
            screen.draw(&paths, first).map_err(failed)?;
            match next_key(signals, until).map_err(failed)? {
                Key::None => break,
                Key::Quit => return Ok(()),
                Key::Down => first += 1,
                Key::Up => first = first.saturating_sub(1),
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
        tcsetattr(io::stdin(), OptionalActions::Flush, &now)?;
        let screen = Screen { before };
        // The other screen, and no cursor.
        write_all("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    fn draw(&self, paths: &[Measured], first: usize) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout())?;
        let (rows, columns) = (usize::from(size.ws_row.max(3)), usize::from(size.ws_col.max(20)));
        let up = paths.iter().filter(|path| path.health.state == "up").count();
        let all = paths.len();
        let head = format!("patronus top: {up} of {all} paths up; q quits, up and down scroll");
        let table = table(&paths[first.min(all)..]);
        let lines = std::iter::once(head.as_str()).chain(table.lines()).take(rows);
        let cut = |line: &str| line.chars().take(columns).collect::<String>();
        // What was there before goes behind each line, and below the last, which has no end: that would scroll.
        let lines: Vec<String> = lines.map(|line| format!("{}\x1b[K", cut(line))).collect();
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

fn table(all: &[Measured]) -> String {
    let mut table = Table::new(&[
        "REMOTE",
        "PATH",
        "STATE",
        "FOR",
        "RTT",
        "P99",
        "JITTER IN",
        "OUT",
        "LOSS IN",
        "OUT",
        "SENDS",
        "RECEIVES",
        "CLASSES",
        "RTT OF A MINUTE",
    ]);
    for path in all {
        let ten = path.windows.iter().find(|window| window.seconds == 10);
        let rate = |rate: Option<u64>| rate.map_or_else(paths::none, |rate| format!("{}/s", bytes(rate)));
        let mut row = vec![
            path.remote.clone(),
            format!("{}-{}", path.local_link, path.remote_link),
        ];
        row.extend(paths::state(&path.health));
        row.extend(paths::measured(ten.unwrap_or(&Window::default())));
        row.extend([
            rate(path.health.sent_rate),
            rate(path.health.received_rate),
            paths::classes(&path.health),
            sparkline(&path.history),
        ]);
        table.row(row);
    }
    table.to_string()
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
    fn a_sparkline_is_blank_where_nothing_was_measured() {
        let line = sparkline(&[None, None, Some(0.01), None, Some(0.02), Some(0.08), None]);
        assert_eq!(line, " ▂█ ");
        assert_eq!(sparkline(&[]), "");
    }
}
