//! Classes and orders: what workers are told of how packets are steered, and which path a class goes by first.
//!
//! Orders are control's, by the paths' names, and kept here: paths come and go, and workers are told anew by place. Which path is the first of an order that is up, each
//! worker finds out by itself; here it is found out once more, for who writes down what has moved and why.

use std::collections::BTreeMap;
use std::sync::Arc;

use patronus_abi::channel::{MoveWhy, PathName, Ranked};
use patronus_abi::site::{CLASSES_MAX, Class, LINKS_MAX};
use patronus_crypto::{PeerId, Random};

use super::{Core, Sockets};
use crate::channel::Command;
use crate::flow::HashKeys;
use crate::path::PathLanes;
use crate::steer::{Manners, Order, Plan, Standing, Steering};

/// What there is to know about classes.
pub(super) struct Classes {
    manners: Manners,
    /// The classes that the manners are of.
    known: Vec<Class>,
    /// Goes up with every other list of classes.
    epoch: u32,
    /// By a link's number.
    costs: [u16; LINKS_MAX + 1],
    keys: Option<Arc<HashKeys>>,
    by_remote: BTreeMap<PeerId, Steered>,
}

/// What there is to know about one remote.
#[derive(Default)]
struct Steered {
    /// The paths of its board, by place.
    paths: Vec<(PathName, Standing)>,
    /// By class, as control has said.
    ranked: BTreeMap<u8, Vec<Ranked>>,
    /// By class, what follows from that for these paths. Worked out when one of them is something else, not when a path goes up or down: a remote may have that happen often.
    orders: Vec<Order>,
    /// By class: the path that it goes by first.
    firsts: [Option<PathName>; CLASSES_MAX],
    /// The paths that were up when that was found out.
    up: u64,
}

impl Steered {
    /// Works the orders of all classes out.
    fn work_out(&mut self, classes: usize) {
        let orders = (0..classes as u8).map(|class| self.order_anew(class));
        self.orders = orders.collect();
    }

    fn order_anew(&self, class: u8) -> Order {
        let ranked = self.ranked.get(&class).map_or(&[][..], Vec::as_slice);
        Order::new(ranked, &self.paths)
    }

    /// The path that a class goes by first while these are up.
    fn first(&self, class: u8, up: u64) -> Option<PathName> {
        let place = self.orders.get(usize::from(class))?.first(up)?;
        Some(self.paths[usize::from(place)].0)
    }
}

impl Classes {
    pub(super) fn new() -> Classes {
        Classes {
            manners: Manners::default(),
            known: vec![Class::default()],
            epoch: 0,
            costs: [0; LINKS_MAX + 1],
            keys: None,
            by_remote: BTreeMap::new(),
        }
    }

    /// A remote is gone.
    pub(super) fn forget(&mut self, remote: PeerId) {
        self.by_remote.remove(&remote);
    }

    /// What our link with this number costs.
    pub(super) fn cost(&self, link: u8) -> u16 {
        self.costs.get(usize::from(link)).copied().unwrap_or(0)
    }

    /// The paths of a remote are these from now on.
    pub(super) fn set_paths(&mut self, remote: PeerId, paths: Vec<(PathName, Standing)>) {
        let steered = self.by_remote.entry(remote).or_default();
        steered.paths = paths;
        steered.work_out(self.known.len());
    }

    /// How a worker with these lanes steers packets to a remote.
    pub(super) fn steering(
        &mut self,
        remote: PeerId,
        lanes: &[PathLanes],
        random: &mut (dyn Random + Send),
    ) -> Steering {
        let keys = self.keys.get_or_insert_with(|| {
            let mut word = || u64::from(random.u32()) << 32 | u64::from(random.u32());
            Arc::new(HashKeys::new(std::array::from_fn(|_| word())))
        });
        let steered = self.by_remote.entry(remote).or_default();
        Steering::new(Plan {
            paths: &steered.paths,
            lanes,
            orders: steered.orders.clone(),
            manners: &self.manners,
            classes: self.epoch,
            keys: Arc::clone(keys),
        })
    }
}

