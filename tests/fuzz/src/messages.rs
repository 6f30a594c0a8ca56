//! Any datagram: which message it is, and that taking it apart and putting it together gives the same bytes.

use patronus_crypto::messages::{self, DataHeader, HEADER, Kind, MAC, Message};

/// The input is a datagram.
pub fn run(datagram: &[u8]) {
    let kind = messages::kind(datagram);
    let message = messages::parse(datagram);
    assert_eq!(kind.err(), message.as_ref().err().copied());
    let (Ok(kind), Ok(message)) = (kind, message) else {
        return;
    };
    // Everything but the two MACs, which are written when the rest of the message is there.
    let (expected, encoded, macs) = match message {
        Message::Initiation(message) => (Kind::Initiation, message.encode().to_vec(), 2 * MAC),
        Message::Response(message) => (Kind::Response, message.encode().to_vec(), 2 * MAC),
        Message::CookieReply(message) => (Kind::CookieReply, message.encode().to_vec(), 0),
        Message::Data(header, sealed) => (Kind::Data, data(header, sealed), 0),
    };
    assert_eq!(kind, expected);
    assert_eq!(encoded.len(), datagram.len());
    let covered = datagram.len() - macs;
    assert_eq!(encoded[..covered], datagram[..covered]);
}

fn data(header: DataHeader, sealed: &[u8]) -> Vec<u8> {
    let mut bytes = [0xff; HEADER];
    header.write(&mut bytes);
    assert_eq!(DataHeader::read(&bytes), header);
    [&bytes, sealed].concat()
}
