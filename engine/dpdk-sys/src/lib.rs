//! The system's DPDK (22.11 or newer) behind a shim in C, which owns every struct of DPDK's and calls its inline functions: once for a burst.
//! Without the feature `dpdk` there is nothing here.
//!
//! Called by `patronus-io` alone, which says on which threads and why that is sound. Functions that can fail return 0, or an `errno` with a minus.
#![cfg(feature = "dpdk")]

use std::ffi::{c_char, c_int, c_void};

/// Bytes of a name, the zero at its end included.
pub const NAME: usize = 64;

/// Bits of [`Info`]'s offloads: the IPv4 header's checksum, and UDP's, and TCP's; packets in several frames.
pub const OFFLOAD_IPV4: u32 = 1;
/// See [`OFFLOAD_IPV4`].
pub const OFFLOAD_UDP: u32 = 2;
/// See [`OFFLOAD_IPV4`].
pub const OFFLOAD_TCP: u32 = 4;
/// See [`OFFLOAD_IPV4`].
pub const OFFLOAD_SEGMENTS: u32 = 8;

/// A bit of [`Frame`]'s flags: the device found a checksum wrong.
pub const FRAME_BAD: u16 = 1;
/// The packet goes on elsewhere, [`pd_gather`] has it.
pub const FRAME_MORE: u16 = 2;

/// Takes `count` free frames, all or none; returns how many. The first argument is [`Worker::cache`] of the call of a worker, null for
/// calls from elsewhere.
pub type Take = unsafe extern "C" fn(cache: *mut c_void, frames: *mut u32, count: u32) -> u32;
/// Gives frames back, which are free.
pub type Give = unsafe extern "C" fn(cache: *mut c_void, frames: *const u32, count: u32);

/// The engine's frames, and memory for what DPDK wants to know of each.
#[repr(C)]
pub struct Memory {
    /// The first frame, aligned to `page`.
    pub frames: *mut c_void,
    /// Bytes from there, in whole pages.
    pub frames_len: usize,
    /// Bytes from one frame to the next.
    pub stride: usize,
    /// Bytes of a page.
    pub page: usize,
    /// Room for a header for each frame, aligned to cache lines.
    pub headers: *mut c_void,
    /// Bytes of it.
    pub headers_len: usize,
    /// Frames.
    pub count: u32,
    /// Where in a frame a device puts a packet.
    pub headroom: u32,
    /// And before which byte it must end.
    pub room: u32,
    /// What the engine knows of the first frame.
    pub lines: *mut u8,
    /// Bytes from there to what it knows of the next.
    pub line_stride: usize,
    /// See [`Take`].
    pub take: Take,
    /// See [`Give`].
    pub give: Give,
}

/// What a device can do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// What DPDK calls it.
    pub name: [c_char; NAME],
    /// Its driver.
    pub driver: [c_char; NAME],
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Pairs of queues at most.
    pub max_queues: u16,
    /// Bytes of the smallest MTU.
    pub min_mtu: u16,
    /// Bytes of the largest MTU.
    pub max_mtu: u16,
    /// NUMA node, or -1.
    pub numa: i32,
    /// Checksums that it looks at, and packets in several frames.
    pub rx_offloads: u32,
    /// Checksums that it makes, and packets in several frames.
    pub tx_offloads: u32,
    /// Not 0 if it spreads flows over queues.
    pub hashes: u8,
}

/// How a device is to be used.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Pairs of queues.
    pub queues: u16,
    /// Packets that a queue holds; the driver's limits win.
    pub descriptors: u16,
    /// Bytes of the largest packet behind the Ethernet header.
    pub mtu: u16,
    /// Not 0: takes frames for other Ethernet addresses as well.
    pub promiscuous: u8,
}

/// State of a link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// Megabits a second; 0 if not known.
    pub mbps: u32,
    /// Not 0: there is a carrier.
    pub up: u8,
    /// Not 0: both directions at once.
    pub full_duplex: u8,
}

/// What the driver has counted since the start.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Received.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Dropped by the device because nobody asked for them in time.
    pub rx_missed: u64,
    /// Received damaged.
    pub rx_errors: u64,
    /// Dropped because no frame was free.
    pub rx_no_frame: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Not sent by the device.
    pub tx_errors: u64,
}

/// Whose call it is, and where frames come from and go to that drivers take and give meanwhile.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Worker {
    /// The first argument of [`Take`] and [`Give`], which are called where the other cache is empty or full.
    pub cache: *mut c_void,
    /// The pool's cache that is this worker's, or [`NO_CACHE`].
    pub number: u32,
}

/// The number of no cache.
pub const NO_CACHE: u32 = u32::MAX;

/// A packet that is alone in a frame.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// What the engine knows of the frame.
    pub line: *mut u8,
    /// Bytes of the packet; in bits 32 to 47, where in the frame they begin; in bits 61 and 62, what is left to the device: nothing, the checksums of the IPv4 header and of
    /// UDP behind it (1), UDP's checksum behind an IPv6 header (2). What the engine has between is not looked at.
    pub place: u64,
}

