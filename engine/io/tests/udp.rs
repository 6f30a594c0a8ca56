//! The UDP ports over the loopback device, against plain sockets and against each other.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use patronus_io::udp::{UdpConfig, UdpPort, UdpSockets};
use patronus_io::{Port, PortCounters};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX, Burst, FrameCache, Outer};

fn config() -> UdpConfig {
    UdpConfig {
        ifindex: 0,
        port: 0,
        workers: 1,
        fwmark: 0,
        buffer_bytes: 4 << 20,
        offload: true,
    }
}

fn bind(config: &UdpConfig) -> (UdpSockets, UdpPort) {
    let sockets = UdpSockets::bind(config).expect("bind");
    let port = sockets.worker_port(0);
    (sockets, port)
}

fn frames() -> FrameCache {
    FrameCache::new(
        Arena::new(&ArenaConfig {
            frames: 1024,
            jumbo_frames: 80,
        })
        .expect("arena"),
    )
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("test address"), port)
}

/// A client that gives up after a second, so that a lost datagram fails the test.
fn client(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind(at(ip, 0)).expect("bind client");
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("timeout");
    socket
}

/// Bytes that differ from packet to packet and within a packet.
fn payload(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(31) ^ seed.wrapping_mul(167) ^ (at >> 8)) as u8)
        .collect()
}

fn send(port: &mut UdpPort, frames: &mut FrameCache, packets: &[(Outer, Vec<u8>)]) {
    for chunk in packets.chunks(BURST_MAX) {
        let mut burst = Burst::new();
        for (outer, data) in chunk {
            let mut pkt = frames.alloc_for(data.len()).expect("a frame");
            pkt.append(data.len()).copy_from_slice(data);
            *pkt.outer_mut() = *outer;
            burst.push(pkt);
        }
        port.tx_burst(frames, &mut burst).expect("tx_burst");
        assert!(burst.is_empty());
    }
}

/// Receives until `count` packets are there or a second has passed, `room` at a time.
fn receive(port: &mut UdpPort, frames: &mut FrameCache, count: usize, room: usize) -> Vec<(Outer, Vec<u8>)> {
    let mut all = Vec::new();
    let end = Instant::now() + Duration::from_secs(1);
    while all.len() < count && Instant::now() < end {
        let mut burst = Burst::new();
        let filler = BURST_MAX - room;
        for _ in 0..filler {
            burst.push(frames.alloc().expect("a frame"));
        }
        let got = port.rx_burst(frames, &mut burst).expect("rx_burst");
        assert_eq!(burst.len(), filler + got);
        all.extend(
            burst
                .iter()
                .skip(filler)
                .map(|pkt| (*pkt.outer(), pkt.data().to_vec())),
        );
        burst.clear_into(frames);
        if got == 0 {
            std::thread::yield_now();
        }
    }
    all
}

fn datas(packets: &[(Outer, Vec<u8>)]) -> Vec<&[u8]> {
    packets.iter().map(|(_, data)| data.as_slice()).collect()
}

fn no_drops(counters: &PortCounters) {
    for (name, value) in counters.drops() {
        assert_eq!(value, 0, "{name}");
    }
}

/// Sends to the port's socket and returns what it says about the sender: the path for an answer.
fn path_back(from: &UdpSocket, to: SocketAddr, port: &mut UdpPort, frames: &mut FrameCache) -> Outer {
    from.send_to(b"hello", to).expect("send");
    let got = receive(port, frames, 1, BURST_MAX);
    assert_eq!(datas(&got), [b"hello"]);
    got[0].0
}

/// Packets of these lengths from one port to another, over `ip`.
fn exchange(ip: &str, lens: &[usize], offload: bool, room: usize) {
    let config = UdpConfig { offload, ..config() };
    let (_tx_sockets, mut tx) = bind(&config);
    let (rx_sockets, mut rx) = bind(&config);
    let mut frames = frames();
    let outer = Outer::new(at(ip, rx_sockets.port()));
    let sent: Vec<_> = lens
        .iter()
        .enumerate()
        .map(|(n, len)| (outer, payload(n, *len)))
        .collect();
    let mut received = Vec::new();
    for some in sent.chunks(BURST_MAX) {
        send(&mut tx, &mut frames, some);
        received.extend(receive(&mut rx, &mut frames, some.len(), room));
    }
    assert_eq!(datas(&received), datas(&sent));
    no_drops(tx.counters());
    no_drops(rx.counters());
    let bytes = lens.iter().sum::<usize>() as u64;
    let (tx, rx) = (tx.counters(), rx.counters());
    assert_eq!(
        (tx.tx_packets.get(), tx.tx_bytes.get()),
        (lens.len() as u64, bytes)
    );
    assert_eq!(
        (rx.rx_packets.get(), rx.rx_bytes.get()),
        (lens.len() as u64, bytes)
    );
}

