//! The implementations that are compared, each with its keys set up as its interface wants them.

use arrayvec::ArrayVec;
use patronus_bench_ipsec_mb as ipsec_mb;
use patronus_crypto::aead::{self, Aead, Job, NotThere, TAG};
use patronus_mem::{BURST_MAX, PktBuf, Secret};
use patronus_netns::{Error, Result};

use super::packets::{self, Packets, SESSIONS, counter, key, nonce, sealed};
use super::{Cell, Op};
use crate::engine::size::Size;

/// Sizes at which every implementation is held against the reference: around blocks and vectors of them, and the longest.
const CHECKED: [usize; 18] = [
    1, 15, 16, 17, 63, 64, 65, 127, 128, 255, 257, 511, 576, 1023, 1025, 1420, 4097, 8999,
];

/// Those of ours that not every processor can run.
const KERNELS: [&str; 3] = ["ours-avx512", "ours-avx512-noifma", "ours-avx2"];

/// One implementation.
pub trait Backend {
    /// Its name in tables, rows and options.
    fn name(&self) -> &'static str;

    /// What it is, for the head of the report.
    fn describe(&self) -> String;

    /// Seals or opens a burst in place, packet `first` and those behind it. Returns how many failed.
    fn work(&mut self, op: Op, first: usize, burst: &mut [PktBuf]) -> usize;
}

/// Implementations, measured in turn.
pub type Backends = Vec<Box<dyn Backend>>;

/// The implementations of a run: `wanted` (default: all), and why each of the others is left out.
pub fn choose(wanted: Option<&[String]>) -> Result<(Backends, Vec<String>)> {
    let (mut all, left_out) = everything();
    let Some(wanted) = wanted else {
        return Ok((all, left_out));
    };
    // In the order that was asked for.
    let mut chosen = Backends::new();
    for name in wanted {
        let Some(at) = all.iter().position(|backend| backend.name() == name) else {
            let reason = left_out
                .iter()
                .find(|reason| reason.starts_with(&format!("{name}:")));
            return Err(Error::new(reason.cloned().unwrap_or_else(|| {
                let names = all.iter().chain(&chosen).map(|backend| backend.name());
                let names = names.collect::<Vec<_>>().join(", ");
                format!("no such implementation: {name} (on this machine there are: {names})")
            })));
        };
        chosen.push(all.remove(at));
    }
    Ok((chosen, Vec::new()))
}

/// What there is on this machine, and what there is not.
fn everything() -> (Backends, Vec<String>) {
    let mut all = Backends::new();
    let mut left_out = Vec::new();
    for &aead in aead::all() {
        all.push(Box::new(Ours::new(aead)));
    }
    for name in KERNELS {
        if let Err(NotThere::Needs(_, needs)) = aead::by_name(name) {
            left_out.push(format!("{name}: needs a processor with {needs}"));
        }
    }
    all.push(Box::new(AwsLcRs::new()));
    all.push(Box::new(Ring::new()));
    for (name, api) in IPSEC_MB {
        match ipsec_mb::Manager::new() {
            Ok(manager) => all.push(Box::new(IpsecMb {
                name,
                api,
                manager,
                keys: keys(),
            })),
            Err(reason) => left_out.push(format!("{name}: {reason}")),
        }
    }
    (all, left_out)
}

/// Holds an implementation against the reference, in bursts of mixed and of equal lengths, and has it refuse forgeries.
pub fn check(backend: &mut dyn Backend, packets: &mut Packets) -> Result<()> {
    let mut reference = Ours::new(aead::by_name("rustcrypto").expect("the reference is always there"));
    let failed = |backend: &dyn Backend, what: &str, cell: Cell| {
        Err(Error::new(format!(
            "{}, bursts of {} packets of {} bytes: {what}",
            backend.name(),
            cell.burst,
            cell.size
        )))
    };
    let sizes = CHECKED.map(Size::Bytes).into_iter().chain([Size::Imix]);
    for cell in sizes.flat_map(|size| [1, 8, 32, 64].map(|burst| Cell { size, burst })) {
        packets.fill(cell);
        let not_sealed = packets.work(&mut reference, Op::Seal, cell.burst);
        let expected = packets.bytes();
        packets.fill(cell);
        if packets.work(backend, Op::Seal, cell.burst) + not_sealed != 0 || packets.bytes() != expected {
            return failed(backend, "sealed is not what the reference seals", cell);
        }
        if packets.work(backend, Op::Open, cell.burst) != 0 || !packets.are_plain() {
            return failed(backend, "what was sealed does not open", cell);
        }
        packets.work(backend, Op::Seal, cell.burst);
        packets.forge(0, 3);
        packets.forge(packets.len() - 1, 8 * cell.size.of(packets.len() - 1) + 7);
        if packets.work(backend, Op::Open, cell.burst) != 2 {
            return failed(backend, "a forged packet opens", cell);
        }
    }
    Ok(())
}

fn keys() -> Vec<Secret<32>> {
    (0..SESSIONS).map(packets::secret).collect()
}

/// Whatever the engine can use.
struct Ours {
    aead: &'static dyn Aead,
    keys: Vec<Secret<32>>,
}

impl Ours {
    fn new(aead: &'static dyn Aead) -> Ours {
        Ours { aead, keys: keys() }
    }
}

