//! The reply to a `get=1`: the device's state as lines of `key=value`.
//!
//! Called by the [`UapiDevice`](super::UapiDevice) on the slow-path thread. The text holds the private key and the pre-shared keys, so its buffer
//! leaves no copy behind when it grows and is wiped when it is dropped.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use patronus_crypto::{PublicKey, WallClock};
use patronus_mem::Secret;
use rustix::io::Errno;
use zeroize::Zeroize;

/// What a reply shows of one peer, besides its allowed-ips.
pub struct PeerView<'a> {
    /// The peer's identity.
    pub public_key: PublicKey,
    /// The pre-shared key, if there is one.
    pub preshared_key: Option<&'a Secret<32>>,
    /// Where the peer is, if that is known.
    pub endpoint: Option<SocketAddr>,
    /// When the newest session began; `None` if there never was one.
    pub last_handshake: Option<WallClock>,
    /// Bytes sent to the peer, as they are on the wire under UDP.
    pub tx_bytes: u64,
    /// Bytes received from the peer, as they are on the wire under UDP.
    pub rx_bytes: u64,
    /// Seconds between keepalives, 0 is off.
    pub persistent_keepalive: u16,
}

/// The text of a reply in the making.
#[derive(Default)]
pub struct Reply {
    text: Vec<u8>,
}

impl Reply {
    /// A reply without a line.
    pub fn new() -> Self {
        Reply::default()
    }

    /// The bytes to be sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// The lines of the interface; they come before the first peer's. What is unset or zero has no line.
    pub fn interface(&mut self, private_key: Option<&Secret<32>>, listen_port: u16, fwmark: u32) {
        if let Some(key) = private_key {
            self.key("private_key", key);
        }
        if listen_port != 0 {
            self.line(format_args!("listen_port={listen_port}"));
        }
        if fwmark != 0 {
            self.line(format_args!("fwmark={fwmark}"));
        }
    }

    /// The lines of one peer and of its allowed-ips (network and length of each prefix).
    pub fn peer(&mut self, peer: &PeerView<'_>, allowed_ips: impl IntoIterator<Item = (IpAddr, u8)>) {
        self.key("public_key", &peer.public_key.0);
        self.key("preshared_key", peer.preshared_key.map_or(&[0; 32], |key| key));
        self.line(format_args!("protocol_version=1"));
        if let Some(endpoint) = peer.endpoint {
            self.line(format_args!("endpoint={endpoint}"));
        }
        let handshake = peer.last_handshake.unwrap_or_default();
        self.line(format_args!("last_handshake_time_sec={}", handshake.secs));
        self.line(format_args!("last_handshake_time_nsec={}", handshake.nanos));
        self.line(format_args!("tx_bytes={}", peer.tx_bytes));
        self.line(format_args!("rx_bytes={}", peer.rx_bytes));
        self.line(format_args!(
            "persistent_keepalive_interval={}",
            peer.persistent_keepalive
        ));
        for (addr, cidr) in allowed_ips {
            self.line(format_args!("allowed_ip={addr}/{cidr}"));
        }
    }

    /// The last line and the blank one after it. The number is negative, as wireguard-go sends it and as `wg` needs it
    /// to print the right message.
    pub(crate) fn end(&mut self, result: Result<(), Errno>) {
        let errno = result.err().map_or(0, Errno::raw_os_error);
        self.line(format_args!("errno={}\n", -errno));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing into memory cannot fail.
        let _ = self.write_fmt(line);
        self.put(b"\n");
    }

    fn key(&mut self, name: &str, key: &[u8; 32]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0; 64];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(key) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        self.put(name.as_bytes());
        self.put(b"=");
        self.put(&hex);
        self.put(b"\n");
        hex.zeroize();
    }

    /// Appends. A vector that grows by itself would leave the old text behind in freed memory.
    fn put(&mut self, bytes: &[u8]) {
        let len = self.text.len() + bytes.len();
        if len > self.text.capacity() {
            let mut grown = Vec::with_capacity(len.max(4096).next_power_of_two());
            grown.extend_from_slice(&self.text);
            self.text.zeroize();
            self.text = grown;
        }
        self.text.extend_from_slice(bytes);
    }
}

impl Write for Reply {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.put(s.as_bytes());
        Ok(())
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}
