//! X25519 (RFC 7748) behind one trait.
//!
//! Called by the handshake on the slow-path thread, never by a worker. Which backend is the default and why is in
//! docs/adr/0004-x25519-backend.md.

use patronus_mem::Secret;
use subtle::ConstantTimeEq;

/// An implementation of X25519.
pub trait Dh: Send + Sync {
    /// The name by which [`by_name`] finds it.
    fn name(&self) -> &'static str;

    /// The public key that belongs to `private`.
    fn public(&self, private: &Secret<32>) -> [u8; 32];

    /// The secret shared with the owner of `public`, or `None` if it is all zero, as it is for every point of low order
    /// (RFC 7748, section 6.1). The comparison takes the same time whatever the secret is.
    fn shared(&self, private: &Secret<32>, public: &[u8; 32]) -> Option<Secret<32>>;
}

struct Dalek;

impl Dh for Dalek {
    fn name(&self) -> &'static str {
        "dalek"
    }

    fn public(&self, private: &Secret<32>) -> [u8; 32] {
        let private = x25519_dalek::StaticSecret::from(**private);
        x25519_dalek::PublicKey::from(&private).to_bytes()
    }

    fn shared(&self, private: &Secret<32>, public: &[u8; 32]) -> Option<Secret<32>> {
        let private = x25519_dalek::StaticSecret::from(**private);
        let shared = private.diffie_hellman(&x25519_dalek::PublicKey::from(*public));
        let shared = Secret::with(|out| out.copy_from_slice(shared.as_bytes()));
        contributes(&shared).then_some(shared)
    }
}

struct AwsLc;

impl Dh for AwsLc {
    fn name(&self) -> &'static str {
        "aws-lc"
    }

    fn public(&self, private: &Secret<32>) -> [u8; 32] {
        patronus_crypto_aws_lc::x25519_public(private)
    }

    fn shared(&self, private: &Secret<32>, public: &[u8; 32]) -> Option<Secret<32>> {
        let shared = Secret::with(|out| patronus_crypto_aws_lc::x25519(out, private, public));
        contributes(&shared).then_some(shared)
    }
}

/// Whether any bit of `shared` is set, looked at in constant time.
fn contributes(shared: &[u8; 32]) -> bool {
    bool::from(!shared.ct_eq(&[0; 32]))
}

static ALL: [&dyn Dh; 2] = [&AwsLc, &Dalek];

/// The backend to use where nothing else is asked for.
pub fn default() -> &'static dyn Dh {
    ALL[0]
}

/// The backend called `name`.
pub fn by_name(name: &str) -> Option<&'static dyn Dh> {
    ALL.iter().copied().find(|dh| dh.name() == name)
}

/// Every backend, the default first.
pub fn all() -> &'static [&'static dyn Dh] {
    &ALL
}
