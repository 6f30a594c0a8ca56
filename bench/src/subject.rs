//! What is measured: a daemon and how it is started, or no tunnel at all.

use crate::tests_of::Test;
use patronus_netns::{DaemonOptions, Kind, Result, Tunnel, TwoSites};
use std::path::PathBuf;
use std::time::Duration;

/// Our engine with its default settings.
pub const OURS: &str = "patronus";
/// Our engine with the arguments of `--engine-args`.
pub const SPIN: &str = "patronus-spin";
/// Our engine with an AF_XDP link (docs/adr/0013).
pub const AF_XDP: &str = "patronus-af-xdp";
/// Our engine with its own UDP socket and no segmentation offload on it: each datagram by itself, as AF_XDP sends them.
pub const SINGLE: &str = "patronus-single";
/// Our engine with a library's AEAD in place of our own.
pub const LIBRARY: &str = "patronus-aws-lc";
/// No tunnel: the veth itself.
pub const NO_TUNNEL: &str = "no-tunnel";
/// MTU of the tunnels, and of the path where there is none.
pub const MTU: u32 = 1420;

/// One thing to measure.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Name in tables, rows and options.
    pub name: String,
    /// Which program.
    pub kind: Kind,
    /// How it is started.
    pub options: DaemonOptions,
    /// TCP congestion control of the generators; `None`: the machine's.
    pub congestion: Option<String>,
}

/// Names and kinds, in the order of measurement; those marked `true` are in a run unless `--subjects` says otherwise.
const KNOWN: [(&str, Kind, bool); 11] = [
    (NO_TUNNEL, Kind::Plain, true),
    (OURS, Kind::Engine, true),
    (SPIN, Kind::Engine, true),
    (AF_XDP, Kind::Engine, false),
    (SINGLE, Kind::Engine, false),
    (LIBRARY, Kind::Engine, false),
    ("wireguard-go", Kind::WireguardGo, true),
    ("wireguard-go-new", Kind::WireguardGoNew, true),
    ("boringtun", Kind::Boringtun, true),
    // The same program with `--threads 1` in place of its default, 4.
    ("boringtun-1t", Kind::Boringtun, false),
    ("gotatun", Kind::Gotatun, true),
];

impl Subject {
    /// The subjects of a run: `wanted` (default: all but the variants), and why each of the others is left out.
    pub fn choose(
        wanted: Option<&[String]>,
        engine: Option<PathBuf>,
        engine_args: Option<&str>,
        congestion: Option<&str>,
    ) -> Result<(Vec<Subject>, Vec<String>)> {
        let unknown = |name: &&String| !KNOWN.iter().any(|known| known.0 == name.as_str());
        if let Some(name) = wanted.unwrap_or_default().iter().find(unknown) {
            let names = KNOWN.map(|known| known.0).join(", ");
            return Err(patronus_netns::Error::new(format!(
                "no such subject: {name} (there are: {names})"
            )));
        }
        let (mut chosen, mut left_out) = (Vec::new(), Vec::new());
        for (name, kind, default) in KNOWN {
            let asked = wanted.map_or(default, |names| names.iter().any(|n| n == name));
            if !asked || (name == SPIN && engine_args.is_none() && wanted.is_none()) {
                continue;
            }
            let mut options = DaemonOptions::default();
            match (name, engine_args) {
                (SPIN, Some(args)) => options.args.extend(args.split_whitespace().map(str::to_owned)),
                (SPIN, None) => {
                    left_out.push(format!("{SPIN}: --engine-args says how it differs"));
                    continue;
                }
                _ => options
                    .args
                    .extend(own_arguments(name).iter().map(|arg| (*arg).to_owned())),
            }
            let override_with = if kind == Kind::Engine {
                engine.clone()
            } else {
                None
            };
            options.program = override_with.or_else(|| kind.find());
            if kind != Kind::Plain && options.program.is_none() {
                left_out.push(format!("{name}: {} is not installed", kind.name()));
                continue;
            }
            chosen.push(Subject {
                name: name.to_owned(),
                kind,
                options,
                congestion: congestion.map(str::to_owned),
            });
        }
        Ok((chosen, left_out))
    }