#[test]
fn c46_train_of_equal_sizes_arrives_whole_and_in_order() {
    for ip in ["127.0.0.1", "::1"] {
        for offload in [true, false] {
            exchange(ip, &[1452; 64], offload, BURST_MAX);
            exchange(ip, &[96; 64], offload, BURST_MAX);
            exchange(ip, &[1; 64], offload, BURST_MAX);
        }
    }
}

#[test]
fn c46_train_is_one_message_each_way() {
    for ip in ["127.0.0.1", "::1"] {
        let (_tx_sockets, mut tx) = bind(&config());
        let (rx_sockets, mut rx) = bind(&config());
        let mut frames = frames();
        let outer = Outer::new(at(ip, rx_sockets.port()));
        let sent: Vec<_> = (0..BURST_MAX).map(|n| (outer, payload(n, 1000))).collect();
        send(&mut tx, &mut frames, &sent);
        assert_eq!(tx.counters().tx_calls.get(), 1);
        assert_eq!(datas(&receive(&mut rx, &mut frames, 64, BURST_MAX)), datas(&sent));
        assert_eq!(rx.counters().rx_calls.get(), 1, "one coalesced message");
    }
}

#[test]
fn c65_mixed_sizes_arrive_whole_and_in_order() {
    let mut lens = Vec::new();
    for n in 0..640_usize {
        lens.push([0, 1, 96, 96, 96, 1452, 1452, 1452, 31, 700, 1500, 1856, 4000][n * n % 13]);
    }
    for ip in ["127.0.0.1", "::1"] {
        for offload in [true, false] {
            exchange(ip, &lens, offload, BURST_MAX);
        }
    }
}

#[test]
fn c65_every_size_up_to_the_largest() {
    let lens = [
        0, 1, 15, 16, 1455, 1456, 1856, 1857, 9000, 16383, 32768, 40000, 65506, 65507,
    ];
    for ip in ["127.0.0.1", "::1"] {
        for offload in [true, false] {
            exchange(ip, &lens, offload, BURST_MAX);
        }
    }
}

#[test]
fn c65_r01_largest_datagram_of_a_stranger() {
    let (sockets, mut port) = bind(&config());
    let mut frames = frames();
    for (ip, len) in [("127.0.0.1", 65507), ("::1", 65527), ("127.0.0.1", 0), ("::1", 0)] {
        let data = payload(len, len);
        client(ip).send_to(&data, at(ip, sockets.port())).expect("send");
        assert_eq!(datas(&receive(&mut port, &mut frames, 1, BURST_MAX)), [data]);
    }
    no_drops(port.counters());
}

#[test]
fn c65_small_room_loses_nothing() {
    for room in [1, 3, 17] {
        exchange("127.0.0.1", &[1200; 64], true, room);
        exchange("::1", &[0, 5, 5, 5, 2, 0, 0, 700, 700, 3], true, room);
    }
}

#[test]
fn c65_out_of_frames_is_counted_and_recovers() {
    let (sockets, mut port) = bind(&config());
    let arena = Arena::new(&ArenaConfig {
        frames: 4,
        jumbo_frames: 0,
    })
    .expect("arena");
    let mut few = FrameCache::new(arena);
    let client = client("127.0.0.1");
    for n in 0..6 {
        client
            .send_to(&payload(n, 10), at("127.0.0.1", sockets.port()))
            .expect("send");
    }
    client
        .send_to(&payload(6, 3000), at("127.0.0.1", sockets.port()))
        .expect("send");
    let mut burst = Burst::new();
    let end = Instant::now() + Duration::from_secs(1);
    while port.counters().rx_no_frame.get() < 3 && Instant::now() < end {
        port.rx_burst(&mut few, &mut burst).expect("rx_burst");
    }
    assert_eq!(burst.len(), 4);
    assert_eq!(
        port.counters().rx_no_frame.get(),
        3,
        "two small ones and the one that needs a jumbo frame"
    );
    burst.clear_into(&mut few);
    client
        .send_to(b"again", at("127.0.0.1", sockets.port()))
        .expect("send");
    assert_eq!(
        datas(&receive(&mut port, &mut frames(), 1, BURST_MAX)),
        [b"again"]
    );
    drop(few);
    assert_eq!(arena.free_frames(), arena.frames());
}

