//! Sites on a virtual network: each a [`Device`] and the least worker that obeys the rules a worker has to obey, on one
//! virtual clock. Every datagram is logged, and a test may drop, keep or replay any.
#![allow(dead_code, reason = "every test file uses another part")]

use std::collections::VecDeque;
use std::net::SocketAddr;

use patronus_crypto::aead::{self, Job};
use patronus_crypto::keypair::Keypairs;
use patronus_crypto::messages::{self, DataHeader, HEADER, Kind, TAG};
use patronus_crypto::timers::Wake;
use patronus_crypto::{
    Device, Duration, Limits, Now, Output, Outputs, PeerId, PublicKey, Random, Refusal, Time, To, WallClock,
    x25519,
};
use patronus_mem::Secret;

/// The virtual clock starts here: long after boot, so that subtraction has room.
pub const START: Time = Time::from_secs(1_000_000);
/// The wall clock at [`START`].
pub const WALL: u64 = 1_780_000_000;

/// Random bytes that a seed determines (SplitMix64).
pub struct Seeded(pub u64);

impl Random for Seeded {
    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A private key that a seed determines.
pub fn private_key(seed: u64) -> Secret<32> {
    Secret::with(|key| Seeded(seed.wrapping_mul(0x1234_5678_9abc_def1)).fill(key))
}

/// Its public key.
pub fn public_key(seed: u64) -> PublicKey {
    PublicKey(x25519::default().public(&private_key(seed)))
}

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What the worker knows about one peer.
pub struct Link {
    pub peer: PeerId,
    pub endpoint: Option<SocketAddr>,
    pub keypairs: Keypairs,
    pub staged: VecDeque<Vec<u8>>,
    pub received: Vec<Vec<u8>>,
    /// The index of the session that something was last sent under.
    pub sent_under: Option<u32>,
    pub sources_cleared: usize,
    pub staged_dropped: usize,
    pub erased: usize,
    pub moved: usize,
}

/// A device and its worker.
pub struct Site {
    pub device: Device,
    pub addr: SocketAddr,
    pub rng: Seeded,
    pub out: Outputs,
    pub links: Vec<Link>,
    /// Added to the wall clock.
    pub wall_offset: i64,
    /// Handshake messages that pretend to wait in the queue.
    pub queue_len: usize,
    pub gone: Vec<PeerId>,
}

/// A datagram that was sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    pub at: Time,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

impl Datagram {
    pub fn kind(&self) -> Kind {
        messages::kind(&self.bytes).expect("we send nothing malformed")
    }

    pub fn is_keepalive(&self) -> bool {
        self.kind() == Kind::Data && self.bytes.len() == messages::DATA_MIN
    }
}

type Filter = Box<dyn FnMut(&Datagram) -> bool>;

/// Sites, the clock, and what is on its way between them.
pub struct Net {
    pub now: Time,
    pub latency: Duration,
    pub sites: Vec<Site>,
    pub flying: Vec<Datagram>,
    pub log: Vec<Datagram>,
    /// False loses a datagram.
    pub pass: Filter,
}

pub const A: usize = 0;
pub const B: usize = 1;

impl Net {
    pub fn empty() -> Net {
        Net {
            now: START,
            latency: ms(20),
            sites: Vec::new(),
            flying: Vec::new(),
            log: Vec::new(),
            pass: Box::new(|_| true),
        }
    }

    /// Two sites that know each other, both up.
    pub fn pair() -> Net {
        Net::pair_with(Limits::default(), x25519::default())
    }

    pub fn pair_with(limits: Limits, dh: &'static dyn x25519::Dh) -> Net {
        let mut net = Net::empty();
        net.add_site(1, limits, dh);
        net.add_site(2, limits, dh);
        net.introduce(A, B);
        net.introduce(B, A);
        net
    }

    /// Adds a site whose key follows from `seed`, up.
    pub fn add_site(&mut self, seed: u64, limits: Limits, dh: &'static dyn x25519::Dh) -> usize {
        let number = self.sites.len();
        let mut rng = Seeded(seed);
        let now = self.now_at(0);
        let mut site = Site {
            device: Device::new(limits, dh, now, &mut rng),
            addr: SocketAddr::from(([192, 0, 2, number as u8 + 1], 51820)),
            rng,
            out: Outputs::new(),
            links: Vec::new(),
            wall_offset: 0,
            queue_len: 0,
            gone: Vec::new(),
        };
        site.device
            .set_private_key(Some(private_key(seed)), &mut site.out);
        site.device.set_up(true, &mut site.out);
        self.sites.push(site);
        number
    }

