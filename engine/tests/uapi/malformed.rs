//! Requests that are not as they should be: each is answered with an error and changes nothing.

use patronus_engine::uapi::Errno;

use crate::device::MemoryDevice;
use crate::server::Bench;

const KEY: &str = "1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b";

/// Lines before the first peer.
const INTERFACE: &[&str] = &[
    // Not a key with a value.
    "listen_port",
    "=",
    "=1",
    " ",
    "\t",
    "\0",
    "#comment",
    "[Interface]",
    "PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
    // Keys that do not exist, or not here.
    "no_such_key=1",
    "listen_por=1",
    "listen_portt=1",
    "Listen_port=1",
    " listen_port=1",
    "listen_port =1",
    "errno=0",
    "get=1",
    "set=1",
    "protocol_version=1",
    "allowed_ip=10.0.0.0/8",
    "remove=true",
    "tx_bytes=1",
    "last_handshake_time_sec=1",
    // Values.
    "listen_port=",
    "listen_port= 1",
    "listen_port=1 ",
    "listen_port=1\r",
    "listen_port=+1",
    "listen_port=-1",
    "listen_port=1_0",
    "listen_port=0x10",
    "listen_port=1.0",
    "listen_port=65536",
    "listen_port=18446744073709551617",
    "listen_port=\u{661}",
    "listen_port=1=1",
    "fwmark=",
    "fwmark=off",
    "fwmark=-1",
    "fwmark=4294967296",
    "fwmark=99999999999999999999999999999999999999999999",
    "replace_peers=",
    "replace_peers=false",
    "replace_peers=True",
    "replace_peers=1",
    "private_key=",
    "private_key=1b",
    "private_key=1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1",
    "private_key=1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1",
    "private_key=1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1g",
    "private_key=0x1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b",
    "public_key=",
    "public_key=1b",
    "public_key=yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
];

/// Lines after a `public_key`.
const PEER: &[&str] = &[
    "listen_port=1",
    "fwmark=1",
    "replace_peers=true",
    "private_key=1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b",
    "no_such_key=1",
    "rx_bytes=1",
    "last_handshake_time_nsec=0",
    "protocol_version=",
    "protocol_version=0",
    "protocol_version=2",
    "protocol_version=01",
    "remove=",
    "remove=false",
    "remove=yes",
    "update_only=false",
    "replace_allowed_ips=false",
    "replace_allowed_ips=",
    "preshared_key=",
    "preshared_key=(none)",
    "preshared_key=1b",
    "persistent_keepalive_interval=",
    "persistent_keepalive_interval=off",
    "persistent_keepalive_interval=65536",
    "persistent_keepalive_interval=-1",
    "endpoint=",
    "endpoint=:",
    "endpoint=:51820",
    "endpoint=1.2.3.4",
    "endpoint=1.2.3.4:",
    "endpoint=1.2.3.4:65536",
    "endpoint=1.2.3.4:+1",
    "endpoint=1.2.3.4:1:2",
    "endpoint=1.2.3:1",
    "endpoint=1.2.3.256:1",
    "endpoint=01.2.3.4:1",
    "endpoint=example.org:51820",
    "endpoint=[1.2.3.4]:1",
    "endpoint=::1:51820",
    "endpoint=[::1]",
    "endpoint=[::1]51820",
    "endpoint=[::1:51820",
    "endpoint=::1]:51820",
    "endpoint=[]:1",
    "endpoint=[::1]]:1",
    "endpoint=[[::1]:1",
    "endpoint=[fe80::1%]:1",
    "endpoint=[fe80::1%no-such-zone]:1",
    "endpoint=[fe80::1%4294967296]:1",
    "endpoint=[fe80::1%1%2]:1",
    "endpoint=[fe80::g]:1",
    "endpoint=1.2.3.4:1 ",
    "allowed_ip=",
    "allowed_ip=/",
    "allowed_ip=-",
    "allowed_ip=-/0",
    "allowed_ip=/0",
    "allowed_ip=10.0.0.0",
    "allowed_ip=10.0.0.0/",
    "allowed_ip=10.0.0.0/33",
    "allowed_ip=10.0.0.0/256",
    "allowed_ip=10.0.0.0/-1",
    "allowed_ip=10.0.0.0/+8",
    "allowed_ip=10.0.0.0/8/8",
    "allowed_ip=10.0.0.0/255.0.0.0",
    "allowed_ip=10.0.0/8",
    "allowed_ip=--10.0.0.0/8",
    "allowed_ip=+10.0.0.0/8",
    "allowed_ip= 10.0.0.0/8",
    "allowed_ip=10.0.0.0/8, 11.0.0.0/8",
    "allowed_ip=::/129",
    "allowed_ip=[::]/0",
    "allowed_ip=fe80::1%1/64",
    "allowed_ip=:::/0",
    "allowed_ip=(none)",
];