#[test]
fn c60_answer_leaves_from_the_address_that_was_called() {
    let (sockets, mut port) = bind(&config());
    let mut frames = frames();
    let client = client("127.0.0.1");
    for called in ["127.0.0.2", "127.1.2.3", "127.0.0.1"] {
        let called = at(called, sockets.port());
        let outer = path_back(&client, called, &mut port, &mut frames);
        assert_eq!(outer.local(), Some(called.ip()));
        assert_ne!(outer.ifindex(), 0);
        // A train, a single packet and the slow path's sender.
        send(&mut port, &mut frames, &vec![(outer, b"answer".to_vec()); 3]);
        send(&mut port, &mut frames, &[(outer, b"single".to_vec())]);
        sockets.sender().send(&outer, b"slow path").expect("send");
        for expected in [&b"answer"[..], b"answer", b"answer", b"single", b"slow path"] {
            let mut data = [0; 100];
            let (len, from) = client.recv_from(&mut data).expect("an answer");
            assert_eq!((&data[..len], from), (expected, called));
        }
    }
    assert_eq!(port.take_stale_source(), None);
    no_drops(port.counters());
}

#[test]
fn c60_r45_source_that_is_not_ours_any_more_is_left_out_and_reported() {
    let (sockets, mut port) = bind(&config());
    let mut frames = frames();
    for (ip, gone) in [("127.0.0.1", "192.0.2.77"), ("::1", "2001:db8::77")] {
        let client = client(ip);
        let gone: IpAddr = gone.parse().expect("test address");
        let mut outer = Outer::new(client.local_addr().expect("address"));
        outer.set_local(Some(gone), 0);
        let sent: Vec<_> = (0..5).map(|n| (outer, payload(n, 100))).collect();
        send(&mut port, &mut frames, &sent);
        assert_eq!(port.take_stale_source(), Some(gone));
        assert_eq!(port.take_stale_source(), None);
        sockets.sender().send(&outer, &payload(5, 100)).expect("send");
        for n in 0..6 {
            let mut data = [0; 200];
            let (len, from) = client.recv_from(&mut data).expect("an answer");
            assert_eq!(data[..len], payload(n, 100));
            assert_eq!(from, at(ip, sockets.port()));
        }
        // Segmentation was not to blame.
        assert!(port.segments(outer.is_ipv6()));
        let calls = port.counters().tx_calls.get();
        let fresh = Outer::new(client.local_addr().expect("address"));
        send(&mut port, &mut frames, &vec![(fresh, payload(0, 100)); 64]);
        assert_eq!(port.counters().tx_calls.get(), calls + 1);
    }
    no_drops(port.counters());
}

#[test]
fn c63_both_families_on_one_port() {
    let (sockets, mut port) = bind(&config());
    assert_ne!(sockets.port(), 0, "port 0 takes a free one");
    let mut frames = frames();
    let (v4, v6) = (client("127.0.0.1"), client("::1"));
    for _ in 0..20 {
        v4.send_to(b"four", at("127.0.0.1", sockets.port()))
            .expect("send");
        v6.send_to(b"six", at("::1", sockets.port())).expect("send");
    }
    let received = receive(&mut port, &mut frames, 40, BURST_MAX);
    for (ip, data, client) in [("127.0.0.1", &b"four"[..], &v4), ("::1", b"six", &v6)] {
        let from = client.local_addr().expect("address");
        let of_client: Vec<_> = received
            .iter()
            .filter(|(outer, _)| outer.remote() == Some(from))
            .collect();
        assert_eq!(of_client.len(), 20);
        assert!(
            of_client
                .iter()
                .all(|(outer, got)| got == data && outer.local() == Some(at(ip, 0).ip()))
        );
    }
    // A burst with both families, interleaved.
    let outers = [&v4, &v6].map(|client| Outer::new(client.local_addr().expect("address")));
    let sent: Vec<_> = (0..20).map(|n| (outers[n % 2], payload(n, 50))).collect();
    send(&mut port, &mut frames, &sent);
    for n in 0..20 {
        let mut data = [0; 100];
        let (len, from) = [&v4, &v6][n % 2].recv_from(&mut data).expect("an answer");
        assert_eq!((&data[..len], from.port()), (&payload(n, 50)[..], sockets.port()));
    }
    no_drops(port.counters());
}

