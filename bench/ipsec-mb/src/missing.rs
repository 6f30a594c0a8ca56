//! In place of the binding where the library was not installed.

use crate::{Api, Op, Packet};

/// Nobody has one.
pub enum Manager {}

impl Manager {
    /// Always an error.
    pub fn new() -> Result<Manager, &'static str> {
        Err("not installed when this was built (Debian: libipsec-mb-dev, 1.3 or newer)")
    }

    /// Version and instructions.
    pub fn describe(&self) -> String {
        match *self {}
    }

    /// Not reached.
    pub fn work(&mut self, _: Api, _: Op, _: &mut [Packet<'_>]) -> usize {
        match *self {}
    }
}
