//! Remotes and their lanes: carries out what [`Remote`] says, and tells it what happens.

use arrayvec::ArrayVec;
use patronus_crypto::{Duration, LinkId, PeerId, Tag, Time};
use patronus_mem::Outer;

use super::{Core, Peer, Sockets};
use crate::channel::{Command, ControlMessage};
use crate::remote::message::{BootId, Control, LinkInfo};
use crate::remote::{Action, LanePlan, Own, Remote, hello};
use crate::wg::{LANES_MAX, PeerSlot};

/// Control messages worked off in a turn.
const CONTROLS_PER_TURN: usize = 64;
/// How often the opener of a lane sends something, and each side of a base session.
const LANE_KEEPALIVE: Duration = Duration::from_secs(10);
const BASE_KEEPALIVE: Duration = Duration::from_secs(25);

/// What there is to know about remotes.
pub(super) struct Remotes {
    generation: u32,
    /// By link.
    incarnations: Vec<u16>,
    /// What each link says of itself; it counts while it has sockets.
    links: Vec<Option<LinkInfo>>,
    known: Vec<(PeerId, Remote)>,
    /// Messages that could not be understood.
    unknown: u64,
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

impl Remotes {
    pub(super) fn new(links: usize) -> Remotes {
        Remotes {
            generation: 0,
            incarnations: vec![0; links],
            links: vec![None; links],
            known: Vec::new(),
            unknown: 0,
        }
    }

    /// A peer is gone.
    pub(super) fn forget(&mut self, base: PeerId) {
        self.known.retain(|(id, _)| *id != base);
    }

    fn get(&mut self, base: PeerId) -> Option<&mut Remote> {
        let found = self.known.iter_mut().find(|(id, _)| *id == base);
        found.map(|(_, remote)| remote)
    }
}

impl<S: Sockets> Core<S> {
    /// From now on this peer is a site of our own, which is kept in touch with.
    pub fn make_remote(&mut self, id: PeerId) {
        let Some(key) = self.peer(id).map(|peer| peer.key) else {
            return;
        };
        if self.remotes.get(id).is_some() {
            return;
        }
        self.device.set_remote(id, true);
        if self.device.persistent_keepalive(id) == 0 {
            self.device
                .set_persistent_keepalive(id, BASE_KEEPALIVE.as_secs() as u16);
        }
        let boot = self.boot_id();
        self.remotes.known.push((id, Remote::new(key, boot)));
        self.workers.tell_owner(id, Command::Remote(id));
    }

    /// Which peers are remotes.
    pub fn is_remote(&self, id: PeerId) -> bool {
        self.remotes.known.iter().any(|(known, _)| *known == id)
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
            let Some(ControlMessage { peer, bytes }) = self.inbox.controls.pop() else {
                return;
            };
            // Nothing that is known so far is said in a lane.
            let (Ok(message), true) = (Control::decode(&bytes), self.is_remote(peer)) else {
                self.remotes.unknown += 1;
                continue;
            };
            let Some(own) = self.own() else { continue };
            let now = self.clock.mono();
            self.with_remote(peer, |remote, out| remote.take(&own, now, message, out));
        }
    }

    /// When there is something to do for a remote.
    pub(super) fn remotes_deadline(&self) -> Option<Time> {
        let at_work = self.device.is_up() && self.device.public_key().is_some();
        let known = self.remotes.known.iter().filter(|_| at_work);
        known.filter_map(|(_, remote)| remote.next_deadline()).min()
    }

    /// Does what is due.
    pub(super) fn poll_remotes(&mut self, now: Time) {
        if self.remotes_deadline().is_some_and(|at| at <= now)
            && let Some(own) = self.own()
        {
            self.each_remote(|remote, out| remote.poll(&own, now, out));
        }
    }