#[test]
fn c63_given_port_and_port_in_use() {
    let (sockets, _) = bind(&config());
    let taken = UdpConfig {
        port: sockets.port(),
        ..config()
    };
    assert_eq!(
        UdpSockets::bind(&taken).expect_err("in use").kind(),
        io::ErrorKind::AddrInUse
    );
    let several = UdpConfig { workers: 3, ..taken };
    assert_eq!(
        UdpSockets::bind(&several).expect_err("in use").kind(),
        io::ErrorKind::AddrInUse
    );
    drop(sockets);
    // Dropping closed the sockets: the port is free again, for several workers too.
    let sockets = UdpSockets::bind(&several).expect("free again");
    assert_eq!(sockets.port(), several.port);
    assert_eq!(
        UdpSockets::bind(&several).expect_err("in use").kind(),
        io::ErrorKind::AddrInUse
    );
}

#[test]
fn c63_r27_port_that_only_one_family_has_free() {
    // Somebody has the port for IPv6 only: a given port is an error, and no socket is left behind.
    let blocker = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("bind");
    let port = blocker.local_addr().expect("address").port();
    let blocked = UdpConfig { port, ..config() };
    assert_eq!(
        UdpSockets::bind(&blocked).expect_err("in use").kind(),
        io::ErrorKind::AddrInUse
    );
    drop(blocker);
    assert_eq!(UdpSockets::bind(&blocked).expect("free").port(), port);
}

#[test]
fn workers_share_the_port_and_lose_nothing() {
    let sockets = UdpSockets::bind(&UdpConfig {
        workers: 3,
        ..config()
    })
    .expect("bind");
    let mut ports: Vec<_> = (0..3).map(|worker| sockets.worker_port(worker)).collect();
    let mut frames = frames();
    let clients: Vec<_> = (0..64).map(|_| client("127.0.0.1")).collect();
    for client in &clients {
        client
            .send_to(b"hello", at("127.0.0.1", sockets.port()))
            .expect("send");
    }
    let mut counts = [0; 3];
    let end = Instant::now() + Duration::from_secs(1);
    while counts.iter().sum::<usize>() < 64 && Instant::now() < end {
        for (port, count) in ports.iter_mut().zip(&mut counts) {
            let mut burst = Burst::new();
            *count += port.rx_burst(&mut frames, &mut burst).expect("rx_burst");
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), 64);
    assert!(
        counts.iter().all(|count| *count > 0),
        "spread over the workers: {counts:?}"
    );
}

#[test]
fn tos_is_sent_and_received() {
    let (tx_sockets, mut tx) = bind(&config());
    let (rx_sockets, mut rx) = bind(&config());
    let mut frames = frames();
    for ip in ["127.0.0.1", "::1"] {
        let mut outer = Outer::new(at(ip, rx_sockets.port()));
        let mut expected = Vec::new();
        let mut sent = Vec::new();
        // AF41, ECT(0), CE, none; runs of one, two and three packets.
        for (n, tos) in [0x88, 0x02, 0x02, 0x03, 0x03, 0x03, 0, 0].into_iter().enumerate() {
            outer.set_tos(tos);
            sent.push((outer, payload(n, 100)));
            expected.push((tos, payload(n, 100)));
        }
        send(&mut tx, &mut frames, &sent);
        outer.set_tos(0x88);
        tx_sockets.sender().send(&outer, b"handshake").expect("send");
        expected.push((0x88, b"handshake".to_vec()));
        let received: Vec<_> = receive(&mut rx, &mut frames, expected.len(), BURST_MAX)
            .into_iter()
            .map(|(outer, data)| (outer.tos(), data))
            .collect();
        assert_eq!(received, expected);
    }
}

