//! One answer of Redis, and for how long it may be given.
//!
//! Whether an entry is fresh, stale or dead is a function of the time now, the entry's own clock, the lifetimes in
//! force now, and who vouches for it. Nothing is decided when the entry is stored, so a lifetime changed at run time
//! holds at once for what is already cached. An entry's clock starts before its fetch is sent, so an entry is
//! never younger than what Redis said.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::time::Instant;

use super::coherence::Voucher;
use crate::units;

/// For how long entries may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// How old a value may be.
    pub ttl: Duration,
    /// How old the knowledge may be that a key does not exist.
    pub ttl_absent: AbsentTtl,
    /// For how long after it ceased to be fresh a value may still stand in when Redis cannot answer.
    pub stale_grace: Duration,
}

impl Lifetimes {
    fn of_absence(&self, voucher: Voucher) -> Duration {
        match (self.ttl_absent, voucher) {
            (AbsentTtl::Fixed(ttl), _) => ttl,
            (AbsentTtl::Auto, Voucher::Time) => Duration::ZERO,
            (AbsentTtl::Auto, Voucher::Redis | Voucher::Nobody { .. }) => self.ttl,
        }
    }
}

/// How old the knowledge may be that a key does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbsentTtl {
    /// As old as a value where Redis tells when the key comes to be; not kept where it does not.
    Auto,
    /// So old; zero: it is not kept.
    Fixed(Duration),
}

const AUTO: &str = "auto";

impl Serialize for AbsentTtl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Fixed(ttl) => units::duration::serialize(ttl, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for AbsentTtl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ttl = units::duration::or_word(AUTO, deserializer)?;
        Ok(ttl.map_or(Self::Auto, Self::Fixed))
    }
}

/// What an entry may be used for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// May be given, for `remaining` from now on.
    Fresh {
        /// How much longer.
        remaining: Duration,
    },
    /// May be given only when Redis cannot answer; fresh until `past` ago.
    Stale {
        /// How long ago it ceased to be fresh.
        past: Duration,
    },
    /// May not be given any more.
    Dead,
}

/// The bytes of a value with the digest that names them.
#[derive(Debug, Clone)]
pub struct Value {
    /// The value as Redis holds it.
    pub bytes: Bytes,
    /// Made when it is first asked for, since most values are never asked for theirs.
    digest: OnceLock<[u8; 16]>,
}

impl Value {
    /// The first 16 bytes of the BLAKE3 hash of the value: equal digests mean equal values. Takes time in proportion to
    /// the value when it is first asked for.
    pub fn digest(&self) -> &[u8; 16] {
        self.digest.get_or_init(|| {
            let mut digest = [0; 16];
            blake3::Hasher::new().update(&self.bytes).finalize_xof().fill(&mut digest);
            digest
        })
    }
}

/// What Redis answered for a key, and when it was asked.
#[derive(Debug)]
pub struct Entry {
    value: Option<Value>,
    fetched: Instant,
    /// When Redis itself lets the key expire.
    deadline: Option<Instant>,
}

impl Entry {
    /// An entry for what Redis answered (`None`: no such key) to a fetch begun at `fetched`; `expires_in` is the
    /// key's own time to live in Redis (`PTTL`).
    pub fn new(bytes: Option<Bytes>, fetched: Instant, expires_in: Option<Duration>) -> Self {
        let value = bytes.map(|bytes| Value { bytes, digest: OnceLock::new() });
        // A time to live too long for the clock is as good as none.
        let deadline = expires_in.and_then(|expires_in| fetched.checked_add(expires_in));
        Self { value, fetched, deadline }
    }

    /// The value, or `None` where Redis had no such key.
    pub fn value(&self) -> Option<&Value> {
        self.value.as_ref()
    }

