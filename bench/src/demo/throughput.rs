//! A short look at one tunnel of each kind that is installed. What it shows is indicative, `patronus-bench peers` is what measures.

use crate::load::echo::round_trips;
use crate::load::tcp::{self, Streams};
use crate::load::udp::{Flow, Mix};
use crate::subject::{MTU, Subject, daemons_cpu};
use patronus_netns::{Error, Result, Tunnel, TwoSites};
use std::time::{Duration, Instant};

/// Tunnels made for the handshake time, the last of which is then measured.
const HANDSHAKES: usize = 5;
/// Packets a second of the UDP run.
const UDP_RATE: f64 = 20_000.0;
/// A demo in which more of the UDP packets are lost has failed: the rate is far below what any machine moves.
const LOSS_MAX: f64 = 0.05;

/// How long each part takes.
struct Times {
    tcp: Duration,
    udp: Duration,
    echo: Duration,
    handshakes: usize,
}

impl Times {
    fn new(quick: bool) -> Times {
        let seconds = |long, short| Duration::from_secs(if quick { short } else { long });
        Times {
            tcp: seconds(5, 1),
            udp: seconds(3, 1),
            echo: seconds(3, 1),
            handshakes: if quick { 1 } else { HANDSHAKES },
        }
    }
}

/// What one subject showed.
struct Shown {
    name: String,
    /// TCP from a to b and from b to a, megabits a second.
    tcp_mbps: [f64; 2],
    /// Payload of the UDP run that arrived, megabits a second.
    udp_mbps: f64,
    /// Part of the UDP packets that did not arrive.
    udp_loss: f64,
    /// Round trip, microseconds.
    p50: f64,
    /// Round trip, microseconds.
    p99: f64,
    /// CPU of both daemons for a GB (10^9 bytes) of TCP payload, seconds.
    cpu_per_gb: f64,
    /// From the first packet into a tunnel without a session to its answer.
    handshake: Duration,
}

/// Runs it and prints the table.
pub fn run(options: &super::Options) -> Result<()> {
    let times = Times::new(options.quick);
    let mut names = vec!["patronus", "wireguard-go"];
    names.truncate(if options.quick { 1 } else { names.len() });
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let (subjects, left_out) = Subject::choose(Some(&names), options.engine.clone(), None, None)?;
    for reason in &left_out {
        println!("left out: {reason}");
    }
    if !subjects.iter().any(Subject::is_ours) {
        return Err(Error::new(
            "patronus-engine is not built: cargo build --release, or --engine PATH",
        ));
    }
    println!("two sites in network namespaces, one veth between them, a WireGuard daemon in each");
    let shown = subjects
        .iter()
        .map(|subject| show(subject, &times))
        .collect::<Result<Vec<_>>>()?;
    print!("{}", table(&shown));
    if !options.quick {
        println!(
            "one short run; the daemons, the sender and the receiver share the cores. Measured: patronus-bench peers"
        );
    }
    match shown
        .iter()
        .find(|s| s.name == crate::subject::OURS && s.udp_loss > LOSS_MAX)
    {
        Some(ours) => Err(Error::new(format!(
            "{:.1} % of the UDP packets were lost",
            ours.udp_loss * 100.0
        ))),
        None => Ok(()),
    }
}

fn show(subject: &Subject, times: &Times) -> Result<Shown> {
    println!("\n{}", subject.describe());
    let (mut tunnel, handshake) = tunnels(subject, times.handshakes)?;
    println!(
        "  tunnel up; first packet answered after {:.1} ms, handshake included",
        handshake.as_secs_f64() * 1e3
    );
    let echo = round_trips(&tunnel, times.echo)?;
    println!("  {} round trips, {} lost", echo.times.len(), echo.lost);
    let udp = Flow::new(&tunnel)?.trial(Mix::LARGE, UDP_RATE, times.udp, None)?;
    println!(
        "  UDP: {} of {} packets of 1400 bytes arrived",
        udp.received, udp.sent
    );
    let before = daemons_cpu(&tunnel)?.unwrap_or_default();
    let there = one_stream(&tunnel, times.tcp)?;
    std::mem::swap(&mut tunnel.a, &mut tunnel.b);
    let back = one_stream(&tunnel, times.tcp)?;
    let cpu = daemons_cpu(&tunnel)?.unwrap_or_default() - before;
    let moved = (there + back) as f64;
    println!(
        "  TCP: {:.2} GB there, {:.2} GB back",
        there as f64 / 1e9,
        back as f64 / 1e9
    );
    let mbps = |bytes: u64| bytes as f64 * 8.0 / times.tcp.as_secs_f64() / 1e6;
    Ok(Shown {
        name: subject.name.clone(),
        tcp_mbps: [mbps(there), mbps(back)],
        udp_mbps: udp.mbps(),
        udp_loss: udp.loss(),
        p50: echo.micros(0.5),
        p99: echo.micros(0.99),
        cpu_per_gb: cpu.as_secs_f64() / (moved / 1e9),
        handshake,
    })
}

