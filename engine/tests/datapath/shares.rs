//! What one peer may take of what all share.

use patronus_engine::channel::Command;
use patronus_engine::standby::echo;
use patronus_engine::stats::DropReason;

use crate::common::{A, B, Net, packet};

#[test]
fn answers_to_pings_take_a_share_of_the_slow_path() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(A, B);
    net.command(A, peer, Command::Pinged(peer, true));
    net.settle();
    let secret = [7; echo::SECRET];
    let (from, to) = (packet::v4(B).into(), packet::v4(A).into());
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
