//! Lanes: several sessions between two sites, each a WireGuard session of its own, told apart by the tag in the initiation.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{A, B, Net, private_key, secs};
use patronus_crypto::messages::Kind;
use patronus_crypto::{AddLaneError, Limits, LinkId, Output, Path, PeerId, Refusal, Tag, x25519};
use patronus_mem::Secret;

fn link(number: u8) -> LinkId {
    LinkId::new(number).unwrap()
}

/// The lane `lane` of the path between link `local` of `site` and link `remote` of the other one, as both sides know it.
fn tag(net: &Net, site: usize, local: u8, remote: u8, lane: u8) -> Tag {
    let key = |of: usize| net.sites[of].device.public_key().unwrap();
    let path = Path {
        local: link(local),
        remote: link(remote),
    };
    Tag::new(&key(site), &key(1 - site), path, lane)
}

/// Adds a lane at one side.
fn add(net: &mut Net, site: usize, tag: Tag) -> PeerId {
    let base = net.link(site).peer;
    let device = &net.sites[site].device;
    let (own, other) = (
        device.public_key().unwrap(),
        net.sites[1 - site].device.public_key().unwrap(),
    );
    let local = tag.path(&own, &other).local;
    let id = net.device(site).add_lane(base, tag, local).unwrap();
    net.add_link(site, id);
    id
}

/// Two sites that know each other as remotes, and the tags of the lanes between them: two on each of two paths.
fn remotes() -> (Net, Vec<Tag>) {
    let mut net = Net::pair();
    for site in [A, B] {
        let base = net.link(site).peer;
        net.device(site).set_remote(base, true);
    }
    let tags: Vec<Tag> = [(1, 1, 0), (1, 1, 1), (2, 3, 0), (2, 3, 1)]
        .into_iter()
        .map(|(local, remote, lane)| tag(&net, A, local, remote, lane))
        .collect();
    for &tag in &tags {
        add(&mut net, A, tag);
        add(&mut net, B, tag);
    }
    (net, tags)
}

fn lane(net: &Net, site: usize, tag: Tag) -> PeerId {
    net.sites[site].device.lane(net.link(site).peer, tag).unwrap()
}

fn received(net: &Net, site: usize, peer: PeerId) -> Vec<Vec<u8>> {
    let found = net.sites[site].links.iter().find(|link| link.peer == peer);
    found.unwrap().received.clone()
}

#[test]
fn every_lane_is_a_session_of_its_own() {
    let (mut net, tags) = remotes();
    let base = [net.link(A).peer, net.link(B).peer];
    net.send(A, base[A], b"base");
    for (n, &tag) in tags.iter().enumerate() {
        let id = lane(&net, A, tag);
        net.send(A, id, &[n as u8; 5]);
    }
    net.run(secs(1));
    assert_eq!(
        net.count(A, Kind::Initiation),
        5,
        "at the same time, and none too soon"
    );
    assert_eq!(net.count(B, Kind::Response), 5);
    assert_eq!(net.sites[B].device.counters().total(), 0);
    assert_eq!(received(&net, B, base[B]), [b"base".to_vec()]);
    for (n, &tag) in tags.iter().enumerate() {
        let id = lane(&net, B, tag);
        assert_eq!(received(&net, B, id), [vec![n as u8; 5]], "{tag:?}");
        net.send(B, id, b"back");
        net.run(secs(1));
        assert_eq!(received(&net, A, lane(&net, A, tag)), [b"back".to_vec()]);
    }
    // They are renewed one by one.
    net.run(secs(130));
    let id = lane(&net, A, tags[2]);
    net.send(A, id, b"late");
    net.run(secs(1));
    assert_eq!(net.count(A, Kind::Initiation), 6);
}

/// Whose keys are in them says nothing about who calls: both at once end with one session that both use.
#[test]
fn both_sides_open_a_lane_at_once() {
    let (mut net, tags) = remotes();
    for &tag in &tags {
        for site in [A, B] {
            let id = lane(&net, site, tag);
            net.send(site, id, b"first");
        }
    }
    net.run(secs(20));
    for &tag in &tags {
        for (site, other) in [(A, B), (B, A)] {
            let id = lane(&net, site, tag);
            net.send(site, id, b"second");
            net.run(secs(1));
            let there = lane(&net, other, tag);
            assert_eq!(
                received(&net, other, there),
                [b"first".to_vec(), b"second".to_vec()]
            );
        }
        let used = [A, B].map(|site| {
            let id = lane(&net, site, tag);
            let link = net.sites[site].links.iter().find(|link| link.peer == id);
            link.unwrap().keypairs.current().unwrap().local_index
        });
        let theirs = [A, B].map(|site| {
            let id = lane(&net, site, tag);
            let link = net.sites[site].links.iter().find(|link| link.peer == id);
            link.unwrap().keypairs.current().unwrap().remote_index
        });
        assert_eq!(used, [theirs[1], theirs[0]], "one session");
    }
}

