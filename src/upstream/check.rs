//! The check of an answer from memory against Redis.
//!
//! A check fetches again, on the connection that pushes changes. Redis pushes a
//! change before it replies to a later fetch. Only the end of a key by its own time to live is
//! pushed behind the reply that finds it. So after a difference the check waits for a fence, and
//! then looks whether the answer is still kept. If it is, no push has come for a change that Redis
//! has made.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Backend, BackendError, FenceResult};
use crate::cache::{Cache, Entry, Fetched, FetchedReply, Guarantee, Life, Reply, ReplyRead};
use crate::key::Key;
use crate::protocol::{MemberOrder, ReplyFrame, is_equivalent};

/// The reply of Redis, compared with the answer from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// There is none, or it cannot be compared.
    None,
    /// Both are equal.
    Equal,
    /// They differ.
    Differs,
}

/// The observations of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observations {
    /// The reply.
    pub reply: Comparison,
    /// Whether every push was received: the lease was valid at the beginning and at the end, no
    /// connection was lost, nothing was flushed, and a fence was passed where one was needed.
    pub is_covered: bool,
    /// Whether the answer was still kept at the end.
    pub is_unchanged: bool,
    /// Whether the answer ends by its own time to live at this moment, or has ended.
    pub has_ended: bool,
}

/// A check, with its place for the log.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    pub(crate) observations: Observations,
    /// The state of the connection after a difference.
    pub(crate) details: Option<Details>,
}

/// The state of cache and connection after a difference.
#[derive(Debug, Clone)]
pub(crate) struct Details {
    pub(crate) guarantee: Guarantee,
    /// The time since the answer was requested from Redis.
    pub(crate) age: Duration,
    /// The time since the lease was renewed, or a fence was passed.
    pub(crate) lease_age: Duration,
    /// The time since the last invalidation of the key that is known, and its cause.
    pub(crate) last_invalidation: Option<(Duration, &'static str)>,
    /// The last events of the connection.
    pub(crate) events: String,
}

/// A kept reply, or one that follows from it, and the request that Redis gets for it.
pub(crate) struct CheckedReply<'a> {
    pub(crate) read: ReplyRead<'a>,
    pub(crate) frame: &'a ReplyFrame,
    /// The kept reply that the frame follows from.
    pub(crate) basis: &'a Reply,
    pub(crate) order: MemberOrder,
}

impl Check {
    /// The check of an answer for which no node can be asked.
    pub(super) fn impossible() -> Self {
        let observations = Observations {
            reply: Comparison::None,
            is_covered: false,
            is_unchanged: false,
            has_ended: false,
        };
        Self { observations, details: None }
    }
}

/// Checks an entry that was served.
pub(super) async fn check_entry<F>(
    cache: &Cache<BackendError>,
    backend: &Backend,
    entry: &Entry,
    fetch: impl FnOnce(Key) -> F,
) -> Check
where
    F: Future<Output = Fetched<BackendError>> + Send,
{
    let begun = Begun::new(cache, backend, entry.key());
    let is_unchanged = || cache.holds(entry);
    let reply = if begun.guarantee.is_tracked && is_unchanged() {
        compare_entry(entry, cache.fetch_for_check(entry.key(), fetch).await).await
    } else {
        Comparison::None
    };
    begun.finish(reply, is_unchanged, || cache.entry_life(entry)).await
}

/// Checks a reply that was served. `fetch` returns the reply of Redis.
pub(super) async fn check_reply<F>(
    cache: &Cache<BackendError>,
    backend: &Backend,
    checked: &CheckedReply<'_>,
    fetch: impl FnOnce() -> F,
) -> Check
where
    F: Future<Output = FetchedReply<BackendError>> + Send,
{
    let key = checked.read.keys.first().map_or(&[][..], Key::as_bytes);
    let begun = Begun::new(cache, backend, key);
    let is_unchanged = || cache.is_reply_current(checked.basis);
    let reply = if begun.guarantee.is_tracked && is_unchanged() {
        compare_reply(checked, cache.fetch_reply_for_check(checked.read, fetch).await).await
    } else {
        Comparison::None
    };
    begun.finish(reply, is_unchanged, || cache.reply_life(checked.basis)).await
}

