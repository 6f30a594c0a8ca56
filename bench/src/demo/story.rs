//! Two sites with three links, a stream and TCP between them, and what happens when the fibre is cut and the cable gets bad: as a timeline in words, and
//! as a picture.

use super::Options;
use super::picture;
use super::record::{Move, Record, STEP, Step, Trouble};
use crate::failover::course::Ground;
use crate::failover::rig::{Rig, Setup, Wire};
use crate::failover::stream::{Arrival, INTERVAL, Stream, longest_silence};
use crate::load::tcp::{Kind, Streams};
use crate::machine;
use patronus_netns::{Error, Result};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The TCP port of the transfer: the policy knows it.
const FILES_PORT: u16 = 7001;
/// Its pace, bits a second: any of the links carries it.
const FILES_PACE: f64 = 24e6;

/// Name, delay one way in milliseconds, rate in Mbit/s, and the link's keys in the sites' files.
const LINKS: [(&str, u64, u64, &str); 3] = [
    ("fibre", 5, 200, "cost = 10\n"),
    ("cable", 12, 100, "cost = 20\n"),
    ("lte", 40, 50, "cost = 90\nmetered = true\n"),
];
/// The limits are those of the classes that are built in; flows go back sooner, so that it is to be seen.
const VOICE: &str = "latency = '150ms'\njitter = '30ms'\nloss = '1%'\nhold = '5s'\n";
const FILES: &str = "[[class]]\nname = 'files'\nlatency = '150ms'\nloss = '1%'\nhold = '5s'\n\
     [[policy]]\nname = 'files'\nprotocol = 'tcp'\ndst_ports = 7001\naction = 'route'\nclass = 'files'\n\
     [[policy]]\nname = 'files-back'\nprotocol = 'tcp'\nsrc_ports = 7001\naction = 'route'\nclass = 'files'\n";

/// Something that is done to a link, and undone.
struct Act {
    link: usize,
    from: u64,
    to: u64,
    begin: &'static [&'static str],
    end: &'static [&'static str],
    cut: bool,
    says: &'static str,
}

const FULL: (&[Act], u64) = (
    &[
        Act {
            link: 0,
            from: 6,
            to: 26,
            begin: &["cut"],
            end: &["mend"],
            cut: true,
            says: "cut",
        },
        Act {
            link: 1,
            from: 14,
            to: 32,
            begin: &["delay 92ms", "loss 2%"],
            end: &["delay 12ms", "loss off"],
            cut: false,
            says: "+80 ms each way, 2 % loss",
        },
    ],
    52,
);

const QUICK: (&[Act], u64) = (
    &[Act {
        link: 0,
        from: 2,
        to: 5,
        begin: &["cut"],
        end: &["mend"],
        cut: true,
        says: "cut",
    }],
    8,
);

/// Runs it, prints the timeline and writes the picture.
pub fn run(options: &Options) -> Result<()> {
    let (acts, seconds) = if options.quick { QUICK } else { FULL };
    println!("two sites in network namespaces, three links between them:");
    for (name, delay, rate, keys) in LINKS {
        let keys = keys.trim().replace('\n', ", ");
        println!("  {name:<6} {delay} ms one way, {rate} Mbit/s, {keys}");
    }
    println!(
        "live: 1,000 datagrams a second both ways (class voice), TCP at 24 Mbit/s from a to b (class files)"
    );
    let rig = Rig::up(&setup(), options.engine.clone())?;
    println!("three paths are up; the story takes {seconds} s\n");
    let mut story = Story::begin(rig)?;
    story.play(acts, Duration::from_secs(seconds))?;
    let arrivals = story.finish(acts);
    print!("{}", timeline(&story.record));
    println!("{}", sums(&story.record, &arrivals));
    let path = options
        .svg
        .clone()
        .unwrap_or_else(|| PathBuf::from("patronus-demo.svg"));
    let picture = picture::svg(&story.record, &subtitle());
    std::fs::write(&path, picture).map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
    println!("picture: {}", path.display());
    match story
        .record
        .steps
        .last()
        .is_some_and(|step| step.round_trip.is_some() && step.bytes > 0)
    {
        true => Ok(()),
        false => Err(story.rig.told(&Error::new("at the end nothing gets through"))),
    }
}

fn subtitle() -> String {
    let links = LINKS.map(|(name, delay, rate, _)| format!("{name} {delay} ms {rate} Mbit/s"));
    format!("{}; {}", links.join(", "), machine::summary())
}

