//! Datagrams: the shape of the four messages.

use patronus_crypto::messages::{
    COOKIE_REPLY_LEN, DATA_MIN, HEADER, INITIATION_LEN, Kind, MSG_COOKIE_REPLY, MSG_DATA, MSG_INITIATION,
    MSG_RESPONSE, Message, RESPONSE_LEN, kind, parse,
};

/// `kind` and `parse` agree with each other and with the wire format, and what was taken apart can be put together.
pub fn check(data: &[u8]) {
    let expected = match (data.first_chunk().copied().map(u32::from_le_bytes), data.len()) {
        (Some(MSG_INITIATION), INITIATION_LEN) => Some(Kind::Initiation),
        (Some(MSG_RESPONSE), RESPONSE_LEN) => Some(Kind::Response),
        (Some(MSG_COOKIE_REPLY), COOKIE_REPLY_LEN) => Some(Kind::CookieReply),
        (Some(MSG_DATA), DATA_MIN..) => Some(Kind::Data),
        _ => None,
    };
    assert_eq!(kind(data).ok(), expected);
    let again = match parse(data) {
        Err(_) => return assert_eq!(expected, None),
        Ok(Message::Initiation(message)) => (Kind::Initiation, message.encode().to_vec()),
        Ok(Message::Response(message)) => (Kind::Response, message.encode().to_vec()),
        Ok(Message::CookieReply(message)) => (Kind::CookieReply, message.encode().to_vec()),
        Ok(Message::Data(header, sealed)) => {
            let mut front = [0; HEADER];
            header.write(&mut front);
            (Kind::Data, [&front, sealed].concat())
        }
    };
    assert_eq!(Some(again.0), expected);
    // The MACs are not part of what was taken apart: they are added last, over the rest.
    let macs = if matches!(again.0, Kind::Initiation | Kind::Response) {
        32
    } else {
        0
    };
    let end = data.len() - macs;
    assert_eq!(again.1[..end], data[..end]);
}

/// One message of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let lengths = [
        (1, INITIATION_LEN),
        (2, RESPONSE_LEN),
        (3, COOKIE_REPLY_LEN),
        (4, DATA_MIN),
        (4, DATA_MIN + 48),
        (5, 64),
        (0, 0),
    ];
    let message = |(first, length): (u8, usize)| {
        let mut bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
        bytes
            .iter_mut()
            .zip([first, 0, 0, 0])
            .for_each(|(byte, value)| *byte = value);
        bytes
    };
    lengths.map(message).to_vec()
}
