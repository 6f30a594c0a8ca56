//! Traffic through a tunnel, with every byte and every datagram accounted for.

use crate::LIMIT;
use patronus_netns::{Error, Namespace, Result, Site};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Sends `bytes` bytes over TCP and checks each of them where they arrive. Gives the time that it took.
pub fn tcp(from: &Site, to: &Site, v6: bool, bytes: usize) -> Result<Duration> {
    let listener = to.namespace.run(|| TcpListener::bind((to.inner(v6), 0)))??;
    let target = listener.local_addr()?;
    let start = Instant::now();
    let connect = || TcpStream::connect_timeout(&target, LIMIT);
    let mut sender = from.namespace.run(connect)??;
    let (mut receiver, _) = listener.accept()?;
    sender.set_write_timeout(Some(LIMIT))?;
    receiver.set_read_timeout(Some(LIMIT))?;
    let pattern: Vec<u8> = (0..bytes).map(byte_at).collect();
    let sent = std::thread::spawn(move || -> std::io::Result<()> {
        sender.write_all(&pattern)?;
        sender.shutdown(std::net::Shutdown::Write)
    });
    let mut arrived = Vec::with_capacity(bytes);
    receiver.read_to_end(&mut arrived)?;
    sent.join().expect("the sender does not panic")?;
    if arrived.len() != bytes {
        return Err(Error::new(format!("{} of {bytes} bytes arrived", arrived.len())));
    }
    match arrived.iter().enumerate().find(|(i, byte)| **byte != byte_at(*i)) {
        Some((at, _)) => Err(Error::new(format!("byte {at} of {bytes} changed"))),
        None => Ok(start.elapsed()),
    }
}

/// A pattern with a period that no packet size divides.
fn byte_at(i: usize) -> u8 {
    (i % 251) as u8 ^ (i / 65_521) as u8
}

/// `ping` with the words of `arguments`, from `namespace`; what it says, whether or not it was answered.
pub fn ping(namespace: &Namespace, arguments: &str) -> Result<String> {
    namespace.exec("sh", &["-c", &format!("ping {arguments} 2>&1 || true")])
}

/// Numbered datagrams at a steady rate, until [`Flow::finish`].
pub struct Flow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receivers: Vec<JoinHandle<Vec<u64>>>,
}

/// What became of a flow's datagrams.
#[derive(Debug)]
pub struct Received {
    /// How many were sent.
    pub sent: u64,
    /// The numbers that arrived at each receiver, in the order of their arrival.
    pub numbers: Vec<Vec<u64>>,
}

impl Received {
    /// How many arrived nowhere.
    pub fn lost(&self) -> u64 {
        let mut all: Vec<u64> = self.numbers.concat();
        all.sort_unstable();
        all.dedup();
        self.sent - all.len() as u64
    }

    /// Whether some number arrived twice.
    pub fn duplicated(&self) -> bool {
        self.numbers.concat().len() as u64 != self.sent - self.lost()
    }

    /// Whether each receiver saw ever higher numbers.
    pub fn in_order(&self) -> bool {
        self.numbers.iter().all(|numbers| numbers.is_sorted())
    }
}

impl Flow {
    /// A datagram from one site's inner address to the other's each time `every` has passed.
    pub fn start(from: &Site, to: &Site, v6: bool, every: Duration) -> Result<Flow> {
        let source = (&from.namespace, from.inner(v6));
        Flow::between(source, &[(&to.namespace, to.inner(v6))], every)
    }

    /// As [`Flow::start`], from any address to one that several namespaces may have.
    pub fn between(from: (&Namespace, IpAddr), to: &[(&Namespace, IpAddr)], every: Duration) -> Result<Flow> {
        let stop = Arc::new(AtomicBool::new(false));
        let near = from.0.run(|| UdpSocket::bind((from.1, 0)))??;
        let mut target: Option<SocketAddr> = None;
        let mut receivers = Vec::new();
        for (namespace, address) in to {
            let port = target.map_or(0, |first| first.port());
            let far = namespace.run(|| UdpSocket::bind((*address, port)))??;
            far.set_read_timeout(Some(Duration::from_millis(50)))?;
            target = Some(far.local_addr()?);
            let stop = Arc::clone(&stop);
            receivers.push(std::thread::spawn(move || receive(&far, &stop)));
        }
        let target = target.ok_or_else(|| Error::new("a flow to nobody"))?;
        let until = Arc::clone(&stop);
        let sender = std::thread::spawn(move || send(&near, target, every, &until));
        Ok(Flow {
            stop,
            sender,
            receivers,
        })
    }

