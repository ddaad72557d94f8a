//! The cache, as far as decisions need it.

use tokio::time::Instant;

use crate::cache::{Answer, Entry, Hit, KeptReply, LookupTime, LookupUse, RuleId, RuleMode};
use crate::verify::ReplySample;

/// The part of the cache that a decision needs.
pub trait Memory {
    /// The fresh entry of a key.
    fn lookup(&self, key: &[u8], now: LookupTime, purpose: LookupUse) -> Option<Answer>;
    /// The fresh entries of several keys, in their order, until `each` returns false.
    fn lookup_each<'a>(
        &self,
        keys: &[&'a [u8]],
        now: LookupTime,
        each: impl FnMut(&'a [u8], Option<Hit>) -> bool,
    );
    /// The kept reply to a command. `key` is the first of its keys.
    fn lookup_reply(
        &self,
        command: &[u8],
        key: &[u8],
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply>;
    /// The rule and the mode for a read of these keys; `None` without rules.
    fn rule_of<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Option<(RuleId, RuleMode)>;
    /// The most fields or members of a kept hash or set from which other replies are derived.
    fn max_hash_fields(&self) -> usize;
    /// The kept reply to `command`, which reads the whole of `key`, if the command with the index
    /// `derived` may be answered from it.
    fn lookup_whole(
        &self,
        command: &[u8],
        key: &[u8],
        derived: usize,
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply>;
    /// Whether replies are fetched to be kept.
    /// Not those to a command that may write, if no push would report its write.
    fn may_fetch_replies(&self, may_write: bool) -> bool;
    /// Counts a read of a key among the hot keys, and samples the answer to be verified.
    fn count_hit(&self, key: &[u8], entry: &Entry, now: Instant);
    /// Whether a reply from memory is to be verified.
    fn is_sampled(&self) -> bool;
    /// Samples a reply from memory to be verified.
    fn verify_reply(&self, sample: ReplySample, now: Instant);
    /// Whether a fetch can succeed: not if Redis rejects the proxy's login.
    fn may_fetch(&self) -> bool;
}
