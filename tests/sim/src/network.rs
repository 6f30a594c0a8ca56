//! The network between the sites: paths with weather, NATs, and somebody who listens and repeats.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};

use patronus_crypto::{Duration, Random, Time};

use crate::rng::Seeded;
use crate::site::{UDP_PORT, own_address, owner_of};

/// Longest payload of a datagram over IPv4.
const UDP_MAX: usize = 65535 - 20 - 8;
/// Delay of a path in good weather.
const FAIR_DELAY: Duration = Duration::from_millis(20);

/// How bad a path is, in one direction. Shares are percent.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Datagrams lost.
    pub loss: usize,
    /// Datagrams that arrive twice or more often.
    pub copies: usize,
    /// Datagrams with a wrong bit, or cut short, or longer.
    pub damage: usize,
    /// Datagrams marked as having met congestion, where they may be.
    pub marks: usize,
    /// Least delay.
    pub delay: Duration,
    /// Most delay on top of that, milliseconds; more than 0 changes the order.
    pub jitter: usize,
}

/// Nothing is lost and all come in order.
pub const FAIR: Weather = Weather {
    loss: 0,
    copies: 0,
    damage: 0,
    marks: 0,
    delay: FAIR_DELAY,
    jitter: 0,
};

impl Weather {
    /// Some weather; in order if it is to be.
    pub fn random(rng: &mut Seeded, in_order: bool) -> Weather {
        let often = |rng: &mut Seeded, most: usize| if rng.chance(50) { 0 } else { rng.pick(0..most + 1) };
        Weather {
            // Now and then nothing gets through, and nobody says so.
            loss: if rng.chance(8) { 100 } else { often(rng, 40) },
            copies: if in_order { 0 } else { often(rng, 30) },
            damage: often(rng, 10),
            marks: often(rng, 30),
            delay: if in_order {
                FAIR_DELAY
            } else {
                Duration::from_millis(rng.pick(1..150) as u64)
            },
            jitter: if in_order { 0 } else { often(rng, 300) },
        }
    }
}

/// A datagram.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Where it seems to come from.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// DSCP and ECN.
    pub tos: u8,
    /// The payload.
    pub bytes: Vec<u8>,
    /// As its sender sent it, neither a copy nor damaged.
    pub genuine: bool,
}

struct Flying {
    at: Time,
    number: u64,
    datagram: Datagram,
}

