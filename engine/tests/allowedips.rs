//! Allowed-ips against the plainest possible oracle: a list of prefixes, searched from one end to the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use patronus_crypto::PeerId;
use patronus_engine::allowedips::{AllowedIps, AllowedIpsConfig, Prefix};
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

type Entry = (IpAddr, u8, PeerId);

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// The address as a number whose highest bit is the first of the address, whichever the family.
fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn contains(net: IpAddr, cidr: u8, addr: IpAddr) -> bool {
    net.is_ipv4() == addr.is_ipv4() && (bits(net) ^ bits(addr)).leading_zeros() >= u32::from(cidr)
}

/// The owner by going through all entries; of equally long ones the last.
fn oracle(entries: &[Entry], addr: IpAddr) -> Option<PeerId> {
    let around = entries
        .iter()
        .filter(|(net, cidr, _)| contains(*net, *cidr, addr));
    around.max_by_key(|(_, cidr, _)| *cidr).map(|(_, _, peer)| *peer)
}

/// The addresses where an answer may change: both ends of the prefix and their neighbours.
fn edges(net: IpAddr, cidr: u8) -> Vec<IpAddr> {
    match net {
        IpAddr::V4(ip) => {
            let host = u32::MAX.unbounded_shr(cidr.into());
            let (first, last) = (ip.to_bits() & !host, ip.to_bits() | host);
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                .map(|b| Ipv4Addr::from_bits(b).into())
                .into()
        }
        IpAddr::V6(ip) => {
            let host = u128::MAX.unbounded_shr(cidr.into());
            let (first, last) = (ip.to_bits() & !host, ip.to_bits() | host);
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                .map(|b| Ipv6Addr::from_bits(b).into())
                .into()
        }
    }
}

fn assert_agrees(table: &AllowedIps, entries: &[Entry], addrs: impl IntoIterator<Item = IpAddr>) {
    for addr in addrs {
        assert_eq!(table.lookup(addr), oracle(entries, addr), "{addr} in {entries:?}");
    }
}

/// Addresses with few different bits, so that prefixes of every length nest, touch and repeat.
fn addresses() -> impl Strategy<Value = IpAddr> {
    let v4 = prop_oneof![
        any::<u32>(),
        (0u32..=32, 0u32..4).prop_map(|(ones, low)| !u32::MAX.unbounded_shr(ones) ^ low),
        Just(0),
        Just(u32::MAX),
    ];
    let v6 = prop_oneof![
        any::<u128>(),
        (0u32..=128, 0u128..4).prop_map(|(ones, low)| !u128::MAX.unbounded_shr(ones) ^ low),
        Just(0),
        Just(u128::MAX),
    ];
    prop_oneof![
        v4.prop_map(|b| IpAddr::V4(Ipv4Addr::from_bits(b))),
        v6.prop_map(|b| IpAddr::V6(Ipv6Addr::from_bits(b))),
    ]
}

