//! A connection to the control process, for the command line and for tests. It waits for its answers, and not for ever.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::frame;
use crate::message::{Answer, Code, Failure, Order, Request, VERSION};

/// How long an answer may take: longer than whatever the control process itself waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection.
pub struct Client {
    stream: UnixStream,
    last: u64,
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Client, Failure> {
        let stream = UnixStream::connect(path).map_err(|error| not_there(path, &error))?;
        let limits = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        limits.map_err(|error| system(&error))?;
        Ok(Client { stream, last: 0 })
    }

    /// The other end's process id.
    pub fn pid(&self) -> Result<i32, Failure> {
        let peer = rustix::net::sockopt::socket_peercred(&self.stream);
        let peer = peer.map_err(|error| system(&error.into()))?;
        Ok(peer.pid.as_raw_nonzero().get())
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, order: Order) -> Result<Value, Failure> {
        self.ask_with(order).map(|(value, _)| value)
    }

    /// Asks the engine for packets: what it says comes by the descriptor.
    pub fn observe(&mut self, request: String) -> Result<OwnedFd, Failure> {
        let (_, descriptor) = self.ask_with(Order::Observe { request })?;
        descriptor.ok_or_else(|| strange("no descriptor came along"))
    }

    fn ask_with(&mut self, order: Order) -> Result<(Value, Option<OwnedFd>), Failure> {
        self.last += 1;
        let request = Request {
            v: VERSION,
            id: self.last,
            order,
        };
        let text = serde_json::to_vec(&request).map_err(|error| strange(&error.to_string()))?;
        frame::write(&mut self.stream, &text).map_err(|error| system(&error))?;
        let answer = frame::read_with(&mut self.stream).map_err(|error| system(&error))?;
        let (answer, descriptor) = answer.ok_or_else(|| strange("it has hung up"))?;
        let answer: Answer = serde_json::from_slice(&answer).map_err(|error| strange(&error.to_string()))?;
        match answer {
            Answer { ok: Some(ok), id, .. } if id == self.last => Ok((ok, descriptor)),
            Answer {
                error: Some(failure), ..
            } => Err(failure),
            _ => Err(strange("it has answered something else")),
        }
    }
}

fn not_there(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Failure::new(Code::NotAllowed, format!("{path}: you may not connect"))
                .hint("run this as root, or become a member of the group `patronus`")
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Failure::new(Code::System, format!("no control process answers at {path}"))
                .hint("start it: `systemctl start patronus-engine patronus-control`, or `patronus up FILE` in the foreground")
        }
        _ => Failure::new(Code::System, format!("{path}: {error}")),
    }
}

fn system(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Failure::new(Code::Timeout, "the control process does not answer")
        }
        _ => Failure::new(Code::System, format!("the control process: {error}")),
    }
}

fn strange(what: &str) -> Failure {
    Failure::new(Code::System, format!("the control process: {what}"))
        .hint("do both programs have the same version?")
}
