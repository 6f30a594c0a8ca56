//! Tells the service manager that the interface is there (sd_notify(3)): a line on the datagram socket that `NOTIFY_SOCKET` names. Called by the main
//! thread, also under the filter of system calls: a socket is made and no file is opened.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Whoever started us, if he wants to be told, hears that we serve. A manager that is not there any more changes nothing.
pub fn ready() {
    if let Ok(name) = std::env::var("NOTIFY_SOCKET") {
        let _ = say(&name, b"READY=1");
    }
}

/// To a path, or behind `@` to an abstract name.
fn say(name: &str, line: &[u8]) -> io::Result<()> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that is stuck must not hold us up.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(line, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_arrives_at_a_path_and_at_an_abstract_name() {
        let name = format!("patronus-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let hidden = SocketAddr::from_abstract_name(&name).expect("a short name");
        let listeners = [
            (
                UnixDatagram::bind(&path).expect("a socket of our own"),
                path.display().to_string(),
            ),
            (
                UnixDatagram::bind_addr(&hidden).expect("a socket of our own"),
                format!("@{name}"),
            ),
        ];
        for (listener, name) in listeners {
            listener.set_nonblocking(true).expect("a socket takes that");
            say(&name, b"READY=1").expect("somebody listens");
            let mut said = [0; 100];
            let len = listener.recv(&mut said).expect("one message");
            assert_eq!(said[..len], *b"READY=1");
        }
        std::fs::remove_file(&path).expect("made above");
        assert!(say(&path.display().to_string(), b"READY=1").is_err());
    }
}
