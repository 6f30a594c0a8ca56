//! TCP from site a to site b: as much as goes, or at a given pace. Bytes are counted where they arrive.

use patronus_netns::{Error, Result, Site, Tunnel};
use rustix::net::sockopt::set_tcp_congestion;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of one write and of one read.
const CHUNK: usize = 128 * 1024;
/// How often a paced sender looks at the clock.
const TICK: Duration = Duration::from_micros(500);
/// A paced sender that could not send makes up for so much of the lost time, seconds.
const CATCH_UP: f64 = 0.1;

/// What the streams are like.
#[derive(Clone, Copy)]
pub struct Kind<'a> {
    /// How many.
    pub count: usize,
    /// Bits a second of all together; `None`: as much as goes.
    pub pace: Option<f64>,
    /// Congestion control; `None`: the machine's.
    pub congestion: Option<&'a str>,
}

/// Streams that run until they are dropped.
pub struct Streams {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sockets: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Streams {
    /// Connects and starts them.
    pub fn start(tunnel: &Tunnel, kind: Kind<'_>) -> Result<Streams> {
        Streams::between(&tunnel.a, &tunnel.b, 0, kind)
    }

    /// The same between any two sites, to this port (0: any).
    pub fn between(from: &Site, to: &Site, port: u16, kind: Kind<'_>) -> Result<Streams> {
        let Kind {
            count,
            pace,
            congestion,
        } = kind;
        let address = SocketAddr::new(to.inner_v4.into(), port);
        let listener = to.namespace.run(|| TcpListener::bind(address))??;
        let address = listener.local_addr()?;
        let mut streams = Streams {
            received: Arc::default(),
            stop: Arc::default(),
            sockets: vec![],
            threads: vec![],
        };
        let begin = Arc::new(Barrier::new(count));
        for _ in 0..count {
            let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5));
            let sender = from
                .namespace
                .run(connect)?
                .map_err(|e| Error::new(format!("TCP connect: {e}")))?;
            let (receiver, _) = listener.accept()?;
            if let Some(name) = congestion {
                // On the socket: a namespace may only use what its machine allows to everyone.
                set_tcp_congestion(&sender, name)
                    .map_err(|e| Error::new(format!("congestion control {name}: {e}")))?;
            }
            streams
                .sockets
                .extend([sender.try_clone()?, receiver.try_clone()?]);
            let (received, stop, begin) = (streams.received.clone(), streams.stop.clone(), begin.clone());
            streams.spawn("tcp-sink", move || sink(receiver, &received))?;
            let pace = pace.map(|bits| bits / 8.0 / count as f64);
            streams.spawn("tcp-source", move || {
                begin.wait();
                source(sender, pace, &stop);
            })?;
        }
        Ok(streams)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        self.threads
            .push(std::thread::Builder::new().name(name.to_owned()).spawn(work)?);
        Ok(())
    }

    /// Bytes that have arrived so far, all streams together.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for socket in &self.sockets {
            // Ends the blocking calls of the threads.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn sink(mut socket: TcpStream, received: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                received.fetch_add(n as u64, Relaxed);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// `pace`: bytes a second.
fn source(mut socket: TcpStream, pace: Option<f64>, stop: &AtomicBool) {
    let chunk = vec![0x5a; CHUNK];
    let start = Instant::now();
    let mut sent = 0f64;
    while !stop.load(Relaxed) {
        let due = match pace {
            None => CHUNK,
            Some(pace) => {
                let wanted = pace * start.elapsed().as_secs_f64();
                sent = sent.max(wanted - pace * CATCH_UP);
                ((wanted - sent).max(0.0) as usize).min(CHUNK)
            }
        };
        if due == 0 {
            std::thread::sleep(TICK);
            continue;
        }
        if socket.write_all(&chunk[..due]).is_err() {
            return;
        }
        sent += due as f64;
        if pace.is_some() {
            std::thread::sleep(TICK);
        }
    }
}
