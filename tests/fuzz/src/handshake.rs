//! Two devices whose datagrams an attacker holds in hand: lost, late, twice, from elsewhere, altered, and made up. The attacker
//! knows both public keys, so that altered messages get a right mac1 and reach what is behind it.
//!
//! Whatever happens: no panic; nothing is said to whom mac1 does not speak for; what was altered or made up is never taken for
//! the peer; and after the attack the two still find to each other.

use std::net::SocketAddr;

use blake2::digest::KeyInit;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use patronus_crypto::messages::{INITIATION_LEN, MAC, MSG_COOKIE_REPLY, RESPONSE_LEN};
use patronus_crypto::{
    Device, Duration, Limits, Now, Output, Outputs, PeerId, PublicKey, Random, Time, To, WallClock, x25519,
};
use patronus_mem::Secret;

use super::input::Input;

/// Steps of one input; more would only make it slow.
const MAX_STEPS: usize = 64;

/// Datagrams held at a time.
const MAX_HELD: usize = 64;

/// The input is a list of steps, see [`Attack::step`].
pub fn run(data: &[u8]) {
    let mut attack = Attack::new();
    let mut input = Input(data);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        attack.step(&mut input);
    }
    attack.ends_well();
}

/// SplitMix64.
struct Seeded(u64);

impl Random for Seeded {
    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

struct Site {
    device: Device,
    rng: Seeded,
    public: PublicKey,
    /// The other site.
    peer: PeerId,
    installed: usize,
}

/// A datagram in the attacker's hands.
#[derive(Clone)]
struct Held {
    bytes: Vec<u8>,
    /// Which site it was sent by or made up in the name of.
    from: usize,
    genuine: bool,
}

struct Attack {
    now: Now,
    sites: [Site; 2],
    held: Vec<Held>,
    out: Outputs,
}

impl Attack {
    fn new() -> Self {
        let now = Now {
            mono: Time::from_secs(1_000_000),
            wall: WallClock {
                secs: 1_780_000_000,
                nanos: 0,
            },
        };
        let private = |seed| Secret::with(|key| Seeded(seed).fill(key));
        let public = [1, 2].map(|seed| PublicKey(x25519::default().public(&private(seed))));
        let mut out = Outputs::new();
        let sites = [0usize, 1].map(|number| {
            let mut rng = Seeded(0x100 + number as u64);
            let limits = Limits {
                max_peers: 4,
                load_threshold: 8,
                rate_limited_sources: 16,
                ..Limits::default()
            };
            let mut device = Device::new(limits, x25519::default(), now, &mut rng);
            device.set_private_key(Some(private(number as u64 + 1)), &mut out);
            let peer = device.add_peer(public[1 - number]).expect("a peer");
            device.set_up(true, &mut out);
            Site {
                device,
                rng,
                public: public[number],
                peer,
                installed: 0,
            }
        });
        out.drain().count();
        Attack {
            now,
            sites,
            held: Vec::new(),
            out,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let site = usize::from(choice >> 7);
        match choice & 7 {
            // Bytes that are nobody's.
            0 => {
                let len = usize::from(input.u8());
                let bytes = input.take(len).to_vec();
                self.deliver(
                    site,
                    &Held {
                        bytes,
                        from: 1 - site,
                        genuine: false,
                    },
                    0,
                    0,
                );
            }
            1 => {
                let Site {
                    device, rng, peer, ..
                } = &mut self.sites[site];
                device.want_handshake(*peer, &self.now, rng, &mut self.out);
                self.carry_out(site);
            }
            // From the peer's own address or another, to a site with an empty queue or a long one.
            2 | 3 => {
                if let Some(held) = self.pick(input.u8()) {
                    self.deliver(site, &held, choice >> 3 & 3, usize::from(choice >> 5 & 3) * 4);
                }
            }
            4 | 5 => self.alter(input, choice & 8 != 0),
            6 => self.pass(Duration::from_millis(u64::from(input.u16()) * 3)),
            _ => self.reconfigure(site, input.u8()),
        }
    }

    fn pick(&self, number: u8) -> Option<Held> {
        let at = usize::from(number).checked_rem(self.held.len())?;
        Some(self.held[at].clone())
    }

    /// Changes some bytes of a datagram, or its length, and then makes mac1 right again, or not.
    fn alter(&mut self, input: &mut Input<'_>, fix: bool) {
        let Some(mut held) = self.pick(input.u8()) else {
            return;
        };
        for _ in 0..1 + input.u8() % 3 {
            let (at, with) = (usize::from(input.u8()), input.u8());
            match held.bytes.get_mut(at) {
                Some(byte) => *byte ^= with,
                None => held.bytes.truncate(usize::from(with)),
            }
        }
        if fix {
            fix_mac1(&mut held.bytes, &self.sites[1 - held.from].public);
        }
        // The noise part is what makes a message genuine: indices and mac2 are covered by mac1 only, which anybody can make.
        held.genuine = self.held.iter().any(|sent| {
            sent.genuine && sent.from == held.from && noise_part(&sent.bytes) == noise_part(&held.bytes)
        });
        self.hold(held);
    }

    fn hold(&mut self, held: Held) {
        if self.held.len() < MAX_HELD {
            self.held.push(held);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.mono = self.now.mono.after(time);
        let nanos = u64::from(self.now.wall.nanos) + time.as_nanos() as u64;
        self.now.wall.secs += nanos / 1_000_000_000;
        self.now.wall.nanos = (nanos % 1_000_000_000) as u32;
        for site in 0..2 {
            let Site { device, rng, .. } = &mut self.sites[site];
            device.poll(&self.now, rng, &mut self.out);
            self.carry_out(site);
        }
    }

    fn reconfigure(&mut self, site: usize, what: u8) {
        let Site { device, peer, .. } = &mut self.sites[site];
        match what % 5 {
            0 => device.set_up(false, &mut self.out),
            1 => device.set_up(true, &mut self.out),
            2 => device.set_persistent_keepalive(*peer, u16::from(what)),
            3 => device.set_psk(*peer, Some(Secret::with(|key| key.fill(what)))),
            _ => device.set_psk(*peer, None),
        }
        self.carry_out(site);
    }

    fn deliver(&mut self, site: usize, held: &Held, elsewhere: u8, queue_len: usize) {
        let from = SocketAddr::from(([192, 0, 2, elsewhere], 51820 + held.from as u16));
        let Site {
            device, rng, public, ..
        } = &mut self.sites[site];
        device.receive(&self.now, &from, &held.bytes, queue_len, rng, &mut self.out);
        let genuine = held.genuine && held.from != site;
        let has_mac1 = mac1_is_valid(&held.bytes, public);
        let outputs: Vec<Output> = self.out.drain().collect();
        for output in &outputs {
            match output {
                Output::Send {
                    to: To::Source,
                    handshake: false,
                    msg,
                } => {
                    assert_eq!(u32::from(msg[0]), MSG_COOKIE_REPLY);
                    assert!(has_mac1, "a reply to a message without a valid mac1");
                    assert!(
                        msg.len() < held.bytes.len(),
                        "a reply longer than what it replies to"
                    );
                }
                // A cookie reply has no MAC of its own: what is in it is sealed.
                Output::Challenged { .. } => {
                    assert!(genuine && u32::from(held.bytes[0]) == MSG_COOKIE_REPLY);
                }
                _ => assert!(
                    genuine && has_mac1,
                    "{} from a message that is not the peer's",
                    name(output)
                ),
            }
        }
        self.take(site, outputs);
    }

    fn carry_out(&mut self, site: usize) {
        let outputs = self.out.drain().collect();
        self.take(site, outputs);
    }

    /// What the engine would do: datagrams go into the attacker's hands, sessions come back at once.
    fn take(&mut self, site: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send { msg, .. } => self.hold(Held {
                    bytes: msg.to_vec(),
                    from: site,
                    genuine: true,
                }),
                Output::Install { keypair, .. } => {
                    self.sites[site].installed += 1;
                    self.sites[site].device.retire(keypair);
                }
                _ => {}
            }
        }
    }