    /// Ends it once `duration` has passed, see [`Flow::finish`].
    pub fn run_for(self, duration: Duration) -> Received {
        std::thread::sleep(duration);
        self.finish()
    }

    /// Ends it and says what arrived. Datagrams that are under way for longer than half a second count as lost.
    pub fn finish(self) -> Received {
        self.stop.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<Vec<u64>>| thread.join().expect("a receiver does not panic");
        Received {
            sent: self.sender.join().expect("the sender does not panic"),
            numbers: self.receivers.into_iter().map(join).collect(),
        }
    }
}

/// Datagrams in both directions between two sites, each time `every` has passed, and when they arrive.
pub struct Stream {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<u64>>,
    receivers: Vec<JoinHandle<Vec<Instant>>>,
}

impl Stream {
    /// Begins.
    pub fn start(sites: [&Site; 2], v6: bool, every: Duration) -> Result<Stream> {
        let stop = Arc::new(AtomicBool::new(false));
        let bind = |site: &Site| {
            site.namespace
                .run(|| UdpSocket::bind((site.inner(v6), 0)))?
                .map_err(Error::from)
        };
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for (from, to) in [(sites[0], sites[1]), (sites[1], sites[0])] {
            let (near, far) = (bind(from)?, bind(to)?);
            far.set_read_timeout(Some(Duration::from_millis(50)))?;
            let target = far.local_addr()?;
            let until = Arc::clone(&stop);
            senders.push(std::thread::spawn(move || send(&near, target, every, &until)));
            let until = Arc::clone(&stop);
            receivers.push(std::thread::spawn(move || arrivals(&far, &until)));
        }
        Ok(Stream {
            stop,
            senders,
            receivers,
        })
    }

    /// Ends it, and gives the longest silence after `since` in each direction; the end is one if nothing came after it.
    pub fn silences(self, since: Instant) -> [Duration; 2] {
        self.stop.store(true, Ordering::Relaxed);
        let end = Instant::now();
        for sender in self.senders {
            sender.join().expect("a sender does not panic");
        }
        let mut silences = self.receivers.into_iter().map(|receiver| {
            let arrived = receiver.join().expect("a receiver does not panic");
            let before = arrived.iter().rev().find(|at| **at <= since).copied();
            let after = arrived.into_iter().filter(|at| *at > since && *at <= end);
            let times: Vec<Instant> = before.into_iter().chain(after).chain([end]).collect();
            let pauses = times
                .windows(2)
                .map(|pair| pair[1].saturating_duration_since(pair[0]));
            pauses.max().unwrap_or(Duration::MAX)
        });
        std::array::from_fn(|_| silences.next().expect("two directions"))
    }
}

fn arrivals(socket: &UdpSocket, stop: &AtomicBool) -> Vec<Instant> {
    let mut times = Vec::new();
    let mut buffer = [0; 200];
    while !stop.load(Ordering::Relaxed) {
        if socket.recv_from(&mut buffer).is_ok() {
            times.push(Instant::now());
        }
    }
    times
}

fn send(socket: &UdpSocket, target: SocketAddr, every: Duration, stop: &AtomicBool) -> u64 {
    let mut next = Instant::now();
    let mut sent = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let mut datagram = [0; 100];
        datagram[..8].copy_from_slice(&sent.to_le_bytes());
        // An error is one about an earlier datagram (ICMP); this one goes again.
        if socket.send_to(&datagram, target).is_ok() {
            sent += 1;
        }
        next += every;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    sent
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut buffer = [0; 200];
    let mut quiet = 0;
    // Ten waits of 50 ms after the end.
    while quiet < 10 {
        match socket.recv_from(&mut buffer) {
            Ok((length, _)) => {
                let number = buffer[..length].first_chunk();
                numbers.extend(number.map(|bytes| u64::from_le_bytes(*bytes)));
            }
            Err(error) => {
                let waited = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                assert!(waited, "{error}");
                quiet += usize::from(stop.load(Ordering::Relaxed));
            }
        }
    }
    numbers
}
