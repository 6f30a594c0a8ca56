//! Two sites and a bad network, some hundred times: packets are lost, copied, delayed and overtaken, hosts send what they like.
//!
//! Whatever happens, nothing is delivered twice or altered, nothing comes out that did not go in, no nonce is used twice (the net
//! asserts that of every datagram), and the counters add up.

use std::collections::HashSet;

use patronus_crypto::Random;
use patronus_engine::stats::DropReason;

use crate::common::{Datagram, Net, Seeded, Setup, ms, packet, secs};

/// How bad the network is, in percent.
#[derive(Clone, Copy, Debug)]
struct Weather {
    loss: u32,
    copies: u32,
    delay_max_ms: u32,
}

fn wire(mut rng: Seeded, weather: Weather) -> crate::common::Wire {
    Box::new(move |_: &Datagram| {
        let mut arrivals = Vec::new();
        if !rng.chance(weather.loss) {
            arrivals.push(ms(u64::from(10 + rng.below(weather.delay_max_ms + 1))));
        }
        while rng.chance(weather.copies) {
            arrivals.push(ms(u64::from(10 + rng.below(weather.delay_max_ms + 500))));
        }
        arrivals
    })
}

/// What was sent to a site, and what came out there.
struct Book {
    sent: [Vec<Vec<u8>>; 2],
    received: [Vec<Vec<u8>>; 2],
}

fn run(seed: u64, weather: Weather) -> (Net, Book) {
    let mut rng = Seeded(seed);
    let setup = |rng: &mut Seeded| Setup {
        workers: [1, 1, 2, 3][rng.pick(0..4)],
        mtu: [1420, 1420, 1280, 9000][rng.pick(0..4)],
        ..Setup::default()
    };
    let mut net = Net::empty();
    let (a, b) = (setup(&mut rng), setup(&mut rng));
    net.add_site(&a);
    net.add_site(&b);
    net.introduce(0, 1);
    net.introduce(1, 0);
    net.logging = false;
    net.wire = wire(Seeded(seed ^ 0xabcd), weather);
    let mut book = Book {
        sent: [const { Vec::new() }; 2],
        received: [const { Vec::new() }; 2],
    };
    let mut id = 0;
    for _ in 0..40 {
        // A burst from one host or both, of packets of every size; then some time, now and then more than a key lives.
        for from in [0, 1] {
            for _ in 0..rng.pick(0..12) {
                id += 1;
                let packet = match rng.chance(50) {
                    true => packet::between(from, 1 - from, id, rng.pick(36..1421)),
                    false => packet::between_v6(from, 1 - from, id, rng.pick(56..1421)),
                };
                net.offer(from, &packet);
                book.sent[1 - from].push(packet);
            }
        }
        let pause = match rng.pick(0..20) {
            0 => secs(rng.pick(60..300) as u64),
            1..4 => secs(rng.pick(1..30) as u64),
            _ => ms(rng.pick(0..200) as u64),
        };
        net.run(pause);
    }
    net.run(secs(10));
    for site in [0, 1] {
        book.received[site] = net.delivered(site);
    }
    (net, book)
}

/// The two hosts have a flow of each IP version; order is kept within a flow.
fn of_flow(packets: &[Vec<u8>], version: u8) -> Vec<&[u8]> {
    let of_version = packets.iter().filter(|packet| packet[0] >> 4 == version);
    of_version.map(Vec::as_slice).collect()
}

fn check_nothing_twice_or_altered(book: &Book, seed: u64) {
    for site in [0, 1] {
        let sent: HashSet<_> = book.sent[site].iter().collect();
        let received: HashSet<_> = book.received[site].iter().collect();
        assert_eq!(
            received.len(),
            book.received[site].len(),
            "seed {seed}: delivered twice"
        );
        assert!(received.is_subset(&sent), "seed {seed}: altered or invented");
    }
}

#[test]
fn c31_c32_r22_on_a_network_that_loses_copies_and_reorders() {
    let (mut sent, mut received, mut replays) = (0, 0, 0);
    for seed in 0..150 {
        let mut rng = Seeded(seed * 77);
        let weather = Weather {
            loss: rng.below(40),
            copies: rng.below(40),
            delay_max_ms: rng.below(300),
        };
        let (net, book) = run(seed, weather);
        check_nothing_twice_or_altered(&book, seed);
        sent += book.sent.iter().map(Vec::len).sum::<usize>();
        received += book.received.iter().map(Vec::len).sum::<usize>();
        replays += net
            .sites
            .iter()
            .map(|s| s.dropped(DropReason::DecapReplay))
            .sum::<u64>();
        net.finish();
    }
    // The weather was as bad as meant, and the tunnel worked.
    assert!(received * 2 > sent && received < sent, "{received} of {sent}");
    assert!(replays > 1000, "{replays} copies");
}

#[test]
fn c45_on_a_network_that_loses_and_copies_but_keeps_the_order() {
    for seed in 1000..1100 {
        let mut rng = Seeded(seed * 77);
        let weather = Weather {
            loss: rng.below(30),
            copies: 0,
            delay_max_ms: 0,
        };
        let (net, book) = run(seed, weather);
        check_nothing_twice_or_altered(&book, seed);
        for site in [0, 1] {
            for version in [4, 6] {
                let flow = of_flow(&book.received[site], version);
                assert!(flow.iter().map(|p| packet::id(p)).is_sorted(), "seed {seed}");
            }
        }
        net.finish();
    }
}

/// On a good network nothing is lost but what found no room while it waited.
#[test]
fn on_a_good_network_everything_arrives_in_order() {
    for seed in 2000..2060 {
        let weather = Weather {
            loss: 0,
            copies: 0,
            delay_max_ms: 0,
        };
        let (net, book) = run(seed, weather);
        for site in [0, 1] {
            for version in [4, 6] {
                let [sent, received] =
                    [&book.sent, &book.received].map(|packets| of_flow(&packets[site], version));
                assert_eq!(received, sent, "seed {seed}");
            }
            assert_eq!(net.sites[site].drops(), [], "seed {seed}");
        }
        net.finish();
    }
}
