//! Packets made to fit: segments that TCP is asked for, fragments, and what stands in front of those that go twice.
//!
//! Nearly no packet comes here: those that fit and go once pass by.

use patronus_abi::site::Mode;
use patronus_crypto::PeerId;
use patronus_io::ip::Packet;
use patronus_mem::{Burst, PktBuf};

use super::{Dress, Form, Outgoing, carries};
use crate::fragment::{self, Uncut};
use crate::icmp::IcmpError;
use crate::mss;
use crate::remote::message::{self, DOUBLED};
use crate::snapshot::MTU_MIN;
use crate::stats::DropReason;
use crate::wg::{Context, PeerSlot, Wg};

impl Wg {
    /// Makes the beginning of a TCP connection ask for segments that fit the tunnel, `twice`: with what stands in front of packets that go twice.
    #[cold]
    pub(in crate::wg) fn clamp(&self, cx: &Context<'_>, packet: &mut PktBuf, peer: PeerId, twice: bool) {
        let mtu = self.tunnel_mtu(peer);
        let room = if twice && self.has_paths(peer) {
            mtu.saturating_sub(DOUBLED)
        } else {
            mtu
        };
        let clamped = mss::clamp(packet.data_mut(), room);
        cx.stats.mss_clamped.add(u64::from(clamped));
    }

    /// Whether packets have been left for [`encap_later`](Self::encap_later).
    #[inline]
    pub fn has_later(&self) -> bool {
        !self.later.is_empty()
    }

    /// Seals some of the packets that were left, in order: those before the next that is too long, or the fragments of that one. What is too long and must not
    /// be cut up is refused.
    #[cold]
    pub fn encap_later(&mut self, cx: &mut Context<'_>, wire: &mut Burst) {
        let fits = |(packet, dress): &(&PktBuf, &Dress)| {
            dress.form != Form::InPieces && packet.len() <= self.longest_in(dress.session)
        };
        let later = self.later.packets.iter().zip(&self.later.dresses);
        let fitting = later.take_while(fits).count();
        let mut ours = Outgoing::default();
        for (packet, dress) in self.later.drain(fitting.max(1)) {
            ours.push(packet, dress);
        }
        if fitting == 0 {
            self.make_fit(cx, &mut ours);
        }
        self.encap_sessions(cx, &mut ours, wire);
    }

    /// The same as [`longest`](Wg::longest) for the peer whose session it is.
    fn longest_in(&self, session: PeerId) -> usize {
        self.longest(self.slot(session).map_or(session, PeerSlot::tunnel))
    }

    /// Puts fragments in the place of the one packet, or nothing.
    fn make_fit(&mut self, cx: &mut Context<'_>, ours: &mut Outgoing) {
        let (Some(mut packet), Some(mut dress)) = (ours.packets.pop(), ours.dresses.pop()) else {
            return;
        };
        if let Err(reason) = self.admit(&packet, &dress) {
            return self.refuse(cx, reason, packet);
        }
        if dress.form == Form::Doubled {
            // It did fit when it was made, and its other half is on its way.
            return ours.push(packet, dress);
        }
        let Ok(inner) = Packet::parse(packet.data()) else {
            return cx.discard(DropReason::EncapNotIp, packet);
        };
        let (len, must_not_be_cut) = (inner.total_len(), inner.must_not_be_cut());
        // What stands behind it is nobody's. And another worker may have found out by now that more passes.
        packet.truncate(len);
        let longest = match self.room_for_two(&dress) {
            Some(room) => room,
            None => self.longest_in(dress.session),
        };
        if len <= longest {
            if dress.form == Form::InPieces {
                dress.form = self.double(cx, &mut packet, &dress);
            }
            return ours.push(packet, dress);
        }
        if must_not_be_cut {
            let mtu = longest.min(u16::MAX.into()) as u16;
            self.icmp.answer(cx, packet.data(), IcmpError::TooBig(mtu));
            return cx.discard(DropReason::EncapTooBig, packet);
        }
        match fragment::cut(cx.frames, packet, longest, &mut ours.packets) {
            Ok(()) => {
                cx.stats.fragmented.add(1);
                cx.stats.fragments.add(ours.packets.len() as u64);
                for fragment in ours.packets.iter_mut() {
                    let form = match dress.form {
                        Form::InPieces => self.double(cx, fragment, &dress),
                        other => other,
                    };
                    ours.dresses.push(Dress { form, ..dress });
                }
            }
            Err((Uncut::Damaged, packet)) => cx.discard(DropReason::EncapNotIp, packet),
            Err((Uncut::NoFrame, packet)) => cx.discard(DropReason::FragmentNoFrame, packet),
        }
    }

    /// How long a packet may be that is to go twice by a lane; `None`: it goes once. Its class says so, or no path is up, as with a remote that knows of none of this.
    fn room_for_two(&self, dress: &Dress) -> Option<usize> {
        let peer = self.slot(dress.session)?.tunnel();
        let paths = self.paths.get(peer.0 as usize)?.as_deref()?;
        let twice = self.manners.get(dress.class).mode == Mode::Duplicate && dress.session != peer;
        let room = self.tunnel_mtu(peer).checked_sub(DOUBLED)?;
        // A TUN may be shorter than anything that has to be cut up for a path.
        let is_enough = room >= usize::from(MTU_MIN) - DOUBLED;
        (twice && is_enough && paths.board.up() != 0).then_some(room)
    }

    /// Makes of a packet that leaves by a lane one that goes twice, and keeps the other one for later; or says that it is to be cut up before that. One that has no room for
    /// what that takes, and must not be cut up, goes once.
    #[cold]
    pub(super) fn double(&mut self, cx: &mut Context<'_>, packet: &mut PktBuf, dress: &Dress) -> Form {
        let Some(room) = self.room_for_two(dress) else {
            return Form::Plain;
        };
        if packet.len() > room {
            let may_be_cut = Packet::parse(packet.data()).is_ok_and(|inner| !inner.must_not_be_cut());
            cx.stats.undoubled.add(u64::from(!may_be_cut));
            return if may_be_cut { Form::InPieces } else { Form::Plain };
        }
        match self.copy(cx, packet, dress) {
            Some(()) => Form::Doubled,
            None => Form::Plain,
        }
    }

    /// Puts what tells it from others in front of a packet, and keeps a copy of it. `None`: it has no lane.
    fn copy(&mut self, cx: &mut Context<'_>, packet: &mut PktBuf, dress: &Dress) -> Option<()> {
        let peer = self.slot(dress.session)?.tunnel();
        let Wg {
            paths, peers, copies, ..
        } = self;
        let paths = paths.get_mut(peer.0 as usize)?.as_deref_mut()?;
        let now = cx.now;
        let may_carry = |lane: PeerId| carries(peers, lane, now);
        let (sequence, second) = paths.double(dress.class, dress.session, may_carry)?;
        let header = message::doubled(packet.len(), sequence);
        packet.prepend(DOUBLED).copy_from_slice(&header);
        cx.stats.doubled.add(1);
        // Without a frame the second one is lost like a datagram.
        if let Some(session) = second
            && let Some(mut copy) = cx.frames.alloc_for(packet.len())
        {
            copy.append(packet.len()).copy_from_slice(packet.data());
            copy.set_mark(packet.mark());
            let form = Form::Doubled;
            copies.push(
                copy,
                Dress {
                    session,
                    form,
                    ..*dress
                },
            );
        }
        Some(())
    }
}
