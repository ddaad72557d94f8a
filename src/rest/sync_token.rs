//! `upstash-sync-token`: the writes that a client has seen, as a text that it hands back.
//!
//! Model: a token names an instance (one process of the proxy) and a time by its clock, and is
//! authenticated. The time is that of the last reply that may reflect a write. A request with the
//! token is answered from memory only when a fence of every primary began later. A token that this
//! instance did not make, or one of a time to come, covers everything until now.
//!
//! The time names the connection, too. Each connection to Redis begins with an empty cache and
//! counts as a fence (invariant C2), so memory behind a later connection covers the time of a token
//! from before it.
//!
//! Some clients send a token that is not the last one. So a request with the header also sees the
//! writes of the requests before it on its HTTP connection.
//!
//! The rule that must not be broken: the token of a response is never older than that of its
//! request. A client keeps only the last one.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake3::Hash;
use http::HeaderName;
use tokio::time::{Duration, Instant};

use crate::sync::lock;

/// The name of the header.
pub(super) const NAME: &str = "upstash-sync-token";
pub(super) static HEADER: HeaderName = HeaderName::from_static(NAME);

/// No token is longer than this, in bytes.
const LONGEST: usize = 80;

/// The maker of tokens. Its key and its clock are those of one process.
pub(super) struct SyncTokens {
    key: [u8; 32],
    /// The number of the instance, with which each token begins. It is no secret.
    instance: String,
    start: Instant,
    /// The token of no writes, which is that of most responses.
    of_nothing: String,
}

/// The writes that a client has seen before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Seen {
    /// None.
    #[default]
    Nothing,
    /// Those until this time.
    Until(Instant),
}

impl Seen {
    /// Returns the time until which writes were seen.
    pub(super) fn time(self) -> Option<Instant> {
        match self {
            Self::Nothing => None,
            Self::Until(at) => Some(at),
        }
    }
}

impl SyncTokens {
    /// A maker of tokens with this key and a clock that begins at `start`.
    pub(super) fn new(key: [u8; 32], start: Instant) -> Self {
        let [first, second, third, fourth, ..] = *blake3::hash(&key).as_bytes();
        let number = u32::from_be_bytes([first, second, third, fourth]);
        let instance = format!("{number:08x}.");
        let mut own = Self { key, instance, start, of_nothing: String::new() };
        own.of_nothing = own.encode(Duration::ZERO);
        own
    }

    /// Returns the writes that a request at `now` has to see: those that its token names, and those
    /// of its connection. `None` as its token: it has no such header and has to see none.
    pub(super) fn read(
        &self,
        token: Option<&[u8]>,
        now: Instant,
        connection: &ConnectionWrites,
    ) -> Seen {
        // The header of a client that has no token yet is empty.
        token.map_or(Seen::Nothing, |token| self.named(token, now).max(connection.seen()))
    }

    /// Returns the writes that a token names at `now`.
    fn named(&self, token: &[u8], now: Instant) -> Seen {
        let micros = if token.is_empty() { Some(0) } else { self.parse(token) };
        if micros == Some(0) {
            return Seen::Nothing;
        }
        let at = micros.and_then(|micros| self.start.checked_add(Duration::from_micros(micros)));
        Seen::Until(at.filter(|at| *at <= now).unwrap_or(now))
    }

    /// Returns the time of an own token, in microseconds of the clock.
    fn parse(&self, token: &[u8]) -> Option<u64> {
        let (named, code) = std::str::from_utf8(token).ok()?.rsplit_once('.')?;
        let mut shown = [0; blake3::OUT_LEN];
        let length = URL_SAFE_NO_PAD.decode_slice(code, &mut shown).ok()?;
        let is_own = length == shown.len() && self.code(named) == Hash::from_bytes(shown);
        let (_, micros) = named.split_once('.').filter(|_| is_own)?;
        micros.parse().ok()
    }

    /// Returns the token for the response to a request that had `seen` writes before, and then a
    /// reply at `last_write` that may reflect another.
    pub(super) fn write(&self, seen: Seen, last_write: Option<Instant>) -> String {
        match seen.time().max(last_write) {
            Some(at) => self.encode(at.saturating_duration_since(self.start)),
            None => self.of_nothing.clone(),
        }
    }