#[test]
fn r21_source_of_a_v6_datagram_is_read_whole() {
    let (sockets, mut port) = bind(&config());
    let mut frames = frames();
    let client = client("::1");
    let outer = path_back(&client, at("::1", sockets.port()), &mut port, &mut frames);
    assert_eq!(outer.remote(), Some(client.local_addr().expect("address")));
    assert_eq!(outer.local(), Some(Ipv6Addr::LOCALHOST.into()));
}

#[test]
fn r22_messages_behind_a_refused_one_are_sent() {
    let (_sockets, mut port) = bind(&config());
    let mut frames = frames();
    let client = client("127.0.0.1");
    let good = Outer::new(client.local_addr().expect("address"));
    // Port 0 and the broadcast address are refused; the others go out, whatever stands before them.
    let bad = [
        Outer::new(at("127.0.0.1", 0)),
        Outer::new(at("127.255.255.255", 9)),
        Outer::NONE,
    ];
    let mut sent = Vec::new();
    for n in 0..60 {
        sent.push((
            if n % 2 == 0 { bad[n / 2 % 3] } else { good },
            payload(n, 100 + n),
        ));
    }
    send(&mut port, &mut frames, &sent);
    for n in (1..60).step_by(2) {
        let mut data = [0; 200];
        let (len, _) = client.recv_from(&mut data).expect("a datagram");
        assert_eq!(data[..len], payload(n, 100 + n));
    }
    let counters = port.counters();
    assert_eq!(counters.tx_packets.get(), 30);
    let drops: VecDeque<_> = counters.drops().filter(|(_, value)| *value > 0).collect();
    assert_eq!(drops, [("tx_unreachable", 20), ("tx_forbidden", 10)]);
}

#[test]
fn c72_unreachable_destinations_are_counted() {
    let (_sockets, mut port) = bind(&config());
    let mut frames = frames();
    // A class E address has no route on any machine.
    let nowhere = Outer::new(at("240.0.0.1", 9));
    send(&mut port, &mut frames, &vec![(nowhere, payload(0, 100)); 64]);
    let counters = port.counters();
    assert_eq!(
        counters.tx_packets.get() + counters.drops().map(|(_, value)| value).sum::<u64>(),
        64
    );
}

#[test]
fn c72_refused_port_does_not_stop_the_socket() {
    let (_sockets, mut port) = bind(&config());
    let mut frames = frames();
    let closed = client("127.0.0.1").local_addr().expect("address");
    let client = client("127.0.0.1");
    let open = client.local_addr().expect("address");
    for n in 0..10 {
        send(
            &mut port,
            &mut frames,
            &[
                (Outer::new(closed), payload(n, 10)),
                (Outer::new(open), payload(n, 20)),
            ],
        );
        let mut data = [0; 100];
        let (len, _) = client.recv_from(&mut data).expect("a datagram");
        assert_eq!(data[..len], payload(n, 20));
        let mut burst = Burst::new();
        assert_eq!(port.rx_burst(&mut frames, &mut burst).expect("rx_burst"), 0);
    }
    no_drops(port.counters());
}

#[test]
fn c72_full_send_buffer_is_bounded_and_counted() {
    // The smallest buffer that the kernel gives, and a receiver that never reads.
    let (_sockets, mut port) = bind(&UdpConfig {
        buffer_bytes: 1,
        ..config()
    });
    let (sink, _) = bind(&config());
    let mut frames = frames();
    let outer = Outer::new(at("127.0.0.1", sink.port()));
    let begin = Instant::now();
    let sent: Vec<_> = (0..64 * 8).map(|n| (outer, payload(n, 1400))).collect();
    send(&mut port, &mut frames, &sent);
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "eight bursts wait at most a millisecond each"
    );
    let counters = port.counters();
    assert_eq!(counters.tx_packets.get() + counters.tx_no_buffer.get(), 64 * 8);
    assert_eq!(
        counters.drops().map(|(_, value)| value).sum::<u64>(),
        counters.tx_no_buffer.get()
    );
}

