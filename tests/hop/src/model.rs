//! The model of one direction: what becomes of a packet, decided when it is offered.
//!
//! No sockets, no clock and no packets in here: [`Impair::offer`] is told the time and a length and says when the packet leaves, or why
//! it does not. Called by [`crate::link`], and by whoever simulates a link with a virtual clock. One owner, no allocation but for the
//! bottleneck's queue, which is bounded.
//!
//! The steps, each with its own chance: cut, MTU, loss, bottleneck, delay with jitter, reordering, duplication, corruption. Which packets are
//! lost, doubled, held back or damaged depends on the seed and the packets' ordinals alone.

use std::collections::VecDeque;

use crate::Time;
use crate::dice::{Dice, Purpose, below, normal};
use crate::settings::{Delay, Loss, Rate, Settings, Shape};

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// The direction is cut.
    Cut,
    /// Longer than the MTU.
    Mtu,
    /// Lost on the way.
    Lost,
    /// No room in front of the bottleneck.
    Queue,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is gone.
    Drop(Drop),
    /// It leaves.
    Pass(Pass),
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// When.
    pub at: Time,
    /// Later packets may leave before it.
    pub held_back: bool,
    /// A second copy leaves at the same time.
    pub twice: bool,
    /// Turn over the bit of this number, modulo how many there are.
    pub flip: Option<u64>,
}

/// One direction's state.
#[derive(Clone, Debug)]
pub struct Impair {
    settings: Settings,
    dice: Dice,
    /// How many packets were offered since the seed.
    ordinal: u64,
    /// The link is in the bad one of its two states.
    bad: bool,
    bottleneck: Bottleneck,
    /// When the last packet leaves that keeps its place.
    last: Time,
}

impl Impair {
    /// A direction (by its number) that does nothing to packets.
    pub fn new(seed: u64, direction: usize) -> Impair {
        Impair {
            settings: Settings::default(),
            dice: Dice::new(seed, direction),
            ordinal: 0,
            bad: false,
            bottleneck: Bottleneck::default(),
            last: 0,
        }
    }

    /// What is set.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sets what holds for packets from now on. Those under way leave as was decided, but see [`Impair::is_cut`].
    pub fn set(&mut self, settings: Settings) {
        if settings.loss != self.settings.loss {
            self.bad = false;
        }
        self.settings = settings;
    }

    /// Begins the sequences of chance anew: the next packet is the first.
    pub fn seed(&mut self, seed: u64, direction: usize) {
        self.dice = Dice::new(seed, direction);
        self.ordinal = 0;
        self.bad = false;
    }

    /// Whether what is under way gets lost at the moment when it would leave.
    pub fn is_cut(&self) -> bool {
        self.settings.cut
    }

    /// Decides what becomes of the next packet. `frame` are its bytes with the link header, `ip` those without. `now` never goes back.
    pub fn offer(&mut self, now: Time, frame: usize, ip: usize) -> Verdict {
        let ordinal = self.ordinal;
        self.ordinal += 1;
        // The sequence of good and bad goes on whatever else happens to packets.
        let lost = self.loses(ordinal);
        let Settings { cut, mtu, rate, .. } = self.settings;
        if cut {
            return Verdict::Drop(Drop::Cut);
        }
        if mtu.is_some_and(|mtu| ip > mtu as usize) {
            return Verdict::Drop(Drop::Mtu);
        }
        if lost {
            return Verdict::Drop(Drop::Lost);
        }
        let Some(sent) = self.bottleneck.pass(rate, now, frame) else {
            return Verdict::Drop(Drop::Queue);
        };
        Verdict::Pass(self.pass(ordinal, sent))
    }

    fn loses(&mut self, ordinal: u64) -> bool {
        let roll = |purpose| self.dice.roll(ordinal, purpose);
        let chance = match self.settings.loss {
            Loss::Independent(chance) => chance,
            Loss::Bursts {
                enter,
                leave,
                bad,
                good,
            } => {
                let change = if self.bad { leave } else { enter };
                self.bad ^= change.hits(roll(Purpose::Burst));
                if self.bad { bad } else { good }
            }
        };
        chance.hits(roll(Purpose::Loss))
    }

