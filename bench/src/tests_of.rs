//! The tests of a run: what each one does with one subject, once.

use crate::load::udp::{Flow, Mix, Trial};
use crate::load::{echo, tcp, tcp::Streams};
use crate::machine::{Unused, stolen_ticks};
use crate::search::{self, Effort, Start, Verdict};
use crate::subject::{Subject, daemons_cpu};
use patronus_netns::{Error, Result, Tunnel};
use std::time::{Duration, Instant};

/// Loss that counts as none.
const ALLOWANCE: f64 = 0.0001;
/// The rate at which CPU per packet is compared, packets a second.
const COMMON_RATE: f64 = 80_000.0;
/// A full trial during which the host took more of the CPUs' time than this is made again, at most twice.
const DISTURBED: f64 = 0.02;

/// A test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// TCP, as much as goes: number of streams.
    Tcp(usize),
    /// The highest loss-free rate of paced UDP.
    Highest(Packets),
    /// 64-byte packets at 80,000 a second: CPU of the daemons per packet.
    Common,
    /// Round trip on an idle tunnel.
    RttIdle,
    /// Round trip beside TCP at 80 % of the slowest subject's rate.
    RttLoaded,
    /// CPU of the daemons with the tunnel up and nothing to do.
    Idle,
}

/// Packet sizes of paced UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// 64 bytes.
    Small,
    /// 1,400 bytes.
    Large,
    /// 64, 576 and 1,400 bytes, 7:4:1, a flow for each size.
    Mixed,
    /// The same in one flow.
    MixedFlow,
}

impl Test {
    /// All of them, in the order of a round.
    pub const ALL: [Test; 9] = [
        Test::Tcp(1),
        Test::Tcp(4),
        Test::Highest(Packets::Small),
        Test::Highest(Packets::Large),
        Test::Highest(Packets::Mixed),
        Test::Common,
        Test::RttIdle,
        Test::RttLoaded,
        Test::Idle,
    ];

    /// Name in rows and options.
    pub fn name(self) -> &'static str {
        match self {
            Test::Tcp(1) => "tcp1",
            Test::Tcp(_) => "tcp4",
            Test::Highest(Packets::Small) => "udp64",
            Test::Highest(Packets::Large) => "udp1400",
            Test::Highest(Packets::Mixed) => "udpmix",
            Test::Highest(Packets::MixedFlow) => "udpmix-1flow",
            Test::Common => "udp64-80k",
            Test::RttIdle => "rtt-idle",
            Test::RttLoaded => "rtt-loaded",
            Test::Idle => "idle-cpu",
        }
    }

    /// Not part of a run unless asked for.
    pub const MORE: [Test; 1] = [Test::Highest(Packets::MixedFlow)];

    /// Those of a run, and those that must be asked for.
    pub fn every() -> impl Iterator<Item = Test> {
        Test::ALL.into_iter().chain(Test::MORE)
    }

    /// The test of that name.
    pub fn by_name(name: &str) -> Option<Test> {
        Test::every().find(|test| test.name() == name)
    }

    /// About how long it takes with one subject.
    pub fn estimate(self, lengths: &Lengths) -> Duration {
        let start = Duration::from_millis(700);
        start
            + match self {
                Test::Tcp(_) => lengths.warm_up + lengths.tcp,
                // About nine short trials; half the confirmations fail at once.
                Test::Highest(_) => lengths.screen * 9 + lengths.trial * lengths.trials * 2 + 4 * start,
                Test::Common => lengths.trial + start,
                Test::RttIdle => lengths.rtt,
                Test::RttLoaded => lengths.warm_up + lengths.rtt,
                Test::Idle => lengths.settle + lengths.idle,
            }
    }
}

/// How long things take.
#[derive(Clone, Debug)]
pub struct Lengths {
    /// TCP before it is counted.
    pub warm_up: Duration,
    /// TCP while it is counted.
    pub tcp: Duration,
    /// A trial that looks for the neighbourhood of the highest rate.
    pub screen: Duration,
    /// A trial that counts.
    pub trial: Duration,
    /// Trials that must all be clean.
    pub trials: u32,
    /// Round trips.
    pub rtt: Duration,
    /// Quiet time before idle CPU is counted.
    pub settle: Duration,
    /// Quiet time while it is counted.
    pub idle: Duration,
}

impl Lengths {
    /// Of a run whose figures count.
    pub fn full() -> Lengths {
        Lengths {
            warm_up: Duration::from_millis(1500),
            tcp: Duration::from_secs(5),
            screen: Duration::from_secs(1),
            trial: Duration::from_secs(5),
            trials: 3,
            rtt: Duration::from_secs(5),
            settle: Duration::from_secs(1),
            idle: Duration::from_secs(8),
        }
    }

    /// Of a run that shows that everything works.
    pub fn quick() -> Lengths {
        Lengths {
            warm_up: Duration::from_millis(500),
            tcp: Duration::from_secs(1),
            screen: Duration::from_millis(300),
            trial: Duration::from_secs(1),
            trials: 1,
            rtt: Duration::from_secs(1),
            settle: Duration::from_millis(500),
            idle: Duration::from_secs(2),
        }
    }
}

