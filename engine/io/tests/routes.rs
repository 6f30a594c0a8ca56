//! What the kernel says about routes, asked on loopback, which every network namespace has, and about interfaces that come and go.

mod common;

use std::net::IpAddr;

use common::{in_namespace, ip as run_ip};

use patronus_io::netlink::RouteQuery;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn egress_is_the_interface_of_the_route() {
    let routes = RouteQuery::new().expect("a netlink socket");
    // Loopback is the first interface of every namespace.
    assert_eq!(
        routes
            .egress(ip("127.0.0.1"), ip("127.0.0.5"), 0, None)
            .expect("an answer"),
        Some(1)
    );
    assert_eq!(
        routes
            .egress(ip("127.0.0.1"), ip("127.0.0.5"), 77, None)
            .expect("an answer"),
        Some(1)
    );
    assert_eq!(
        routes.egress(ip("::1"), ip("::1"), 0, None).expect("an answer"),
        Some(1)
    );
}

#[test]
fn an_address_that_is_not_ours_has_no_route() {
    let routes = RouteQuery::new().expect("a netlink socket");
    assert_eq!(
        routes
            .egress(ip("203.0.113.77"), ip("127.0.0.5"), 0, None)
            .expect("an answer"),
        None
    );
    // An error leaves the socket in order.
    assert_eq!(
        routes
            .egress(ip("127.0.0.1"), ip("127.0.0.1"), 0, None)
            .expect("an answer"),
        Some(1)
    );
}

#[test]
fn interfaces_are_found_by_name_while_they_run() {
    in_namespace(|| {
        let routes = RouteQuery::new().expect("a socket");
        let running = |name| routes.running(name).expect("an answer");
        assert_eq!(running("lo"), Some(1), "lo is interface 1 of every namespace");
        run_ip("link add va type veth peer name vb");
        let va = common::ifindex("va");
        for (change, expected) in [
            ("set va up", None),
            ("set vb up", Some(va)),
            ("set vb down", None),
            ("set vb up", Some(va)),
            ("set va down", None),
            ("set va up", Some(va)),
            ("del va", None),
        ] {
            run_ip(&format!("link {change}"));
            assert_eq!(running("va"), expected, "after {change}");
        }
        for name in ["no-such-thing", "", "a-name-that-is-much-too-long"] {
            assert_eq!(running(name), None, "{name}");
        }
    });
}

#[test]
fn answers_belong_to_their_questions() {
    // Many questions on one socket, answers and errors in turn: none is taken for another's.
    let routes = RouteQuery::new().expect("a netlink socket");
    for n in 0..2000u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let own = IpAddr::from([127, 0, high, low]);
        let egress = routes.egress(own, own, 0, None).expect("an answer");
        assert_eq!(egress, Some(1));
        let strange = routes
            .egress(ip("203.0.113.77"), own, 0, None)
            .expect("an answer");
        assert_eq!(strange, None);
    }
}
