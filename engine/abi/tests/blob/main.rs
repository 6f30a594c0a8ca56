//! Blobs: what goes in comes out, what is damaged is refused, and nothing that anybody can write panics.

mod sites;

use patronus_abi::blob::seal;
use patronus_abi::site::{Action, Hop, OuterDscp, Site};
use patronus_abi::{ABI_VERSION, BlobError, decode, encode};
use proptest::prelude::*;

use sites::{empty, sample, site};

/// Where in a blob what is counted is: behind magic, version, check sum, length, generation and what there is once.
const COUNTS: usize = 78;

/// What decode takes, encode makes of it again, to the byte.
fn is_canonical(blob: &[u8]) {
    if let Ok((site, generation)) = decode(blob) {
        assert_eq!(encode(&site, generation).as_deref(), Ok(blob));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_goes_in_comes_out(site in site(), generation: u64) {
        let blob = encode(&site, generation).unwrap();
        prop_assert_eq!(decode(&blob), Ok((site, generation)));
    }

    #[test]
    fn any_damaged_byte_is_noticed(site in site(), at: prop::sample::Index, damage in 1u8..) {
        let mut blob = encode(&site, 1).unwrap();
        let at = at.index(blob.len());
        blob[at] ^= damage;
        prop_assert!(decode(&blob).is_err());
    }

    #[test]
    fn a_piece_is_refused(site in site(), len: prop::sample::Index) {
        let blob = encode(&site, 1).unwrap();
        prop_assert!(decode(&blob[..len.index(blob.len())]).is_err());
    }

    /// Of two blobs in one place, the beginning of one and the end of the other: a write that was cut off.
    #[test]
    fn a_torn_one_is_refused(before in site(), after in site(), at: prop::sample::Index) {
        let (before, after) = (encode(&before, 1).unwrap(), encode(&after, 2).unwrap());
        let at = at.index(after.len());
        let mut torn = after.clone();
        torn.truncate(at);
        torn.extend_from_slice(before.get(at..).unwrap_or_default());
        prop_assert!(torn == after || torn == before || decode(&torn).is_err());
    }

    /// With a right check sum: whoever can write blobs can write that too.
    #[test]
    fn what_is_made_up_is_refused_or_means_one_site(
        site in site(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut blob = encode(&site, 1).unwrap();
        for (at, value) in changes {
            let at = at.index(blob.len());
            blob[at] = value;
        }
        seal(&mut blob);
        is_canonical(&blob);
    }

    #[test]
    fn random_counts(site in site(), counts: [u32; 12], behind in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut blob = encode(&site, 1).unwrap();
        for (at, count) in counts.into_iter().enumerate() {
            let place = COUNTS + 4 * at;
            blob[place..place + 4].copy_from_slice(&count.to_le_bytes());
        }
        blob.extend_from_slice(&behind);
        let len = blob.len() as u64;
        blob[16..24].copy_from_slice(&len.to_le_bytes());
        seal(&mut blob);
        is_canonical(&blob);
    }

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(decode(&bytes).is_err());
    }
}

/// Another layout has to have another number: then change both, and the bytes here.
#[test]
fn the_layout_has_this_number() {
    let blob = encode(&sample(), 7).unwrap();
    let hex: String = blob.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (ABI_VERSION, hex.as_str()),
        (7, include_str!("sample.hex").trim_end())
    );
}

#[test]
fn another_version_is_named() {
    let mut blob = encode(&empty(), 1).unwrap();
    blob[8] += 1;
    seal(&mut blob);
    let refused = decode(&blob).unwrap_err();
    assert_eq!(refused, BlobError::Abi(ABI_VERSION + 1));
    assert!(refused.to_string().contains("of the same release"));
}

#[test]
fn nothing_is_no_site() {
    assert_eq!(decode(&[]), Err(BlobError::Length(0)));
}

/// Records that mean nothing, 17 LANs: their number is looked at first, or they would take many times their length.
#[test]
fn too_many_are_refused_before_anything_is_made_of_them() {
    let mut blob = encode(&empty(), 1).unwrap();
    let (header, lans) = (COUNTS + 4 * 12, [0xff; 16 * 17]);
    blob.splice(header..header, lans);
    let len = blob.len() as u64;
    blob[16..24].copy_from_slice(&len.to_le_bytes());
    blob[COUNTS + 4 * 4] = 17;
    seal(&mut blob);
    let (what, count, limit) = ("LANs", 17, 16);
    assert_eq!(decode(&blob), Err(BlobError::TooMany { what, count, limit }));
}

