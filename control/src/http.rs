//! Metrics over HTTP: one page at `/metrics`, and nothing else.
//!
//! A thread of its own answers one connection after the other; each has its time and its length, so that nobody holds the others up for long and nobody
//! can make it remember anything. What a page is costs as much as a scrape, and a scrape is all that can be asked for. Requests are understood by
//! `httparse`; there is no keeping alive, no body, no encryption: whoever wants that puts a proxy in front (docs/adr/0029).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

/// Bytes of a request's head at most.
const HEAD_MAX: usize = 8192;
/// Header lines at most.
const HEADERS_MAX: usize = 64;
/// How long a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer may take to be taken, all of it: others wait meanwhile.
const TAKING: Duration = Duration::from_secs(10);
/// The pause after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens.
pub fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(at)
}

/// Answers until the process ends. `page` is called on that thread.
pub fn serve(listener: TcpListener, page: impl Fn() -> String + Send + 'static) -> io::Result<()> {
    let answer_all = move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = answer(&stream, &page) {
                        debug!(%error, "a scrape has failed");
                    }
                }
                Err(error) => {
                    warn!(%error, "a connection for metrics cannot be taken");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(answer_all)
        .map(drop)
}

fn answer(stream: &TcpStream, page: &impl Fn() -> String) -> io::Result<()> {
    let (status, kind, body) = match head(stream)? {
        Some((method, path)) => match (method.as_str(), path.split('?').next()) {
            ("GET", Some("/metrics")) => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", page()),
            ("GET", _) => (
                "404 Not Found",
                "text/plain",
                "metrics are at /metrics\n".to_owned(),
            ),
            _ => ("405 Method Not Allowed", "text/plain", "GET only\n".to_owned()),
        },
        None => ("400 Bad Request", "text/plain", "not a request\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    send(stream, format!("{head}{body}").as_bytes())
}

/// Sends all of it, or gives up: who takes a few bytes now and then is no better than who takes none.
fn send(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    let until = Instant::now() + TAKING;
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Method and path of a request; none if it is no request.
fn head(mut stream: &TcpStream) -> io::Result<Option<(String, String)>> {
    let until = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || bytes.len() > HEAD_MAX {
            return Ok(None);
        }
        stream.set_read_timeout(Some(left))?;
        let mut some = [0; 1024];
        let read = stream.read(&mut some)?;
        bytes.extend_from_slice(&some[..read]);
        match understand(&bytes) {
            Understood::Request(method, path) => return Ok(Some((method, path))),
            Understood::Part if read > 0 => {}
            _ => return Ok(None),
        }
    }
}

enum Understood {
    Request(String, String),
    Part,
    Nonsense,
}

fn understand(bytes: &[u8]) -> Understood {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => match (request.method, request.path) {
            (Some(method), Some(path)) => Understood::Request(method.to_owned(), path.to_owned()),
            _ => Understood::Nonsense,
        },
        Ok(httparse::Status::Partial) => Understood::Part,
        Err(_) => Understood::Nonsense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(at: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(at).expect("a listener");
        stream.write_all(request).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    #[test]
    fn there_is_one_page() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let at = listener.local_addr().expect("bound");
        serve(listener, || "up 1\n".to_owned()).expect("a thread");
        let page = ask(at, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(page.ends_with("\r\n\r\nup 1\n"), "{page}");
        for (request, status) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"\x16\x03\x01", "400"),
            (b"GET /metrics HT", "400"),
        ] {
            let answer = ask(at, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
        // It goes on after all of these.
        assert!(ask(at, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n").contains("up 1"));
    }

    /// Whoever takes little and often is given up, as is whoever takes nothing.
    #[test]
    fn a_slow_reader_does_not_keep_the_others_waiting() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let at = listener.local_addr().expect("bound");
        serve(listener, || "x".repeat(32 << 20)).expect("a thread");
        let mut slow = TcpStream::connect(at).expect("a listener");
        slow.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("sent");
        let reads = std::thread::spawn(move || {
            let (mut some, mut taken) = (vec![0; 64 << 10], 0);
            while taken < 10 << 20
                && let Ok(more @ 1..) = slow.read(&mut some)
            {
                taken += more;
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        let page = ask(at, b"GET / HTTP/1.1\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 404 "), "{page}");
        assert!(!reads.is_finished(), "the slow one was still reading");
    }
}
