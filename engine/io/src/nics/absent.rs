//! What stands for NICs where DPDK was not built in: nothing can.

use std::convert::Infallible;
use std::time::Instant;

use patronus_mem::Arena;

use super::{NicEvent, NicPorts, NicsConfig, NicsError};

/// There is none.
pub struct Nics(Infallible);

impl Nics {
    /// Is refused.
    pub fn start(_config: &NicsConfig, _arena: &'static Arena) -> Result<Nics, NicsError> {
        Err(NicsError::NotBuiltIn)
    }

    /// Never called.
    pub fn take_ports(&mut self, _nic: usize) -> NicPorts {
        match self.0 {}
    }

    /// Never called.
    pub fn tend(&mut self, _now: Instant, _say: impl FnMut(usize, NicEvent)) -> Instant {
        match self.0 {}
    }
}
