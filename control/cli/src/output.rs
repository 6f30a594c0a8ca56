//! What is printed: text for people or JSON for programs, and the exit status.

use std::fmt::{Display, Write as _};
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;

use patronus_control::message::{Code, Failure};
use serde::Serialize;

/// Why the command ends without having done what it should. The numbers are part of the interface: docs/cli.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The site's file is wrong.
    BadConfig = 3,
    /// Nothing runs that could be asked.
    NotRunning = 4,
    /// Not allowed.
    NotAllowed = 5,
    /// The engine has to be restarted for it.
    NeedsRestart = 6,
}

/// What went wrong, to be printed.
#[derive(Debug)]
pub struct Wrong {
    /// The exit status.
    pub exit: Exit,
    /// What is said.
    pub failure: Failure,
}

impl Wrong {
    /// Something failed.
    pub fn failed(message: impl Into<String>) -> Wrong {
        Failure::new(Code::System, message).into()
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Wrong {
        Wrong {
            exit: Exit::Usage,
            failure: Failure::new(Code::BadRequest, message),
        }
    }

    /// The file is wrong.
    pub fn config(error: &patronus_config::Error) -> Wrong {
        Failure::new(Code::BadConfig, error.to_string()).into()
    }

    /// The same with what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Wrong {
        self.failure = self.failure.hint(hint);
        self
    }
}

impl From<Failure> for Wrong {
    fn from(failure: Failure) -> Wrong {
        let exit = match failure.code {
            Code::BadConfig => Exit::BadConfig,
            Code::NoEngine => Exit::NotRunning,
            Code::NotAllowed => Exit::NotAllowed,
            Code::NeedsRestart => Exit::NeedsRestart,
            _ => Exit::Failed,
        };
        Wrong { exit, failure }
    }
}

/// What a command does.
pub type Outcome = Result<(), Wrong>;

/// Where to print, and how.
#[derive(Clone, Copy)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
    /// Colours: only for a terminal whose owner wants them (<https://no-color.org>).
    colours: bool,
}

impl Output {
    /// To standard output.
    pub fn new(json: bool) -> Output {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Output {
            json,
            colours: wanted && !json && std::io::stdout().is_terminal(),
        }
    }

    /// Prints the value as JSON, or else the text.
    pub fn print(&self, value: &impl Serialize, text: impl Display) -> Outcome {
        let mut out = std::io::stdout().lock();
        let written = match self.json {
            true => serde_json::to_string_pretty(value)
                .map_err(std::io::Error::from)
                .and_then(|text| out.write_all(format!("{}\n", json_escaped(&text)).as_bytes())),
            false => out.write_all(text.to_string().as_bytes()),
        };
        // Whoever has closed the pipe has seen enough.
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Wrong::failed(error.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Green, as far as there are colours.
    pub fn good(&self, text: &str) -> String {
        self.coloured("32", text)
    }

    /// Red.
    pub fn bad(&self, text: &str) -> String {
        self.coloured("31", text)
    }

    /// Yellow.
    pub fn warn(&self, text: &str) -> String {
        self.coloured("33", text)
    }

    fn coloured(&self, colour: &str, text: &str) -> String {
        match self.colours {
            true => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }

    /// Prints what went wrong on standard error, or as JSON on standard output.
    pub fn wrong(&self, wrong: &Wrong) -> ExitCode {
        if self.json {
            let value = serde_json::json!({ "error": wrong.failure });
            let _ = self.print(&value, "");
        } else {
            eprintln!("patronus: {}", escaped(&wrong.failure.to_string()));
        }
        ExitCode::from(wrong.exit as u8)
    }
}

/// JSON with the same meaning, without anything that a terminal would obey. What is below a space is escaped in it already.
pub fn json_escaped(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if matches!(c, '\u{7f}'..='\u{9f}') || turns(c) => {
                let _ = write!(safe, "\\u{:04x}", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    safe
}

/// Whether it turns the direction of writing.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text without anything that a terminal would obey: control characters, and those that turn the direction of writing. Line ends and tabs stay.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => safe.push(c),
            c if c.is_control() || turns(c) => {
                let _ = write!(safe, "{}", c.escape_unicode());
            }
            c => safe.push(c),
        }
    }
    safe
}

/// Columns under headings, each as wide as its widest cell. Cells that hold text from outside are escaped here.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        Table {
            rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()],
        }
    }

    /// Without columns of these places, one after the other, until it is no wider than that.
    pub fn within(mut self, width: usize, spare: &[usize]) -> Table {
        let mut gone: Vec<usize> = Vec::new();
        for place in spare {
            if self.width() <= width {
                break;
            }
            let at = place - gone.iter().filter(|gone| *gone < place).count();
            self.rows.iter_mut().filter(|row| at < row.len()).for_each(|row| {
                row.remove(at);
            });
            gone.push(*place);
        }
        self
    }

    /// Characters of the longest line.
    fn width(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
    }

    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..self.rows[0].len()).map(width).collect()
    }

    /// One more row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells
            .into_iter()
            .map(|cell| escaped(&cell).replace(['\n', '\t'], " "));
        self.rows.push(cells.collect());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_comes_from_outside() {
        assert_eq!(escaped("\u{1b}[31mred\u{7}"), "\\u{1b}[31mred\\u{7}");
        assert_eq!(escaped("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(escaped("one\n\ttwo \u{e4}"), "one\n\ttwo \u{e4}");
    }

    #[test]
    fn json_means_the_same_and_a_terminal_obeys_nothing_of_it() {
        let value = serde_json::json!({ "a\u{9b}31m": "x\u{85}\u{7f}\u{202e}\u{1b}\u{e4}" });
        let text = json_escaped(&value.to_string());
        assert!(!text.chars().any(|c| c.is_control() || turns(c)), "{text:?}");
        assert!(text.contains('\u{e4}'));
        let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read, value);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["name", "n"]);
        table.row(["hub".to_owned(), "1".to_owned()]);
        table.row(["a\nlong".to_owned(), "22".to_owned()]);
        assert_eq!(table.to_string(), "name    n\nhub     1\na long  22\n");
    }

    #[test]
    fn what_is_too_wide_does_without_what_matters_least() {
        let table = || {
            let mut table = Table::new(&["name", "more", "n"]);
            table.row(["hub".to_owned(), "and more".to_owned(), "1".to_owned()]);
            table
        };
        assert_eq!(table().within(17, &[1, 2]).to_string(), table().to_string());
        assert_eq!(table().within(16, &[1, 2]).to_string(), "name  n\nhub   1\n");
        assert_eq!(table().within(5, &[1, 2]).to_string(), "name\nhub\n");
        assert_eq!(table().within(5, &[2, 0]).to_string(), "more\nand more\n");
    }
}
