//! `patronus-bench comeback`: how long a site is without traffic after its engine has died. Two sites, each under its control process, with a packet each
//! millisecond in both directions; the engine of one is killed (SIGKILL), in turn, and another one is started as whoever keeps it running would.
//!
//! What is measured is the time from the start of the next engine until packets arrive in both directions: it attaches, is told its site, sets itself up, and a
//! handshake makes a session.

use crate::machine;
use crate::programs::Programs;
use crate::reload::pair::{self, Managed};
use patronus_netns::{Error, Namespace, Result};
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The goal for 95 of 100 (docs/architecture.md, section 9).
const GOAL: Duration = Duration::from_secs(1);
/// How long there is no engine: nothing is on its way any more when the next one starts.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the sites work between two deaths.
const REST: Duration = Duration::from_millis(800);
/// Longer than this nobody waits.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked at whether packets arrive.
const LOOK: Duration = Duration::from_micros(500);
const UDP_PORT: u16 = 9000;

/// What `comeback` can be told.
#[derive(clap::Args)]
pub struct Options {
    /// The engine; patronus-control and patronus lie beside it [default: $PATRONUS_ENGINE, else beside this program].
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Deaths, of the two engines in turn.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(2..))]
    runs: u32,
    /// Writes the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Everything that a run showed, milliseconds.
#[derive(Serialize)]
struct Report {
    runs: usize,
    p50_ms: f64,
    p95_ms: f64,
    max_ms: f64,
    all_ms: Vec<f64>,
}

/// A packet each millisecond in one direction.
struct Stream {
    /// Nanoseconds from `begun` to the first packet that has arrived since it was 0.
    first: Arc<AtomicU64>,
    begun: Instant,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    fn start(from: (&Namespace, Ipv4Addr), to: (&Namespace, Ipv4Addr)) -> Result<Stream> {
        let bind = |(namespace, address): (&Namespace, Ipv4Addr), port| {
            let bound = namespace.run(|| UdpSocket::bind(SocketAddr::new(address.into(), port)))?;
            Ok::<UdpSocket, Error>(bound?)
        };
        let (source, sink) = (bind(from, 0)?, bind(to, UDP_PORT)?);
        sink.set_read_timeout(Some(Duration::from_millis(100)))?;
        let begun = Instant::now();
        let (first, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let sends = move || {
            while !stopped.load(Relaxed) {
                // Without an engine there is no way: that is what is measured.
                let _ = source.send_to(&[0; 64], (to.1, UDP_PORT));
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&first));
        let receives = move || {
            while !stopped.load(Relaxed) {
                if sink.recv(&mut [0; 64]).is_ok() {
                    let at = begun.elapsed().as_nanos() as u64;
                    let _ = seen.compare_exchange(0, at, Relaxed, Relaxed);
                }
            }
        };
        let threads = vec![std::thread::spawn(sends), std::thread::spawn(receives)];
        Ok(Stream {
            first,
            begun,
            stop,
            threads,
        })
    }

    /// What has arrived so far does not count.
    fn forget(&self) {
        self.first.store(0, Relaxed);
    }

    /// When the first packet since then has arrived.
    fn arrived(&self) -> Option<Instant> {
        match self.first.load(Relaxed) {
            0 => None,
            at => Some(self.begun + Duration::from_nanos(at)),
        }
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

/// Runs it, prints the figures and judges.
pub fn run(options: &Options) -> Result<()> {
    let programs = Programs::find(options.engine.clone())?;
    for (name, value) in machine::settings() {
        println!("{name}: {value}");
    }
    let (tunnel, mut sites) = pair::up(&programs)?;
    let (a, b) = (
        (&tunnel.a.namespace, tunnel.a.inner_v4),
        (&tunnel.b.namespace, tunnel.b.inner_v4),
    );
    let streams = [Stream::start(a, b)?, Stream::start(b, a)?];
    let mut times = Vec::new();
    for run in 0..options.runs as usize {
        wait(&streams)?;
        std::thread::sleep(REST);
        times.push(die(&mut sites[run % 2], &streams, &programs)?);
        eprintln!("{} of {}: {:.0} ms", run + 1, options.runs, millis(times[run]));
    }
    let report = report(times);
    println!(
        "traffic in both directions after the start of the next engine, {} deaths: p50 {:.0} ms, p95 {:.0} ms, at most {:.0} ms",
        report.runs, report.p50_ms, report.p95_ms, report.max_ms
    );
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Error::new(e.to_string()))?;
        std::fs::write(path, text + "\n").map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
    }
    match report.p95_ms <= millis(GOAL) {
        true => Ok(()),
        false => Err(Error::new(format!("p95 is more than {:.0} ms", millis(GOAL)))),
    }
}

/// Kills a site's engine, starts another one, and waits for traffic: how long that took from its start.
fn die(site: &mut Managed, streams: &[Stream; 2], programs: &Programs) -> Result<Duration> {
    site.kill_engine()?;
    std::thread::sleep(PAUSE);
    streams.iter().for_each(Stream::forget);
    let started = Instant::now();
    site.start_engine(programs)?;
    let arrived = wait(streams)?;
    Ok(arrived.saturating_duration_since(started))
}

/// Until packets have arrived in both directions: when that was so.
fn wait(streams: &[Stream; 2]) -> Result<Instant> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if let [Some(there), Some(back)] = [streams[0].arrived(), streams[1].arrived()] {
            return Ok(there.max(back));
        }
        std::thread::sleep(LOOK);
    }
    Err(Error::new(format!("no traffic after {} s", LIMIT.as_secs())))
}

fn report(mut times: Vec<Duration>) -> Report {
    times.sort_unstable();
    // The lowest that at least so many are not above.
    let part = |percent: usize| millis(times[(times.len() * percent).div_ceil(100).max(1) - 1]);
    Report {
        runs: times.len(),
        p50_ms: part(50),
        p95_ms: part(95),
        max_ms: part(100),
        all_ms: times.iter().map(|time| millis(*time)).collect(),
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let report = report((1..=40).rev().map(Duration::from_millis).collect());
        assert_eq!((report.p50_ms, report.p95_ms, report.max_ms), (20.0, 38.0, 40.0));
        let two = self::report(vec![Duration::from_millis(7), Duration::from_millis(3)]);
        assert_eq!((two.p50_ms, two.p95_ms, two.max_ms), (3.0, 7.0, 7.0));
    }
}
