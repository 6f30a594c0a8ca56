//! The reply to a `get=1`.

use patronus_crypto::{PublicKey, WallClock};
use patronus_engine::uapi::{PeerView, Reply};
use patronus_mem::Secret;

fn text(reply: &Reply) -> &str {
    std::str::from_utf8(reply.as_bytes()).expect("text")
}

fn view(public_key: u8) -> PeerView<'static> {
    PeerView {
        public_key: PublicKey([public_key; 32]),
        preshared_key: None,
        endpoint: None,
        last_handshake: None,
        tx_bytes: 0,
        rx_bytes: 0,
        persistent_keepalive: 0,
    }
}

#[test]
fn c79_every_line_of_a_reply() {
    let mut private_key = [0xab; 32];
    private_key[0] = 0x08;
    let preshared_key = Secret::new(&mut [0xcd; 32]);
    let mut reply = Reply::new();
    reply.interface(Some(&Secret::new(&mut private_key)), 51820, 0xca6c);
    let peer = PeerView {
        preshared_key: Some(&preshared_key),
        endpoint: Some("[2001:db8::1]:51821".parse().expect("an endpoint")),
        last_handshake: Some(WallClock {
            secs: 1_700_000_000,
            nanos: 123_456_789,
        }),
        tx_bytes: 1428,
        rx_bytes: u64::MAX,
        persistent_keepalive: 25,
        ..view(0x1b)
    };
    let allowed_ips = [("10.0.0.0", 8), ("2001:db8::", 32), ("::", 0)];
    reply.peer(
        &peer,
        allowed_ips.map(|(addr, cidr)| (addr.parse().expect("an address"), cidr)),
    );
    let expected = format!(
        "private_key=08{}\nlisten_port=51820\nfwmark=51820\npublic_key={}\npreshared_key={}\nprotocol_version=1\n\
         endpoint=[2001:db8::1]:51821\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=123456789\n\
         tx_bytes=1428\nrx_bytes=18446744073709551615\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\n\
         allowed_ip=2001:db8::/32\nallowed_ip=::/0\n",
        "ab".repeat(31),
        "1b".repeat(32),
        "cd".repeat(32),
    );
    assert_eq!(text(&reply), expected);
}

#[test]
fn c79_what_is_unset_has_no_line_or_zeros() {
    let mut reply = Reply::new();
    reply.interface(None, 0, 0);
    assert_eq!(text(&reply), "");
    reply.peer(&view(0), []);
    let expected = format!(
        "public_key={0}\npreshared_key={0}\nprotocol_version=1\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n\
         tx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\n",
        "00".repeat(32),
    );
    assert_eq!(text(&reply), expected);
}

/// Real time, and zero for never: not the seconds since boot, not the age.
#[test]
fn c81_r25_r36_handshake_time_is_unix_time() {
    let shown = |last_handshake| {
        let mut reply = Reply::new();
        reply.peer(
            &PeerView {
                last_handshake,
                ..view(1)
            },
            [],
        );
        let lines = text(&reply)
            .lines()
            .filter(|line| line.starts_with("last_handshake"));
        lines
            .map(|line| line.rsplit('=').next().expect("a value").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(shown(None), ["0", "0"]);
    assert_eq!(
        shown(Some(WallClock {
            secs: 1_763_877_600,
            nanos: 5
        })),
        ["1763877600", "5"]
    );
}

#[test]
fn c81_r39_sent_and_received_are_not_swapped() {
    let mut reply = Reply::new();
    reply.peer(
        &PeerView {
            tx_bytes: 1428,
            rx_bytes: 1460,
            ..view(1)
        },
        [],
    );
    assert!(text(&reply).contains("\ntx_bytes=1428\nrx_bytes=1460\n"));
}

#[test]
fn c79_a_link_local_endpoint_keeps_its_zone() {
    let mut reply = Reply::new();
    reply.peer(
        &PeerView {
            endpoint: Some("[fe80::1%7]:9".parse().expect("an endpoint")),
            ..view(1)
        },
        [],
    );
    assert!(text(&reply).contains("\nendpoint=[fe80::1%7]:9\n"));
}
