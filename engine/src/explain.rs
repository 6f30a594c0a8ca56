//! Why a packet goes where it goes: what a worker tells about a flow, or about those that it remembers.
//!
//! The slow path asks with a [`Query`], which has room for the answer; a worker fills it in between two bursts and sends it back. What is told is found out anew, by the same
//! look-ups that a packet takes, and changes nothing. Of the flows that a worker remembers it tells some at a time, so that packets do not wait for that.

use patronus_crypto::{Duration, PeerId};
use patronus_io::ip::FlowKey;

use crate::path::PathName;
use crate::snapshot::Exit;

/// Places of the flow table that a worker looks at for one answer.
pub const PLACES_PER_QUERY: u32 = 4096;
/// Flows in one answer at most.
pub const FLOWS_PER_QUERY: usize = 128;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// What becomes of this flow.
    Flow(FlowKey),
    /// What flows there are, from this place of the table on.
    Flows(u32),
}

/// A question, and room for the answer.
#[derive(Debug)]
pub struct Query {
    /// Whose question it is.
    pub number: u64,
    /// The worker that is asked.
    pub worker: usize,
    /// What is asked.
    pub asked: Asked,
    /// The answer; has room for as much as there will be.
    pub told: Vec<Explained>,
    /// Where to go on; none: that was all.
    pub next: Option<u32>,
}

impl Query {
    /// With room for the answer.
    pub fn new(number: u64, worker: usize, asked: Asked) -> Query {
        let room = match asked {
            Asked::Flow(_) => 1,
            Asked::Flows(_) => FLOWS_PER_QUERY,
        };
        Query {
            number,
            worker,
            asked,
            told: Vec::with_capacity(room),
            next: None,
        }
    }
}

/// What becomes of a flow's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whither {
    /// A policy drops them.
    Dropped,
    /// There is no route.
    NoRoute,
    /// They leave there.
    Exit(Exit),
}

/// By which path a bucket's packets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Steered {
    /// The path; none: the bucket has had no packet yet.
    pub path: Option<PathName>,
    /// The path that it belongs to: it goes there in a pause, or when its turn comes.
    pub home: Option<PathName>,
    /// The other path, if each packet takes two.
    pub second: Option<PathName>,
    /// How long it has been on its path, to a millisecond.
    pub since: Duration,
    /// How long ago its last packet came.
    pub seen: Duration,
}

/// What is known of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Explained {
    /// Which flow.
    pub key: FlowKey,
    /// How long ago its last packet came, if it is remembered; to a millisecond.
    pub idle: Option<Duration>,
    /// Bytes of its packets since it has been remembered, if it is; without link headers.
    pub bytes: Option<u64>,
    /// The worker that has it; none: whichever receives its packets.
    pub owner: Option<usize>,
    /// The policy that it comes under, by its place.
    pub policy: Option<u32>,
    /// Its class.
    pub class: u8,
    /// What becomes of its packets.
    pub whither: Whither,
    /// Its bucket, if they go into a tunnel.
    pub bucket: Option<u8>,
    /// By which path the bucket's packets go, if there are lanes.
    pub steered: Option<Steered>,
}

impl Explained {
    /// The peer whose tunnel its packets take.
    pub fn peer(&self) -> Option<PeerId> {
        match self.whither {
            Whither::Exit(Exit::Tunnel(peer)) => Some(peer),
            _ => None,
        }
    }
}