/// Changes the sample, and wants it to be refused for this.
fn refuses(change: impl Fn(&mut Site), why: &str) {
    let mut site = sample();
    change(&mut site);
    let error = encode(&site, 1).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn what_has_no_meaning_is_not_made() {
    refuses(|site| site.links[0].id = 0, "link 0: an id that is not 1 to 15");
    refuses(
        |site| site.links[1].id = site.links[0].id,
        "link 1: stands there twice",
    );
    refuses(|site| site.links[0].interface.clear(), "no interface has");
    refuses(
        |site| site.peers[0].name = Some("a\u{1b}[2J".into()),
        "peer 0: a name",
    );
    refuses(
        |site| site.peers[1].public_key = site.peers[0].public_key,
        "peer 1: stands there twice",
    );
    refuses(|site| site.peers[0].keepalive = Some(0), "keepalive");
    refuses(
        |site| site.peers[0].endpoint = Some("0.0.0.0:1".parse().unwrap()),
        "nobody can be",
    );
    refuses(|site| site.lans[1].interface = None, "LAN 1: an Ethernet LAN");
    refuses(|site| site.lans[1].neighbours[0].1 = [1; 6], "no single station");
    refuses(|site| site.lans.push(site.lans[0].clone()), "TUNs");
    refuses(
        |site| site.lans = vec![site.lans[1].clone(); 16],
        "16 LANs beside the TUN, at most 15",
    );
    refuses(|site| site.routes[0].hops.clear(), "route 0: no next hop");
    refuses(|site| site.routes[0].hops[0] = Hop::Peer(99), "not there");
    refuses(
        |site| site.policies[0].action = Action::Via(vec![Hop::Neighbour(0, [10, 0, 0, 1].into())]),
        "not there",
    );
    refuses(|site| site.policies[0].dscps = Some(0), "DSCP");
    #[allow(clippy::reversed_empty_ranges, reason = "that is the point")]
    refuses(
        |site| site.policies[0].dst_ports = Some(2..=1),
        "ends before it begins",
    );
    refuses(|site| site.engine.workers = 0, "engine 0: the number of workers");
    refuses(|site| site.engine.spin_ms = 1001, "engine 0: how long");
    refuses(|site| site.engine.flows = 0, "the number of flows");
    refuses(|site| site.engine.flows = u32::MAX, "the number of flows");
    refuses(|site| site.engine.routes = u32::MAX, "the number of prefixes");
    refuses(|site| site.engine.cores = vec![0; 65], "65 cores, at most 64");
    refuses(
        |site| site.links.clear(),
        "peer 1: a remote, which is reached over links",
    );
    refuses(
        |site| site.links[0].interface = "wg0".into(),
        "interface 1: stands there twice",
    );
    refuses(
        |site| site.lans[1].interface = Some("eth0".into()),
        "interface 4: stands there twice",
    );
    refuses(
        |site| site.links = vec![site.links[0].clone(); 16],
        "16 links, at most 15",
    );
}

#[test]
fn classes_and_probes_are_within_limits() {
    refuses(
        |site| site.classes.clear(),
        "class 0: the first is called `default`",
    );
    refuses(
        |site| site.classes.swap(0, 1),
        "class 0: the first is called `default`",
    );
    refuses(
        |site| site.classes.push(site.classes[1].clone()),
        "class 2: stands there twice",
    );
    refuses(
        |site| site.classes = vec![site.classes[0].clone(); 17],
        "17 classes, at most 16",
    );
    refuses(|site| site.classes[1].name = "a b".into(), "class 1: a name");
    for limit in [0, 60_000_001] {
        refuses(
            |site| site.classes[1].latency_us = Some(limit),
            "class 1: a limit",
        );
        refuses(|site| site.classes[1].jitter_us = Some(limit), "class 1: a limit");
    }
    refuses(
        |site| site.classes[1].loss_ppm = Some(1_000_001),
        "class 1: a loss",
    );
    refuses(|site| site.classes[1].hold_ms = 86_400_001, "class 1: flows");
    refuses(
        |site| site.classes[1].dscp = OuterDscp::Set(64),
        "class 1: a DSCP of more than 63",
    );
    refuses(
        |site| site.policies[0].class = 2,
        "policy 0: a class that is not there",
    );
    for interval in [4999, 1_000_001] {
        refuses(
            |site| site.probing.interval_us = interval,
            "probing 0: an interval that",
        );
    }
    for idle in [19_999, 10_000_001] {
        refuses(
            |site| site.probing.idle_us = idle,
            "probing 0: an interval of idle",
        );
    }
    for rate in [99, 1_000_001] {
        refuses(|site| site.probing.rate = rate, "probing 0: a rate");
    }
}

#[test]
fn devices_are_what_dpdk_can_have() {
    let name = |text: &str| {
        let text = text.to_owned();
        move |site: &mut Site| site.lans[2].device.as_mut().unwrap().name = text.clone()
    };
    for text in [
        "",
        "0000:03:00",
        "03:00.0",
        "0000:03:00.8",
        "0000:03:20.0",
        "0000:03:0A.0",
        "0000:03:00.0,speed=1",
        "eth0",
        "net_",
        "net_Memif0",
        "net_memif0,",
        "net_memif0,role=",
        "net_memif0,role=server,,id=0",
        "net_memif0,socket=/run/a b",
        "net_memif0,socket=[/run/a]",
        &format!("net_{}", "a".repeat(60)),
        &format!("net_memif0,socket=/{}", "a".repeat(240)),
    ] {
        refuses(name(text), "LAN 2: ");
    }
    refuses(name("net_memif0,role=client"), "device 1: stands there twice");
    refuses(|site| site.lans[2].device = None, "LAN 2: DPDK without a device");
    refuses(
        |site| site.lans[1].device = site.lans[2].device.clone(),
        "LAN 1: a device for what is not DPDK's",
    );
    for mtu in [0, 1279, 9217] {
        refuses(
            move |site| site.lans[2].device.as_mut().unwrap().mtu = mtu,
            "LAN 2: the MTU",
        );
    }
    refuses(|site| site.dpdk.memory_mib = 0, "DPDK 0: its memory");
    refuses(
        |site| site.dpdk.huge_page_mib = Some(4),
        "huge pages that there are not",
    );
    refuses(
        |site| site.dpdk.huge_pages = false,
        "huge pages that there are not",
    );
}
