//! Moving packets through a UDP port asks the allocator for nothing.

use allocation_counter::measure;
use patronus_io::Port;
use patronus_io::udp::{UdpConfig, UdpSockets};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache, Outer};

#[test]
fn a_burst_each_way_allocates_nothing() {
    for offload in [true, false] {
        let config = UdpConfig {
            ifindex: 0,
            port: 0,
            workers: 1,
            fwmark: 0,
            buffer_bytes: 4 << 20,
            offload,
        };
        let sockets = UdpSockets::bind(&config).expect("sockets");
        let (mut port, sender) = (sockets.worker_port(0), sockets.sender());
        let arena = Arena::new(&ArenaConfig {
            frames: 512,
            jumbo_frames: 16,
        })
        .expect("arena");
        let mut frames = FrameCache::new(arena);
        // To itself, over both families, and to an address that is refused.
        let to = |ip: &str| Outer::new(format!("{ip}:{}", sockets.port()).parse().expect("address"));
        let mut outers = [to("127.0.0.1"), to("[::1]"), Outer::new(([255; 4], 9).into())];
        outers[0].set_local("192.0.2.77".parse().ok(), 0);
        outers[1].set_local("::1".parse().ok(), 0);
        let mut burst = Burst::new();
        let allocations = measure(|| {
            for round in 0..300 {
                for n in 0..40 {
                    let len = [1452, 96, 1452, 0, 3000][(n / 7 + round) % 5];
                    let mut pkt = frames.alloc_for(len).expect("a frame");
                    pkt.append(len);
                    // At last all to one, which gets the path socket.
                    *pkt.outer_mut() = outers[if round < 250 { (n / 3 + round) % 3 } else { 1 }];
                    burst.push(pkt);
                }
                port.tx_burst(&mut frames, &mut burst).expect("tx");
                port.take_stale_source();
                sender.send(&outers[1], &[0; 148]).expect("send");
                while port.rx_burst(&mut frames, &mut burst).expect("rx") > 0 {
                    burst.clear_into(&mut frames);
                }
            }
        });
        assert_eq!(allocations.count_total, 0);
        assert!(port.counters().rx_packets.get() > 300 * 20);
    }
}
