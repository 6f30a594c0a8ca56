//! Routes like the internet's, the same in every run.
//!
//! IPv4: about 1 million, 63 % of them /24, 11 % /22, 10 % /23. IPv6: 200,000, 47 % /48 and 12 % /32, mean length 43. More than half
//! are more specific than another one (G. Huston, "BGP in 2024", APNIC Labs; AS6447's reports on bgp.potaroo.net, October 2024;
//! shares rounded). Most of the others lie beside one of the same length: so that of the /20 networks as many have several answers as
//! among 565,000 prefixes made from RouteViews' tables by origin (0.16 for each prefix).

use std::collections::HashSet;

use patronus_engine::fib::Group;

use crate::common::Numbers;

/// Next-hop groups that the routes are spread over.
const GROUPS: usize = 200;

/// Routes of each length.
const V4: [(u8, usize); 17] = [
    (8, 16),
    (9, 13),
    (10, 39),
    (11, 100),
    (12, 300),
    (13, 590),
    (14, 1_200),
    (15, 2_050),
    (16, 13_500),
    (17, 8_200),
    (18, 13_800),
    (19, 25_000),
    (20, 44_500),
    (21, 52_000),
    (22, 110_000),
    (23, 100_000),
    (24, 630_000),
];
const V6: [(u8, usize); 10] = [
    (20, 30),
    (24, 200),
    (28, 400),
    (29, 5_500),
    (32, 24_000),
    (36, 10_000),
    (40, 22_000),
    (44, 36_000),
    (47, 8_000),
    (48, 94_000),
];

/// Of a hundred, so many are more specific than another one, and of a hundred others so many lie beside one of the same length.
const SPECIFIC: usize = 55;
const BESIDE: usize = 88;

pub struct Route<const N: usize> {
    pub prefix: [u8; N],
    pub len: u8,
    pub group: Group,
}

impl Numbers {
    /// Even between 0 and 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An address of this network.
    fn inside<const N: usize>(&mut self, prefix: &[u8; N], len: u8) -> [u8; N] {
        let mut addr = *prefix;
        for (at, octet) in addr.iter_mut().enumerate() {
            let kept = usize::from(len).saturating_sub(8 * at).min(8) as u32;
            *octet |= (self.next() >> 56) as u8 & u8::MAX.checked_shr(kept).unwrap_or(0);
        }
        addr
    }
}

fn clear<const N: usize>(mut addr: [u8; N], len: u8) -> [u8; N] {
    for (at, octet) in addr.iter_mut().enumerate() {
        let kept = usize::from(len).saturating_sub(8 * at).min(8) as u32;
        *octet &= !u8::MAX.checked_shr(kept).unwrap_or(0);
    }
    addr
}

/// The network of this length behind another one, or that one again at the end of the addresses.
fn after<const N: usize>(prefix: &[u8; N], len: u8) -> [u8; N] {
    let mut addr = *prefix;
    let last = usize::from(len - 1) / 8;
    let step = 1 << (8 * (last + 1) - usize::from(len));
    let (sum, carry) = addr[last].overflowing_add(step);
    addr[last] = sum;
    if carry {
        match addr[..last].iter().rposition(|octet| *octet < u8::MAX) {
            Some(at) => {
                addr[at] += 1;
                addr[at + 1..last].fill(0);
            }
            None => return *prefix,
        }
    }
    addr
}

/// Routes of these lengths; those that are not more specific than another lie in a network that `home` draws.
fn make<const N: usize>(
    numbers: &mut Numbers,
    lengths: &[(u8, usize)],
    home: impl Fn(&mut Numbers) -> [u8; N],
) -> Vec<Route<N>> {
    let (mut routes, mut known): (Vec<Route<N>>, _) = (Vec::new(), HashSet::new());
    for (len, count) in lengths {
        // The lengths ascend: what is there is shorter.
        let shorter = routes.len();
        let mut made = 0;
        while made < *count {
            let addr = if shorter > 0 && numbers.below(100) < SPECIFIC {
                let around = &routes[numbers.below(shorter)];
                numbers.inside(&around.prefix, around.len)
            } else if made > 0 && numbers.below(100) < BESIDE {
                after(&routes[shorter + numbers.below(made)].prefix, *len)
            } else {
                home(numbers)
            };
            let prefix = clear(addr, *len);
            if known.insert((prefix, *len)) {
                let group = Group::new(1 + numbers.below(GROUPS) as u32).expect("not 0");
                routes.push(Route {
                    prefix,
                    len: *len,
                    group,
                });
                made += 1;
            }
        }
    }
    // In the order in which a neighbour would send them: any.
    for at in (1..routes.len()).rev() {
        routes.swap(at, numbers.below(at + 1));
    }
    routes
}

pub fn internet_v4(numbers: &mut Numbers) -> Vec<Route<4>> {
    make(numbers, &V4, |numbers| {
        // Unicast: 1.0.0.0 to 223.255.255.255.
        let first = 1 + numbers.below(223) as u8;
        numbers.inside(&[first, 0, 0, 0], 8)
    })
}

pub fn internet_v6(numbers: &mut Numbers) -> Vec<Route<16>> {
    make(numbers, &V6, |numbers| {
        // A few hundred /16 to /20 blocks of 2000::/3 are what the registries give out.
        let first = [0x20, 0x24, 0x26, 0x28, 0x2a, 0x2c][numbers.below(6)];
        let second = numbers.below(64) as u8 * 4;
        let mut network = [0; 16];
        (network[0], network[1]) = (first, second);
        numbers.inside(&network, 16)
    })
}

/// Addresses in routes, each route as likely as any other.
pub fn random<const N: usize>(numbers: &mut Numbers, routes: &[Route<N>], count: usize) -> Vec<[u8; N]> {
    let mut draw = || {
        let route = &routes[numbers.below(routes.len())];
        numbers.inside(&route.prefix, route.len)
    };
    (0..count).map(|_| draw()).collect()
}

/// Addresses in routes, the route of rank r in proportion to 1/r.
pub fn skewed<const N: usize>(numbers: &mut Numbers, routes: &[Route<N>], count: usize) -> Vec<[u8; N]> {
    let mut draw = || {
        // The inverse of the distribution function, log(rank) / log(count).
        let rank = (routes.len() as f64).powf(numbers.part()) as usize - 1;
        let route = &routes[rank.min(routes.len() - 1)];
        numbers.inside(&route.prefix, route.len)
    };
    (0..count).map(|_| draw()).collect()
}
