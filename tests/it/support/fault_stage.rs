//! A proxy with both front ends behind a connection that can fail, and the view of its clients.

use std::time::{Duration, Instant};

use crate::support::resp_client::{RespClient, show, words};
use crate::support::resp_pair::resp_config;
use crate::support::serving::{await_ready, read, relay_url, text};
use crate::support::{Proxy, RedisServer, Relay, within};

/// The log message of an outage.
pub(crate) const DOWN: &str = "no connection to Redis";
/// The longest time for a reply that waits for nothing, on a machine that is busy with other tests.
pub(crate) const PROMPT: Duration = Duration::from_secs(5);
/// Timeouts that pass within a test.
pub(crate) const QUICK: &str = "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"\n\
    cache.coherence_timeout = \"400ms\"\nredis.ping_interval = \"100ms\"\n\
    redis.response_timeout = \"800ms\"";
/// Timeouts far above [`PROMPT`], so that a prompt reply has waited for none of them.
pub(crate) const UNHURRIED: &str = "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"\n\
    redis.response_timeout = \"20s\"\nredis.connect_timeout = \"20s\"";

pub(crate) struct FaultStage {
    pub(crate) proxy: Proxy,
    pub(crate) relay: Relay,
    pub(crate) redis: RedisServer,
}

impl FaultStage {
    /// Starts a proxy where `hot` has been read over both front ends and `cold` has not.
    pub(crate) fn start(settings: &str) -> Self {
        Self::before(RedisServer::start(), settings)
    }

    /// Starts a proxy in front of this Redis.
    pub(crate) fn before(redis: RedisServer, settings: &str) -> Self {
        let relay = Relay::to_socket(redis.socket());
        let url = relay_url(&relay);
        Self::at(&url, relay, redis, settings)
    }

    /// Starts a proxy without the relay, because the relay accepts connections while Redis is down.
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

    pub(crate) fn connect(&self) -> RespClient {
        RespClient::connect(self.proxy.resp_address())
    }

    /// Reads over HTTP. Returns the status with the body of a value, and the time the read took.
    pub(crate) fn over_http(&self, key: &str) -> (String, Duration) {
        let begun = Instant::now();
        let response = read(&self.proxy, key);
        let body =
            if response.status == 200 { format!(" {}", text(&response)) } else { String::new() };
        (format!("{}{body}", response.status), begun.elapsed())
    }

    /// Sends a command on a new RESP connection. Returns the reply and the time it took.
    pub(crate) fn as_client(&self, line: &str) -> (String, Duration) {
        query(&mut self.connect(), line)
    }

    /// Asserts that a new RESP client can write and both front ends read the write, without help.
    /// Returns the time until then.
    #[track_caller]
    pub(crate) fn assert_well(&self) -> Duration {
        let begun = Instant::now();
        let well = within(2 * PROMPT, || {
            let written = self.as_client("SET well yes").0 == "+OK\\r\\n";
            let read = || {
                self.over_http("well").0 == "200 yes"
                    && self.as_client("GET well").0 == "$3\\r\\nyes\\r\\n"
            };
            (written && read()).then_some(())
        });
        let received = || (self.as_client("SET well yes"), self.over_http("well"));
        assert!(well.is_some(), "not well after {:?}: {:?}", begun.elapsed(), received());
        begun.elapsed()
    }
}

/// Sends a command. Returns the reply, or the kind of the error, and the time it took.
pub(crate) fn query(wire: &mut RespClient, line: &str) -> (String, Duration) {
    let begun = Instant::now();
    wire.send(words(line));
    let received = wire
        .try_answer()
        .map_or_else(|error| format!("{:?}", error.kind()), |answer| show(&answer));
    (received, begun.elapsed())
}

/// The RESP reply with `value`.
pub(crate) const VALUE: &str = "$5\\r\\nvalue\\r\\n";
/// The beginning of the RESP error while Redis is unavailable.
pub(crate) const NO_REDIS: &str = "-LOADING redis-proxy: upstream unavailable: ";

/// Asserts that a reply begins like this and took at most [`PROMPT`].
#[track_caller]
pub(crate) fn assert_prompt(answer: &(String, Duration), expected: &str) {
    assert!(
        answer.0.starts_with(expected) && answer.1 < PROMPT,
        "expected {expected} within {PROMPT:?}: {answer:?}"
    );
}
