//! The calls into shim.c.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::NonNull;

use crate::{Api, BURST_MAX, Op, Packet};

/// `IMB_MGR`, which only shim.c looks into.
#[repr(C)]
struct Mgr {
    opaque: [u8; 0],
}

unsafe extern "C" {
    fn patronus_imb_new() -> *mut Mgr;
    fn patronus_imb_free(mgr: *mut Mgr);
    fn patronus_imb_version() -> *const c_char;
    fn patronus_imb_arch(mgr: *const Mgr) -> *const c_char;
    fn patronus_imb_direct(mgr: *mut Mgr, packets: *const Packet<'_>, count: usize, open: c_int) -> usize;
    fn patronus_imb_burst(mgr: *mut Mgr, packets: *const Packet<'_>, count: usize, open: c_int) -> usize;
}

/// The library's state. Of one thread: it is neither `Send` nor `Sync`.
pub struct Manager(NonNull<Mgr>);

impl Manager {
    /// A manager for the best instructions of this processor.
    pub fn new() -> Result<Manager, &'static str> {
        // SAFETY: takes nothing, and gives a manager that is ours or null.
        let mgr = unsafe { patronus_imb_new() };
        NonNull::new(mgr)
            .map(Manager)
            .ok_or("the library refuses this processor")
    }

    /// Version and instructions.
    pub fn describe(&self) -> String {
        // SAFETY: the manager is ours; both strings are constants of the library and of the shim.
        let (version, arch) = unsafe {
            (
                CStr::from_ptr(patronus_imb_version()),
                CStr::from_ptr(patronus_imb_arch(self.0.as_ptr())),
            )
        };
        format!("{}, {}", version.to_string_lossy(), arch.to_string_lossy())
    }

    /// Seals or opens all packets. Returns how many were not done, or not authentic.
    ///
    /// # Panics
    ///
    /// If there are more than [`BURST_MAX`].
    pub fn work(&mut self, api: Api, op: Op, packets: &mut [Packet<'_>]) -> usize {
        assert!(packets.len() <= BURST_MAX, "{} packets in a call", packets.len());
        let call = match api {
            Api::Direct => patronus_imb_direct,
            Api::Burst => patronus_imb_burst,
        };
        let open = c_int::from(op == Op::Open);
        // SAFETY: the manager is ours and nobody else's for the call. Each packet has the layout of the shim's struct and borrows what it
        // points to for longer than the call: a key of 32 bytes to read, and a text of `len` bytes with 16 behind it to write.
        unsafe { call(self.0.as_ptr(), packets.as_ptr(), packets.len(), open) }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // SAFETY: the manager is ours and not used again.
        unsafe { patronus_imb_free(self.0.as_ptr()) }
    }
}
