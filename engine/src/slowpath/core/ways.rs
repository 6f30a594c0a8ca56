//! The links, as far as the protocol goes: which of them have sockets, and by which one a peer is reached.
//!
//! A session is bound to no link. It is where the peer was heard last; while it is nowhere, initiations go by each link in turn.

use std::io;
use std::net::IpAddr;

use patronus_crypto::PeerId;
use patronus_io::Port;
use patronus_mem::Outer;

use super::Core;
use crate::channel::{Command, Families, WanPort};

/// The sockets of a link.
pub trait Sockets {
    /// What worker `worker` receives by and sends by. Asked once for each worker, and again when the ports are renewed.
    fn worker_port(&mut self, worker: usize) -> Box<dyn Port + Send>;

    /// Sends a handshake message.
    fn send(&self, outer: &Outer, datagram: &[u8]) -> io::Result<()>;
}

pub(super) struct Link<S> {
    /// The interface that its sockets are on; 0: none in particular.
    ifindex: u32,
    sockets: S,
}

impl<S> Link<S> {
    pub(super) fn ifindex(&self) -> u32 {
        self.ifindex
    }

    pub(super) fn sockets(&self) -> &S {
        &self.sockets
    }

    /// Whether what goes to an endpoint of that interface leaves here.
    fn leads_to(&self, ifindex: u32) -> bool {
        self.ifindex == 0 || ifindex == 0 || self.ifindex == ifindex
    }
}

impl<S: Sockets> Core<S> {
    /// Whether there are sockets at all.
    pub fn is_open(&self) -> bool {
        self.links.iter().any(Option::is_some)
    }

    /// The interface that the sockets of a link are on, if it has any.
    pub fn ifindex(&self, at: usize) -> Option<u32> {
        self.links[at].as_ref().map(|link| link.ifindex)
    }

    /// The sockets that there are.
    pub fn sockets(&self) -> impl Iterator<Item = &S> {
        self.links.iter().flatten().map(|link| &link.sockets)
    }

    /// Gives every worker its share of a link's new sockets. The old ones are closed once every worker has let go of them.
    pub fn open_link(&mut self, at: usize, ifindex: u32, mut sockets: S) {
        self.workers.each(|worker| {
            let port = sockets.worker_port(worker);
            Command::Wan(at, Some(WanPort { ifindex, port }))
        });
        self.links[at] = Some(Link { ifindex, sockets });
        self.link_opened();
        self.link_changed(at);
    }

    /// The sockets of a link, if it has any.
    pub fn sockets_mut(&mut self, at: usize) -> Option<&mut S> {
        self.links[at].as_mut().map(|link| &mut link.sockets)
    }

    /// Gives every worker another port over the sockets that a link has.
    pub fn renew_ports(&mut self, at: usize) {
        let Some(Link { ifindex, sockets }) = &mut self.links[at] else {
            return;
        };
        self.workers.each(|worker| {
            let (ifindex, port) = (*ifindex, sockets.worker_port(worker));
            Command::Wan(at, Some(WanPort { ifindex, port }))
        });
    }

    /// By a link the host has routes for these families; others are better for peers that are on no link.
    pub fn set_sends(&mut self, at: usize, families: Families) {
        if std::mem::replace(&mut self.sends[at], families) != families {
            self.workers.tell_all(|| Command::Sends(at, families));
            self.mark_all();
        }
    }

    /// A peer was heard from there. Who calls us was not asked about when routes were looked for.
    pub(super) fn note_unled(&mut self, endpoint: Outer) {
        let Some(remote) = endpoint.remote() else { return };
        let leads = |sends: Families| if remote.is_ipv6() { sends.v6 } else { sends.v4 };
        let at = (0..self.links.len()).find(|at| self.ifindex(*at) == Some(endpoint.ifindex()));
        if at.is_some_and(|at| !leads(self.sends[at])) {
            self.heard_unled = Some(remote.ip());
        }
    }

    /// Whether a peer was heard by a link that is said to have no routes for its family since [somebody asked](Self::take_heard_unled) where.
    pub fn has_heard_unled(&self) -> bool {
        self.heard_unled.is_some()
    }

    /// Where it is.
    pub fn take_heard_unled(&mut self) -> Option<IpAddr> {
        self.heard_unled.take()
    }

    /// What a link has routes for, as was said last.
    pub fn sends(&self, at: usize) -> Families {
        self.sends[at]
    }

    /// A peer is not reached by the link where it was heard: by another one from now on. A lane has no other: flows take other lanes.
    pub fn leave_link(&mut self, id: PeerId) {
        let Some(peer) = self.peer_mut(id) else { return };
        if peer.lane.is_some() {
            return self.lane_silent(id);
        }
        peer.endpoint.leave_link();
        let endpoint = peer.endpoint;
        self.workers.tell_owner(id, Command::Endpoint(id, endpoint));
        self.call(id);
    }

