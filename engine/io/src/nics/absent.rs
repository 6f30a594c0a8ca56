//! What stands for NICs where DPDK was not built in: there are none, so nobody calls anything but [`Nics::start`].

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use patronus_mem::Arena;

use super::{NicEvent, NicQueues, NicsConfig, NicsError};
use crate::PortCounters;
use crate::exception::{Exception, Take};

/// There are none.
pub struct Nics(Infallible);

impl Nics {
    /// Is refused.
    pub fn start(_config: &NicsConfig, _arena: &'static Arena) -> Result<Nics, NicsError> {
        Err(NicsError::NotBuiltIn)
    }

    /// See the module.
    pub fn run(
        &mut self,
        _now: fn() -> Instant,
        _say: impl FnMut(usize, Exception) + Clone + Send + 'static,
    ) -> io::Result<()> {
        match self.0 {}
    }

    /// See the module.
    pub fn number(&self, _interface: &str) -> Option<usize> {
        match self.0 {}
    }

    /// See the module.
    pub fn ifindex(&self, _nic: usize) -> u32 {
        match self.0 {}
    }

    /// See the module.
    pub fn mac(&self, _nic: usize) -> [u8; 6] {
        match self.0 {}
    }

    /// See the module.
    pub fn host_counters(&self, _nic: usize) -> Option<&Arc<PortCounters>> {
        match self.0 {}
    }

    /// See the module.
    pub fn take_queues(&mut self, _nic: usize) -> NicQueues {
        match self.0 {}
    }

    /// See the module.
    pub fn set(&mut self, _nic: usize, _take: Option<Take>) -> io::Result<()> {
        match self.0 {}
    }

    /// See the module.
    pub fn tend(&mut self, _now: Instant, _say: impl FnMut(usize, NicEvent)) -> Instant {
        match self.0 {}
    }
}
