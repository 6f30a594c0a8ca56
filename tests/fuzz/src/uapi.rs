//! The text of a `set=1` request.

use patronus_engine::uapi::{Limits, SetParser, SetRequest};
use std::net::IpAddr;

const LIMITS: Limits = Limits {
    bytes: 4096,
    peers: 16,
    allowed_ips: 32,
};

/// A request is refused as a whole, or everything in it is within its range and its limits.
pub fn check(data: &[u8]) {
    let mut parser = SetParser::new(LIMITS);
    let mut refused = None;
    for line in data.split(|&byte| byte == b'\n') {
        let result = parser.line_with_zones(line, &|zone| (zone == "eth0").then_some(2));
        match (result, refused) {
            (Ok(()), Some(_)) => panic!("a line was accepted after a bad one"),
            (Err(errno), None) => refused = Some(errno),
            _ => {}
        }
    }
    match (parser.finish(), refused) {
        (Ok(request), None) => verify(&request),
        (Err(errno), Some(first)) => assert_eq!(errno, first),
        (Ok(_), Some(_)) => panic!("a bad line was forgotten"),
        (Err(_), None) => panic!("refused without a bad line"),
    }
}

fn verify(request: &SetRequest) {
    assert!(request.peers.len() <= LIMITS.peers);
    assert!(
        request
            .peers
            .iter()
            .map(|peer| peer.allowed_ips.len())
            .sum::<usize>()
            <= LIMITS.allowed_ips
    );
    if let Some(Some(key)) = &request.private_key {
        assert_ne!(**key, [0; 32], "no key is none at all");
    }
    for peer in &request.peers {
        if peer.remove {
            assert!(peer.allowed_ips.is_empty() && peer.endpoint.is_none() && peer.preshared_key.is_none());
        }
        for change in &peer.allowed_ips {
            let (bits, host) = match change.addr {
                IpAddr::V4(ip) => (
                    32,
                    u128::from(ip.to_bits()).checked_shl(96 + u32::from(change.cidr)),
                ),
                IpAddr::V6(ip) => (128, ip.to_bits().checked_shl(u32::from(change.cidr))),
            };
            assert!(change.cidr <= bits);
            assert_eq!(host.unwrap_or(0), 0, "host bits");
        }
    }
}

/// Requests as `wg` sends them, and some that must be refused.
pub fn seeds() -> Vec<Vec<u8>> {
    let key = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a";
    let texts = [
        format!(
            "private_key={key}\nlisten_port=51820\nfwmark=0x2a\nreplace_peers=true\npublic_key={key}\npreshared_key={key}\n\
             endpoint=192.0.2.1:51820\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n\
             allowed_ip=fd00::/64\nprotocol_version=1"
        ),
        format!("public_key={key}\nremove=true"),
        format!("public_key={key}\nupdate_only=true\nendpoint=[fe80::1%eth0]:1\nallowed_ip=-10.1.0.0/16"),
        format!("public_key={key}\nendpoint=[2001:db8::1]:65535\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0"),
        format!("private_key={}\nlisten_port=0\nfwmark=0", "0".repeat(64)),
        "listen_port=65536".to_owned(),
        "allowed_ip=10.0.0.0/8".to_owned(),
        format!("public_key={key}\nprotocol_version=2"),
        String::new(),
    ];
    texts.map(String::into_bytes).to_vec()
}
