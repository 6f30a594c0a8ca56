//! Receiving: several messages per call, each cut into the datagrams that the kernel coalesced.
//!
//! What does not fit into the caller's burst stays here for the next call, so nothing is lost and the next call needs no
//! system call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use patronus_mem::{BURST_MAX, Burst, FrameCache, Outer};

use super::message::{Control, Name, read_control, read_name};
use crate::scratch::Scratch;
use crate::{PortCounters, sys};

/// Messages received per call at most.
const MESSAGES: usize = 32;

/// Bytes received per message at most, one more than any UDP payload or coalesced train has.
const MESSAGE: usize = 65536;

/// Distance of the messages' buffers: with a power of two their beginnings would share one set of the first-level cache.
const STRIDE: usize = MESSAGE + 3 * 64;

/// Messages that every call asks for, if they fit.
const APPETITE: usize = 4;

/// Calls for one burst at most.
const CALLS_MAX: usize = BURST_MAX;

/// How many receives a socket that had nothing is left alone while another one has something.
const QUIET: u8 = 8;

/// A received message that is not yet handed on completely.
#[derive(Clone, Copy)]
struct Train {
    outer: Outer,
    /// Bytes of each datagram but the last; not 0.
    segment: usize,
    /// Bytes of the whole message.
    len: usize,
    /// Bytes already handed on.
    done: usize,
}

pub(super) struct Receiver {
    buffers: Scratch,
    names: Box<[Name; MESSAGES]>,
    controls: Box<[Control; MESSAGES]>,
    headers: Headers,
    /// The messages of the last call; those before `next` are finished.
    trains: Box<[Train; MESSAGES]>,
    next: usize,
    received: usize,
    /// Packets per message in the last call, to ask for no more messages than fit the burst.
    train_len: usize,
    /// Messages to ask for: about twice of what the last call gave, because each costs a little to ask for.
    appetite: usize,
    /// Which socket is asked next.
    turn: usize,
    /// For each socket, how many more receives it is left alone.
    quiet: [u8; SOCKETS],
}

/// Sockets of a port: for each family the listener and the path socket.
pub(super) const SOCKETS: usize = 4;

/// Those that may have received something.
pub(super) type Receiving<'a> = [Option<&'a OwnedFd>; SOCKETS];

/// The arguments of the system call. The pointers are written before each call and not used after it.
struct Headers {
    messages: Box<[libc::mmsghdr; MESSAGES]>,
    vectors: Box<[libc::iovec; MESSAGES]>,
}

// SAFETY: the pointers are dead between calls.
unsafe impl Send for Headers {}

impl Receiver {
    pub(super) fn new() -> Receiver {
        let train = Train {
            outer: Outer::NONE,
            segment: 1,
            len: 0,
            done: 0,
        };
        Receiver {
            buffers: Scratch::new(MESSAGES * STRIDE),
            names: Box::new([Name::EMPTY; MESSAGES]),
            controls: Box::new([Control::EMPTY; MESSAGES]),
            headers: Headers {
                // SAFETY: both are plain structures of integers and pointers, for which zero is a value.
                messages: Box::new(unsafe { std::mem::zeroed() }),
                // SAFETY: as above.
                vectors: Box::new(unsafe { std::mem::zeroed() }),
            },
            trains: Box::new([train; MESSAGES]),
            next: 0,
            received: 0,
            train_len: 1,
            appetite: APPETITE,
            turn: 0,
            quiet: [0; SOCKETS],
        }
    }

    /// Appends received packets to `burst`, first what is left from the last call. Returns how many.
    pub(super) fn receive(
        &mut self,
        sockets: &Receiving<'_>,
        frames: &mut FrameCache,
        burst: &mut Burst,
        counters: &PortCounters,
    ) -> io::Result<usize> {
        let before = burst.len();
        self.hand_on(frames, burst, counters);
        // Datagrams that are dropped take no room, so the calls are limited as well.
        for _ in 0..CALLS_MAX {
            if burst.room() == 0 {
                break;
            }
            let want = (burst.room() / self.train_len).clamp(1, self.appetite);
            self.fill(sockets, want, counters)?;
            let all = self.received == want;
            self.hand_on(frames, burst, counters);
            if !all {
                break;
            }
        }
        Ok(burst.len() - before)
    }

