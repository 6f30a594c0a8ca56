//! What the engine has to show against the best of its peers, and whether it does. Ratios of medians within one run.

use crate::report::Row;
use crate::subject::{AF_XDP, LIBRARY, NO_TUNNEL, OURS, SINGLE, SPIN};

/// One line of the summary.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What is compared.
    pub what: String,
    /// Our figure and whom it is compared with.
    pub detail: String,
    /// Ratio to the best peer's, or the figure itself where the goal is absolute.
    pub value: f64,
    /// The goal: at least this, or at most.
    pub goal: Goal,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Reached from there upwards.
    AtLeast(f64),
    /// Reached from there downwards.
    AtMost(f64),
}

impl Outcome {
    /// Is the goal reached?
    pub fn reached(&self) -> bool {
        match self.goal {
            Goal::AtLeast(bound) => self.value >= bound,
            Goal::AtMost(bound) => self.value <= bound,
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let bound = match self.goal {
            Goal::AtLeast(bound) => format!("at least {bound}"),
            Goal::AtMost(bound) => format!("at most {bound}"),
        };
        let verdict = if self.reached() { "pass" } else { "MISS" };
        format!(
            "{verdict}  {:<38} {:>6.2}  ({bound})  {}",
            self.what, self.value, self.detail
        )
    }
}

type Figure = fn(&Row) -> Option<f64>;

/// Which peer is the best.
#[derive(Clone, Copy)]
enum Best {
    Highest,
    Lowest,
}

/// Rows that are nobody's we have to be better than.
const NOT_PEERS: [&str; 6] = [OURS, SPIN, AF_XDP, SINGLE, LIBRARY, NO_TUNNEL];

/// The row of the best peer: neither ours nor the run without a tunnel.
fn best<'a>(rows: &'a [Row], test: &str, figure: Figure, which: Best) -> Option<&'a Row> {
    let peers = rows
        .iter()
        .filter(|row| row.test == test && !NOT_PEERS.contains(&row.peer.as_str()));
    let known = peers.filter(|row| figure(row).is_some_and(|value| value > 0.0));
    let order = |a: &&Row, b: &&Row| figure(a).unwrap_or(0.0).total_cmp(&figure(b).unwrap_or(0.0));
    match which {
        Best::Highest => known.max_by(order),
        Best::Lowest => known.min_by(order),
    }
}