impl Backend for Ours {
    fn name(&self) -> &'static str {
        self.aead.name()
    }

    fn describe(&self) -> String {
        "a backend of the engine (--aead)".to_owned()
    }

    fn work(&mut self, op: Op, first: usize, burst: &mut [PktBuf]) -> usize {
        let mut jobs = ArrayVec::<Job<'_>, BURST_MAX>::new();
        for (number, packet) in (first..).zip(burst) {
            let key = &self.keys[number % SESSIONS];
            jobs.push(Job::new(key, counter(number), sealed(packet)));
        }
        match op {
            Op::Seal => self.aead.seal(&mut jobs),
            Op::Open => self.aead.open(&mut jobs),
        }
        jobs.iter().filter(|job| !job.ok).count()
    }
}

/// ring, with its keys set up beforehand.
struct Ring {
    keys: Vec<ring::aead::LessSafeKey>,
}

impl Ring {
    fn new() -> Ring {
        use ring::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};
        let key = |session| UnboundKey::new(&CHACHA20_POLY1305, &key(session)).expect("a key of 32 bytes");
        Ring {
            keys: (0..SESSIONS)
                .map(|session| LessSafeKey::new(key(session)))
                .collect(),
        }
    }
}

impl Backend for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn describe(&self) -> String {
        "packet after packet, keys set up beforehand".to_owned()
    }

    fn work(&mut self, op: Op, first: usize, burst: &mut [PktBuf]) -> usize {
        use ring::aead::{Aad, Nonce};
        let mut bad = 0;
        for (number, packet) in (first..).zip(burst) {
            let key = &self.keys[number % SESSIONS];
            let nonce = Nonce::assume_unique_for_key(nonce(counter(number)));
            let buf = sealed(packet);
            let done = match op {
                Op::Seal => {
                    let (text, tag) = buf.split_last_chunk_mut::<TAG>().expect("a tag");
                    key.seal_in_place_separate_tag(nonce, Aad::empty(), text)
                        .map(|computed| tag.copy_from_slice(computed.as_ref()))
                }
                Op::Open => key.open_in_place(nonce, Aad::empty(), buf).map(drop),
            };
            bad += usize::from(done.is_err());
        }
        bad
    }
}

/// The safe wrapper of AWS-LC, with its keys set up beforehand.
struct AwsLcRs {
    keys: Vec<aws_lc_rs::aead::LessSafeKey>,
}

impl AwsLcRs {
    fn new() -> AwsLcRs {
        use aws_lc_rs::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};
        let key = |session| UnboundKey::new(&CHACHA20_POLY1305, &key(session)).expect("a key of 32 bytes");
        AwsLcRs {
            keys: (0..SESSIONS)
                .map(|session| LessSafeKey::new(key(session)))
                .collect(),
        }
    }
}

impl Backend for AwsLcRs {
    fn name(&self) -> &'static str {
        "aws-lc-rs"
    }

    fn describe(&self) -> String {
        "AWS-LC by its safe wrapper, packet after packet, keys set up beforehand".to_owned()
    }

    fn work(&mut self, op: Op, first: usize, burst: &mut [PktBuf]) -> usize {
        use aws_lc_rs::aead::{Aad, Nonce};
        let mut bad = 0;
        for (number, packet) in (first..).zip(burst) {
            let key = &self.keys[number % SESSIONS];
            let nonce = Nonce::assume_unique_for_key(nonce(counter(number)));
            let buf = sealed(packet);
            let done = match op {
                Op::Seal => {
                    let (text, tag) = buf.split_last_chunk_mut::<TAG>().expect("a tag");
                    key.seal_in_place_separate_tag(nonce, Aad::empty(), text)
                        .map(|computed| tag.copy_from_slice(computed.as_ref()))
                }
                Op::Open => key.open_in_place(nonce, Aad::empty(), buf).map(drop),
            };
            bad += usize::from(done.is_err());
        }
        bad
    }
}

/// Rows of ipsec-mb.
const IPSEC_MB: [(&str, ipsec_mb::Api); 2] = [
    ("ipsec-mb", ipsec_mb::Api::Burst),
    ("ipsec-mb-direct", ipsec_mb::Api::Direct),
];

/// Intel's library.
struct IpsecMb {
    name: &'static str,
    api: ipsec_mb::Api,
    manager: ipsec_mb::Manager,
    keys: Vec<Secret<32>>,
}

impl Backend for IpsecMb {
    fn name(&self) -> &'static str {
        self.name
    }

    fn describe(&self) -> String {
        let how = match self.api {
            ipsec_mb::Api::Burst => "a burst of jobs, as VPP and DPDK call it",
            ipsec_mb::Api::Direct => "direct calls, packet after packet",
        };
        format!("{}, {how}", self.manager.describe())
    }

    fn work(&mut self, op: Op, first: usize, burst: &mut [PktBuf]) -> usize {
        let mut packets = ArrayVec::<ipsec_mb::Packet<'_>, { ipsec_mb::BURST_MAX }>::new();
        for (number, packet) in (first..).zip(burst) {
            let key = &self.keys[number % SESSIONS];
            packets.push(ipsec_mb::Packet::new(key, nonce(counter(number)), sealed(packet)));
        }
        let op = match op {
            Op::Seal => ipsec_mb::Op::Seal,
            Op::Open => ipsec_mb::Op::Open,
        };
        self.manager.work(self.api, op, &mut packets)
    }
}
