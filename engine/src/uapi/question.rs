//! What can be asked beside `get=1`, which is ours alone: `get=` and one of these words. No answer holds a key other than a public one.
//!
//! An answer is lines of `name=value`, as in the rest of the protocol. Where there are several of a thing, each begins with the line that says which.

/// A question about the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Every counter.
    Stats,
    /// The device, then each peer: `peer=KEY`.
    Peers,
    /// Each lane of each remote: `lane=KEY LOCAL REMOTE NUMBER` (link, link, number on that path).
    Lanes,
    /// Each path to each remote: `path=KEY LOCAL REMOTE` (link, link).
    Paths,
    /// Each prefix that is routed by: `route=PREFIX`, `dynamic=1` if the configuration has none with it, then a `via=` for each next hop.
    Routes,
    /// Each WAN link: `link=PLACE`, from 0.
    Links,
    /// What packets have in memory, and how full the tables are.
    Memory,
}

impl Question {
    const ALL: [(&'static [u8], Question); 7] = [
        (b"stats", Question::Stats),
        (b"peers", Question::Peers),
        (b"lanes", Question::Lanes),
        (b"paths", Question::Paths),
        (b"routes", Question::Routes),
        (b"links", Question::Links),
        (b"memory", Question::Memory),
    ];

    /// The question of the line `get=WORD`.
    pub(super) fn of_line(line: &[u8]) -> Option<Question> {
        let word = line.strip_prefix(b"get=")?;
        let found = Question::ALL.iter().find(|(name, _)| *name == word);
        found.map(|(_, question)| *question)
    }
}