#[test]
fn sender_is_shared_by_threads() {
    let (sockets, _) = bind(&config());
    let client = client("127.0.0.1");
    let outer = Outer::new(client.local_addr().expect("address"));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let sender = sockets.sender();
            std::thread::spawn(move || (0..8).try_for_each(|n| sender.send(&outer, &payload(n, 148))))
        })
        .collect();
    for thread in threads {
        thread.join().expect("thread").expect("send");
    }
    for _ in 0..32 {
        let mut data = [0; 200];
        assert_eq!(client.recv_from(&mut data).expect("a datagram").0, 148);
    }
    assert!(sockets.sender().send(&Outer::NONE, b"nowhere").is_err());
}

/// The addresses that sockets of the port are connected to.
fn connected(port: &UdpPort) -> Vec<SocketAddr> {
    let peer = |fd| {
        rustix::net::getpeername(fd)
            .ok()?
            .and_then(|peer| peer.try_into().ok())
    };
    port.wait_fds().into_iter().filter_map(peer).collect()
}

/// Messages in a row after which a path has the path socket.
const STREAK: usize = 64;

/// Sends `count` messages of one packet, which the client gets in order and from `outer`'s own address.
fn send_messages(
    port: &mut UdpPort,
    frames: &mut FrameCache,
    outer: &Outer,
    client: &UdpSocket,
    count: usize,
) {
    for n in 0..count {
        send(port, frames, &[(*outer, payload(n, 40))]);
        let mut data = [0; 100];
        let (len, from) = client.recv_from(&mut data).expect("a datagram");
        assert_eq!(data[..len], payload(n, 40));
        assert_eq!(Some(from.ip()), outer.local());
    }
}