fn expect_error(lines: &str) {
    let mut bench = Bench::new(MemoryDevice::default());
    let mut client = bench.connect();
    let good = format!(
        "set=1\nprivate_key={KEY}\nlisten_port=51820\nfwmark=7\npublic_key={KEY}\npreshared_key={KEY}\n\
         endpoint=192.0.2.1:9\npersistent_keepalive_interval=25\nallowed_ip=192.0.2.0/24\n\n"
    );
    assert_eq!(bench.exchange(&mut client, &good), "errno=0\n\n");
    let before = bench.device.text();

    // Good lines around the bad one, to see that they are not applied either.
    let request = format!(
        "set=1\nlisten_port=1\nreplace_peers=true\n{lines}\npublic_key={KEY}\nremove=true\npublic_key={}\n\n",
        "ab".repeat(32)
    );
    let answer = bench.exchange(&mut client, &request);
    let errno: i32 = answer
        .strip_prefix("errno=")
        .and_then(|rest| rest.strip_suffix("\n\n"))
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{lines:?} was answered with {answer:?}"));
    let expected = if lines.lines().last().is_some_and(|line| line.contains('=')) {
        Errno::INVAL
    } else {
        Errno::PROTO
    };
    assert_eq!(errno, -expected.raw_os_error(), "{lines:?}");
    assert_eq!(bench.device.text(), before, "{lines:?}");
    assert_eq!(bench.device.sets, 1, "{lines:?}");

    // And the connection goes on as if nothing had been.
    assert_eq!(
        bench.exchange(&mut client, "set=1\nlisten_port=2\n\n"),
        "errno=0\n\n",
        "after {lines:?}"
    );
    assert_eq!(bench.device.listen_port, 2);
}

#[test]
fn c80_r44_malformed_interface_lines() {
    for line in INTERFACE {
        expect_error(line);
    }
}

#[test]
fn c80_r44_malformed_peer_lines() {
    for line in PEER {
        expect_error(&format!("public_key={KEY}\n{line}"));
    }
}

/// Lines that are none of the protocol's operations: an answer, and the end of the connection.
#[test]
fn c80_what_is_no_operation() {
    let long = format!("set=1\n{}", "x".repeat(5000));
    let requests = [
        "\n",
        "get\n",
        "get=0\n",
        "get=2\n\n",
        "get=1 \n\n",
        "GET=1\n\n",
        " get=1\n\n",
        "set=0\n\n",
        "set=\n\n",
        "put=1\n\n",
        "get=1\r\n\r\n",
        "get=1\nlisten_port=1\n\n",
        "get=1\nget=1\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\0\0\0\0\n",
        &long,
    ];
    for request in requests {
        let mut bench = Bench::new(MemoryDevice {
            listen_port: 7,
            ..Default::default()
        });
        let mut client = bench.connect();
        assert_eq!(
            bench.exchange(&mut client, request),
            "errno=-22\n\n",
            "{request:?}"
        );
        assert!(bench.is_closed(&mut client), "{request:?}");
        assert_eq!(bench.device.sets, 0, "{request:?}");
    }
}

/// A request that ends before its blank line is not one.
#[test]
fn c80_a_request_cut_short_at_any_byte_changes_nothing() {
    let whole = format!("set=1\nlisten_port=5\npublic_key={KEY}\nallowed_ip=10.0.0.0/8\n\n");
    for len in 0..whole.len() {
        let mut bench = Bench::new(MemoryDevice {
            listen_port: 7,
            ..Default::default()
        });
        let mut client = bench.connect();
        client.send(&whole.as_bytes()[..len]);
        client.shutdown_write();
        let answer = bench.read_to_end(&mut client);
        assert_eq!(
            answer,
            if len == 0 { "" } else { "errno=-22\n\n" },
            "after {len} bytes"
        );
        assert_eq!(
            (bench.device.sets, bench.device.listen_port),
            (0, 7),
            "after {len} bytes"
        );
    }
}