/// A frame with a packet, or a part of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// Its number.
    pub frame: u32,
    /// Bytes of the packet.
    pub len: u32,
    /// Where in the frame they begin.
    pub offset: u16,
    /// [`FRAME_BAD`], [`FRAME_MORE`].
    pub flags: u16,
}

/// Where packets are sent.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    /// The port.
    pub port: u16,
    /// Its queue.
    pub queue: u16,
    /// Bytes of a packet at most.
    pub longest: u32,
    /// Checksums that the device makes: a bit for each kind that a packet may have left to it ([`Packet::place`]).
    pub checksums: u32,
}

/// What [`pd_receive`] is asked for, and what it has found.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Where packets are put.
    pub packets: *mut Packet,
    /// Where those are put that are more than that, and what comes behind the first such one. Moved to its end.
    pub frames: *mut Frame,
    /// Bytes of the packets.
    pub bytes: u64,
    /// How many there is room for in both places, 64 at most; how many packets there are.
    pub count: u16,
    /// How many frames.
    pub unusual: u16,
}

/// What [`pd_send`] has sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Bytes that the driver has taken.
    pub bytes: u64,
    /// Packets that it has taken; the frames of the others have been given back.
    pub packets: u16,
}

/// See [`pd_look`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// Not 0: the IPv4 header's checksum.
    pub ip: u8,
    /// Not 0: UDP's.
    pub udp: u8,
    /// Of IP; 0: not said.
    pub version: u8,
    /// Bytes of the link header.
    pub l2_len: u8,
    /// Bytes of the IP header.
    pub l3_len: u8,
}

unsafe extern "C" {
    /// Starts DPDK, once in a process's life. The strings must stay.
    pub fn pd_init(argc: c_int, argv: *mut *mut c_char) -> c_int;
    /// DPDK's name and version.
    pub fn pd_version() -> *const c_char;
    /// Bytes from one header to the next.
    pub fn pd_header_size() -> usize;
    /// Makes the one pool of frames, once, after [`pd_init`]. Everything in `memory` must stay.
    pub fn pd_pool(memory: *const Memory) -> c_int;
    /// 0 for a frame that devices find in two places; it must never be lent.
    pub fn pd_is_placed(frame: u32) -> c_int;
    /// How many frames drivers have, after [`pd_pool`].
    pub fn pd_held() -> u32;
    /// A cache of the pool's for a worker, or [`NO_CACHE`].
    pub fn pd_open_cache() -> u32;
    /// Gives all frames in it back, by [`Give`].
    pub fn pd_empty_cache(worker: Worker);
    /// Gives it up. It is empty.
    pub fn pd_close_cache(number: u32);
    /// Makes or finds a device on a bus.
    pub fn pd_attach(bus: *const c_char, device: *const c_char, arguments: *const c_char) -> c_int;
    /// Gives it up.
    pub fn pd_detach(bus: *const c_char, device: *const c_char) -> c_int;
    /// The number of a device's port.
    pub fn pd_find(device: *const c_char, port: *mut u16) -> c_int;
    /// What it can do.
    pub fn pd_info(port: u16, info: *mut Info) -> c_int;
    /// Starts it. After an error `step` says what could not be done: "cannot ...".
    pub fn pd_setup(port: u16, setup: *mut Setup, step: *mut *const c_char) -> c_int;
    /// Stops it; what its driver had is given back.
    pub fn pd_close(port: u16) -> c_int;
    /// Its link.
    pub fn pd_link(port: u16, link: *mut Link) -> c_int;
    /// What its driver has counted.
    pub fn pd_stats(port: u16, stats: *mut Stats) -> c_int;
    /// Another MTU.
    pub fn pd_set_mtu(port: u16, mtu: u16) -> c_int;
    /// Not 0 once the device was taken out.
    pub fn pd_is_removed(port: u16) -> c_int;
    /// Takes packets from a queue. The frames are the engine's, but for those with [`FRAME_MORE`].
    pub fn pd_receive(port: u16, queue: u16, worker: Worker, received: *mut Received);
    /// Copies a packet that was received in several frames, and gives them back. Returns its bytes; 0 if they do not fit.
    pub fn pd_gather(frame: u32, worker: Worker, to: *mut c_void, room: u32) -> u32;
    /// Sends packets (64 at most) up to the first one that is not in a frame of the pool's, or empty, or too long, or leaves what the device does not make.
    /// Their frames, which were the engine's, are given back sooner or later. Returns how many.
    pub fn pd_send(
        queue: *const Queue,
        worker: Worker,
        packets: *const Packet,
        count: u16,
        sent: *mut Sent,
    ) -> u16;
    /// Sends one packet that is in so many frames of the engine's, which are given back sooner or later. Returns whether the driver took it.
    pub fn pd_send_pieces(queue: *const Queue, worker: Worker, pieces: *const Frame, count: u16) -> u16;
    /// What a frame's header asks a device for, or has asked it for; for tests.
    pub fn pd_look(frame: u32, asked: *mut Asked);
}
