//! A stream of a thousand datagrams a second from one site to the other, each with its number and the time at which it was sent, and the account of what
//! arrived when. Both ends are threads of this process, so that there is one clock; they run in real time where that is allowed, because what is to be seen
//! are the silences of the tunnel and not those of a busy machine's scheduler.

use patronus_netns::{Result, Site};
use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From one datagram to the next.
pub const INTERVAL: Duration = Duration::from_millis(1);
/// The UDP port at the receiver: the policies of the sites know it.
pub const PORT: u16 = 7000;
/// Payload, bytes: that of a telephone call.
const PAYLOAD: usize = 160;
/// How long a thread blocks until it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// A datagram that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its number; the first is 0.
    pub sequence: u64,
    /// When it was sent and when it came, both since the clock's beginning.
    pub sent: Duration,
    pub came: Duration,
}

/// A stream that runs until it is dropped.
pub struct Stream {
    next: Arc<AtomicU64>,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Starts it; `clock` is what times are counted from, `interval` the time from one datagram to the next.
    pub fn start(from: &Site, to: &Site, clock: Instant, interval: Duration) -> Result<Stream> {
        let there = SocketAddr::new(to.inner_v4.into(), PORT);
        let sink = to.namespace.run(|| UdpSocket::bind(there))??;
        let source = from.namespace.run(|| {
            UdpSocket::bind((from.inner_v4, 0)).and_then(|socket| socket.connect(there).map(|()| socket))
        })??;
        sink.set_read_timeout(Some(LOOK))?;
        let mut stream = Stream {
            next: Arc::default(),
            arrivals: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let (next, arrivals) = (stream.next.clone(), stream.arrivals.clone());
        stream.spawn("stream-sink", move |stop| receive(&sink, clock, &arrivals, stop))?;
        stream.spawn("stream-source", move |stop| {
            send(&source, clock, interval, &next, stop)
        })?;
        Ok(stream)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce(&AtomicBool) + Send + 'static) -> Result<()> {
        let stop = self.stop.clone();
        let thread = std::thread::Builder::new().name(name.to_owned());
        self.threads.push(thread.spawn(move || {
            // Without the right to it, figures are those of an ordinary process.
            let _ = patronus_io::schedule::set_realtime();
            work(&stop);
        })?);
        Ok(())
    }

    /// The number that the next datagram will have.
    pub fn next(&self) -> u64 {
        self.next.load(Relaxed)
    }

    /// What came since this was called last.
    pub fn take(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.arrivals.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn send(socket: &UdpSocket, clock: Instant, interval: Duration, next: &AtomicU64, stop: &AtomicBool) {
    let start = Instant::now();
    let mut payload = [0; PAYLOAD];
    while !stop.load(Relaxed) {
        let sequence = next.load(Relaxed);
        let due = start + interval.saturating_mul(sequence as u32);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        payload[..8].copy_from_slice(&sequence.to_le_bytes());
        payload[8..16].copy_from_slice(&(clock.elapsed().as_nanos() as u64).to_le_bytes());
        // What the tunnel's interface does not take is lost.
        let _ = socket.send(&payload);
        next.store(sequence + 1, Relaxed);
    }
}

fn receive(socket: &UdpSocket, clock: Instant, arrivals: &Mutex<Vec<Arrival>>, stop: &AtomicBool) {
    let mut payload = [0; PAYLOAD];
    while !stop.load(Relaxed) {
        if socket.recv(&mut payload).is_ok_and(|length| length == PAYLOAD) {
            let came = clock.elapsed();
            let [sequence, sent] = [0, 8].map(|at| {
                let bytes = payload[at..at + 8].try_into();
                bytes.map_or(0, u64::from_le_bytes)
            });
            let arrival = Arrival {
                sequence,
                sent: Duration::from_nanos(sent),
                came,
            };
            arrivals
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(arrival);
        }
    }
}

/// Which datagrams came how often, until they are judged.
#[derive(Default)]
pub struct Tally {
    /// The number of the first that is not judged yet.
    first: u64,
    /// How often each from there on came.
    times: Vec<u32>,
    /// Those that were judged and had not come.
    missing: HashSet<u64>,
    /// Datagrams that were judged, that did not come, and that came once more than they should.
    pub judged: u64,
    pub lost: u64,
    pub duplicated: u64,
}

impl Tally {
    /// Counts these. One that comes after it was given up as lost is not lost any more.
    pub fn add(&mut self, arrivals: &[Arrival]) {
        for arrival in arrivals {
            let Some(at) = arrival.sequence.checked_sub(self.first) else {
                match self.missing.remove(&arrival.sequence) {
                    true => self.lost = self.lost.saturating_sub(1),
                    false => self.duplicated += 1,
                }
                continue;
            };
            let at = at as usize;
            if self.times.len() <= at {
                self.times.resize(at + 1, 0);
            }
            self.times[at] += 1;
        }
    }

    /// Judges all before this number.
    pub fn judge(&mut self, before: u64) {
        let count = before.saturating_sub(self.first) as usize;
        self.times.resize(self.times.len().max(count), 0);
        for (times, sequence) in self.times.drain(..count).zip(self.first..) {
            if times == 0 {
                self.lost += 1;
                self.missing.insert(sequence);
            }
            self.duplicated += u64::from(times.saturating_sub(1));
        }
        self.first += count as u64;
        self.judged += count as u64;
    }
}

/// The longest time from one arrival to the next, of those that were not over before `from`.
pub fn longest_silence(arrivals: &[Arrival], from: Duration) -> Duration {
    let mut came: Vec<Duration> = arrivals.iter().map(|arrival| arrival.came).collect();
    came.sort_unstable();
    let pairs = came.windows(2).filter(|pair| pair[1] >= from);
    pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(of: &[(u64, u64)]) -> Vec<Arrival> {
        let arrival = |&(sequence, came)| Arrival {
            sequence,
            sent: Duration::from_millis(sequence),
            came: Duration::from_millis(came),
        };
        of.iter().map(arrival).collect()
    }

    #[test]
    fn lost_and_doubled_datagrams_are_counted_once_they_are_judged() {
        let mut tally = Tally::default();
        tally.add(&arrivals(&[(0, 5), (1, 6), (1, 6), (3, 8)]));
        assert_eq!((tally.lost, tally.duplicated), (0, 0), "nothing is judged yet");
        // 2 comes late, but before anybody asks.
        tally.judge(2);
        tally.add(&arrivals(&[(2, 9), (5, 10)]));
        tally.judge(7);
        assert_eq!((tally.judged, tally.lost, tally.duplicated), (7, 2, 1));
        // 5 is there twice; 4 was given up, and comes after all.
        tally.add(&arrivals(&[(5, 11), (4, 12)]));
        assert_eq!((tally.lost, tally.duplicated), (1, 2));
    }

    #[test]
    fn silence_is_between_arrivals_and_counts_from_a_moment_on() {
        let came = arrivals(&[(0, 0), (1, 100), (2, 101), (5, 150), (3, 120), (6, 151)]);
        let ms = Duration::from_millis;
        assert_eq!(longest_silence(&came, ms(0)), ms(100));
        assert_eq!(
            longest_silence(&came, ms(101)),
            ms(30),
            "in the order in which they came"
        );
        assert_eq!(longest_silence(&came, ms(160)), ms(0));
    }
}