    /// Our engine, in whatever variant.
    pub fn is_ours(&self) -> bool {
        self.kind == Kind::Engine
    }

    /// Whether a test says anything about this subject.
    pub fn takes(&self, test: Test) -> bool {
        match test {
            // There is no daemon whose CPU could be counted.
            Test::Idle => self.name != NO_TUNNEL,
            // Spinning is for round trips; the search would only take half of a long run.
            Test::Highest(_) => self.name != SPIN,
            _ => true,
        }
    }

    /// Name and version for the settings.
    pub fn describe(&self) -> String {
        let Some(program) = &self.options.program else {
            return self.name.clone();
        };
        let args = self.options.args.join(" ");
        let version = self.kind.version(program);
        format!(
            "{}: {version}{}{args}",
            self.name,
            if args.is_empty() { "" } else { ", " }
        )
    }

    /// Two sites with this subject between them, its session made and its memory warm.
    pub fn up(&self) -> Result<Tunnel> {
        let mut plan = TwoSites::new(self.kind, self.kind);
        plan.options_a = self.options.clone();
        plan.options_b = self.options.clone();
        plan.mtu = MTU;
        let tunnel = plan.up()?;
        tunnel.probe(false, Duration::from_secs(10))?;
        Ok(tunnel)
    }
}

/// What a variant is started with, beside what its program always gets.
fn own_arguments(name: &str) -> &'static [&'static str] {
    match name {
        AF_XDP => &["--link", "path,af_xdp"],
        SINGLE => &["--no-wan-offload"],
        LIBRARY => &["--aead", "aws-lc"],
        "boringtun-1t" => &["--threads", "1"],
        _ => &[],
    }
}

/// CPU time that the daemons of both ends have used so far; `None` where there is none.
pub fn daemons_cpu(tunnel: &Tunnel) -> Result<Option<Duration>> {
    let (Some(a), Some(b)) = (&tunnel.a.daemon, &tunnel.b.daemon) else {
        return Ok(None);
    };
    Ok(Some(a.cpu_time()? + b.cpu_time()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_are_named_and_left_out() {
        let wanted = ["no-tunnel", "patronus-spin"].map(str::to_owned);
        let (chosen, left_out) = Subject::choose(Some(&wanted), None, None, None).unwrap();
        assert_eq!(
            chosen.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["no-tunnel"]
        );
        assert!(left_out[0].starts_with("patronus-spin"));
    }

    #[test]
    fn engine_arguments_go_to_the_variant_alone() {
        let engine = Some(PathBuf::from("/bin/true"));
        let wanted = [OURS, SPIN].map(str::to_owned);
        let (chosen, _) = Subject::choose(Some(&wanted), engine, Some("--spin 50"), None).unwrap();
        assert!(chosen[0].options.args.is_empty());
        assert_eq!(chosen[1].options.args, ["--spin", "50"]);
    }

    #[test]
    fn variants_have_arguments_of_their_own() {
        let engine = Some(PathBuf::from("/bin/true"));
        let wanted = [OURS, AF_XDP, SINGLE, LIBRARY].map(str::to_owned);
        let (chosen, _) = Subject::choose(Some(&wanted), engine, None, None).unwrap();
        let args: Vec<String> = chosen.iter().map(|s| s.options.args.join(" ")).collect();
        assert_eq!(
            args,
            ["", "--link path,af_xdp", "--no-wan-offload", "--aead aws-lc"]
        );
        assert!(chosen.iter().all(Subject::is_ours));
    }

    #[test]
    fn unknown_subjects_are_an_error() {
        assert!(Subject::choose(Some(&["nonesuch".to_owned()]), None, None, None).is_err());
    }
}
