//! Round trips: a datagram every two milliseconds from site a to an echo at site b, one at a time.

use hdrhistogram::Histogram;
use patronus_netns::{Error, Result, Tunnel};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// From one datagram to the next.
const INTERVAL: Duration = Duration::from_millis(2);
/// Payload, so that the packet in the tunnel has 64 bytes.
const PAYLOAD: usize = 64 - 28;
/// An answer that takes longer is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// Round trips in nanoseconds, and how many datagrams got no answer.
pub struct RoundTrips {
    /// The answered ones.
    pub times: Histogram<u64>,
    /// The others.
    pub lost: u64,
}

impl RoundTrips {
    /// Microseconds at a quantile (0.5, 0.99).
    pub fn micros(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// Measures for `duration`.
pub fn round_trips(tunnel: &Tunnel, duration: Duration) -> Result<RoundTrips> {
    let bind = |site: &patronus_netns::Site| site.namespace.run(|| UdpSocket::bind((site.inner_v4, 0)));
    let (near, far) = (bind(&tunnel.a)??, bind(&tunnel.b)??);
    far.set_read_timeout(Some(Duration::from_millis(50)))?;
    near.set_read_timeout(Some(LOST_AFTER))?;
    near.connect(far.local_addr()?)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| echo(&far, &stop));
        let outcome = ask(&near, duration);
        stop.store(true, Relaxed);
        outcome
    })
}

fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Relaxed) {
        if let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    }
}

fn ask(socket: &UdpSocket, duration: Duration) -> Result<RoundTrips> {
    let times = Histogram::new_with_bounds(1, 10_000_000_000, 3).map_err(|e| Error::new(e.to_string()))?;
    let mut outcome = RoundTrips { times, lost: 0 };
    let (start, mut sequence) = (Instant::now(), 0u64);
    while start.elapsed() < duration {
        sequence += 1;
        match one(socket, sequence)? {
            Some(time) => outcome.times.saturating_record(time.as_nanos() as u64),
            None => outcome.lost += 1,
        }
        let next = start + INTERVAL * (start.elapsed().as_micros() / INTERVAL.as_micros() + 1) as u32;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    if outcome.times.is_empty() {
        return Err(Error::new("no round trip was answered"));
    }
    Ok(outcome)
}

/// One round trip; late answers to earlier ones are skipped.
fn one(socket: &UdpSocket, sequence: u64) -> Result<Option<Duration>> {
    let mut packet = [0; PAYLOAD];
    packet[..8].copy_from_slice(&sequence.to_le_bytes());
    let sent = Instant::now();
    socket.send(&packet)?;
    let mut answer = [0; 2048];
    while sent.elapsed() < LOST_AFTER {
        match socket.recv(&mut answer) {
            Ok(n) if answer[..n] == packet => return Ok(Some(sent.elapsed())),
            _ => {}
        }
    }
    Ok(None)
}
