//! What workers route by, apart from the FIB: policies, next-hop groups, and how flows are spread over workers.
//!
//! A snapshot is compiled off the data path, never changes, and is published at once ([`patronus_sync::publish`]); the one before it is freed when
//! no worker can be looking at it any more. Its epoch tells flows that were judged under an earlier one.

use std::fmt;
use std::sync::Arc;

use patronus_crypto::PeerId;
use patronus_io::ip::FlowKey;

use crate::classify::{Classifier, CompileError, Match};
use crate::ethernet::LinkAddresses;
use crate::fib::Group;
use crate::flow::HashKeys;
use crate::neighbour::NeighbourTable;

/// Places of the table that spreads flows over workers.
pub const SPREAD: usize = 128;
/// Next hops of a group at most.
pub const GROUP_HOPS_MAX: usize = 64;

/// The shortest MTU of a link.
pub const MTU_MIN: u16 = 1280;

/// What a policy does with a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// To where the FIB says.
    Route,
    /// To this group, whatever the FIB says.
    Via(Group),
    /// Nowhere.
    Drop,
}

/// Which flows, and what becomes of them.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Which flows.
    pub matching: Match,
    /// Their class.
    pub class: u8,
    /// What becomes of them.
    pub action: Action,
}

/// What the policies say of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// What becomes of it.
    pub action: Action,
    /// Its class; 0 if it comes under no policy.
    pub class: u8,
}

/// How a packet leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// In the tunnel towards this peer.
    Tunnel(PeerId),
    /// Through this LAN port (its place among the worker's), behind a link header if it is an Ethernet port.
    Lan(u16, Option<LinkAddresses>),
    /// Through this LAN port, which has this link address, to its receiver itself, who is on the link.
    Neighbour(u16, [u8; 6]),
    /// Not at all: nobody knows where its next hop is.
    Unreachable,
    /// Not at all.
    Discard,
}

/// A next hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    /// How a packet leaves.
    pub exit: Exit,
    /// Longest IP packet that may, bytes.
    pub mtu: u16,
}

/// What a snapshot is made from.
///
/// Numbers stand for the same thing as long as anybody can come across them: that of a peer is not given to another one, nor that of a group,
/// before a snapshot without it has been published, all routes to the group are gone, and the grace since then is over.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Not that of an earlier plan, and not 0.
    pub epoch: u32,
    /// The first that a flow comes under has the last word; who comes under none is routed.
    pub policies: Vec<Policy>,
    /// Next hops of each group, from number 1 on.
    pub groups: Vec<Vec<Hop>>,
    /// The LAN ports of each worker: which of them are Ethernet.
    pub lans: Vec<bool>,
    /// Workers to spread flows over that arrive on LAN ports; 0: each keeps what it receives.
    pub spread_over: usize,
}

/// Why a plan cannot be compiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlanError {
    /// The policies.
    Policies(CompileError),
    /// A policy names a group that is not there.
    NoGroup(Group),
    /// A group has no next hop, or more than [`GROUP_HOPS_MAX`].
    Hops(usize),
    /// A next hop leaves through a LAN port that is not there, or with a link header where the port takes none, or without one where it does.
    NoLan(u16),
    /// A next hop takes packets of so many bytes only; every link of IPv6 takes 1,280 (RFC 8200, section 5).
    Mtu(u16),
    /// There are so many workers to spread flows over, more than 255.
    Workers(usize),
    /// Epoch 0 means "of no snapshot".
    Epoch,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Policies(error) => error.fmt(f),
            PlanError::NoGroup(group) => write!(f, "there is no next-hop group {}", group.number()),
            PlanError::Hops(group) => {
                write!(
                    f,
                    "next-hop group {group}: 1 to {GROUP_HOPS_MAX} next hops are possible"
                )
            }
            PlanError::NoLan(lan) => write!(f, "there is no LAN port {lan} of that kind"),
            PlanError::Mtu(mtu) => write!(f, "an MTU of {mtu} bytes: 1280 is the least"),
            PlanError::Workers(workers) => write!(f, "{workers} workers: 255 are the most"),
            PlanError::Epoch => f.write_str("epoch 0 belongs to no snapshot"),
        }
    }
}

impl std::error::Error for PlanError {}

impl From<CompileError> for PlanError {
    fn from(error: CompileError) -> PlanError {
        PlanError::Policies(error)
    }
}