    /// Whether datagrams of the last call are still here.
    pub(super) fn has_pending(&self) -> bool {
        self.next < self.received
    }

    /// Receives up to `want` messages from one socket: the one whose turn it is, or the next that has something.
    fn fill(&mut self, sockets: &Receiving<'_>, want: usize, counters: &PortCounters) -> io::Result<()> {
        (self.next, self.received) = (0, 0);
        for step in 0..SOCKETS {
            let at = (self.turn + step) % SOCKETS;
            let Some(socket) = sockets[at] else { continue };
            self.received = self.call(socket.as_fd(), want, counters)?;
            if self.received > 0 {
                self.give_turn(at, sockets);
                break;
            }
            self.quiet[at] = QUIET;
        }
        Ok(())
    }

    /// The next socket after `at` that was not found empty a short while ago is asked next; `at` again if there is none.
    fn give_turn(&mut self, at: usize, sockets: &Receiving<'_>) {
        self.turn = at;
        for other in (1..SOCKETS).map(|step| (at + step) % SOCKETS) {
            if sockets[other].is_none() {
                continue;
            }
            if self.quiet[other] == 0 {
                self.turn = other;
                return;
            }
            self.quiet[other] -= 1;
        }
    }

    /// One system call; the messages become trains. Returns how many there are.
    fn call(&mut self, fd: BorrowedFd<'_>, want: usize, counters: &PortCounters) -> io::Result<usize> {
        self.point_headers(want);
        // SAFETY: `point_headers` has just set the first `want` headers to buffers that are owned by `self` and not borrowed
        // until the call returns.
        let count = match unsafe { sys::recvmmsg(fd, &mut self.headers.messages[..want]) } {
            Ok(count) => count.min(want),
            Err(error) if is_transient(&error) => 0,
            Err(error) => return Err(error),
        };
        let mut packets = 0;
        for index in 0..count {
            packets += self.read_train(index, counters);
        }
        if let Some(average) = packets.checked_div(count) {
            counters.rx_calls.add(1);
            self.train_len = average.max(1);
            self.appetite = (2 * count).clamp(APPETITE, MESSAGES);
        }
        Ok(count)
    }

    fn point_headers(&mut self, want: usize) {
        for index in 0..want {
            let buffer = &mut self.buffers[index * STRIDE..][..MESSAGE];
            let vector = &mut self.headers.vectors[index];
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = MESSAGE;
            let header = &mut self.headers.messages[index].msg_hdr;
            header.msg_name = self.names[index].0.as_mut_ptr().cast();
            header.msg_namelen = self.names[index].0.len() as _;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = self.controls[index].0.len() as _;
            header.msg_flags = 0;
        }
    }

    /// Reads what the kernel wrote about message `index`; returns how many packets it holds.
    fn read_train(&mut self, index: usize, counters: &PortCounters) -> usize {
        let message = &self.headers.messages[index];
        let header = &message.msg_hdr;
        let name = &self.names[index].0;
        let name = &name[..name.len().min(header.msg_namelen as _)];
        let control = &self.controls[index].0;
        let control = &control[..control.len().min(header.msg_controllen as _)];
        let len = (message.msg_len as usize).min(MESSAGE);
        let train = &mut self.trains[index];
        // A message without its control part may be a train of unknown segments.
        let cut_off = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        let Some(remote) = read_name(name).filter(|_| !cut_off) else {
            counters.rx_malformed.add(1);
            *train = Train {
                outer: Outer::NONE,
                segment: 1,
                len: 0,
                done: 1,
            };
            return 0;
        };
        let ancillary = read_control(control);
        let mut outer = Outer::new(remote);
        outer.set_local(ancillary.local, ancillary.ifindex);
        outer.set_tos(ancillary.tos);
        let segment = if ancillary.segment == 0 {
            len.max(1)
        } else {
            ancillary.segment
        };
        *train = Train {
            outer,
            segment,
            len,
            done: 0,
        };
        len.div_ceil(segment).max(1)
    }