/// What one test showed of one subject in one round. `None`: not measured by this test.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Goodput, megabits of payload a second.
    pub mbps: Option<f64>,
    /// Packets a second.
    pub pps: Option<f64>,
    /// Part of the packets lost.
    pub loss: Option<f64>,
    /// CPU of both daemons, seconds per 10^9 bytes of payload.
    pub cpu_s_per_gb: Option<f64>,
    /// CPU of both daemons, microseconds per packet delivered.
    pub cpu_us_per_packet: Option<f64>,
    /// CPU of the whole machine, generator and sink included, microseconds per packet delivered.
    pub machine_us_per_packet: Option<f64>,
    /// Round trip, median, microseconds.
    pub rtt_p50_us: Option<f64>,
    /// Round trip, 99th percentile, microseconds.
    pub rtt_p99_us: Option<f64>,
    /// CPU of both daemons on an idle tunnel, percent of one core.
    pub idle_percent: Option<f64>,
    /// The generator was the limit.
    pub generator_limited: bool,
}

/// What a run knows from before and a test may use.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Where the search begins: the rate found in the round before, packets a second.
    pub near_pps: Option<f64>,
    /// TCP beside which loaded round trips are measured, megabits a second.
    pub pace_mbps: f64,
}

/// Runs `test` with a fresh tunnel of `subject`.
pub fn measure(test: Test, subject: &Subject, lengths: &Lengths, known: Known) -> Result<Sample> {
    let tunnel = subject.up()?;
    let congestion = subject.congestion.as_deref();
    match test {
        Test::Tcp(count) => tcp_rate(
            &tunnel,
            tcp::Kind {
                count,
                pace: None,
                congestion,
            },
            lengths,
        ),
        Test::Highest(packets) => highest(&tunnel, packets, lengths, known.near_pps),
        Test::Common => common(&tunnel, lengths),
        Test::RttIdle => rtt(&tunnel, lengths.rtt),
        Test::RttLoaded => {
            let pace = Some(known.pace_mbps * 1e6);
            rtt_loaded(
                &tunnel,
                tcp::Kind {
                    count: 1,
                    pace,
                    congestion,
                },
                lengths,
            )
        }
        Test::Idle => idle(&tunnel, lengths),
    }
}

/// Daemons' CPU between two readings, seconds.
fn seconds_between(before: Option<Duration>, after: Option<Duration>) -> Option<f64> {
    Some(after?.saturating_sub(before?).as_secs_f64())
}

fn tcp_rate(tunnel: &Tunnel, kind: tcp::Kind<'_>, lengths: &Lengths) -> Result<Sample> {
    let load = Streams::start(tunnel, kind)?;
    std::thread::sleep(lengths.warm_up);
    let (start, bytes_before, cpu_before) = (Instant::now(), load.received(), daemons_cpu(tunnel)?);
    std::thread::sleep(lengths.tcp);
    let (bytes, seconds) = (
        (load.received() - bytes_before) as f64,
        start.elapsed().as_secs_f64(),
    );
    let cpu = seconds_between(cpu_before, daemons_cpu(tunnel)?);
    if bytes == 0.0 {
        return Err(Error::new("TCP stands still"));
    }
    Ok(Sample {
        mbps: Some(bytes * 8.0 / seconds / 1e6),
        cpu_s_per_gb: cpu.map(|cpu| cpu / (bytes / 1e9)),
        ..Sample::default()
    })
}

impl Packets {
    /// Their sizes.
    pub fn mix(self) -> Mix {
        match self {
            Packets::Small => Mix::SMALL,
            Packets::Large => Mix::LARGE,
            Packets::Mixed => Mix::IMIX,
            Packets::MixedFlow => Mix::IMIX_FLOW,
        }
    }
}

/// A trial's figures as a sample.
fn sample_of(trial: &Trial, cpu: Option<f64>) -> Sample {
    let per = |amount: f64| cpu.filter(|_| amount > 0.0).map(|cpu| cpu / amount);
    Sample {
        mbps: Some(trial.mbps()),
        pps: Some(trial.pps()),
        loss: Some(trial.loss()),
        cpu_s_per_gb: per(trial.bytes as f64 / 1e9),
        cpu_us_per_packet: per(trial.received as f64 / 1e6),
        ..Sample::default()
    }
}

/// Trials at one rate, together, and the CPU of the daemons in them, seconds.
struct Attempt {
    trial: Trial,
    cpu: Option<f64>,
    verdict: Verdict,
}

