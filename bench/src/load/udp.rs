//! Paced UDP from site a to site b: one trial at one rate, counted by sequence at the sink.
//!
//! The source sends what is due every 150 microseconds with `sendmmsg`, each packet by itself; the sink drains its socket with
//! `recvmmsg` every 250 microseconds, so that its own cost does not depend on how the subject bunches packets. The sink takes what the kernel has coalesced in one
//! piece (`UDP_GRO`), as receivers of many packets do: for a subject that gives the kernel single packets this changes
//! nothing, and for one that coalesces them the kernel need not cut them apart again.

use super::source::{BATCH, HEADERS, Packet, Source};
use nix::sys::socket::sockopt::UdpGroSegment;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, setsockopt};
use patronus_netns::{Namespace, Result, Tunnel};
use rustix::net::sockopt;
use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Most messages that the sink takes with one system call.
const MESSAGES: usize = 32;
/// The longest message of coalesced packets, bytes.
const MESSAGE: usize = 65536;
/// The source's pause.
const SOURCE_TICK: Duration = Duration::from_micros(150);
/// The sink's pause.
const SINK_TICK: Duration = Duration::from_micros(250);
/// Buffer that the sink asks for, bytes.
const SINK_BUFFER: usize = 64 << 20;
/// How long the sink waits after the source's end for a packet on its way.
const DRAIN: Duration = Duration::from_millis(300);
/// A source that was kept from running makes up for this much of the lost time.
const CATCH_UP: Duration = Duration::from_millis(10);
/// A source that sends less than this part of its target was not able to offer the rate.
const OFFERED: f64 = 0.98;

/// Sizes of the packets, in turn.
#[derive(Clone, Copy)]
pub struct Mix {
    /// IP packets in the tunnel, bytes.
    packets: &'static [usize],
    /// Whether each size is a flow of its own.
    flows: bool,
}

impl Mix {
    /// 64-byte IP packets: payload of 36 bytes.
    pub const SMALL: Mix = Mix {
        packets: &[64],
        flows: false,
    };
    /// 1,400-byte IP packets.
    pub const LARGE: Mix = Mix {
        packets: &[1400],
        flows: false,
    };
    /// 64, 576 and 1,400 bytes in the ratio 7:4:1, evenly spread; each size is a flow of its own.
    pub const IMIX: Mix = Mix {
        packets: &[64, 576, 64, 64, 576, 64, 1400, 64, 576, 64, 64, 576],
        flows: true,
    };
    /// The same, as one flow.
    pub const IMIX_FLOW: Mix = Mix {
        flows: false,
        ..Mix::IMIX
    };

    fn length(self, sequence: u64) -> usize {
        self.packets[(sequence % self.packets.len() as u64) as usize]
    }

    fn payload(self, sequence: u64) -> usize {
        self.length(sequence) - HEADERS
    }

    fn packet(self, trial: u32, sequence: u64) -> Packet {
        let length = self.length(sequence);
        let mut head = [0; 12];
        head[..4].copy_from_slice(&trial.to_le_bytes());
        head[4..].copy_from_slice(&sequence.to_le_bytes());
        Packet {
            length,
            flow: if self.flows { length as u16 } else { 0 },
            head,
        }
    }
}

/// What one trial, or several together, showed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trial {
    /// Packets that were to be sent in the time given.
    pub wanted: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets arrived.
    pub received: u64,
    /// Payload bytes arrived.
    pub bytes: u64,
    /// How long the source sent.
    pub seconds: f64,
    /// Packets that the sink's own socket dropped.
    pub sink_drops: u64,
}

impl Trial {
    /// Part of the sent packets that did not arrive.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 {
            1.0
        } else {
            1.0 - self.received as f64 / self.sent as f64
        }
    }

    /// Packets a second that arrived.
    pub fn pps(&self) -> f64 {
        self.received as f64 / self.seconds.max(1e-9)
    }

    /// Megabits of payload a second that arrived.
    pub fn mbps(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds.max(1e-9) / 1e6
    }

    /// The source could not send at this rate, or the sink not receive: nothing is said about the subject.
    pub fn generator_limited(&self) -> bool {
        (self.sent as f64) < self.wanted as f64 * OFFERED || self.sink_drops > 0
    }

    /// Adds another trial's figures.
    pub fn add(&mut self, other: &Trial) {
        self.wanted += other.wanted;
        self.sent += other.sent;
        self.received += other.received;
        self.bytes += other.bytes;
        self.seconds += other.seconds;
        self.sink_drops += other.sink_drops;
    }
}

/// A source and a sink with a tunnel between them.
pub struct Flow {
    source: Source,
    sink: UdpSocket,
    /// Where the sink is.
    there: Namespace,
    /// Distinguishes the packets of a trial from late ones of the trial before.
    trial: u32,
}

/// What source and sink tell each other during a trial.
#[derive(Default)]
struct Progress {
    received: AtomicU64,
    bytes: AtomicU64,
    sent: AtomicU64,
    source_done: AtomicBool,
}

