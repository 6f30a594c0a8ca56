//! The builder: keeps what workers route by in step with what is wanted.
//!
//! What is [`Wanted`] are prefixes and policies with plain next hops: peers by number, LAN ports by place, neighbours by address. Where it
//! comes from, a file or another process, is not known here. The builder gives groups their numbers, resolves neighbours into link
//! addresses, publishes snapshots and writes the FIB, in an order in which no worker ever meets a group that its snapshot does not have:
//!
//! There are two layers of routes: those of the configuration, replaced as a whole, and dynamic ones, changed one by one ([`Builder::change`]). A prefix in both goes
//! by the configuration's; otherwise the longer prefix wins, as anywhere. Both layers' changes take the same steps:
//!
//! 1. a snapshot with the groups of before and of afterwards, and the new policies
//! 2. grace: from here on every worker looks at that one
//! 3. the FIB, each prefix with one store
//! 4. a snapshot without the groups that no route and no policy leads to
//! 5. grace: their numbers may be used again
//!
//! What a change costs does not depend on how many routes there are: groups are counted, not looked for.
//!
//! The number of a peer that is gone is not free before the same has happened to it and every ring between workers has been emptied: the rule
//! at [`Plan`] is kept here.
//!
//! Belongs to the slow path, which is the one publisher and the one writer. It never waits: [`Builder::advance`] takes the next step once it
//! may be taken.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use patronus_crypto::PeerId;
use patronus_sync::{Domain, Grace, Published, Publisher, Reader, publish};

use crate::allowedips::Prefix;
use crate::classify::Match;
use crate::crew::HANDOFF_MAX;
use crate::fib::{FibWriterV4, FibWriterV6, Group, Limits, RouteError};
use crate::flow::HashKeys;
use crate::neighbour::NeighbourTable;
use crate::route::Rules;
use crate::snapshot::{Action, Exit, GROUP_HOPS_MAX, Hop, MTU_MIN, Plan, PlanError, Policy, Snapshot};
use crate::worker::HANDED_PER_TURN;

/// Routes beside those that a configuration counts: the host's own addresses and the ways to it.
const ROUTES_BESIDE: usize = 256;
/// Turns of a worker after which it has taken whatever was in its rings, twice over.
const RING_TURNS: usize = 2 * HANDOFF_MAX.div_ceil(HANDED_PER_TURN);
/// Snapshots that wait for their readers, at most: then a worker stands still, and nothing more is published until it goes on.
const SNAPSHOTS_WAITING: usize = 4;
/// Dynamic routes that are changed in one step: a few milliseconds of the slow path's time.
const CHANGES_PER_STEP: usize = 4096;

/// A next hop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Via {
    /// The tunnel to this peer.
    Tunnel(PeerId),
    /// What is behind this LAN port; on Ethernet, the neighbour with this address.
    Lan(u16, Option<IpAddr>),
    /// Through this Ethernet port to whom the packet is for, who is on the link.
    Connected(u16),
    /// Nowhere.
    Discard,
}

/// What a policy does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict<V = Via> {
    /// To where the routes say.
    Route,
    /// Nowhere.
    Drop,
    /// Over one of these.
    Via(Vec<V>),
}

/// A policy: which flows, what they need of a path, and what becomes of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ruled<V = Via> {
    /// Which flows.
    pub matching: Match,
    /// Their class.
    pub class: u8,
    /// What becomes of them.
    pub verdict: Verdict<V>,
}

/// What workers are to route by.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// Prefixes and their next hops; each flow goes by one of these.
    pub routes: BTreeMap<Prefix, Vec<Via>>,
    /// The first that a flow comes under has the last word.
    pub policies: Vec<Ruled>,
}

impl Wanted {
    /// Every list of next hops in it.
    fn lists(&self) -> impl Iterator<Item = &Vec<Via>> {
        self.routes.values().chain(self.policies.iter().filter_map(over))
    }
}

/// What is on its way to the FIB.
struct Coming {
    /// Another configuration, if it is that.
    wanted: Option<Wanted>,
    /// Dynamic routes.
    changes: BTreeMap<Prefix, Option<Vec<Via>>>,
    /// The policies of the configuration of before, whose groups somebody may still look at.
    policies: Vec<Ruled>,
}