    /// Returns the token of a time of the clock.
    fn encode(&self, since: Duration) -> String {
        // Rounded up: an earlier time would not cover the write.
        let micros = since.as_secs() * 1_000_000 + u64::from(since.subsec_nanos().div_ceil(1000));
        // A formatter would cost more than the code.
        let mut token = String::with_capacity(LONGEST);
        token.push_str(&self.instance);
        token.push_str(itoa::Buffer::new().format(micros));
        let code = self.code(&token);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(code.as_bytes(), &mut token);
        token
    }

    /// The authentication code. Two of them are compared in constant time.
    fn code(&self, named: &str) -> Hash {
        blake3::keyed_hash(&self.key, named.as_bytes())
    }
}

/// The writes of the requests of one connection. Clones share them.
///
/// A client that sends the token of an earlier response than the last one would otherwise miss the
/// write that it sent last.
#[derive(Clone, Default)]
pub(super) struct ConnectionWrites(Arc<Mutex<Option<Instant>>>);

impl ConnectionWrites {
    /// A request has ended. Its last reply that may reflect a write came at `last_write`.
    pub(super) fn record(&self, last_write: Option<Instant>) {
        if last_write.is_some() {
            let mut latest = lock(&self.0);
            *latest = latest.max(last_write);
        }
    }

    fn seen(&self) -> Seen {
        lock(&self.0).map_or(Seen::Nothing, Seen::Until)
    }
}

/// The part of a request that decides about its token, as far as the request has come. It outlives
/// a run that is cancelled.
#[derive(Default)]
pub(super) struct Progress(Mutex<State>);

#[derive(Default, Clone, Copy)]
struct State {
    /// `None` before the request is authenticated.
    seen: Option<Seen>,
    /// Whether commands were sent and a reply to them is missing.
    is_running: bool,
    last_write: Option<Instant>,
}

impl Progress {
    /// The progress of a request that is authenticated. Its client has seen these writes.
    pub(super) fn begun(seen: Seen) -> Self {
        let progress = Self::default();
        progress.begin(seen);
        progress
    }

    /// The request is authenticated. Its client has seen these writes.
    pub(super) fn begin(&self, seen: Seen) {
        lock(&self.0).seen = Some(seen);
    }

    /// Commands were sent.
    pub(super) fn sent(&self) {
        lock(&self.0).is_running = true;
    }

    /// Every reply has come. The last one that may reflect a write came at `last_write`.
    pub(super) fn finished(&self, last_write: Option<Instant>) {
        let mut state = lock(&self.0);
        state.is_running = false;
        state.last_write = state.last_write.max(last_write);
    }

    /// Returns the time at which the request may have written for the last time, as far as is known
    /// at `now`.
    pub(super) fn last_write(&self, now: Instant) -> Option<Instant> {
        let State { is_running, last_write, .. } = *lock(&self.0);
        // A command without a reply may have written something until now.
        if is_running { Some(now) } else { last_write }
    }

