//! NICs driven from user space, by the system's DPDK: see docs/dpdk.md and docs/adr/0024.
//!
//! [`Dpdk`] is the library, started once in a process by its main thread; a [`Device`] is a NIC, or something that DPDK makes look like one, and
//! belongs to whoever owns the configuration; a [`DpdkPort`] is a pair of its queues and belongs to a worker. The packet memory is the arena: a frame
//! that arrives is a packet without a copy, and a packet leaves the same way. Drivers take free frames from the cache of the worker that calls them and give them
//! back to it; threads of DPDK's own use the arena's shared list.
//!
//! Sharing is sound because a frame has one owner: it is the driver's from when it is lent until the driver gives it back, which the shim checks by a word
//! beside each frame; and because a device's functions are called by one thread at a time, those of a queue by its port alone.

mod device;
mod error;
mod nic;
mod port;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt::Write;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use patronus_dpdk_sys as sys;
use patronus_mem::{Arena, FRAME, FrameCache, FrameRegion, HEADROOM, Lent, TAILROOM, Table};

pub use device::{Device, DeviceConfig, DeviceInfo, LinkState, Statistics};
pub use error::DpdkError;
pub use port::DpdkPort;

/// Levels of DPDK's own log lines that are printed on the standard error output: errors and what is worse.
const LOG_LEVEL: u32 = 4;

/// Where a driver's threads find frames outside of a worker's calls.
static ARENA: OnceLock<&'static Arena> = OnceLock::new();

/// A second start would be refused by DPDK with a worse reason.
static STARTED: AtomicBool = AtomicBool::new(false);

/// How DPDK is started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Mebibytes for what drivers need besides packets: rings of descriptors, tables.
    pub memory: u32,
    /// That memory is on huge pages, as devices need it. Without, only virtual devices can be used.
    pub huge_pages: bool,
    /// PCI addresses of the NICs that may be used.
    pub pci: Vec<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            memory: 64,
            huge_pages: true,
            pci: Vec::new(),
        }
    }
}

/// DPDK, running in this process.
pub struct Dpdk {
    arena: &'static Arena,
    /// DPDK's functions that make, change and look at devices are called by one thread at a time.
    control: Mutex<()>,
}