    /// Moves packets into the burst until it is full or nothing is left.
    fn hand_on(&mut self, frames: &mut FrameCache, burst: &mut Burst, counters: &PortCounters) {
        let (mut packets, mut bytes) = (0, 0);
        while self.next < self.received && burst.room() > 0 {
            let buffer = &self.buffers[self.next * STRIDE..][..MESSAGE];
            let train = &mut self.trains[self.next];
            let Some((start, len)) = train.cut() else {
                self.next += 1;
                continue;
            };
            let Some(mut pkt) = frames.alloc_for(len) else {
                counters.rx_no_frame.add(1);
                continue;
            };
            pkt.append(len).copy_from_slice(&buffer[start..start + len]);
            *pkt.outer_mut() = train.outer;
            burst.push(pkt);
            packets += 1;
            bytes += len as u64;
        }
        counters.rx_packets.add(packets);
        counters.rx_bytes.add(bytes);
    }
}

impl Train {
    /// The next datagram's start and length; `None` after the last. An empty message is one empty datagram.
    fn cut(&mut self) -> Option<(usize, usize)> {
        let start = self.done;
        if start >= self.len.max(1) {
            return None;
        }
        let len = self.segment.min(self.len - start);
        self.done = start + len.max(1);
        Some((start, len))
    }
}

/// Errors that say nothing about the socket as a whole: nothing to read, no memory at the moment, or the fate of some
/// earlier datagram.
fn is_transient(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        None | Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EINVAL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn c65_a_train_is_cut_as_the_kernel_coalesced_it(len in 0..MESSAGE, segment in 1..70_000_usize) {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let mut expected: Vec<&[u8]> = bytes.chunks(segment).collect();
            if len == 0 {
                expected.push(&[]);
            }
            let mut train = Train { outer: Outer::NONE, segment, len, done: 0 };
            let cuts: Vec<_> = std::iter::from_fn(|| train.cut()).map(|(start, len)| &bytes[start..start + len]).collect();
            prop_assert_eq!(cuts, expected);
            prop_assert_eq!(train.cut(), None);
        }
    }

    #[test]
    fn a_socket_with_nothing_is_left_alone_for_a_while() {
        let (null, mut receiver) = (
            std::fs::File::open("/dev/null").expect("null").into(),
            Receiver::new(),
        );
        let sockets: Receiving<'_> = [Some(&null), None, Some(&null), None];
        receiver.quiet = [0, 0, QUIET, 0];
        let turns: Vec<usize> = (0..QUIET + 2)
            .map(|_| {
                receiver.give_turn(0, &sockets);
                receiver.turn
            })
            .collect();
        assert_eq!(turns.iter().position(|turn| *turn == 2), Some(usize::from(QUIET)));
        assert!(
            turns.iter().all(|turn| [0, 2].contains(turn)),
            "one that is there"
        );
    }

    #[test]
    fn busy_sockets_take_turns() {
        let (null, mut receiver) = (
            std::fs::File::open("/dev/null").expect("null").into(),
            Receiver::new(),
        );
        let turns: Vec<usize> = (0..8)
            .map(|_| {
                receiver.give_turn(receiver.turn, &[Some(&null); SOCKETS]);
                receiver.turn
            })
            .collect();
        assert_eq!(turns, [1, 2, 3, 0, 1, 2, 3, 0]);
    }

    #[test]
    fn c72_only_a_broken_socket_is_an_error() {
        for errno in [
            libc::EAGAIN,
            libc::ECONNREFUSED,
            libc::ENOMEM,
            libc::ENETDOWN,
            libc::EHOSTUNREACH,
        ] {
            assert!(is_transient(&io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::EBADF, libc::ENOTSOCK, libc::EFAULT, libc::EINVAL] {
            assert!(!is_transient(&io::Error::from_raw_os_error(errno)));
        }
    }
}
