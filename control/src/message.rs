//! What the control process is asked and answers, as JSON: one request and one answer at a time on a connection.
//!
//! `{"v":1,"id":7,"do":"apply","confirm":60}` is answered by `{"v":1,"id":7,"ok":{...}}` or
//! `{"v":1,"id":7,"error":{"code":"refused","message":"...","hint":"..."}}`. How they are framed: [`frame`](crate::frame). docs/control-socket.md has all of them.
//! Plain values, used by both ends.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of these messages. Another version is refused.
pub const VERSION: u32 = 1;

/// A question or an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// Comes back with the answer.
    pub id: u64,
    /// What is wanted.
    #[serde(flatten)]
    pub order: Order,
}

/// What can be wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// Something about the site, its engine and its tunnels.
    Show {
        /// What.
        what: Topic,
    },
    /// The flows that the engine's workers remember.
    Flows(FlowFilter),
    /// What was measured of paths, over 1, 10 and 60 seconds.
    Quality {
        /// To this remote, by its name or key; None: to every one, or as many as there is room for.
        #[serde(default)]
        remote: Option<String>,
    },
    /// How the site would change.
    Plan {
        /// The text of a site's file, which is not written anywhere. None: the site's own file.
        #[serde(default)]
        text: Option<String>,
    },
    /// Put the site's file in force.
    Apply {
        /// Go back to what was in force unless it is confirmed within so many seconds.
        #[serde(default)]
        confirm: Option<u32>,
        /// The engine is about to be started anew: what needs that is allowed.
        #[serde(default)]
        restart: bool,
    },
    /// By which paths flows of a class go to a remote, and why.
    Why {
        /// Its name or key; None: every one.
        #[serde(default)]
        remote: Option<String>,
        /// The name of the class; None: every one.
        #[serde(default)]
        class: Option<String>,
    },
    /// What becomes of a flow, and why.
    WhyFlow(Flow),
    /// What was decided lately.
    Decisions {
        /// For the remote of this name or key only.
        #[serde(default)]
        remote: Option<String>,
        /// For the class of this name only, and of paths as such.
        #[serde(default)]
        class: Option<String>,
        /// With higher numbers than this one only.
        #[serde(default)]
        after: u64,
        /// The last so many; None: as many as usual.
        #[serde(default)]
        count: Option<usize>,
    },
    /// Trace or capture packets.
    Observe {
        /// The request to the engine, as docs/trace.md has it.
        request: String,
    },
    /// For a while nothing goes by a link, as if it were cut.
    Drill {
        /// Its number.
        link: u8,
        /// For how long, a minute at most; 0: a drill is over.
        seconds: u32,
    },
    /// Keep what was applied.
    Confirm,
    /// Go back to what was in force before what was applied and is not confirmed.
    Rollback,
}

/// A flow, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Where its packets come from.
    pub src: IpAddr,
    /// Where they go to.
    pub dst: IpAddr,
    /// IP protocol.
    #[serde(default)]
    pub protocol: Option<u8>,
    /// Source port of UDP or TCP.
    #[serde(default)]
    pub src_port: Option<u16>,
    /// Destination port.
    #[serde(default)]
    pub dst_port: Option<u16>,
    /// DSCP (RFC 2474).
    #[serde(default)]
    pub dscp: Option<u8>,
}

/// Which flows. What is none is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowFilter {
    /// Source or destination are this address, or in this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Source or destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Their class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// The whole in a few lines.
    Summary,
    /// Everybody that there is a tunnel to.
    Peers,
    /// Those that are sites of our own.
    Remotes,
    /// Sessions by path.
    Lanes,
    /// Paths to remotes.
    Paths,
    /// Prefixes and where they lead.
    Routes,
    /// WAN attachments.
    Links,
    /// Counters of ports.
    Ports,
    /// Packets that went no further, by reason.
    Drops,
    /// Packets, bursts and cycles by stage.
    Stages,
    /// What packets have in memory, and how full tables are.
    Memory,
    /// What has happened lately: sessions, endpoints, links, paths.
    Events,
    /// What was measured of paths, over 1, 10 and 60 seconds.
    Quality,
    /// Flows that workers remember.
    Flows,
}

