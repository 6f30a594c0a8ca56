//! What goes wrong between two sites, and when.

use patronus_crypto::Duration;

use super::Steered;
use super::roads::Trouble;
use crate::rng::Seeded;
use crate::site::{Site, private_key};

impl Steered {
    /// What may go wrong in a step.
    pub(super) fn faults(&mut self) {
        if self.rng.chance(70) {
            self.trouble();
        }
        if self.rng.chance(12) {
            self.unplug();
        }
        if self.kind.nat && self.rng.chance(15) {
            self.rebind();
        }
        if self.rng.chance(12) {
            let most = self.kind.probing.interval.as_millis() as usize / 2;
            self.stall(most);
        }
        if self.rng.chance(1) {
            self.stall(20_000);
            self.watch.disturbed_at = self.now.after(Duration::from_secs(20));
        }
        if self.rng.chance(1) {
            self.restart();
        }
        if self.rng.chance(3) {
            self.switch_control();
        }
        if self.rng.chance(4) {
            let pause = Duration::from_millis(self.rng.pick(1000..25_000) as u64);
            self.quiet_until = self.now.after(pause);
            self.note(format_args!("hosts are quiet for {pause:?}"));
        }
    }

    /// A path that may have trouble, if there is one.
    fn other_road(&mut self) -> Option<usize> {
        let at = self.rng.pick(0..self.roads.len());
        (self.kind.spared != Some(at) && !self.roads[at].is_unplugged()).then_some(at)
    }

    fn trouble(&mut self) {
        let Some(at) = self.other_road() else { return };
        let rng = &mut self.rng;
        let millis =
            |from: usize, to: usize, rng: &mut Seeded| Duration::from_millis(rng.pick(from..to) as u64);
        let trouble = match rng.pick(0..10) {
            0..4 => Trouble::Dead,
            4..6 => Trouble::Flapping(millis(50, 3000, rng), millis(50, 3000, rng)),
            6..9 => Trouble::Noisy(rng.pick(1..60), rng.one_of(&[0, 0, 10, 100])),
            _ => Trouble::Slow(millis(20, 150, rng)),
        };
        let senders = rng.one_of(&[[true, true], [true, false], [false, true]]);
        let time = millis(300, 20_000, rng);
        self.roads[at].begin(self.now, trouble, senders, self.now.after(time));
        self.note(format_args!(
            "path {at}: {trouble:?} from senders {senders:?} for {time:?}"
        ));
    }

    /// A link's interface goes for a while, or only for a moment.
    fn unplug(&mut self) {
        let Some(at) = self.other_road() else { return };
        let site = self.rng.pick(0..2);
        let link = self.roads[at].links[site];
        if self
            .kind
            .spared
            .is_some_and(|spared| self.roads[spared].links[site] == link)
        {
            return;
        }
        let time = match self.rng.chance(30) {
            true => Duration::ZERO,
            false => Duration::from_millis(self.rng.pick(10..10_000) as u64),
        };
        self.note(format_args!(
            "site {site}: link {link} has no interface for {time:?}"
        ));
        self.sites[site].close_link(link);
        for road in self.roads.iter_mut().filter(|road| road.links[site] == link) {
            road.begin(self.now, Trouble::Unplugged, [true, true], self.now.after(time));
        }
    }

    fn rebind(&mut self) {
        let Some(at) = self.other_road() else { return };
        let link = self.roads[at].links[0];
        if self
            .kind
            .spared
            .is_some_and(|spared| self.roads[spared].links[0] == link)
        {
            return;
        }
        self.ports[link] = self.rng.pick(1024..65_536) as u16;
        let until = self.now.after(self.kind.probing.idle * 3);
        for road in self
            .roads
            .iter_mut()
            .filter(|road| road.links[0] == link && !road.is_unplugged())
        {
            road.begin(self.now, Trouble::Rebound, [false, true], until);
        }
        let port = self.ports[link];
        self.note(format_args!("site 0: link {link} is seen as port {port} now"));
    }

    fn stall(&mut self, most: usize) {
        let site = self.rng.pick(0..2);
        let actor = self.rng.pick(0..self.sites[site].stalled.len());
        let time = Duration::from_millis(self.rng.pick(1..most.max(2)) as u64);
        let until = &mut self.sites[site].stalled[actor];
        *until = self.now.after(time).max(*until);
        let until = *until;
        self.watch.stall(self.now, until);
        self.note(format_args!("site {site}: actor {actor} stalls for {time:?}"));
    }

    fn restart(&mut self) {
        let number = self.rng.pick(0..2);
        self.note(format_args!("site {number} restarts"));
        self.summary.restarts += 1;
        self.watch.disturbed_at = self.watch.disturbed_at.max(self.now);
        self.watch.restart(number, self.now);
        let plan = self.sites[number].plan.clone();
        let key = private_key(self.seed, number);
        self.sites[number] = Site::start(&plan, key, self.arena, &self.clock, self.rng.fork());
        for road in &mut self.roads {
            if road.is_unplugged() {
                road.end(self.now);
            }
        }
        for link in 0..plan.links {
            self.sites[1 - number].open_link(link);
        }
        self.configure(number);
        if let Some(governor) = &mut self.governors[number] {
            governor.forget();
            self.watch.govern(number, Some(self.now));
        }
        self.orphaned[number] = false;
    }

    /// Control ends, or is started.
    fn switch_control(&mut self) {
        let site = self.rng.pick(0..2);
        let begins = self.governors[site].is_none();
        self.note(format_args!(
            "site {site}: control {}",
            if begins { "is started" } else { "ends" }
        ));
        self.governors[site] = None;
        self.orphaned[site] = !begins;
        self.watch.govern(site, None);
        if begins {
            self.govern(site);
        }
        // Another one may think otherwise of the same paths.
        self.watch.disturbed_at = self.watch.disturbed_at.max(self.now);
    }

    /// Nothing is wrong any more.
    pub(super) fn mend(&mut self) {
        self.note(format_args!("everything is mended"));
        self.quiet_until = self.now;
        for road in &mut self.roads {
            road.end(self.now);
        }
        for site in &mut self.sites {
            (0..site.plan.links).for_each(|link| site.open_link(link));
        }
    }
}
