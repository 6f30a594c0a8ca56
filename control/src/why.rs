//! Why a tunnel is not up, in one line, as far as this end knows.
//!
//! Plain functions over what the engine has answered, so that each cause can be tested.

use std::net::SocketAddr;

/// A session that was made this long ago is over, seconds: what the protocol calls the reject time.
pub const SESSION: u64 = 180;

/// What the engine says of itself.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Name of the interface.
    pub interface: String,
    /// The interface is up.
    pub up: bool,
    /// There are UDP sockets.
    pub open: bool,
    /// Handshakes that came for another key than ours.
    pub other_key: u64,
    /// Handshakes from keys that are no peer's.
    pub unknown_peer: u64,
    /// Handshakes that were no newer than one before.
    pub old_timestamp: u64,
}

/// What it says of a peer.
#[derive(Clone, Debug, Default)]
pub struct Tunnel {
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// The host has no route there.
    pub unrouted: bool,
    /// Handshakes that were begun and not answered since the last one that was.
    pub tries: u64,
    /// How long ago the last handshake was, seconds.
    pub handshake_age: Option<u64>,
    /// Something is sent by itself.
    pub keepalive: bool,
}

/// How a tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is a session.
    Up,
    /// There is none, and nobody wanted one.
    Idle,
    /// There is none although somebody wants one.
    Down,
}

/// How it is, and why, unless it is up.
pub fn state(device: &Device, tunnel: &Tunnel) -> (State, Option<String>) {
    if tunnel.handshake_age.is_some_and(|age| age < SESSION) {
        return (State::Up, None);
    }
    let (state, why) = cause(device, tunnel);
    (state, Some(why))
}

fn cause(device: &Device, tunnel: &Tunnel) -> (State, String) {
    let interface = &device.interface;
    if !device.up {
        let said = format!("interface {interface} is down: `ip link set {interface} up`");
        return (State::Down, said);
    }
    if !device.open {
        return (
            State::Down,
            "no UDP socket: its port is taken, or no link has a carrier".to_owned(),
        );
    }
    let Some(endpoint) = tunnel.endpoint else {
        return (
            State::Down,
            format!("it has to call, and has not yet{}", strangers(device)),
        );
    };
    if tunnel.unrouted {
        return (
            State::Down,
            format!("no route to {}: `ip route get {0}`", endpoint.ip()),
        );
    }
    if tunnel.tries > 0 {
        let tries = tunnel.tries;
        let said = format!(
            "no reply from {endpoint} after {tries} tries: it is not running, a firewall drops UDP, or it knows another key of ours{}",
            strangers(device)
        );
        return (State::Down, said);
    }
    match tunnel.keepalive {
        true => (State::Down, "the first handshake is on its way".to_owned()),
        false => (State::Idle, "nothing was sent to it lately".to_owned()),
    }
}

/// What may be meant for this tunnel and cannot be told from a stranger's.
fn strangers(device: &Device) -> String {
    if device.unknown_peer > 0 {
        let times = device.unknown_peer;
        return format!(
            "; {times} handshakes came from unknown keys: compare `public_key` with its `patronus pubkey`"
        );
    }
    if device.other_key > 0 {
        let times = device.other_key;
        return format!(
            "; {times} handshakes came for another key than ours: its file may have a wrong `public_key` for us"
        );
    }
    if device.old_timestamp > 0 {
        let times = device.old_timestamp;
        return format!(
            "; {times} handshakes were older than one before: a clock has gone back, or two sites have one key"
        );
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device {
            interface: "wg0".to_owned(),
            up: true,
            open: true,
            ..Device::default()
        }
    }

    fn tunnel() -> Tunnel {
        Tunnel {
            endpoint: Some("192.0.2.7:51820".parse().expect("an endpoint")),
            ..Tunnel::default()
        }
    }

    fn why(device: &Device, tunnel: &Tunnel) -> (State, String) {
        let (state, why) = state(device, tunnel);
        (state, why.unwrap_or_default())
    }

    #[test]
    fn a_session_is_up_for_as_long_as_it_counts() {
        let at = |age| Tunnel {
            handshake_age: Some(age),
            ..tunnel()
        };
        assert_eq!(state(&device(), &at(SESSION - 1)), (State::Up, None));
        assert_eq!(why(&device(), &at(SESSION)).0, State::Idle);
    }

    #[test]
    fn each_cause_has_its_line() {
        let down = Device {
            up: false,
            ..device()
        };
        assert!(why(&down, &tunnel()).1.contains("`ip link set wg0 up`"));
        let closed = Device {
            open: false,
            ..device()
        };
        assert!(why(&closed, &tunnel()).1.starts_with("no UDP socket"));
        let unrouted = Tunnel {
            unrouted: true,
            ..tunnel()
        };
        assert_eq!(
            why(&device(), &unrouted).1,
            "no route to 192.0.2.7: `ip route get 192.0.2.7`"
        );
        let silent = Tunnel { tries: 3, ..tunnel() };
        assert!(
            why(&device(), &silent)
                .1
                .starts_with("no reply from 192.0.2.7:51820 after 3 tries")
        );
        let calls = Tunnel {
            endpoint: None,
            ..tunnel()
        };
        assert_eq!(
            why(&device(), &calls),
            (State::Down, "it has to call, and has not yet".to_owned())
        );
        let fresh = Tunnel {
            keepalive: true,
            ..tunnel()
        };
        assert_eq!(why(&device(), &fresh).0, State::Down);
        assert_eq!(why(&device(), &tunnel()).0, State::Idle);
    }

    #[test]
    fn strangers_may_be_whom_we_wait_for() {
        let calls = Tunnel {
            endpoint: None,
            ..tunnel()
        };
        let device = |of: fn(&mut Device)| {
            let mut device = device();
            of(&mut device);
            why(&device, &calls).1
        };
        assert!(device(|device| device.unknown_peer = 2).contains("2 handshakes came from unknown keys"));
        assert!(device(|device| device.other_key = 2).contains("another key than ours"));
        assert!(device(|device| device.old_timestamp = 2).contains("a clock has gone back"));
    }
}
