//! The generator: frames as hosts on the LANs send them, from one AF_XDP port to another, paced, counted and timed.
//!
//! Our own port has both ends, so that the generator costs the same whatever is between them. The source sends what is due every
//! 150 microseconds, the sink looks every 250; to measure latencies, the sink sleeps until something arrives.

use super::site::{Host, Rig};
use crate::load::udp::Trial;
use hdrhistogram::Histogram;
use patronus_io::ip::{IPV4_HEADER, PROTO_UDP, Sum, UDP_HEADER, pseudo_sum};
use patronus_io::xdp::{Take, XdpPort, XdpProgram};
use patronus_io::{Port, PortError};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX, Burst, FrameCache};
use patronus_netns::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const SOURCE_TICK: Duration = Duration::from_micros(150);
const SINK_TICK: Duration = Duration::from_micros(250);
/// How long the sink waits after the source's end for a packet on its way.
const DRAIN: Duration = Duration::from_millis(300);
/// A source that was kept from running makes up for this much of the lost time.
const CATCH_UP: Duration = Duration::from_millis(10);
const ETHERNET: usize = 14;
const HEADERS: usize = ETHERNET + IPV4_HEADER + UDP_HEADER;
const UDP_PORT: u16 = 9000;
/// The longest latency that is told from longer ones, nanoseconds.
const LONGEST: u64 = 10_000_000_000;

/// One end.
struct End {
    port: XdpPort,
    frames: FrameCache,
    _program: XdpProgram,
}

/// Both ends.
pub struct Generator {
    source: End,
    sink: End,
    /// A frame's headers, with lengths and checksums to be filled in.
    headers: [u8; HEADERS],
    /// Tells the packets of a trial from late ones of the trial before.
    trial: u32,
    /// What times in packets count from.
    epoch: Instant,
}

/// What is to be sent.
#[derive(Clone, Copy)]
pub struct Offer {
    /// IP packets of this size, bytes.
    pub size: usize,
    /// Packets a second.
    pub pps: f64,
    /// For so long.
    pub duration: Duration,
    /// Whether the sink is to be woken by each packet, and to write down how long it was under way.
    pub timed: bool,
}

/// What source and sink tell each other during a trial.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    source_done: AtomicBool,
}

/// What the sink has seen.
struct Seen {
    packets: u64,
    bytes: u64,
    /// Nanoseconds under way.
    times: Histogram<u64>,
}

fn arena() -> Result<&'static Arena> {
    static ARENA: OnceLock<std::result::Result<&'static Arena, String>> = OnceLock::new();
    let config = ArenaConfig {
        frames: 16_384,
        jumbo_frames: 0,
    };
    let arena = ARENA.get_or_init(|| Arena::new(&config).map_err(|error| error.to_string()));
    arena.clone().map_err(Error::new)
}

impl End {
    fn new(host: &Host) -> Result<End> {
        let mut frames = FrameCache::new(arena()?);
        let take = Take::Datagrams {
            addresses: vec![host.ip.into()],
            ports: vec![UDP_PORT],
        };
        let (program, port) = host.namespace.run(|| {
            let program = XdpProgram::attach(host.ifindex, 1, &take)?;
            let port = program.port(0, &mut frames)?;
            Ok::<_, std::io::Error>((program, port))
        })??;
        Ok(End {
            port,
            frames,
            _program: program,
        })
    }
}

impl Generator {
    /// The generator at the ends of a rig.
    pub fn new(rig: &Rig) -> Result<Generator> {
        let mut headers = [0; HEADERS];
        headers[..6].copy_from_slice(&rig.gateway);
        headers[6..12].copy_from_slice(&rig.near.mac);
        headers[12..14].copy_from_slice(&[0x08, 0x00]);
        let ip = &mut headers[ETHERNET..];
        (ip[0], ip[6], ip[8], ip[9]) = (0x45, 0x40, 64, PROTO_UDP);
        ip[12..16].copy_from_slice(&rig.near.ip.octets());
        ip[16..20].copy_from_slice(&rig.far.ip.octets());
        ip[20..22].copy_from_slice(&40_000u16.to_be_bytes());
        ip[22..24].copy_from_slice(&UDP_PORT.to_be_bytes());
        Ok(Generator {
            source: End::new(&rig.near)?,
            sink: End::new(&rig.far)?,
            headers,
            trial: 0,
            epoch: Instant::now(),
        })
    }