/// A LAN port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lan {
    /// The port's own link address, if it is Ethernet.
    pub mac: Option<[u8; 6]>,
    /// The longest IP packet that goes there, bytes.
    pub mtu: u16,
}

/// What does not change as long as the engine runs.
#[derive(Clone)]
pub struct Frame {
    /// The LAN ports of each worker, by place.
    pub lans: Vec<Lan>,
    /// Prefixes that there may be.
    pub routes: usize,
    /// Workers.
    pub workers: usize,
    /// The flow tables' keys.
    pub keys: HashKeys,
}

/// Why something wanted cannot be had. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildError {
    /// The policies, or a next hop.
    Plan(PlanError),
    /// A list of next hops is empty or longer than [`GROUP_HOPS_MAX`].
    Hops(usize),
    /// More prefixes than there may be: so many, and the limit.
    Routes(usize, usize),
    /// The prefixes are spread over more nodes of the table than it has: so many, and the limit.
    Nodes(usize, usize),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Plan(error) => error.fmt(f),
            BuildError::Hops(hops) => write!(
                f,
                "a route over {hops} next hops: 1 to {GROUP_HOPS_MAX} are possible"
            ),
            BuildError::Routes(routes, limit) => write!(
                f,
                "{routes} prefixes: there is room for {limit}; raise `routes` in [engine]"
            ),
            BuildError::Nodes(nodes, limit) => write!(
                f,
                "the prefixes need {nodes} nodes of the table, which has {limit}; raise `routes` in [engine]"
            ),
        }
    }
}

impl std::error::Error for BuildError {}

impl From<PlanError> for BuildError {
    fn from(error: PlanError) -> BuildError {
        BuildError::Plan(error)
    }
}

/// The numbers of groups.
#[derive(Default)]
struct Numbers {
    of: HashMap<Vec<Via>, Named>,
    /// The next hops of each group, from number 1 on; none where a number stands for nothing.
    groups: Vec<Option<Vec<Via>>>,
    /// Numbers that stand for nothing any more, but that somebody may still come across.
    leaving: VecDeque<(Grace, u32)>,
    free: Vec<u32>,
}

/// A list of next hops that has a number.
struct Named {
    group: Group,
    /// Routes and policies that lead there, those on their way in or out among them.
    uses: usize,
}

impl Numbers {
    fn get(&self, vias: &[Via]) -> Group {
        self.of[vias].group
    }

    /// Gives these next hops a number, if they have none, and counts one more use of it. True if it is new.
    fn hold(&mut self, vias: &[Via]) -> bool {
        if let Some(named) = self.of.get_mut(vias) {
            named.uses += 1;
            return false;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.groups.push(None);
            self.groups.len() as u32
        });
        self.groups[number as usize - 1] = Some(vias.to_vec());
        let group = Group::new(number).expect("there are fewer routes than numbers");
        self.of.insert(vias.to_vec(), Named { group, uses: 1 });
        true
    }

    /// Counts one use less. The number, if that was the last.
    fn release(&mut self, vias: &[Via]) -> Option<u32> {
        let named = self.of.get_mut(vias)?;
        named.uses -= 1;
        if named.uses > 0 {
            return None;
        }
        let number = named.group.number();
        self.of.remove(vias);
        self.groups[number as usize - 1] = None;
        Some(number)
    }

    /// Frees the numbers that nobody can come across any more.
    fn collect(&mut self, domain: &Domain) {
        while let Some((_, number)) = self.leaving.pop_front_if(|(grace, _)| domain.is_over(*grace)) {
            self.free.push(number);
        }
    }

    fn leads_to(&self, peer: PeerId) -> bool {
        let mut used = self.groups.iter().flatten();
        used.any(|vias| vias.contains(&Via::Tunnel(peer)))
    }
}

/// A peer that its worker has let go of.
struct LeavingPeer {
    peer: PeerId,
    /// Since no group leads to it.
    grace: Option<Grace>,
    /// Graces that have to follow on that one.
    left: usize,
}

