//! Moving frames through a packet socket's port asks the allocator for nothing.

mod common;

use allocation_counter::measure;
use common::frame::{ipv4, udp};
use patronus_io::Port;
use patronus_io::afpacket::PacketTap;
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};

#[test]
fn a_burst_each_way_allocates_nothing() {
    common::in_namespace(|| {
        common::veth();
        for end in ["va", "vb"] {
            common::ip(&format!("link set {end} mtu 9000"));
        }
        let mut tap = PacketTap::attach(common::ifindex("va"), 1, &[]).expect("attach");
        let mut port = tap.port().expect("a port");
        let network = common::packet_socket("vb");
        let arena = Arena::new(&ArenaConfig {
            frames: 512,
            jumbo_frames: 64,
        })
        .expect("arena");
        let mut frames = FrameCache::new(arena);
        let sizes = [8usize, 1400, 5000, 60];
        let coming = sizes.map(|len| ipv4([198, 51, 100, 1].into(), 17, 0, &udp(9, &vec![7; len])));
        // One in ten is too long for the interface.
        let going = |n: usize| {
            if n.is_multiple_of(10) {
                9100
            } else {
                sizes[n % 4].max(60)
            }
        };
        let mut burst = Burst::new();
        let allocations = measure(|| {
            for _ in 0..300 {
                for frame in coming.iter().cycle().take(40) {
                    common::send(&network, frame);
                }
                while port.rx_burst(&mut frames, &mut burst).expect("rx") > 0 {
                    burst.clear_into(&mut frames);
                }
                for n in 0..40 {
                    let mut pkt = frames.alloc_for(going(n)).expect("a frame");
                    pkt.append(going(n)).fill(2);
                    burst.push(pkt);
                }
                port.tx_burst(&mut frames, &mut burst).expect("tx");
            }
        });
        assert_eq!(allocations.count_total, 0);
        let counters = port.counters();
        assert_eq!(counters.rx_packets.get(), 300 * 40);
        assert_eq!(
            [counters.tx_packets.get(), counters.tx_too_big.get()],
            [300 * 36, 300 * 4]
        );
    });
}