    /// Makes `to` a peer of `site`, with its endpoint.
    pub fn introduce(&mut self, site: usize, to: usize) -> PeerId {
        let key = self.sites[to].device.public_key().unwrap();
        let endpoint = self.sites[to].addr;
        self.add_peer(site, key, Some(endpoint))
    }

    pub fn add_peer(&mut self, site: usize, key: PublicKey, endpoint: Option<SocketAddr>) -> PeerId {
        let peer = self.sites[site].device.add_peer(key).unwrap();
        self.push_link(site, peer, endpoint);
        peer
    }

    /// What the worker needs for a lane, which goes where the base session goes.
    pub fn add_link(&mut self, site: usize, lane: PeerId) {
        let endpoint = self.link(site).endpoint;
        self.push_link(site, lane, endpoint);
    }

    fn push_link(&mut self, site: usize, peer: PeerId, endpoint: Option<SocketAddr>) {
        self.sites[site].links.push(Link {
            peer,
            endpoint,
            keypairs: Keypairs::new(),
            staged: VecDeque::new(),
            received: Vec::new(),
            sent_under: None,
            sources_cleared: 0,
            staged_dropped: 0,
            erased: 0,
            moved: 0,
        });
    }

    pub fn now_at(&self, offset: i64) -> Now {
        let since = self.now.since(START);
        let secs = (WALL + since.as_secs()).saturating_add_signed(offset);
        Now {
            mono: self.now,
            wall: WallClock {
                secs,
                nanos: since.subsec_nanos(),
            },
        }
    }

    pub fn now_of(&self, site: usize) -> Now {
        self.now_at(self.sites[site].wall_offset)
    }

    /// Shorthand for the only link of a site.
    pub fn link(&self, site: usize) -> &Link {
        &self.sites[site].links[0]
    }

    pub fn link_mut(&mut self, site: usize) -> &mut Link {
        &mut self.sites[site].links[0]
    }

    pub fn device(&mut self, site: usize) -> &mut Device {
        &mut self.sites[site].device
    }

    /// What `site` sent, of one kind.
    pub fn sent(&self, site: usize, kind: Kind) -> Vec<Datagram> {
        let from = self.sites[site].addr;
        self.log
            .iter()
            .filter(|datagram| datagram.from == from && datagram.kind() == kind)
            .cloned()
            .collect()
    }

    pub fn count(&self, site: usize, kind: Kind) -> usize {
        self.sent(site, kind).len()
    }

    pub fn refused(&self, site: usize, refusal: Refusal) -> u64 {
        self.sites[site].device.counters().get(refusal)
    }

    /// Runs for `d`.
    pub fn run(&mut self, d: Duration) {
        self.run_to(self.now.after(d));
    }

    /// Lets `d` pass without anything happening: nothing arrives and no timer is looked at.
    pub fn wait(&mut self, d: Duration) {
        self.now = self.now.after(d);
    }

