//! How precise and how fast the hop is on this machine: `cargo run --release -p patronus-hop --example measure` as root, after
//! `cargo build --release -p patronus-hop`. The figures of docs/impairment.md come from here.

use patronus_netns::{Error, Hop, HopPlan, Namespace, Result};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// How long each measurement takes.
const TRIAL: Duration = Duration::from_secs(5);
/// Datagrams a second for the delays.
const RATE: u32 = 10_000;
const LINK: &str = "path0";

fn main() -> Result<()> {
    println!(
        "one way, {RATE} datagrams a second of 100 bytes for {TRIAL:?}; error is beyond the delay, microseconds"
    );
    println!(
        "{:>8} {:>9} {:>9} {:>9} {:>12} {:>12} {:>7}",
        "delay", "p1", "p50", "p99", "hop p50", "hop p99", "lost"
    );
    for args in [&[][..], &["--realtime".to_owned()]] {
        println!(
            "{}",
            if args.is_empty() {
                "as any process"
            } else {
                "--realtime"
            }
        );
        for delay in ["off", "1ms", "20ms", "100ms"] {
            let (a, b, mut hop) = link(args)?;
            delays(&a, &b, &mut hop, delay)?;
        }
    }
    let (a, b, mut hop) = link(&[])?;
    for length in [64, 1514] {
        ceiling(&a, &mut hop, length)?;
    }
    for delay in ["off", "10ms"] {
        hop.command(&format!("delay {delay}"))?;
        let rate = tcp(&a, &b)?;
        println!("TCP, one stream, delay {delay} each way: {rate:.2} Gbit/s");
    }
    Ok(())
}

/// Two namespaces and a hop that does nothing yet.
fn link(args: &[String]) -> Result<(Namespace, Namespace, Hop)> {
    let (a, b) = (Namespace::new("a")?, Namespace::new("b")?);
    let plan = HopPlan {
        args: args.to_vec(),
        ..HopPlan::default()
    };
    let hop = Hop::between(&a, LINK, &b, LINK, 1500, &plan)?;
    a.address(LINK, "192.0.2.1/24")?;
    b.address(LINK, "192.0.2.2/24")?;
    Ok((a, b, hop))
}

/// One-way delays: both ends read the same clock.
fn delays(a: &Namespace, b: &Namespace, hop: &mut Hop, delay: &str) -> Result<()> {
    hop.command(&format!("delay {delay}"))?;
    let nominal = match delay.strip_suffix("ms") {
        Some(number) => number.parse::<f64>().unwrap_or(0.0) * 1000.0,
        None => 0.0,
    };
    let near = a.run(|| UdpSocket::bind("192.0.2.1:0"))??;
    let far = b.run(|| UdpSocket::bind("192.0.2.2:9"))??;
    far.set_read_timeout(Some(Duration::from_millis(500)))?;
    // What is measured is when datagrams come, not whether this program is awake when they do.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&far, 16 << 20)?;
    let begun = Instant::now();
    let sender = std::thread::spawn(move || -> std::io::Result<u32> {
        let every = Duration::from_secs(1) / RATE;
        let mut sent = 0;
        while begun.elapsed() < TRIAL {
            std::thread::sleep((every * sent).saturating_sub(begun.elapsed()));
            let mut datagram = [0; 100];
            datagram[..8].copy_from_slice(&(begun.elapsed().as_nanos() as u64).to_le_bytes());
            near.send_to(&datagram, "192.0.2.2:9")?;
            sent += 1;
        }
        Ok(sent)
    });
    let mut errors = Vec::new();
    let mut datagram = [0; 200];
    while far.recv_from(&mut datagram).is_ok() {
        let now = begun.elapsed().as_nanos() as u64;
        let sent = datagram
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        errors.push((now - sent) as f64 / 1000.0 - nominal);
    }
    let sent = sender.join().map_err(|_| Error::new("the sender panicked"))??;
    errors.sort_by(f64::total_cmp);
    let at = |percent: usize| {
        errors
            .get(errors.len() * percent / 100)
            .copied()
            .unwrap_or(f64::NAN)
    };
    let counters = hop.counters()?;
    let unsent = counters.dropped("a->b") + counters.get("a->b.missed");
    if unsent > 0 || !counters.balance("a->b") {
        return Err(Error::new(format!(
            "the hop lost packets of its own: {counters:?}"
        )));
    }
    let own = |name: &str| counters.get(&format!("a->b.{name}")) as f64 / 1000.0;
    println!(
        "{delay:>8} {:>9.1} {:>9.1} {:>9.1} {:>12.1} {:>12.1} {:>7}",
        at(1),
        at(50),
        at(99),
        own("late_p50_ns"),
        own("late_p99_ns"),
        sent as usize - errors.len()
    );
    Ok(())
}

/// What a flood of frames gets through. They are of a protocol that the far end throws away at once (IEEE 802, local experimental).
fn ceiling(a: &Namespace, hop: &mut Hop, length: usize) -> Result<()> {
    let socket = a.run(|| -> std::io::Result<_> {
        let any = UdpSocket::bind("0.0.0.0:0")?;
        patronus_io::packet::sender(rustix::net::netdevice::name_to_index(&any, LINK)?)
    })??;
    let mut frame = vec![0; length];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x88, 0xb5]);
    let frames = [&frame[..]; 32];
    let before = hop.counters()?;
    let begun = Instant::now();
    while begun.elapsed() < TRIAL {
        // A full buffer is what is wanted.
        let _ = patronus_io::packet::send(std::os::fd::AsFd::as_fd(&socket), &frames);
    }
    let after = hop.counters()?;
    let growth = |name: &str| (after.get(name) - before.get(name)) as f64 / begun.elapsed().as_secs_f64();
    println!(
        "flood of {length}-byte frames: {:.0} kpps on, {:.2} Gbit/s; {:.0} kpps had no room before the hop",
        growth("a->b.sent") / 1e3,
        growth("a->b.sent_bytes") * 8.0 / 1e9,
        growth("a->b.missed") / 1e3
    );
    Ok(())
}

/// Gbit/s of payload.
fn tcp(a: &Namespace, b: &Namespace) -> Result<f64> {
    let listener = b.run(|| TcpListener::bind("192.0.2.2:0"))??;
    let target = listener.local_addr()?;
    let mut sender = a.run(|| TcpStream::connect(target))??;
    let (mut receiver, _) = listener.accept()?;
    let begun = Instant::now();
    let source = std::thread::spawn(move || -> std::io::Result<()> {
        let block = vec![7; 1 << 18];
        while begun.elapsed() < TRIAL {
            sender.write_all(&block)?;
        }
        Ok(())
    });
    let mut bytes = 0;
    let mut block = vec![0; 1 << 18];
    loop {
        match receiver.read(&mut block)? {
            0 => break,
            count => bytes += count,
        }
    }
    let rate = bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9;
    source.join().map_err(|_| Error::new("the sender panicked"))??;
    Ok(rate)
}