/// Keeps snapshot and FIB.
pub struct Builder {
    frame: Frame,
    domain: Domain,
    publisher: Publisher<Snapshot>,
    v4: FibWriterV4,
    v6: FibWriterV6,
    numbers: Numbers,
    epoch: u32,
    /// What the FIB and the last snapshot say of the configuration.
    present: Wanted,
    /// The dynamic routes that are there. Where the configuration has the same prefix, the FIB says what that does.
    dynamic: HashMap<Prefix, Vec<Via>>,
    /// What they will say once every worker has left the snapshot of before.
    coming: Option<(Grace, Coming)>,
    /// What comes after that.
    next: Option<Wanted>,
    /// And what dynamic routes there are to be then, none where there is to be none.
    changes: BTreeMap<Prefix, Option<Vec<Via>>>,
    /// Dynamic routes that found no room, since somebody asked.
    unplaced: usize,
    /// Next hops are others than the last snapshot's: an MTU or a neighbour has changed.
    hops_changed: bool,
    tunnel_mtu: u16,
    /// Link addresses of the next hops.
    neighbours: HashMap<(u16, IpAddr), [u8; 6]>,
    /// Those on connected networks.
    table: Arc<NeighbourTable>,
    table_changed: bool,
    /// That has been published since somebody asked.
    table_published: bool,
    /// What was published last.
    last: Snapshot,
    leaving: Vec<LeavingPeer>,
}

