//! Traces and captures on the workers: what is told of packets from one end of the engine to the other, and what it costs those who do not fit.

mod common;

use std::sync::Arc;

use patronus_engine::channel::Command;
use patronus_engine::observe::{Limits, Task, Told, observer};
use patronus_observe::{BYTES_MAX, Filter, Form, Kind, Matched, Point, Record, Sides, Stories};

use crate::common::{A, B, Net, Setup, packet, secs};

/// A site's observers, as the slow path has them.
struct Watched {
    told: Vec<Told>,
    limits: Arc<Limits>,
}

fn task(kind: Kind, filter: &str) -> Task {
    Task {
        kind,
        filter: Filter::parse(filter).unwrap(),
        sides: Sides::Both,
        snap: if kind == Kind::Trace { 0 } else { 2048 },
        udp_port: 51820,
        round: 1,
    }
}

fn watch(net: &mut Net, site: usize, task: &Task, packets: u64, records: usize) -> Watched {
    let limits = Arc::new(Limits::new(packets, BYTES_MAX));
    let mut told = Vec::new();
    net.sites[site].core.tell_each(|worker| {
        let (observer, end) = observer(task, worker, &limits, records);
        told.push(end);
        Command::Observe(Some(Box::new(observer)))
    });
    net.settle();
    Watched { told, limits }
}

impl Watched {
    /// What was told so far, by time.
    fn records(&mut self) -> Vec<(Record, Vec<u8>)> {
        let mut records = Vec::new();
        for Told { free, full } in &mut self.told {
            while let Some(entry) = full.pop() {
                records.push((entry.record, entry.data().to_vec()));
                assert!(free.push(entry).is_ok(), "there is room where it came from");
            }
        }
        records.sort_by_key(|(record, _)| record.time);
        records
    }

    fn points(&mut self) -> Vec<Point> {
        let records = self.records();
        records
            .iter()
            .map(|(record, _)| Point::of(record.point).unwrap())
            .collect()
    }
}

fn end(net: &mut Net, site: usize) {
    net.sites[site].core.tell_all(|| Command::Observe(None));
    net.settle();
}

#[test]
fn a_trace_follows_a_packet_out_and_in() {
    let mut net = Net::pair();
    net.connect();
    let (mut a, mut b) = (
        watch(&mut net, A, &task(Kind::Trace, ""), 10, 64),
        watch(&mut net, B, &task(Kind::Trace, ""), 10, 64),
    );
    net.send(A, &packet::between(A, B, 7, 100));
    net.run(secs(1));
    assert_eq!(a.points(), [Point::LanRx, Point::Encap, Point::WanTx]);
    let records = b.records();
    let points: Vec<u8> = records.iter().map(|(record, _)| record.point).collect();
    assert_eq!(
        points,
        [Point::WanRx, Point::Decap, Point::LanTx].map(|point| point as u8)
    );
    let decap = records[1].0;
    assert_eq!(decap.length, 100);
    assert_eq!(decap.peer, net.peer(B, A).0);
    assert_eq!(decap.endpoint(), Some(net.sites[A].addr));
    assert!(
        records
            .iter()
            .all(|(record, data)| record.inbound == 1 && data.is_empty())
    );
    assert!(records.iter().all(|(record, _)| record.frame == decap.frame));
    end(&mut net, A);
    net.send(A, &packet::between(A, B, 8, 100));
    net.run(secs(1));
    assert!(a.records().is_empty(), "it is over");
    assert_eq!(b.points().len(), 3);
    end(&mut net, B);
    net.finish();
}

#[test]
fn only_what_the_filter_says_is_told() {
    let mut net = Net::star(2, &Setup::default());
    for branch in 1..=2 {
        net.send(branch, &packet::between(branch, A, 0, 100));
    }
    net.run(secs(1));
    let mut task = task(Kind::Trace, "outbound and peer second");
    let second = net.peer(A, 2);
    task.filter.resolve(|_| Ok(second.0)).unwrap();
    let mut a = watch(&mut net, A, &task, 10, 64);
    net.send(A, &packet::between(A, 1, 1, 100));
    net.run(secs(1));
    let told = a.records();
    // Whose it is was not known at first.
    let matched: Vec<_> = told
        .iter()
        .map(|(record, _)| Matched::of(record.matched).unwrap())
        .collect();
    assert_eq!(matched, [Matched::Maybe, Matched::No]);
    net.send(A, &packet::between(A, 2, 1, 100));
    net.send(2, &packet::between(2, A, 1, 100));
    net.run(secs(1));
    let told = a.records();
    let matched: Vec<_> = told
        .iter()
        .map(|(record, _)| Matched::of(record.matched).unwrap())
        .collect();
    assert_eq!(matched, [Matched::Maybe, Matched::Yes, Matched::Yes]);
    assert_eq!(told[2].0.point, Point::WanTx as u8);
    assert!(!a.limits.is_reached());
    end(&mut net, A);
    net.finish();
}