    /// Returns the token for the response at `now`. `None` if the request is not authenticated.
    pub(super) fn token(&self, tokens: &SyncTokens, now: Instant) -> Option<String> {
        let seen = lock(&self.0).seen;
        seen.map(|seen| tokens.write(seen, self.last_write(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The writes that a token names, on a connection without any.
    fn read(tokens: &SyncTokens, token: Option<&str>, now: Instant) -> Seen {
        tokens.read(token.map(str::as_bytes), now, &ConnectionWrites::default())
    }

    #[test]
    fn token_is_never_older_than_what_was_seen() {
        let start = Instant::now();
        let tokens = SyncTokens::new([7; 32], start);
        let at = |micros| start + Duration::from_micros(micros);
        let named = |token: &str| read(&tokens, Some(token), at(1_000_000));
        assert_eq!(read(&tokens, None, at(5)), Seen::Nothing);
        assert_eq!(read(&tokens, Some(""), at(5)), Seen::Nothing);
        assert_eq!(named(&tokens.write(Seen::Nothing, None)), Seen::Nothing);
        for (seen, last_write, expected) in [
            (Seen::Nothing, Some(at(7)), at(7)),
            (Seen::Until(at(9)), None, at(9)),
            (Seen::Until(at(9)), Some(at(7)), at(9)),
            (Seen::Until(at(9)), Some(at(11)), at(11)),
            (Seen::Nothing, Some(at(7) + Duration::from_nanos(1)), at(8)),
        ] {
            let token = tokens.write(seen, last_write);
            assert_eq!(named(&token), Seen::Until(expected), "{seen:?}");
            assert_eq!(tokens.write(named(&token), None), token, "it changes on its way");
        }
    }

    #[test]
    fn foreign_token_covers_everything_until_now() {
        let start = Instant::now();
        let now = start + Duration::from_secs(1);
        let (own, other) = (SyncTokens::new([7; 32], start), SyncTokens::new([8; 32], start));
        let early = Some(start + Duration::from_millis(1));
        let late = Some(start + Duration::from_secs(9));
        let good = own.write(Seen::Nothing, early);
        let (named, code) = good.rsplit_once('.').unwrap();
        for token in [
            other.write(Seen::Nothing, early),
            other.write(Seen::Nothing, None),
            own.write(Seen::Nothing, late),
            format!("{}.{code}", named.replace(".1000", ".0")),
            format!("{named}.{}", &code[1..]),
            format!("{named}.{}", "0".repeat(code.len())),
            format!("{named}."),
            format!(" {good}"),
            "x".to_owned(),
            "..".to_owned(),
            "\u{e9}.a".to_owned(),
            "99999999999999999999999.a".to_owned(),
        ] {
            assert_eq!(read(&own, Some(&token), now), Seen::Until(now), "{token}");
        }
        assert_ne!(read(&own, Some(&good), now), Seen::Until(now));
    }

    #[test]
    fn older_token_sees_writes_of_connection() {
        let start = Instant::now();
        let (own, other) = (SyncTokens::new([7; 32], start), SyncTokens::new([8; 32], start));
        let at = |millis| start + Duration::from_millis(millis);
        let token = |tokens: &SyncTokens, last_write| tokens.write(Seen::Nothing, last_write);
        let (none, older, newer) =
            (token(&own, None), token(&own, Some(at(2))), token(&own, Some(at(5))));
        let (connection, now) = (ConnectionWrites::default(), at(9));
        let sees = |token: Option<&str>| own.read(token.map(str::as_bytes), now, &connection);
        connection.record(None);
        assert_eq!([sees(Some("")), sees(Some(&none))], [Seen::Nothing; 2]);
        assert_eq!(sees(Some(&older)), Seen::Until(at(2)));
        for last_write in [Some(at(3)), None, Some(at(1))] {
            connection.clone().record(last_write);
            for (token, expected) in [
                (None, Seen::Nothing),
                (Some(""), Seen::Until(at(3))),
                (Some(&*none), Seen::Until(at(3))),
                (Some(&older), Seen::Until(at(3))),
                (Some(&newer), Seen::Until(at(5))),
                (Some(&token(&other, None)), Seen::Until(now)),
            ] {
                assert_eq!(sees(token), expected, "{token:?} {last_write:?}");
            }
        }
    }

    #[test]
    fn request_that_was_cut_short_may_have_written_until_now() {
        let start = Instant::now();
        let tokens = SyncTokens::new([7; 32], start);
        let (seen, now) =
            (Seen::Until(start + Duration::from_secs(1)), start + Duration::from_secs(5));
        let progress = Progress::default();
        assert_eq!(progress.token(&tokens, now), None, "it is not authenticated");
        progress.begin(seen);
        let token = |expected| Some(tokens.write(expected, None));
        assert_eq!(progress.token(&tokens, now), token(seen));
        progress.sent();
        assert_eq!(progress.token(&tokens, now), token(Seen::Until(now)));
        assert_eq!(progress.last_write(now), Some(now));
        progress.finished(None);
        assert_eq!(progress.last_write(now), None, "a read alone");
        assert_eq!(progress.token(&tokens, now), token(seen));
        progress.sent();
        let written = start + Duration::from_secs(3);
        progress.finished(Some(written));
        progress.finished(None);
        assert_eq!(progress.token(&tokens, now), token(Seen::Until(written)));
    }
}
