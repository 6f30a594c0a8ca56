//! What changes of routes cost the slow path, in both layers: `cargo run --release -p patronus-engine --example layers`.
//!
//! 100,000 dynamic routes, as many of a configuration beside them, a thousand changes among all of these, and the configuration again. Each with the longest turn: handshakes wait
//! so long. Times say something only beside each other, in one run.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use patronus_crypto::PeerId;
use patronus_engine::allowedips::Prefix;
use patronus_engine::flow::HashKeys;
use patronus_engine::plan::{Builder, Frame, Lan, Via, Wanted};
use patronus_engine::route::Rules;

const ROUTES: u32 = 100_000;

fn prefix(base: [u8; 4], number: u32) -> Prefix {
    let addr = Ipv4Addr::from_bits(u32::from_be_bytes(base) + (number << 8));
    Prefix::new(addr.into(), 24).expect("24 bits")
}

fn vias(number: u32) -> Vec<Via> {
    vec![Via::Tunnel(PeerId(number % 100))]
}

/// Does `what`, and then all turns that it takes.
fn measure(name: &str, builder: &mut Builder, rules: &mut [Rules], what: impl FnOnce(&mut Builder)) {
    let start = Instant::now();
    what(builder);
    let (first, mut turns, mut longest) = (start.elapsed(), 0, Duration::ZERO);
    while builder.is_busy() {
        let turn = Instant::now();
        builder.advance();
        longest = longest.max(turn.elapsed());
        turns += 1;
        rules.iter_mut().for_each(|rules| rules.reader.quiescent());
    }
    let all = start.elapsed();
    println!("{name:<32} {all:>12.3?}, asked for in {first:.3?}; {turns} turns, the longest {longest:.3?}");
}

fn main() {
    let frame = Frame {
        lans: vec![Lan {
            mac: None,
            mtu: u16::MAX,
        }],
        routes: 2 * ROUTES as usize,
        workers: 1,
        keys: HashKeys::new([1, 2, 3, 4, 5, 6, 7]),
    };
    let (mut builder, mut rules) = Builder::new(frame, 1420).expect("memory");
    rules.iter_mut().for_each(|rules| rules.reader.resume());
    let change = |count: u32, add: u32| {
        move |builder: &mut Builder| {
            for number in 0..count {
                let changed = builder.change(prefix([10, 0, 0, 0], number), Some(vias(number + add)));
                changed.expect("a next hop");
            }
        }
    };
    let wanted = Wanted {
        routes: (0..ROUTES)
            .map(|number| (prefix([30, 0, 0, 0], number), vias(number)))
            .collect(),
        policies: Vec::new(),
    };
    let want = |builder: &mut Builder| builder.want(wanted.clone()).expect("room");
    measure("dynamic routes", &mut builder, &mut rules, change(ROUTES, 0));
    measure("a configuration beside them", &mut builder, &mut rules, want);
    measure(
        "1,000 changes among them",
        &mut builder,
        &mut rules,
        change(1000, 1),
    );
    measure("the configuration again", &mut builder, &mut rules, want);
}
