//! What a trace or a capture sees of a worker's ports. All of it beside the way of packets that nobody looks at.

use patronus_crypto::Time;
use patronus_mem::Burst;
use patronus_observe::Point;

use super::Worker;
use crate::channel::{Notice, WanPort};
use crate::crew::Taken;
use crate::observe::{Observer, Observing, Seen, View};
use crate::stats::DropReason;

impl Worker {
    pub(super) fn replace_observer(&mut self, now: Time, observer: Option<Box<Observer>>) {
        let old = std::mem::replace(&mut self.observer, observer);
        self.tell_observer_of_links();
        if let Some(old) = old {
            self.with_context(now, |_, cx| cx.tell(Notice::Observer(old)));
        }
    }

    pub(super) fn tell_observer_of_links(&mut self) {
        if let Some(observer) = &mut self.observer {
            // A link that is not there has no datagrams.
            let ifindex = |wan: &Option<WanPort>| wan.as_ref().map_or(u32::MAX, |wan| wan.ifindex);
            observer.set_links(self.wans.iter().map(ifindex));
        }
    }

    /// Has the observer see a burst.
    #[cold]
    pub(super) fn observe(&mut self, burst: &mut Burst, seen: &Seen) {
        if let Some(mut observing) = Observing::of(self.observer.as_deref_mut(), &*self.clock) {
            observing.see_all(burst, seen);
        }
    }

    /// The same for what another worker has handed over.
    #[cold]
    pub(super) fn observe_taken(&mut self, taken: &mut Taken, number: usize) {
        for (burst, view) in taken.packets_mut() {
            self.observe(burst, &Seen::at(Point::TakeOver, view, number));
        }
    }

    /// The same for what is about to leave by a port, or does not because that is not there.
    #[cold]
    pub(super) fn observe_leaving(
        &mut self,
        burst: &mut Burst,
        to: Option<(Point, usize)>,
        reason: DropReason,
        view: View,
    ) {
        let seen = match to {
            Some((point, place)) => Seen::at(point, view, place),
            None => Seen {
                reason: Some(reason),
                ..Seen::at(Point::Drop, view, 0)
            },
        };
        self.observe(burst, &seen);
    }
}
