//! What the engine answers to `get=` questions: lines of `name=value` in groups, each of which begins with the same name.
//!
//! The engine is believed no more than it has to be: lines that make no sense are passed over, and numbers that are none are 0.

use std::net::SocketAddr;
use std::str::FromStr;

/// Lines that belong together, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    lines: Vec<(String, String)>,
}

impl Group {
    /// The first value of that name.
    pub fn text(&self, name: &str) -> Option<&str> {
        let mut lines = self.lines.iter().filter(|(known, _)| known == name);
        lines.next().map(|(_, value)| value.as_str())
    }

    /// All values of that name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let lines = self.lines.iter().filter(move |(known, _)| known == name);
        lines.map(|(_, value)| value.as_str())
    }

    /// The value of that name, if it is one of these.
    pub fn parsed<T: FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    /// A number, 0 if there is none.
    pub fn number(&self, name: &str) -> u64 {
        self.parsed(name).unwrap_or(0)
    }

    /// Whether the value is 1.
    pub fn is(&self, name: &str) -> bool {
        self.text(name) == Some("1")
    }

    /// An address and UDP port.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.parsed("endpoint")
    }

    /// Every line.
    pub fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// What stands before the first line called `first`, and then a group for each of these.
pub fn groups(text: &str, first: &str) -> (Group, Vec<Group>) {
    let mut head = Group::default();
    let mut groups: Vec<Group> = Vec::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        if name == "errno" {
            continue;
        }
        if name == first {
            groups.push(Group::default());
        }
        let group = groups.last_mut().unwrap_or(&mut head);
        group.lines.push((name.to_owned(), value.to_owned()));
    }
    (head, groups)
}

/// A public key in hex, as bytes.
pub fn key(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn groups_begin_with_their_first_line() {
        let text = "interface=wg0\nup=1\npeer=aa\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\npeer=bb\nsent_bytes=x\nerrno=0\n\n";
        let (head, peers) = groups(text, "peer");
        assert_eq!(head.text("interface"), Some("wg0"));
        assert!(head.is("up"));
        assert_eq!(peers.len(), 2);
        assert_eq!(peers[0].all("allowed_ip").count(), 2);
        assert_eq!(peers[1].number("sent_bytes"), 0);
        assert_eq!(peers[1].text("errno"), None);
    }

    proptest! {
        #[test]
        fn nothing_that_an_engine_says_panics(text in ".{0,200}") {
            let (_, groups) = groups(&text, "peer");
            groups.iter().for_each(|group| { group.endpoint(); });
            key(&text);
        }
    }
}
