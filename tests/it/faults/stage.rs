//! A proxy with both front ends, whose Redis is behind a line that can fail, and what clients of both see.

use std::time::{Duration, Instant};

use super::DOWN;
use crate::resp::ways::resp_config;
use crate::resp::wire::{Wire, show, words};
use crate::stage::{await_ready, read, relay_url, text};
use crate::support::{Proxy, RedisServer, Relay, within};

/// What an answer may take that nothing holds up, on a machine that does other things too.
pub(crate) const AT_ONCE: Duration = Duration::from_millis(500);
/// So soon after a fault is over both front ends answer again.
pub(crate) const WELL: Duration = Duration::from_secs(1);
/// Waits short enough for a test, in the order in which they have to be.
pub(crate) const QUICK: &str = "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"\ncache.coherence_timeout = \"400ms\"\n\
                                redis.ping_interval = \"100ms\"\nredis.response_timeout = \"800ms\"";

pub(crate) struct Stage {
    pub(crate) proxy: Proxy,
    pub(crate) relay: Relay,
    pub(crate) redis: RedisServer,
}

impl Stage {
    /// Where `hot` has been read over both front ends and `cold` has not.
    pub(crate) fn start(settings: &str) -> Self {
        Self::before(RedisServer::start(), settings)
    }

    pub(crate) fn before(redis: RedisServer, settings: &str) -> Self {
        let relay = Relay::to_socket(redis.socket());
        let url = relay_url(&relay);
        Self::at(&url, relay, redis, settings)
    }

    /// Where the line is not between the two, since it takes connections when Redis does not.
    pub(crate) fn straight(settings: &str) -> Self {
        let redis = RedisServer::start();
        Self::at(&redis.url(), Relay::to_socket(redis.socket()), redis, settings)
    }

    fn at(url: &str, relay: Relay, redis: RedisServer, settings: &str) -> Self {
        let proxy = Proxy::start(&resp_config(url, settings));
        proxy.expect_log(DOWN);
        await_ready(&proxy);
        redis.command(&["MSET", "hot", "value", "cold", "value"]);
        let stage = Self { proxy, relay, redis };
        assert_eq!(stage.over_http("hot").0, "200 value");
        assert_eq!(stage.as_client("GET hot").0, VALUE);
        stage
    }

    pub(crate) fn connect(&self) -> Wire {
        Wire::connect(self.proxy.resp_address())
    }

    /// A read over HTTP: its status and its body, and how long it took.
    pub(crate) fn over_http(&self, key: &str) -> (String, Duration) {
        let begun = Instant::now();
        let response = read(&self.proxy, key);
        let body =
            if response.status == 200 { format!(" {}", text(&response)) } else { String::new() };
        (format!("{}{body}", response.status), begun.elapsed())
    }

    /// What a new client of Redis is told, and how long it took.
    pub(crate) fn as_client(&self, line: &str) -> (String, Duration) {
        ask(&mut self.connect(), line)
    }

    /// Sees that a write by a new client of Redis is read over both front ends within a second, with nobody's help. Returns
    /// how long it took.
    #[track_caller]
    pub(crate) fn assert_well(&self) -> Duration {
        let begun = Instant::now();
        let well = within(Duration::from_secs(10), || {
            let written = self.as_client("SET well yes").0 == "+OK\\r\\n";
            let read = || {
                self.over_http("well").0 == "200 yes"
                    && self.as_client("GET well").0 == "$3\\r\\nyes\\r\\n"
            };
            (written && read()).then_some(())
        });
        let took = begun.elapsed();
        let told = || (self.as_client("SET well yes"), self.over_http("well"));
        assert!(well.is_some() && took < WELL, "well again after {took:?}: {:?}", told());
        took
    }
}

/// An answer as it is told, and how long it took.
pub(crate) fn ask(wire: &mut Wire, line: &str) -> (String, Duration) {
    let begun = Instant::now();
    wire.send(words(line));
    let told = wire
        .try_answer()
        .map_or_else(|error| format!("{:?}", error.kind()), |answer| show(&answer));
    (told, begun.elapsed())
}

/// `value`, as a client of Redis is told it.
pub(crate) const VALUE: &str = "$5\\r\\nvalue\\r\\n";
/// What a client of Redis is told of a Redis that cannot be asked.
pub(crate) const NO_REDIS: &str = "-LOADING redis-proxy: upstream unavailable: ";

/// Sees that an answer begins like this and came at once.
#[track_caller]
pub(crate) fn assert_at_once(answer: &(String, Duration), expected: &str) {
    assert!(
        answer.0.starts_with(expected) && answer.1 < AT_ONCE,
        "expected {expected} at once: {answer:?}"
    );
}
