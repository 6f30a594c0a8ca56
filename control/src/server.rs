//! The control socket: takes connections, and asks a [`Handler`] what to answer.
//!
//! One thread takes connections and one serves each of them, so that nobody waits for anybody else's slowness. There are at most [`CLIENTS_MAX`]; who
//! comes beyond that is told so. A connection on which nothing comes for [`IDLE`] ends.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::unistd::Group;
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::caller::Caller;
use crate::frame;
use crate::message::{Answer, Code, Failure, Order, Request, VERSION};

/// Connections at a time.
pub const CLIENTS_MAX: usize = 32;
/// Connections of administrators beyond that: whoever may only look must not keep them from going back.
pub const ADMINISTRATORS_MORE: usize = 8;
/// How long a connection may be silent.
pub const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take to take an answer.
const WRITE: Duration = Duration::from_secs(10);
/// The pause after a connection could not be taken: for want of descriptors, mostly.
const PAUSE: Duration = Duration::from_millis(100);

/// Carries orders out. Called on the threads of connections, several at a time.
pub trait Handler: Send + Sync + 'static {
    /// The group whose members may change things.
    fn administrators(&self) -> String;

    /// Does what is wanted; the caller may.
    fn handle(&self, order: Order) -> Result<Value, Failure>;

    /// Asks the engine for packets; the caller may see them, and gets the descriptor.
    fn observe(&self, request: &str) -> Result<OwnedFd, Failure>;
}

/// Listens at `path`, with mode 0660: who is in `group` may connect, or in the process's own if there is no such group or we are not in it. What stands
/// there of an earlier process is replaced.
pub fn bind(path: &Path, group: &str) -> io::Result<UnixListener> {
    if path
        .symlink_metadata()
        .is_ok_and(|meta| meta.file_type().is_socket())
    {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "somebody listens there already",
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // First whose it is: with the other order, the wrong group could connect for a moment.
    let group = Group::from_name(group).ok().flatten();
    if let Some(group) = group
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(group.gid.as_raw()))
    {
        warn!(%error, group = group.name, "the group cannot be let in");
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))?;
    Ok(listener)
}

/// Serves whoever connects, until the process ends.
pub fn serve(listener: UnixListener, handler: Arc<dyn Handler>) -> io::Result<()> {
    let places = Arc::new(Places::default());
    std::thread::Builder::new()
        .name("socket".to_owned())
        .spawn(move || accept_all(&listener, &handler, &places))
        .map(drop)
}

fn accept_all(listener: &UnixListener, handler: &Arc<dyn Handler>, places: &Arc<Places>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection cannot be taken");
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        let (handler, places) = (Arc::clone(handler), Arc::clone(places));
        let started = std::thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || {
                if let Err(error) = converse(stream, &places, &*handler) {
                    debug!(%error, "a connection has ended");
                }
            });
        if let Err(error) = started {
            warn!(%error, "a connection cannot be served");
        }
    }
}

/// Connections that are served.
#[derive(Default)]
struct Places {
    anybodys: AtomicUsize,
    administrators: AtomicUsize,
}

/// A place among them.
struct Place<'a>(&'a AtomicUsize);

impl Places {
    /// A place for this caller, if there is one. Who is refused has none at any time: however often others come, those of administrators stay free.
    fn take(&self, caller: &Caller) -> Option<Place<'_>> {
        let reserved = || {
            let place = Place::of(&self.administrators, ADMINISTRATORS_MORE);
            place.filter(|_| caller.is_administrator)
        };
        Place::of(&self.anybodys, CLIENTS_MAX).or_else(reserved)
    }
}

impl Place<'_> {
    fn of(taken: &AtomicUsize, most: usize) -> Option<Place<'_>> {
        let more = |taken: usize| (taken < most).then_some(taken + 1);
        let before = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        before.ok().map(|_| Place(taken))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn converse(mut stream: UnixStream, places: &Places, handler: &dyn Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(WRITE))?;
    let caller = Caller::of(&stream, &handler.administrators())?;
    let Some(_place) = places.take(&caller) else {
        let said = format!("{CLIENTS_MAX} connections are open, and there are no more");
        return send(&mut stream, 0, Err(Failure::new(Code::Busy, said)));
    };
    while let Some(text) = frame::read(&mut stream)? {
        let (id, outcome) = answer(&caller, &text, handler);
        send(&mut stream, id, outcome)?;
    }
    Ok(())
}

/// What an order has come to: a value, and perhaps a descriptor.
type Done = Result<(Value, Option<OwnedFd>), Failure>;

/// What comes of a request, and its number.
fn answer(caller: &Caller, text: &[u8], handler: &dyn Handler) -> (u64, Done) {
    let request: Request = match serde_json::from_slice(text) {
        Ok(request) => request,
        Err(error) => {
            let failure = Failure::new(Code::BadRequest, format!("not a request: {error}"));
            return (0, Err(failure));
        }
    };
    if request.v != VERSION {
        let said = format!("version {} of the messages: this is version {VERSION}", request.v);
        let failure = Failure::new(Code::BadRequest, said).hint("use the `patronus` of the same release");
        return (request.id, Err(failure));
    }
    let outcome = caller.may(&request.order).and_then(|()| {
        // Who looks at the log of decisions does so often.
        if request.order.is_for_administrators() && !matches!(request.order, Order::Decisions { .. }) {
            info!(uid = caller.uid, order = ?request.order, "ordered");
        }
        match request.order {
            Order::Observe { request } => {
                let descriptor = handler.observe(&request)?;
                Ok((json!({ "descriptor": true }), Some(descriptor)))
            }
            order => Ok((handler.handle(order)?, None)),
        }
    });
    (request.id, outcome)
}

fn send(stream: &mut UnixStream, id: u64, outcome: Done) -> io::Result<()> {
    let (ok, error, descriptor) = match outcome {
        Ok((value, descriptor)) => (Some(value), None, descriptor),
        Err(failure) => (None, Some(failure), None),
    };
    let v = VERSION;
    let text = serde_json::to_vec(&Answer { v, id, ok, error }).map_err(io::Error::other)?;
    if text.len() > frame::FRAME_MAX {
        let said = format!(
            "the answer would be {} bytes: at most {} are possible",
            text.len(),
            frame::FRAME_MAX
        );
        return send(stream, id, Err(Failure::new(Code::System, said)));
    }
    frame::write_with(stream, &text, descriptor.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_looks_leaves_room_for_administrators() {
        let places = Places::default();
        let who = |is_administrator| Caller {
            uid: 1000,
            is_administrator,
        };
        let (reader, administrator) = (who(false), who(true));
        let mut taken: Vec<Place<'_>> = (0..CLIENTS_MAX)
            .map(|_| places.take(&reader).expect("a place"))
            .collect();
        // However many come meanwhile and are being told that there is no place.
        let refused: Vec<_> = (0..100).map(|_| places.take(&reader)).collect();
        assert!(refused.iter().all(Option::is_none));
        let reserved: Vec<Place<'_>> = (0..ADMINISTRATORS_MORE)
            .map(|_| places.take(&administrator).expect("a place"))
            .collect();
        assert!(places.take(&administrator).is_none());
        taken.pop();
        assert!(places.take(&reader).is_some(), "the reserved ones do not count");
        drop(reserved);
        assert!(places.take(&administrator).is_some());
    }
}