fn setup() -> Setup {
    let wires = LINKS.map(|(name, delay, rate, keys)| Wire {
        name: name.to_owned(),
        impaired: vec![format!("delay {delay}ms"), format!("rate {rate}Mbit")],
        keys: keys.to_owned(),
    });
    Setup {
        wires: wires.into(),
        control: true,
        probe: None,
        class: ("voice", VOICE.to_owned()),
        more: FILES.to_owned(),
    }
}

/// The sites under traffic, and what is known so far.
struct Story {
    files: Streams,
    streams: [Stream; 2],
    rig: Rig,
    clock: Instant,
    start: Duration,
    /// The same moment by the clock on the wall, since 1970.
    wall: Duration,
    arrivals: [Vec<Arrival>; 2],
    /// Packets from a to b by link, and bytes of TCP, when they were read last.
    counted: (Vec<u64>, u64),
    record: Record,
}

impl Story {
    fn begin(mut rig: Rig) -> Result<Story> {
        let clock = Instant::now();
        let [a, b] = &rig.sites;
        let kind = Kind {
            count: 1,
            pace: Some(FILES_PACE),
            congestion: None,
        };
        let files = Streams::between(a, b, FILES_PORT, kind)?;
        let streams = [
            Stream::start(a, b, clock, INTERVAL)?,
            Stream::start(b, a, clock, INTERVAL)?,
        ];
        // Until TCP has found its pace.
        std::thread::sleep(Duration::from_secs(1));
        let counted = (packets(&mut rig)?, files.received());
        Ok(Story {
            files,
            streams,
            rig,
            start: clock.elapsed(),
            wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            clock,
            arrivals: Default::default(),
            counted,
            record: Record {
                links: LINKS.map(|link| link.0.to_owned()).into(),
                ..Record::default()
            },
        })
    }

    /// Does what is to be done when it is to be done, and looks once every step.
    fn play(&mut self, acts: &[Act], length: Duration) -> Result<()> {
        let mut at = Duration::ZERO;
        while at < length {
            for act in acts {
                let begins = at == Duration::from_secs(act.from);
                let ends = at == Duration::from_secs(act.to);
                for command in [act.begin]
                    .iter()
                    .filter(|_| begins)
                    .chain([act.end].iter().filter(|_| ends))
                {
                    command
                        .iter()
                        .try_for_each(|command| self.rig.hops[act.link].command(command).map(|_| ()))?;
                }
            }
            at += STEP;
            std::thread::sleep((self.start + at).saturating_sub(self.clock.elapsed()));
            self.look()?;
        }
        Ok(())
    }

    fn look(&mut self) -> Result<()> {
        for (stream, kept) in self.streams.iter().zip(&mut self.arrivals) {
            kept.extend(stream.take());
        }
        let now = (packets(&mut self.rig)?, self.files.received());
        let (before, bytes) = std::mem::replace(&mut self.counted, now);
        let (packets, received) = &self.counted;
        self.record.steps.push(Step {
            bytes: received - bytes,
            packets: packets
                .iter()
                .zip(before)
                .map(|(now, before)| now - before)
                .collect(),
            ..Step::default()
        });
        Ok(())
    }

    /// Waits for what is still under way, and completes the record.
    fn finish(&mut self, acts: &[Act]) -> [Vec<Arrival>; 2] {
        std::thread::sleep(Duration::from_millis(300));
        for (stream, kept) in self.streams.iter().zip(&mut self.arrivals) {
            kept.extend(stream.take());
        }
        let arrivals = std::mem::take(&mut self.arrivals);
        self.record.streams(self.start, &arrivals);
        self.record.troubles = acts
            .iter()
            .map(|act| Trouble {
                link: act.link,
                from: Duration::from_secs(act.from),
                to: Duration::from_secs(act.to),
                cut: act.cut,
                says: act.says.to_owned(),
            })
            .collect();
        let decided = self.rig.decisions(0);
        let moves = decided.iter().filter_map(|decision| {
            let at = Duration::try_from_secs_f64(decision["at"].as_f64()?).ok()?;
            let at = at.checked_sub(self.wall)?;
            told(decision).map(|says| Move { at, says })
        });
        self.record.moves = moves.collect();
        arrivals.map(|of| {
            of.into_iter()
                .filter(|arrival| arrival.came >= self.start)
                .collect()
        })
    }
}

