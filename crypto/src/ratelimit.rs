//! How many handshakes one source may ask for while we are under load.
//!
//! Held by the [`Device`](crate::Device) on the slow-path thread, and asked only about sources that proved their address by a
//! cookie. One flooding source spends its own tokens and nobody else's.

use std::net::IpAddr;

use patronus_mem::Secret;

use crate::hash;
use crate::{Duration, Random, Time};

/// What one handshake costs: 20 a second.
const COST: u64 = 50_000_000;

/// Most that a source can save up: a burst of 5.
const FULL: u64 = 5 * COST;

/// A source that was silent for so long is forgotten: by then it has saved up a burst again.
const FORGET: Duration = Duration::from_secs(1);

/// Sources that share a bucket of the table.
const WAYS: usize = 8;

/// What the limiter says about a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Allowed,
    /// The source spent its tokens.
    Limited,
    /// The table has no room for one more source.
    Full,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// Keyed hash of the source; 0 for an empty place.
    source: u64,
    last: Time,
    /// Nanoseconds of saved-up time.
    tokens: u64,
}

/// A token bucket for each source, in a table that never grows.
pub(crate) struct RateLimiter {
    /// Buckets of [`WAYS`] places each. A source has its place in one bucket.
    entries: Box<[[Entry; WAYS]]>,
    /// Keeps a sender from choosing sources that share a bucket with others.
    key: Secret<32>,
}

impl RateLimiter {
    /// Room for `sources` sources, rounded up to a power of two.
    pub(crate) fn new(sources: usize, rng: &mut dyn Random) -> Self {
        let buckets = sources.div_ceil(WAYS).next_power_of_two();
        RateLimiter {
            entries: vec![[Entry::default(); WAYS]; buckets].into_boxed_slice(),
            key: Secret::with(|key| rng.fill(key)),
        }
    }

    /// Whether a handshake message from `from` may cost us a Diffie-Hellman now.
    pub(crate) fn allow(&mut self, from: IpAddr, now: Time) -> Verdict {
        let source = self.source(from);
        let bucket = &mut self.entries[source as usize & (self.entries.len() - 1)];
        if let Some(entry) = bucket.iter_mut().find(|entry| entry.source == source) {
            let tokens = entry
                .tokens
                .saturating_add(now.since(entry.last).as_nanos() as u64)
                .min(FULL);
            entry.last = entry.last.max(now);
            let Some(left) = tokens.checked_sub(COST) else {
                entry.tokens = tokens;
                return Verdict::Limited;
            };
            entry.tokens = left;
            return Verdict::Allowed;
        }
        let free = bucket
            .iter_mut()
            .find(|entry| entry.source == 0 || now.since(entry.last) >= FORGET);
        let Some(entry) = free else { return Verdict::Full };
        *entry = Entry {
            source,
            last: now,
            tokens: FULL - COST,
        };
        Verdict::Allowed
    }

    /// The number that stands for a source: an IPv4 address, or the /64 of an IPv6 address, which is what one host has.
    fn source(&self, from: IpAddr) -> u64 {
        let digest = match from {
            IpAddr::V4(v4) => hash::mac(&self.key, &[&[4], &v4.octets()]),
            IpAddr::V6(v6) => hash::mac(&self.key, &[&[6], &v6.octets()[..8]]),
        };
        let [a, b, c, d, e, f, g, h, ..] = digest;
        u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Random for Fixed {
        fn fill(&mut self, buf: &mut [u8]) {
            buf.fill(0x5a);
        }
    }

    fn limiter(sources: usize) -> RateLimiter {
        RateLimiter::new(sources, &mut Fixed)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const MS: u64 = 1_000_000;

    #[test]
    fn c28_twenty_a_second_and_a_burst_of_five() {
        let mut limiter = limiter(64);
        let mut allow = |ms: u64| limiter.allow(ip("192.0.2.1"), Time(ms * MS)) == Verdict::Allowed;
        for _ in 0..5 {
            assert!(allow(1000));
        }
        assert!(!allow(1000));
        assert!(
            !allow(1049),
            "a refused message does not take away what was saved up"
        );
        assert!(allow(1050));
        assert!(!allow(1050));
        assert!(allow(1150));
        assert!(allow(1150));
        assert!(!allow(1150));
        // Over a long time, exactly the rate.
        let passed = (0..10_000).filter(|n| allow(1150 + n)).count();
        assert_eq!(passed, 199);
    }

    #[test]
    fn c28_ipv6_sources_are_counted_by_their_64() {
        let mut limiter = limiter(64);
        let now = Time::from_secs(1);
        for n in 0..5 {
            let from = ip(&format!("2001:db8:1:2::{n}"));
            assert_eq!(limiter.allow(from, now), Verdict::Allowed);
        }
        assert_eq!(limiter.allow(ip("2001:db8:1:2:ffff::1"), now), Verdict::Limited);
        assert_eq!(limiter.allow(ip("2001:db8:1:3::1"), now), Verdict::Allowed);
        // Every address of version 4 is a source of its own.
        for n in 0..5 {
            assert_eq!(limiter.allow(ip(&format!("192.0.2.{n}")), now), Verdict::Allowed);
        }
    }

    #[test]
    fn c28_the_table_is_bounded_and_forgets_after_a_second() {
        let mut limiter = limiter(64);
        let start = Time::from_secs(10);
        let sources: Vec<IpAddr> = (0..4000u32).map(|n| IpAddr::V4(n.into())).collect();
        let admitted = sources
            .iter()
            .filter(|&&from| limiter.allow(from, start) == Verdict::Allowed)
            .count();
        assert!(
            (32..=64).contains(&admitted),
            "{admitted} sources in a table for 64"
        );
        let soon = Time(start.0 + 999 * MS);
        let again = sources
            .iter()
            .filter(|&&from| limiter.allow(from, soon) == Verdict::Allowed)
            .count();
        assert_eq!(again, admitted, "those who are in keep their place");
        let later = Time(soon.0 + 1000 * MS);
        let newcomer =
            (4000..4064u32).any(|n| limiter.allow(IpAddr::V4(n.into()), later) == Verdict::Allowed);
        assert!(newcomer, "idle sources make room");
    }

    #[test]
    fn c29_a_flooding_source_spends_its_own_tokens_only() {
        let mut limiter = limiter(8192);
        let now = Time::from_secs(1);
        for _ in 0..100_000 {
            limiter.allow(ip("198.51.100.66"), now);
        }
        assert_eq!(limiter.allow(ip("198.51.100.66"), now), Verdict::Limited);
        assert_eq!(limiter.allow(ip("192.0.2.1"), now), Verdict::Allowed);
    }

    #[test]
    fn c29_sources_of_one_bucket_have_tokens_of_their_own() {
        let mut limiter = limiter(WAYS);
        let now = Time::from_secs(1);
        for n in 0..WAYS {
            let from = ip(&format!("192.0.2.{n}"));
            for _ in 0..5 {
                assert_eq!(limiter.allow(from, now), Verdict::Allowed, "{from}");
            }
            assert_eq!(limiter.allow(from, now), Verdict::Limited, "{from}");
        }
        assert_eq!(limiter.allow(ip("192.0.2.99"), now), Verdict::Full);
    }

    #[test]
    fn c74_a_clock_that_steps_back_gives_nothing_away() {
        let mut limiter = limiter(64);
        for n in 0..100 {
            limiter.allow(ip("192.0.2.1"), Time::from_secs(1000 - n));
        }
        assert_eq!(
            limiter.allow(ip("192.0.2.1"), Time::from_secs(1000)),
            Verdict::Limited
        );
    }
}