    /// Has a peer hear at once where we are now, and not only when we have something to say.
    pub fn call(&mut self, id: PeerId) {
        if self.has_session(id) {
            self.workers.tell_owner(id, Command::Keepalive(id));
        }
    }

    /// Whether there is a session with a peer that packets may be sent in, as far as the last handshake tells.
    pub(super) fn has_session(&self, id: PeerId) -> bool {
        let now = self.clock.now().wall.secs;
        let last = self.device.last_handshake(id).map_or(0, |at| at.secs);
        now.saturating_sub(last) < self.device.timeouts().reject_after_time.as_secs()
    }

    /// Closes the sockets of a link, if it has any. Peers that were heard there are sent to by another one from now on.
    pub fn close_link(&mut self, at: usize) {
        let Some(Link { ifindex, .. }) = self.links[at].take() else {
            return;
        };
        self.workers.tell_all(|| Command::Wan(at, None));
        if ifindex == 0 {
            return;
        }
        self.mark_all();
        self.link_changed(at);
        self.workers.tell_all(|| Command::LeaveLink(ifindex));
        for at in 0..self.peers.len() {
            let id = PeerId(at as u32);
            let Some(peer) = self.peer_mut(id).filter(|p| p.endpoint.ifindex() == ifindex) else {
                continue;
            };
            peer.endpoint.leave_link();
            // A stock peer is called when it has another link.
            if !self.stands_by(id) {
                self.call(id);
            }
        }
    }

    /// Closes the sockets of every link.
    pub(super) fn close_links(&mut self) {
        (0..self.links.len()).for_each(|at| self.close_link(at));
    }

    /// Forgets from which of our addresses a peer was answered; the kernel chooses anew.
    pub fn forget_source(&mut self, id: PeerId) {
        if let Some(peer) = self.peer_mut(id) {
            peer.endpoint.forget_source();
            self.workers.tell_owner(id, Command::ClearSource(Some(id)));
        }
    }

    /// Forgets from which of our addresses each peer was answered: the route may be another one now.
    pub fn forget_sources(&mut self) {
        for peer in self.peers.iter_mut().flatten() {
            peer.endpoint.forget_source();
        }
        self.workers.tell_all(|| Command::ClearSource(None));
    }

    /// What sends to this endpoint.
    pub(super) fn way(&self, endpoint: Outer) -> Option<(Outer, &S)> {
        let places = self.links.iter().zip(&self.sends);
        let leads_there = places.filter_map(|(link, sends)| {
            let link = link.as_ref()?;
            link.leads_to(endpoint.ifindex()).then_some((link, sends))
        });
        let routed = leads_there.clone().find(|(_, sends)| sends.has(&endpoint));
        let (link, _) = routed.or_else(|| leads_there.clone().next())?;
        Some((endpoint, &link.sockets))
    }

    /// The next initiation goes the way of the last one: the peer has asked for a cookie, which is good for the address that it saw.
    pub(super) fn repeat_way(&mut self, id: PeerId) {
        if let Some(peer) = self.peer_mut(id) {
            peer.tries = peer.tries.saturating_sub(1);
        }
    }

    /// The way of the next initiation to a peer: where it was heard first, then by each link in turn until it answers.
    pub(super) fn next_way(&mut self, id: PeerId) -> Option<(Outer, &S)> {
        if self.peer(id)?.lane.is_some() {
            return self.lane_way(id);
        }
        let peer = self.peers.get_mut(id.0 as usize)?.as_mut()?;
        let tries = peer.tries;
        peer.tries += 1;
        let mut endpoint = peer.endpoint;
        let places = self.links.iter().zip(&self.sends);
        let open = places.filter_map(|(link, sends)| link.as_ref().map(|link| (link, sends)));
        let routed = open.clone().filter(|(_, sends)| sends.has(&endpoint));
        let mut open: Vec<&Link<S>> = open.map(|(link, _)| link).collect();
        if let routed @ [_, ..] = &routed.map(|(link, _)| link).collect::<Vec<_>>()[..] {
            open = routed.to_vec();
        }
        let is_own = |open: &&Link<S>| open.ifindex == 0 || open.ifindex == endpoint.ifindex();
        let own = open.iter().position(is_own);
        let at = (own.unwrap_or(0) + tries).checked_rem(open.len())?;
        if own != Some(at) {
            endpoint.leave_link();
        }
        Some((endpoint, &open[at].sockets))
    }
}
