//! The four messages on the wire: sizes, types and fields (WireGuard paper, section 5.4).
//!
//! Called by the worker for every datagram ([`kind`], [`DataHeader`]) and by the slow path for handshake messages. Every
//! integer is little-endian. Nothing here looks at keys: what is returned has the right shape and no more.

/// Type of a handshake initiation.
pub const MSG_INITIATION: u32 = 1;
/// Type of a handshake response.
pub const MSG_RESPONSE: u32 = 2;
/// Type of a cookie reply.
pub const MSG_COOKIE_REPLY: u32 = 3;
/// Type of a data message, keepalives among them.
pub const MSG_DATA: u32 = 4;

/// Length of a handshake initiation, bytes.
pub const INITIATION_LEN: usize = 148;
/// Length of a handshake response, bytes.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply, bytes.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length of what stands before the cipher text of a data message, bytes.
pub const HEADER: usize = 16;
/// Length of an authentication tag, bytes.
pub const TAG: usize = 16;
/// Length of the shortest data message, a keepalive, bytes.
pub const DATA_MIN: usize = HEADER + TAG;

/// Length of each of the two MACs at the end of a handshake initiation or response, bytes.
pub const MAC: usize = 16;

/// Which of the four messages a datagram is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Opens a handshake.
    Initiation,
    /// Answers an initiation.
    Response,
    /// Asks the sender of a handshake message to prove its address.
    CookieReply,
    /// Carries a packet.
    Data,
}

/// Why a datagram is none of the four messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The length does not belong to the type, or there is no room for a type.
    Length,
    /// The type is unknown, or one of the three reserved bytes after it is not zero.
    Type,
}

/// Which message a datagram is, by its type, its reserved bytes and its length.
#[inline]
pub fn kind(datagram: &[u8]) -> Result<Kind, Malformed> {
    let Some(&word) = datagram.first_chunk::<4>() else {
        return Err(Malformed::Length);
    };
    // Type and reserved bytes are compared as one word, so that a reserved byte is never overlooked.
    let (kind, right_length) = match u32::from_le_bytes(word) {
        MSG_INITIATION => (Kind::Initiation, datagram.len() == INITIATION_LEN),
        MSG_RESPONSE => (Kind::Response, datagram.len() == RESPONSE_LEN),
        MSG_COOKIE_REPLY => (Kind::CookieReply, datagram.len() == COOKIE_REPLY_LEN),
        MSG_DATA => (Kind::Data, datagram.len() >= DATA_MIN),
        _ => return Err(Malformed::Type),
    };
    if right_length {
        Ok(kind)
    } else {
        Err(Malformed::Length)
    }
}

/// A datagram taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// A handshake initiation.
    Initiation(Initiation),
    /// A handshake response.
    Response(Response),
    /// A cookie reply.
    CookieReply(CookieReply),
    /// A data message: header, and cipher text with its tag.
    Data(DataHeader, &'a [u8]),
}

/// Takes a datagram apart.
pub fn parse(datagram: &[u8]) -> Result<Message<'_>, Malformed> {
    kind(datagram)?;
    if let Ok(message) = <&[u8; INITIATION_LEN]>::try_from(datagram)
        && datagram[0] == MSG_INITIATION as u8
    {
        return Ok(Message::Initiation(Initiation::decode(message)));
    }
    if let Ok(message) = <&[u8; RESPONSE_LEN]>::try_from(datagram)
        && datagram[0] == MSG_RESPONSE as u8
    {
        return Ok(Message::Response(Response::decode(message)));
    }
    if let Ok(message) = <&[u8; COOKIE_REPLY_LEN]>::try_from(datagram)
        && datagram[0] == MSG_COOKIE_REPLY as u8
    {
        return Ok(Message::CookieReply(CookieReply::decode(message)));
    }
    let (header, sealed) = datagram.split_first_chunk::<HEADER>().ok_or(Malformed::Length)?;
    Ok(Message::Data(DataHeader::read(header), sealed))
}

/// What stands before the cipher text of a data message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataHeader {
    /// The index that the receiver gave the session.
    pub receiver: u32,
    /// The packet's counter, from which its nonce is made.
    pub counter: u64,
}

impl DataHeader {
    /// Reads the header of a datagram that [`kind`] called data.
    #[inline]
    pub fn read(header: &[u8; HEADER]) -> DataHeader {
        DataHeader {
            receiver: u32::from_le_bytes(field(header, 4)),
            counter: u64::from_le_bytes(field(header, 8)),
        }
    }