/// A plan, compiled. A copy shares everything with the first.
#[derive(Clone)]
pub struct Snapshot {
    epoch: u32,
    classifier: Arc<Classifier>,
    /// By policy.
    judgements: Arc<[Judgement]>,
    /// Where each group's hops are, from group 1 on.
    groups: Arc<[(u32, u32)]>,
    hops: Arc<[Hop]>,
    /// Which worker has the flows whose hash ends with these bits.
    spread: Option<Arc<[u8; SPREAD]>>,
    neighbours: Arc<NeighbourTable>,
}

impl Snapshot {
    /// Compiles a plan.
    pub fn compile(plan: &Plan, keys: HashKeys) -> Result<Snapshot, PlanError> {
        if plan.epoch == 0 {
            return Err(PlanError::Epoch);
        }
        let matches: Vec<Match> = plan.policies.iter().map(|p| p.matching.clone()).collect();
        for policy in &plan.policies {
            if let Action::Via(group) = policy.action
                && group.number() as usize > plan.groups.len()
            {
                return Err(PlanError::NoGroup(group));
            }
        }
        let (mut groups, mut hops) = (Vec::new(), Vec::new());
        for (at, group) in plan.groups.iter().enumerate() {
            if group.is_empty() || group.len() > GROUP_HOPS_MAX {
                return Err(PlanError::Hops(at + 1));
            }
            groups.push((hops.len() as u32, group.len() as u32));
            hops.extend_from_slice(group);
        }
        for hop in &hops {
            let lan = match hop.exit {
                Exit::Lan(lan, header) => Some((lan, header.is_some())),
                Exit::Neighbour(lan, _) => Some((lan, true)),
                Exit::Tunnel(_) => None,
                Exit::Unreachable | Exit::Discard => continue,
            };
            if let Some((lan, ethernet)) = lan
                && plan.lans.get(usize::from(lan)) != Some(&ethernet)
            {
                return Err(PlanError::NoLan(lan));
            }
            if hop.mtu < MTU_MIN {
                return Err(PlanError::Mtu(hop.mtu));
            }
        }
        if plan.spread_over > usize::from(u8::MAX) {
            return Err(PlanError::Workers(plan.spread_over));
        }
        Ok(Snapshot {
            epoch: plan.epoch,
            classifier: Arc::new(Classifier::compile(&matches, keys)?),
            judgements: plan
                .policies
                .iter()
                .map(|&Policy { action, class, .. }| Judgement { action, class })
                .collect(),
            groups: groups.into(),
            hops: hops.into(),
            spread: spread(plan.spread_over),
            neighbours: Arc::default(),
        })
    }

    /// The same, with these neighbours.
    pub fn with_neighbours(self, neighbours: Arc<NeighbourTable>) -> Snapshot {
        Snapshot { neighbours, ..self }
    }

    /// Who is known on the LANs.
    #[inline]
    pub fn neighbours(&self) -> &NeighbourTable {
        &self.neighbours
    }

    /// Which snapshot this is.
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// What the policies say of a flow.
    pub fn judge(&self, key: &FlowKey) -> Judgement {
        const ROUTE: Judgement = Judgement {
            action: Action::Route,
            class: 0,
        };
        let policy = self.classifier.classify(key);
        policy.map_or(ROUTE, |policy| self.judgements[policy])
    }

    /// The policy that a flow comes under, if it does under any.
    pub fn policy(&self, key: &FlowKey) -> Option<usize> {
        self.classifier.classify(key)
    }

    /// The group's next hop for flows with this hash; `None` if there is no such group: the route is newer than the snapshot.
    #[inline]
    pub fn hop(&self, group: Group, hash: u64) -> Option<&Hop> {
        let (start, count) = *self.groups.get(group.number() as usize - 1)?;
        // The upper bits of the lower half of the hash: other bits than choose the worker.
        let pick = ((hash >> 8 & 0xff_ffff) * u64::from(count)) >> 24;
        self.hops.get(start as usize + pick as usize)
    }

    /// The worker that has the flows with this hash; `None`: whoever received them.
    #[inline]
    pub fn worker(&self, hash: u64) -> Option<usize> {
        let spread = self.spread.as_ref()?;
        Some(usize::from(spread[hash as usize % SPREAD]))
    }
}

fn spread(workers: usize) -> Option<Arc<[u8; SPREAD]>> {
    (workers > 1).then(|| Arc::new(std::array::from_fn(|at| (at % workers) as u8)))
}