    /// A session was made, or one that the other side began was confirmed.
    pub(super) fn remote_session(&mut self, id: PeerId) {
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
            None => self.with_remote(id, |remote, _| remote.base_session(now)),
        }
    }

    /// Whether a message that came in on this interface says where a peer is: for a lane, only on its own link.
    pub(super) fn is_on_own_link(&self, id: PeerId, ifindex: u32) -> bool {
        let lane = self.peer(id).and_then(|peer| peer.lane.as_ref());
        lane.is_none_or(|lane| self.ifindex(lane.link) == Some(ifindex))
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

    /// Nothing was heard on a lane for so long that a handshake asks whether it is there.
    pub(super) fn lane_silent(&mut self, id: PeerId) {
        if self.peer(id).is_some_and(|peer| peer.lane.is_some()) {
            self.workers.tell_owner(id, Command::Silent(id));
        }
    }

    /// Before a remote goes: its lanes go. Its place among the remotes is kept for later if `stays`.
    pub(super) fn close_lanes(&mut self, base: PeerId, stays: bool) {
        let lanes: Vec<(Tag, PeerId)> = self.device.lanes(base).collect();
        for (_, lane) in &lanes {
            self.remove_lane(*lane);
        }
        let Some(at) = self.remotes.known.iter().position(|(id, _)| *id == base) else {
            return;
        };
        match self.peer(base).map(|peer| peer.key).filter(|_| stays) {
            Some(key) => self.remotes.known[at].1 = Remote::new(key, self.boot_id()),
            None => drop(self.remotes.known.swap_remove(at)),
        }
        if !lanes.is_empty() {
            self.publish_lanes(base);
        }
    }

    /// Before our own key changes: the names of all lanes follow from it.
    pub(super) fn close_all_lanes(&mut self) {
        let bases: Vec<PeerId> = self.remotes.known.iter().map(|(id, _)| *id).collect();
        bases.into_iter().for_each(|base| self.close_lanes(base, true));
    }

    fn each_remote(&mut self, mut step: impl FnMut(&mut Remote, &mut Vec<Action>)) {
        for at in 0..self.remotes.known.len() {
            let mut actions = Vec::new();
            let (base, remote) = &mut self.remotes.known[at];
            let base = *base;
            step(remote, &mut actions);
            self.act(base, actions);
        }
    }

    fn with_remote(&mut self, base: PeerId, step: impl FnOnce(&mut Remote, &mut Vec<Action>)) {
        let mut actions = Vec::new();
        if let Some(remote) = self.remotes.get(base) {
            step(remote, &mut actions);
            self.act(base, actions);
        }
    }

    fn act(&mut self, base: PeerId, actions: Vec<Action>) {
        let mut changed = false;
        for action in actions {
            match action {
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
                    if let Some(lane) = self.device.lane(base, tag) {
                        let now = self.clock.now();
                        self.device
                            .want_handshake(lane, &now, &mut *self.random, &mut self.outputs);
                    }
                }
                Action::EraseLanes => {
                    let lanes: Vec<PeerId> = self.device.lanes(base).map(|(_, lane)| lane).collect();
                    for lane in lanes {
                        self.workers.tell_owner(lane, Command::EraseKeys(lane));
                    }
                }
                Action::Unanswered => self.log.error(format_args!(
                    "{}: it is configured as a remote but answers no hello; it has a base session only: is it a remote on its side too?",
                    self.peer_name(base)
                )),
            }
        }
        if changed {
            self.publish_lanes(base);
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
        let id = match self.device.add_lane(base, plan.tag, plan.path.local) {
            Ok(id) => id,
            Err(error) => {
                let name = self.peer_name(base);
                return self
                    .log
                    .error(format_args!("{name}: lane {:?} not added: {error}", plan.tag));
            }
        };
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
                lane: Some(Box::new(lane)),
            },
        );
        self.workers.place(id, Some(worker as u8));
        let traffic = self.device.traffic(id).clone();
        let slot = PeerSlot::lane(id, base, ifindex, traffic, endpoint);
        self.workers.tell_owner(id, Command::AddPeer(Box::new(slot)));
    }

    fn remove_lane(&mut self, id: PeerId) {
        self.device.remove_peer(id);
        self.forget_peer(id);
    }

    /// Tells every worker by which lanes it sends to a remote.
    fn publish_lanes(&mut self, base: PeerId) {
        let mut lanes: Vec<(u8, usize, PeerId)> = self
            .device
            .lanes(base)
            .filter_map(|(tag, id)| {
                let lane = self.peer(id)?.lane.as_ref()?;
                Some((tag.lane(), lane.plan.worker, id))
            })
            .collect();
        // One of each path before a second one of any.
        lanes.sort_by_key(|(number, ..)| *number);
        self.workers.each(|worker| {
            let own = lanes.iter().filter(|(_, owner, _)| *owner == worker);
            let own = own.map(|(.., id)| *id).take(LANES_MAX);
            Command::Lanes(base, own.collect())
        });
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
