//! A whole trace or capture, from the first record to the last: what a command does between asking and ending.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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

/// Makes the file of a capture. It holds clear text, and nobody else may read it: what stands there already, with whatever rights and for whoever has it open, is replaced.
/// What is no file, such as a pipe, is taken as it is.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    match fs::metadata(path) {
        // As if it had to be made: only then the kernel looks whose pipe it is that stands in a folder of all (`fs.protected_fifos`).
        Ok(meta) if !meta.is_file() => return options.create(true).open(path),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    options.create_new(true).open(path)
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

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_reads_a_capture() {
        let path = std::env::temp_dir().join(format!("patronus-capture-{}", std::process::id()));
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let mut first = create(&path).unwrap();
        assert_eq!(mode() & 0o077, 0);
        first.write_all(b"packets").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let second = create(&path).unwrap();
        assert_eq!((mode() & 0o077, second.metadata().unwrap().len()), (0, 0));
        assert_eq!(first.metadata().unwrap().len(), 7, "it is another file");
        fs::remove_file(&path).unwrap();
        create(Path::new("/dev/null")).unwrap();
    }
}
