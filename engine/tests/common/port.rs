//! A port that does something of the test's just before it hands on what it received.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_io::loopback::LoopbackPort;
use patronus_io::{PORT_FDS, Port, PortCounters, PortError};
use patronus_mem::{Burst, FrameCache};

/// A loopback port and what happens while its owner reads from it.
pub struct Interrupted<F> {
    pub port: LoopbackPort,
    /// Called after packets were taken in, with their number.
    pub then: F,
}

impl<F: FnMut(usize) + Send> Port for Interrupted<F> {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let received = self.port.rx_burst(frames, burst)?;
        (self.then)(received);
        Ok(received)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        self.port.tx_burst(frames, burst)
    }

    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        self.port.wait_fds()
    }

    fn counters(&self) -> &Arc<PortCounters> {
        self.port.counters()
    }
}