impl Topic {
    /// All of them.
    pub const ALL: [Topic; 14] = [
        Topic::Summary,
        Topic::Peers,
        Topic::Remotes,
        Topic::Lanes,
        Topic::Paths,
        Topic::Routes,
        Topic::Links,
        Topic::Ports,
        Topic::Drops,
        Topic::Stages,
        Topic::Memory,
        Topic::Events,
        Topic::Quality,
        Topic::Flows,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Topic::Summary => "summary",
            Topic::Peers => "peers",
            Topic::Remotes => "remotes",
            Topic::Lanes => "lanes",
            Topic::Paths => "paths",
            Topic::Routes => "routes",
            Topic::Links => "links",
            Topic::Ports => "ports",
            Topic::Drops => "drops",
            Topic::Stages => "stages",
            Topic::Memory => "memory",
            Topic::Events => "events",
            Topic::Quality => "quality",
            Topic::Flows => "flows",
        }
    }
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub v: u32,
    /// The request's.
    pub id: u64,
    /// What there is to say, if it went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<Value>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The kinds of failure. New ones may come; the old ones keep their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No such order, or another version.
    BadRequest,
    /// The caller may not.
    NotAllowed,
    /// The site's file is wrong.
    BadConfig,
    /// The engine has refused it.
    Refused,
    /// It takes a restart of the engine.
    NeedsRestart,
    /// No engine is attached.
    NoEngine,
    /// There is nothing to confirm or to go back to.
    NothingPending,
    /// Something else is under way.
    Busy,
    /// It took too long.
    Timeout,
    /// A file, a socket, the system.
    System,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same with what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl Order {
    /// Whether only administrators may: whatever changes something, shows what packets hold, or what was decided.
    pub fn is_for_administrators(&self) -> bool {
        self.changes() || matches!(self, Order::Observe { .. } | Order::Decisions { .. })
    }

    /// Whether it changes something.
    pub fn changes(&self) -> bool {
        match self {
            Order::Show { .. }
            | Order::Flows(_)
            | Order::Quality { .. }
            | Order::Plan { .. }
            | Order::Observe { .. }
            | Order::Why { .. }
            | Order::WhyFlow(_)
            | Order::Decisions { .. } => false,
            Order::Apply { .. } | Order::Drill { .. } | Order::Confirm | Order::Rollback => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_the_documentation_says() {
        let text = r#"{"v":1,"id":7,"do":"apply","confirm":60}"#;
        let request: Request = serde_json::from_str(text).expect("a request");
        let order = Order::Apply {
            confirm: Some(60),
            restart: false,
        };
        assert_eq!(request, Request { v: 1, id: 7, order });
        let shown: Request =
            serde_json::from_str(r#"{"v":1,"id":8,"do":"show","what":"peers"}"#).expect("one");
        assert!(!shown.order.is_for_administrators());
        assert!(serde_json::from_str::<Request>(r#"{"v":1,"id":8,"do":"dance"}"#).is_err());
    }

    #[test]
    fn an_answer_has_one_of_both() {
        let answer = Answer {
            v: 1,
            id: 7,
            ok: None,
            error: Some(Failure::new(Code::NotAllowed, "no").hint("ask")),
        };
        let text = serde_json::to_string(&answer).expect("values");
        assert_eq!(
            text,
            r#"{"v":1,"id":7,"error":{"code":"not_allowed","message":"no","hint":"ask"}}"#
        );
    }

    #[test]
    fn every_topic_is_called_what_json_calls_it() {
        for topic in Topic::ALL {
            let json = serde_json::to_string(&topic).expect("a word");
            assert_eq!(json, format!("\"{}\"", topic.name()));
        }
    }
}