/// Makes `count` tunnels, one after the other; gives the last one, and the median time to the first answer.
fn tunnels(subject: &Subject, count: usize) -> Result<(Tunnel, Duration)> {
    let (mut tunnel, first) = first_answer(subject)?;
    let mut answers = vec![first];
    for _ in 1..count {
        drop(tunnel);
        let (next, answer) = first_answer(subject)?;
        answers.push(answer);
        tunnel = next;
    }
    answers.sort();
    Ok((tunnel, answers[answers.len() / 2]))
}

/// Two sites with the subject between them, and the time from the first packet to its answer: there is no session
/// before it.
pub fn first_answer(subject: &Subject) -> Result<(Tunnel, Duration)> {
    let mut plan = TwoSites::new(subject.kind, subject.kind);
    plan.options_a = subject.options.clone();
    plan.options_b = subject.options.clone();
    plan.mtu = MTU;
    let tunnel = plan.up()?;
    let answer = tunnel.probe(false, Duration::from_secs(10))?;
    Ok((tunnel, answer))
}

/// One stream from site a to site b; gives the bytes that arrived.
fn one_stream(tunnel: &Tunnel, duration: Duration) -> Result<u64> {
    let streams = Streams::start(
        tunnel,
        tcp::Kind {
            count: 1,
            pace: None,
            congestion: None,
        },
    )?;
    let start = Instant::now();
    std::thread::sleep(duration.saturating_sub(start.elapsed()));
    match streams.received() {
        0 => Err(Error::new("TCP: nothing arrived")),
        bytes => Ok(bytes),
    }
}

/// The figures side by side.
fn table(shown: &[Shown]) -> String {
    type Cell = fn(&Shown) -> String;
    let rows: [(&str, Cell); 8] = [
        ("TCP there, Mb/s", |s| format!("{:.0}", s.tcp_mbps[0])),
        ("TCP back, Mb/s", |s| format!("{:.0}", s.tcp_mbps[1])),
        ("UDP at 20,000 packets/s, Mb/s", |s| format!("{:.0}", s.udp_mbps)),
        ("  of which lost, %", |s| format!("{:.2}", s.udp_loss * 100.0)),
        ("round trip p50, microseconds", |s| format!("{:.0}", s.p50)),
        ("round trip p99, microseconds", |s| format!("{:.0}", s.p99)),
        ("CPU of both daemons, s/GB", |s| format!("{:.2}", s.cpu_per_gb)),
        ("first answer with handshake, ms", |s| {
            format!("{:.1}", s.handshake.as_secs_f64() * 1e3)
        }),
    ];
    let mut out = String::new();
    let mut line = |first: &str, cells: Vec<String>| {
        out.push_str(&format!("{first:<34}"));
        for cell in cells {
            out.push_str(&format!("{cell:>14}"));
        }
        out.push('\n');
    };
    line("", vec![]);
    line("", shown.iter().map(|s| s.name.clone()).collect());
    for (name, cell) in rows {
        line(name, shown.iter().map(cell).collect());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str) -> Shown {
        Shown {
            name: name.to_owned(),
            tcp_mbps: [1000.4, 900.0],
            udp_mbps: 224.0,
            udp_loss: 0.0125,
            p50: 120.0,
            p99: 350.0,
            cpu_per_gb: 3.456,
            handshake: Duration::from_micros(1500),
        }
    }

    #[test]
    fn table_has_a_column_for_each_subject() {
        let table = table(&[shown("patronus"), shown("wireguard-go")]);
        let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["patronus", "wireguard-go"]);
        assert!(lines.iter().any(|l| l.ends_with(&["1000", "1000"])));
        assert!(lines.iter().any(|l| l.ends_with(&["1.25", "1.25"])));
        assert!(lines.iter().any(|l| l.ends_with(&["3.46", "3.46"])));
        assert!(lines.iter().any(|l| l.ends_with(&["1.5", "1.5"])));
    }

    #[test]
    fn quick_times_add_up_to_seconds() {
        let times = Times::new(true);
        assert!(times.tcp * 2 + times.udp + times.echo <= Duration::from_secs(5));
        let times = Times::new(false);
        assert!((times.tcp * 2 + times.udp + times.echo) * 2 <= Duration::from_secs(45));
    }

    #[test]
    fn kinds_of_the_demo_are_known() {
        assert!(patronus_netns::Kind::by_name("wireguard-go").is_some());
    }
}