/// Compares `figure` of `ours` with that of the peer which `choose` calls the best.
fn against(
    rows: &[Row],
    (what, ours, test): (&'static str, &str, &str),
    figure: Figure,
    (choose, which): (Figure, Best),
    goal: Goal,
) -> Option<Outcome> {
    let mine = figure(rows.iter().find(|row| row.peer == ours && row.test == test)?)?;
    let peer = best(rows, test, choose, which)?;
    let theirs = figure(peer)?;
    let detail = format!("{ours} {mine:.2}, {} {theirs:.2}", peer.peer);
    Some(Outcome {
        what: what.to_owned(),
        detail,
        value: mine / theirs,
        goal,
    })
}

/// Every goal that the rows allow to judge.
pub fn judge(rows: &[Row]) -> Vec<Outcome> {
    let mbps: (Figure, Best) = (|row| row.mbps, Best::Highest);
    let pps: (Figure, Best) = (|row| row.pps, Best::Highest);
    let p50: (Figure, Best) = (|row| row.rtt_p50_us, Best::Lowest);
    let per_packet: (Figure, Best) = (|row| row.daemon_cpu_us_per_packet, Best::Lowest);
    let per_gb: Figure = |row| row.daemon_cpu_s_per_gb;
    let (least, most) = (Goal::AtLeast, Goal::AtMost);
    let compared = [
        against(
            rows,
            ("TCP, 1 stream: rate", OURS, "tcp1"),
            mbps.0,
            mbps,
            least(1.7),
        ),
        against(
            rows,
            ("TCP, 1 stream: CPU per GB", OURS, "tcp1"),
            per_gb,
            mbps,
            most(0.55),
        ),
        against(
            rows,
            ("TCP, 4 streams: rate", OURS, "tcp4"),
            mbps.0,
            mbps,
            least(1.7),
        ),
        against(
            rows,
            ("TCP, 4 streams: CPU per GB", OURS, "tcp4"),
            per_gb,
            mbps,
            most(0.55),
        ),
        against(
            rows,
            ("UDP 64 B: highest loss-free rate", OURS, "udp64"),
            pps.0,
            pps,
            least(4.0),
        ),
        against(
            rows,
            ("UDP 1,400 B: highest loss-free rate", OURS, "udp1400"),
            pps.0,
            pps,
            least(2.5),
        ),
        against(
            rows,
            ("UDP mix: highest loss-free rate", OURS, "udpmix"),
            pps.0,
            pps,
            least(2.5),
        ),
        against(
            rows,
            ("UDP 64 B at 80 kpps: CPU per packet", OURS, "udp64-80k"),
            per_packet.0,
            per_packet,
            most(0.5),
        ),
        against(
            rows,
            ("round trip, idle: p50", OURS, "rtt-idle"),
            p50.0,
            p50,
            most(1.1),
        ),
        against(
            rows,
            ("round trip, idle, low latency: p50", SPIN, "rtt-idle"),
            p50.0,
            p50,
            most(0.6),
        ),
        against(
            rows,
            ("round trip beside paced TCP: p50", OURS, "rtt-loaded"),
            p50.0,
            p50,
            most(0.75),
        ),
    ];
    compared
        .into_iter()
        .flatten()
        .chain(idle(rows))
        .chain(af_xdp(rows))
        .chain(own_aead(rows))
        .collect()
}

/// Our AEAD against a library's in the same engine.
fn own_aead(rows: &[Row]) -> Vec<Outcome> {
    let row = |peer: &str| rows.iter().find(|row| row.peer == peer && row.test == "tcp1");
    let (Some(ours), Some(library)) = (row(OURS), row(LIBRARY)) else {
        return Vec::new();
    };
    let outcome = |what: &str, figure: Figure, goal| {
        let (ours, library) = (figure(ours)?, figure(library)?);
        Some(Outcome {
            what: format!("TCP, 1 stream, own AEAD: {what}"),
            detail: format!("{OURS} {ours:.2}, {LIBRARY} {library:.2}"),
            value: ours / library,
            goal,
        })
    };
    let rate = outcome("rate", |row| row.mbps, Goal::AtLeast(1.25));
    let cpu = outcome("CPU per GB", |row| row.daemon_cpu_s_per_gb, Goal::AtMost(0.7));
    rate.into_iter().chain(cpu).collect()
}

/// AF_XDP against our own socket, datagram by datagram. What the daemons are not charged with, because the kernel does it in another's
/// time, is the machine's CPU beyond that without a tunnel.
fn af_xdp(rows: &[Row]) -> Vec<Outcome> {
    let figure = |peer: &str, figure: Figure| {
        let mut of_test = rows.iter().filter(|row| row.test == "udp64-80k");
        figure(of_test.find(|row| row.peer == peer)?)
    };
    let outcome = |what: &str, queue: f64, socket: f64| Outcome {
        what: what.to_owned(),
        detail: format!("{AF_XDP} {queue:.2}, {SINGLE} {socket:.2}"),
        value: queue / socket,
        goal: Goal::AtMost(0.7),
    };
    let daemons: Figure = |row| row.daemon_cpu_us_per_packet;
    let machine: Figure = |row| row.machine_cpu_us_per_packet;
    let own = figure(AF_XDP, daemons).zip(figure(SINGLE, daemons));
    let without = figure(NO_TUNNEL, machine);
    let beyond = |peer| Some(figure(peer, machine)? - without?);
    let all = beyond(AF_XDP)
        .zip(beyond(SINGLE))
        .filter(|(_, socket)| *socket > 0.0);
    let own = own.map(|(queue, socket)| outcome("AF_XDP against own socket: daemons' CPU", queue, socket));
    let all = all.map(|(queue, socket)| outcome("AF_XDP against own socket: all CPU", queue, socket));
    own.into_iter().chain(all).collect()
}

/// Idle CPU has no peer to beat.
fn idle(rows: &[Row]) -> Option<Outcome> {
    let row = rows
        .iter()
        .find(|row| row.peer == OURS && row.test == "idle-cpu")?;
    let detail = "percent of a core, both daemons".to_owned();
    Some(Outcome {
        what: "idle CPU".to_owned(),
        detail,
        value: row.idle_cpu_percent?,
        goal: Goal::AtMost(1.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(peer: &str, mbps: f64, cpu: f64) -> Row {
        Row {
            peer: peer.into(),
            test: "tcp1",
            mbps: Some(mbps),
            daemon_cpu_s_per_gb: Some(cpu),
            ..Row::default()
        }
    }

    #[test]
    fn rate_and_cpu_are_compared_with_the_fastest_peer() {
        let rows = [
            tcp(NO_TUNNEL, 20_000.0, 0.0),
            tcp(OURS, 4000.0, 3.0),
            tcp("wireguard-go-new", 2000.0, 6.0),
            tcp("gotatun", 1000.0, 1.0),
        ];
        let outcomes = judge(&rows);
        assert_eq!(outcomes.len(), 2);
        assert_eq!((outcomes[0].value, outcomes[0].reached()), (2.0, true));
        assert_eq!((outcomes[1].value, outcomes[1].reached()), (0.5, true));
        assert!(outcomes[0].detail.contains("wireguard-go-new"));
    }

    #[test]
    fn misses_are_told() {
        let rows = [tcp(OURS, 3000.0, 4.0), tcp("gotatun", 2000.0, 6.0)];
        let outcomes = judge(&rows);
        assert!(!outcomes[0].reached() && outcomes[0].line().starts_with("MISS"));
        assert!(!outcomes[1].reached());
    }

    #[test]
    fn without_ours_or_without_peers_nothing_is_judged() {
        assert!(judge(&[tcp("gotatun", 2000.0, 6.0)]).is_empty());
        assert!(judge(&[tcp(OURS, 2000.0, 6.0), tcp(NO_TUNNEL, 9000.0, 0.0)]).is_empty());
    }

    #[test]
    fn af_xdp_is_compared_with_our_own_socket() {
        let row = |peer: &str, daemons, machine| Row {
            peer: peer.into(),
            test: "udp64-80k",
            daemon_cpu_us_per_packet: daemons,
            machine_cpu_us_per_packet: Some(machine),
            ..Row::default()
        };
        let outcomes = judge(&[
            row(NO_TUNNEL, None, 2.0),
            row(AF_XDP, Some(3.0), 5.0),
            row(SINGLE, Some(6.0), 6.0),
        ]);
        assert_eq!(outcomes.iter().map(|o| o.value).collect::<Vec<_>>(), [0.5, 0.75]);
        assert_eq!(
            outcomes.iter().map(Outcome::reached).collect::<Vec<_>>(),
            [true, false]
        );
    }

    #[test]
    fn own_aead_is_compared_with_the_library_in_the_same_engine() {
        let outcomes = judge(&[tcp(OURS, 3000.0, 3.0), tcp(LIBRARY, 2000.0, 4.0)]);
        assert_eq!(outcomes.iter().map(|o| o.value).collect::<Vec<_>>(), [1.5, 0.75]);
        assert_eq!(
            outcomes.iter().map(Outcome::reached).collect::<Vec<_>>(),
            [true, false]
        );
    }

    #[test]
    fn lowest_round_trip_is_the_best() {
        let row = |peer: &str, p50| Row {
            peer: peer.into(),
            test: "rtt-idle",
            rtt_p50_us: Some(p50),
            ..Row::default()
        };
        let outcomes = judge(&[
            row(OURS, 105.0),
            row(SPIN, 55.0),
            row("a", 100.0),
            row("b", 300.0),
        ]);
        assert_eq!(outcomes.iter().map(|o| o.value).collect::<Vec<_>>(), [1.05, 0.55]);
        assert!(outcomes.iter().all(Outcome::reached));
    }
}
