//! What a trace or a capture is asked for by: lines of text on the engine's query socket.
//!
//! ```text
//! observe=trace              or observe=capture
//! filter=src 10.1.0.0/16     left out: all packets
//! sides=both                 a capture: outer, inner or both
//! snap=9216                  a capture: bytes of each packet at most
//! packets=100                how many packets at most
//! bytes=1000000              a capture: how many bytes of packets at most
//!                            an empty line
//! ```

use std::fmt;

use crate::filter::Filter;

/// Bytes of a packet at most.
pub const SNAP_MAX: u32 = 65535;
/// Bytes of a packet unless somebody says otherwise: the longest frames that there are on Ethernet.
const SNAP: u32 = 9216;
/// Packets at most.
pub const PACKETS_MAX: u64 = 1 << 40;
/// Bytes of packets at most.
pub const BYTES_MAX: u64 = 1 << 50;

/// What is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Where each packet passes.
    Trace,
    /// The packets themselves.
    Capture,
}

/// Which packets of a capture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sides {
    /// As they are on the WAN.
    Outer,
    /// As they are on the LAN.
    Inner,
    /// Both.
    Both,
}

impl Sides {
    const ALL: [(&'static str, Sides); 3] = [
        ("outer", Sides::Outer),
        ("inner", Sides::Inner),
        ("both", Sides::Both),
    ];

    /// The one of that name.
    pub fn of(name: &str) -> Option<Sides> {
        let found = Sides::ALL.iter().find(|(this, _)| *this == name);
        found.map(|(_, sides)| *sides)
    }

    fn name(self) -> &'static str {
        let found = Sides::ALL.iter().find(|(_, this)| *this == self);
        found.map_or("both", |(name, _)| name)
    }

    /// Whether outer packets are wanted.
    pub fn outer(self) -> bool {
        self != Sides::Inner
    }

    /// Whether inner packets are wanted.
    pub fn inner(self) -> bool {
        self != Sides::Outer
    }
}

/// A trace or a capture that is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Which of the two.
    pub kind: Kind,
    /// The filter's text.
    pub filter: String,
    /// Which packets, for a capture.
    pub sides: Sides,
    /// Bytes of each packet at most, for a capture.
    pub snap: u32,
    /// Packets at most: for a trace as they come in, for a capture as they are written.
    pub packets: u64,
    /// Bytes of packets at most, for a capture.
    pub bytes: u64,
}

/// Why a request is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestError(pub String);

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RequestError {}

impl Request {
    /// A trace of up to 20 packets, whatever they are.
    pub fn trace() -> Request {
        Request {
            kind: Kind::Trace,
            filter: String::new(),
            sides: Sides::Both,
            snap: 0,
            packets: 20,
            bytes: BYTES_MAX,
        }
    }

    /// A capture of all packets, until it is ended.
    pub fn capture() -> Request {
        Request {
            kind: Kind::Capture,
            snap: SNAP,
            packets: PACKETS_MAX,
            ..Request::trace()
        }
    }

    /// Understands the value of the line `observe=` and the lines after it, without the empty one.
    ///
    /// # Errors
    /// One sentence: what was expected.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Request, RequestError> {
        let mut lines = lines.into_iter();
        let mut request = match lines.next() {
            Some("observe=trace") => Request::trace(),
            Some("observe=capture") => Request::capture(),
            _ => {
                return Err(RequestError(
                    "expected `observe=trace` or `observe=capture`".to_owned(),
                ));
            }
        };
        for line in lines {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            request.set(name, value)?;
        }
        Ok(request)
    }

    /// Sets what a line's name says.
    ///
    /// # Errors
    /// One sentence: what was expected.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), RequestError> {
        let capture = self.kind == Kind::Capture;
        match name {
            // What breaks a line would end it: no filter that can be understood has such a character.
            "filter" => self.filter = value.replace(['\n', '\r'], " "),
            "packets" => self.packets = number(name, value, 1, PACKETS_MAX)?,
            "sides" if capture => {
                self.sides = Sides::of(value).ok_or_else(|| {
                    RequestError(format!("sides: `outer`, `inner` or `both`, not `{value}`"))
                })?;
            }
            "snap" if capture => self.snap = number(name, value, 1, SNAP_MAX.into())? as u32,
            "bytes" if capture => self.bytes = number(name, value, 1, BYTES_MAX)?,
            "sides" | "snap" | "bytes" => return Err(RequestError(format!("{name}: only for a capture"))),
            _ => return Err(RequestError(format!("what is `{name}`?"))),
        }
        Ok(())
    }

    /// The filter.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parsed_filter(&self) -> Result<Filter, RequestError> {
        Filter::parse(&self.filter).map_err(|error| RequestError(error.to_string()))
    }
}

/// The lines, with the empty one.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Trace => "trace",
            Kind::Capture => "capture",
        };
        let filter = self.filter.replace(['\n', '\r'], " ");
        writeln!(f, "observe={kind}\nfilter={filter}")?;
        if self.kind == Kind::Capture {
            writeln!(
                f,
                "sides={}\nsnap={}\nbytes={}",
                self.sides.name(),
                self.snap,
                self.bytes
            )?;
        }
        writeln!(f, "packets={}\n", self.packets)
    }
}

fn number(name: &str, value: &str, min: u64, max: u64) -> Result<u64, RequestError> {
    let number = value.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| RequestError(format!("{name}: a number from {min} to {max}, not `{value}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let capture = Request {
            filter: "udp port 53".to_owned(),
            sides: Sides::Outer,
            snap: 96,
            packets: 7,
            bytes: 1000,
            ..Request::capture()
        };
        for request in [Request::trace(), Request::capture(), capture] {
            let text = request.to_string();
            let lines = text
                .strip_suffix("\n\n")
                .expect("ends with an empty line")
                .lines();
            assert_eq!(Request::parse(lines), Ok(request));
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (lines, message) in [
            (&["observe=films"][..], "expected `observe=trace`"),
            (&["observe=trace", "packets=0"], "packets: a number from 1"),
            (
                &["observe=capture", "snap=65536"],
                "snap: a number from 1 to 65535",
            ),
            (&["observe=capture", "sides=left"], "sides: `outer`"),
            (&["observe=capture", "colour=red"], "what is `colour`?"),
        ] {
            let error = Request::parse(lines.iter().copied()).unwrap_err();
            assert!(error.0.contains(message), "{error}");
        }
    }
}