    /// Writes the header, type and reserved bytes included.
    #[inline]
    pub fn write(&self, header: &mut [u8; HEADER]) {
        header[..4].copy_from_slice(&MSG_DATA.to_le_bytes());
        header[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        header[8..].copy_from_slice(&self.counter.to_le_bytes());
    }
}

/// A handshake initiation without its MACs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Initiation {
    /// The index under which the initiator wants to be answered.
    pub sender: u32,
    /// The initiator's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// The initiator's static public key, sealed.
    pub sealed_static: [u8; 32 + TAG],
    /// The initiator's timestamp, sealed.
    pub sealed_timestamp: [u8; 12 + TAG],
}

impl Initiation {
    /// Reads the fields.
    pub fn decode(message: &[u8; INITIATION_LEN]) -> Initiation {
        Initiation {
            sender: u32::from_le_bytes(field(message, 4)),
            ephemeral: field(message, 8),
            sealed_static: field(message, 40),
            sealed_timestamp: field(message, 88),
        }
    }

    /// The message, with MACs of zeros.
    pub fn encode(&self) -> [u8; INITIATION_LEN] {
        let mut message = [0; INITIATION_LEN];
        message[..4].copy_from_slice(&MSG_INITIATION.to_le_bytes());
        message[4..8].copy_from_slice(&self.sender.to_le_bytes());
        message[8..40].copy_from_slice(&self.ephemeral);
        message[40..88].copy_from_slice(&self.sealed_static);
        message[88..116].copy_from_slice(&self.sealed_timestamp);
        message
    }
}

/// A handshake response without its MACs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// The index under which the responder addresses the session.
    pub sender: u32,
    /// The initiation's sender index.
    pub receiver: u32,
    /// The responder's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// The tag over an empty text: proof that the responder knows all keys.
    pub sealed_empty: [u8; TAG],
}

impl Response {
    /// Reads the fields.
    pub fn decode(message: &[u8; RESPONSE_LEN]) -> Response {
        Response {
            sender: u32::from_le_bytes(field(message, 4)),
            receiver: u32::from_le_bytes(field(message, 8)),
            ephemeral: field(message, 12),
            sealed_empty: field(message, 44),
        }
    }

    /// The message, with MACs of zeros.
    pub fn encode(&self) -> [u8; RESPONSE_LEN] {
        let mut message = [0; RESPONSE_LEN];
        message[..4].copy_from_slice(&MSG_RESPONSE.to_le_bytes());
        message[4..8].copy_from_slice(&self.sender.to_le_bytes());
        message[8..12].copy_from_slice(&self.receiver.to_le_bytes());
        message[12..44].copy_from_slice(&self.ephemeral);
        message[44..60].copy_from_slice(&self.sealed_empty);
        message
    }
}

/// A cookie reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CookieReply {
    /// The sender index of the message that is answered.
    pub receiver: u32,
    /// The nonce under which the cookie is sealed.
    pub nonce: [u8; 24],
    /// The cookie, sealed.
    pub sealed_cookie: [u8; 16 + TAG],
}

impl CookieReply {
    /// Reads the fields.
    pub fn decode(message: &[u8; COOKIE_REPLY_LEN]) -> CookieReply {
        CookieReply {
            receiver: u32::from_le_bytes(field(message, 4)),
            nonce: field(message, 8),
            sealed_cookie: field(message, 32),
        }
    }

