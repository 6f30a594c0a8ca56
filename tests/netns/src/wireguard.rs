//! WireGuard keys and configurations, made with and given to `wg`, so that tests use the same door as people do.

use crate::command::run_to_end;
use crate::{Error, Namespace, Result};
use std::fmt::Write;
use std::net::SocketAddr;
use std::process::Command;

/// A key pair in base64, from `wg genkey` and `wg pubkey`.
#[derive(Clone)]
pub struct Keys {
    /// The private key.
    pub private: String,
    /// The public key.
    pub public: String,
}

impl Keys {
    /// A new key pair.
    pub fn generate() -> Result<Keys> {
        let private = wg(&["genkey"], b"")?;
        let public = wg(&["pubkey"], private.as_bytes())?;
        Ok(Keys { private, public })
    }
}

/// A new pre-shared key in base64, from `wg genpsk`.
pub fn preshared_key() -> Result<String> {
    wg(&["genpsk"], b"")
}

fn wg(args: &[&str], input: &[u8]) -> Result<String> {
    let mut command = Command::new("wg");
    command.args(args);
    Ok(run_to_end(command, input)?.trim().to_owned())
}

/// One peer in a configuration.
#[derive(Clone, Default)]
pub struct Peer {
    /// Public key, base64.
    pub public: String,
    /// Pre-shared key, base64.
    pub preshared: Option<String>,
    /// Where to send; `None` lets the peer be learnt from its packets.
    pub endpoint: Option<SocketAddr>,
    /// Networks routed to it and accepted from it, with prefix lengths.
    pub allowed_ips: Vec<String>,
    /// Persistent keepalive, seconds.
    pub keepalive: Option<u16>,
}

/// A device's configuration.
#[derive(Clone, Default)]
pub struct Config {
    /// Private key, base64.
    pub private: String,
    /// UDP port; 0 or `None` lets the daemon choose.
    pub listen_port: Option<u16>,
    /// Mark on outgoing packets.
    pub fwmark: Option<u32>,
    /// Its peers.
    pub peers: Vec<Peer>,
}

impl Config {
    /// The text that `wg setconf` reads (wg(8), CONFIGURATION FILE FORMAT).
    pub fn to_text(&self) -> String {
        let mut text = format!("[Interface]\nPrivateKey = {}\n", self.private);
        line(&mut text, "ListenPort", self.listen_port);
        line(&mut text, "FwMark", self.fwmark);
        for peer in &self.peers {
            let _ = write!(text, "\n[Peer]\nPublicKey = {}\n", peer.public);
            line(&mut text, "PresharedKey", peer.preshared.as_ref());
            line(&mut text, "Endpoint", peer.endpoint);
            line(&mut text, "PersistentKeepalive", peer.keepalive);
            // Several lines: `wg` limits the length of one.
            for chunk in peer.allowed_ips.chunks(64) {
                line(&mut text, "AllowedIPs", Some(chunk.join(", ")));
            }
        }
        text
    }

    /// Replaces the configuration of `interface` by this one (`wg setconf`).
    pub fn apply(&self, namespace: &Namespace, interface: &str) -> Result<()> {
        namespace.exec_with_input(
            "wg",
            &["setconf", interface, "/dev/stdin"],
            self.to_text().as_bytes(),
        )?;
        Ok(())
    }
}

fn line(text: &mut String, key: &str, value: Option<impl std::fmt::Display>) {
    if let Some(value) = value {
        let _ = writeln!(text, "{key} = {value}");
    }
}

/// What `wg show NAME dump` says of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Public key, base64.
    pub public: String,
    /// Where packets to it go.
    pub endpoint: Option<SocketAddr>,
    /// Its networks, as listed.
    pub allowed_ips: Vec<String>,
    /// Unix time of the last handshake, seconds; 0 for none.
    pub latest_handshake: u64,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Persistent keepalive, seconds.
    pub keepalive: Option<u16>,
}

impl PeerStatus {
    /// The peers of `interface`, in the order listed.
    pub fn all(namespace: &Namespace, interface: &str) -> Result<Vec<PeerStatus>> {
        let dump = namespace.exec("wg", &["show", interface, "dump"])?;
        // The first line is the device's own.
        dump.lines().skip(1).map(parse_peer).collect()
    }
}

/// Fields: public key, pre-shared key, endpoint, allowed ips, latest handshake, rx, tx, keepalive (wg(8), `dump`).
fn parse_peer(line: &str) -> Result<PeerStatus> {
    let bad = || Error::new(format!("unexpected line in `wg show dump`: {line:?}"));
    let fields: Vec<&str> = line.split('\t').collect();
    let [public, _, endpoint, allowed, handshake, rx, tx, keepalive] = fields[..] else {
        return Err(bad());
    };
    let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
    Ok(PeerStatus {
        public: public.to_owned(),
        endpoint: endpoint.parse().ok(),
        allowed_ips: allowed
            .split(',')
            .filter(|a| *a != "(none)")
            .map(str::to_owned)
            .collect(),
        latest_handshake: number(handshake)?,
        rx_bytes: number(rx)?,
        tx_bytes: number(tx)?,
        keepalive: keepalive.parse().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dump_lines_are_read() {
        let line = "KEY=\t(none)\t[fd00::1]:51820\t10.0.0.0/8,fd00::/64\t17\t180\t92\toff";
        let peer = parse_peer(line).unwrap();
        assert_eq!(peer.endpoint, Some("[fd00::1]:51820".parse().unwrap()));
        assert_eq!(peer.allowed_ips, ["10.0.0.0/8", "fd00::/64"]);
        assert_eq!(
            (
                peer.latest_handshake,
                peer.rx_bytes,
                peer.tx_bytes,
                peer.keepalive
            ),
            (17, 180, 92, None)
        );
        assert!(parse_peer("KEY=\t(none)").is_err());
    }

    #[test]
    fn configuration_text_has_each_setting_once() {
        let peer = Peer {
            public: "P".into(),
            preshared: Some("S".into()),
            endpoint: Some("192.0.2.1:1".parse().unwrap()),
            allowed_ips: vec!["10.0.0.0/8".into(), "fd00::/8".into()],
            keepalive: Some(25),
        };
        let config = Config {
            private: "K".into(),
            listen_port: Some(7),
            fwmark: Some(9),
            peers: vec![peer],
        };
        let expected = "[Interface]\nPrivateKey = K\nListenPort = 7\nFwMark = 9\n\n[Peer]\nPublicKey = P\n\
            PresharedKey = S\nEndpoint = 192.0.2.1:1\nPersistentKeepalive = 25\nAllowedIPs = 10.0.0.0/8, fd00::/8\n";
        assert_eq!(config.to_text(), expected);
    }
}
