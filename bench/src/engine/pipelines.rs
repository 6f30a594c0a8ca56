//! The pipelines one burst after the other, for whoever counts what a processor does meanwhile.

use patronus_crypto::Time;
use patronus_crypto::aead::{Aead, Job, TAG};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX};
use patronus_netns::{Error, Result};

use super::lan::{Arrivals, Lan, Wire};
use super::pair::Pair;
use super::size::Size;

/// A clock that stands still, so that nothing is done because of time.
const NOW: Time = Time(1_000_000_000);
/// Flows that routed packets are of.
const FLOWS: u32 = 1000;

/// A way of a packet that is counted alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Pipeline {
    /// An inner packet becomes a datagram.
    Encrypt,
    /// The same, each for the next of a thousand peers.
    #[value(name = "encrypt-1000")]
    EncryptMany,
    /// A datagram becomes an inner packet; also counts what made the datagram.
    Both,
    /// The same, each from the next of a thousand peers.
    #[value(name = "both-1000")]
    BothMany,
    /// From port to port, and nothing else.
    Forward,
    /// From port to port with flow table, FIB and time to live between, the making of the packet included.
    Route,
}

impl Pipeline {
    /// What it is called in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Pipeline::Encrypt => "encrypt",
            Pipeline::EncryptMany => "encrypt-1000",
            Pipeline::Both => "both",
            Pipeline::BothMany => "both-1000",
            Pipeline::Forward => "forward",
            Pipeline::Route => "route",
        }
    }
}

/// Neither hides nor checks anything: what remains is the engine's own work, the same on every processor.
struct Transparent;

impl Aead for Transparent {
    fn name(&self) -> &'static str {
        "transparent"
    }

    fn seal(&self, burst: &mut [Job<'_>]) {
        burst.iter_mut().for_each(|job| job.ok = job.buf.len() >= TAG);
    }

    fn open(&self, burst: &mut [Job<'_>]) {
        self.seal(burst);
    }

    fn seal_one(&self, _: &[u8; 32], _: &[u8; 12], _: &[u8], buf: &mut [u8]) -> bool {
        buf.len() >= TAG
    }

    fn open_one(&self, _: &[u8; 32], _: &[u8; 12], _: &[u8], buf: &mut [u8]) -> bool {
        buf.len() >= TAG
    }
}

/// Runs `bursts` bursts of packets of `size` bytes. Returns how many packets that were.
pub fn run(pipeline: Pipeline, size: usize, bursts: usize) -> Result<usize> {
    let size = Size::Bytes(size);
    match pipeline {
        Pipeline::Encrypt => Ok(tunnel(1, size, bursts, false)),
        Pipeline::EncryptMany => Ok(tunnel(1000, size, bursts, false)),
        Pipeline::Both => Ok(tunnel(1, size, bursts, true)),
        Pipeline::BothMany => Ok(tunnel(1000, size, bursts, true)),
        Pipeline::Forward => {
            let mut wire = Wire::new(arena()?, FLOWS, size);
            Ok((0..bursts).map(|_| wire.burst()).sum())
        }
        Pipeline::Route => {
            let mut lan = Lan::new(arena()?, 1, FLOWS, size, Arrivals::Aligned);
            // The first packet of a flow is another matter.
            let turns = |lan: &mut Lan, packets: u64| {
                let sent = lan.sinks[0].tx_packets.get();
                while lan.sinks[0].tx_packets.get() < sent + packets {
                    assert!(lan.workers[0].step(NOW));
                }
                (lan.sinks[0].tx_packets.get() - sent) as usize
            };
            turns(&mut lan, u64::from(FLOWS));
            Ok(turns(&mut lan, (bursts * BURST_MAX) as u64))
        }
    }
}

fn tunnel(peers: usize, size: Size, bursts: usize, decrypt: bool) -> usize {
    let mut pair = Pair::new(&Transparent, peers);
    for _ in 0..bursts {
        pair.refill(size);
        pair.encrypt();
        if decrypt {
            pair.decrypt();
            pair.check(size);
        }
    }
    bursts * BURST_MAX
}

fn arena() -> Result<&'static Arena> {
    let config = ArenaConfig {
        frames: 16384,
        jumbo_frames: 0,
    };
    Arena::new(&config).map_err(|e| Error::new(format!("memory for packets: {e}")))
}
