//! What systemd is told (sd_notify(3)): lines on the datagram socket that `NOTIFY_SOCKET` names, and nothing where there is none.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Whoever started us, if he wants to be told.
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// How often he wants to hear of us.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says.
    pub fn from_env() -> Notifier {
        let connect = |name: String| -> io::Result<UnixDatagram> {
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(&name)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            Ok(socket)
        };
        let socket = std::env::var("NOTIFY_SOCKET")
            .ok()
            .and_then(|name| connect(name).ok());
        let watchdog = std::env::var("WATCHDOG_USEC")
            .ok()
            .and_then(|text| text.parse().ok());
        Notifier {
            // Half the time, as sd_watchdog_enabled(3) advises.
            watchdog: watchdog
                .filter(|_| socket.is_some())
                .map(|usec: u64| Duration::from_micros(usec / 2)),
            socket,
        }
    }

    /// How often [`alive`](Self::alive) is to be called.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// We serve, and this is how it is.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    /// We read the configuration again; [`ready`](Self::ready) follows.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let usec = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// How it is.
    pub fn status(&self, status: &str) {
        self.say(&format!("STATUS={status}"));
    }

    /// We are not stuck.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    /// We end because we were told to.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    fn say(&self, lines: &str) {
        if let Some(socket) = &self.socket {
            // Who does not listen any more does not care.
            let _ = socket.send(lines.as_bytes());
        }
    }
}
