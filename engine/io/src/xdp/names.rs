//! The UDP port and the addresses whose datagrams a WAN link's program takes, in memory that the program shares with us.
//!
//! Made with the program by whoever may load one; written by the slow path, which may not, when the UDP port or an address
//! changes; read by the program for every frame. A frame that comes during a change may go to the kernel, which has a socket for it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bpf;

/// Addresses of each family. Datagrams to more go through the kernel.
pub(super) const ADDRESSES: usize = 8;
/// Words: the UDP port, the IPv4 addresses, the IPv6 addresses.
pub(super) const V4: usize = 1;
pub(super) const V6: usize = V4 + ADDRESSES;
const WORDS: usize = V6 + 4 * ADDRESSES;
/// No UDP port is equal to this.
const NO_PORT: u32 = u32::MAX;

type Words = [AtomicU32; WORDS];

/// What a link's program takes.
pub struct Names {
    map: OwnedFd,
    words: NonNull<Words>,
}

// SAFETY: the words are atomic, and the mapping stays where it is.
unsafe impl Send for Names {}
// SAFETY: as above.
unsafe impl Sync for Names {}

impl Names {
    /// Names of nothing.
    pub(super) fn new() -> io::Result<Names> {
        let names = Names::over(bpf::shared_value(size_of::<Words>() as u32)?)?;
        names.clear();
        Ok(names)
    }

    /// The names of a program that another process has made. Takes no rights.
    pub fn over(map: OwnedFd) -> io::Result<Names> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Words>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Names { map, words })
    }

    /// What another process gets at them by.
    pub fn map(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    fn words(&self) -> &Words {
        // SAFETY: the mapping is that long, aligned to a page, zero at first, and lives as long as this does.
        unsafe { self.words.as_ref() }
    }

    /// Takes nothing from now on: everything goes to the host.
    pub fn clear(&self) {
        self.words()[0].store(NO_PORT, Ordering::Relaxed);
    }

    /// Takes datagrams to this UDP port at these addresses.
    pub fn set(&self, port: u16, addresses: impl Iterator<Item = IpAddr>) {
        let (mut v4, mut v6) = ([0; ADDRESSES], [[0; 16]; ADDRESSES]);
        let (mut v4_left, mut v6_left) = (v4.iter_mut(), v6.iter_mut());
        for address in addresses {
            match address {
                IpAddr::V4(ip) => v4_left
                    .next()
                    .into_iter()
                    .for_each(|place| *place = u32::from_ne_bytes(ip.octets())),
                IpAddr::V6(ip) => v6_left.next().into_iter().for_each(|place| *place = ip.octets()),
            }
        }
        let v6 = v6.iter().flat_map(|ip| ip.as_chunks::<4>().0);
        let values = v4.into_iter().chain(v6.map(|octets| u32::from_ne_bytes(*octets)));
        for (word, value) in self.words()[V4..].iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        let port = u32::from(u16::from_ne_bytes(port.to_be_bytes()));
        self.words()[0].store(port, Ordering::Relaxed);
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody looks at any more. The program has the map, not the mapping.
        unsafe { libc::munmap(self.words.as_ptr().cast(), size_of::<Words>()) };
    }
}
