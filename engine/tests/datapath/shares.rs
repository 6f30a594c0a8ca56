//! What one peer may take of what all share, and what is forgotten with a peer.

use std::sync::Arc;

use patronus_abi::channel::PathName;
use patronus_engine::channel::Command;
use patronus_engine::flow::HashKeys;
use patronus_engine::path::{PathBoard, PathLanes, Paths};
use patronus_engine::remote::message;
use patronus_engine::standby::echo;
use patronus_engine::stats::DropReason;
use patronus_engine::steer::{Manners, Order, Plan, Standing, Steering};

use crate::common::{A, B, Net, packet};

#[test]
fn answers_to_pings_take_a_share_of_the_slow_path() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(A, B);
    net.command(A, peer, Command::Pinged(peer, true));
    net.settle();
    let secret = [7; echo::SECRET];
    let (from, to) = (packet::v4(B), packet::v4(A));
    for sequence in 0..100 {
        let mut answer = echo::request(from, to, sequence, &secret).expect("of one family");
        answer[20] = 0;
        net.offer(B, &answer);
    }
    net.settle();
    net.run(crate::common::ms(40));
    let taken = net.sites[A].workers[0].stats().ping_answers_received.get();
    let dropped = net.sites[A].dropped(DropReason::ControlFlood);
    assert_eq!((taken + dropped, net.delivered(A).len()), (100, 0));
    assert!((10..=32).contains(&taken), "{taken}");
    net.finish();
}

#[test]
fn a_remote_does_not_inherit_what_came_twice_from_another() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(B, A);
    let name = PathName { local: 1, remote: 1 };
    let lanes = PathLanes {
        name,
        lanes: [peer].into(),
        numbers: [0].into(),
    };
    let standing = Standing {
        metered: false,
        cost: 0,
        tag: 0x11,
    };
    let steering = Steering::new(Plan {
        paths: &[(name, standing)],
        lanes: std::slice::from_ref(&lanes),
        orders: vec![Order::new(&[], &[(name, standing)])],
        manners: &Manners::default(),
        classes: 0,
        keys: Arc::new(HashKeys::new([1; 7])),
    });
    let board = Arc::new(PathBoard::new([name], None));
    let paths = Paths::new(board, Box::new([lanes]), steering);
    net.command(B, peer, Command::Paths(peer, Box::new(paths)));
    net.settle();
    let inner = packet::between(A, B, 1, 100);
    let take = |net: &mut Net, counter: u64, sequence: u32| {
        let mut text = message::doubled(inner.len(), sequence).to_vec();
        text.extend(&inner);
        text.resize(text.len().next_multiple_of(16), 0);
        let datagram = net.forge(B, 0, counter, &text);
        let from = net.sites[A].addr;
        net.inject(B, from, &datagram);
        net.settle();
        net.delivered(B).len()
    };
    net.delivered(B);
    assert_eq!(take(&mut net, 100, 1_000_000), 1);
    assert_eq!(take(&mut net, 101, 0), 0, "far behind");
    // The peer with this number is a remote from now on.
    net.sites[B].core.make_remote(peer);
    net.settle();
    assert_eq!(take(&mut net, 102, 0), 1);
    net.finish();
}
