//! `crypto/simd`: kernels of our own that fill vector registers across the packets of a burst.

use super::{Aead, Job, nonce};
use arrayvec::ArrayVec;
use patronus_crypto_simd::{BURST, Isa, Kernel, Packet};

/// One kernel, found to run on this machine.
pub(super) struct Ours(Kernel);

impl Ours {
    /// The backend for `isa`, if this machine can run it.
    pub(super) fn new(isa: Isa) -> Option<Ours> {
        Kernel::new(isa).map(Ours)
    }
}

/// The backend's name.
pub(super) const fn name(isa: Isa) -> &'static str {
    match isa {
        Isa::Avx512Ifma => "ours-avx512",
        Isa::Avx512 => "ours-avx512-noifma",
        Isa::Avx2 => "ours-avx2",
        Isa::Portable => "ours-portable",
    }
}

impl Aead for Ours {
    fn name(&self) -> &'static str {
        name(self.0.isa())
    }

    fn seal(&self, burst: &mut [Job<'_>]) {
        over(burst, |packets| self.0.seal(packets));
    }

    fn open(&self, burst: &mut [Job<'_>]) {
        over(burst, |packets| self.0.open(packets));
    }

    fn seal_one(&self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        let mut packet = [Packet::new(key, *nonce, aad, buf)];
        self.0.seal(&mut packet);
        packet[0].ok
    }

    fn open_one(&self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        let mut packet = [Packet::new(key, *nonce, aad, buf)];
        self.0.open(&mut packet);
        packet[0].ok
    }
}

/// Calls `work` with the burst as the kernel's own packets.
#[inline]
fn over(burst: &mut [Job<'_>], work: impl Fn(&mut [Packet<'_>])) {
    for burst in burst.chunks_mut(BURST) {
        let mut packets = ArrayVec::<Packet<'_>, BURST>::new();
        packets.extend(
            burst
                .iter_mut()
                .map(|job| Packet::new(job.key, nonce(job.counter), &[], job.buf)),
        );
        work(&mut packets);
        let ok: ArrayVec<bool, BURST> = packets.iter().map(|packet| packet.ok).collect();
        drop(packets);
        burst.iter_mut().zip(ok).for_each(|(job, ok)| job.ok = ok);
    }
}