/// Packets from a to b that each link was given so far.
fn packets(rig: &mut Rig) -> Result<Vec<u64>> {
    Ok(rig.packets()?.iter().map(|of| of[0]).collect())
}

/// A move of the decision log (docs/control-socket.md), in words; `None`: it is something else.
fn told(decision: &Value) -> Option<String> {
    let text = |key: &str| decision[key].as_str();
    if text("kind")? != "moved" {
        return None;
    }
    // A path is called by its links' numbers, ours first; all that there are here have the same at both ends.
    let link = |key| {
        let number: Option<usize> = text(key).and_then(|path| path.split('-').next()?.parse().ok());
        number
            .and_then(|number| LINKS.get(number.checked_sub(1)?))
            .map_or("nowhere", |link| link.0)
    };
    let limit = &decision["limit"];
    let why = match (
        limit["of"].as_str(),
        limit["measured"].as_f64(),
        limit["limit"].as_f64(),
    ) {
        (Some(of), Some(measured), Some(may)) if of.starts_with("loss") => {
            format!("{of} {:.1} %, limit {:.1} %", measured * 100.0, may * 100.0)
        }
        (Some(of), Some(measured), Some(may)) => {
            format!("{of} {:.0} ms, limit {:.0} ms", measured * 1e3, may * 1e3)
        }
        _ => text("why").unwrap_or("no reason").to_owned(),
    };
    Some(format!(
        "{}: {} -> {}: {why}",
        text("class").unwrap_or("default"),
        link("from"),
        link("to")
    ))
}

/// What happened when, in words.
fn timeline(record: &Record) -> String {
    let troubles = record.troubles.iter().flat_map(|trouble| {
        let link = &record.links[trouble.link];
        [
            (trouble.from, format!("{link}: {}", trouble.says)),
            (trouble.to, format!("{link} is well again")),
        ]
    });
    let moves = record
        .moves
        .iter()
        .map(|each| (each.at, format!("    {}", each.says)));
    let mut all: Vec<(Duration, String)> = troubles.chain(moves).collect();
    all.sort_by_key(|(at, _)| *at);
    let lines = all
        .iter()
        .map(|(at, says)| format!("{:7.2} s  {says}\n", at.as_secs_f64()));
    lines.collect()
}

/// What it came to.
fn sums(record: &Record, arrivals: &[Vec<Arrival>; 2]) -> String {
    let lost: u64 = record.steps.iter().map(|step| step.lost).sum();
    let silence = longest_silence(&arrivals[0], Duration::ZERO);
    let bytes: u64 = record.steps.iter().map(|step| step.bytes).sum();
    let still = record.steps.iter().filter(|step| step.bytes == 0).count();
    format!(
        "\nvoice, a to b: {} datagrams came, {lost} were lost; the longest silence was {:.0} ms\n\
         files: {:.0} MB came; nothing came in {:.1} s of {:.0} s",
        arrivals[0].len(),
        silence.as_secs_f64() * 1e3,
        bytes as f64 / 1e6,
        (STEP * still as u32).as_secs_f64(),
        (STEP * record.steps.len() as u32).as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stories_are_short_and_end_well() {
        for (acts, seconds) in [FULL, QUICK] {
            assert!(seconds <= 60);
            assert!(
                acts.iter()
                    .all(|act| act.from < act.to && act.to + 3 <= seconds && act.link < LINKS.len())
            );
        }
    }

    #[test]
    fn decisions_are_told_in_words() {
        let moved = |more: &str| {
            let text = format!(r#"{{"kind":"moved","class":"voice","from":"1-1","to":"3-3"{more}}}"#);
            told(&serde_json::from_str(&text).unwrap()).unwrap()
        };
        assert_eq!(moved(r#","why":"down""#), "voice: fibre -> lte: down");
        let limit =
            r#","why":"loss-out","limit":{"of":"loss-out","measured":0.021,"limit":0.01,"seconds":1}"#;
        assert_eq!(moved(limit), "voice: fibre -> lte: loss-out 2.1 %, limit 1.0 %");
        let limit = r#","why":"latency","limit":{"of":"latency","measured":0.184,"limit":0.15,"seconds":1}"#;
        assert_eq!(moved(limit), "voice: fibre -> lte: latency 184 ms, limit 150 ms");
        assert_eq!(
            told(&serde_json::from_str(r#"{"kind":"up","path":"1-1"}"#).unwrap()),
            None
        );
    }
}
