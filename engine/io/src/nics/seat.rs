//! A worker's port of a NIC that may go and come back.
//!
//! [`Seat`] is what the worker and the owner of the NICs share: a word that says what is to be done, which the worker looks at with every burst, and a place for a pair of queues
//! on its way. The lock of that place is taken only when something is on its way, and held for a move.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use patronus_mem::{Burst, FrameCache};

use crate::dpdk::DpdkPort;
use crate::{Port, PortCounters, PortError};

/// The worker has queues, or there are none.
const SETTLED: u8 = 0;
/// Queues for the worker are in the place.
const COMING: u8 = 1;
/// The owner wants them back.
const WANTED: u8 = 2;
/// They are in the place, for the owner.
const RETURNED: u8 = 3;

/// What the worker and the owner share.
#[derive(Default)]
pub(super) struct Seat {
    word: AtomicU8,
    place: Mutex<Option<DpdkPort>>,
}

impl Seat {
    /// Gives the worker queues. The seat is empty.
    pub(super) fn fill(&self, port: DpdkPort) {
        self.put(port, COMING);
    }

    /// Asks for the queues. They come when the worker looks next, if he does not overwrite the word at that moment: who waits asks again.
    pub(super) fn want(&self) {
        self.word.store(WANTED, Ordering::Release);
    }

    /// Whether the worker has given the queues up, or given them back.
    pub(super) fn is_returned(&self) -> bool {
        self.word.load(Ordering::Acquire) == RETURNED
    }

    /// Takes back what was returned, so that the seat is empty.
    pub(super) fn empty(&self) -> Option<DpdkPort> {
        let port = self.lock().take();
        self.word.store(SETTLED, Ordering::Release);
        port
    }

    fn put(&self, port: DpdkPort, word: u8) {
        *self.lock() = Some(port);
        self.word.store(word, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<DpdkPort>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's end.
pub(super) struct SeatPort {
    seat: Arc<Seat>,
    /// None while the NIC is not there.
    queues: Option<DpdkPort>,
    counters: Arc<PortCounters>,
}

impl SeatPort {
    pub(super) fn new(seat: Arc<Seat>, counters: Arc<PortCounters>) -> SeatPort {
        SeatPort {
            seat,
            queues: None,
            counters,
        }
    }

    /// Does what the owner wants.
    #[cold]
    fn obey(&mut self) {
        match self.seat.word.load(Ordering::Acquire) {
            COMING => self.queues = self.seat.empty(),
            WANTED => self.give_back(),
            _ => {}
        }
    }

    fn give_back(&mut self) {
        // They may have been wanted back before they arrived.
        let queues = self.queues.take().or_else(|| self.seat.lock().take());
        if let Some(queues) = queues {
            self.seat.put(queues, RETURNED);
        }
    }

    fn settled<R>(&mut self, done: Result<R, PortError>, nothing: R) -> Result<R, PortError> {
        match done {
            Err(PortError::Gone) => {
                self.give_back();
                Ok(nothing)
            }
            other => other,
        }
    }
}

impl Port for SeatPort {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        if self.seat.word.load(Ordering::Relaxed) != SETTLED {
            self.obey();
        }
        let Some(queues) = &mut self.queues else {
            return Ok(0);
        };
        let received = queues.rx_burst(frames, burst);
        self.settled(received, 0)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        let Some(queues) = &mut self.queues else {
            self.counters.tx_down.add(burst.len() as u64);
            burst.clear_into(frames);
            return Ok(());
        };
        let sent = queues.tx_burst(frames, burst);
        self.settled(sent, ())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}
