//! AWS-LC's ChaCha20-Poly1305. A burst's keys pass one after the other through one place on this thread's stack, which
//! is wiped when the burst is done.

use super::{Aead, Job, nonce};
use patronus_crypto_aws_lc::ChaCha20Poly1305;

pub(super) struct AwsLc;

impl Aead for AwsLc {
    fn name(&self) -> &'static str {
        "aws-lc"
    }

    fn seal(&self, burst: &mut [Job<'_>]) {
        ChaCha20Poly1305::scope(|cipher| {
            for job in burst {
                job.ok = cipher.seal(job.key, &nonce(job.counter), &[], job.buf);
            }
        });
    }

    fn open(&self, burst: &mut [Job<'_>]) {
        ChaCha20Poly1305::scope(|cipher| {
            for job in burst {
                job.ok = cipher.open(job.key, &nonce(job.counter), &[], job.buf);
            }
        });
    }

    fn seal_one(&self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        ChaCha20Poly1305::scope(|cipher| cipher.seal(key, nonce, aad, buf))
    }

    fn open_one(&self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        ChaCha20Poly1305::scope(|cipher| cipher.open(key, nonce, aad, buf))
    }
}