impl PartialEq for Flying {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Flying {}

impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flying {
    /// The heap gives the greatest first: what arrives first; of that what was sent first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// A path, in one direction: from an address to an address.
type PathKey = (IpAddr, IpAddr);

/// The network.
pub struct Network {
    rng: Seeded,
    in_order: bool,
    fair: bool,
    weather: HashMap<PathKey, Weather>,
    flying: BinaryHeap<Flying>,
    sent: u64,
    /// The UDP port under which a site's link is seen, where it is not its own.
    nat: HashMap<(usize, usize), u16>,
    /// Lost, copied and damaged so far.
    pub harmed: u64,
}

impl Network {
    /// A network whose weather `rng` decides.
    pub fn new(rng: Seeded, in_order: bool) -> Network {
        Network {
            rng,
            in_order,
            fair: false,
            weather: HashMap::new(),
            flying: BinaryHeap::new(),
            sent: 0,
            nat: HashMap::new(),
            harmed: 0,
        }
    }

    /// The weather changes everywhere, a little later than now.
    pub fn change_weather(&mut self) {
        self.weather.clear();
    }

    /// From now on the weather is fair.
    pub fn clear_up(&mut self) {
        self.fair = true;
    }

    /// A link is seen under another UDP port from now on; what was on its way to the old one is lost.
    pub fn rebind(&mut self, site: usize, link: usize, port: u16) {
        self.nat.insert((site, link), port);
    }

    /// A site sends; both addresses are of one family.
    pub fn send(&mut self, now: Time, site: usize, link: usize, to: SocketAddr, tos: u8, bytes: Vec<u8>) {
        let ip = own_address(site, link, to.is_ipv6());
        let port = self.nat.get(&(site, link)).copied().unwrap_or(UDP_PORT);
        let datagram = Datagram {
            from: SocketAddr::new(ip, port),
            to,
            tos,
            bytes,
            genuine: true,
        };
        if datagram.bytes.len() > UDP_MAX {
            return;
        }
        let weather = self.weather_of((ip, to.ip()));
        if self.rng.chance(weather.loss) {
            self.harmed += 1;
            return;
        }
        let mut copies = 1;
        while self.rng.chance(weather.copies) {
            copies += 1;
        }
        self.harmed += copies - 1;
        for copy in 0..copies {
            let delay = weather.delay + Duration::from_millis(self.rng.pick(0..weather.jitter + 1) as u64);
            let mut datagram = datagram.clone();
            datagram.genuine = copy == 0;
            if weather.marks > 0 && tos & 3 != 0 && self.rng.chance(weather.marks) {
                datagram.tos |= 3;
            }
            if self.rng.chance(weather.damage) {
                self.damage(&mut datagram);
            }
            self.launch(now.after(delay), datagram);
        }
    }

    /// Somebody else sends.
    pub fn launch(&mut self, at: Time, datagram: Datagram) {
        self.sent += 1;
        let number = self.sent;
        self.flying.push(Flying { at, number, datagram });
    }

    fn weather_of(&mut self, path: PathKey) -> Weather {
        if self.fair {
            return FAIR;
        }
        let (rng, in_order) = (&mut self.rng, self.in_order);
        *self
            .weather
            .entry(path)
            .or_insert_with(|| Weather::random(rng, in_order))
    }

    fn damage(&mut self, datagram: &mut Datagram) {
        self.harmed += 1;
        datagram.genuine = false;
        let bytes = &mut datagram.bytes;
        match self.rng.pick(0..4) {
            0 => bytes.truncate(self.rng.pick(0..bytes.len().max(1))),
            1 => bytes.extend([0; 16]),
            _ => {
                let bit = self.rng.pick(0..8 * bytes.len());
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    /// When the next datagram arrives.
    pub fn next_arrival(&self) -> Option<Time> {
        self.flying.peek().map(|flying| flying.at)
    }

    /// The next datagram that has arrived, and at which site and link. What arrives nowhere is gone.
    pub fn land(&mut self, now: Time) -> Option<(usize, usize, Datagram)> {
        while self.flying.peek().is_some_and(|flying| flying.at <= now) {
            let datagram = self.flying.pop()?.datagram;
            if let Some((site, link)) = owner_of(datagram.to.ip()) {
                let port = self.nat.get(&(site, link)).copied().unwrap_or(UDP_PORT);
                if port == datagram.to.port() {
                    return Some((site, link, datagram));
                }
            }
        }
        None
    }
}

/// Somebody on the path who repeats what went by, from an address of his own.
#[derive(Default)]
pub struct Eavesdropper {
    /// Data that has arrived, of which it is not known yet whether it was taken.
    fresh: Vec<(usize, Datagram)>,
    /// Data that a site has taken: whoever repeats it must be ignored.
    taken: Vec<(usize, Datagram)>,
}

/// What he keeps.
const KEPT: usize = 64;

impl Eavesdropper {
    /// His address.
    pub fn address(rng: &mut Seeded) -> SocketAddr {
        SocketAddr::new(
            IpAddr::from([203, 0, 113, rng.pick(1..255) as u8]),
            rng.pick(1..60_000) as u16,
        )
    }

    /// Whether an address is his.
    pub fn is_his(to: SocketAddr) -> bool {
        matches!(to.ip(), IpAddr::V4(ip) if ip.octets()[..3] == [203, 0, 113])
    }

    /// Data arrives at a site.
    pub fn hear(&mut self, site: usize, datagram: &Datagram) {
        if datagram.genuine && self.fresh.len() < KEPT {
            self.fresh.push((site, datagram.clone()));
        }
    }

    /// A site has come to rest; `all`: it has taken everything that came since it was last.
    pub fn settle(&mut self, site: usize, all: bool) {
        for (at, datagram) in self.fresh.extract_if(.., |(at, _)| *at == site) {
            if all {
                self.taken.push((at, datagram));
            }
        }
        let surplus = self.taken.len().saturating_sub(KEPT);
        self.taken.drain(..surplus);
    }

    /// Something to repeat, as if it came from him; sometimes with other content.
    pub fn repeat(&mut self, rng: &mut Seeded) -> Option<Datagram> {
        if self.taken.is_empty() {
            return None;
        }
        let mut datagram = self.taken[rng.pick(0..self.taken.len())].1.clone();
        datagram.from = Eavesdropper::address(rng);
        datagram.genuine = false;
        match rng.pick(0..4) {
            0 => {
                let len = datagram.bytes.len();
                rng.fill(&mut datagram.bytes[16..len]);
            }
            // A counter that was not used yet, so that only the authentication tells.
            1 => {
                let ahead = u64::from_le_bytes(datagram.bytes[8..16].try_into().expect("8 bytes"));
                let ahead = ahead.wrapping_add(rng.pick(1..100_000) as u64);
                datagram.bytes[8..16].copy_from_slice(&ahead.to_le_bytes());
            }
            _ => {}
        }
        Some(datagram)
    }
}
