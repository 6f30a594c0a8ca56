//! Frames on the control socket: the length of what follows in four bytes, the highest first, then so many bytes of JSON.
//!
//! Called by both ends, on the thread that has the connection. A length beyond the limit is an error before anything of it is read, and what is read is
//! taken piece by piece, so that nobody can have memory reserved by saying a number.

use std::io::{self, Read, Write};

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
    from.by_ref().take(length as u64).read_to_end(&mut content)?;
    match content.len() == length {
        true => Ok(Some(content)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Writes a frame, at once.
pub fn write(to: &mut impl Write, content: &[u8]) -> io::Result<()> {
    if content.len() > FRAME_MAX {
        return Err(too_long(content.len()));
    }
    let mut whole = Vec::with_capacity(4 + content.len());
    whole.extend((content.len() as u32).to_be_bytes());
    whole.extend(content);
    to.write_all(&whole)
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
