//! Any text as a `set=1` request of the userspace API, and what is understood of it put into the allowed-ips.

use patronus_crypto::PeerId;
use patronus_engine::allowedips::{AllowedIpsConfig, Prefix};
use patronus_engine::uapi::{Limits, SetParser, SetRequest};

const LIMITS: Limits = Limits {
    bytes: 1 << 16,
    peers: 32,
    allowed_ips: 256,
};

/// The input is the lines behind `set=1`.
pub fn run(text: &[u8]) {
    let mut parser = SetParser::new(LIMITS);
    let mut failed = None;
    for line in text.split(|b| *b == b'\n') {
        let result = parser.line_with_zones(line, &|zone| (zone == "eth0").then_some(2));
        assert!(
            failed.is_none() || failed == result.err(),
            "the first error stays"
        );
        failed = failed.or(result.err());
    }
    let exhausted = parser.exhausted();
    match parser.finish() {
        Ok(request) => {
            assert!(failed.is_none() && !exhausted);
            check(&request);
        }
        Err(errno) => assert_eq!(failed, Some(errno)),
    }
}

fn check(request: &SetRequest) {
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
        assert!(key[0] & 7 == 0 && key[31] & 0xc0 == 0x40, "clamped");
    }
    let mut config = AllowedIpsConfig::new();
    for (id, peer) in (0..).map(PeerId).zip(&request.peers) {
        for change in &peer.allowed_ips {
            let prefix = Prefix::new(change.addr, change.cidr).expect("a prefix");
            assert_eq!(prefix.addr(), change.addr, "without host bits");
            let owner = config.owner(prefix);
            let after = if change.remove {
                assert_eq!(config.remove(prefix, id), owner == Some(id));
                owner.filter(|owner| *owner != id)
            } else {
                assert_eq!(config.insert(prefix, id), owner);
                Some(id)
            };
            assert_eq!(config.owner(prefix), after);
        }
    }
    let table = config.compile();
    for (prefix, owner) in config.iter() {
        let longer = config
            .iter()
            .any(|(other, _)| other.addr() == prefix.addr() && other.cidr() > prefix.cidr());
        assert!(longer || table.lookup(prefix.addr()) == Some(owner));
    }
}
