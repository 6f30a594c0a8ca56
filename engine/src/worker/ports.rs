//! Where packets leave: by which port, and what becomes of them if it is not there. And ports that come and go.

use patronus_crypto::Time;
use patronus_io::PortError;
use patronus_mem::{Burst, PktBuf};
use patronus_observe::Point;

use super::{LanPort, Poller, Worker, lan_bit, wan_bit};
use crate::channel::{Notice, WanPort};
use crate::observe::View;
use crate::stats::{DropReason, Lap, Stage};

/// Whether routers may cut up a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    /// If it is too long for the rest of the way.
    OnTheWay,
    /// It is to be lost then.
    Never,
}

impl Worker {
    /// Gives datagrams to the links that they go to.
    pub(super) fn send(&mut self, wire: &mut Burst) {
        self.send_as(Cut::OnTheWay, wire);
    }

    pub(super) fn send_as(&mut self, cut: Cut, wire: &mut Burst) {
        if let [_] = self.wans[..] {
            return self.send_on(0, cut, wire);
        }
        for mut packet in wire.drain(..) {
            let way = self.own_way(&packet).or_else(|| {
                // Heard on a link that is gone, or nowhere: by another one, from an address of that one's.
                packet.outer_mut().leave_link();
                self.any_way(&packet)
            });
            match way {
                Some(wan) => self.by_wan[wan].push(packet),
                None => {
                    self.stats.drop_many(DropReason::EncapDown, 1);
                    let mut lost = Burst::new();
                    lost.push(packet);
                    self.observe_leaving(&mut lost, None, DropReason::EncapDown, View::Sent);
                    lost.clear_into(&mut self.frames);
                }
            }
        }
        for wan in 0..self.wans.len() {
            if !self.by_wan[wan].is_empty() {
                let mut burst = std::mem::take(&mut self.by_wan[wan]);
                self.send_on(wan, cut, &mut burst);
            }
        }
    }

    /// The link that a datagram's endpoint was heard on, if that is there.
    fn own_way(&self, packet: &PktBuf) -> Option<usize> {
        let ifindex = packet.outer().ifindex();
        let is_it = |wan: &WanPort| wan.ifindex == 0 || ifindex != 0 && wan.ifindex == ifindex;
        self.wans.iter().position(|wan| wan.as_ref().is_some_and(is_it))
    }

    /// The first link that has routes for it; if none has, the first.
    fn any_way(&self, packet: &PktBuf) -> Option<usize> {
        let open = |at: &usize| self.wans[*at].is_some();
        let mut links = (0..self.wans.len()).filter(open);
        let routed = links.clone().find(|at| self.sends[*at].has(packet.outer()));
        routed.or_else(|| links.next())
    }

    /// Gives datagrams to the network. Nothing can be done about an error here but to count it, as the port does.
    fn send_on(&mut self, wan: usize, cut: Cut, wire: &mut Burst) {
        if wire.is_empty() {
            return;
        }
        if self.is_cut(wan) {
            return self.drop_in_drill(wire, DropReason::DrillSent, View::Sent);
        }
        let (lap, packets) = (Lap::start(), wire.len());
        if self.observer.is_some() {
            let to = self.wans[wan].as_ref().map(|_| (Point::WanTx, wan));
            self.observe_leaving(wire, to, DropReason::EncapDown, View::Sent);
        }
        let Some(WanPort { port, .. }) = &mut self.wans[wan] else {
            self.stats.drop_many(DropReason::EncapDown, packets);
            return wire.clear_into(&mut self.frames);
        };
        let _ = match cut {
            Cut::OnTheWay => port.tx_burst(&mut self.frames, wire),
            Cut::Never => port.tx_whole(&mut self.frames, wire),
        };
        while let Some(address) = port.take_stale_source() {
            self.wg.clear_stale_source(address);
        }
        self.stats.burst(Stage::WanTx, packets, lap);
    }

    /// Whether nothing is to go by a link.
    #[inline]
    pub(super) fn is_cut(&self, wan: usize) -> bool {
        self.drill.is_some_and(|drill| drill.wan == wan)
    }

    #[cold]
    pub(super) fn drop_in_drill(&mut self, wire: &mut Burst, reason: DropReason, view: View) {
        self.observe_leaving(wire, None, reason, view);
        self.stats.drop_many(reason, wire.len());
        wire.clear_into(&mut self.frames);
    }

    /// Gives inner packets to a LAN port.
    pub(super) fn deliver(&mut self, now: Time, lan: usize, inner: &mut Burst) {
        if inner.is_empty() {
            return;
        }
        let (lap, packets) = (Lap::start(), inner.len());
        if self.observer.is_some() {
            let ethernet = self.lans[lan].as_ref().is_some_and(|lan| lan.ethernet);
            let view = if ethernet { View::Ethernet } else { View::Ip };
            let to = self.lans[lan].as_ref().map(|_| (Point::LanTx, lan));
            self.observe_leaving(inner, to, DropReason::LanGone, view);
        }
        let Some(LanPort { port, .. }) = &mut self.lans[lan] else {
            self.stats.drop_many(DropReason::LanGone, packets);
            return inner.clear_into(&mut self.frames);
        };
        let sent = port.tx_burst(&mut self.frames, inner);
        self.stats.burst(Stage::LanTx, packets, lap);
        // What concerns single packets the port has counted.
        if let Err(PortError::Gone) = sent {
            self.lan_gone(now, lan, PortError::Gone);
        }
    }

    /// Lets go of a LAN port that cannot be used any more.
    #[cold]
    pub(super) fn lan_gone(&mut self, now: Time, lan: usize, error: PortError) {
        let old = self.lans[lan].take();
        let why = match error {
            PortError::Gone => None,
            PortError::Io(error) => Some(error),
        };
        self.with_context(now, |_, cx| {
            old.into_iter().for_each(|old| cx.tell(Notice::Lan(old.port)));
            cx.tell(Notice::LanGone(lan, why));
        });
    }

    pub(super) fn replace_wan(
        &mut self,
        now: Time,
        link: usize,
        port: Option<WanPort>,
        poller: Option<&mut Poller>,
    ) {
        if let Some(poller) = poller {
            let [old, new] = [&self.wans[link], &port].map(|wan| wan.as_ref().map(|wan| &*wan.port));
            poller.replace(wan_bit(link), old, new);
        }
        let old = std::mem::replace(&mut self.wans[link], port);
        self.tell_observer_of_links();
        if let Some(old) = old {
            self.with_context(now, |_, cx| cx.tell(Notice::Wan(old.port)));
        }
    }

    pub(super) fn replace_lan(
        &mut self,
        now: Time,
        lan: usize,
        port: Option<LanPort>,
        poller: Option<&mut Poller>,
    ) {
        let [old, new] = [&self.lans[lan], &port].map(|lan| lan.as_ref().map(|lan| &*lan.port));
        if let Some(poller) = poller {
            poller.replace(lan_bit(lan), old, new);
        }
        if let Some(old) = std::mem::replace(&mut self.lans[lan], port) {
            self.with_context(now, |_, cx| cx.tell(Notice::Lan(old.port)));
        }
    }
}
