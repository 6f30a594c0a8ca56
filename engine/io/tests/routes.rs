//! What the kernel says about routes, asked on loopback, which every network namespace has.

use std::net::IpAddr;

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
    let routes = RouteQuery::new().expect("a socket");
    let lo = routes.running("lo").expect("an answer");
    assert!(
        lo.is_none_or(|index| index == 1),
        "lo is interface 1 of every namespace"
    );
    for name in ["no-such-thing", "", "a-name-that-is-much-too-long"] {
        assert_eq!(routes.running(name).expect("an answer"), None, "{name}");
    }
}