    /// The message.
    pub fn encode(&self) -> [u8; COOKIE_REPLY_LEN] {
        let mut message = [0; COOKIE_REPLY_LEN];
        message[..4].copy_from_slice(&MSG_COOKIE_REPLY.to_le_bytes());
        message[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        message[8..32].copy_from_slice(&self.nonce);
        message[32..].copy_from_slice(&self.sealed_cookie);
        message
    }
}

/// The `N` bytes at `at` of a message that is long enough for them: every caller's offset is a constant.
fn field<const N: usize>(message: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&message[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of `len` bytes whose every byte behind the type differs from its neighbours.
    fn numbered<const LEN: usize>(kind: u32) -> [u8; LEN] {
        let mut message = [0; LEN];
        for (n, byte) in message.iter_mut().enumerate() {
            *byte = n as u8;
        }
        message[..4].copy_from_slice(&kind.to_le_bytes());
        message
    }

    #[test]
    fn c02_every_other_length_is_refused() {
        let lengths = [(1, INITIATION_LEN), (2, RESPONSE_LEN), (3, COOKIE_REPLY_LEN)];
        for (kind_byte, right) in lengths {
            for len in 0..2048 {
                let mut datagram = vec![0; len];
                if let Some(first) = datagram.first_mut() {
                    *first = kind_byte;
                }
                assert_eq!(
                    kind(&datagram).is_ok(),
                    len == right,
                    "type {kind_byte}, {len} bytes"
                );
                assert_eq!(
                    parse(&datagram).is_ok(),
                    len == right,
                    "type {kind_byte}, {len} bytes"
                );
            }
        }
        for len in 4..2048 {
            let mut datagram = vec![0; len];
            datagram[0] = 4;
            assert_eq!(
                kind(&datagram),
                if len >= 32 {
                    Ok(Kind::Data)
                } else {
                    Err(Malformed::Length)
                }
            );
        }
    }

    #[test]
    fn c03_reserved_bytes_must_be_zero() {
        let right = [INITIATION_LEN, RESPONSE_LEN, COOKIE_REPLY_LEN, DATA_MIN];
        for (kind_byte, len) in (1u8..).zip(right) {
            let mut datagram = vec![0; len];
            datagram[0] = kind_byte;
            assert!(kind(&datagram).is_ok());
            for bit in 0..24 {
                let at = 1 + bit / 8;
                datagram[at] ^= 1 << (bit % 8);
                assert_eq!(kind(&datagram), Err(Malformed::Type));
                datagram[at] = 0;
            }
        }
        for kind_byte in (0..=255).filter(|kind| !(1..=4).contains(kind)) {
            assert_eq!(kind(&[kind_byte; 1]), Err(Malformed::Length));
            for len in right {
                let mut datagram = vec![0; len];
                datagram[0] = kind_byte;
                assert_eq!(kind(&datagram), Err(Malformed::Type));
            }
        }
    }

    #[test]
    fn c04_integers_are_little_endian() {
        let mut header = [0; HEADER];
        DataHeader {
            receiver: 0x0403_0201,
            counter: 0x0c0b_0a09_0807_0605,
        }
        .write(&mut header);
        assert_eq!(header, [4, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(
            DataHeader::read(&header),
            DataHeader {
                receiver: 0x0403_0201,
                counter: 0x0c0b_0a09_0807_0605
            }
        );
    }

    #[test]
    fn fields_stand_where_the_paper_puts_them() {
        let message = numbered::<INITIATION_LEN>(MSG_INITIATION);
        let Ok(Message::Initiation(initiation)) = parse(&message) else {
            panic!("not an initiation")
        };
        assert_eq!(initiation.sender, u32::from_le_bytes([4, 5, 6, 7]));
        assert_eq!((initiation.ephemeral[0], initiation.ephemeral[31]), (8, 39));
        assert_eq!(
            (initiation.sealed_static[0], initiation.sealed_static[47]),
            (40, 87)
        );
        assert_eq!(
            (initiation.sealed_timestamp[0], initiation.sealed_timestamp[27]),
            (88, 115)
        );
        assert_eq!(initiation.encode()[..116], message[..116]);
        assert_eq!(initiation.encode()[116..], [0; 32]);

        let message = numbered::<RESPONSE_LEN>(MSG_RESPONSE);
        let Ok(Message::Response(response)) = parse(&message) else {
            panic!("not a response")
        };
        assert_eq!(response.sender, u32::from_le_bytes([4, 5, 6, 7]));
        assert_eq!(response.receiver, u32::from_le_bytes([8, 9, 10, 11]));
        assert_eq!((response.ephemeral[0], response.sealed_empty[0]), (12, 44));
        assert_eq!(response.encode()[..60], message[..60]);

        let message = numbered::<COOKIE_REPLY_LEN>(MSG_COOKIE_REPLY);
        let Ok(Message::CookieReply(reply)) = parse(&message) else {
            panic!("not a cookie reply")
        };
        assert_eq!((reply.nonce[0], reply.sealed_cookie[0]), (8, 32));
        assert_eq!(reply.encode(), message);

        let message = numbered::<40>(MSG_DATA);
        let Ok(Message::Data(header, sealed)) = parse(&message) else {
            panic!("not data")
        };
        assert_eq!(header.receiver, u32::from_le_bytes([4, 5, 6, 7]));
        assert_eq!(sealed, &message[16..]);
    }
}
