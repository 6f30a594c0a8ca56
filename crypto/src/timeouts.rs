//! The protocol's constants in one place, and the times that follow from them.
//!
//! Times are read from a [`Timeouts`] value, so that a test can run a day's rekeys in minutes; the value can only ever be
//! shorter than the protocol's. Message limits are plain constants: nothing shortens them.

use crate::Duration;

/// Messages under one key after which either side starts a new handshake (WireGuard paper, section 6.1).
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;

/// How far behind the highest counter the protocol's own replay window reaches, in messages.
pub const REPLAY_REACH: u64 = 8192 - 64;

/// The first counter that may be neither sent nor accepted. Linux draws the line at this number, the paper at
/// 2^64 - 2^13 - 1: a peer that counts to the paper's limit stays below ours.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - REPLAY_REACH - 1;

/// Retries of one handshake before it is given up: with [`REKEY_TIMEOUT`] and jitter, about 90 seconds
/// (REKEY_ATTEMPT_TIME of the paper).
pub const MAX_HANDSHAKE_ATTEMPTS: u32 = 90 / 5;

/// Age at which an initiator replaces a key (REKEY_AFTER_TIME).
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);

/// Age at which a key may no longer be used (REJECT_AFTER_TIME).
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// Pause between two initiations to one peer (REKEY_TIMEOUT).
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence after which received data is answered by an empty packet (KEEPALIVE_TIMEOUT).
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Upper bound of the random delay that is added to handshake retries.
pub const REKEY_TIMEOUT_JITTER: Duration = Duration::from_millis(333);

/// Lifetime of the secret behind the cookies we give out, and of a cookie given to us.
pub const COOKIE_SECRET_MAX_AGE: Duration = Duration::from_secs(120);

/// A received cookie is used until it is this much younger than [`COOKIE_SECRET_MAX_AGE`].
pub const COOKIE_SECRET_LATENCY: Duration = Duration::from_secs(5);

/// Least time between two initiations consumed from one peer: 50 a second.
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

/// Every time that a session's life depends on. Shared by the data path's keypairs and the slow path's timers, so that
/// both agree on when a key is old.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)] // what packets look at stands first: see `Keypair`
pub struct Timeouts {
    /// See [`REKEY_AFTER_TIME`].
    pub rekey_after_time: Duration,
    /// See [`REJECT_AFTER_TIME`].
    pub reject_after_time: Duration,
    /// See [`REKEY_TIMEOUT`].
    pub rekey_timeout: Duration,
    /// See [`KEEPALIVE_TIMEOUT`].
    pub keepalive_timeout: Duration,
    /// See [`REKEY_TIMEOUT_JITTER`].
    pub rekey_timeout_jitter: Duration,
    /// See [`COOKIE_SECRET_MAX_AGE`].
    pub cookie_secret_max_age: Duration,
    /// See [`COOKIE_SECRET_LATENCY`].
    pub cookie_secret_latency: Duration,
    /// See [`INITIATION_INTERVAL`].
    pub initiation_interval: Duration,
}

impl Timeouts {
    /// The protocol's times.
    pub const fn protocol() -> Self {
        Timeouts {
            rekey_after_time: REKEY_AFTER_TIME,
            reject_after_time: REJECT_AFTER_TIME,
            rekey_timeout: REKEY_TIMEOUT,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            rekey_timeout_jitter: REKEY_TIMEOUT_JITTER,
            cookie_secret_max_age: COOKIE_SECRET_MAX_AGE,
            cookie_secret_latency: COOKIE_SECRET_LATENCY,
            initiation_interval: INITIATION_INTERVAL,
        }
    }

    /// The protocol's times divided by `divisor` (0 counts as 1), for tests: all of them, so that their order and
    /// proportions stay. Nothing can lengthen them.
    pub const fn shortened(divisor: u32) -> Self {
        let divisor = if divisor == 0 { 1 } else { divisor as u64 };
        const fn part(d: Duration, divisor: u64) -> Duration {
            Duration::from_nanos(d.as_nanos() as u64 / divisor)
        }
        let whole = Self::protocol();
        Timeouts {
            rekey_after_time: part(whole.rekey_after_time, divisor),
            reject_after_time: part(whole.reject_after_time, divisor),
            rekey_timeout: part(whole.rekey_timeout, divisor),
            keepalive_timeout: part(whole.keepalive_timeout, divisor),
            rekey_timeout_jitter: part(whole.rekey_timeout_jitter, divisor),
            cookie_secret_max_age: part(whole.cookie_secret_max_age, divisor),
            cookie_secret_latency: part(whole.cookie_secret_latency, divisor),
            initiation_interval: part(whole.initiation_interval, divisor),
        }
    }

    /// Age of its key at which an initiator that receives data asks for a new handshake, so that a session which only
    /// receives is renewed before it dies: 165 seconds.
    pub const fn rekey_on_receive_after(&self) -> Duration {
        self.reject_after_time
            .saturating_sub(self.keepalive_timeout)
            .saturating_sub(self.rekey_timeout)
    }

    /// Silence after unanswered data at which a new handshake is tried: 15 seconds, jitter not included.
    pub const fn new_handshake_after(&self) -> Duration {
        self.keepalive_timeout.saturating_add(self.rekey_timeout)
    }

    /// Time without a new session after which every key of a peer is erased: 540 seconds.
    pub const fn erase_after(&self) -> Duration {
        self.reject_after_time.saturating_mul(3)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::protocol()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c05_message_limits() {
        assert_eq!(REKEY_AFTER_MESSAGES, 1_152_921_504_606_846_976);
        assert_eq!(REJECT_AFTER_MESSAGES, 18_446_744_073_709_543_486);
    }

    #[test]
    fn c06_times() {
        let t = Timeouts::protocol();
        let seconds = |d: Duration| d.as_secs();
        assert_eq!(seconds(t.rekey_after_time), 120);
        assert_eq!(seconds(t.reject_after_time), 180);
        assert_eq!(seconds(t.rekey_timeout), 5);
        assert_eq!(seconds(t.keepalive_timeout), 10);
        assert_eq!(t.rekey_timeout_jitter.as_millis(), 333);
        assert_eq!(seconds(t.cookie_secret_max_age), 120);
        assert_eq!(seconds(t.cookie_secret_max_age - t.cookie_secret_latency), 115);
        assert_eq!(t.initiation_interval.as_millis(), 1000 / 50);
        assert_eq!(MAX_HANDSHAKE_ATTEMPTS, 18);
        assert_eq!(seconds(t.rekey_on_receive_after()), 165);
        assert_eq!(seconds(t.new_handshake_after()), 15);
        assert_eq!(seconds(t.erase_after()), 540);
    }

    #[test]
    fn the_test_hook_only_shortens() {
        let whole = Timeouts::protocol();
        assert_eq!(Timeouts::shortened(0), whole);
        assert_eq!(Timeouts::shortened(1), whole);
        for divisor in [2, 6, 60, u32::MAX] {
            let t = Timeouts::shortened(divisor);
            assert!(t.rekey_after_time < whole.rekey_after_time);
            assert!(t.rekey_after_time <= t.reject_after_time);
            assert!(t.initiation_interval < whole.initiation_interval);
        }
        let t = Timeouts::shortened(5);
        assert_eq!(
            (t.rekey_after_time, t.rekey_on_receive_after()),
            (Duration::from_secs(24), Duration::from_secs(33))
        );
        assert_eq!(
            (t.new_handshake_after(), t.erase_after()),
            (Duration::from_secs(3), Duration::from_secs(108))
        );
    }
}
