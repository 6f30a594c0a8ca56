//! The ports in memory: order, bounds and counters.

use patronus_io::loopback::LoopbackPort;
use patronus_io::{Port, PortCounters};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX, Burst, FrameCache, Outer};

fn burst_of(frames: &mut FrameCache, numbers: std::ops::Range<u8>) -> Burst {
    let mut burst = Burst::new();
    for n in numbers {
        let mut pkt = frames.alloc().expect("a frame");
        pkt.append(usize::from(n)).fill(n);
        *pkt.outer_mut() = Outer::new(([192, 0, 2, n], 1).into());
        burst.push(pkt);
    }
    burst
}

fn counts(counters: &PortCounters) -> Vec<(&'static str, u64)> {
    counters.named().filter(|(_, value)| *value > 0).collect()
}

#[test]
fn packets_arrive_in_order_and_a_full_ring_is_a_counted_drop() {
    let arena = Arena::new(&ArenaConfig {
        frames: 200,
        jumbo_frames: 0,
    })
    .expect("arena");
    let mut frames = FrameCache::new(arena);
    let (mut here, mut there) = LoopbackPort::pair(70);
    for numbers in [0..60, 60..90] {
        let mut burst = burst_of(&mut frames, numbers);
        here.tx_burst(&mut frames, &mut burst).expect("tx");
        assert!(burst.is_empty());
    }
    let mut got = Burst::new();
    assert_eq!(there.rx_burst(&mut frames, &mut got).expect("rx"), BURST_MAX);
    assert_eq!(there.rx_burst(&mut frames, &mut got).expect("rx"), 0, "no room");
    for (n, pkt) in got.iter().enumerate() {
        assert_eq!(pkt.data(), vec![n as u8; n]);
        assert_eq!(pkt.outer().remote(), Some(([192, 0, 2, n as u8], 1).into()));
    }
    got.clear_into(&mut frames);
    assert_eq!(there.rx_burst(&mut frames, &mut got).expect("rx"), 6);
    assert_eq!(there.rx_burst(&mut frames, &mut got).expect("rx"), 0, "empty");
    assert_eq!(
        here.rx_burst(&mut frames, &mut got).expect("rx"),
        0,
        "the other direction"
    );
    let bytes: u64 = (0..70).sum();
    assert_eq!(
        counts(here.counters()),
        [
            ("tx_packets", 70),
            ("tx_bytes", bytes),
            ("tx_calls", 2),
            ("tx_no_buffer", 20)
        ]
    );
    assert_eq!(
        counts(there.counters()),
        [("rx_packets", 70), ("rx_bytes", bytes), ("rx_calls", 2)]
    );
    assert!(here.wait_fds().is_empty() && !here.has_pending());
    let mut left = burst_of(&mut frames, 1..3);
    there.tx_burst(&mut frames, &mut left).expect("tx");
    drop((here, there, got, frames));
    assert_eq!(arena.free_frames(), 200, "what is in the rings comes back too");
}
