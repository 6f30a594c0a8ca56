//! A control that writes what it likes, where it can.

use crate::{LIMIT, eventually};
use patronus_abi::channel::{HelloRecord, PacketRecord, packet, place};
use patronus_netns::{Error, Result};
use patronus_sync::{Region, WordsMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

/// Numbers that look random and come again with the same seed (SplitMix64; G. L. Steele et al., OOPSLA 2014).
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next one.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next one below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// A control of which nothing is right but that it attaches.
pub struct RawControl {
    socket: OwnedFd,
    slots: OwnedFd,
    region: Region,
}

impl RawControl {
    /// Attaches.
    pub fn attach(path: &Path) -> Result<RawControl> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let mut found = None;
        // The one of before may not be gone yet in the engine's eyes.
        let attached = eventually(|| {
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
            let Ok(socket) = socket else { return false };
            let Ok(address) = SocketAddrUnix::new(path) else {
                return false;
            };
            if rustix::net::connect(&socket, &address).is_err() {
                return false;
            }
            found = RawControl::hear_hello(socket);
            found.is_some()
        });
        found
            .filter(|_| attached)
            .ok_or_else(|| Error::new("no engine lets us attach"))
    }

    fn hear_hello(socket: OwnedFd) -> Option<RawControl> {
        let limit = Timespec::try_from(LIMIT).ok()?;
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit)).ok()?;
        RawControl::begin(socket)
    }

    /// With a hello that lies in the socket already.
    pub fn begin(socket: OwnedFd) -> Option<RawControl> {
        let mut bytes = [0; size_of::<HelloRecord>()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(&socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
        let mut fds = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })?;
        let slots = fds.next()?;
        let region = Region::map(&slots, place::CONTROL_MAPPED).ok()?;
        Some(RawControl {
            socket,
            slots,
            region,
        })
    }

    /// Writes a word somewhere in what is mapped.
    pub fn word(&self, at: usize, value: u64) {
        self.region.store(at, value, Ordering::Release);
    }

    /// Writes into a slot.
    pub fn slot(&self, slot: usize, bytes: &[u8]) {
        let at = (place::SLOTS + slot * place::SLOT) as u64;
        let _ = rustix::io::pwrite(&self.slots, bytes, at);
    }

    /// Sends a packet. False if the engine does not want to hear any more.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, flags);
        !matches!(sent, Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET))
    }

    /// Says that something stands in a slot.
    pub fn publish(&self, slot: u32, generation: u64, keys: u32, fds: &[BorrowedFd<'_>]) -> bool {
        let mut record = PacketRecord::of(packet::PUBLISH);
        record.slot = slot.into();
        record.generation = generation.into();
        record.keys = keys.into();
        self.send(record.as_bytes(), fds)
    }

    /// Takes whatever lies in the socket.
    pub fn drain(&self) {
        while rustix::net::recv(&self.socket, &mut [0; 512], RecvFlags::DONTWAIT)
            .is_ok_and(|(len, _)| len > 0)
        {}
    }
}

impl AsFd for RawControl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
