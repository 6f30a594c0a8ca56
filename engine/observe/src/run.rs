//! A whole trace or capture, from the first record to the last: what a command does between asking and ending.

use std::io::{self, Write};

use crate::head::Head;
use crate::pcapng::Pcapng;
use crate::record::{Point, Record};
use crate::story::{Stories, Story};
use crate::stream::{Event, Stream};

/// What it amounted to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Total {
    /// Packets that were shown or written.
    pub packets: u64,
    /// Records that found no room.
    pub lost: u64,
}

/// Shows each packet of a trace as soon as its story is over. `stop` is asked several times a second whether that is enough.
///
/// # Errors
/// What `show` says, or that the engine has gone.
pub fn trace(
    mut stream: Stream,
    mut show: impl FnMut(&Head, &Story) -> io::Result<()>,
    mut stop: impl FnMut() -> bool,
) -> io::Result<Total> {
    let (mut stories, mut total) = (Stories::default(), Total::default());
    let head = stream.head().clone();
    let mut tell = |over: Vec<Story>| {
        over.iter().try_for_each(|story| show(&head, story))?;
        Ok::<u64, io::Error>(over.len() as u64)
    };
    total.lost = each(&mut stream, &mut stop, &mut |seen| {
        if let Some((record, _)) = seen {
            total.packets += tell(stories.add(record))?;
        }
        Ok(())
    })?;
    total.packets += tell(stories.end())?;
    Ok(total)
}

/// Writes a capture to `out` as pcapng. `stop` is asked several times a second whether that is enough.
///
/// # Errors
/// What `out` says, or that the engine has gone: what was written until then can be read.
pub fn capture(mut stream: Stream, out: impl Write, mut stop: impl FnMut() -> bool) -> io::Result<Total> {
    let mut file = Pcapng::begin(out, stream.head())?;
    let mut packets = 0;
    let lost = each(&mut stream, &mut stop, &mut |seen| match seen {
        Some((record, _)) if !Point::of(record.point).is_some_and(Point::is_captured) => Ok(()),
        Some((record, data)) => {
            packets += 1;
            file.packet(&record, &data)
        }
        None => file.flush(),
    })?;
    file.end(lost)?;
    Ok(Total { packets, lost })
}

/// What was seen, or nothing for the moment.
type Seen = Option<(Record, Vec<u8>)>;

fn each(
    stream: &mut Stream,
    stop: &mut dyn FnMut() -> bool,
    take: &mut dyn FnMut(Seen) -> io::Result<()>,
) -> io::Result<u64> {
    let mut stopped = false;
    loop {
        if !stopped && stop() {
            stream.stop()?;
            stopped = true;
        }
        match stream.wait()? {
            Event::Seen(record, data) => take(Some((record, data)))?,
            Event::Quiet => take(None)?,
            Event::End(lost) => return Ok(lost),
        }
    }
}
