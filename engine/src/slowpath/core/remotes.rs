//! Remotes and their lanes: carries out what [`Remote`] says, and tells it what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_crypto::{AddLaneError, Duration, LinkId, Path, PeerId, PublicKey, Tag, Time};
use patronus_mem::Outer;

use super::{Core, Peer, Sockets};
use crate::channel::{Command, ControlMessage};
use crate::path::{PATHS_MAX, PathBoard, PathLanes, PathName, Paths};
use crate::probe::{PROBER, ProbeSet, ProbedPath};
use crate::remote::known::KnownRemotes;
use crate::remote::message::{BootId, Control, LinkInfo};
use crate::remote::{Action, LanePlan, Own, Remote, hello};
use crate::steer::Standing;
use crate::wg::PeerSlot;

/// Control messages worked off in a turn.
const CONTROLS_PER_TURN: usize = 64;
/// How often the opener of a lane sends something, and each side of a base session.
const LANE_KEEPALIVE: Duration = Duration::from_secs(10);
const BASE_KEEPALIVE: Duration = Duration::from_secs(25);
/// When a base session is renewed by who has begun it, if nothing that was sent has done that: a little after what is sent would (REKEY_AFTER_TIME, 120 s).
const BASE_RENEWAL: Duration = Duration::from_secs(125);

/// What there is to know about remotes.
pub(super) struct Remotes {
    generation: u32,
    /// By link.
    incarnations: Vec<u16>,
    /// What each link says of itself; it counts while it has sockets.
    links: Vec<Option<LinkInfo>>,
    known: KnownRemotes,
    /// What workers know of the paths towards a remote.
    boards: BTreeMap<PeerId, Board>,
    /// Messages that could not be understood.
    unknown: u64,
    /// Those whose base session has to ask whether they are there.
    to_ask: Vec<PeerId>,
    /// Lanes that there are.
    lanes: usize,
    /// Not all lanes have a number.
    is_short: bool,
    /// A number has become free since then.
    has_room: bool,
}

/// What workers know of the paths towards a remote, and the lane by which each path is probed: with another one, a path of the same name is another path.
struct Board {
    shared: Arc<PathBoard>,
    /// By place.
    probed: Vec<Option<PeerId>>,
}

/// What a lane is, beside a peer.
pub struct Lane {
    /// The remote's base session.
    pub base: PeerId,
    /// Its name.
    pub tag: Tag,
    /// The place of its link.
    link: usize,
    plan: LanePlan,
}

impl Lane {
    /// The links that it goes between.
    pub(super) fn path(&self) -> Path {
        self.plan.path
    }
}

impl Remotes {
    pub(super) fn new(links: usize) -> Remotes {
        Remotes {
            generation: 0,
            incarnations: vec![0; links],
            links: vec![None; links],
            known: KnownRemotes::default(),
            boards: BTreeMap::new(),
            unknown: 0,
            to_ask: Vec::new(),
            lanes: 0,
            is_short: false,
            has_room: false,
        }
    }

    /// How many lanes there are.
    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    /// A number is free that somebody had.
    pub(super) fn number_freed(&mut self) {
        self.has_room = self.is_short;
    }

    /// A peer or a lane is gone.
    pub(super) fn forget(&mut self, id: PeerId, is_lane: bool) {
        match is_lane {
            true => self.lanes -= 1,
            false => self.known.remove(id),
        }
    }
}

impl<S: Sockets> Core<S> {
    /// From now on this peer is a site of our own, which is kept in touch with.
    pub fn make_remote(&mut self, id: PeerId) {
        let Some(key) = self.peer(id).map(|peer| peer.key) else {
            return;
        };
        if self.is_remote(id) {
            return;
        }
        self.device.set_remote(id, true);
        self.stand_down(id);
        if self.device.persistent_keepalive(id) == 0 {
            self.device
                .set_persistent_keepalive(id, BASE_KEEPALIVE.as_secs() as u16);
        }
        self.begin_remote(id, key);
        self.workers.tell_owner(id, Command::Remote(id));
    }

    /// Nothing is known of a remote: its number may have been another one's, or it may have been started anew since we heard of it last.
    fn begin_remote(&mut self, id: PeerId, key: PublicKey) {
        let boot = self.boot_id();
        self.remotes.known.insert(id, Remote::new(key, boot));
        self.workers.each(|_| Command::Restarted(id));
    }