/// A check in progress.
struct Begun<'a> {
    cache: &'a Cache<BackendError>,
    backend: &'a Backend,
    key: &'a [u8],
    guarantee: Guarantee,
}

impl<'a> Begun<'a> {
    fn new(cache: &'a Cache<BackendError>, backend: &'a Backend, key: &'a [u8]) -> Self {
        Self { cache, backend, key, guarantee: cache.guarantee() }
    }

    /// Waits for a fence after a difference, and returns what is known then.
    ///
    /// The answer is looked for before the generation and the lease are read. Otherwise a
    /// connection that is lost in between would be seen as unchanged.
    async fn finish(
        self,
        reply: Comparison,
        is_unchanged: impl Fn() -> bool,
        life: impl Fn() -> Life,
    ) -> Check {
        let is_fenced = match reply {
            Comparison::Differs => {
                matches!(self.backend.fence(Instant::now()).await, Ok(FenceResult::Current))
            }
            Comparison::Equal | Comparison::None => true,
        };
        let is_unchanged = is_unchanged();
        let (now, life) = (self.cache.guarantee(), life());
        let observations = Observations {
            reply,
            is_covered: is_fenced && now.covers(self.guarantee),
            is_unchanged,
            has_ended: life.has_ended,
        };
        let details = (reply == Comparison::Differs).then(|| self.details(now, life.age));
        Check { observations, details }
    }

    fn details(&self, guarantee: Guarantee, age: Duration) -> Details {
        let last = self.cache.last_invalidation(self.key);
        Details {
            guarantee,
            age,
            lease_age: self.backend.lease_age(),
            last_invalidation: last.map(|(since, cause)| (since, cause.name())),
            events: self.backend.recent_events(),
        }
    }
}

/// The size in bytes from which values are compared on a thread that may block.
const INLINE_MAX: usize = 1 << 20;

async fn compare_entry(served: &Entry, fetched: Option<Result<Entry, BackendError>>) -> Comparison {
    let fetched = match fetched {
        Some(Ok(fetched)) => fetched,
        // The value that was served had the right type and size.
        Some(Err(BackendError::WrongType | BackendError::TooLarge)) => return Comparison::Differs,
        Some(Err(_)) | None => return Comparison::None,
    };
    if served.size() <= INLINE_MAX || served.size() != fetched.size() {
        return compared(is_same_value(served, &fetched));
    }
    let served = served.clone();
    let equal = tokio::task::spawn_blocking(move || is_same_value(&served, &fetched)).await;
    equal.map_or(Comparison::None, compared)
}

fn is_same_value(one: &Entry, other: &Entry) -> bool {
    one.value().map(|value| value.bytes) == other.value().map(|value| value.bytes)
}

fn compared(is_equal: bool) -> Comparison {
    if is_equal { Comparison::Equal } else { Comparison::Differs }
}

async fn compare_reply(
    checked: &CheckedReply<'_>,
    fetched: Option<FetchedReply<BackendError>>,
) -> Comparison {
    let Some(FetchedReply::Keepable(frame, _) | FetchedReply::Unkeepable(frame)) = fetched else {
        return Comparison::None;
    };
    let (served, fetched) = (checked.frame.bytes(), frame.bytes());
    if served == fetched {
        return Comparison::Equal;
    }
    // Members in another order are compared as sorted ones, which takes long for many.
    let (served, fetched, order) = (served.clone(), fetched.clone(), checked.order);
    let equal = tokio::task::spawn_blocking(move || is_equivalent(&served, &fetched, order)).await;
    equal.ok().flatten().map_or(Comparison::None, compared)
}