/// What the source is to send.
#[derive(Clone, Copy)]
struct Offer {
    trial: u32,
    mix: Mix,
    pps: f64,
    wanted: u64,
    /// More losses than this end the trial.
    limit: Option<u64>,
}

impl Flow {
    /// Opens both ends.
    pub fn new(tunnel: &Tunnel) -> Result<Flow> {
        let (near, far) = (&tunnel.a, &tunnel.b);
        let sink = far.namespace.run(|| UdpSocket::bind((far.inner_v4, 0)))??;
        let source = Source::new(near, far, sink.local_addr()?.port())?;
        sink.set_nonblocking(true)?;
        setsockopt(&sink, UdpGroSegment, &true).map_err(std::io::Error::from)?;
        // The limit of the machine holds where we have no right to exceed it.
        if sockopt::set_socket_recv_buffer_size_force(&sink, SINK_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&sink, SINK_BUFFER)?;
        }
        Ok(Flow {
            source,
            sink,
            there: tunnel.b.namespace.clone(),
            trial: 0,
        })
    }

    /// Sends at `pps` for `duration`. With `allowance`, gives up as soon as that part of the whole is lost for certain.
    pub fn trial(&mut self, mix: Mix, pps: f64, duration: Duration, allowance: Option<f64>) -> Result<Trial> {
        self.trial += 1;
        let wanted = (pps * duration.as_secs_f64()) as u64;
        let limit = allowance.map(|part| (wanted as f64 * part) as u64);
        let offer = Offer {
            trial: self.trial,
            mix,
            pps,
            wanted,
            limit,
        };
        let drops_before = self.sink_drops();
        let progress = Progress::default();
        let outcome = std::thread::scope(|scope| {
            let sink = scope.spawn(|| drain(&self.sink, offer, &progress));
            let outcome = send_paced(&mut self.source, offer, &progress);
            progress.source_done.store(true, Relaxed);
            let _ = sink.join();
            outcome
        });
        let (sent, seconds) = outcome?;
        Ok(Trial {
            // A source that gave up early was to send no more than the time allowed.
            wanted: wanted.min((pps * seconds) as u64),
            sent,
            received: progress.received.load(Relaxed),
            bytes: progress.bytes.load(Relaxed),
            seconds,
            sink_drops: self.sink_drops().saturating_sub(drops_before),
        })
    }

    /// Packets that the sink's socket has dropped so far for want of buffer: the last column of its line in
    /// /proc/net/udp, found by its port.
    fn sink_drops(&self) -> u64 {
        let port = self.sink.local_addr().map_or(0, |address| address.port());
        let table = self
            .there
            .run(|| std::fs::read_to_string("/proc/thread-self/net/udp"));
        let Ok(Ok(table)) = table else { return 0 };
        drops_of_port(&table, port)
    }
}

fn drops_of_port(table: &str, port: u16) -> u64 {
    let local = format!(":{port:04X}");
    let line = table.lines().find(|line| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|at| at.ends_with(&local))
    });
    line.and_then(|line| line.split_whitespace().last()?.parse().ok())
        .unwrap_or(0)
}

/// The source: gives the packets sent and the seconds that it took.
fn send_paced(source: &mut Source, offer: Offer, progress: &Progress) -> Result<(u64, f64)> {
    let most = (CATCH_UP.as_secs_f64() * offer.pps) as u64 + BATCH as u64;
    let start = Instant::now();
    let (mut sent, mut skipped, mut watch) = (0u64, 0u64, Watch::default());
    while sent + skipped < offer.wanted {
        let elapsed = start.elapsed();
        let due = ((elapsed.as_secs_f64() * offer.pps) as u64).min(offer.wanted);
        let backlog = due.saturating_sub(sent + skipped);
        skipped += backlog.saturating_sub(most);
        let mut left = backlog.min(most);
        while left > 0 {
            let count = left.min(BATCH as u64);
            let done =
                source.send((sent..sent + count).map(|sequence| offer.mix.packet(offer.trial, sequence)))?;
            sent += done;
            left -= done.min(left);
        }
        progress.sent.store(sent, Relaxed);
        let lost = watch.lost(elapsed, sent, progress.received.load(Relaxed));
        if offer.limit.is_some_and(|limit| lost > limit) {
            break;
        }
        std::thread::sleep(SOURCE_TICK);
    }
    Ok((sent, start.elapsed().as_secs_f64()))
}

/// Tells losses from packets on their way: what was sent [`DRAIN`] ago and has not arrived is lost.
#[derive(Default)]
struct Watch {
    /// Time and packets sent, every 50 ms.
    marks: std::collections::VecDeque<(Duration, u64)>,
}

impl Watch {
    fn lost(&mut self, now: Duration, sent: u64, received: u64) -> u64 {
        if self
            .marks
            .back()
            .is_none_or(|mark| now >= mark.0 + Duration::from_millis(50))
        {
            self.marks.push_back((now, sent));
        }
        while self.marks.get(1).is_some_and(|mark| mark.0 + DRAIN <= now) {
            self.marks.pop_front();
        }
        let old = self.marks.front().filter(|mark| mark.0 + DRAIN <= now);
        old.map_or(0, |mark| mark.1.saturating_sub(received))
    }
}