#[test]
fn a_drop_is_told_with_its_reason() {
    let mut net = Net::pair();
    net.connect();
    let mut a = watch(&mut net, A, &task(Kind::Trace, ""), 10, 64);
    // Nobody's address.
    net.send(A, &packet::between(A, 9, 1, 60));
    net.run(secs(1));
    let records = a.records();
    let [(came, _), (gone, _), (error, _)] = &records[..] else {
        panic!("{records:?}")
    };
    assert_eq!((came.point, gone.point), (Point::LanRx as u8, Point::Drop as u8));
    // What the sender is told is a packet as well.
    assert_eq!((error.point, error.protocol), (Point::LanTx as u8, 1));
    assert_eq!(
        gone.reason,
        patronus_engine::stats::DropReason::EncapNoPeer as u16
    );
    // What is no message of ours never gets inside: it is told by its addresses.
    let from = net.sites[B].addr;
    net.inject(
        A,
        from,
        &[
            4, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    );
    net.run(secs(1));
    let records = a.records();
    let points: Vec<_> = records.iter().map(|(record, _)| record.point).collect();
    assert_eq!(points, [Point::WanRx as u8, Point::Drop as u8]);
    assert_eq!(records[1].0.form, Form::Message as u8);
    end(&mut net, A);
    net.finish();
}

#[test]
fn a_trace_goes_along_to_another_worker() {
    let setup = Setup {
        workers: 2,
        ..Setup::default()
    };
    let mut net = Net::star(2, &setup);
    for branch in 1..=2 {
        net.send(branch, &packet::between(branch, A, 0, 100));
    }
    net.run(secs(1));
    let mut a = watch(&mut net, A, &task(Kind::Trace, "host 10.0.0.0 or ip"), 100, 64);
    for branch in 1..=2 {
        // Both come in by the first worker's queue.
        net.offer_on(A, 0, &packet::between(A, branch, 5, 100));
    }
    net.settle();
    net.run(secs(1));
    let mut stories = Stories::default();
    let mut over = Vec::new();
    for (record, _) in a.records() {
        over.extend(stories.add(record));
    }
    assert_eq!(over.len(), 2);
    assert!(stories.end().is_empty());
    let took_over = |story: &&patronus_observe::Story| {
        story
            .records
            .iter()
            .any(|record| record.point == Point::TakeOver as u8)
    };
    let story = over.iter().find(took_over).expect("one is the other worker's");
    let points: Vec<_> = story
        .records
        .iter()
        .map(|record| (Point::of(record.point).unwrap(), record.worker))
        .collect();
    assert_eq!(
        points,
        [
            (Point::LanRx, 0),
            (Point::TakeOver, 1),
            (Point::Encap, 1),
            (Point::WanTx, 1)
        ]
    );
    end(&mut net, A);
    net.finish();
}

#[test]
fn a_capture_has_the_bytes_of_both_sides() {
    let mut net = Net::pair();
    net.connect();
    let mut a = watch(&mut net, A, &task(Kind::Capture, "ip"), 100, 64);
    let sent = packet::between(A, B, 7, 100);
    net.send(A, &sent);
    net.run(secs(1));
    let records = a.records();
    let points: Vec<_> = records.iter().map(|(record, _)| record.point).collect();
    assert_eq!(points, [Point::LanRx as u8, Point::WanTx as u8]);
    assert_eq!(records[0].1, sent);
    let outer = &records[1];
    assert_eq!(outer.0.form, Form::Message as u8);
    let datagram = net.sent(A).last().unwrap().clone();
    assert_eq!(outer.1, datagram.bytes);
    end(&mut net, A);
    net.finish();
}

#[test]
fn a_capture_of_one_peer_has_what_came_before_he_was_known() {
    let mut net = Net::pair();
    net.connect();
    let mut task = Task {
        sides: Sides::Inner,
        ..task(Kind::Capture, "peer b")
    };
    let peer = net.peer(A, B);
    task.filter.resolve(|_| Ok(peer.0)).unwrap();
    let mut a = watch(&mut net, A, &task, 2, 64);
    let sent = packet::between(A, B, 7, 100);
    net.send(A, &sent);
    net.send(B, &packet::between(B, A, 8, 100));
    net.run(secs(1));
    let told = a.records();
    let told: Vec<_> = told
        .iter()
        .map(|(record, data)| (Point::of(record.point).unwrap(), record.matched, data.len()))
        .collect();
    let (maybe, yes) = (Matched::Maybe as u8, Matched::Yes as u8);
    assert_eq!(
        told,
        [
            (Point::LanRx, maybe, 100),
            (Point::Encap, yes, 0),
            (Point::LanTx, yes, 100)
        ]
    );
    end(&mut net, A);
    net.finish();
}

#[test]
fn what_does_not_fit_is_counted_and_what_is_enough_is_enough() {
    let mut net = Net::pair();
    net.connect();
    net.delivered(B);
    let mut a = watch(&mut net, A, &task(Kind::Capture, ""), 20, 4);
    for id in 0..8 {
        net.offer(A, &packet::between(A, B, id, 100));
    }
    net.settle();
    assert_eq!(a.records().len(), 4);
    // Eight that came and eight that left were worth telling.
    assert_eq!(a.limits.lost(), 12);
    for id in 0..8 {
        net.send(A, &packet::between(A, B, id, 100));
        a.records();
    }
    assert!(a.limits.is_reached());
    net.send(A, &packet::between(A, B, 9, 100));
    assert!(a.records().is_empty());
    assert_eq!(a.limits.lost(), 12);
    end(&mut net, A);
    net.run(secs(1));
    assert_eq!(net.delivered(B).len(), 17, "packets go as ever");
    net.finish();
}

#[test]
fn when_no_more_is_wanted_nothing_new_is_told() {
    let mut net = Net::pair();
    net.connect();
    // Nobody knows at first whose packet it is, and nobody is this peer.
    for (kind, filter) in [
        (Kind::Trace, ""),
        (Kind::Trace, "peer nobody"),
        (Kind::Capture, ""),
        (Kind::Capture, "peer nobody"),
    ] {
        let mut a = watch(&mut net, A, &task(kind, filter), 10, 64);
        net.send(A, &packet::between(A, B, 7, 100));
        net.run(secs(1));
        assert!(!a.records().is_empty(), "{kind:?} {filter}");
        a.limits.close();
        net.send(A, &packet::between(A, B, 8, 100));
        net.run(secs(1));
        assert!(a.records().is_empty(), "{kind:?} {filter}: it would never end");
        end(&mut net, A);
    }
    net.finish();
}
