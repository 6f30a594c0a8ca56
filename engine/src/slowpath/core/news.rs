//! What happens to peers that people may want to know: sessions that begin and end, peers that are elsewhere.
//!
//! Kept until the owner of the core takes it, at the end of a turn, and not more than [`NEWS_MAX`]: what is beyond that is counted.

use std::net::SocketAddr;

use patronus_abi::channel::{Event, PathName};
use patronus_crypto::PeerId;

use super::{Core, Lane, Sockets};

/// Events that wait at most: what the ring to control has for them.
pub const NEWS_MAX: usize = 512;

/// What has happened since somebody looked.
#[derive(Default)]
pub struct News {
    /// In its order.
    pub events: Vec<Event>,
    /// What there was no room for.
    pub lost: u64,
}

impl News {
    pub(super) fn add(&mut self, event: Event) {
        match self.events.len() < NEWS_MAX {
            true => self.events.push(event),
            false => self.lost += 1,
        }
    }
}

impl<S: Sockets> Core<S> {
    /// What has happened since the last call.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// There is a session with a peer or a lane, or none. That it has another one is no news.
    pub(super) fn note_session(&mut self, id: PeerId, up: bool) {
        let at = self.clock.mono().0;
        let peer = self.peers.get_mut(id.0 as usize).and_then(Option::as_mut);
        let Some(peer) = peer.filter(|peer| peer.has_session != up) else {
            return;
        };
        peer.has_session = up;
        self.news.add(Event::Session {
            at,
            peer: peer.key.0,
            lane: name(peer.lane.as_deref()),
            up,
        });
    }

    /// A peer was heard from there. A remote's base session is wherever its last message came from, which is no news.
    pub(super) fn note_endpoint(&mut self, id: PeerId, to: Option<SocketAddr>) {
        if self.is_remote(id) {
            return;
        }
        let at = self.clock.mono().0;
        let Some(peer) = self.peers.get(id.0 as usize).and_then(Option::as_ref) else {
            return;
        };
        let (Some(from), Some(to)) = (peer.endpoint.remote(), to) else {
            return;
        };
        if from != to {
            self.news.add(Event::Endpoint {
                at,
                peer: peer.key.0,
                lane: name(peer.lane.as_deref()),
                to,
            });
        }
    }
}

fn name(lane: Option<&Lane>) -> Option<(PathName, u8)> {
    let lane = lane?;
    let path = lane.path();
    let (local, remote) = (path.local.number(), path.remote.number());
    Some((PathName { local, remote }, lane.tag.lane()))
}
