//! Documents whose examples are typed by a test, word for word: blocks of `console` in Markdown, a line `$ command` and what it prints.
//!
//! What differs from run to run is compared as if it did not: keys, numbers, the width of columns. With `PATRONUS_BLESS=1` what was printed is written into the
//! document instead, for whoever has changed a command's output and has read what has become of it.

use crate::{LIMIT, Terminal};
use patronus_netns::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Commands that change nothing begin like this.
const LOOKS: [&str; 5] = [
    "patronus show",
    "patronus why",
    "patronus top",
    "patronus --json show",
    "ping",
];
/// How long everything takes that has to come up, where nothing says what it should look like then.
const SETTLE: Duration = Duration::from_secs(3);

/// A document.
pub struct Transcript {
    path: PathBuf,
    pieces: Vec<Piece>,
}

enum Piece {
    /// A line of prose, or what is around a block.
    Line(String),
    /// A command in the block of this terminal, and what it prints.
    Command {
        terminal: String,
        typed: String,
        printed: String,
    },
}

impl Transcript {
    /// Reads a document of the workspace.
    pub fn read(path: &str) -> Result<Transcript> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        let text = std::fs::read_to_string(&path)?;
        Ok(Transcript {
            pieces: pieces(&text),
            path,
        })
    }

    /// Types every command at the terminal that its block names behind `console` (the first one if it names none).
    pub fn play(&mut self, terminals: &mut [(&str, &mut Terminal)]) -> Result<()> {
        let bless = std::env::var_os("PATRONUS_BLESS").is_some_and(|value| value == "1");
        let mut wrong = Vec::new();
        for piece in &mut self.pieces {
            let Piece::Command {
                terminal,
                typed,
                printed,
            } = piece
            else {
                continue;
            };
            let found = terminals
                .iter_mut()
                .find(|(name, _)| terminal.is_empty() || name == terminal);
            let (_, shell) = found.ok_or_else(|| Error::new(format!("no terminal {terminal}")))?;
            let text = settled(shell, typed, if bless { None } else { Some(printed) })?;
            match (alike(&text) == alike(printed), bless) {
                (true, _) => {}
                (false, true) => *printed = text,
                (false, false) => {
                    wrong.push(format!("$ {typed}\n{text}--- and the document says\n{printed}"))
                }
            }
        }
        match (bless, wrong.is_empty()) {
            (true, _) => Ok(std::fs::write(&self.path, self.text())?),
            (false, true) => Ok(()),
            (false, false) => Err(Error::new(format!(
                "{} is out of date (PATRONUS_BLESS=1 writes it anew):\n{}",
                self.path.display(),
                wrong.join("\n")
            ))),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Line(line) => text.push_str(&format!("{line}\n")),
                Piece::Command { typed, printed, .. } => {
                    text.push_str(&format!("$ {typed}\n{printed}"));
                    if !printed.is_empty() && !printed.ends_with('\n') {
                        text.push('\n');
                    }
                }
            }
        }
        text
    }
}

/// What a command prints. One that only looks is repeated until it prints what it should: something may have to come up first.
fn settled(shell: &mut Terminal, typed: &str, expected: Option<&str>) -> Result<String> {
    let looks = LOOKS.iter().any(|start| typed.starts_with(start));
    if !looks {
        return Ok(shell.run(typed)?.0);
    }
    let Some(expected) = expected else {
        std::thread::sleep(SETTLE);
        return Ok(shell.run(typed)?.0);
    };
    let start = Instant::now();
    loop {
        let (text, _) = shell.run(typed)?;
        if alike(&text) == alike(expected) || start.elapsed() > LIMIT {
            return Ok(text);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        match (&block, line) {
            (None, line) => {
                let info = line.strip_prefix("```console");
                block = info.map(|terminal| terminal.trim().to_owned());
                pieces.push(Piece::Line(line.to_owned()));
            }
            (Some(_), "```") => {
                block = None;
                pieces.push(Piece::Line(line.to_owned()));
            }
            (Some(terminal), line) => match (line.strip_prefix("$ "), pieces.last_mut()) {
                (Some(typed), _) => pieces.push(Piece::Command {
                    terminal: terminal.clone(),
                    typed: typed.to_owned(),
                    printed: String::new(),
                }),
                (None, Some(Piece::Command { typed, printed, .. })) => {
                    // A command may go over several lines.
                    match typed.ends_with('\\') && printed.is_empty() {
                        true => {
                            typed.push('\n');
                            typed.push_str(line);
                        }
                        false => {
                            printed.push_str(line);
                            printed.push('\n');
                        }
                    }
                }
                (None, _) => pieces.push(Piece::Line(line.to_owned())),
            },
        }
    }
    pieces
}

/// The text without what differs from run to run.
fn alike(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let words = line.split_whitespace().map(word);
        out.push_str(&words.collect::<Vec<_>>().join(" "));
        out.push('\n');
    }
    out
}

fn word(word: &str) -> String {
    let inside = word.trim_matches(|c| c == '"' || c == ',');
    let is_key = inside.len() == 44 && inside.ends_with('=');
    if is_key {
        return word.replace(inside, "KEY");
    }
    let mut out = String::new();
    for c in word.chars() {
        match c.is_ascii_digit() {
            // A number by any other digits is the same.
            true if out.ends_with('#') => {}
            true => out.push('#'),
            false => out.push(c),
        }
    }
    // 1.2 kB is as good as 900 B.
    match out.as_str() {
        "B" | "kB" | "MB" => "BYTES".to_owned(),
        _ => out.replace("#.#", "#"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_written_as_it_was_read() {
        let text =
            "# Title\n\n```console\n$ one \\\n  two\nprinted\n$ three\n```\nprose\n```\n$ not typed\n```\n";
        let transcript = Transcript {
            path: PathBuf::new(),
            pieces: pieces(text),
        };
        assert_eq!(transcript.text(), text);
        let commands = transcript
            .pieces
            .iter()
            .filter(|piece| matches!(piece, Piece::Command { .. }));
        assert_eq!(commands.count(), 2);
    }

    #[test]
    fn only_what_differs_from_run_to_run_is_alike() {
        assert_eq!(alike("a  12 kB\n"), alike("a 900 B"));
        assert_ne!(alike("up\n"), alike("down\n"));
        let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        assert_eq!(alike(&format!("key: {key}")), "key: KEY\n");
    }
}