fn entries(most: usize) -> impl Strategy<Value = Vec<Entry>> {
    let entry = (addresses(), any::<u8>(), 0u32..6)
        .prop_map(|(addr, cidr, peer)| (addr, cidr % (width(addr) + 1), PeerId(peer)));
    prop::collection::vec(entry, 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn c38_longest_prefix_as_a_linear_search_finds_it(
        entries in entries(60),
        others in prop::collection::vec(addresses(), 20),
    ) {
        let table = AllowedIps::build(entries.iter().copied());
        let at_edges = entries.iter().flat_map(|(net, cidr, _)| edges(*net, *cidr));
        assert_agrees(&table, &entries, at_edges.chain(others));
    }

    #[test]
    fn c39_a_prefix_has_one_owner_whatever_is_done(
        steps in prop::collection::vec((0u8..8, addresses(), any::<u8>(), 0u32..4), 0..80),
    ) {
        let mut config = AllowedIpsConfig::new();
        let mut model: Vec<Entry> = Vec::new();
        for (what, addr, cidr, peer) in steps {
            let prefix = Prefix::new(addr, cidr % (width(addr) + 1)).expect("a length that the family has");
            let (key, peer) = ((prefix.addr(), prefix.cidr()), PeerId(peer));
            let owner = model.iter().find(|e| (e.0, e.1) == key).map(|e| e.2);
            prop_assert_eq!(config.owner(prefix), owner);
            match what {
                0 => {
                    let before = model.len();
                    model.retain(|e| e.2 != peer);
                    prop_assert_eq!(config.remove_peer(peer), before - model.len());
                }
                1 => {
                    prop_assert_eq!(config.remove(prefix, peer), owner == Some(peer));
                    model.retain(|e| (e.0, e.1) != key || e.2 != peer);
                }
                _ => {
                    prop_assert_eq!(config.insert(prefix, peer), owner);
                    model.retain(|e| (e.0, e.1) != key);
                    model.push((key.0, key.1, peer));
                }
            }
            prop_assert_eq!(config.len(), model.len());
            prop_assert_eq!(config.is_empty(), model.is_empty());
        }
        model.sort();
        let all: Vec<Entry> = config.iter().map(|(p, peer)| (p.addr(), p.cidr(), peer)).collect();
        prop_assert_eq!(&all, &model);
        for peer in (0..5).map(PeerId) {
            let of_peer: Vec<Entry> = config.of_peer(peer).map(|p| (p.addr(), p.cidr(), peer)).collect();
            let expected: Vec<Entry> = model.iter().copied().filter(|e| e.2 == peer).collect();
            prop_assert_eq!(of_peer, expected);
        }
        let at_edges: Vec<IpAddr> = model.iter().flat_map(|(net, cidr, _)| edges(*net, *cidr)).collect();
        assert_agrees(&config.compile(), &model, at_edges);
    }
}

fn parse(text: &str) -> (IpAddr, u8) {
    let (addr, cidr) = text.split_once('/').expect("a prefix");
    (addr.parse().expect("an address"), cidr.parse().expect("a length"))
}

fn table(entries: &[(&str, u32)]) -> AllowedIps {
    AllowedIps::build(entries.iter().map(|(text, peer)| {
        let (addr, cidr) = parse(text);
        (addr, cidr, PeerId(*peer))
    }))
}

fn owner(table: &AllowedIps, addr: &str) -> Option<u32> {
    table.lookup(addr.parse().expect("an address")).map(|peer| peer.0)
}

const LAST_V6: &str = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";

#[test]
fn c38_an_empty_table_knows_nobody() {
    for table in [AllowedIps::default(), table(&[])] {
        for addr in ["0.0.0.0", "255.255.255.255", "::", LAST_V6] {
            assert_eq!(owner(&table, addr), None);
        }
    }
}

#[test]
fn c38_shortest_and_longest_prefixes_of_both_families() {
    let table = table(&[
        ("0.0.0.0/0", 1),
        ("::/0", 2),
        ("255.255.255.255/32", 3),
        ("0.0.0.0/32", 4),
        ("::/128", 5),
    ]);
    assert_eq!(owner(&table, "0.0.0.0"), Some(4));
    assert_eq!(owner(&table, "0.0.0.1"), Some(1));
    assert_eq!(owner(&table, "255.255.255.254"), Some(1));
    assert_eq!(owner(&table, "255.255.255.255"), Some(3));
    assert_eq!(owner(&table, "::"), Some(5));
    assert_eq!(owner(&table, "::1"), Some(2));
    assert_eq!(owner(&table, LAST_V6), Some(2));
}

/// The longest prefix of all peers decides whose address it is, not the longest of the peer that sent the packet.
#[test]
fn c37_r02_a_more_specific_prefix_of_another_peer_wins() {
    let table = table(&[
        ("10.0.0.0/8", 1),
        ("10.1.0.0/16", 2),
        ("10.1.2.0/24", 1),
        ("10.1.2.3/32", 2),
    ]);
    assert_eq!(owner(&table, "10.2.0.1"), Some(1));
    assert_eq!(owner(&table, "10.1.0.1"), Some(2));
    assert_eq!(owner(&table, "10.1.2.1"), Some(1));
    assert_eq!(owner(&table, "10.1.2.3"), Some(2));
    assert_eq!(owner(&table, "10.1.3.0"), Some(2));
    assert_eq!(owner(&table, "11.0.0.0"), None);
}

#[test]
fn c38_families_do_not_mix() {
    let table = table(&[("::/0", 1)]);
    assert_eq!(owner(&table, "10.0.0.1"), None);
    assert_eq!(owner(&table, "::ffff:10.0.0.1"), Some(1));
}

#[test]
fn c38_host_bits_are_ignored_and_the_last_of_equal_prefixes_wins() {
    let table = table(&[
        ("10.1.2.3/8", 1),
        ("10.9.9.9/8", 2),
        ("2001:db8::1/32", 3),
        ("2001:db8::2/32", 4),
    ]);
    assert_eq!(owner(&table, "10.0.0.0"), Some(2));
    assert_eq!(owner(&table, "2001:db8:ffff::"), Some(4));
}

#[test]
fn c38_every_length_nested_around_one_address() {
    let v6 = (0..=128).map(|cidr| (IpAddr::V6(Ipv6Addr::LOCALHOST), cidr, PeerId(cidr.into())));
    let v4 = (0..=32).map(|cidr| (IpAddr::V4(Ipv4Addr::BROADCAST), cidr, PeerId(cidr.into())));
    let entries: Vec<Entry> = v6.chain(v4).collect();
    let addrs: Vec<IpAddr> = entries
        .iter()
        .flat_map(|(net, cidr, _)| edges(*net, *cidr))
        .collect();
    assert_agrees(&AllowedIps::build(entries.iter().copied()), &entries, addrs);
}

/// As many ranges side by side as are compared at once, or as a table doubles its parts at, or just not.
#[test]
fn c38_tables_around_the_sizes_at_which_their_form_changes() {
    for count in [
        3u32, 4, 5, 7, 8, 9, 31, 32, 33, 127, 128, 129, 255, 256, 257, 2047, 2048, 2049,
    ] {
        let entries: Vec<Entry> = (0..count)
            .flat_map(|n| {
                let v4 = Ipv4Addr::from_bits(n.reverse_bits() | 1);
                let v6 = Ipv6Addr::from_bits(u128::from(n).reverse_bits() | 1);
                [(v4.into(), 32, PeerId(n)), (v6.into(), 128, PeerId(n))]
            })
            .collect();
        let table = AllowedIps::build(entries.iter().copied());
        for (addr, _, peer) in &entries {
            assert_eq!(table.lookup(*addr), Some(*peer), "{addr} among {count}");
        }
        for nobodys in ["255.255.255.255", LAST_V6, "0.0.0.2", "::2"] {
            assert_eq!(owner(&table, nobodys), None, "{nobodys} among {count}");
        }
    }
}

#[test]
fn c79_a_prefix_longer_than_its_family_is_none() {
    assert_eq!(Prefix::new(Ipv4Addr::LOCALHOST.into(), 33), None);
    assert_eq!(Prefix::new(Ipv6Addr::LOCALHOST.into(), 129), None);
    let (addr, cidr) = parse("10.1.2.3/8");
    let prefix = Prefix::new(addr, cidr).expect("a prefix");
    assert_eq!((prefix.addr(), prefix.cidr()), parse("10.0.0.0/8"));
}

#[test]
fn c39_a_prefix_is_taken_from_its_owner_only() {
    let mut config = AllowedIpsConfig::new();
    let (addr, cidr) = parse("10.0.0.0/8");
    let prefix = Prefix::new(addr, cidr).expect("a prefix");
    assert_eq!(config.insert(prefix, PeerId(1)), None);
    assert!(!config.remove(prefix, PeerId(2)));
    assert_eq!(config.owner(prefix), Some(PeerId(1)));
    assert_eq!(config.insert(prefix, PeerId(2)), Some(PeerId(1)));
    assert_eq!(config.of_peer(PeerId(1)).count(), 0);
    assert_eq!(config.remove_peer(PeerId(1)), 0);
    assert_eq!(config.compile().lookup(addr), Some(PeerId(2)));
    assert!(config.remove(prefix, PeerId(2)));
    assert_eq!(config.compile().lookup(addr), None);
}

/// CPU time of this thread: what else runs on the machine does not count.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// All prefixes given to one peer, moved to another and removed with it; then one to each of as many peers, which are
/// removed one by one.
fn fill_move_and_remove(count: u32) -> Duration {
    let start = cpu_time();
    let prefix = |n: u32| Prefix::new(Ipv4Addr::from_bits(n << 8).into(), 24).expect("a prefix");
    let mut config = AllowedIpsConfig::new();
    for peer in [1, 2] {
        for n in 0..count {
            config.insert(prefix(n), PeerId(peer));
        }
    }
    assert_eq!(config.compile().lookup(prefix(count - 1).addr()), Some(PeerId(2)));
    assert_eq!(config.remove_peer(PeerId(2)), count as usize);
    for n in 0..count {
        config.insert(prefix(n), PeerId(n));
    }
    for n in 0..count {
        assert_eq!(config.remove_peer(PeerId(n)), 1);
    }
    assert!(config.is_empty());
    cpu_time() - start
}

/// Sixteen times the prefixes take about twenty times as long. They would take 256 times as long if a step went through all
/// the others.
#[test]
fn c39_large_sets_are_not_quadratic() {
    let fastest = |count| {
        (0..3)
            .map(|_| fill_move_and_remove(count))
            .min()
            .unwrap_or_default()
    };
    let (few, many) = (fastest(65_536 / 16), fastest(65_536));
    assert!(many < few * 80, "{few:?} for 4,096, {many:?} for 65,536");
}

/// Clusters in clusters, deeper than a table has stages for, and so many that the last ones are searched.
#[test]
fn c38_prefixes_in_clusters() {
    let mut entries: Vec<Entry> = Vec::new();
    for level in 0..8u32 {
        for n in 1..=40u32 {
            let v4 = Ipv4Addr::from_bits(n.unbounded_shl(26u32.saturating_sub(6 * level)));
            let v6 = Ipv6Addr::from_bits(u128::from(n) << (112 - 16 * level));
            let peer = PeerId(100 * level + n);
            entries.extend([(v4.into(), 32, peer), (v6.into(), 128, peer)]);
        }
    }
    let addrs: Vec<IpAddr> = entries
        .iter()
        .flat_map(|(net, cidr, _)| edges(*net, *cidr))
        .collect();
    assert_agrees(&AllowedIps::build(entries.iter().copied()), &entries, addrs);
}
