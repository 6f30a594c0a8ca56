//! `trace` and `capture`: has the control process ask the engine and hand the connection over, which takes an administrator; or asks the engine itself, on its query
//! socket, which takes root. What comes back is the business of `patronus_observe`.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use patronus_control::message::{Code, Failure};
use patronus_io::signal;
use patronus_observe::{Head, Refused, Request, RequestError, Story, Stream, Total};
use serde_json::{Value, json};

use crate::ask::connect;
use crate::options::{Capture, Observe, Trace};
use crate::output::{Outcome, Output, Wrong, escaped, json_escaped};

/// `patronus trace`.
pub fn trace(output: Output, socket: &Path, options: &Trace) -> Outcome {
    let request = request(Request::trace(), &options.observe)?;
    let (stream, signals) = begin(socket, &options.observe, &request)?;
    let mut out = io::stdout().lock();
    let show = |head: &Head, story: &Story| {
        let text = match output.json {
            true => json_escaped(&told(head, story).to_string()),
            false => escaped(&story.text(head)),
        };
        writeln!(out, "{text}")?;
        out.flush()
    };
    end(patronus_observe::trace(stream, show, || {
        signal::take(&signals).is_some()
    }))
}

/// `patronus capture`.
pub fn capture(socket: &Path, options: &Capture) -> Outcome {
    let mut request = request(Request::capture(), &options.observe)?;
    let more = [
        ("sides", options.sides.clone()),
        ("snap", options.snap.map(|snap| snap.to_string())),
        ("bytes", options.bytes.map(|bytes| bytes.to_string())),
    ];
    for (name, value) in more {
        if let Some(value) = value {
            request.set(name, &value).map_err(|error| wrong(&error))?;
        }
    }
    let (stream, signals) = begin(socket, &options.observe, &request)?;
    // Behind it: a capture that does not begin takes no other one's place.
    let out = open(options.write.as_deref())?;
    end(patronus_observe::capture(stream, out, || {
        signal::take(&signals).is_some()
    }))
}

/// A packet's story for programs, a line of JSON.
fn told(head: &Head, story: &Story) -> Value {
    let steps: Vec<Value> = story
        .steps(head)
        .iter()
        .map(|step| json!({ "point": step.point, "after_ns": step.after, "verdict": step.verdict }))
        .collect();
    json!({ "packet": story.title(head), "steps": steps })
}

fn wrong(error: &RequestError) -> Wrong {
    Wrong::usage(error.to_string())
}

fn request(mut request: Request, options: &Observe) -> Result<Request, Wrong> {
    request.filter = options.filter.join(" ");
    request.parsed_filter().map_err(|error| wrong(&error))?;
    if let Some(packets) = options.packets {
        request
            .set("packets", &packets.to_string())
            .map_err(|error| wrong(&error))?;
    }
    Ok(request)
}

fn begin(socket: &Path, options: &Observe, request: &Request) -> Result<(Stream, OwnedFd), Wrong> {
    // Before the engine is asked, so that a signal ends it in good order.
    let signals = signal::termination().map_err(|error| Wrong::failed(error.to_string()))?;
    let stream = match &options.engine {
        Some(engine) => Stream::begin(engine, request).map_err(|refused| not_begun(engine, refused)),
        None => {
            let connection = connect(socket)?.observe(request.to_string())?;
            Stream::over(connection.into()).map_err(|refused| Wrong::failed(refused.to_string()))
        }
    };
    Ok((stream?, signals))
}

fn not_begun(engine: &Path, refused: Refused) -> Wrong {
    let engine = engine.display();
    match refused {
        Refused::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let message = format!("{engine}: you may not ask for packets");
            let hint =
                "they are clear text: run this as root, or leave out `--engine` to ask the control process";
            Failure::new(Code::NotAllowed, message).hint(hint).into()
        }
        Refused::Io(error) => {
            let message = format!("no engine answers at {engine}: {error}");
            Failure::new(Code::NoEngine, message).into()
        }
        refused => Wrong::failed(refused.to_string()),
    }
}

fn open(file: Option<&Path>) -> Result<Box<dyn Write>, Wrong> {
    let Some(file) = file.filter(|file| *file != Path::new("-")) else {
        let out = io::stdout();
        if out.is_terminal() {
            return Err(Wrong::failed("a capture is not for a terminal")
                .hint("`--write FILE`, or a pipe such as `| tshark -r -`"));
        }
        return Ok(Box::new(BufWriter::new(out)));
    };
    match patronus_observe::create(file) {
        Ok(opened) => Ok(Box::new(BufWriter::new(opened))),
        Err(error) => Err(Wrong::failed(format!("{}: {error}", file.display()))),
    }
}

fn end(total: io::Result<Total>) -> Outcome {
    let total = match total {
        // Whoever has closed the pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(error) => return Err(Wrong::failed(format!("the engine: {error}"))),
        Ok(total) => total,
    };
    let lost = match total.lost {
        0 => String::new(),
        lost => format!("; {lost} records found no room: ask for fewer packets, or less of each"),
    };
    eprintln!("patronus: {} packets{lost}", total.packets);
    Ok(())
}