    /// Which peers are remotes.
    pub fn is_remote(&self, id: PeerId) -> bool {
        self.remotes.known.get(id).is_some()
    }

    /// Control messages that could not be understood so far.
    pub fn unknown_controls(&self) -> u64 {
        self.remotes.unknown
    }

    /// The lanes of a remote: what they are called, the numbers of their sessions, and whether there is one.
    pub fn lanes(&self, base: PeerId) -> impl Iterator<Item = (Tag, PeerId)> + '_ {
        self.device.lanes(base)
    }

    /// What a link says of itself to remotes. `None`: nothing, it takes no part in lanes.
    pub fn describe_link(&mut self, at: usize, info: Option<LinkInfo>) {
        if self.remotes.links[at] != info {
            self.remotes.links[at] = info;
            self.link_changed(at);
        }
    }

    /// The number of the link on this interface.
    pub(super) fn link_id(&self, ifindex: u32) -> Option<LinkId> {
        let mut places = self.links.iter().zip(&self.remotes.links);
        let (_, info) =
            places.find(|(link, _)| link.as_ref().is_some_and(|link| link.ifindex() == ifindex))?;
        info.as_ref().map(|info| info.id)
    }

    /// Who we are to a remote that we begin to know.
    fn boot_id(&mut self) -> BootId {
        let mut boot = BootId([0; 16]);
        self.random.fill(&mut boot.0);
        boot
    }

    /// A link has come, gone or changed: every remote is told.
    pub(super) fn link_changed(&mut self, at: usize) {
        self.remotes.generation += 1;
        let incarnation = &mut self.remotes.incarnations[at];
        *incarnation = incarnation.wrapping_add(1);
        let Some(own) = self.own() else { return };
        let now = self.clock.mono();
        self.each_remote(|remote, out| remote.own_changed(&own, now, out));
    }

    /// What we are; `None` without a private key.
    fn own(&self) -> Option<Own> {
        let places = self.links.iter().zip(&self.remotes.links);
        let places = places.zip(&self.remotes.incarnations);
        let described = places.filter_map(|((link, info), &incarnation)| {
            let info = link.as_ref().and(*info)?;
            Some(LinkInfo { incarnation, ..info })
        });
        let open: ArrayVec<LinkInfo, { LinkId::MAX as usize }> =
            described.take(usize::from(LinkId::MAX)).collect();
        let workers = self.workers.count() as u8;
        Some(Own {
            key: self.device.public_key()?,
            hello: hello(BootId::default(), self.remotes.generation, workers, &open),
        })
    }

    /// Works off control messages.
    pub(super) fn take_controls(&mut self) {
        for _ in 0..CONTROLS_PER_TURN {
            let Some(message) = self.inbox.controls.pop() else {
                return;
            };
            let ControlMessage { peer, session, bytes } = message;
            // Nothing that is known so far is said in a lane.
            let (Ok(message), true) = (Control::decode(&bytes), self.is_remote(peer)) else {
                self.remotes.unknown += 1;
                continue;
            };
            let Some(own) = self.own() else { continue };
            let now = self.clock.mono();
            self.with_remote(peer, |remote, out| remote.take(&own, now, session, message, out));
        }
    }

    /// When there is something to do for a remote.
    pub(super) fn remotes_deadline(&self) -> Option<Time> {
        let at_work = self.device.is_up() && self.device.public_key().is_some();
        self.remotes.known.next_deadline().filter(|_| at_work)
    }

    /// Does what is due.
    pub(super) fn poll_remotes(&mut self, now: Time) {
        self.ask_remotes();
        self.add_missing_lanes(now);
        if self.remotes_deadline().is_some_and(|at| at <= now)
            && let Some(own) = self.own()
        {
            for base in self.remotes.known.due(now) {
                self.with_remote(base, |remote, out| remote.poll(&own, now, out));
            }
        }
    }

    /// A session was made that we have called for, or one that the other side began was confirmed.
    pub(super) fn remote_session(&mut self, id: PeerId, we_called: bool) {
        let now = self.clock.mono();
        match self.peer(id).and_then(|peer| peer.lane.as_ref()) {
            Some(lane) => {
                let (base, tag, opener) = (lane.base, lane.tag, lane.plan.opener);
                self.with_remote(base, |remote, _| remote.opened(tag));
                if opener && self.device.persistent_keepalive(id) == 0 {
                    self.device
                        .set_persistent_keepalive(id, LANE_KEEPALIVE.as_secs() as u16);
                }
            }
            None => self.with_remote(id, |remote, _| {
                remote.base_session(now);
                remote.renew_base(we_called.then(|| now.after(BASE_RENEWAL)));
            }),
        }
    }

    /// Whether a message that came in on this interface says where a peer is: for a lane, only on its own link.
    pub(super) fn is_on_own_link(&mut self, id: PeerId, ifindex: u32) -> bool {
        if !self.standby_heard(id, ifindex, true) {
            return false;
        }
        let lane = self.peer(id).and_then(|peer| peer.lane.as_ref());
        lane.is_none_or(|lane| self.ifindex(lane.link) == Some(ifindex))
    }

    /// The far end of a lane is seen elsewhere than before, as when a NAT has forgotten it. So are those of the other lanes of its path that were seen in the same place: the
    /// remote sends all of them from one UDP port, and may have nothing to say in them for seconds. If not, their next packets say so.
    pub(super) fn siblings_follow(&mut self, id: PeerId, before: Outer, now: Outer) {
        let lane = self.peer(id).and_then(|peer| peer.lane.as_ref());
        let (Some(lane), Some(from), Some(to)) = (lane, before.remote(), now.remote()) else {
            return;
        };
        let (base, path) = (lane.base, lane.plan.path);
        // Without an address of ours it is what the worker was told.
        if from == to || now.local().is_none() {
            return;
        }
        let others: Vec<PeerId> = self.device.lanes(base).map(|(_, lane)| lane).collect();
        for other in others.into_iter().filter(|other| *other != id) {
            let sibling = self.peer_mut(other).filter(|peer| {
                let lane = peer.lane.as_ref();
                peer.endpoint.remote() == Some(from) && lane.is_some_and(|lane| lane.plan.path == path)
            });
            if let Some(sibling) = sibling {
                sibling.endpoint = now;
                self.workers.tell_owner(other, Command::Follow(other, from, now));
            }
        }
    }

    /// A handshake was given up, or keys were erased.
    pub(super) fn remote_lost(&mut self, id: PeerId) {
        let now = self.clock.mono();
        match self.peer(id).and_then(|peer| peer.lane.as_ref()) {
            Some(lane) => {
                let (base, tag) = (lane.base, lane.tag);
                self.device.set_persistent_keepalive(id, 0);
                self.with_remote(base, |remote, _| remote.lost(tag, now));
            }
            None => self.with_remote(id, |remote, _| remote.base_lost()),
        }
    }

    /// Nothing was heard on a lane for so long that a handshake asks whether it is there. The base session asks too: a remote that was started
    /// anew knows nothing of lanes, and those without traffic would not be found silent before they are used.
    pub(super) fn lane_silent(&mut self, id: PeerId) {
        let lane = self.peer(id).and_then(|peer| peer.lane.as_ref());
        let Some(base) = lane.map(|lane| lane.base) else {
            return;
        };
        self.workers.tell_owner(id, Command::Silent(id));
        self.remotes.to_ask.push(base);
    }

    /// No path to a remote is up: its base session asks whether it is there. It may have been started anew, and knows nothing of lanes.
    pub(super) fn ask_remote(&mut self, base: PeerId) {
        self.remotes.to_ask.push(base);
    }

    /// Asks the remotes on whose lanes nothing was heard whether they are there.
    fn ask_remotes(&mut self) {
        for base in std::mem::take(&mut self.remotes.to_ask) {
            let now = self.clock.now();
            self.device
                .want_handshake(base, &now, &mut *self.random, &mut self.outputs);
        }
    }

    /// Before a remote goes: its lanes go. Its place among the remotes is kept for later if `stays`.
    pub(super) fn close_lanes(&mut self, base: PeerId, stays: bool) {
        let lanes: Vec<(Tag, PeerId)> = self.device.lanes(base).collect();
        for (_, lane) in &lanes {
            self.remove_lane(*lane);
        }
        if !self.is_remote(base) {
            return;
        }
        match self.peer(base).map(|peer| peer.key).filter(|_| stays) {
            Some(key) => self.begin_remote(base, key),
            None => {
                // Nobody wants to know that a remote's paths are gone that is itself.
                self.remotes.boards.remove(&base);
                self.forget_paths(base);
                self.remotes.known.remove(base);
            }
        }
        if !lanes.is_empty() {
            self.publish_paths(base);
        }
    }

    /// Before our own key changes: the names of all lanes follow from it.
    pub(super) fn close_all_lanes(&mut self) {
        let bases: Vec<PeerId> = self.remotes.known.iter().map(|(id, _)| id).collect();
        bases.into_iter().for_each(|base| self.close_lanes(base, true));
    }

    fn each_remote(&mut self, mut step: impl FnMut(&mut Remote, &mut Vec<Action>)) {
        let bases: Vec<PeerId> = self.remotes.known.iter().map(|(id, _)| id).collect();
        bases
            .into_iter()
            .for_each(|base| self.with_remote(base, &mut step));
    }

    fn with_remote(&mut self, base: PeerId, step: impl FnOnce(&mut Remote, &mut Vec<Action>)) {
        let mut actions = Vec::new();
        self.remotes
            .known
            .change(base, |remote| step(remote, &mut actions));
        self.act(base, actions);
    }

    fn act(&mut self, base: PeerId, actions: Vec<Action>) {
        let mut changed = false;
        for action in actions {
            match action {
                Action::RenewBase => {
                    let now = self.clock.now();
                    self.device
                        .want_handshake(base, &now, &mut *self.random, &mut self.outputs);
                }
                Action::Send(message) => {
                    let bytes = Box::new(message.encode());
                    self.workers.tell_owner(base, Command::Control(base, bytes));
                }
                Action::Add(plan) => {
                    changed = true;
                    self.add_lane(base, *plan);
                }
                Action::Remove(tag) => {
                    changed = true;
                    if let Some(lane) = self.device.lane(base, tag) {
                        self.remove_lane(lane);
                    }
                }
                Action::Open(tag) => {
                    // One without a number is opened when it has got one.
                    if let Some(lane) = self.device.lane(base, tag) {
                        let now = self.clock.now();
                        self.device
                            .want_handshake(lane, &now, &mut *self.random, &mut self.outputs);
                    }
                }
                Action::EraseLanes => {
                    let lanes: Vec<PeerId> = self.device.lanes(base).map(|(_, lane)| lane).collect();
                    for lane in lanes {
                        self.note_session(lane, false);
                        self.workers.tell_owner(lane, Command::EraseKeys(lane));
                    }
                    self.workers.each(|_| Command::Restarted(base));
                }
                Action::Unanswered => self.log.error(format_args!(
                    "{}: it is configured as a remote but answers no hello; it has a base session only: is it a remote on its side too?",
                    self.peer_name(base)
                )),
                Action::TooManyPaths(left_out) => self.log.error(format_args!(
                    "{}: {left_out} paths have no lanes: there are {PATHS_MAX} paths to a remote at most; give links that need not reach each other groups of their own",
                    self.peer_name(base)
                )),
            }
        }
        if changed {
            self.publish_paths(base);
        }
    }

    fn add_lane(&mut self, base: PeerId, plan: LanePlan) {
        let ids = self.remotes.links.iter();
        let Some(link) = ids
            .clone()
            .position(|info| info.is_some_and(|info| info.id == plan.path.local))
        else {
            return;
        };
        let (Some(ifindex), Some(key)) = (self.ifindex(link), self.peer(base).map(|peer| peer.key)) else {
            return;
        };
        let added = match self.room_for_lanes() {
            0 => Err(AddLaneError::Full),
            _ => self.device.add_lane(base, plan.tag, plan.path.local),
        };
        let id = match added {
            Ok(id) => id,
            Err(error) => return self.lane_refused(base, plan.tag, error),
        };
        self.remotes.lanes += 1;
        let mut endpoint = plan.endpoints.first().copied().map_or(Outer::NONE, Outer::new);
        endpoint.set_local(None, ifindex);
        let worker = plan.worker;
        let lane = Lane {
            base,
            tag: plan.tag,
            link,
            plan,
        };
        self.put_peer(
            id,
            Peer {
                key,
                endpoint,
                tries: 0,
                has_session: false,
                lane: Some(Box::new(lane)),
                is_called: false,
                standing: None,
            },
        );
        self.workers.place(id, Some(worker as u8));
        let traffic = self.device.traffic(id).clone();
        let slot = PeerSlot::lane(id, base, ifindex, traffic, endpoint);
        self.workers.tell_owner(id, Command::AddPeer(Box::new(slot)));
    }

    /// How many lanes may be added: half of the numbers are for peers, those that are configured later too.
    fn room_for_lanes(&self) -> usize {
        self.max_peers.saturating_sub(self.remotes.lanes + self.leaving)
    }

    /// A lane could not be added. For want of numbers: people are told once, and it is added when there are some.
    fn lane_refused(&mut self, base: PeerId, tag: Tag, error: AddLaneError) {
        let is_short = error == AddLaneError::Full;
        if is_short && std::mem::replace(&mut self.remotes.is_short, true) {
            return;
        }
        let name = self.peer_name(base);
        let others = if is_short { ", and perhaps others" } else { "" };
        self.log
            .error(format_args!("{name}: lane {tag:?}{others} not added: {error}"));
    }

    /// Adds the lanes that there was no number for, as far as there is one now.
    fn add_missing_lanes(&mut self, now: Time) {
        if !std::mem::take(&mut self.remotes.has_room) {
            return;
        }
        let missing = |(base, remote): (PeerId, &Remote)| {
            let plans = remote
                .lanes()
                .filter(|plan| self.device.lane(base, plan.tag).is_none());
            plans.map(|plan| (base, plan.clone())).collect::<Vec<_>>()
        };
        let missing: Vec<(PeerId, LanePlan)> = self.remotes.known.iter().flat_map(missing).collect();
        self.remotes.is_short = missing.len() > self.room_for_lanes();
        let mut changed = BTreeSet::new();
        for (base, plan) in missing.into_iter().take(self.room_for_lanes()) {
            let tag = plan.tag;
            self.add_lane(base, plan);
            changed.insert(base);
            self.with_remote(base, |remote, _| remote.added(tag, now));
        }
        changed.into_iter().for_each(|base| self.publish_paths(base));
    }

    fn remove_lane(&mut self, id: PeerId) {
        self.device.remove_peer(id);
        self.forget_peer(id);
    }

    /// What workers know of the paths towards a remote, if there are any.
    pub fn board(&self, base: PeerId) -> Option<&Arc<PathBoard>> {
        self.remotes.boards.get(&base).map(|board| &board.shared)
    }

    /// Tells every worker which paths there are towards a remote, and by which lanes it sends on them.
    fn publish_paths(&mut self, base: PeerId) {
        let mut paths = BTreeMap::<Path, Vec<(u8, usize, PeerId)>>::new();
        for (tag, id) in self.device.lanes(base) {
            if let Some(lane) = self.peer(id).and_then(|peer| peer.lane.as_ref()) {
                let lanes = paths.entry(lane.plan.path).or_default();
                lanes.push((tag.lane(), lane.plan.worker, id));
            }
        }
        paths.values_mut().for_each(|lanes| lanes.sort_unstable());
        let before = self.remotes.boards.remove(&base);
        let probed = paths.iter().map(|(path, lanes)| (name(path), lane_0(lanes)));
        let probed: Vec<(PathName, Option<PeerId>)> = probed.take(PATHS_MAX).collect();
        let is_same = |path: PathName| {
            let now = probed.iter().find(|(name, _)| *name == path);
            let place = before.as_ref().and_then(|before| before.shared.place(path));
            let was = before.as_ref().zip(place).map(|(before, at)| before.probed[at]);
            now.is_some_and(|(_, lane)| Some(*lane) == was)
        };
        // That one is there by name only is told by the worker whose session of it is gone.
        let told = self.told_as_up(base);
        let gone = told.filter(|path| probed.iter().all(|(name, _)| name != path));
        let gone: Vec<PathName> = gone.collect();
        let names = probed.iter().map(|(name, _)| *name);
        let known = before.as_ref().map(|before| &*before.shared);
        let board = Arc::new(PathBoard::following(names, known, is_same));
        let standings = paths.iter().filter_map(|(path, lanes)| {
            let (.., id) = lanes.first()?;
            Some((name(path), self.standing(*id)?))
        });
        let standings = standings.take(PATHS_MAX).collect();
        self.classes.set_paths(base, standings);
        let (classes, random) = (&mut self.classes, &mut *self.random);
        self.workers.each(|worker| {
            let own = |lanes: &[(u8, usize, PeerId)]| -> (Vec<PeerId>, Vec<u8>) {
                let own = lanes.iter().filter(|(_, owner, _)| *owner == worker);
                own.map(|(number, _, id)| (*id, *number)).unzip()
            };
            let each = paths.iter().map(|(path, lanes)| {
                let (lanes, numbers) = own(lanes);
                PathLanes {
                    name: name(path),
                    lanes: lanes.into(),
                    numbers: numbers.into(),
                }
            });
            let each: Box<[PathLanes]> = each.take(board.pulses().len()).collect();
            let steering = classes.steering(base, &each, random);
            let paths = Paths::new(Arc::clone(&board), each, steering);
            Command::Paths(base, Box::new(paths))
        });
        let set = self.probe_set(Arc::clone(&board), &paths);
        self.workers.tell(PROBER, Command::Probe(base, Box::new(set)));
        if !paths.is_empty() {
            let probed = probed.iter().map(|(_, lane)| *lane).collect();
            let shared = board;
            self.remotes.boards.insert(base, Board { shared, probed });
        }
        for path in gone {
            self.note_gone_path(base, path);
        }
        self.note_paths(base);
    }

    /// The same paths, for who probes them.
    fn probe_set(
        &mut self,
        board: Arc<PathBoard>,
        paths: &BTreeMap<Path, Vec<(u8, usize, PeerId)>>,
    ) -> ProbeSet {
        let mut probed = Vec::new();
        for (path, lanes) in paths.iter().take(board.pulses().len()) {
            let traffic = lanes.iter().map(|(.., id)| Arc::clone(self.device.traffic(*id)));
            let first = lane_0(lanes);
            let of = lanes.first().and_then(|(.., id)| self.peer(*id)?.lane.as_ref());
            let Some(of) = of else { continue };
            let wire = (of.tag.bits() >> 8) as u8;
            probed.push(ProbedPath::new(
                name(path),
                wire,
                first,
                of.plan.metered,
                traffic.collect(),
            ));
        }
        let random = u64::from(self.random.u32()) << 32 | u64::from(self.random.u32());
        ProbeSet::new(board, probed.into(), random)
    }

    /// Whether there are paths to any remote.
    pub fn has_paths(&self) -> bool {
        !self.remotes.boards.is_empty()
    }

    /// The first remote from this one on to which there are paths.
    pub fn next_with_paths(&self, from: PeerId) -> Option<PeerId> {
        self.remotes.boards.range(from..).next().map(|(base, _)| *base)
    }

    /// What configuration says of the path of a lane.
    fn standing(&self, lane: PeerId) -> Option<Standing> {
        let lane = self.peer(lane)?.lane.as_ref()?;
        Some(Standing {
            metered: lane.plan.metered,
            cost: self.classes.cost(lane.plan.path.local.number()),
            tag: (lane.tag.bits() >> 8) as u8,
        })
    }

    /// Tells workers of the paths to all remotes: what classes or links are is something else now.
    pub(super) fn publish_all_paths(&mut self) {
        let bases: Vec<PeerId> = self.remotes.boards.keys().copied().collect();
        bases.into_iter().for_each(|base| self.publish_paths(base));
    }

    /// The way of an initiation for a lane: by its own link, to where the remote's link is, and by the other address family the next time.
    pub(super) fn lane_way(&mut self, id: PeerId) -> Option<(Outer, &S)> {
        let peer = self.peers.get_mut(id.0 as usize)?.as_mut()?;
        let lane = peer.lane.as_ref()?;
        let link = self.links.get(lane.link)?.as_ref()?;
        let tries = peer.tries;
        peer.tries += 1;
        let endpoints = &lane.plan.endpoints;
        let mut endpoint = peer.endpoint;
        if let Some(at) = tries
            .checked_rem(endpoints.len())
            .filter(|_| tries > 0 || endpoint.is_none())
        {
            endpoint = Outer::new(endpoints[at]);
            endpoint.set_local(None, link.ifindex());
        }
        Some((endpoint, link.sockets()))
    }
}

/// The lane by which a path is probed, of its lanes: their numbers, workers and ids.
fn lane_0(lanes: &[(u8, usize, PeerId)]) -> Option<PeerId> {
    let lane = lanes.iter().find(|(number, ..)| *number == 0);
    lane.map(|(.., id)| *id)
}

/// A path's name as it is shared with control.
fn name(path: &Path) -> PathName {
    PathName {
        local: path.local.number(),
        remote: path.remote.number(),
    }
}
