//! Verification: some answers from memory are compared with Redis, all the time.
//!
//! Model: of the answers from memory a part is sampled at random. A sample goes to one task through
//! a queue of a few places. The task fetches again, compares ([`crate::upstream`]), and decides by
//! a pure function. What does not fit into the queue, or is above the rate, is not compared and not
//! counted.
//!
//! The rule that must not be broken: no false alarm. An answer counts as stale only if Redis has
//! another value, no push has removed the answer, and nothing else explains the difference. In
//! doubt the result is `unknown`.

mod settings;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

pub use self::settings::{OnStale, Settings};
use self::verdict::verdict;
use crate::backend::ReplyRequest;
use crate::cache::{Entry, Reply};
use crate::key::Key;
use crate::metrics::{Metrics, Verified};
use crate::protocol::{MemberOrder, ReplyFrame, Shape};
use crate::upstream::{Check, Details, Upstream};

/// The samples that wait. Few, because a sample is of use only while its answer is kept.
const QUEUE: usize = 8;
/// The chance of an answer that is always sampled.
const ALWAYS: f64 = 4_294_967_296.0;
/// The digits of the hash of a key in the log.
const HASH_DIGITS: usize = 16;

/// Samples answers from memory. Clones share the settings and the queue.
#[derive(Clone)]
pub struct Verifier(Arc<Shared>);

struct Shared {
    /// The chance of an answer, in parts of 2^32.
    chance: AtomicU64,
    max_rate: AtomicUsize,
    /// Whether a stale answer drops everything.
    drops: AtomicBool,
    samples: mpsc::Sender<Sample>,
}

/// The samples that wait for their check.
pub struct Samples(mpsc::Receiver<Sample>);

struct Sample {
    at: Instant,
    answer: Answer,
}

enum Answer {
    Entry(Entry),
    Reply(Box<ReplySample>),
}

/// A reply from memory that is to be compared.
#[derive(Debug)]
pub struct ReplySample {
    /// The request of Redis.
    pub request: ReplyRequest,
    /// The difference of its RESP2 form.
    pub shape: Shape,
    /// The reply from memory.
    pub frame: ReplyFrame,
    /// The kept reply that it follows from.
    pub basis: Arc<Reply>,
    /// The meaning of the order of its members.
    pub order: MemberOrder,
}

impl Verifier {
    /// Creates a verifier, and the samples that [`run`](Self::run) checks.
    pub fn new(settings: &Settings) -> (Self, Samples) {
        let (samples, waiting) = mpsc::channel(QUEUE);
        let (chance, max_rate, drops) = Default::default();
        let verifier = Self(Arc::new(Shared { chance, max_rate, drops, samples }));
        verifier.apply(settings);
        (verifier, Samples(waiting))
    }

    /// Applies settings.
    pub fn apply(&self, settings: &Settings) {
        let Settings { sample, max_rate, on_stale } = settings;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a ratio is from 0 to 1"
        )]
        let chance = (sample.0 * ALWAYS).ceil() as u64;
        self.0.chance.store(chance, Relaxed);
        self.0.max_rate.store(*max_rate, Relaxed);
        self.0.drops.store(*on_stale == OnStale::Drop, Relaxed);
    }

    /// Returns the part of the answers that is sampled, from 0 to 1.
    pub fn sample(&self) -> f64 {
        // At most 2^32, which a float holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "it is exact")]
        let chance = self.0.chance.load(Relaxed) as f64;
        chance / ALWAYS
    }

    /// Whether an answer is to be compared.
    #[inline]
    pub fn is_sampled(&self) -> bool {
        let chance = self.0.chance.load(Relaxed);
        chance > 0 && is_drawn(chance)
    }

    /// Samples an entry that was served at `at`.
    #[cold]
    pub fn add_entry(&self, entry: &Entry, at: Instant) {
        self.add(Sample { at, answer: Answer::Entry(entry.clone()) });
    }

    /// Samples a reply that was served at `at`.
    #[cold]
    pub fn add_reply(&self, sample: ReplySample, at: Instant) {
        self.add(Sample { at, answer: Answer::Reply(Box::new(sample)) });
    }

    fn add(&self, sample: Sample) {
        // Without room the answer is not compared.
        _ = self.0.samples.try_send(sample);
    }

    /// Checks the samples, at most at the rate in force. Never returns.
    pub async fn run(self, mut samples: Samples, upstream: Upstream, metrics: Arc<Metrics>) {
        let mut next = Instant::now();
        while let Some(sample) = samples.0.recv().await {
            let check = sample.check(&upstream).await;
            let verified = verdict(check.observations);
            if verified == Verified::Stale {
                self.on_stale(&sample, check.details.as_ref(), &upstream);
            }
            // A count that is seen means that its reaction is over.
            metrics.record_verified(verified);
            let max_rate = u32::try_from(self.0.max_rate.load(Relaxed)).unwrap_or(u32::MAX);
            next = Instant::now().max(next + Duration::from_secs(1) / max_rate.max(1));
            sleep_until(next).await;
        }
        // This verifier has a sender, so the samples do not end.
        std::future::pending::<()>().await;
    }

    fn on_stale(&self, sample: &Sample, details: Option<&Details>, upstream: &Upstream) {
        if self.0.drops.load(Relaxed) {
            upstream.invalidate_all();
            sample.log(details, "everything dropped");
        } else {
            sample.keys().for_each(|key| upstream.invalidate(key));
            sample.log(details, "key dropped");
        }
    }
}