/// The highest rate without loss, on a tunnel that is up.
pub fn highest(tunnel: &Tunnel, packets: Packets, lengths: &Lengths, near: Option<f64>) -> Result<Sample> {
    let mut flow = Flow::new(tunnel)?;
    // Grows heaps and tables, and wakes both ends.
    flow.trial(packets.mix(), 10_000.0, lengths.screen, None)?;
    let mut best: Option<Attempt> = None;
    let start = match near {
        Some(pps) => Start::At(search::nearest_step(pps)),
        None => Start::Around(search::nearest_step(40_000.0)),
    };
    let found = search::highest_clean(start, |step, effort| {
        let attempt = attempt(
            tunnel,
            &mut flow,
            packets.mix(),
            search::rate(step),
            effort,
            lengths,
        )?;
        let verdict = attempt.verdict;
        if effort == Effort::Confirm && verdict == Verdict::Clean {
            best = Some(attempt);
        }
        Ok::<_, Error>(verdict)
    })?;
    let mut sample = match best {
        Some(best) => sample_of(&best.trial, best.cpu),
        None => Sample {
            pps: Some(0.0),
            mbps: Some(0.0),
            ..Sample::default()
        },
    };
    sample.generator_limited = found.generator_limited;
    Ok(sample)
}

fn attempt(
    tunnel: &Tunnel,
    flow: &mut Flow,
    mix: Mix,
    pps: f64,
    effort: Effort,
    lengths: &Lengths,
) -> Result<Attempt> {
    let (count, length) = match effort {
        Effort::Screen => (1, lengths.screen),
        Effort::Confirm => (lengths.trials, lengths.trial),
    };
    let mut total = Attempt {
        trial: Trial::default(),
        cpu: Some(0.0),
        verdict: Verdict::Clean,
    };
    for _ in 0..count {
        let (trial, cpu) = undisturbed(tunnel, flow, mix, pps, length)?;
        total.trial.add(&trial);
        total.cpu = total.cpu.zip(cpu).map(|(all, one)| all + one);
        if trial.loss() > ALLOWANCE && trial.sink_drops == 0 {
            total.verdict = Verdict::Lossy;
            break;
        } else if trial.generator_limited() {
            total.verdict = Verdict::Limited;
            break;
        }
    }
    Ok(total)
}

/// One trial; made again, twice at most, if it failed while the host took the CPU away.
fn undisturbed(
    tunnel: &Tunnel,
    flow: &mut Flow,
    mix: Mix,
    pps: f64,
    length: Duration,
) -> Result<(Trial, Option<f64>)> {
    let mut repeats = 0;
    loop {
        let (cpu_before, stolen_before) = (daemons_cpu(tunnel)?, stolen_ticks());
        let trial = flow.trial(mix, pps, length, Some(ALLOWANCE))?;
        let cpu = seconds_between(cpu_before, daemons_cpu(tunnel)?);
        let stolen = (stolen_ticks() - stolen_before) as f64 / 100.0;
        let failed = trial.loss() > ALLOWANCE || trial.generator_limited();
        if !failed || stolen < DISTURBED * trial.seconds || repeats == 2 {
            return Ok((trial, cpu));
        }
        repeats += 1;
    }
}

fn common(tunnel: &Tunnel, lengths: &Lengths) -> Result<Sample> {
    let mut flow = Flow::new(tunnel)?;
    flow.trial(Mix::SMALL, COMMON_RATE, lengths.screen, None)?;
    let (before, unused) = (daemons_cpu(tunnel)?, Unused::now());
    let trial = flow.trial(Mix::SMALL, COMMON_RATE, lengths.trial, None)?;
    let used = unused.used_since().as_secs_f64();
    let mut sample = sample_of(&trial, seconds_between(before, daemons_cpu(tunnel)?));
    sample.machine_us_per_packet = (trial.received > 0).then(|| used * 1e6 / trial.received as f64);
    sample.generator_limited = trial.generator_limited();
    Ok(sample)
}

fn rtt(tunnel: &Tunnel, duration: Duration) -> Result<Sample> {
    let outcome = echo::round_trips(tunnel, duration)?;
    let sent = outcome.times.len() + outcome.lost;
    Ok(Sample {
        loss: Some(outcome.lost as f64 / sent as f64),
        rtt_p50_us: Some(outcome.micros(0.5)),
        rtt_p99_us: Some(outcome.micros(0.99)),
        ..Sample::default()
    })
}

fn rtt_loaded(tunnel: &Tunnel, kind: tcp::Kind<'_>, lengths: &Lengths) -> Result<Sample> {
    let load = Streams::start(tunnel, kind)?;
    std::thread::sleep(lengths.warm_up);
    let (start, before) = (Instant::now(), load.received());
    let mut sample = rtt(tunnel, lengths.rtt)?;
    sample.mbps = Some((load.received() - before) as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6);
    Ok(sample)
}

fn idle(tunnel: &Tunnel, lengths: &Lengths) -> Result<Sample> {
    std::thread::sleep(lengths.settle);
    let (start, before) = (Instant::now(), daemons_cpu(tunnel)?);
    std::thread::sleep(lengths.idle);
    let cpu = seconds_between(before, daemons_cpu(tunnel)?);
    let seconds = start.elapsed().as_secs_f64();
    Ok(Sample {
        idle_percent: cpu.map(|cpu| cpu / seconds * 100.0),
        ..Sample::default()
    })
}