    /// Sends a packet now and then until one arrives.
    pub fn probe(&mut self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let few = Offer {
            size: 64,
            pps: 100.0,
            duration: Duration::from_millis(50),
            timed: true,
        };
        while start.elapsed() < limit {
            if self.trial(few)?.0.received > 0 {
                return Ok(());
            }
        }
        Err(Error::new(format!("no packet arrived within {limit:?}")))
    }

    /// One trial: its figures, and nanoseconds that packets were under way.
    pub fn trial(&mut self, offer: Offer) -> Result<(Trial, Histogram<u64>)> {
        self.trial += 1;
        let headers = self.headers(offer.size);
        let (number, epoch) = (self.trial, self.epoch);
        let progress = Progress::default();
        let drops_before = self.sink.port.counters().rx_no_frame.get();
        let (source, sink) = (&mut self.source, &mut self.sink);
        let (sent, seen) = std::thread::scope(|scope| {
            let seen = scope.spawn(|| sink.drain(offer, number, epoch, &progress));
            let sent = source.send_paced(offer, (number, epoch), &headers, &progress);
            progress.source_done.store(true, Relaxed);
            (sent, seen.join())
        });
        let seen = seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (sent, seconds) = sent?;
        let trial = Trial {
            wanted: (offer.pps * offer.duration.as_secs_f64()) as u64,
            sent,
            received: seen.packets,
            bytes: seen.bytes,
            seconds,
            sink_drops: self.sink.port.counters().rx_no_frame.get() - drops_before,
        };
        Ok((trial, seen.times))
    }

    /// The headers of packets of a size.
    fn headers(&self, size: usize) -> [u8; HEADERS] {
        let mut headers = self.headers;
        let ip = &mut headers[ETHERNET..];
        ip[2..4].copy_from_slice(&(size as u16).to_be_bytes());
        let checksum = Sum::of(&ip[..IPV4_HEADER]).checksum();
        ip[10..12].copy_from_slice(&checksum);
        ip[24..26].copy_from_slice(&((size - IPV4_HEADER) as u16).to_be_bytes());
        headers
    }
}

impl End {
    /// Gives the packets sent and the seconds that it took.
    fn send_paced(
        &mut self,
        offer: Offer,
        (trial, epoch): (u32, Instant),
        headers: &[u8; HEADERS],
        progress: &Progress,
    ) -> Result<(u64, f64)> {
        let wanted = (offer.pps * offer.duration.as_secs_f64()) as u64;
        let most = (CATCH_UP.as_secs_f64() * offer.pps) as u64 + BURST_MAX as u64;
        let start = Instant::now();
        let before = self.port.counters().tx_packets.get();
        let (mut sequence, mut skipped) = (0u64, 0u64);
        while sequence + skipped < wanted {
            let due = ((start.elapsed().as_secs_f64() * offer.pps) as u64 + 1).min(wanted);
            let backlog = due.saturating_sub(sequence + skipped);
            skipped += backlog.saturating_sub(most);
            let mut left = backlog.min(most);
            while left > 0 {
                let count = left.min(BURST_MAX as u64);
                let now = epoch.elapsed().as_nanos() as u64;
                let mut burst = Burst::new();
                for sequence in sequence..sequence + count {
                    let Some(mut frame) = self.frames.alloc() else {
                        break;
                    };
                    let bytes = frame.append(ETHERNET + offer.size);
                    write(bytes, headers, trial, sequence, now);
                    burst.push(frame);
                }
                sequence += count;
                left -= count;
                self.port.tx_burst(&mut self.frames, &mut burst).map_err(gone)?;
            }
            let sent = self.port.counters().tx_packets.get() - before;
            progress.sent.store(sent, Relaxed);
            std::thread::sleep(SOURCE_TICK);
        }
        let sent = self.port.counters().tx_packets.get() - before;
        Ok((sent, start.elapsed().as_secs_f64()))
    }

