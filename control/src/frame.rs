//! Frames on the control socket: the length of what follows in four bytes, the highest first, then so many bytes of JSON.
//!
//! A descriptor may come along with a frame's first byte (SCM_RIGHTS, unix(7)).
//!
//! Called by both ends, on the thread that has the connection. A length beyond the limit is an error before anything of it is read, and what is read is
//! taken piece by piece, so that nobody can have memory reserved by saying a number.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Bytes of a frame's content at most.
pub const FRAME_MAX: usize = 8 << 20;

/// Reads a frame. `None` at the end of input, if that is where a frame might begin.
pub fn read(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        match from.read(&mut length[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(too_long(length));
    }
    let mut content = Vec::new();
    from.take(length as u64).read_to_end(&mut content)?;
    match content.len() == length {
        true => Ok(Some(content)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads a frame, and the descriptor that comes along with it if one does.
pub fn read_with(from: &mut UnixStream) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0];
    let received = recvmsg(
        from.as_fd(),
        &mut [IoSliceMut::new(&mut first)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            descriptor = fds.next();
        }
    }
    let front = &first[..received.bytes];
    let content = read(&mut front.chain(from))?;
    Ok(content.map(|content| (content, descriptor)))
}

/// Writes a frame, at once, and has a descriptor come along with it.
pub fn write_with(to: &mut UnixStream, content: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let Some(descriptor) = descriptor else {
        return write(to, content);
    };
    let whole = whole(content)?;
    let fds = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(
        to.as_fd(),
        &[IoSlice::new(&whole)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    to.write_all(&whole[sent..])
}

/// Writes a frame, at once.
pub fn write(to: &mut impl Write, content: &[u8]) -> io::Result<()> {
    to.write_all(&whole(content)?)
}

fn whole(content: &[u8]) -> io::Result<Vec<u8>> {
    if content.len() > FRAME_MAX {
        return Err(too_long(content.len()));
    }
    let mut whole = Vec::with_capacity(4 + content.len());
    whole.extend((content.len() as u32).to_be_bytes());
    whole.extend(content);
    Ok(whole)
}

fn too_long(length: usize) -> io::Error {
    let said = format!("a message of {length} bytes: at most {FRAME_MAX} are possible");
    io::Error::new(io::ErrorKind::InvalidData, said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5)) {
            let mut bytes = Vec::new();
            for frame in &frames {
                write(&mut bytes, frame).expect("memory");
            }
            let mut rest = &bytes[..];
            for frame in frames {
                prop_assert_eq!(read(&mut rest).expect("a frame"), Some(frame));
            }
            prop_assert_eq!(read(&mut rest).expect("the end"), None);
        }

        #[test]
        fn random_bytes_are_refused_or_a_frame(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(Some(frame)) = read(&mut &bytes[..]) {
                prop_assert_eq!(&bytes[4..4 + frame.len()], &frame[..]);
            }
        }
    }

    #[test]
    fn a_length_reserves_nothing() {
        let error = read(&mut &[0x00, 0x80, 0x00, 0x01, 1][..]).expect_err("a byte more than there may be");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = read(&mut &[0x00, 0x80, 0x00, 0x00, 1][..]).expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
