//! The copies of packets that go twice: numbers for those that leave, and which of two is the first to arrive.
//!
//! One worker's, like all of its [`Steering`](super::Steering).

use patronus_crypto::replay::ReplayWindow;

/// The first sequence number that is not one of before: those are 32 bits on the wire, and more here.
const FIRST: u64 = 1 << 32;

/// Packets that come or go twice with lanes of one number, on whichever path: one side's lanes of a number are all one worker's.
pub struct Doubles {
    pub(super) number: u8,
    /// The sequence number of the next one to go.
    next: u32,
    /// The newest that came, and those before it; 0: none.
    newest: u64,
    window: ReplayWindow,
}

impl Doubles {
    /// For the lanes of this number.
    pub fn new(number: u8) -> Doubles {
        Doubles {
            number,
            next: 0,
            newest: 0,
            window: ReplayWindow::new(ReplayWindow::DEFAULT_BITS),
        }
    }

    pub(super) fn take_next(&mut self) -> u32 {
        let sequence = self.next;
        self.next = sequence.wrapping_add(1);
        sequence
    }

    /// Whether a packet that came is the first of its two. What is further behind the newest than the window reaches is not.
    pub fn accept(&mut self, sequence: u32) -> bool {
        let counter = match self.newest {
            0 => FIRST + u64::from(sequence),
            newest => {
                let ahead = sequence.wrapping_sub(newest as u32) as i32;
                newest.saturating_add_signed(ahead.into())
            }
        };
        let is_first = self.window.mark(counter);
        if is_first {
            self.newest = self.newest.max(counter);
        }
        is_first
    }

    /// The other side begins anew.
    pub(super) fn forget(&mut self) {
        self.newest = 0;
        self.window.clear();
    }
}
