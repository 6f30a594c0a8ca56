//! Once its peers are there and have had sessions, a device asks the global allocator for nothing and gives nothing back: handshakes,
//! rekeys, cookies and timers run in the memory there is.

mod common;

use allocation_counter::measure;
use common::{Seeded, private_key};
use patronus_crypto::keypair::Keypairs;
use patronus_crypto::messages::INITIATION_LEN;
use patronus_crypto::timers::Wake;
use patronus_crypto::{Device, Limits, Now, Output, Outputs, PeerId, Refusal, Time, WallClock, x25519};

/// One side, with what its worker holds, in fixed memory.
struct End {
    device: Device,
    keypairs: Vec<Keypairs>,
    out: Outputs,
    /// The last message sent, and its length.
    sent: [u8; INITIATION_LEN],
    len: usize,
    rng: Seeded,
}

const PEERS: u32 = 8;

impl End {
    fn new(seed: u64, now: &Now) -> End {
        let mut rng = Seeded(seed);
        let mut out = Outputs::new();
        let mut device = Device::new(Limits::default(), x25519::default(), *now, &mut rng);
        device.set_private_key(Some(private_key(seed)), &mut out);
        device.set_up(true, &mut out);
        let keypairs = (0..PEERS).map(|_| Keypairs::new()).collect();
        End {
            device,
            keypairs,
            out,
            sent: [0; INITIATION_LEN],
            len: 0,
            rng,
        }
    }

    fn carry_out(&mut self) {
        self.len = 0;
        for output in self.out.drain() {
            match output {
                Output::Send { msg, .. } => {
                    self.sent[..msg.len()].copy_from_slice(&msg);
                    self.len = msg.len();
                }
                Output::Install { peer, keypair } => {
                    for retired in self.keypairs[peer.0 as usize].install(keypair) {
                        self.device.retire(retired);
                    }
                }
                Output::EraseKeys { peer } => {
                    for retired in self.keypairs[peer.0 as usize].clear() {
                        self.device.retire(retired);
                    }
                }
                _ => {}
            }
        }
    }

    /// Takes what the other side sent last.
    fn receive(&mut self, now: &Now, from: &End, queue_len: usize) {
        let source = "192.0.2.9:9".parse().unwrap();
        let message = &from.sent[..from.len];
        self.device
            .receive(now, &source, message, queue_len, &mut self.rng, &mut self.out);
        self.carry_out();
    }
}

/// A handshake of each of the hub's peers and its rekey, for every third one with the hub under load. Then silence.
fn round(hub: &mut End, branches: &mut [End], at: u64) {
    for (n, branch) in (0..).zip(branches) {
        let at = at + 300 * u64::from(n);
        for start in [at, at + 130] {
            session(hub, branch, PeerId(n), start, if n % 3 == 0 { 1000 } else { 0 });
        }
    }
}

fn session(hub: &mut End, branch: &mut End, peer: PeerId, start: u64, load: usize) {
    let now = |more: u64| Now {
        mono: Time::from_secs(1_000_000 + start + more),
        wall: WallClock {
            secs: 1_780_000_000 + start + more,
            nanos: 0,
        },
    };
    branch
        .device
        .want_handshake(PeerId(0), &now(0), &mut branch.rng, &mut branch.out);
    branch.carry_out();
    hub.receive(&now(0), branch, load);
    branch.receive(&now(0), hub, 0);
    if load > 0 {
        // That was a cookie; the retry carries it.
        branch.device.poll(&now(6), &mut branch.rng, &mut branch.out);
        branch.carry_out();
        hub.receive(&now(6), branch, load);
        branch.receive(&now(6), hub, 0);
    }
    let index = branch.keypairs[0].current().expect("a session").remote_index;
    let (confirmed, retired) = hub.keypairs[peer.0 as usize].received_under(index);
    assert!(confirmed);
    retired.into_iter().for_each(|keypair| hub.device.retire(keypair));
    hub.device.key_confirmed(peer, &now(6));
    if branch.device.traffic(PeerId(0)).sent(now(7).mono, 100, true) == Wake::Due {
        branch.device.watch(PeerId(0));
    }
    if hub.device.traffic(peer).received(now(7).mono, 100, true) == Wake::Due {
        hub.device.watch(peer);
    }
    for time in [17, 23, 60, 110] {
        for end in [&mut *hub, branch] {
            end.device.poll(&now(time), &mut end.rng, &mut end.out);
            end.carry_out();
        }
    }
}

#[test]
fn a_device_in_its_stride_allocates_nothing() {
    let now = Now {
        mono: Time::from_secs(999_000),
        wall: WallClock {
            secs: 1_779_999_000,
            nanos: 0,
        },
    };
    let mut hub = End::new(1, &now);
    let mut branches: Vec<End> = (0..u64::from(PEERS)).map(|n| End::new(2 + n, &now)).collect();
    for branch in &mut branches {
        hub.device.add_peer(branch.device.public_key().unwrap()).unwrap();
        branch.device.add_peer(hub.device.public_key().unwrap()).unwrap();
    }
    for n in 0..4 {
        round(&mut hub, &mut branches, 4000 * n);
    }
    let calls = measure(|| {
        for n in 4..20 {
            round(&mut hub, &mut branches, 4000 * n);
        }
    });
    assert_eq!((calls.count_total, calls.count_current), (0, 0));
    assert!(
        hub.device.counters().get(Refusal::CookieRequired) >= 20 * 3,
        "cookies were asked for"
    );
}
