//! What the engine says before the records: the clocks, and the names of what records give numbers of. Lines of text, up to an empty one.

use std::fmt::{self, Write};

/// A LAN port or a link.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Port {
    /// Its interface, or what stands for it.
    pub name: String,
    /// Packets are Ethernet frames; otherwise IP packets.
    pub ethernet: bool,
}

/// What a reader has to know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// `CLOCK_REALTIME` less `CLOCK_BOOTTIME` when it began, nanoseconds.
    pub wall_offset: u64,
    /// Our UDP port.
    pub udp_port: u16,
    /// The LAN ports, by number.
    pub lans: Vec<Port>,
    /// The links, by number.
    pub links: Vec<Port>,
    /// Why packets go no further, by number.
    pub reasons: Vec<String>,
}

impl Head {
    /// Takes note of a line. What it does not know it leaves out: a newer engine may say more.
    pub(crate) fn line(&mut self, line: &str) {
        let Some((name, value)) = line.split_once('=') else {
            return;
        };
        match name {
            "wall_offset" => self.wall_offset = value.parse().unwrap_or_default(),
            "udp_port" => self.udp_port = value.parse().unwrap_or_default(),
            "lan" => self.lans.push(port(value)),
            "link" => self.links.push(port(value)),
            "reason" => self.reasons.push(value.to_owned()),
            _ => {}
        }
    }

    /// The name of a reason.
    pub fn reason(&self, number: u16) -> &str {
        self.reasons
            .get(usize::from(number))
            .map_or("unknown", String::as_str)
    }

    /// The name of a LAN port.
    pub fn lan(&self, number: u16) -> &str {
        self.lans.get(usize::from(number)).map_or("?", |port| &port.name)
    }

    /// The name of a link.
    pub fn link(&self, number: u16) -> &str {
        self.links.get(usize::from(number)).map_or("?", |port| &port.name)
    }
}

fn port(value: &str) -> Port {
    let (kind, name) = value.split_once(' ').unwrap_or(("ip", value));
    Port {
        name: name.to_owned(),
        ethernet: kind == "ethernet",
    }
}

/// The lines, without the empty one.
impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "wall_offset={}\nudp_port={}", self.wall_offset, self.udp_port)?;
        for (what, ports) in [("lan", &self.lans), ("link", &self.links)] {
            for Port { name, ethernet } in ports {
                let kind = if *ethernet { "ethernet" } else { "ip" };
                writeln!(f, "{what}={kind} {name}")?;
            }
        }
        for reason in &self.reasons {
            f.write_str("reason=")?;
            f.write_str(reason)?;
            f.write_char('\n')?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let port = |name: &str, ethernet| Port {
            name: name.to_owned(),
            ethernet,
        };
        let head = Head {
            wall_offset: 1 << 60,
            udp_port: 51820,
            lans: vec![port("wg0", false), port("lan 1", true)],
            links: vec![port("eth0", false)],
            reasons: vec!["route-none".to_owned()],
        };
        let mut read = Head::default();
        format!("{head}colour=red\nno line\n")
            .lines()
            .for_each(|line| read.line(line));
        assert_eq!(read, head);
        assert_eq!(
            (head.lan(1), head.link(0), head.reason(0)),
            ("lan 1", "eth0", "route-none")
        );
        assert_eq!((head.lan(2), head.reason(9)), ("?", "unknown"));
    }
}