    /// With the attacker gone and enough time over, a handshake succeeds.
    fn ends_well(&mut self) {
        for site in 0..2 {
            let Site { device, peer, .. } = &mut self.sites[site];
            device.set_up(true, &mut self.out);
            device.set_psk(*peer, None);
            device.set_persistent_keepalive(*peer, 0);
            self.carry_out(site);
        }
        self.pass(Duration::from_secs(600));
        let before = [0, 1].map(|site| self.sites[site].installed);
        // What is still on its way from the attack may be in the way of the first attempts.
        for _ in 0..3 {
            self.held.clear();
            self.pass(Duration::from_secs(6));
            let Site {
                device, rng, peer, ..
            } = &mut self.sites[0];
            device.want_handshake(*peer, &self.now, rng, &mut self.out);
            self.carry_out(0);
            for _ in 0..2 {
                for held in std::mem::take(&mut self.held) {
                    self.deliver(1 - held.from, &held, 0, 0);
                }
            }
        }
        for (site, before) in self.sites.iter().zip(before) {
            assert!(site.installed > before, "no handshake any more");
        }
    }
}

/// What the Noise handshake covers: neither type and indices in front, nor the MACs at the end.
fn noise_part(message: &[u8]) -> &[u8] {
    match message.len() {
        INITIATION_LEN => &message[8..INITIATION_LEN - 2 * MAC],
        RESPONSE_LEN => &message[12..RESPONSE_LEN - 2 * MAC],
        _ => message,
    }
}

fn mac1(message: &[u8], receiver: &PublicKey) -> Option<[u8; MAC]> {
    if message.len() != INITIATION_LEN && message.len() != RESPONSE_LEN {
        return None;
    }
    let key = Blake2s256::new_with_prefix(b"mac1----")
        .chain_update(receiver.0)
        .finalize();
    let mut mac: Blake2sMac<U16> = Blake2sMac::new(&key);
    mac.update(&message[..message.len() - 2 * MAC]);
    Some(mac.finalize_fixed().into())
}

fn mac1_is_valid(message: &[u8], receiver: &PublicKey) -> bool {
    mac1(message, receiver).is_some_and(|mac| message[message.len() - 2 * MAC..].starts_with(&mac))
}

fn fix_mac1(message: &mut [u8], receiver: &PublicKey) {
    if let Some(mac) = mac1(message, receiver) {
        let at = message.len() - 2 * MAC;
        message[at..at + MAC].copy_from_slice(&mac);
    }
}

fn name(output: &Output) -> &'static str {
    match output {
        Output::Send { .. } => "a message",
        Output::MoveEndpoint { .. } => "a new endpoint",
        Output::Install { .. } => "a session",
        Output::Keepalive { .. } => "a keepalive",
        Output::ClearSource { .. } => "a forgotten source",
        Output::DropStaged { .. } => "dropped packets",
        Output::EraseKeys { .. } => "erased keys",
        Output::ExpireSending { .. } => "expired keys",
        Output::Challenged { .. } => "a cookie taken",
        Output::PeerGone { .. } => "a removed peer",
    }
}