/// The sink: counts until the source has ended and nothing more comes.
fn drain(socket: &UdpSocket, offer: Offer, progress: &Progress) {
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(MESSAGES, None);
    let mut buffers = vec![[0u8; MESSAGE]; MESSAGES];
    let (mut received, mut bytes, mut quiet_since) = (0u64, 0u64, Instant::now());
    loop {
        let (packets, length) = receive_all(socket, offer, &mut headers, &mut buffers);
        received += packets;
        bytes += length;
        progress.received.store(received, Relaxed);
        progress.bytes.store(bytes, Relaxed);
        if packets > 0 || !progress.source_done.load(Relaxed) {
            quiet_since = Instant::now();
        } else if received >= progress.sent.load(Relaxed) || quiet_since.elapsed() > DRAIN {
            return;
        }
        std::thread::sleep(SINK_TICK);
    }
}

/// Takes everything that is in the socket's buffer; gives packets and payload bytes of this trial.
fn receive_all(
    socket: &UdpSocket,
    offer: Offer,
    headers: &mut MultiHeaders<SockaddrIn>,
    buffers: &mut [[u8; MESSAGE]],
) -> (u64, u64) {
    let (mut packets, mut bytes) = (0, 0);
    loop {
        let mut slices: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let Ok(messages) = recvmmsg(
            socket.as_raw_fd(),
            headers,
            &mut slices,
            MsgFlags::MSG_DONTWAIT,
            None,
        ) else {
            return (packets, bytes);
        };
        let mut taken = 0;
        for message in messages {
            taken += 1;
            let data = message.iovs().next().unwrap_or_default();
            let (count, length) = count_coalesced(data, offer.trial, offer.mix);
            packets += count;
            bytes += length;
        }
        if taken < MESSAGES {
            return (packets, bytes);
        }
    }
}

/// Packets of this trial in one message, which may be several in a row, and their bytes. Each says by its number how
/// long it is.
fn count_coalesced(mut data: &[u8], trial: u32, mix: Mix) -> (u64, u64) {
    let (mut packets, mut bytes) = (0, 0);
    while let Some((head, _)) = data.split_first_chunk::<12>() {
        let (of_trial, sequence) = head.split_at(4);
        let sequence = sequence.try_into().map_or(0, u64::from_le_bytes);
        let len = mix.payload(sequence);
        if of_trial != trial.to_le_bytes() || data.len() < len {
            break;
        }
        packets += 1;
        bytes += len as u64;
        data = &data[len..];
    }
    (packets, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_seven_four_one() {
        let count = |size| {
            (0..12)
                .filter(|i| Mix::IMIX.payload(*i) == size - HEADERS)
                .count()
        };
        assert_eq!([64, 576, 1400].map(count), [7, 4, 1]);
    }

    #[test]
    fn coalesced_packets_are_counted_one_by_one() {
        let mut data = Vec::new();
        for sequence in 10u64..13 {
            let start = data.len();
            data.extend(7u32.to_le_bytes());
            data.extend(sequence.to_le_bytes());
            data.resize(start + Mix::IMIX.payload(sequence), 0);
        }
        assert_eq!(count_coalesced(&data, 7, Mix::IMIX), (3, data.len() as u64));
        assert_eq!(count_coalesced(&data[..data.len() - 1], 7, Mix::IMIX).0, 2);
        assert_eq!(count_coalesced(&data, 8, Mix::IMIX), (0, 0));
        assert_eq!(count_coalesced(&[], 7, Mix::IMIX), (0, 0));
    }

    #[test]
    fn packets_on_their_way_are_not_lost_yet() {
        let mut watch = Watch::default();
        let at = Duration::from_millis;
        assert_eq!(watch.lost(at(0), 100, 0), 0);
        assert_eq!(watch.lost(at(299), 1000, 0), 0);
        assert_eq!(watch.lost(at(301), 1000, 90), 10);
        assert_eq!(watch.lost(at(400), 1000, 100), 0);
        assert_eq!(watch.lost(at(700), 1000, 950), 50);
    }

    #[test]
    fn drops_are_found_by_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            2: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 5 2 0 3\n\
            3: 0200004D:D431 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 6 2 0 17\n";
        assert_eq!(drops_of_port(table, 0xd431), 17);
        assert_eq!(drops_of_port(table, 1), 0);
    }

    #[test]
    fn trials_judge_the_generator() {
        let mut trial = Trial {
            wanted: 100,
            sent: 97,
            received: 97,
            bytes: 9700,
            seconds: 1.0,
            sink_drops: 0,
        };
        assert!(trial.generator_limited());
        trial.add(&Trial {
            wanted: 100,
            sent: 100,
            received: 99,
            bytes: 9900,
            seconds: 1.0,
            sink_drops: 0,
        });
        assert!(!trial.generator_limited());
        assert_eq!(trial.loss(), 1.0 - 196.0 / 197.0);
        assert_eq!(trial.pps(), 98.0);
    }
}
