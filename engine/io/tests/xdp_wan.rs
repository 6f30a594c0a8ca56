//! The UDP port of a WAN link by AF_XDP, against an ordinary UDP socket in another network namespace that sends everything back. What needs
//! privileges is skipped, with a word, where there are none.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{ifindex, ip, unshare};
use patronus_io::Port;
use patronus_io::udp::{UdpConfig, UdpSockets};
use patronus_io::wan::{Link, LinkPort, QueuePlace, WayFinder, ways};
use patronus_io::xdp::{Take, XdpPort, XdpProgram};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache, Outer};

/// The other site: sends back what it gets, until `stop` is closed.
fn echo(ready: mpsc::Sender<i32>, go: mpsc::Receiver<()>, stop: mpsc::Receiver<()>) {
    unshare().expect("a namespace");
    // SAFETY: takes no arguments.
    ready.send(unsafe { libc::gettid() }).expect("the test");
    go.recv().expect("the test");
    ip("link set lo up");
    ip("addr add 192.0.2.2/24 dev vb");
    ip("addr add 2001:db8::2/64 dev vb nodad");
    ip("link set vb up");
    let sockets = ["0.0.0.0:4000", "[::]:4001"].map(|address| {
        let socket = UdpSocket::bind(address).expect("bind");
        socket.set_nonblocking(true).expect("nonblocking");
        socket
    });
    ready.send(0).expect("the test");
    let mut data = vec![0; 65536];
    while stop.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
        for socket in &sockets {
            while let Ok((len, from)) = socket.recv_from(&mut data) {
                let _ = socket.send_to(&data[..len], from);
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

struct Site {
    frames: FrameCache,
    port: LinkPort<XdpPort>,
    finder: WayFinder,
    program: XdpProgram,
}

const UDP_PORT: u16 = 51820;

impl Site {
    fn new() -> Site {
        let config = ArenaConfig {
            frames: 8192,
            jumbo_frames: 128,
        };
        let mut frames = FrameCache::new(Arena::new(&config).expect("arena"));
        let sockets = UdpSockets::bind(&UdpConfig {
            ifindex: 0,
            port: UDP_PORT,
            workers: 1,
            fwmark: 0,
            buffer_bytes: 1 << 20,
            offload: true,
        })
        .expect("sockets");
        let ifindex = ifindex("va");
        let addresses: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1"]
            .map(|a| a.parse().expect("address"))
            .to_vec();
        let take = Take::Datagrams {
            addresses,
            ports: vec![UDP_PORT],
        };
        let program = XdpProgram::attach(ifindex, 1, &take).expect("attach");
        let queue = program.port(0, &mut frames).expect("a queue");
        let link = Link {
            ifindex,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            udp_port: UDP_PORT,
            fwmark: 0,
        };
        let (ways, finder) = ways(link).expect("ways");
        Site {
            port: LinkPort::new(
                QueuePlace::new(queue).borrow().expect("the queue"),
                sockets.worker_port(0),
                ways,
                ifindex,
            ),
            frames,
            finder,
            program,
        }
    }

    /// Sends datagrams and waits for them to come back, in order.
    fn exchange(&mut self, outer: &Outer, count: usize, len: usize) {
        let mut burst = Burst::new();
        for n in 0..count {
            let mut pkt = self.frames.alloc_for(len).expect("a frame");
            pkt.append(len).fill(n as u8);
            *pkt.outer_mut() = *outer;
            burst.push(pkt);
        }
        self.port.tx_burst(&mut self.frames, &mut burst).expect("tx");
        let (mut got, end) = (0, Instant::now() + Duration::from_secs(3));
        while got < count {
            assert!(Instant::now() < end, "{got} of {count} came back from {outer:?}");
            self.port.rx_burst(&mut self.frames, &mut burst).expect("rx");
            for pkt in burst.iter() {
                assert_eq!(pkt.data(), vec![got as u8; len]);
                assert_eq!(pkt.outer().remote(), outer.remote());
                assert_eq!(pkt.outer().local(), outer.local());
                got += 1;
            }
            burst.clear_into(&mut self.frames);
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Packets sent by the queue and through the kernel, and packets received through the kernel.
    fn counts(&self) -> [u64; 3] {
        let [queue, udp] = self.port.parts();
        [queue.tx_packets.get(), udp.tx_packets.get(), udp.rx_packets.get()]
    }

    /// The slow path's part.
    fn serve(&mut self, now: Instant) {
        // The kernel tells of a neighbour a moment after it has answered.
        std::thread::sleep(Duration::from_millis(20));
        while self.finder.serve(now) == Some(now) {}
    }
}

/// Runs a test in a namespace with `va`, whose other end, `vb`, is in a namespace with an echo.
fn with_echo(test: impl FnOnce(Site) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(error) = unshare() {
            eprintln!("skipped: no right to make a network namespace ({error})");
            return;
        }
        let ((ready, is_ready), (go, may_go), (stop, stopped)) =
            (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let other = std::thread::spawn(|| echo(ready, may_go, stopped));
        let thread_id = is_ready.recv().expect("the other site");
        ip("link set lo up");
        ip("link add va address 02:00:00:00:00:01 type veth peer name vb address 02:00:00:00:00:02");
        ip(&format!("link set vb netns {thread_id}"));
        ip("addr add 192.0.2.1/24 dev va");
        ip("addr add 2001:db8::1/64 dev va nodad");
        ip("link set va up");
        go.send(()).expect("the other site");
        is_ready.recv().expect("the other site");
        test(Site::new());
        drop(stop);
        other.join().expect("the other site");
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn outer(remote: &str, local: &str) -> Outer {
    let mut outer = Outer::new(remote.parse::<SocketAddr>().expect("address"));
    outer.set_local(local.parse().ok(), 0);
    outer
}

#[test]
fn a_path_goes_past_the_kernel_once_its_way_is_known() {
    with_echo(|mut site| {
        let mut now = Instant::now();
        for (remote, local) in [
            ("192.0.2.2:4000", "192.0.2.1"),
            ("[2001:db8::2]:4001", "2001:db8::1"),
        ] {
            let outer = outer(remote, local);
            let before = site.counts();
            site.exchange(&outer, 3, 100);
            assert_eq!(
                site.counts(),
                [before[0], before[1] + 3, before[2]],
                "{remote}: asked for"
            );
            site.serve(now);
            site.exchange(&outer, 40, 1400);
            site.exchange(&outer, 1, 0);
            assert_eq!(
                site.counts(),
                [before[0] + 41, before[1] + 3, before[2]],
                "{remote}: known"
            );
            // Too long for the link: the kernel fragments, and puts the answer together.
            site.exchange(&outer, 2, 3000);
            assert_eq!(
                site.counts(),
                [before[0] + 41, before[1] + 5, before[2] + 2],
                "{remote}: long"
            );
            // Now and then the kernel gets one, to keep the neighbour checked.
            now += Duration::from_secs(21);
            site.serve(now);
            site.exchange(&outer, 5, 100);
            assert_eq!(
                site.counts(),
                [before[0] + 45, before[1] + 6, before[2] + 2],
                "{remote}: checked"
            );
        }
        assert_eq!(site.program.mode(), patronus_io::xdp::XdpMode::Native);
        let drops: u64 = site
            .port
            .parts()
            .into_iter()
            .flat_map(|c| c.drops().map(|(_, n)| n).collect::<Vec<_>>())
            .sum();
        assert_eq!(
            drops + site.port.counters().drops().map(|(_, n)| n).sum::<u64>(),
            0
        );
    });
}

#[test]
fn the_way_follows_neighbours_and_routes() {
    with_echo(|mut site| {
        let outer = outer("192.0.2.2:4000", "192.0.2.1");
        let now = Instant::now();
        site.exchange(&outer, 1, 100);
        site.serve(now);
        site.exchange(&outer, 1, 100);
        let known = site.counts();
        assert_eq!(known[0], 1);
        // A neighbour that is somewhere else gets nothing from us.
        ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:99 dev va nud reachable");
        site.serve(now);
        let mut burst = Burst::new();
        let mut pkt = site.frames.alloc().expect("a frame");
        pkt.append(10);
        *pkt.outer_mut() = outer;
        burst.push(pkt);
        site.port.tx_burst(&mut site.frames, &mut burst).expect("tx");
        assert_eq!(site.counts()[0], 2);
        std::thread::sleep(Duration::from_millis(20));
        site.port.rx_burst(&mut site.frames, &mut burst).expect("rx");
        assert!(burst.is_empty(), "sent to 02:00:00:00:00:99");
        // And again when it is back.
        ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev va nud reachable");
        site.serve(now);
        site.exchange(&outer, 1, 100);
        assert_eq!(site.counts()[0], 3);
        // A neighbour that is not known any more: the kernel finds it.
        ip("neigh del 192.0.2.2 dev va");
        site.serve(now);
        site.exchange(&outer, 1, 100);
        assert_eq!(site.counts()[0], 3);
        // Another route.
        site.serve(now);
        ip("link add elsewhere type veth peer name nowhere");
        ip("link set elsewhere up");
        ip("route add 192.0.2.2/32 dev elsewhere");
        site.serve(now);
        let before = site.counts();
        let mut pkt = site.frames.alloc().expect("a frame");
        pkt.append(10);
        *pkt.outer_mut() = outer;
        burst.push(pkt);
        site.port.tx_burst(&mut site.frames, &mut burst).expect("tx");
        assert_eq!(site.counts()[0], before[0], "not by this link");
        ip("route del 192.0.2.2/32 dev elsewhere");
        site.serve(now);
        site.exchange(&outer, 1, 100);
        assert_eq!(site.counts()[0], before[0] + 1);
    });
}