/// Who does not take us for a site of its own sees a handshake like any other.
#[test]
fn a_stock_peer_sees_nothing_of_a_tag() {
    let mut net = Net::pair();
    let base = net.link(A).peer;
    net.device(A).set_remote(base, true);
    let tag = tag(&net, A, 1, 2, 3);
    let id = add(&mut net, A, tag);
    net.send(A, id, b"hello");
    net.run(secs(1));
    assert_eq!(net.link(B).received, [b"hello".to_vec()]);
    assert_eq!(net.sites[B].device.counters().total(), 0);
}

#[test]
fn a_lane_that_was_not_agreed_on_is_refused() {
    let (mut net, tags) = remotes();
    let stranger = tag(&net, A, 1, 1, 2);
    let id = add(&mut net, A, stranger);
    net.send(A, id, b"hello");
    net.run(secs(1));
    assert_eq!(net.refused(B, Refusal::UnknownLane), 1);
    assert_eq!(net.count(B, Kind::Response), 0);
    // The moment it is agreed on, the next try is taken.
    let there = add(&mut net, B, stranger);
    net.run(secs(10));
    assert_eq!(received(&net, B, there), [b"hello".to_vec()]);
    // Gone again.
    net.device(B).remove_peer(there);
    assert_eq!(net.sites[B].device.lane(net.link(B).peer, stranger), None);
    assert_eq!(
        net.sites[B].device.lanes(net.link(B).peer).count(),
        tags.len(),
        "the others stay"
    );
}

#[test]
fn a_lane_is_taken_on_its_own_link_only() {
    let (mut net, tags) = remotes();
    let there = lane(&net, B, tags[2]);
    let id = lane(&net, A, tags[2]);
    net.pass = Box::new(|_| false);
    net.send(A, id, b"hello");
    let initiation = net.sent(A, Kind::Initiation).pop().unwrap();
    let receive_on = |net: &mut Net, number: Option<u8>| {
        let now = net.now_of(B);
        let site = &mut net.sites[B];
        site.device.receive_on(
            number.map(link),
            &now,
            &initiation.from,
            &initiation.bytes,
            0,
            &mut site.rng,
            &mut site.out,
        );
        let installed = |output| match output {
            Output::Install { peer, keypair } => {
                let index = keypair.local_index;
                Some((peer, index, keypair))
            }
            _ => None,
        };
        site.out.drain().filter_map(installed).next()
    };
    // The path is between link 2 of A and link 3 of B.
    assert!(receive_on(&mut net, Some(2)).is_none());
    assert_eq!(net.refused(B, Refusal::OtherLink), 1);
    let (peer, _, keypair) = receive_on(&mut net, Some(3)).expect("a session");
    assert_eq!(peer, there);
    net.device(B).retire(keypair);
}

/// Somebody on the way keeps an initiation to use it later: for 90 s at most, counted from the newest that arrives.
#[test]
fn an_initiation_that_was_withheld_expires() {
    for (age, taken) in [(85, true), (95, false)] {
        let (mut net, tags) = remotes();
        let id = lane(&net, A, tags[0]);
        net.pass = Box::new(|_| false);
        net.send(A, id, b"hello");
        let withheld = net.sent(A, Kind::Initiation).pop().unwrap();
        net.pass = Box::new(|_| true);
        net.device(A).remove_peer(id);
        net.run(secs(age));
        let base = net.link(A).peer;
        net.send(A, base, b"newer");
        net.run(secs(1));
        net.deliver(&withheld);
        assert_eq!(net.refused(B, Refusal::Withheld), u64::from(!taken), "{age} s");
        assert_eq!(net.count(B, Kind::Response), 1 + usize::from(taken));
        // The same again is old in any case.
        net.deliver(&withheld);
        assert_eq!(net.refused(B, Refusal::OldTimestamp), u64::from(taken));
    }
}

/// A link that goes and comes back takes its lanes along; what they have accepted is old for the new ones too.
#[test]
fn a_lane_that_is_removed_and_added_again_remembers() {
    let (mut net, tags) = remotes();
    for &tag in &tags[..2] {
        let id = lane(&net, A, tag);
        net.send(A, id, b"hello");
        net.run(secs(1));
    }
    let heard = net.sent(A, Kind::Initiation);
    let again = |net: &mut Net| {
        for &tag in &tags[..2] {
            let gone = lane(net, B, tag);
            net.device(B).remove_peer(gone);
            add(net, B, tag);
        }
    };
    again(&mut net);
    again(&mut net);
    heard.iter().for_each(|initiation| net.deliver(initiation));
    assert_eq!(net.refused(B, Refusal::OldTimestamp), 2);
    assert_eq!(net.count(B, Kind::Response), 2, "to the first ones");
    // Newer ones are taken.
    let id = lane(&net, A, tags[1]);
    net.run(secs(200));
    net.send(A, id, b"again");
    net.run(secs(10));
    let there = lane(&net, B, tags[1]);
    assert_eq!(received(&net, B, there), [b"again".to_vec()]);
    // What was removed long ago is too old for any lane.
    again(&mut net);
    net.deliver(&heard[0]);
    assert_eq!(net.refused(B, Refusal::Withheld), 1);
}

