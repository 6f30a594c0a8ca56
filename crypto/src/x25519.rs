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

    /// The public key that belongs to `private`. No copy of the key is left on the stack.
    fn public(&self, private: &Secret<32>) -> [u8; 32];

    /// The secret shared with the owner of `public`, or `None` if it is all zero, as it is for every point of low order
    /// (RFC 7748, section 6.1). The comparison takes the same time whatever the secret is. No copy of either secret is left
    /// on the stack.
    fn shared(&self, private: &Secret<32>, public: &[u8; 32]) -> Option<Secret<32>>;
}

struct Dalek;

impl Dh for Dalek {
    fn name(&self) -> &'static str {
        "dalek"
    }

    fn public(&self, private: &Secret<32>) -> [u8; 32] {
        let public = dalek_public(private);
        patronus_mem::wipe_stack();
        public
    }

    fn shared(&self, private: &Secret<32>, public: &[u8; 32]) -> Option<Secret<32>> {
        let shared = Secret::with(|out| dalek_shared(out, private, public));
        patronus_mem::wipe_stack();
        contributes(&shared).then_some(shared)
    }
}

// Not inlined, so that all they leave on the stack is below the frame of the caller, which wipes from there.
#[inline(never)]
fn dalek_public(private: &[u8; 32]) -> [u8; 32] {
    let private = x25519_dalek::StaticSecret::from(*private);
    x25519_dalek::PublicKey::from(&private).to_bytes()
}

#[inline(never)]
fn dalek_shared(shared: &mut [u8; 32], private: &[u8; 32], public: &[u8; 32]) {
    let private = x25519_dalek::StaticSecret::from(*private);
    let public = x25519_dalek::PublicKey::from(*public);
    shared.copy_from_slice(private.diffie_hellman(&public).as_bytes());
}

struct AwsLc;

impl Dh for AwsLc {
    fn name(&self) -> &'static str {
        "aws-lc"
    }

    fn public(&self, private: &Secret<32>) -> [u8; 32] {
        let public = patronus_crypto_aws_lc::x25519_public(private);
        patronus_mem::wipe_stack();
        public
    }

    fn shared(&self, private: &Secret<32>, public: &[u8; 32]) -> Option<Secret<32>> {
        let shared = Secret::with(|out| patronus_crypto_aws_lc::x25519(out, private, public));
        patronus_mem::wipe_stack();
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
