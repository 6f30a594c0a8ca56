//! `patronus-engine --trace` and `--capture`: asks a running engine and shows or writes what it tells, until there was enough or a signal comes.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use patronus_io::signal;
use patronus_observe::{Kind, Refused, Request, Stream, Total};

/// Runs it to its end.
pub fn run(socket: &Path, request: &Request, file: &Path) -> ExitCode {
    match ask(socket, request, file) {
        Ok(total) => {
            let lost = match total.lost {
                0 => String::new(),
                lost => format!("; {lost} records found no room: ask for fewer packets, or less of each"),
            };
            eprintln!("patronus-engine: {} packets{lost}", total.packets);
            ExitCode::SUCCESS
        }
        Err(Refused::Io(error)) => {
            eprintln!("patronus-engine: {}: {error}", socket.display());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("patronus-engine: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(socket: &Path, request: &Request, file: &Path) -> Result<Total, Refused> {
    let signals = signal::termination()?;
    let stop = || signal::take(&signals).is_some();
    if request.kind == Kind::Trace {
        let mut out = io::stdout().lock();
        let stream = Stream::begin(socket, request)?;
        let show = |head: &_, story: &patronus_observe::Story| writeln!(out, "{}", story.text(head));
        return Ok(patronus_observe::trace(stream, show, stop)?);
    }
    let stream = Stream::begin(socket, request)?;
    // Behind it: a capture that does not begin takes no other one's place.
    let out = open(file)?;
    Ok(patronus_observe::capture(stream, out, stop)?)
}

/// The file of a capture.
fn open(file: &Path) -> Result<Box<dyn Write>, Refused> {
    if file == Path::new("-") {
        let out = io::stdout();
        if out.is_terminal() {
            let why = "a capture is not for a terminal: --write FILE, or a pipe such as `| tshark -r -`";
            return Err(Refused::Engine(why.to_owned()));
        }
        return Ok(Box::new(BufWriter::new(out)));
    }
    let opened = patronus_observe::create(file);
    let opened = opened.map_err(|error| Refused::Engine(format!("{}: {error}", file.display())))?;
    Ok(Box::new(BufWriter::new(opened)))
}