    fn pass(&mut self, ordinal: u64, sent: Time) -> Pass {
        let roll = |purpose| self.dice.roll(ordinal, purpose);
        let delayed = sent.saturating_add(delay(&self.settings.delay, roll));
        let hold = self
            .settings
            .reorder
            .filter(|reorder| reorder.chance.hits(roll(Purpose::Reorder)));
        let at = match hold {
            Some(reorder) => delayed.max(self.last).saturating_add(reorder.by),
            // Nobody overtakes by jitter.
            None => delayed.max(self.last),
        };
        let corrupt = self.settings.corrupt.hits(roll(Purpose::Corrupt));
        let pass = Pass {
            at,
            held_back: hold.is_some(),
            twice: self.settings.duplicate.hits(roll(Purpose::Duplicate)),
            flip: corrupt.then(|| roll(Purpose::Bit)),
        };
        if hold.is_none() {
            self.last = at;
        }
        pass
    }
}

/// Nanoseconds that a packet is late, by its numbers.
fn delay(delay: &Delay, roll: impl Fn(Purpose) -> u64) -> u64 {
    if delay.jitter == 0 {
        return delay.fixed;
    }
    match delay.shape {
        Shape::Uniform => {
            let width = delay.jitter.saturating_mul(2).saturating_add(1);
            let offset = below(roll(Purpose::Jitter), width);
            delay.fixed.saturating_add(offset).saturating_sub(delay.jitter)
        }
        Shape::Normal => {
            let purposes = [Purpose::Jitter, Purpose::JitterMore, Purpose::JitterMost];
            let offset = i128::from(normal(purposes.map(roll))) * i128::from(delay.jitter) / 1000;
            u64::try_from(i128::from(delay.fixed) + offset).unwrap_or(0)
        }
    }
}

/// Frames that wait for their turn, by when each has left. Exact: what does not fill a nanosecond is carried to the next frame.
#[derive(Clone, Debug, Default)]
struct Bottleneck {
    waiting: VecDeque<(Time, usize)>,
    bytes: u64,
    /// When everything has left, and the remainder in units of 1 / (rate) nanoseconds.
    free_at: Time,
    remainder: u64,
    /// The rate that the remainder belongs to.
    rate: u64,
}

impl Bottleneck {
    /// When the frame has left; `None` if it has no room.
    fn pass(&mut self, rate: Option<Rate>, now: Time, frame: usize) -> Option<Time> {
        self.settle(now);
        let Some(rate) = rate else {
            // What waits at a rate that no longer holds is not overtaken: `Impair::last` sees to that.
            return Some(now);
        };
        let frame = frame as u64;
        let room = self.bytes + frame <= rate.queue_bytes && self.waiting.len() < rate.queue_packets as usize;
        if !self.waiting.is_empty() && !room {
            return None;
        }
        let bits_per_second = rate.bits_per_second.max(1);
        if self.free_at < now || self.rate != bits_per_second {
            self.free_at = self.free_at.max(now);
            self.remainder = 0;
            self.rate = bits_per_second;
        }
        let time = u128::from(frame) * 8 * 1_000_000_000 + u128::from(self.remainder);
        let nanos = time / u128::from(bits_per_second);
        self.remainder = (time % u128::from(bits_per_second)) as u64;
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        self.free_at = self.free_at.saturating_add(nanos);
        self.waiting.push_back((self.free_at, frame as usize));
        self.bytes += frame;
        Some(self.free_at)
    }

    /// Takes out what has left.
    fn settle(&mut self, now: Time) {
        while let Some((_, frame)) = self.waiting.pop_front_if(|(left, _)| *left <= now) {
            self.bytes -= frame as u64;
        }
    }
}
