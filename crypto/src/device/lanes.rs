//! Lanes: further sessions with a peer that is a site of our own.
//!
//! A lane is an entry among the peers, with a number, timers, timestamps, cookies and sessions of its own; its static and
//! pre-shared keys are those of its base. Initiations find it by the tag in their timestamp (docs/wire.md, section 2).

use std::fmt;

use super::{Device, Peer};
use crate::refusal::Refusal;
use crate::tai64n::{Stamps, Tai64n};
use crate::{Duration, LinkId, PeerId, Tag};

/// Lanes of one remote at most: sixteen on each of 225 paths.
pub(super) const LANES_MAX: usize = 16 * 225;

/// An initiation may be older by this than the newest one from the same remote, whatever lane that was for: who withholds one cannot use it for
/// longer.
const WITHHELD_AFTER: Duration = Duration::from_secs(90);

/// What an entry among the peers is besides a base session.
pub(super) enum Kin {
    /// That of a site of our own.
    Remote(Remote),
    /// A lane.
    Lane(Lane),
}

/// Which lane a session is.
pub(super) struct Lane {
    pub(super) base: PeerId,
    pub(super) tag: Tag,
    /// The link of ours that its path begins at.
    pub(super) link: LinkId,
}

/// What is known of a remote's lanes.
#[derive(Default)]
pub(super) struct Remote {
    /// In the order of their tags.
    lanes: Vec<(Tag, PeerId)>,
    /// The timestamps of lanes that were removed, one for each tag: somebody may have withheld an initiation for them.
    left: Vec<Stamps>,
    /// The newest timestamp accepted, of any session.
    accepted: Option<Tai64n>,
    /// The newest timestamp sent, likewise.
    pub(super) sent: Option<Tai64n>,
}

impl Remote {
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    fn place(&self, tag: Tag) -> Result<usize, usize> {
        self.lanes.binary_search_by_key(&tag, |&(tag, _)| tag)
    }

    pub(super) fn accept(&mut self, stamp: Tai64n) {
        self.accepted = self.accepted.max(Some(stamp));
    }

    /// Whether an initiation of that time has been withheld.
    fn is_withheld(&self, stamp: Tai64n) -> bool {
        self.accepted
            .is_some_and(|newest| stamp.is_behind(newest, WITHHELD_AFTER))
    }

    /// A lane is removed: what it has accepted counts as long as an older initiation would be taken.
    fn leave(&mut self, stamps: Stamps) {
        let mut left = std::mem::take(&mut self.left);
        left.push(stamps);
        left.retain(|stamps| stamps.newest().is_some_and(|stamp| !self.is_withheld(stamp)));
        self.left = left;
    }

    /// The timestamps of a lane that is added, perhaps again.
    fn stamps(&mut self, tag: Tag) -> Stamps {
        let known = self.left.iter().position(|stamps| stamps.tag() == tag.bits());
        known.map_or(Stamps::tagged(tag.bits()), |at| self.left.swap_remove(at))
    }
}

/// Why a lane was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddLaneError {
    /// There is no number left, or the remote has as many lanes as there can be.
    Full,
    /// There is no such peer, or it is not a remote.
    NoRemote,
    /// The lane is there already.
    Exists,
}

impl fmt::Display for AddLaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddLaneError::Full => "the limit on lanes is reached",
            AddLaneError::NoRemote => "the peer is not a remote",
            AddLaneError::Exists => "the lane exists",
        })
    }
}

impl std::error::Error for AddLaneError {}

impl Device {
    /// Says whether a peer is a site of our own: then the tags in its timestamps name lanes. A stock peer's are just times.
    ///
    /// # Panics
    /// If a peer that has lanes is to be none any more.
    pub fn set_remote(&mut self, peer: PeerId, remote: bool) {
        let Some(found) = self.get_mut(peer) else { return };
        match (remote, found.kin.as_deref()) {
            (true, None) => found.kin = Some(Box::new(Kin::Remote(Remote::default()))),
            (false, Some(Kin::Remote(known))) => {
                assert!(known.lanes.is_empty(), "its lanes are removed first");
                found.kin = None;
            }
            _ => {}
        }
    }

    /// Adds the lane `tag` towards a remote, beginning at `link` of ours. It has a number of its own, which stands for it wherever a peer's number
    /// stands for the peer's base session.
    pub fn add_lane(&mut self, base: PeerId, tag: Tag, link: LinkId) -> Result<PeerId, AddLaneError> {
        let public = self.get(base).ok_or(AddLaneError::NoRemote)?.public;
        let remote = self.get(base).and_then(Peer::as_remote);
        let remote = remote.ok_or(AddLaneError::NoRemote)?;
        let Err(at) = remote.place(tag) else {
            return Err(AddLaneError::Exists);
        };
        if remote.lanes.len() >= LANES_MAX {
            return Err(AddLaneError::Full);
        }
        let id = self.vacancy().ok_or(AddLaneError::Full)?;
        let remote = self.get_mut(base).and_then(Peer::as_remote_mut);
        let remote = remote.ok_or(AddLaneError::NoRemote)?;
        remote.lanes.insert(at, (tag, id));
        let stamps = remote.stamps(tag);
        self.peers[id.0 as usize] = Some(Peer::lane(public, Lane { base, tag, link }, stamps));
        self.make_room();
        Ok(id)
    }

    /// The number of a lane.
    pub fn lane(&self, base: PeerId, tag: Tag) -> Option<PeerId> {
        let remote = self.get(base)?.as_remote()?;
        remote.place(tag).ok().map(|at| remote.lanes[at].1)
    }

    /// The lanes of a remote.
    pub fn lanes(&self, base: PeerId) -> impl Iterator<Item = (Tag, PeerId)> + '_ {
        let remote = self.get(base).and_then(Peer::as_remote);
        remote.into_iter().flat_map(|remote| remote.lanes.iter().copied())
    }

    /// Takes a lane that is removed from its base's list; its timestamps stay there.
    pub(super) fn forget_lane(&mut self, lane: &Lane, stamps: Stamps) {
        let remote = self.get_mut(lane.base).and_then(Peer::as_remote_mut);
        if let Some(remote) = remote
            && let Ok(at) = remote.place(lane.tag)
        {
            remote.lanes.remove(at);
            remote.leave(stamps);
        }
    }

    /// The session that a peer's authentic initiation is for, which arrived on `link` (`None`: not known).
    pub(super) fn addressed(
        &self,
        base: PeerId,
        stamp: Tai64n,
        link: Option<LinkId>,
    ) -> Result<PeerId, Refusal> {
        let peer = self.get(base).ok_or(Refusal::UnknownPeer)?;
        let Some(remote) = peer.as_remote() else {
            return Ok(base);
        };
        if remote.is_withheld(stamp) {
            return Err(Refusal::Withheld);
        }
        if stamp.tag() == 0 {
            return Ok(base);
        }
        let tag = Tag::from_bits(stamp.tag()).ok_or(Refusal::UnknownLane)?;
        let id = self.lane(base, tag).ok_or(Refusal::UnknownLane)?;
        let lane = self.get(id).and_then(Peer::as_lane);
        match (lane, link) {
            (None, _) => Err(Refusal::UnknownLane),
            (Some(lane), Some(link)) if lane.link != link => Err(Refusal::OtherLink),
            _ => Ok(id),
        }
    }
}