impl Builder {
    /// A builder that wants nothing yet, and what each worker routes by.
    pub fn new(frame: Frame, tunnel_mtu: u16) -> io::Result<(Builder, Vec<Rules>)> {
        let (domain, readers) = Domain::new(frame.workers);
        let routes = 2 * (frame.routes + ROUTES_BESIDE);
        // As many dynamic ones: they take no memory that the others could not have.
        let prefixes = 3 * (frame.routes + ROUTES_BESIDE);
        // IPv4 nodes are of 1 KiB. Whole tables of the internet lie close together.
        let v4 = FibWriterV4::new(
            &domain,
            Limits {
                routes: prefixes,
                nodes: routes.min((1 << 16) + routes / 4),
            },
        )?;
        let v6 = FibWriterV6::new(
            &domain,
            Limits {
                routes: prefixes,
                nodes: 4 * routes,
            },
        )?;
        let plan = Plan {
            epoch: 1,
            lans: lans(&frame),
            ..Plan::default()
        };
        let snapshot = Snapshot::compile(&plan, frame.keys.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let (publisher, published) = publish(&domain, Box::new(snapshot.clone()));
        let rules = |reader: Reader| Rules {
            snapshot: Published::clone(&published),
            v4: Arc::clone(v4.fib()),
            v6: Arc::clone(v6.fib()),
            reader,
        };
        let rules = readers.into_iter().map(rules).collect();
        let builder = Builder {
            frame,
            domain,
            publisher,
            v4,
            v6,
            numbers: Numbers::default(),
            epoch: 1,
            present: Wanted::default(),
            dynamic: HashMap::new(),
            coming: None,
            next: None,
            changes: BTreeMap::new(),
            unplaced: 0,
            hops_changed: false,
            tunnel_mtu,
            neighbours: HashMap::new(),
            table: Arc::default(),
            table_changed: false,
            table_published: false,
            last: snapshot,
            leaving: Vec::new(),
        };
        Ok((builder, rules))
    }

    /// Whether this can be had, after what is under way.
    pub fn check(&self, wanted: &Wanted) -> Result<(), BuildError> {
        let (routes, limit) = (wanted.routes.len(), self.frame.routes + ROUTES_BESIDE);
        if routes > limit {
            return Err(BuildError::Routes(routes, limit));
        }
        wanted.lists().try_for_each(|vias| self.check_vias(vias))?;
        let coming = self.coming.as_ref().map(|(_, coming)| coming);
        let before = coming.and_then(|coming| coming.wanted.as_ref());
        let before = before.unwrap_or(&self.present).routes.keys();
        // Dynamic routes that come later find what this leaves.
        let dynamic = coming.into_iter().flat_map(|coming| coming.changes.keys());
        let dynamic = dynamic.chain(self.dynamic.keys());
        let mut both: Vec<Prefix> = before
            .chain(wanted.routes.keys())
            .chain(dynamic)
            .copied()
            .collect();
        both.sort_unstable();
        both.dedup();
        check_nodes(&both, false, self.v4.limits())?;
        check_nodes(&both, true, self.v6.limits())?;
        // Of the policies only what they ask for can be wrong now.
        let policies = wanted.policies.iter().map(|ruled| Policy {
            matching: ruled.matching.clone(),
            class: ruled.class,
            action: Action::Route,
        });
        let plan = Plan {
            policies: policies.collect(),
            ..self.plan(Vec::new())
        };
        Snapshot::compile(&plan, self.frame.keys.clone())?;
        Ok(())
    }

    fn check_vias(&self, vias: &[Via]) -> Result<(), BuildError> {
        if vias.is_empty() || vias.len() > GROUP_HOPS_MAX {
            return Err(BuildError::Hops(vias.len()));
        }
        vias.iter().try_for_each(|via| self.check_via(*via))
    }

    fn check_via(&self, via: Via) -> Result<(), BuildError> {
        match via {
            Via::Lan(lan, neighbour) => match self.frame.lans.get(usize::from(lan)) {
                Some(found) if found.mac.is_some() == neighbour.is_some() => Ok(()),
                _ => Err(PlanError::NoLan(lan).into()),
            },
            Via::Connected(lan) => match self.frame.lans.get(usize::from(lan)) {
                Some(found) if found.mac.is_some() => Ok(()),
                _ => Err(PlanError::NoLan(lan).into()),
            },
            Via::Tunnel(_) | Via::Discard => Ok(()),
        }
    }

    /// Wants this from now on. It is so after some calls of [`advance`](Builder::advance).
    pub fn want(&mut self, wanted: Wanted) -> Result<(), BuildError> {
        self.check(&wanted)?;
        self.next = Some(wanted);
        self.advance();
        Ok(())
    }

    /// A dynamic route over these next hops from now on, or none. It is so after some calls of [`advance`](Builder::advance), unless there is no room for it
    /// ([`take_unplaced`](Builder::take_unplaced)).
    pub fn change(&mut self, prefix: Prefix, vias: Option<Vec<Via>>) -> Result<(), BuildError> {
        if let Some(vias) = &vias {
            self.check_vias(vias)?;
        }
        self.changes.insert(prefix, vias);
        Ok(())
    }

    /// The next hops of a dynamic route, as they will be after all changes.
    pub fn dynamic(&self, prefix: &Prefix) -> Option<&[Via]> {
        let coming = self
            .coming
            .as_ref()
            .and_then(|(_, coming)| coming.changes.get(prefix));
        let changed = self.changes.get(prefix).or(coming);
        match changed {
            Some(vias) => vias.as_deref(),
            None => self.dynamic.get(prefix).map(Vec::as_slice),
        }
    }

    /// Prefixes that a configuration may have, and as many dynamic ones.
    pub fn routes_limit(&self) -> usize {
        self.frame.routes
    }

    /// How many dynamic routes there are.
    pub fn dynamic_len(&self) -> usize {
        self.dynamic.len()
    }

    /// How many lists of next hops have a number.
    pub fn groups(&self) -> usize {
        self.numbers.of.len()
    }

    /// How many dynamic routes have found no room since the last call.
    pub fn take_unplaced(&mut self) -> usize {
        std::mem::take(&mut self.unplaced)
    }

    /// The MTU of tunnels from now on, bytes.
    pub fn set_tunnel_mtu(&mut self, mtu: u16) {
        self.hops_changed |= std::mem::replace(&mut self.tunnel_mtu, mtu) != mtu;
    }

    /// The link address of a neighbour on a LAN port from now on, none if it is not known any more. Until it is known, what would go there goes by
    /// the other next hops of a route, or nowhere.
    pub fn set_neighbour(&mut self, lan: u16, address: IpAddr, mac: Option<[u8; 6]>) {
        let key = (lan, address);
        let before = match mac {
            Some(mac) => self.neighbours.insert(key, mac),
            None => self.neighbours.remove(&key),
        };
        self.hops_changed |= before != mac;
    }

    /// Who is on the connected networks from now on.
    pub fn set_table(&mut self, table: NeighbourTable) {
        self.table = Arc::new(table);
        self.table_changed = true;
    }

    /// Whether workers see another table than at the last call.
    pub fn take_table_published(&mut self) -> bool {
        std::mem::take(&mut self.table_published)
    }

    /// The LAN port in this place is like this from now on. It is Ethernet if it was before.
    pub fn set_lan(&mut self, lan: u16, now: Lan) {
        let before = &mut self.frame.lans[usize::from(lan)];
        debug_assert_eq!(before.mac.is_some(), now.mac.is_some());
        self.hops_changed |= std::mem::replace(before, now) != now;
    }

    /// The neighbours that what is wanted names as next hops.
    pub fn next_hops(&self) -> BTreeSet<(u16, IpAddr)> {
        // Who has a number is, or was a moment ago.
        let named = self.numbers.of.keys();
        let next = self.next.iter().flat_map(Wanted::lists);
        let changes = self.changes.values().flatten();
        let vias = named.chain(next).chain(changes).flatten();
        vias.filter_map(|via| match via {
            Via::Lan(lan, Some(address)) => Some((*lan, *address)),
            _ => None,
        })
        .collect()
    }

    /// What workers are to route by of the configuration, after what is under way.
    pub fn wanted(&self) -> &Wanted {
        let coming = self
            .coming
            .as_ref()
            .and_then(|(_, coming)| coming.wanted.as_ref());
        self.next.as_ref().or(coming).unwrap_or(&self.present)
    }

    /// The dynamic routes that are there, in no order. What the configuration says of the same prefix counts more.
    pub fn dynamic_routes(&self) -> impl Iterator<Item = (&Prefix, &[Via])> {
        self.dynamic.iter().map(|(prefix, vias)| (prefix, &vias[..]))
    }

    /// A worker has let go of this peer. Its number comes back from [`advance`](Builder::advance) once nobody can come across it.
    pub fn leave(&mut self, peer: PeerId) {
        self.leaving.push(LeavingPeer {
            peer,
            grace: None,
            left: if self.frame.workers > 1 { RING_TURNS } else { 0 },
        });
    }

    /// Whether something waits for workers, so that [`advance`](Builder::advance) has to be called again soon.
    pub fn is_busy(&self) -> bool {
        let wanted = self.coming.is_some() || self.next.is_some() || !self.changes.is_empty();
        let under_way = wanted || self.hops_changed || self.table_changed;
        under_way || !self.numbers.leaving.is_empty() || !self.leaving.is_empty()
    }

    /// Takes the steps that may be taken now. Returns the numbers of peers that may be used again.
    pub fn advance(&mut self) -> Vec<PeerId> {
        let waiting = self.publisher.collect(&self.domain);
        self.numbers.collect(&self.domain);
        self.v4.collect(&self.domain);
        self.v6.collect(&self.domain);
        if let Some((_, coming)) = self.coming.take_if(|(grace, _)| self.domain.is_over(*grace)) {
            self.write(coming);
        }
        if self.coming.is_none() && waiting < SNAPSHOTS_WAITING {
            if self.next.is_some() || !self.changes.is_empty() {
                self.begin();
            } else if self.hops_changed {
                self.publish();
            } else if self.table_changed {
                self.publish_table();
            }
        }
        self.released()
    }

    /// Publishes the groups of before and of afterwards.
    fn begin(&mut self) {
        let wanted = self.next.take();
        let mut changes = std::mem::take(&mut self.changes);
        if changes.len() > CHANGES_PER_STEP {
            let last = changes.keys().nth(CHANGES_PER_STEP).copied();
            self.changes = last.map(|last| changes.split_off(&last)).unwrap_or_default();
        }
        let mut changed = self.hops_changed;
        let mut policies = Vec::new();
        if let Some(wanted) = &wanted {
            changed |= self.present.policies != wanted.policies;
            policies = std::mem::replace(&mut self.present.policies, wanted.policies.clone());
            for vias in wanted.lists() {
                changed |= self.numbers.hold(vias);
            }
        }
        for vias in changes.values().flatten() {
            changed |= self.numbers.hold(vias);
        }
        if changed {
            self.publish();
        }
        // Also for the nodes of the last change: they are all free then.
        let grace = self.domain.begin_grace();
        let coming = Coming {
            wanted,
            changes,
            policies,
        };
        self.coming = Some((grace, coming));
    }

    /// Brings the FIB up to date and forgets the groups that it no longer leads to.
    fn write(&mut self, coming: Coming) {
        let mut released = Vec::new();
        if let Some(wanted) = coming.wanted {
            let routes = self.write_wanted(&wanted);
            for vias in routes.values().chain(coming.policies.iter().filter_map(over)) {
                released.extend(self.numbers.release(vias));
            }
            self.present.routes = wanted.routes;
        }
        for (prefix, vias) in coming.changes {
            let before = self.write_change(prefix, vias);
            released.extend(before.and_then(|vias| self.numbers.release(&vias)));
        }
        if !released.is_empty() {
            self.publish();
            let grace = self.domain.begin_grace();
            let leaving = released.into_iter().map(|number| (grace, number));
            self.numbers.leaving.extend(leaving);
        }
    }

    /// Brings the FIB up to date with another configuration; returns the routes of before. What it no longer says goes by the dynamic route, if there is one.
    fn write_wanted(&mut self, wanted: &Wanted) -> BTreeMap<Prefix, Vec<Via>> {
        let before = std::mem::take(&mut self.present.routes);
        for (prefix, vias) in &wanted.routes {
            if before.get(prefix) != Some(vias) {
                let written = self.insert(prefix, self.numbers.get(vias));
                written.expect("checked: there is room for the routes of before and of afterwards");
            }
        }
        for prefix in before.keys().filter(|prefix| !wanted.routes.contains_key(prefix)) {
            match self.dynamic.get(prefix) {
                Some(vias) => {
                    let written = self.insert(prefix, self.numbers.get(vias));
                    written.expect("it is there, with another group");
                }
                None => self.remove(prefix),
            }
        }
        before
    }

    /// Changes a dynamic route; returns the next hops that nothing leads to by it any more. One that finds no room is not there.
    fn write_change(&mut self, prefix: Prefix, vias: Option<Vec<Via>>) -> Option<Vec<Via>> {
        let shadowed = self.present.routes.contains_key(&prefix);
        let Some(vias) = vias else {
            let before = self.dynamic.remove(&prefix)?;
            if !shadowed {
                self.remove(&prefix);
            }
            return Some(before);
        };
        if !shadowed && self.insert(&prefix, self.numbers.get(&vias)).is_err() {
            // What there is needs no more room: this is a new one.
            self.unplaced += 1;
            return Some(vias);
        }
        self.dynamic.insert(prefix, vias)
    }

    fn insert(&mut self, prefix: &Prefix, group: Group) -> Result<(), RouteError> {
        let (domain, len) = (&self.domain, prefix.cidr());
        match prefix.addr() {
            IpAddr::V4(ip) => self.v4.insert(domain, ip.octets(), len, group),
            IpAddr::V6(ip) => self.v6.insert(domain, ip.octets(), len, group),
        }
        .map(drop)
    }

    fn remove(&mut self, prefix: &Prefix) {
        let (domain, len) = (&mut self.domain, prefix.cidr());
        match prefix.addr() {
            IpAddr::V4(ip) => self.v4.remove(domain, ip.octets(), len),
            IpAddr::V6(ip) => self.v6.remove(domain, ip.octets(), len),
        };
    }

    /// Publishes the present policies, and every group that has a number.
    fn publish(&mut self) {
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        self.hops_changed = false;
        let policies = self.present.policies.iter().map(|ruled| Policy {
            matching: ruled.matching.clone(),
            class: ruled.class,
            action: match &ruled.verdict {
                Verdict::Route => Action::Route,
                Verdict::Drop => Action::Drop,
                Verdict::Via(vias) => Action::Via(self.numbers.get(vias)),
            },
        });
        let plan = self.plan(policies.collect());
        let snapshot = Snapshot::compile(&plan, self.frame.keys.clone());
        self.last = snapshot.expect("checked: policies, groups and their next hops are right");
        self.publish_table();
    }

    /// Publishes the last snapshot with the present table.
    fn publish_table(&mut self) {
        self.table_published |= std::mem::take(&mut self.table_changed);
        let snapshot = self.last.clone().with_neighbours(Arc::clone(&self.table));
        self.publisher.replace(&mut self.domain, Box::new(snapshot));
    }

    fn plan(&self, policies: Vec<Policy>) -> Plan {
        let groups = self.numbers.groups.iter().map(|group| match group {
            Some(vias) => self.hops(vias),
            None => vec![NOWHERE],
        });
        Plan {
            epoch: self.epoch,
            policies,
            groups: groups.collect(),
            lans: lans(&self.frame),
            spread_over: if self.frame.workers > 1 {
                self.frame.workers
            } else {
                0
            },
        }
    }

    /// The next hops of a group that can be used now.
    fn hops(&self, vias: &[Via]) -> Vec<Hop> {
        let usable: Vec<Hop> = vias.iter().filter_map(|via| self.hop(*via)).collect();
        if usable.is_empty() {
            vec![UNREACHABLE]
        } else {
            usable
        }
    }

    /// `None` while the neighbour's link address is not known.
    fn hop(&self, via: Via) -> Option<Hop> {
        let hop = |exit, mtu: u16| {
            Some(Hop {
                exit,
                mtu: mtu.max(MTU_MIN),
            })
        };
        match via {
            Via::Discard => Some(NOWHERE),
            Via::Tunnel(peer) => hop(Exit::Tunnel(peer), self.tunnel_mtu),
            Via::Connected(lan) => {
                let own = self.frame.lans[usize::from(lan)];
                hop(Exit::Neighbour(lan, own.mac?), own.mtu)
            }
            Via::Lan(lan, neighbour) => {
                let own = self.frame.lans[usize::from(lan)];
                let (Some(mac), Some(address)) = (own.mac, neighbour) else {
                    return hop(Exit::Lan(lan, None), own.mtu);
                };
                let to = self.neighbours.get(&(lan, address))?;
                let mut addresses = [0; 12];
                addresses[..6].copy_from_slice(to);
                addresses[6..].copy_from_slice(&mac);
                hop(Exit::Lan(lan, Some(addresses)), own.mtu)
            }
        }
    }

    fn released(&mut self) -> Vec<PeerId> {
        let mut released = Vec::new();
        let (numbers, domain) = (&self.numbers, &mut self.domain);
        self.leaving.retain_mut(|leaving| {
            match leaving.grace {
                None if numbers.leads_to(leaving.peer) => {}
                None => leaving.grace = Some(domain.begin_grace()),
                Some(grace) if !domain.is_over(grace) => {}
                Some(_) if leaving.left > 0 => {
                    leaving.left -= 1;
                    leaving.grace = Some(domain.begin_grace());
                }
                Some(_) => {
                    released.push(leaving.peer);
                    return false;
                }
            }
            true
        });
        released
    }
}

/// What a group has whose next hops are all unknown.
const UNREACHABLE: Hop = Hop {
    exit: Exit::Unreachable,
    mtu: 0,
};

/// What leads nowhere.
const NOWHERE: Hop = Hop {
    exit: Exit::Discard,
    mtu: 0,
};

fn lans(frame: &Frame) -> Vec<bool> {
    frame.lans.iter().map(|lan| lan.mac.is_some()).collect()
}

/// The next hops that a policy names.
fn over(ruled: &Ruled) -> Option<&Vec<Via>> {
    match &ruled.verdict {
        Verdict::Via(vias) => Some(vias),
        Verdict::Route | Verdict::Drop => None,
    }
}

/// Refuses sorted prefixes that need more nodes than the family's table has.
fn check_nodes(prefixes: &[Prefix], ipv6: bool, limits: Limits) -> Result<(), BuildError> {
    let of_family = prefixes.iter().filter(|prefix| prefix.addr().is_ipv6() == ipv6);
    let nodes = if ipv6 {
        count_nodes(of_family, |prefix| FibWriterV6::nodes_above(prefix.cidr()))
    } else {
        count_nodes(of_family, |prefix| FibWriterV4::nodes_above(prefix.cidr()))
    };
    if nodes > limits.nodes {
        Err(BuildError::Nodes(nodes, limits.nodes))
    } else {
        Ok(())
    }
}

/// How many nodes a table with these prefixes, in order, has: one for every beginning of so many bits as each of them has nodes above it.
fn count_nodes<'a, I: Iterator<Item = u32>>(
    prefixes: impl Iterator<Item = &'a Prefix>,
    levels: impl Fn(&Prefix) -> I,
) -> usize {
    let mut last = HashMap::new();
    let mut count = 0;
    for prefix in prefixes {
        let bits = match prefix.addr() {
            IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
            IpAddr::V6(ip) => ip.to_bits(),
        };
        for covered in levels(prefix) {
            let beginning = bits >> (128 - covered);
            count += usize::from(last.insert(covered, beginning) != Some(beginning));
        }
    }
    count
}