impl Dpdk {
    /// Starts DPDK over an arena's frames, for the rest of the process's life. Called before other threads take frames.
    pub fn start(options: &Options, arena: &'static Arena) -> Result<&'static Dpdk, DpdkError> {
        if STARTED.swap(true, Ordering::AcqRel) {
            return Err(DpdkError::Again);
        }
        ARENA.get_or_init(|| arena);
        init(options)?;
        make_pool(arena)?;
        Ok(Box::leak(Box::new(Dpdk {
            arena,
            control: Mutex::new(()),
        })))
    }

    /// DPDK's name and version.
    pub fn version() -> String {
        // SAFETY: the function returns a string that is part of the library.
        unsafe { CStr::from_ptr(sys::pd_version()) }
            .to_string_lossy()
            .into_owned()
    }

    /// Frames that are a driver's at the moment: in rings of descriptors and on their way out. None when all devices are closed.
    pub fn held(&self) -> usize {
        // SAFETY: the pool exists.
        unsafe { sys::pd_held() as usize }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For those who must not wait.
    fn try_lock(&self) -> Option<MutexGuard<'_, ()>> {
        match self.control.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Starts the library itself.
fn init(options: &Options) -> Result<(), DpdkError> {
    let mut arguments: Vec<*mut c_char> = Vec::new();
    for argument in arguments_of(options) {
        let argument = CString::new(argument).map_err(|_| DpdkError::Name)?;
        // DPDK keeps pointers into them.
        arguments.push(argument.into_raw());
    }
    // The list as C has it ends with a null pointer.
    let count = arguments.len();
    arguments.push(std::ptr::null_mut());
    // SAFETY: so many strings, which are never freed, nor is the list; DPDK is started once, which `STARTED` sees to.
    let rc = unsafe { sys::pd_init(count as c_int, Vec::leak(arguments).as_mut_ptr()) };
    check(rc).map_err(|error| DpdkError::Start(error, options.huge_pages))
}

fn arguments_of(options: &Options) -> Vec<String> {
    let mut arguments = vec![
        "patronus".to_owned(),
        "--no-telemetry".to_owned(),
        format!("--log-level={LOG_LEVEL}"),
        format!("-m{}", options.memory),
        // The calling thread stays where it may run; workers are threads of ours.
        format!("--lcores=0@({})", processors()),
    ];
    // Nothing is left in the file system either way, so that two engines do not meet there.
    match options.huge_pages {
        true => arguments.push("--in-memory".to_owned()),
        false => arguments.extend(["--no-huge".to_owned(), "--no-shconf".to_owned()]),
    }
    if options.pci.is_empty() {
        arguments.extend(["--no-pci".to_owned(), "--iova-mode=va".to_owned()]);
    }
    arguments.extend(options.pci.iter().map(|address| format!("--allow={address}")));
    arguments
}

/// The processors that the calling thread may run on, as DPDK wants to be told.
fn processors() -> String {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return "0".to_owned();
    };
    let mut list = String::new();
    for processor in (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)) {
        let separator = if list.is_empty() { "" } else { "," };
        let _ = write!(list, "{separator}{processor}");
    }
    list
}

/// Makes DPDK's pool over the arena's small frames.
fn make_pool(arena: &'static Arena) -> Result<(), DpdkError> {
    let FrameRegion {
        start,
        len,
        stride,
        page,
        lines,
        line,
    } = arena.region();
    let count = len / stride;
    // SAFETY: the function only computes.
    let header = unsafe { sys::pd_header_size() };
    let headers = Table::<u64>::new(count * header / size_of::<u64>(), || 0).map_err(DpdkError::Memory)?;
    // They stay as long as the frames.
    let headers: &'static mut Table<u64> = Box::leak(Box::new(headers));
    let memory = sys::Memory {
        frames: start.as_ptr().cast(),
        frames_len: len.next_multiple_of(page),
        stride,
        page,
        headers: headers.as_mut_ptr().cast(),
        headers_len: count * header,
        count: count as u32,
        headroom: HEADROOM as u32,
        room: (FRAME - TAILROOM) as u32,
        lines: lines.as_ptr(),
        line_stride: line,
        take,
        give,
    };
    // SAFETY: frames and headers live as long as the process, and are as the fields say: the region says that its last page is all its own, and tables begin
    // at a page. DPDK was started.
    check(unsafe { sys::pd_pool(&memory) }).map_err(DpdkError::Memory)?;
    withhold(arena, count)
}

/// Keeps frames for good that a device would find in two places, because they cross a page and it knows no addresses but physical ones.
fn withhold(arena: &'static Arena, count: usize) -> Result<(), DpdkError> {
    // SAFETY: the pool exists and has so many frames.
    let is_placed = |frame: u32| unsafe { sys::pd_is_placed(frame) != 0 };
    let crossing = (0..count as u32).filter(|frame| !is_placed(*frame)).count();
    if crossing == 0 {
        return Ok(());
    }
    if crossing > count / 16 {
        return Err(DpdkError::Pages);
    }
    let mut frames = FrameCache::new(arena);
    let (mut numbers, mut next) = (Vec::with_capacity(count), [0]);
    while frames.lend_free(&mut next) {
        numbers.extend(next);
    }
    numbers.retain(|frame| is_placed(*frame));
    // SAFETY: lent a moment ago, and nobody else was told of them.
    unsafe { frames.take_back_free(&numbers) };
    Ok(())
}

/// Free frames for a driver, all or none.
///
/// # Safety
/// `cache` is null or the cache that the worker gave to the call that this one is within; `frames` has room for `count`.
unsafe extern "C" fn take(cache: *mut c_void, frames: *mut u32, count: u32) -> u32 {
    // SAFETY: the caller vouches for it.
    let frames = unsafe { std::slice::from_raw_parts_mut(frames, count as usize) };
    // SAFETY: a worker does not use its cache while it is in a call that it gave it to.
    let lent = match unsafe { cache.cast::<FrameCache>().as_mut() } {
        Some(cache) => cache.lend_free(frames),
        None => ARENA
            .get()
            .is_some_and(|arena| FrameCache::new(arena).lend_free(frames)),
    };
    if lent { count } else { 0 }
}

/// What a driver is done with.
///
/// # Safety
/// As for [`take`]; the frames were lent by it, or sent, and the shim has seen that each is given back once.
unsafe extern "C" fn give(cache: *mut c_void, frames: *const u32, count: u32) {
    // SAFETY: the caller vouches for it.
    let frames = unsafe { std::slice::from_raw_parts(frames, count as usize) };
    // SAFETY: as for `take`; the shim has seen that each frame was lent and is given back once.
    unsafe {
        match cache.cast::<FrameCache>().as_mut() {
            Some(cache) => cache.take_back_free(frames),
            None => {
                if let Some(arena) = ARENA.get() {
                    FrameCache::new(arena).take_back_free(frames);
                }
            }
        }
    }
}

/// A frame that the driver is done with, as a packet.
fn lent(frame: &sys::Frame) -> Lent {
    Lent {
        frame: frame.frame,
        offset: u32::from(frame.offset),
        len: frame.len,
    }
}

/// What the shim returned: 0, or an error number with a minus.
fn check(rc: c_int) -> io::Result<()> {
    match rc {
        0.. => Ok(()),
        _ => Err(io::Error::from_raw_os_error(rc.saturating_neg())),
    }
}
