//! Running the system's tools (`ip`, `wg`, `nft`) and reporting what they said when they fail.

use std::fmt;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

/// What went wrong, in one sentence for the person who reads the test's output.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    /// An error that says `what`.
    pub fn new(what: impl Into<String>) -> Error {
        Error(what.into())
    }

    pub(crate) fn io(what: &str, error: impl fmt::Display) -> Error {
        Error(format!("{what}: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error(error.to_string())
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Error {
        Error(error.to_string())
    }
}

/// Runs `command` to its end with `input` on its standard input and gives its standard output; a status other than
/// success is an error with the tool's own words.
pub(crate) fn run_to_end(mut command: Command, input: &[u8]) -> Result<String, Error> {
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = feed(command, input).map_err(|e| Error::io(&shown, e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error(format!("{shown}: {}: {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Writes from a thread of its own: a tool that answers while it still reads must not block both sides.
fn feed(mut command: Command, input: &[u8]) -> io::Result<Output> {
    let mut child = command.spawn()?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A tool that exits without reading is reported by its status.
            let _ = stdin.map(|mut pipe| pipe.write_all(input));
        });
        child.wait_with_output()
    })
}
