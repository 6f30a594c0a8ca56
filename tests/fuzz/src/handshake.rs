//! Handshake messages from anybody, given to a device that waits for a response and would answer an initiation.

use std::net::SocketAddr;

use patronus_crypto::messages::{INITIATION_LEN, RESPONSE_LEN};
use patronus_crypto::{Device, Limits, Now, Output, Outputs, PeerId, Time, WallClock, x25519};
use patronus_mem::Secret;

use crate::mutate::Sequence;

const FROM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 51820);
/// Length of the two MACs at the end.
const MAC: usize = 16;

/// A device that has called its only peer, and what that peer says next.
struct Scene {
    device: Device,
    random: Sequence,
    now: Now,
    /// The peer's answer, and an initiation of its own.
    response: Vec<u8>,
    initiation: Vec<u8>,
}

fn now(seconds: u64) -> Now {
    Now {
        mono: Time::from_secs(1000 + seconds),
        wall: WallClock {
            secs: 1_700_000_000 + seconds,
            nanos: 0,
        },
    }
}

fn device(random: &mut Sequence, key: u8, now: &Now) -> Device {
    let limits = Limits {
        max_peers: 4,
        rate_limited_sources: 16,
        ..Limits::default()
    };
    let mut device = Device::new(limits, x25519::default(), *now, random);
    let mut out = Outputs::new();
    device.set_private_key(Some(Secret::new(&mut [key; 32])), &mut out);
    device.set_up(true, &mut out);
    device
}

/// The only message that a call asked for.
fn sent(out: &mut Outputs) -> Vec<u8> {
    let messages = out.drain().filter_map(|output| match output {
        Output::Send { msg, .. } => Some(msg.to_vec()),
        _ => None,
    });
    messages.last().expect("a message to send")
}

impl Scene {
    fn new() -> Scene {
        let (mut random, mut out, start) = (Sequence::new(0x5eed), Outputs::new(), now(0));
        let mut ours = device(&mut random, 1, &start);
        let mut theirs = device(&mut random, 2, &start);
        let peer = ours
            .add_peer(theirs.public_key().expect("has a key"))
            .expect("a new peer");
        let us = theirs
            .add_peer(ours.public_key().expect("has a key"))
            .expect("a new peer");
        // Their own initiation comes first in time, so that answering ours does not hold it back.
        theirs.want_handshake(us, &start, &mut random, &mut out);
        let initiation = sent(&mut out);
        let later = now(10);
        ours.want_handshake(peer, &later, &mut random, &mut out);
        let ask = sent(&mut out);
        theirs.receive(&later, &FROM, &ask, 0, &mut random, &mut out);
        let response = sent(&mut out);
        Scene {
            device: ours,
            random,
            now: later,
            response,
            initiation,
        }
    }

    /// Whether `data` is one of the peer's messages with at most mac2 changed.
    fn is_authentic(&self, data: &[u8]) -> bool {
        [&self.response, &self.initiation].into_iter().any(|message| {
            data.len() == message.len() && data[..data.len() - MAC] == message[..message.len() - MAC]
        })
    }

    fn receive(&mut self, data: &[u8], waiting: usize) -> Vec<Output> {
        let mut out = Outputs::new();
        self.device
            .receive(&self.now, &FROM, data, waiting, &mut self.random, &mut out);
        out.drain().collect()
    }
}

/// What is not from the peer costs no Diffie-Hellman, gets no answer, under load or not, and leaves the handshake
/// that is under way as it was.
pub fn check(data: &[u8]) {
    let mut scene = Scene::new();
    if scene.is_authentic(data) {
        let outputs = scene.receive(data, 0);
        assert!(
            data.len() != RESPONSE_LEN
                || outputs
                    .iter()
                    .any(|output| matches!(output, Output::Install { .. }))
        );
        assert!(
            data.len() != INITIATION_LEN
                || outputs.iter().any(|output| matches!(output, Output::Send { .. }))
        );
        return;
    }
    let operations = scene.device.dh_operations();
    for waiting in [0, 4096] {
        assert!(scene.receive(data, waiting).is_empty(), "an answer to a stranger");
    }
    assert_eq!(scene.device.dh_operations(), operations, "work for a stranger");
    // The load that the second try made up lasts a second.
    scene.now = now(12);
    let response = scene.response.clone();
    let installed = |output: &Output| matches!(output, Output::Install { peer: PeerId(0), .. });
    assert!(
        scene.receive(&response, 0).iter().any(installed),
        "the handshake under way was disturbed"
    );
}

/// The peer's messages, and the shapes of all others.
pub fn seeds() -> Vec<Vec<u8>> {
    let scene = Scene::new();
    let mut seeds = vec![scene.response, scene.initiation];
    seeds.extend(crate::messages::seeds());
    seeds
}
