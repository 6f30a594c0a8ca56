//! What the slow path says: commands, and questions about flows.

use std::sync::Arc;

use patronus_crypto::Time;
use patronus_io::ip::FlowKey;

use super::{Poller, Told, Worker};
use crate::channel::{Command, Notice};
use crate::explain::{Asked, Explained, PLACES_PER_QUERY, Query};
use crate::wg::{Context, Wg};

/// Commands obeyed in a turn.
const COMMANDS_PER_TURN: usize = 32;

impl Worker {
    /// Commands of the slow path.
    pub(super) fn obey(&mut self, now: Time, mut poller: Option<&mut Poller>) -> Result<(), Told> {
        if self.crew.inbox().commands.is_empty() {
            return Ok(());
        }
        let inbox = Arc::clone(self.crew.inbox());
        for _ in 0..COMMANDS_PER_TURN {
            if !self.has_room() {
                break;
            }
            let Some(command) = inbox.commands.pop() else {
                break;
            };
            match command {
                Command::Stop => return Err(Told),
                Command::Wan(link, port) => self.replace_wan(now, link, port, poller.as_deref_mut()),
                Command::Sends(link, families) => self.sends[link] = families,
                Command::Drill(drill) => self.drill = drill,
                Command::Lan(lan, port) => self.replace_lan(now, lan, port, poller.as_deref_mut()),
                Command::Install(keypair) => {
                    let peer = keypair.peer;
                    if self.with_context(now, |stages, cx| stages.wg.install(cx, keypair)) {
                        self.send_staged(now, peer, true);
                    }
                }
                Command::Keepalive(peer) => self.send_staged(now, peer, true),
                Command::Control(peer, bytes) => self.send_control(now, peer, &bytes),
                Command::Ping(peer, ping) => self.send_ping(now, peer, &ping),
                Command::Place(peer, worker) => self.crew.place(peer, worker),
                Command::Neighbours => self.send_waiting(now),
                Command::Ask(query) => self.explain(now, query),
                Command::Observe(observer) => self.replace_observer(now, observer),
                other => self.with_context(now, |stages, cx| apply(stages.wg, cx, other)),
            }
        }
        Ok(())
    }

    /// Says what becomes of flows.
    #[cold]
    fn explain(&mut self, now: Time, mut query: Box<Query>) {
        match query.asked {
            Asked::Flow(key) => query.told.push(self.explain_flow(now, key)),
            Asked::Flows(from) => query.next = self.tell_flows(now, from, &mut query.told),
        }
        self.with_context(now, |_, cx| cx.tell(Notice::Told(query)));
    }

    fn explain_flow(&self, now: Time, key: FlowKey) -> Explained {
        let mut told = match &self.router {
            Some(router) => router.explain(now, key),
            None => self.wg.explain(key),
        };
        self.wg.explain_path(now, &mut told);
        told
    }

    /// Tells of flows from a place of the table on, as many as there is room for; returns where to go on, if there is more.
    fn tell_flows(&self, now: Time, from: u32, told: &mut Vec<Explained>) -> Option<u32> {
        let router = self.router.as_ref()?;
        for place in from..from.saturating_add(PLACES_PER_QUERY) {
            if told.len() == told.capacity() {
                return Some(place);
            }
            let key = router.flow_at(place)?;
            told.extend(key.map(|key| self.explain_flow(now, key)));
        }
        Some(from.saturating_add(PLACES_PER_QUERY))
    }
}

/// The commands that only concern WireGuard's state.
fn apply(wg: &mut Wg, cx: &mut Context<'_>, command: Command) {
    match command {
        Command::AddPeer(slot) => wg.add_peer(cx, slot),
        Command::RemovePeer(peer) => wg.remove_peer(cx, peer),
        Command::Routes(routes) => wg.set_routes(cx, routes),
        Command::IndexAdded(index, peer) => wg.add_foreign_index(index, peer),
        Command::IndexRemoved(index) => wg.remove_foreign_index(index),
        Command::Endpoint(peer, endpoint) => wg.set_endpoint(cx, peer, endpoint),
        Command::Follow(lane, from, to) => wg.follow(lane, from, to),
        Command::ClearSource(peer) => wg.clear_source(peer),
        Command::LeaveLink(ifindex) => wg.leave_link(ifindex),
        Command::Shun(peer, ifindex) => wg.shun(peer, ifindex),
        Command::Pinged(peer, pinged) => wg.set_pinged(peer, pinged),
        Command::Remote(peer) => wg.set_remote(peer),
        Command::Paths(remote, paths) => wg.set_paths(cx, remote, paths),
        Command::Probe(remote, set) => wg.probe(cx, remote, set),
        Command::Probing(probing) => wg.prober.set_probing(probing),
        Command::Suspect(remote, suspects) => wg.prober.suspect(cx.now, remote, &suspects),
        Command::Used(remote) => wg.prober.used(cx.now, remote),
        Command::Classes(manners) => wg.set_classes(manners),
        Command::Order(remote, class, order) => wg.set_order(cx, remote, class, order),
        Command::Restarted(remote) => wg.restarted(remote),
        Command::Silent(lane) => wg.set_silent(lane),
        Command::DropStaged(peer) => wg.drop_staged(cx, peer),
        Command::EraseKeys(peer) => wg.erase_keys(cx, peer),
        Command::ExpireSending(peer) => wg.expire_sending(peer),
        Command::Mtu(mtu) => wg.set_mtu(cx.now, mtu),
        Command::Install(_)
        | Command::Keepalive(_)
        | Command::Control(..)
        | Command::Ping(..)
        | Command::Place(..)
        | Command::Neighbours
        | Command::Wan(..)
        | Command::Sends(..)
        | Command::Drill(_)
        | Command::Lan(..)
        | Command::Ask(_)
        | Command::Observe(_)
        | Command::Stop => unreachable!("obeyed by the worker itself"),
    }
}
