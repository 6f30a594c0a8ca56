//! `why`: by which path flows go, why, and why not by the others.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use patronus_config::matching::Protocol;
use patronus_control::client::Client;
use patronus_control::decisions::{Limit, Record};
use patronus_control::explain::{Candidate, Choice, Fate, InEngine};
use patronus_control::message::{Code, Flow, Order};
use serde_json::{Value, json};

use crate::ask::connect;
use crate::options::Why;
use crate::output::{Outcome, Output, Table, Wrong, escaped};
use crate::paths::{age, millis, none, percent};
use crate::show::read;

/// `patronus why`.
pub fn why(output: Output, socket: &Path, options: &Why) -> Outcome {
    let flow = flow(options)?;
    let mut client = connect(socket)?;
    match flow {
        Some(flow) => {
            let shown = client.ask(Order::WhyFlow(flow))?;
            let fate: Fate = read(&shown)?;
            let mut text = fate_text(&fate);
            fate.choices
                .iter()
                .for_each(|choice| text.push_str(&choice_text(choice)));
            output.print(&shown, text)
        }
        None => of_remote(output, &mut client, options),
    }
}

/// The flow that is meant, if one is: addresses stand at the beginning.
fn flow(options: &Why) -> Result<Option<Flow>, Wrong> {
    let what = &options.what;
    let address = |at: usize| what.get(at)?.parse::<IpAddr>().ok();
    let (src, dst) = match (address(0), address(1)) {
        (Some(src), Some(dst)) => (src, dst),
        (Some(_), None) => {
            return Err(wrong(
                "a flow has a source and a destination, both of them addresses",
            ));
        }
        (None, _) if what.len() > 2 => {
            return Err(wrong("expected a remote and a class, or a flow's addresses"));
        }
        (None, _) => return Ok(None),
    };
    let given = |at: usize| what.get(at).map(String::as_str).filter(|text| *text != "-");
    let protocol = given(2).map(str::parse::<Protocol>).transpose();
    let protocol = protocol.map_err(|error| wrong(&error.to_string()))?;
    let port = |at: usize| {
        let port = given(at).map(str::parse::<u16>).transpose();
        port.map_err(|_| wrong("expected a port from 0 to 65535, or `-`"))
    };
    Ok(Some(Flow {
        src,
        dst,
        protocol: protocol.map(|protocol| protocol.0),
        src_port: port(3)?,
        dst_port: port(4)?,
        dscp: options.dscp,
    }))
}

fn wrong(said: &str) -> Wrong {
    Wrong::usage(said).hint("`patronus why hub voice`, or `patronus why 10.1.0.5 10.2.0.7 udp - 5060`")
}

fn of_remote(output: Output, client: &mut Client, options: &Why) -> Outcome {
    let remote = options.what[0].clone();
    let class = options.what.get(1).cloned();
    let choices = client.ask(Order::Why {
        remote: Some(remote.clone()),
        class: class.clone(),
    })?;
    let asked = client.ask(Order::Decisions {
        remote: Some(remote),
        class,
        after: 0,
        count: Some(options.last),
    });
    let decisions = match asked {
        Ok(decisions) => decisions,
        Err(failure) if failure.code == Code::NotAllowed => Value::Null,
        Err(failure) => return Err(failure.into()),
    };
    let mut text = String::new();
    for choice in read::<Vec<Choice>>(&choices)? {
        text.push_str(&choice_text(&choice));
        text.push('\n');
    }
    match decisions.is_null() {
        true => text.push_str("the last decisions are for administrators\n"),
        false => text.push_str(&decisions_text(read(&decisions)?)),
    }
    output.print(&json!({ "choices": choices, "decisions": decisions }), text)
}

fn fate_text(fate: &Fate) -> String {
    let mut text = String::new();
    let policy = fate.policy.as_deref().unwrap_or("none asks for it");
    let _ = writeln!(text, "policy  {}", escaped(policy));
    if !fate.perhaps.is_empty() {
        let names = escaped(&fate.perhaps.join(", "));
        let _ = writeln!(
            text,
            "        or {names}, which asks for what is not known of the flow"
        );
    }
    if let Some(route) = &fate.route {
        let _ = writeln!(text, "route   {}", escaped(route));
    }
    let via = if fate.via.is_empty() {
        none()
    } else {
        fate.via.join(", ")
    };
    let _ = writeln!(text, "goes    {}: {}", escaped(&fate.goes), escaped(&via));
    if let Some(now) = &fate.engine {
        text.push_str(&now_text(now));
    } else if fate.path.is_none() && fate.choices.iter().any(|choice| choice.over.len() > 1) {
        text.push_str("now     by one of several paths: with protocol and ports it can be said which\n");
    }
    if fate.goes == "tunnel" && fate.choices.is_empty() {
        text.push_str("path    the base session: there are no paths\n");
    }
    text
}