/// A clock that steps back an hour between the handshakes of two lanes does not make the second one look withheld.
#[test]
fn a_clock_that_steps_back_stops_no_lane() {
    let (mut net, tags) = remotes();
    let base = net.link(A).peer;
    net.send(A, base, b"base");
    net.run(secs(1));
    net.sites[A].wall_offset = -3600;
    for &tag in &tags {
        let id = lane(&net, A, tag);
        net.send(A, id, b"lane");
        net.run(secs(1));
        assert_eq!(received(&net, B, lane(&net, B, tag)), [b"lane".to_vec()]);
    }
}

#[test]
fn lanes_use_the_pre_shared_key_of_their_base() {
    let (mut net, tags) = remotes();
    let psk = || Some(Secret::with(|key| key.fill(9)));
    let bases = [A, B].map(|site| net.link(site).peer);
    net.device(A).set_psk(bases[A], psk());
    let id = lane(&net, A, tags[0]);
    net.send(A, id, b"hello");
    net.run(secs(1));
    assert_eq!(net.refused(A, Refusal::ResponseTag), 1, "B does not have it");
    net.device(B).set_psk(bases[B], psk());
    net.run(secs(10));
    assert_eq!(received(&net, B, lane(&net, B, tags[0])), [b"hello".to_vec()]);
}

#[test]
fn a_new_private_key_is_used_by_every_lane() {
    let (mut net, tags) = remotes();
    for &tag in &tags {
        let id = lane(&net, A, tag);
        net.send(A, id, b"old");
    }
    net.run(secs(1));
    // The remote has another key from now on, and is another peer with other tags.
    net.set_private_key(B, Some(private_key(77)));
    let key = net.sites[B].device.public_key().unwrap();
    let addr = net.sites[B].addr;
    let new = net.add_peer(A, key, Some(addr));
    net.device(A).set_remote(new, true);
    let id = lane(&net, B, tags[1]);
    let name = tags[1].path(
        &net.sites[A].device.public_key().unwrap(),
        &net.sites[B].device.public_key().unwrap(),
    );
    let there = net.device(A).add_lane(new, tags[1], name.local).unwrap();
    net.add_link(A, there);
    net.send(B, id, b"new");
    net.run(secs(10));
    assert_eq!(received(&net, A, there), [b"new".to_vec()]);
}

#[test]
fn a_peer_with_our_own_key_goes_with_its_lanes() {
    let (mut net, tags) = remotes();
    let ids: Vec<PeerId> = tags.iter().map(|&tag| lane(&net, A, tag)).collect();
    let base = net.link(A).peer;
    net.set_private_key(A, Some(private_key(2)));
    assert_eq!(net.sites[A].gone.len(), ids.len() + 1);
    assert_eq!(net.sites[A].gone.last(), Some(&base));
    assert!(ids.iter().all(|id| net.sites[A].gone.contains(id)));
    assert_eq!(net.sites[A].device.indices_in_use(), 0);
}

#[test]
fn what_cannot_be_added() {
    let limits = Limits {
        max_peers: 3,
        ..Limits::default()
    };
    let mut net = Net::pair_with(limits, x25519::default());
    let base = net.link(A).peer;
    let [first, second, third] = [0, 1, 2].map(|lane| tag(&net, A, 1, 1, lane));
    let device = net.device(A);
    assert_eq!(
        device.add_lane(base, first, link(1)),
        Err(AddLaneError::NoRemote),
        "a stock peer has none"
    );
    device.set_remote(base, true);
    let one = device.add_lane(base, first, link(1)).unwrap();
    assert_eq!(device.add_lane(base, first, link(1)), Err(AddLaneError::Exists));
    assert_eq!(
        device.add_lane(one, second, link(1)),
        Err(AddLaneError::NoRemote),
        "nor has a lane"
    );
    let two = device.add_lane(base, second, link(1)).unwrap();
    assert_eq!(device.add_lane(base, third, link(1)), Err(AddLaneError::Full));
    // Its number is free once its worker has let go of it.
    device.remove_peer(two);
    assert_eq!(device.add_lane(base, third, link(1)), Err(AddLaneError::Full));
    device.release(two);
    assert_eq!(device.add_lane(base, third, link(1)), Ok(two));
    assert_eq!(device.peers(), 1, "lanes are no peers");
    let removed = catch_unwind(AssertUnwindSafe(|| net.device(A).remove_peer(base)));
    assert!(removed.is_err(), "its lanes go first");
}