/// Draws whether an answer is sampled.
#[cold]
fn is_drawn(chance: u64) -> bool {
    u64::from(rand::random::<u32>()) < chance
}

impl Sample {
    async fn check(&self, upstream: &Upstream) -> Check {
        match &self.answer {
            Answer::Entry(entry) => upstream.check_entry(entry).await,
            Answer::Reply(sample) => {
                let ReplySample { request, shape, frame, basis, order } = &**sample;
                upstream.check_reply(request, *shape, frame, basis, *order).await
            }
        }
    }

    /// Returns the keys that the answer depends on.
    fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let (entry, reply) = match &self.answer {
            Answer::Entry(entry) => (Some(entry.key()), &[][..]),
            Answer::Reply(sample) => (None, &*sample.request.keys),
        };
        entry.into_iter().chain(reply.iter().map(Key::as_bytes))
    }

    /// Logs a stale answer. The line has no key and no value.
    fn log(&self, details: Option<&Details>, action: &'static str) {
        let hashes: Vec<_> = self.keys().map(hash).collect();
        let kind = match &self.answer {
            Answer::Entry(_) => "value",
            Answer::Reply(_) => "reply",
        };
        let of = |text: fn(&Details) -> String| details.map(text);
        tracing::error!(
            kind,
            key_hash = hashes.join(" "),
            age = of(|details| format!("{:?}", details.age)),
            served_ago = ?self.at.elapsed(),
            lease_age = of(|details| format!("{:?}", details.lease_age)),
            lease_remaining = of(|details| format!("{:?}", details.guarantee.lease_remaining)),
            generation = details.map(|details| details.guarantee.generation),
            last_invalidation = of(last_invalidation),
            connection = of(|details| details.events.clone()),
            action,
            "stale answer from memory: Redis has another value and has pushed no change"
        );
    }
}

fn last_invalidation(details: &Details) -> String {
    details
        .last_invalidation
        .map_or_else(|| "unknown".to_owned(), |(since, cause)| format!("{cause} {since:?} ago"))
}

/// Returns the beginning of the hash of a key, in hexadecimal digits.
fn hash(key: &[u8]) -> String {
    blake3::hash(key).to_hex()[..HASH_DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Ratio;

    fn sampled(verifier: &Verifier) -> usize {
        (0..10_000).filter(|_| verifier.is_sampled()).count()
    }

    #[test]
    fn part_of_the_answers_is_sampled() {
        let with = |sample| Settings { sample: Ratio(sample), ..Settings::default() };
        let (verifier, _samples) = Verifier::new(&Settings::default());
        assert_eq!((sampled(&verifier), verifier.sample().to_string()), (0, "0".to_owned()));
        verifier.apply(&with(1.0));
        assert_eq!((sampled(&verifier), verifier.sample().to_string()), (10_000, "1".to_owned()));
        verifier.apply(&with(0.1));
        // Ten standard deviations around the mean.
        assert!((700..1300).contains(&sampled(&verifier)));
        verifier.apply(&with(0.0));
        assert_eq!(sampled(&verifier), 0);
    }

    #[test]
    fn tiny_ratio_samples_something() {
        let settings = Settings { sample: Ratio(1e-12), ..Settings::default() };
        assert!(Verifier::new(&settings).0.sample() > 0.0);
    }
}
