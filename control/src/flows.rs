//! Flows, as the engine's workers remember them: what it answers to `ask=flows`, and which of it somebody wants to see.
//!
//! Plain functions over an answer, called on the threads of connections.

use std::net::IpAddr;

use patronus_config::value::Network;
use serde::{Deserialize, Serialize};

use crate::answers::{Group, key};
use crate::message::{Code, Failure, FlowFilter};

/// Flows that the engine is asked for: it tells of no more at a time.
pub const ASKED_MAX: usize = 1000;

/// A flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Where its packets come from.
    pub src: IpAddr,
    /// And go to.
    pub dst: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// UDP or TCP port that they come from; 0: there is none.
    pub src_port: u16,
    /// And go to.
    pub dst_port: u16,
    /// DSCP of its first packet.
    pub dscp: u8,
    /// The worker that remembers it.
    pub worker: u64,
    /// How long ago its last packet came, seconds.
    pub idle: Option<f64>,
    /// Bytes of its packets since it has been remembered.
    #[serde(default)]
    pub bytes: u64,
    /// The policy that it comes under.
    pub policy: Option<String>,
    /// Its class.
    pub class: String,
    /// What becomes of its packets: `tunnel`, `host`, `lan`, `dropped`, `unreachable` or `discard`.
    pub exit: String,
    /// The peer's name or key, if it is a tunnel.
    pub peer: Option<String>,
    /// By which path they go.
    pub path: Option<String>,
}

impl Flow {
    /// What the engine says of it. None: something else.
    pub fn of(group: &Group, called: &dyn Fn(&[u8; 32]) -> String) -> Option<Flow> {
        let words: Vec<&str> = group.text("flow")?.split(' ').collect();
        let [src, dst, protocol, src_port, dst_port, dscp] = words[..] else {
            return None;
        };
        let word = |name| group.text(name).map(str::to_owned);
        Some(Flow {
            src: src.parse().ok()?,
            dst: dst.parse().ok()?,
            protocol: protocol.parse().ok()?,
            src_port: src_port.parse().ok()?,
            dst_port: dst_port.parse().ok()?,
            dscp: dscp.parse().ok()?,
            worker: group.number("worker"),
            idle: group.parsed("idle_ms").map(|millis: u64| millis as f64 / 1000.0),
            bytes: group.number("bytes"),
            policy: word("policy"),
            class: word("class").unwrap_or_default(),
            exit: word("exit").unwrap_or_default(),
            peer: group.text("peer").and_then(key).map(|key| called(&key)),
            path: word("path"),
        })
    }
}

/// Which flows, understood.
pub struct Filter<'a> {
    network: Option<Network>,
    port: Option<u16>,
    class: Option<&'a str>,
}

impl<'a> Filter<'a> {
    /// Understands what somebody wants.
    pub fn of(wanted: &'a FlowFilter) -> Result<Filter<'a>, Failure> {
        let network = wanted.address.as_deref().map(|text| {
            let network: Result<Network, _> = text.parse();
            network.map_err(|expected| Failure::new(Code::BadRequest, format!("`{text}`: {expected}")))
        });
        Ok(Filter {
            network: network.transpose()?,
            port: wanted.port,
            class: wanted.class.as_deref(),
        })
    }

    /// Whether it is one of them.
    pub fn takes(&self, flow: &Flow) -> bool {
        let is_in = |network: &Network| {
            let around = |ip: IpAddr| {
                ip.is_ipv4() == network.addr.is_ipv4() && Network::around(ip, network.len) == Some(*network)
            };
            around(flow.src) || around(flow.dst)
        };
        self.network.as_ref().is_none_or(is_in)
            && self
                .port
                .is_none_or(|port| [flow.src_port, flow.dst_port].contains(&port))
            && self.class.is_none_or(|class| flow.class == class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::groups;
    use proptest::prelude::*;

    const TEXT: &str = "flow=10.1.0.5 10.2.0.9 17 5060 5060 46\nworker=1\nidle_ms=1500\npolicy=voice\nclass=voice\nexit=tunnel\n\
                        peer=0707070707070707070707070707070707070707070707070707070707070707\nbucket=3\npath=1-2\nhome=1-2\n\
                        flow=fd00::1 fd00::2 58 0 0 0\nworker=0\nclass=default\nexit=dropped\nflow=nonsense\n";

    fn flows() -> Vec<Flow> {
        let (_, groups) = groups(TEXT, "flow");
        groups
            .iter()
            .filter_map(|group| Flow::of(group, &|key| format!("peer {}", key[0])))
            .collect()
    }

    fn wanted(address: Option<&str>, port: Option<u16>, class: Option<&str>) -> usize {
        let filter = FlowFilter {
            address: address.map(str::to_owned),
            port,
            class: class.map(str::to_owned),
        };
        let filter = Filter::of(&filter).expect("a filter");
        flows().iter().filter(|flow| filter.takes(flow)).count()
    }

    #[test]
    fn what_the_engine_says_is_understood() {
        let flows = flows();
        assert_eq!(flows.len(), 2);
        assert_eq!(
            (flows[0].idle, flows[0].peer.as_deref()),
            (Some(1.5), Some("peer 7"))
        );
        assert_eq!((flows[0].path.as_deref(), flows[0].dscp), (Some("1-2"), 46));
        assert_eq!((flows[1].exit.as_str(), &flows[1].peer), ("dropped", &None));
    }

    #[test]
    fn flows_are_found_by_address_port_and_class() {
        assert_eq!(wanted(None, None, None), 2);
        assert_eq!(wanted(Some("10.2.0.0/16"), None, None), 1);
        assert_eq!(wanted(Some("10.1.0.5"), Some(5060), Some("voice")), 1);
        assert_eq!(wanted(Some("10.3.0.0/16"), None, None), 0);
        assert_eq!(wanted(Some("fd00::/16"), None, None), 1);
        assert_eq!(wanted(None, Some(53), None), 0);
        assert_eq!(wanted(None, None, Some("default")), 1);
        let wrong = FlowFilter {
            address: Some("host".to_owned()),
            ..FlowFilter::default()
        };
        assert!(Filter::of(&wrong).is_err());
    }

    proptest! {
        #[test]
        fn nothing_that_an_engine_says_panics(text in "(flow=[0-9a-f:. ]{0,30}\n){0,4}") {
            let (_, groups) = groups(&text, "flow");
            groups.iter().for_each(|group| { Flow::of(group, &|_| String::new()); });
        }
    }
}
