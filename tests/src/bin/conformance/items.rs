//! The lines of the conformance list: what each number stands for, and what is known to be missing.
//!
//! `C` lines are the observable behaviour of the protocol and of its Linux implementation; `R` lines are defects that
//! other implementations shipped and later fixed, so each is a test that this one does not have them. The numbers are
//! fixed: a line is never renumbered, only its state changes.

/// One numbered line.
pub struct Item {
    /// The number without its letter.
    pub number: u8,
    /// What must hold (`C`) or must not happen (`R`), in one phrase.
    pub title: &'static str,
    /// How far the tests go.
    pub state: State,
}

/// How far the tests of a line go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The tests that carry the number cover the line.
    Covered,
    /// Tests exist, and this is what they leave out.
    Part(&'static str),
    /// The same as another line, whose tests cover it.
    Same(char, u8),
    /// No test carries the number, and this is why.
    Open(&'static str),
}

/// A run of lines under one heading.
pub struct Section {
    /// The heading.
    pub heading: &'static str,
    /// The letter in front of the numbers.
    pub letter: char,
    /// The lines, in order.
    pub items: &'static [Item],
}

const fn covered(number: u8, title: &'static str) -> Item {
    Item {
        number,
        title,
        state: State::Covered,
    }
}

const fn part(number: u8, title: &'static str, left_out: &'static str) -> Item {
    Item {
        number,
        title,
        state: State::Part(left_out),
    }
}

const fn same(number: u8, title: &'static str, letter: char, other: u8) -> Item {
    Item {
        number,
        title,
        state: State::Same(letter, other),
    }
}

const fn open(number: u8, title: &'static str, why: &'static str) -> Item {
    Item {
        number,
        title,
        state: State::Open(why),
    }
}

/// Every line, in the order of the list.
pub const SECTIONS: &[Section] = &[
    Section {
        heading: "Constants and wire format",
        letter: 'C',
        items: &[
            covered(
                1,
                "construction, identifier and label strings hash to the published values",
            ),
            covered(
                2,
                "handshake messages have exactly 148, 92 or 64 bytes, data at least 32",
            ),
            covered(
                3,
                "the type is a little-endian 32-bit word: reserved bytes must be zero",
            ),
            covered(
                4,
                "integers are little-endian; the nonce is four zero bytes and the counter",
            ),
            covered(
                5,
                "a key is renewed after 2^60 messages and refused at its hard limit, on both sides",
            ),
            covered(6, "the time constants have the published values"),
        ],
    },
    Section {
        heading: "Handshake",
        letter: 'C',
        items: &[
            part(
                7,
                "interoperates in both roles, with and without pre-shared key, over IPv4 and IPv6",
                "the kernel's own module, which the test machines do not have",
            ),
            covered(
                8,
                "an all-zero Diffie-Hellman result is refused wherever one is computed",
            ),
            covered(9, "an unknown static key gets no answer and leaves no state"),
            covered(
                10,
                "an initiation's timestamp must exceed the last one accepted from that peer",
            ),
            covered(
                11,
                "own timestamps are coarse and always grow, whatever the wall clock does",
            ),
            covered(
                12,
                "two initiations of one peer within 20 ms: the second is dropped",
            ),
            covered(
                13,
                "a response counts once, only while one is awaited, and only for its index",
            ),
            covered(14, "session indices are random, unique and given back"),
            covered(15, "both sides initiating at once end in one session"),
            covered(
                16,
                "the responder sends nothing under a key that the initiator has not yet used",
            ),
            covered(17, "previous, current and next key pair move as the kernel's do"),
            covered(
                18,
                "a peer with our own key is refused; a new private key stops the old sessions' sending",
            ),
            covered(19, "a new pre-shared key waits for the next handshake"),
            covered(20, "a wrong static or pre-shared key fails the handshake"),
        ],
    },
    Section {
        heading: "MACs, cookies and load",
        letter: 'C',
        items: &[
            covered(21, "mac1 is checked before anything else"),
            covered(22, "a wrong mac1 is never answered"),
            covered(
                23,
                "under load, a valid mac1 without a cookie costs no Diffie-Hellman and gets a cookie reply",
            ),
            covered(
                24,
                "load begins at an eighth of the handshake queue and lasts a second longer",
            ),
            covered(
                25,
                "a cookie binds address and port and dies with its two-minute secret",
            ),
            covered(26, "the cookie reply is sealed to the message that caused it"),
            covered(
                27,
                "a cookie reply is taken once, only when awaited, and moves nothing else",
            ),
            covered(
                28,
                "each source has a bounded rate of handshakes; IPv6 sources count by /64",
            ),
            covered(29, "one flooding source does not take the rate of the others"),
            covered(30, "a cookie is used at the next retry, not at once"),
        ],
    },
    Section {
        heading: "Data path",
        letter: 'C',
        items: &[
            covered(31, "counters start at 0 and none is used twice"),
            covered(
                32,
                "the replay window is wide enough and moves only after authentication",
            ),
            covered(33, "counters at the hard limit are refused both ways"),
            covered(
                34,
                "padding to 16 stops at the MTU; the receiver trims by the inner length",
            ),
            covered(
                35,
                "inner lengths that do not fit, and what is not IP, are dropped and counted",
            ),
            covered(36, "an empty packet is a keepalive and goes no further"),
            covered(37, "an inner source must belong to the peer that sent it"),
            covered(
                38,
                "the longest prefix chooses the peer; without one the sender is told by ICMP",
            ),
            covered(39, "a prefix moves between peers in one step"),
            covered(40, "packets without a session wait in a bounded queue, in order"),
            covered(41, "an unknown index or a wrong tag changes nothing"),
            covered(42, "outer DSCP is chosen, ECN follows RFC 6040"),
            part(
                43,
                "outer DF is clear; what is too big inside is answered by ICMP",
                "DF on data; the kernel answers what exceeds the TUN's MTU",
            ),
            part(
                44,
                "inner checksums are trusted after authentication; outer ones are always set on IPv6",
                "the outer checksum on the wire: the kernel writes it, and over veth a capture sees it unfinished; that peers answer over IPv6 is all that shows it",
            ),
            covered(45, "the order within a flow is kept"),
            covered(46, "segments are split and merged without changing a byte"),
        ],
    },
    Section {
        heading: "Timers",
        letter: 'C',
        items: &[
            covered(
                47,
                "15 s after the first unanswered packet a new handshake begins",
            ),
            covered(48, "data received and nothing sent for 10 s gives one keepalive"),
            covered(49, "keepalives are not answered by keepalives"),
            covered(
                50,
                "only the initiator renews by time, on send and once on receive",
            ),
            covered(
                51,
                "an initiation is repeated every 5 s for about 90 s, then given up",
            ),
            covered(52, "at most one initiation per peer in 5 s"),
            covered(53, "a session is dead after 180 s, both ways"),
            covered(54, "after 540 s without a session all its keys are zero"),
            covered(
                55,
                "a persistent keepalive counts from the last authenticated packet in either direction",
            ),
            covered(56, "time asleep counts as time"),
            covered(57, "a step of the wall clock touches no session"),
            covered(
                58,
                "two peers with persistent keepalive do not both initiate at expiry",
            ),
        ],
    },
    Section {
        heading: "Roaming and sockets",
        letter: 'C',
        items: &[
            covered(59, "any authenticated packet moves the endpoint, no other does"),
            covered(
                60,
                "answers leave from the address the peer called, until that stops working",
            ),
            part(
                61,
                "a replayed packet does not move the endpoint",
                "pinning an endpoint to a path, which comes with paths; the live on-path forwarder is in the threat model",
            ),
            part(
                62,
                "several paths to one peer keep their own endpoints",
                "several paths to one peer, which come with a later issue; endpoints of several peers are tested",
            ),
            covered(
                63,
                "IPv4 and IPv6 share a port, port 0 picks one, a change keeps sessions",
            ),
            covered(
                64,
                "the firewall mark is on every outgoing packet; routing loops stay bounded",
            ),
        ],
    },
    Section {
        heading: "Robustness",
        letter: 'C',
        items: &[
            covered(
                65,
                "datagrams of any size, alone or in trains, neither panic nor stall",
            ),
            part(
                66,
                "short, fragmented and extended inner headers are survived",
                "runt inner headers from a real peer; they are tested on the virtual clock only",
            ),
            covered(
                67,
                "the number of peers has a stated limit and an index is found in constant time",
            ),
            part(
                68,
                "a flood of initiations leaves running tunnels running",
                "99 % of their throughput: on two cores shared with a flood of 50,000 a second, TCP fell from 103 to 58 MB/s; the test asks for a tenth",
            ),
            covered(69, "a peer can be removed at any moment"),
            covered(
                70,
                "an interface that is down neither sends nor consumes handshakes",
            ),
            covered(71, "the engine ends when its TUN is deleted"),
            covered(72, "errors of the sockets are handled by kind"),
            covered(73, "counters have 64 bits on every target"),
            covered(74, "a clock that goes backwards does no harm"),
        ],
    },
    Section {
        heading: "Secrets",
        letter: 'C',
        items: &[
            covered(75, "keys are locked, kept out of dumps and logs, and zeroed"),
            part(
                76,
                "the UAPI socket and the key files are for their owner only",
                "the REST interface, which does not exist yet",
            ),
            covered(77, "tags and MACs are compared in constant time"),
        ],
    },
    Section {
        heading: "UAPI and tools",
        letter: 'C',
        items: &[
            covered(78, "every subcommand of wg works over the socket"),
            covered(
                79,
                "keys, endpoints, prefixes and flags are read and written as wg does",
            ),
            covered(80, "an unknown key is refused; large configurations are taken"),
            covered(81, "handshake times and byte counts are the kernel's"),
            covered(82, "a stale socket is replaced and ours is removed at the end"),
            covered(83, "syncconf keeps the sessions of unchanged peers"),
        ],
    },
    Section {
        heading: "Defects of gotatun",
        letter: 'R',
        items: &[
            covered(1, "an oversized datagram ends the receiver"),
            covered(2, "a peer may use another peer's address"),
            covered(3, "the hard message limit is not enforced"),
            covered(4, "a 32-bit counter wraps the nonce"),
            covered(5, "the cookie does not cover the port"),
            covered(6, "one handshake limiter for all peers"),
            covered(7, "after a number of handshakes each gets a cookie"),
            covered(8, "predictable session indices"),
            covered(9, "no padding to 16"),
            covered(10, "only initiations move the endpoint"),
            covered(11, "a cookie reply moves the endpoint"),
            covered(12, "a replay window of 1,024"),
            covered(13, "keepalives answer keepalives"),
            covered(14, "the passive keepalive counts from the wrong event"),
            covered(15, "persistent keepalives although there is traffic"),
            covered(16, "a changed pre-shared key is not used"),
            covered(17, "no jitter"),
            covered(18, "a cookie reply counts as a received packet"),
            covered(19, "needless rekeys"),
            covered(20, "a response that takes 250 ms is ignored"),
            covered(21, "an IPv6 source is misread in a batch"),
            covered(22, "a partial batch send loses packets"),
            covered(23, "a clock step panics"),
            covered(24, "a race while the tunnel is set up"),
            covered(25, "a wrong handshake time in the UAPI"),
            covered(26, "an extreme MTU panics"),
            covered(27, "a host with one address family only cannot bind"),
        ],
    },
    Section {
        heading: "Defects of boringtun (Firezone's branch)",
        letter: 'R',
        items: &[
            covered(
                28,
                "the new handshake counts from the last packet and not from the first unanswered one",
            ),
            covered(
                29,
                "the responder sends a keepalive or initiates without a session",
            ),
            covered(30, "two initiations at once"),
            covered(31, "jitter computed and never used"),
            same(32, "a panic in the packet path", 'C', 65),
            covered(33, "sending under a key about to expire"),
        ],
    },
    Section {
        heading: "Defects of boringtun (Cloudflare's)",
        letter: 'R',
        items: &[
            covered(34, "no new handshake when the peer is silent"),
            covered(35, "time asleep is not counted"),
            covered(
                36,
                "a handshake time of decades ago; an interrupted poll stops the keepalives",
            ),
            covered(37, "now and then loss around REKEY_TIMEOUT"),
            covered(38, "a large configuration overflows the stack"),
            covered(39, "received and sent bytes swapped"),
            open(
                40,
                "unsound shared ownership",
                "does not apply: the engine's and the protocol's packages forbid unsafe code",
            ),
            covered(41, "a handshake races the removal of its peer"),
        ],
    },
    Section {
        heading: "Defects of wireguard-go",
        letter: 'R',
        items: &[
            same(42, "the all-zero check is missing in places", 'C', 8),
            covered(43, "a handshake is consumed while the interface is down"),
            covered(44, "malformed UAPI text crashes the daemon"),
            covered(45, "a sticky source survives the address it names"),
            covered(46, "nanoseconds out of range in a timestamp"),
            same(
                47,
                "endpoint races, a deadlock at the end, misread ancillary data",
                'C',
                60,
            ),
        ],
    },
    Section {
        heading: "Defects of VPP's plugin",
        letter: 'R',
        items: &[
            covered(48, "a malformed key overruns a buffer"),
            covered(49, "a peer is added under a running worker"),
            covered(50, "no headroom for the outer header"),
            open(
                51,
                "wrong IPv6 payload length or checksum outside",
                "does not apply: the kernel's sockets write the outer headers (see C44)",
            ),
            covered(52, "handshakes are sent while the interface is down"),
            covered(53, "the retry timer survives the response"),
            same(54, "a frame is lost for ever", 'C', 69),
        ],
    },
    Section {
        heading: "Protocol",
        letter: 'R',
        items: &[part(
            55,
            "a wall clock far in the future makes the key unusable (CVE-2021-46873)",
            "a clock that is wrong from the start: needs the high-water mark on disk, which comes with control",
        )],
    },
];