/// Where the engine has the flow.
fn now_text(now: &InEngine) -> String {
    let mut text = match (&now.path, now.age) {
        (Some(path), Some(since)) => format!("now     by path {} for {}", escaped(path), age(since)),
        _ => format!("now     {}", escaped(&now.goes)),
    };
    if let Some(second) = &now.second {
        let _ = write!(text, " and by {}", escaped(second));
    }
    if let Some(home) = &now.home {
        let home = escaped(home);
        let _ = match &now.path {
            Some(_) => write!(text, ", and will go back to {home}"),
            None => write!(text, "; its first packet takes path {home}"),
        };
    }
    let _ = match now.idle {
        Some(idle) => writeln!(text, "; its last packet came {} ago", age(idle)),
        None => writeln!(text, "; the engine remembers no packet of it"),
    };
    text
}

fn choice_text(choice: &Choice) -> String {
    let limits = [
        ("latency", millis(choice.limits.latency)),
        ("jitter", millis(choice.limits.jitter)),
        ("loss", percent(choice.limits.loss)),
    ];
    let limits = limits.iter().filter(|(_, limit)| limit != "-");
    let limits: Vec<String> = limits.map(|(name, limit)| format!("{name} {limit}")).collect();
    let limits = match limits.is_empty() {
        true => "no limits".to_owned(),
        false => limits.join(", "),
    };
    let mut text = format!(
        "{} to {}: {}; {limits}; hold {:.0} s\n",
        escaped(&choice.class),
        escaped(&choice.remote),
        escaped(&choice.mode),
        choice.hold
    );
    let why = escaped(&choice.text);
    let _ = match (&choice.path, choice.age, &choice.over[..]) {
        (Some(path), Some(since), [] | [_]) => {
            writeln!(text, "goes by path {} for {}: {why}", escaped(path), age(since))
        }
        (Some(path), Some(since), over) => {
            let (path, over) = (escaped(path), escaped(&over.join(" and ")));
            let how = match choice.mode == "duplicate" {
                true => "each packet goes by paths",
                false => "flows are spread over paths",
            };
            writeln!(
                text,
                "{how} {over}; {path} is the first for {}: {why}",
                age(since)
            )
        }
        _ => writeln!(text, "{why}"),
    };
    let mut table = Table::new(&[
        "PATH",
        "STATE",
        "RTT",
        "JITTER IN",
        "OUT",
        "LOSS IN",
        "OUT",
        "WHY",
    ]);
    for candidate in &choice.paths {
        table.row(row(candidate));
    }
    text.push_str(&table.to_string());
    text
}

fn row(candidate: &Candidate) -> [String; 8] {
    let measured = &candidate.measured;
    let text = match &candidate.why {
        None => format!("the one: {}", candidate.text),
        Some(_) => candidate.text.clone(),
    };
    [
        candidate.path.clone(),
        candidate.state.clone(),
        millis(measured.rtt),
        millis(measured.jitter_in),
        millis(measured.jitter_out),
        percent(measured.loss_in),
        percent(measured.loss_out),
        text,
    ]
}

fn decisions_text(decisions: Vec<Record>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0.0, |now| now.as_secs_f64());
    let mut table = Table::new(&["WHEN", "CLASS", "DECISION", "PATH", "WHY"]);
    for record in decisions {
        let path = match (record.path, record.from, record.to) {
            (Some(path), ..) => path,
            (None, Some(from), Some(to)) => format!("{from} -> {to}"),
            (None, _, to) => to.unwrap_or_else(none),
        };
        table.row([
            format!("{} ago", age((now - record.at).max(0.0))),
            record.class.unwrap_or_else(none),
            record.kind,
            path,
            record.limit.as_ref().map_or(record.why, limit_text),
        ]);
    }
    table.to_string()
}

fn limit_text(limit: &Limit) -> String {
    let value = |value: f64| match limit.of.starts_with("loss") {
        true => percent(Some(value)),
        false => millis(Some(value)),
    };
    let (measured, most) = (value(limit.measured), value(limit.limit));
    format!("{} {measured} in {} s, limit {most}", limit.of, limit.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(what: &[&str]) -> Why {
        Why {
            what: what.iter().map(|text| (*text).to_owned()).collect(),
            dscp: None,
            last: 10,
        }
    }

    #[test]
    fn a_flow_begins_with_two_addresses() {
        assert!(flow(&options(&["hub"])).expect("a remote").is_none());
        assert!(flow(&options(&["hub", "voice"])).expect("a remote").is_none());
        let asked = flow(&options(&["10.1.0.5", "10.2.0.7", "udp", "-", "5060"]));
        let asked = asked.expect("a flow").expect("a flow");
        assert_eq!(
            (asked.protocol, asked.src_port, asked.dst_port),
            (Some(17), None, Some(5060))
        );
        for wrong in [
            &["10.1.0.5"][..],
            &["10.1.0.5", "hub"],
            &["10.1.0.5", "10.2.0.7", "uddp"],
            &["10.1.0.5", "10.2.0.7", "udp", "70000"],
            &["hub", "voice", "x"],
        ] {
            assert!(flow(&options(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_limit_is_told_in_its_unit() {
        let mut limit = Limit {
            of: "loss-in".to_owned(),
            measured: 0.021,
            limit: 0.01,
            seconds: 1,
        };
        assert_eq!(limit_text(&limit), "loss-in 2.10 % in 1 s, limit 1.00 %");
        limit.of = "latency".to_owned();
        assert_eq!(limit_text(&limit), "latency 21.0 ms in 1 s, limit 10.0 ms");
    }
}
