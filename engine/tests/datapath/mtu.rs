//! Packets that are longer than the tunnel takes: cut up, refused, or asked not to come.

use std::sync::Arc;

use patronus_abi::channel::PathName;
use patronus_abi::site::{Class, Mode};
use patronus_engine::channel::Command;
use patronus_engine::flow::HashKeys;
use patronus_engine::path::{PathBoard, PathLanes, Paths};
use patronus_engine::stats::DropReason;
use patronus_engine::steer::{Manners, Order, Plan, Standing, Steering};

use crate::common::packet::{Builder, checksum};
use crate::common::{A, B, Net, Setup, ms, packet};

const DF: u8 = 0x40;

/// Two sites in session; packets of A's that go to B are cut up to what the board says.
fn pair(setup: &Setup) -> (Net, Arc<PathBoard>) {
    let mut net = Net::pair_with(setup);
    net.connect();
    let name = PathName { local: 1, remote: 1 };
    let board = Arc::new(PathBoard::new([name], None));
    let peer = net.peer(A, B);
    let lanes = PathLanes {
        name,
        lanes: Box::default(),
        numbers: Box::default(),
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
    let paths = Paths::new(Arc::clone(&board), Box::new([lanes]), steering);
    net.command(A, peer, Command::Paths(peer, Box::new(paths)));
    net.settle();
    (net, board)
}

/// With DF.
fn uncuttable(len: usize) -> Vec<u8> {
    let mut packet = packet::between(A, B, 1, len);
    (packet[6], packet[10], packet[11]) = (DF, 0, 0);
    let sum = checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Puts the fragments of one packet together, which are in order; what is whole stays as it is.
fn together(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut whole: Vec<Vec<u8>> = Vec::new();
    for packet in packets {
        let word = u16::from_be_bytes([packet[6], packet[7]]);
        let offset = usize::from(word & 0x1fff) * 8;
        assert_eq!(checksum(&[&packet[..20]]), 0);
        if offset == 0 {
            whole.push(packet.clone());
        } else {
            let before = whole.last_mut().expect("a first fragment");
            assert_eq!((before.len() - 20, &before[4..6]), (offset, &packet[4..6]));
            before.extend(&packet[20..]);
        }
        let last = whole.last_mut().unwrap();
        last[6] = packet[6] & 0x20;
    }
    for packet in &mut whole {
        assert_eq!(packet[6], 0, "the last one is there");
        let len = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&len);
        packet[7] = 0;
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    whole
}

#[test]
fn what_may_be_cut_up_arrives_in_pieces_and_in_order() {
    let (mut net, board) = pair(&Setup::default());
    let burst: Vec<_> = (0..60)
        .map(|n| packet::between(A, B, n, if n % 7 == 3 { 1420 } else { 500 + n as usize }))
        .collect();
    let bring = |net: &mut Net| {
        net.log.clear();
        burst.iter().for_each(|packet| net.offer(A, packet));
        net.settle();
        net.run(ms(40));
        (
            net.log.iter().map(|d| d.bytes.len()).max().unwrap(),
            net.delivered(B),
        )
    };
    // Nobody knows of a limit.
    assert_eq!(bring(&mut net), (1420 + 32, burst.clone()));
    board.set_mtu(Some(1296));
    let (longest, delivered) = bring(&mut net);
    assert_eq!(longest, 1296 + 32);
    assert_eq!(delivered.len(), burst.len() + 9);
    // The padding of short ones may change places on the way, not those of one flow.
    assert_eq!(together(&delivered), burst);
    let stats = net.sites[A].workers[0].stats();
    assert_eq!((stats.fragmented.get(), stats.fragments.get()), (9, 18));
    net.finish();
}

#[test]
fn a_burst_of_the_longest_packets_there_are() {
    let setup = Setup {
        mtu: 65_535,
        ..Setup::default()
    };
    let (mut net, board) = pair(&setup);
    board.set_mtu(Some(1280));
    let burst: Vec<_> = (0..16)
        .map(|n| packet::between(A, B, n, 65_000 + n as usize))
        .collect();
    for packet in &burst {
        net.offer(A, packet);
    }
    net.settle();
    net.run(ms(40));
    let delivered = net.delivered(B);
    assert_eq!(together(&delivered), burst);
    assert!(delivered.iter().all(|packet| packet.len() <= 1280));
    net.finish();
}

#[test]
fn c43_what_must_not_be_cut_up_is_told_the_length_that_passes() {
    let (mut net, board) = pair(&Setup::default());
    board.set_mtu(Some(1296));
    let v6 = |len| packet::between_v6(A, B, 1, len);
    for packet in [uncuttable(1296), v6(1296)] {
        net.send(A, &packet);
        net.run(ms(40));
        assert_eq!(net.delivered(B), [packet]);
    }
    net.send(A, &uncuttable(1297));
    net.send(A, &v6(1297));
    let errors = net.delivered(A);
    let [error, error_v6] = &errors[..] else {
        panic!("two errors, not {}", errors.len())
    };
    assert_eq!(
        (&error[20..22], &error[24..28]),
        (&[3, 4][..], &1296u32.to_be_bytes()[..])
    );
    assert_eq!(
        (&error_v6[40..42], &error_v6[44..48]),
        (&[2, 0][..], &1296u32.to_be_bytes()[..])
    );
    assert_eq!(net.sites[A].drops(), [(DropReason::EncapTooBig, 2)]);
    // A board that says less than IPv6 allows is not believed.
    board.set_mtu(Some(500));
    net.send(A, &v6(1280));
    net.run(ms(40));
    assert_eq!(net.delivered(B), [v6(1280)]);
    net.finish();
}

#[test]
fn a_damaged_header_is_not_made_good() {
    let (mut net, board) = pair(&Setup::default());
    board.set_mtu(Some(1296));
    let mut damaged = packet::between(A, B, 1, 1400);
    damaged[4] ^= 1;
    net.send(A, &damaged);
    net.run(ms(40));
    assert_eq!(net.delivered(B).len(), 0);
    assert_eq!(net.sites[A].drops(), [(DropReason::EncapNotIp, 1)]);
    net.finish();
}

#[test]
fn what_fits_but_for_what_stands_behind_it_goes_as_it_is() {
    let (mut net, board) = pair(&Setup::default());
    board.set_mtu(Some(1296));
    for packet in [packet::between(A, B, 1, 1296), uncuttable(1296), uncuttable(200)] {
        let mut longer = packet.clone();
        longer.resize(1400, 0xee);
        net.send(A, &longer);
        net.run(ms(40));
        assert_eq!(net.delivered(B), [packet]);
    }
    assert_eq!(net.sites[A].drops(), []);
    net.finish();
}

/// A SYN that asks for segments of so many bytes, and its checksum right.
fn syn(from: usize, to: usize, size: u16) -> Vec<u8> {
    let mut packet = Builder {
        protocol: 6,
        ..Builder::new(packet::v4(from), packet::v4(to), 1, 44)
    }
    .build();
    let tcp = &mut packet[20..];
    tcp[12..18].copy_from_slice(&[6 << 4, 2, 0xff, 0xff, 0, 0]);
    tcp[20..22].copy_from_slice(&[2, 4]);
    tcp[22..24].copy_from_slice(&size.to_be_bytes());
    let sum = checksum(&[&packet[12..20], &[0, 6, 0, 24], &packet[20..]]);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn connections_ask_for_what_fits_in_both_directions() {
    let (mut net, board) = pair(&Setup::default());
    for (mtu, size) in [(None, 1380), (Some(1296), 1256), (None, 1380)] {
        board.set_mtu(mtu);
        // Out of A's tunnel as well as into it. B's own knows of no limit.
        for (from, to) in [(A, B), (B, A)] {
            net.send(from, &syn(from, to, 8960));
            net.run(ms(40));
            assert_eq!(net.delivered(to), [syn(from, to, size)], "{mtu:?} from {from}");
        }
    }
    net.send(A, &syn(A, B, 1380));
    net.run(ms(40));
    assert_eq!(net.delivered(B), [syn(A, B, 1380)]);
    let clamped = |net: &Net, site: usize| net.sites[site].workers[0].stats().mss_clamped.get();
    assert_eq!((clamped(&net, A), clamped(&net, B)), (4, 3));
    net.finish();
}

/// Segments are to go twice whole: whichever of the two ends asks, and whichever site has the class.
#[test]
fn connections_of_a_class_that_goes_twice_ask_for_eight_bytes_less() {
    let (mut net, board) = pair(&Setup::default());
    let peer = net.peer(A, B);
    let class = Class {
        mode: Mode::Duplicate,
        ..Class::default()
    };
    net.command(A, peer, Command::Classes(Manners::of(&[class])));
    net.settle();
    for (mtu, size) in [(None, 1372), (Some(1296), 1248), (Some(1280), 1232)] {
        board.set_mtu(mtu);
        for (from, to) in [(A, B), (B, A)] {
            net.send(from, &syn(from, to, 8960));
            net.run(ms(40));
            assert_eq!(net.delivered(to), [syn(from, to, size)], "{mtu:?} from {from}");
        }
    }
    net.finish();
}

#[test]
fn without_frames_a_packet_is_lost_and_not_half_of_it() {
    let (mut net, board) = pair(&Setup {
        mtu: 65_535,
        ..Setup::default()
    });
    board.set_mtu(Some(1280));
    let mut held = Vec::new();
    while let Some(frame) = net.frames.alloc() {
        held.push(frame);
    }
    net.send(A, &packet::between(A, B, 1, 60_000));
    assert_eq!(net.sites[A].drops(), [(DropReason::FragmentNoFrame, 1)]);
    held.into_iter().for_each(|frame| net.frames.free(frame));
    net.finish();
}
