//! `crypto/simd`: kernels of our own that fill vector registers across the packets of a burst. docs/adr/0022-vector-aead.md has the
//! measurements that say which packets a library is given instead.

use super::aws_lc::AwsLc;
use super::{Aead, Job, TAG, nonce};
use arrayvec::ArrayVec;
use patronus_crypto_simd::{BURST, Isa, Kernel, Packet};

/// With AVX2, a text longer than this is the library's, bytes: its assembly works on cipher and tag in one, and is as fast from there on.
const AVX2_TEXT_MAX: usize = 800;
/// With AVX2, fewer packets than this are the library's: they fill too few lanes.
const AVX2_PACKETS_MIN: usize = 4;

/// One kernel, found to run on this machine.
pub(super) struct Ours(Kernel);

impl Ours {
    /// The backend for `isa`, if this machine can run it.
    pub(super) fn new(isa: Isa) -> Option<Ours> {
        Kernel::new(isa).map(Ours)
    }

    pub(super) fn is_portable(&self) -> bool {
        self.0.isa() == Isa::Portable
    }

    /// Gives the kernel those packets that it is the fastest for, and the library the rest.
    #[inline]
    fn share(
        &self,
        burst: &mut [Job<'_>],
        kernel: impl Fn(&mut [Packet<'_>]),
        library: impl Fn(&mut [Job<'_>]),
    ) {
        if self.0.isa() != Isa::Avx2 {
            return over(burst, |_| true, kernel);
        }
        let short = |job: &Job<'_>| job.buf.len() <= AVX2_TEXT_MAX + TAG;
        for burst in burst.chunks_mut(BURST) {
            if burst.iter().filter(|job| short(job)).count() < AVX2_PACKETS_MIN {
                library(burst);
                continue;
            }
            over(burst, short, &kernel);
            // Runs of long ones.
            for run in burst.chunk_by_mut(|a, b| short(a) == short(b)) {
                if !short(&run[0]) {
                    library(run);
                }
            }
        }
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
        self.share(burst, |packets| self.0.seal(packets), |jobs| AwsLc.seal(jobs));
    }

    fn open(&self, burst: &mut [Job<'_>]) {
        self.share(burst, |packets| self.0.open(packets), |jobs| AwsLc.open(jobs));
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

/// Calls `work` with those of the burst that are `wanted`, as the kernel's own packets.
#[inline]
fn over(burst: &mut [Job<'_>], wanted: impl Fn(&Job<'_>) -> bool, work: impl Fn(&mut [Packet<'_>])) {
    for burst in burst.chunks_mut(BURST) {
        let mut packets = ArrayVec::<Packet<'_>, BURST>::new();
        let mut numbers = ArrayVec::<u8, BURST>::new();
        for (number, job) in (0..).zip(&mut *burst) {
            if wanted(job) {
                packets.push(Packet::new(job.key, nonce(job.counter), &[], job.buf));
                numbers.push(number);
            }
        }
        work(&mut packets);
        let ok: ArrayVec<bool, BURST> = packets.iter().map(|packet| packet.ok).collect();
        drop(packets);
        for (number, ok) in numbers.into_iter().zip(ok) {
            burst[usize::from(number)].ok = ok;
        }
    }
}
