//! Network namespaces and packet sockets for tests of ports: each test runs on a thread in a namespace of its own, which goes with
//! the thread. What needs privileges is skipped, with a word, where there are none.
#![allow(dead_code, reason = "every test binary uses another part")]

pub mod frame;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use patronus_io::exception::Nic;

/// Runs `ip` with these arguments.
pub fn ip(args: &str) {
    run("ip", args);
}

/// Runs a program with arguments that blanks separate.
pub fn run(program: &str, args: &str) {
    let status = Command::new(program).args(args.split_whitespace()).status();
    let status = status.unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(status.success(), "{program} {args}");
}

/// Moves this thread to a network namespace of its own.
pub fn unshare() -> io::Result<()> {
    // SAFETY: only this thread moves to the new namespace; no descriptors or memory change.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs a test on a thread in a network namespace of its own, with the loopback device up.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(error) = unshare() {
            eprintln!("skipped: no right to make a network namespace ({error})");
            return;
        }
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The link address of `va`, ours.
pub const OURS: [u8; 6] = [2, 0, 0, 0, 0, 0xa];

/// A veth pair, `va` (ours, 192.0.2.1/24 and 2001:db8::1/64) and `vb` (the network's), without addresses that the kernel makes itself,
/// and the messages that go with them.
pub fn veth() {
    ip("link add va address 02:00:00:00:00:0a type veth peer name vb");
    ip("link set va addrgenmode none");
    ip("link set vb addrgenmode none");
    ip("addr add 192.0.2.1/24 dev va");
    ip("addr add 2001:db8::1/64 dev va nodad");
    ip("link set va up");
    ip("link set vb up");
}

/// The number of an interface.
pub fn ifindex(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).expect("a name");
    // SAFETY: a string that ends with zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// A packet socket on an interface for all protocols.
pub fn packet_socket(name: &str) -> OwnedFd {
    // SAFETY: plain system calls on a new descriptor; `address` outlives the call that reads it.
    unsafe {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let fd = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_NONBLOCK,
            protocol.into(),
        );
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = ifindex(name) as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len), 0);
        fd
    }
}

/// One frame of a packet socket's, if there is one.
pub fn receive(fd: &OwnedFd) -> Option<Vec<u8>> {
    let mut data = vec![0; 16 << 10];
    let (len, _) = rustix::net::recv(fd, &mut data, rustix::net::RecvFlags::empty()).ok()?;
    data.truncate(len);
    Some(data)
}

/// Puts a frame into the interface of a packet socket.
pub fn send(fd: &OwnedFd, frame: &[u8]) {
    rustix::net::send(fd, frame, rustix::net::SendFlags::empty()).expect("send");
}

/// Whether a descriptor becomes readable within 20 ms.
pub fn readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)).expect("poll") > 0
}

/// What a host interface stands for in a test whose device has no address, as DPDK's rings have none: a NIC with ours that is always up.
pub struct Steady;

impl Nic for Steady {
    fn mac(&self) -> [u8; 6] {
        OURS
    }

    fn mtu(&self) -> u32 {
        1500
    }

    fn set_mtu(&self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn is_up(&self) -> bool {
        true
    }
}