#[test]
fn c60_the_busiest_path_has_a_socket_of_its_own() {
    for ip in ["127.0.0.1", "::1"] {
        let (sockets, mut port) = bind(&config());
        let to = at(ip, sockets.port());
        let (mut frames, busy, other) = (frames(), client(ip), client(ip));
        let mut outer = Outer::new(busy.local_addr().expect("address"));
        outer.set_local(Some(to.ip()), 1);
        send_messages(&mut port, &mut frames, &outer, &busy, STREAK - 1);
        assert_eq!(connected(&port), []);
        send_messages(&mut port, &mut frames, &outer, &busy, 1);
        assert_eq!(connected(&port), [busy.local_addr().expect("address")]);
        // What it sends comes in there and says the same as through the shared socket; so do trains and marked packets.
        send_messages(&mut port, &mut frames, &outer, &busy, 3);
        assert_eq!(path_back(&busy, to, &mut port, &mut frames), outer);
        let train = vec![(outer, payload(1, 700)); 40];
        let calls = port.counters().tx_calls.get();
        send(&mut port, &mut frames, &train);
        assert_eq!(port.counters().tx_calls.get(), calls + 1);
        let mut data = [0; 1000];
        (0..40).for_each(|_| assert_eq!(busy.recv(&mut data).expect("a datagram"), 700));
        no_drops(port.counters());
        // Others are served as before, between the busy one's messages.
        let back = path_back(&other, to, &mut port, &mut frames);
        assert_eq!(back.remote(), other.local_addr().ok());
        for _ in 0..2 * STREAK {
            send_messages(&mut port, &mut frames, &back, &other, 1);
            send_messages(&mut port, &mut frames, &outer, &busy, 1);
        }
        assert_eq!(connected(&port), [busy.local_addr().expect("address")]);
        // Until one of them is the busy one.
        send_messages(&mut port, &mut frames, &back, &other, STREAK);
        assert_eq!(connected(&port), [other.local_addr().expect("address")]);
        assert_eq!(path_back(&busy, to, &mut port, &mut frames), outer);
        assert_eq!(path_back(&other, to, &mut port, &mut frames), back);
        // Nobody else may join the UDP port that the two sockets share.
        let taken = UdpConfig {
            port: sockets.port(),
            ..config()
        };
        let error = UdpSockets::bind(&taken).expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}

#[test]
fn c60_a_source_that_the_kernel_would_not_choose_is_said_with_every_datagram() {
    let (sockets, mut port) = bind(&config());
    let (mut frames, client) = (frames(), client("127.0.0.1"));
    let mut outer = Outer::new(client.local_addr().expect("address"));
    outer.set_local("127.0.0.9".parse().ok(), 1);
    send_messages(&mut port, &mut frames, &outer, &client, 2 * STREAK);
    assert_eq!(connected(&port), []);
    // The socket that could not be connected is bound, and may be given what others send.
    let to = at("127.0.0.9", sockets.port());
    (0..20).for_each(|_| assert_eq!(path_back(&client, to, &mut port, &mut frames), outer));
    // A source that is not known yet is the kernel's to choose, each time anew.
    let unknown = Outer::new(client.local_addr().expect("address"));
    for _ in 0..2 * STREAK {
        send(&mut port, &mut frames, &[(unknown, payload(0, 40))]);
        client.recv(&mut [0; 100]).expect("a datagram");
    }
    assert_eq!(connected(&port), []);
    no_drops(port.counters());
}

#[test]
fn c72_a_peer_that_is_gone_and_comes_back_finds_the_path_socket() {
    let (sockets, mut port) = bind(&config());
    let (mut frames, client) = (frames(), client("127.0.0.1"));
    let address = client.local_addr().expect("address");
    let mut outer = Outer::new(address);
    outer.set_local("127.0.0.1".parse().ok(), 1);
    send_messages(&mut port, &mut frames, &outer, &client, STREAK);
    drop(client);
    // The kernel tells a connected socket that nobody is there. That is no reason to stop.
    (0..20).for_each(|n| send(&mut port, &mut frames, &[(outer, payload(n, 40))]));
    assert_eq!(receive(&mut port, &mut frames, 1, BURST_MAX), []);
    let client = UdpSocket::bind(address).expect("bind again");
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("timeout");
    let to = at("127.0.0.1", sockets.port());
    assert_eq!(path_back(&client, to, &mut port, &mut frames), outer);
    send_messages(&mut port, &mut frames, &outer, &client, 5);
    no_drops(port.counters());
}

#[test]
fn every_message_goes_once_when_the_path_socket_changes_hands() {
    let (sockets, mut port) = bind(&config());
    let (mut frames, clients) = (frames(), ["::1", "127.0.0.1"].map(client));
    let outers = ["::1", "127.0.0.1"].map(|ip| {
        let client = &clients[usize::from(ip != "::1")];
        path_back(client, at(ip, sockets.port()), &mut port, &mut frames)
    });
    send_messages(&mut port, &mut frames, &outers[0], &clients[0], STREAK);
    assert_eq!(connected(&port), [clients[0].local_addr().expect("address")]);
    send_messages(&mut port, &mut frames, &outers[1], &clients[1], STREAK - 1);
    // The first message of this burst completes the other path's streak.
    let both = [1, 0].map(|n| (outers[n], payload(n, 40)));
    send(&mut port, &mut frames, &both);
    assert_eq!(connected(&port), [clients[1].local_addr().expect("address")]);
    for client in &clients {
        assert_eq!(client.recv(&mut [0; 100]).expect("a datagram"), 40);
        client.set_nonblocking(true).expect("nonblocking");
        let again = client.recv(&mut [0; 100]).expect_err("once");
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
    }
    no_drops(port.counters());
}

#[test]
fn several_workers_keep_their_shares() {
    let sockets = UdpSockets::bind(&UdpConfig {
        workers: 2,
        ..config()
    })
    .expect("bind");
    let mut ports: Vec<_> = (0..2).map(|worker| sockets.worker_port(worker)).collect();
    let (mut frames, busy) = (frames(), client("127.0.0.1"));
    let mut outer = Outer::new(busy.local_addr().expect("address"));
    // A source that the kernel would choose, and one that it would not.
    for local in ["127.0.0.1", "127.0.0.9"] {
        outer.set_local(local.parse().ok(), 1);
        send_messages(&mut ports[0], &mut frames, &outer, &busy, 2 * STREAK);
    }
    let clients: Vec<_> = (0..64).map(|_| client("127.0.0.1")).collect();
    for client in &clients {
        client
            .send_to(b"hello", at("127.0.0.1", sockets.port()))
            .expect("send");
    }
    let counts: Vec<_> = ports
        .iter_mut()
        .map(|port| receive(port, &mut frames, 64, BURST_MAX).len())
        .collect();
    assert_eq!(counts.iter().sum::<usize>(), 64);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}