    /// Counts until the source has ended and nothing more comes.
    fn drain(&mut self, offer: Offer, trial: u32, epoch: Instant, progress: &Progress) -> Result<Seen> {
        let times = Histogram::new_with_bounds(1, LONGEST, 3).map_err(|e| Error::new(e.to_string()))?;
        let mut seen = Seen {
            packets: 0,
            bytes: 0,
            times,
        };
        let (mut burst, mut quiet_since) = (Burst::new(), Instant::now());
        loop {
            let mut some = false;
            while self.port.rx_burst(&mut self.frames, &mut burst).map_err(gone)? > 0 {
                let now = epoch.elapsed().as_nanos() as u64;
                for frame in burst.iter() {
                    seen.look(frame.data(), trial, offer, now);
                }
                burst.clear_into(&mut self.frames);
                some = true;
            }
            if some || !progress.source_done.load(Relaxed) {
                quiet_since = Instant::now();
            } else if seen.packets >= progress.sent.load(Relaxed) || quiet_since.elapsed() > DRAIN {
                return Ok(seen);
            }
            if offer.timed {
                let fds = self.port.wait_fds();
                let limit = Timespec {
                    tv_sec: 0,
                    tv_nsec: 10_000_000,
                };
                // Interrupted: the next look finds it.
                let _ = poll(
                    &mut [PollFd::from_borrowed_fd(fds[0], PollFlags::IN)],
                    Some(&limit),
                );
            } else {
                std::thread::sleep(SINK_TICK);
            }
        }
    }
}

impl Seen {
    /// Counts a frame if it is of this trial.
    fn look(&mut self, frame: &[u8], trial: u32, offer: Offer, now: u64) {
        let Some((_, payload)) = frame.split_at_checked(HEADERS) else {
            return;
        };
        let Some((of_trial, rest)) = payload.split_first_chunk::<4>() else {
            return;
        };
        if u32::from_le_bytes(*of_trial) != trial || frame.len() < ETHERNET + offer.size {
            return;
        }
        self.packets += 1;
        self.bytes += (offer.size - IPV4_HEADER - UDP_HEADER) as u64;
        if offer.timed
            && let Some(sent) = rest.get(8..16).and_then(|bytes| bytes.first_chunk())
        {
            let under_way = now.saturating_sub(u64::from_le_bytes(*sent));
            self.times.saturating_record(under_way.max(1));
        }
    }
}

/// Writes a frame: trial, number and time in its payload, and zeros behind them.
fn write(bytes: &mut [u8], headers: &[u8; HEADERS], trial: u32, sequence: u64, now: u64) {
    let (head, payload) = bytes.split_at_mut(HEADERS);
    head.copy_from_slice(headers);
    payload[..4].copy_from_slice(&trial.to_le_bytes());
    payload[4..12].copy_from_slice(&sequence.to_le_bytes());
    payload[12..20].copy_from_slice(&now.to_le_bytes());
    payload[20..].fill(0);
    let (addresses, udp) = bytes[ETHERNET + 12..].split_at_mut(8);
    let sum = pseudo_sum(addresses, PROTO_UDP, udp.len()).bytes(&udp[..UDP_HEADER + 20]);
    udp[6..8].copy_from_slice(&sum.transport_checksum());
}

fn gone(error: PortError) -> Error {
    match error {
        PortError::Gone => Error::new("the generator's interface is gone"),
        PortError::Io(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_whole_and_seen_only_by_their_trial() {
        let mut headers = [0; HEADERS];
        headers[ETHERNET] = 0x45;
        headers[ETHERNET + 9] = PROTO_UDP;
        headers[ETHERNET + 12..ETHERNET + 20].copy_from_slice(&[10, 1, 0, 2, 10, 2, 0, 2]);
        let mut frame = [7; ETHERNET + 64];
        write(&mut frame, &headers, 3, 9, 1000);
        let (addresses, udp) = frame[ETHERNET + 12..].split_at(8);
        assert!(pseudo_sum(addresses, PROTO_UDP, udp.len()).bytes(udp).is_valid());
        let offer = Offer {
            size: 64,
            pps: 1.0,
            duration: Duration::ZERO,
            timed: true,
        };
        let mut seen = Seen {
            packets: 0,
            bytes: 0,
            times: Histogram::new_with_bounds(1, LONGEST, 3).unwrap(),
        };
        seen.look(&frame, 4, offer, 5000);
        seen.look(&frame[..50], 3, offer, 5000);
        assert_eq!(seen.packets, 0);
        seen.look(&frame, 3, offer, 5000);
        assert_eq!((seen.packets, seen.bytes), (1, 36));
        assert!(seen.times.max().abs_diff(4000) < 5);
    }
}