    pub fn run_to(&mut self, end: Time) {
        loop {
            let landing = self
                .flying
                .iter()
                .map(|datagram| datagram.at.after(self.latency))
                .min();
            let deadline = self
                .sites
                .iter()
                .filter_map(|site| site.device.next_deadline())
                .min();
            let Some(next) = landing
                .into_iter()
                .chain(deadline)
                .min()
                .filter(|&next| next <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            self.step();
        }
        self.now = end;
    }

    /// Does everything that is due now.
    pub fn step(&mut self) {
        let (now, latency) = (self.now, self.latency);
        while let Some(n) = self
            .flying
            .iter()
            .position(|datagram| datagram.at.after(latency) <= now)
        {
            let datagram = self.flying.remove(n);
            self.deliver(&datagram);
        }
        for site in 0..self.sites.len() {
            let now = self.now_of(site);
            let Site { device, rng, out, .. } = &mut self.sites[site];
            device.poll(&now, rng, out);
            self.carry_out(site, None);
        }
    }

    /// Puts a datagram on the network now.
    pub fn transmit(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let datagram = Datagram {
            at: self.now,
            from,
            to,
            bytes,
        };
        self.log.push(datagram.clone());
        if (self.pass)(&datagram) {
            self.flying.push(datagram);
        }
    }

    /// Hands a datagram to who lives at its address, at once.
    pub fn deliver(&mut self, datagram: &Datagram) {
        if let Some(site) = self.sites.iter().position(|site| site.addr == datagram.to) {
            self.receive(site, datagram.from, &datagram.bytes);
        }
    }

    /// What a site does with a datagram.
    pub fn receive(&mut self, site: usize, from: SocketAddr, bytes: &[u8]) {
        match messages::kind(bytes) {
            Ok(Kind::Data) => {
                self.open(site, from, bytes);
            }
            Ok(_) | Err(_) => {
                let now = self.now_of(site);
                let Site {
                    device,
                    rng,
                    out,
                    queue_len,
                    ..
                } = &mut self.sites[site];
                device.receive(&now, &from, bytes, *queue_len, rng, out);
                self.carry_out(site, Some(from));
            }
        }
    }

    fn carry_out(&mut self, site: usize, source: Option<SocketAddr>) {
        let outputs: Vec<Output> = self.sites[site].out.drain().collect();
        for output in outputs {
            match output {
                Output::Send { to, msg, handshake } => {
                    let kind = messages::kind(&msg).expect("a whole message");
                    assert_eq!(handshake, kind != Kind::CookieReply);
                    let to = match to {
                        To::Source => source,
                        To::Peer(peer) => self.link_of(site, peer).endpoint,
                    };
                    let from = self.sites[site].addr;
                    if let Some(to) = to {
                        self.transmit(from, to, msg.to_vec());
                    }
                }
                Output::MoveEndpoint { peer } => {
                    let link = self.link_of(site, peer);
                    link.endpoint = Some(source.expect("only a datagram moves an endpoint"));
                    link.moved += 1;
                }
                Output::Install { peer, keypair } => {
                    assert_eq!(keypair.peer, peer);
                    let initiator = keypair.initiator;
                    let retired = self.link_of(site, peer).keypairs.install(keypair);
                    retired
                        .into_iter()
                        .for_each(|keypair| self.device(site).retire(keypair));
                    if initiator {
                        self.flush(site, peer);
                    }
                }
                Output::Keepalive { peer } => self.send(site, peer, &[]),
                Output::ClearSource { peer } => self.link_of(site, peer).sources_cleared += 1,
                Output::DropStaged { peer } => {
                    let link = self.link_of(site, peer);
                    link.staged.clear();
                    link.staged_dropped += 1;
                }
                Output::EraseKeys { peer } => {
                    let link = self.link_of(site, peer);
                    link.erased += 1;
                    let retired = link.keypairs.clear();
                    retired
                        .into_iter()
                        .for_each(|keypair| self.device(site).retire(keypair));
                }
                Output::ExpireSending { peer } => self.link_of(site, peer).keypairs.expire_sending(),
                Output::Challenged { .. } => {}
                Output::PeerGone { peer } => {
                    let retired = self.link_of(site, peer).keypairs.clear();
                    retired
                        .into_iter()
                        .for_each(|keypair| self.device(site).retire(keypair));
                    self.sites[site].links.retain(|link| link.peer != peer);
                    self.sites[site].gone.push(peer);
                }
            }
        }
    }

    fn link_of(&mut self, site: usize, peer: PeerId) -> &mut Link {
        self.sites[site]
            .links
            .iter_mut()
            .find(|link| link.peer == peer)
            .expect("a link to every peer")
    }

    /// Sends what is staged, or a keepalive if nothing is.
    fn flush(&mut self, site: usize, peer: PeerId) {
        let staged: Vec<Vec<u8>> = self.link_of(site, peer).staged.drain(..).collect();
        if staged.is_empty() {
            self.send(site, peer, &[]);
        }
        for packet in staged {
            self.send(site, peer, &packet);
        }
    }

    /// Sends a packet to the only peer of a site.
    pub fn data(&mut self, site: usize, packet: &[u8]) {
        let peer = self.link(site).peer;
        self.send(site, peer, packet);
    }

    /// Sends a packet, or stages it and asks for a session.
    pub fn send(&mut self, site: usize, peer: PeerId, packet: &[u8]) {
        let now = self.now;
        let link = self.link_of(site, peer);
        let Some((keypair, counter)) = link
            .keypairs
            .current_mut()
            .and_then(|keypair| keypair.next_counter(now).map(|counter| (keypair, counter)))
        else {
            if !packet.is_empty() {
                link.staged.push_back(packet.to_vec());
            }
            self.want_handshake(site, peer);
            return;
        };
        let mut datagram = vec![0; HEADER + packet.len() + TAG];
        let (header, text) = datagram.split_first_chunk_mut::<HEADER>().unwrap();
        DataHeader {
            receiver: keypair.remote_index,
            counter,
        }
        .write(header);
        text[..packet.len()].copy_from_slice(packet);
        let mut jobs = [Job::new(keypair.send_key(), counter, text)];
        aead::default().seal(&mut jobs);
        assert!(jobs[0].ok);
        let rekey = keypair.rekey_due_on_send(now);
        link.sent_under = Some(keypair.local_index);
        let (from, to) = (self.sites[site].addr, self.link_of(site, peer).endpoint);
        let traffic = self.sites[site].device.traffic(peer).clone();
        if traffic.sent(now, datagram.len() as u64, !packet.is_empty()) == Wake::Due {
            self.device(site).watch(peer);
        }
        if let Some(to) = to {
            self.transmit(from, to, datagram);
        }
        if rekey {
            self.want_handshake(site, peer);
        }
    }

    pub fn want_handshake(&mut self, site: usize, peer: PeerId) {
        let now = self.now_of(site);
        let Site { device, rng, out, .. } = &mut self.sites[site];
        device.want_handshake(peer, &now, rng, out);
        self.carry_out(site, None);
    }

    /// Opens a data message; true if it was accepted.
    fn open(&mut self, site: usize, from: SocketAddr, datagram: &[u8]) -> bool {
        let now = self.now;
        let (header, sealed) = datagram.split_first_chunk::<HEADER>().unwrap();
        let header = DataHeader::read(header);
        let mut text = sealed.to_vec();
        let links = &mut self.sites[site].links;
        let Some(link) = links
            .iter_mut()
            .find(|link| link.keypairs.get(header.receiver).is_some())
        else {
            return false;
        };
        let peer = link.peer;
        let keypair = link.keypairs.by_index(header.receiver).unwrap();
        if keypair.may_receive(header.counter, now).is_err() {
            return false;
        }
        let mut jobs = [Job::new(keypair.receive_key(), header.counter, &mut text)];
        aead::default().open(&mut jobs);
        if !jobs[0].ok || !keypair.accept(header.counter) {
            return false;
        }
        text.truncate(text.len() - TAG);
        let rekey = keypair.rekey_due_on_receive(now);
        let (confirmed, retired) = link.keypairs.received_under(header.receiver);
        link.endpoint = Some(from);
        let data = !text.is_empty();
        if data {
            link.received.push(text);
        }
        retired
            .into_iter()
            .for_each(|keypair| self.device(site).retire(keypair));
        let traffic = self.sites[site].device.traffic(peer).clone();
        if traffic.received(now, datagram.len() as u64, data) == Wake::Due {
            self.device(site).watch(peer);
        }
        if confirmed {
            let now = self.now_of(site);
            self.device(site).key_confirmed(peer, &now);
            let staged: Vec<Vec<u8>> = self.link_of(site, peer).staged.drain(..).collect();
            staged.iter().for_each(|packet| self.send(site, peer, packet));
        }
        if rekey {
            self.want_handshake(site, peer);
        }
        true
    }

    /// Brings a session up between A and B, with A as its initiator, and lets everything settle.
    pub fn connect(&mut self) {
        self.data(A, b"hello");
        self.run(ms(200));
        assert_eq!(self.link_mut(B).received.pop().as_deref(), Some(&b"hello"[..]));
        self.log.clear();
    }

    pub fn set_up(&mut self, site: usize, up: bool) {
        let Site { device, out, .. } = &mut self.sites[site];
        device.set_up(up, out);
        self.carry_out(site, None);
    }

    pub fn set_private_key(&mut self, site: usize, key: Option<Secret<32>>) {
        let Site { device, out, .. } = &mut self.sites[site];
        device.set_private_key(key, out);
        self.carry_out(site, None);
    }

    /// A fresh initiation from `site`, which is not put on the network.
    pub fn captured_initiation(&mut self, site: usize) -> Vec<u8> {
        let peer = self.link(site).peer;
        let pass = std::mem::replace(&mut self.pass, Box::new(|_| false));
        let before = self.log.len();
        self.want_handshake(site, peer);
        self.pass = pass;
        let initiation = self
            .log
            .drain(before..)
            .next()
            .expect("an initiation may be sent now");
        assert_eq!(initiation.kind(), Kind::Initiation);
        initiation.bytes
    }
}