impl<S: Sockets> Core<S> {
    /// Takes the classes of a site, and what its links cost. Orders are of classes, and are forgotten with them.
    pub fn set_classes(&mut self, classes: &[Class], costs: impl IntoIterator<Item = (u8, u16)>) {
        let mut by_link = [0; LINKS_MAX + 1];
        for (link, cost) in costs {
            by_link[usize::from(link).min(LINKS_MAX)] = cost;
        }
        let others = self.classes.known != classes;
        if !others && self.classes.costs == by_link {
            return;
        }
        self.classes.costs = by_link;
        if others {
            let manners = Manners::of(classes);
            self.classes.known = classes.to_vec();
            self.classes.epoch += 1;
            self.classes.manners = manners;
            for steered in self.classes.by_remote.values_mut() {
                steered.ranked.clear();
                steered.work_out(classes.len());
            }
            self.workers.each(|_| Command::Classes(manners));
        }
        self.publish_all_paths();
    }

    /// How many classes there are.
    pub fn class_count(&self) -> usize {
        self.classes.known.len()
    }

    /// The name of a class, if there is one with this number.
    pub fn class_name(&self, class: u8) -> Option<&str> {
        let class = self.classes.known.get(usize::from(class))?;
        Some(&class.name)
    }

    /// From now on a class uses the paths to a remote in this order.
    pub fn order_paths(
        &mut self,
        remote: PeerId,
        class: u8,
        ranked: Vec<Ranked>,
    ) -> Result<(), &'static str> {
        if usize::from(class) >= self.classes.known.len() {
            return Err("an order for a class that is not there");
        }
        if !self.is_remote(remote) {
            return Err("an order for what is no remote");
        }
        let steered = self.classes.by_remote.entry(remote).or_default();
        steered.ranked.insert(class, ranked);
        steered.work_out(self.classes.known.len());
        let order = &steered.orders[usize::from(class)];
        self.workers
            .each(|_| Command::Order(remote, class, Box::new(order.clone())));
        self.find_first(remote, class, MoveWhy::Order);
        Ok(())
    }

    /// The order in which a class uses the paths to a remote, and the places of the paths on its board.
    pub fn order_of(&self, remote: PeerId, class: u8) -> Option<(&Order, &[(PathName, Standing)])> {
        let steered = self.classes.by_remote.get(&remote)?;
        Some((steered.orders.get(usize::from(class))?, &steered.paths))
    }

    /// Whether control has said in which order.
    pub fn is_ordered(&self, remote: PeerId, class: u8) -> bool {
        let steered = self.classes.by_remote.get(&remote);
        steered.is_some_and(|steered| steered.ranked.contains_key(&class))
    }

    /// Finds out by which paths the classes go to a remote, of whose paths another one is up or down.
    pub fn note_paths(&mut self, remote: PeerId) {
        let up = self.board(remote).map_or(0, |board| board.up());
        let Some(steered) = self.classes.by_remote.get_mut(&remote) else {
            return;
        };
        let before = std::mem::replace(&mut steered.up, up);
        let why = match before & !up {
            0 => MoveWhy::Up,
            _ => MoveWhy::Down,
        };
        for class in 0..self.classes.known.len() as u8 {
            self.find_first(remote, class, why);
        }
    }

    /// Notes by which path a class goes to a remote first, if that is another one. With none up nothing moves.
    fn find_first(&mut self, remote: PeerId, class: u8, why: MoveWhy) {
        let up = self.board(remote).map_or(0, |board| board.up());
        let Some(steered) = self.classes.by_remote.get_mut(&remote) else {
            return;
        };
        let first = steered.first(class, up);
        let known = &mut steered.firsts[usize::from(class)];
        if first.is_some() && first != *known {
            let from = std::mem::replace(known, first);
            self.note_moved(remote, class, (from, first), why);
        }
    }
}