    /// How long ago Redis was asked.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.fetched)
    }

    /// What the entry may be used for at `now`. The end of the key's own life in Redis is the end of the entry,
    /// stale or not. It is stale from when its time was over or nobody vouched for it any more, whichever was first.
    pub fn freshness(&self, now: Instant, lifetimes: Lifetimes, voucher: Voucher) -> Freshness {
        let until_deadline = self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        if until_deadline.is_zero() {
            return Freshness::Dead;
        }
        let (ttl, grace) = match self.value {
            Some(_) => (lifetimes.ttl, lifetimes.stale_grace),
            None => (lifetimes.of_absence(voucher), Duration::ZERO),
        };
        let age = self.age(now);
        let over = (age >= ttl).then(|| age.saturating_sub(ttl));
        let past = match voucher {
            Voucher::Nobody { since } => Some(since.max(over.unwrap_or_default())),
            Voucher::Time | Voucher::Redis => over,
        };
        match past {
            None => Freshness::Fresh { remaining: ttl.saturating_sub(age).min(until_deadline) },
            Some(past) if past < grace => Freshness::Stale { past },
            Some(_) => Freshness::Dead,
        }
    }

    /// Bytes of payload, without the structures that hold it.
    pub(super) fn size(&self) -> usize {
        self.value.as_ref().map_or(0, |value| value.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIMES: Lifetimes = Lifetimes {
        ttl: Duration::from_secs(10),
        ttl_absent: AbsentTtl::Fixed(Duration::from_secs(2)),
        stale_grace: Duration::from_secs(5),
    };

    fn after(entry: &Entry, milliseconds: u64) -> Freshness {
        entry.freshness(entry.fetched + Duration::from_millis(milliseconds), LIFETIMES, Voucher::Time)
    }

    fn value(expires_in: Option<Duration>) -> Entry {
        Entry::new(Some(Bytes::from_static(b"v")), Instant::now(), expires_in)
    }

    #[test]
    fn a_value_is_fresh_then_stale_then_dead() {
        let entry = value(None);
        assert_eq!(after(&entry, 0), Freshness::Fresh { remaining: Duration::from_secs(10) });
        assert_eq!(after(&entry, 9_999), Freshness::Fresh { remaining: Duration::from_millis(1) });
        assert_eq!(after(&entry, 10_000), Freshness::Stale { past: Duration::ZERO });
        assert_eq!(after(&entry, 14_999), Freshness::Stale { past: Duration::from_millis(4_999) });
        assert_eq!(after(&entry, 15_000), Freshness::Dead);
    }

    #[test]
    fn the_keys_own_expiry_ends_the_entry_and_its_grace() {
        let entry = value(Some(Duration::from_secs(3)));
        assert_eq!(after(&entry, 0), Freshness::Fresh { remaining: Duration::from_secs(3) });
        assert_eq!(after(&entry, 3_000), Freshness::Dead);
        let entry = value(Some(Duration::from_secs(12)));
        assert_eq!(after(&entry, 11_000), Freshness::Stale { past: Duration::from_secs(1) });
        assert_eq!(after(&entry, 12_000), Freshness::Dead);
        assert_eq!(after(&value(Some(Duration::ZERO)), 0), Freshness::Dead);
        assert!(matches!(after(&value(Some(Duration::MAX)), 0), Freshness::Fresh { .. }));
    }

    #[test]
    fn an_absent_key_has_its_own_ttl_and_no_grace() {
        let entry = Entry::new(None, Instant::now(), None);
        assert_eq!(after(&entry, 1_999), Freshness::Fresh { remaining: Duration::from_millis(1) });
        assert_eq!(after(&entry, 2_000), Freshness::Dead);
    }

    #[test]
    fn a_clock_that_steps_back_makes_nothing_younger_than_new() {
        let entry = value(None);
        let before = entry.fetched.checked_sub(Duration::from_secs(1)).unwrap();
        let freshness = entry.freshness(before, LIFETIMES, Voucher::Time);
        assert_eq!(freshness, Freshness::Fresh { remaining: Duration::from_secs(10) });
    }

    #[test]
    fn a_value_nobody_vouches_for_is_stale_from_then_on_or_from_the_end_of_its_time() {
        let entry = value(None);
        let seconds = Duration::from_secs;
        let freshness = |age, since| {
            let voucher = Voucher::Nobody { since: seconds(since) };
            entry.freshness(entry.fetched + seconds(age), LIFETIMES, voucher)
        };
        assert_eq!(freshness(1, 0), Freshness::Stale { past: Duration::ZERO });
        assert_eq!(freshness(6, 4), Freshness::Stale { past: seconds(4) });
        assert_eq!(freshness(6, 5), Freshness::Dead);
        assert_eq!(freshness(13, 1), Freshness::Stale { past: seconds(3) });
        assert_eq!(freshness(15, 1), Freshness::Dead);
        let vouched = entry.freshness(entry.fetched + seconds(1), LIFETIMES, Voucher::Redis);
        assert_eq!(vouched, Freshness::Fresh { remaining: seconds(9) });
    }

    #[test]
    fn where_redis_tells_absence_is_known_as_long_as_a_value_unless_told_otherwise() {
        let entry = Entry::new(None, Instant::now(), None);
        let auto = Lifetimes { ttl_absent: AbsentTtl::Auto, ..LIFETIMES };
        let at = entry.fetched + Duration::from_secs(3);
        let fresh = Freshness::Fresh { remaining: Duration::from_secs(7) };
        assert_eq!(entry.freshness(at, auto, Voucher::Redis), fresh);
        assert_eq!(entry.freshness(at, auto, Voucher::Time), Freshness::Dead);
        assert_eq!(entry.freshness(at, LIFETIMES, Voucher::Redis), Freshness::Dead);
        assert_eq!(entry.freshness(at, auto, Voucher::Nobody { since: Duration::ZERO }), Freshness::Dead);
    }
}
