//! Drills: a link that is as good as cut for a while.

use patronus_engine::channel::{Command, Drill};
use patronus_engine::stats::DropReason;

use crate::common::{A, B, Net, ms, packet, secs};

#[test]
fn nothing_goes_by_a_link_in_a_drill_and_everything_afterwards() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(A, B);
    let until = net.now.after(secs(1));
    net.command(A, peer, Command::Drill(Some(Drill { wan: 0, until })));
    net.settle();
    for id in 0..10 {
        net.send(A, &packet::between(A, B, id, 100));
    }
    for id in 0..4 {
        net.send(B, &packet::between(B, A, id, 100));
    }
    net.run(ms(500));
    assert_eq!((net.delivered(A).len(), net.delivered(B).len()), (0, 0));
    assert_eq!(net.sites[A].dropped(DropReason::DrillSent), 10);
    assert_eq!(net.sites[A].dropped(DropReason::DrillReceived), 4);
    net.run(secs(1));
    net.send(A, &packet::between(A, B, 20, 100));
    net.send(B, &packet::between(B, A, 20, 100));
    net.run(ms(500));
    assert_eq!((net.delivered(A).len(), net.delivered(B).len()), (1, 1));
    net.finish();
}

#[test]
fn a_drill_is_of_one_link_and_can_be_ended() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(A, B);
    let until = net.now.after(secs(30));
    net.command(A, peer, Command::Drill(Some(Drill { wan: 1, until })));
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(B).len(), 1, "by another link");
    net.command(A, peer, Command::Drill(Some(Drill { wan: 0, until })));
    net.send(A, &packet::between(A, B, 2, 100));
    net.run(ms(100));
    net.command(A, peer, Command::Drill(None));
    net.send(A, &packet::between(A, B, 3, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(B), [packet::between(A, B, 3, 100)]);
    net.finish();
}
