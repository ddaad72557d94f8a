//! The adversary that causes faults.
//!
//! Model: the seed shuffles a deck of all faults, which is dealt out, and then again. Each fault
//! begins, lasts a while, is repaired, and ends when the proxy is ready. Then there is a pause.
//! Every second fault comes while a reload has set a `cache.stale_if_error`.
//!
//! The rule: the conditions record a fault before it begins, and its end only after it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use redis::{Value, cmd};

use super::collections::{COLLECTIONS, CollectionRead};
use super::conditions::BOUND_IN_TROUBLE;
use super::report::Recovery;
use super::simulation::{KEYS, Simulation};
use crate::support::http::{Client, Response, key_path};
use crate::support::resp_client::{RespClient, command};
use crate::support::serving::{readyz, request};
use crate::support::{Proxy, RedisServer, Relay, Reload, within};

/// The longest time after a fault until the proxy is ready.
const READY: Duration = Duration::from_secs(3);
/// The time in which delayed data has passed the relay.
const SETTLED: Duration = Duration::from_millis(250);
/// The number of times that a key may change while it is compared.
const LOOKS: usize = 50;
const CAPACITIES: [u32; 4] = [30, 120, 250, 1000];
/// Capacities that hold every key and the ballast.
const LARGE_CAPACITIES: [u32; 3] = [4000, 5000, 8000];
const FILLERS: usize = 30;
/// The number of keys for each filler.
const BALLAST: usize = 100;
/// The number of keys that Redis tracks.
const TRACKING_TABLE: &str = "1000000";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    LinkKilled,
    RedisStopped,
    RedisStoppedLong,
    RedisPaused,
    Restart,
    RestartEmpty,
    CutOnce,
    Cut,
    Stall,
    HalfOpen,
    Delay,
    Trickle,
    Resize,
    TinyTrackingTable,
}

pub(super) const ALL: [Fault; 14] = [
    Fault::LinkKilled,
    Fault::RedisStopped,
    Fault::RedisStoppedLong,
    Fault::RedisPaused,
    Fault::Restart,
    Fault::RestartEmpty,
    Fault::CutOnce,
    Fault::Cut,
    Fault::Stall,
    Fault::HalfOpen,
    Fault::Delay,
    Fault::Trickle,
    Fault::Resize,
    Fault::TinyTrackingTable,
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::LinkKilled => "CLIENT KILL",
            Self::RedisStopped => "SIGSTOP",
            Self::RedisStoppedLong => "long SIGSTOP",
            Self::RedisPaused => "CLIENT PAUSE",
            Self::Restart => "restart",
            Self::RestartEmpty => "empty restart",
            Self::CutOnce => "cut",
            Self::Cut => "long cut",
            Self::Stall => "stall",
            Self::HalfOpen => "half-open link",
            Self::Delay => "delay",
            Self::Trickle => "byte by byte",
            Self::Resize => "resize",
            Self::TinyTrackingTable => "tracking table of 10",
        }
    }

    /// Whether the fault delays invalidations; otherwise a value may be no older than without a
    /// fault.
    fn is_on_the_link(self) -> bool {
        ![Self::Resize, Self::TinyTrackingTable].contains(&self)
    }
}

pub(super) struct Adversary<'a> {
    pub(super) simulation: &'a Simulation,
    pub(super) redis: &'a mut RedisServer,
    /// The relay of each proxy.
    pub(super) relays: &'a [Relay],
    pub(super) proxies: &'a [Proxy],
    /// Returns the configuration of the proxy with this index, for a capacity and a grace.
    pub(super) config: &'a dyn Fn(usize, u32, &str) -> String,
    pub(super) random: StdRng,
    pub(super) capacity: u32,
    pub(super) grace: &'static str,
}

pub(super) const NO_GRACE: &str = "0s";
const SOME_GRACE: &str = "3s";

impl<'a> Adversary<'a> {
    /// Causes faults for this long. Returns the time of each recovery.
    pub(super) fn strike(
        &mut self,
        faults: &[Fault],
        duration: Duration,
    ) -> BTreeMap<&'static str, Vec<Recovery>> {
        let mut recoveries: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut deck = Vec::new();
        while self.simulation.is_written() && self.simulation.clock.now() < duration {
            self.hold(400..1600);
            if deck.is_empty() {
                deck = faults.to_vec();
                deck.shuffle(&mut self.random);
            }
            if let Some(fault) = deck.pop() {
                self.change_grace();
                let recovery = self.undergo(fault);
                recoveries.entry(fault.name()).or_default().push(recovery);
            }
        }
        recoveries
    }

    /// Compares each key when all faults are over.
    pub(super) fn settle(&self) {
        compare_all(self.simulation, self.redis, self.proxies);
    }

    fn undergo(&mut self, fault: Fault) -> Recovery {
        let conditions = &self.simulation.conditions;
        let periods =
            if fault.is_on_the_link() { &conditions.trouble } else { &conditions.changes };
        periods.begin(fault.name(), self.simulation.clock.now());
        self.perform(fault);
        let healed = Instant::now();
        for (number, proxy) in self.proxies.iter().enumerate() {
            if within(READY, || (readyz(proxy).0 == 200).then_some(())).is_none() {
                let (_, reason) = readyz(proxy);
                let name = fault.name();
                let text = format!(
                    "proxy {number} is not ready {READY:?} after a fault was healed ({name}): \
                        {reason}"
                );
                self.simulation.violation(text);
            }
        }
        let http = healed.elapsed();
        for proxy in self.proxies {
            if within(READY, || answers_clients(proxy).then_some(())).is_none() {
                self.simulation.violation(format!(
                    "no Redis client is answered {READY:?} after: {}",
                    fault.name()
                ));
            }
        }
        let resp = healed.elapsed();
        thread::sleep(SETTLED);
        periods.end(self.simulation.clock.now());
        Recovery { http, resp }
    }

    fn perform(&mut self, fault: Fault) {
        match fault {
            Fault::LinkKilled => self.kill_link(),
            Fault::RedisStopped => self.stop_redis(20..300),
            Fault::RedisStoppedLong => self.stop_redis(700..1800),
            Fault::RedisPaused => self.pause_redis(),
            Fault::Restart => {
                self.redis.stop();
                self.hold(10..700);
                self.redis.restart();
            }
            Fault::RestartEmpty => self.restart_empty(),
            Fault::CutOnce => self.struck().into_iter().for_each(Relay::cut_once),
            Fault::Cut => self.on_the_line(Relay::cut, 50..1500),
            Fault::Stall => self.on_the_line(Relay::stall, 20..350),
            Fault::HalfOpen => self.on_the_line(Relay::stall, 700..2600),
            Fault::Delay => {
                let delay = Duration::from_millis(self.random.random_range(5..60));
                self.on_the_line(|relay| relay.delay(delay), 500..1200);
            }
            Fault::Trickle => self.on_the_line(Relay::byte_at_a_time, 500..1200),
            Fault::Resize => self.resize(),
            Fault::TinyTrackingTable => {
                self.redis.command(&["CONFIG", "SET", "tracking-table-max-keys", "10"]);
                self.hold(400..1500);
                self.redis.command(&["CONFIG", "SET", "tracking-table-max-keys", TRACKING_TABLE]);
            }
        }
    }

    fn hold(&mut self, millis: Range<u64>) {
        thread::sleep(Duration::from_millis(self.random.random_range(millis)));
    }

    fn on_the_line(&mut self, break_it: impl Fn(&Relay), millis: Range<u64>) {
        let struck = self.struck();
        for relay in &struck {
            break_it(relay);
        }
        self.hold(millis);
        struck.into_iter().for_each(Relay::resume);
    }

    /// Returns the relays that a fault affects: all, or one of several.
    fn struck(&mut self) -> Vec<&'a Relay> {
        let one = self.random.random_range(0..=self.relays.len());
        self.relays.get(one).map_or_else(|| self.relays.iter().collect(), |relay| vec![relay])
    }

    fn kill_link(&self) {
        let mut connection = self.redis.connection();
        let clients: String = cmd("CLIENT")
            .arg("LIST")
            .query(&mut connection)
            .expect("redis-server lists its clients");
        let links = clients.lines().filter(|line| line.contains(" name=redis-proxy "));
        for id in links.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()) {
            // The connection may be gone already.
            _ = cmd("CLIENT").arg("KILL").arg("ID").arg(id).exec(&mut connection);
        }
    }

    fn stop_redis(&mut self, millis: Range<u64>) {
        self.redis.pause();
        self.hold(millis);
        self.redis.resume();
    }

    /// Redis accepts commands but runs none, or no writes, until the time is over.
    fn pause_redis(&mut self) {
        let millis = self.random.random_range(100..900_u64);
        let whom = ["ALL", "WRITE"][self.random.random_range(0..2)];
        self.redis.command(&["CLIENT", "PAUSE", &millis.to_string(), whom]);
        thread::sleep(Duration::from_millis(millis));
    }

    /// Resizes often, because resizing a small cache takes no time: otherwise no write would come
    /// in between.
    fn resize(&mut self) {
        self.resize_to(&LARGE_CAPACITIES);
        self.fill();
        let time = Duration::from_millis(self.random.random_range(300..900));
        let until = self.simulation.clock.now() + time;
        while self.simulation.clock.now() < until {
            self.resize_to(&LARGE_CAPACITIES);
        }
        self.resize_to(&CAPACITIES);
    }

    fn resize_to(&mut self, capacities: &[u32]) {
        self.capacity = capacities[self.random.random_range(0..capacities.len())];
        self.reload();
    }

    /// Makes the proxies cache the absence of many keys.
    fn fill(&self) {
        let query = |client: usize| {
            let mut connection = Client::connect(self.proxies[client % self.proxies.len()].http());
            let requests =
                (0..BALLAST).map(|number| request(&format!("ballast/{client}/{number}")));
            connection.send_raw(&requests.collect::<Vec<_>>().concat());
            connection
        };
        let connections: Vec<_> = (0..FILLERS).map(query).collect();
        for mut connection in connections {
            (0..BALLAST).for_each(|_| _ = connection.read_response());
        }
    }

    /// Restarts Redis without its data. No writer is active meanwhile, because none has a
    /// connection.
    fn restart_empty(&mut self) {
        let simulation = self.simulation;
        self.redis.stop();
        let alone = simulation.all.write().unwrap();
        let begun = simulation.begin_all("restart");
        let data = self.redis.socket().with_file_name("appendonlydir");
        fs::remove_dir_all(&data).expect("the data of a Redis that has been killed");
        simulation.end_all(&begun, &Ok(()));
        drop(alone);
        self.hold(10..700);
        self.redis.restart();
    }

    fn change_grace(&mut self) {
        let next = if self.grace == NO_GRACE { SOME_GRACE } else { NO_GRACE };
        self.grace = next;
        let (grace, clock) = (&self.simulation.conditions.grace, &self.simulation.clock);
        if next == SOME_GRACE {
            grace.begin("stale_if_error", clock.now());
        }
        self.reload();
        if next == NO_GRACE {
            grace.end(clock.now());
        }
    }

    fn reload(&self) {
        for (number, proxy) in self.proxies.iter().enumerate() {
            let config = (self.config)(number, self.capacity, self.grace);
            assert_eq!(proxy.reload(&config), Reload::Reloaded, "{config}");
        }
    }
}

/// Whether a new RESP client gets a reply of Redis.
pub(super) fn answers_clients(proxy: &Proxy) -> bool {
    let mut wire = RespClient::connect(proxy.resp_address());
    wire.send("PING\r\n");
    wire.try_answer().is_ok_and(|answer| answer == b"+PONG\r\n")
}

/// Checks that each key is the same in Redis and through each proxy, one bound after the last write
/// and the last fault.
pub(super) fn compare_all(simulation: &Simulation, redis: &RedisServer, proxies: &[Proxy]) {
    thread::sleep(BOUND_IN_TROUBLE);
    for proxy in proxies {
        compare(simulation, redis, proxy);
        compare_collections(simulation, redis, proxy);
    }
}

fn compare(simulation: &Simulation, redis: &RedisServer, proxy: &Proxy) {
    let mut straight = redis.connection();
    let mut client = Client::connect(proxy.http());
    for key in 0..KEYS {
        let name = format!("{{soak}}key/{key}");
        let mut look = || cmd("GET").arg(&name).query(&mut straight).expect("redis-server answers");
        let differs = (0..LOOKS).find_map(|_| {
            let before: Option<Vec<u8>> = look();
            let through = client.get(key_path(name.as_bytes()));
            // A key may expire between two looks at it.
            (before == look()).then(|| differs(before.as_deref(), &through))
        });
        match differs {
            Some(None) => {}
            Some(Some(difference)) => {
                simulation.violation(format!("{name}, when all was quiet: {difference}"));
            }
            None => simulation.violation(format!(
                "{name} changes while no writer is active: the harness is wrong"
            )),
        }
    }
}

/// Reads each collection twice through the proxy: the second reply may be a kept one.
fn compare_collections(simulation: &Simulation, redis: &RedisServer, proxy: &Proxy) {
    let mut straight = redis.connection();
    let mut wire = RespClient::connect(proxy.resp_address());
    for number in 0..COLLECTIONS {
        let read = CollectionRead::whole(number);
        let mut look = || -> Value {
            cmd(&read.words[0]).arg(&read.words[1..]).query(&mut straight).expect("a reply")
        };
        let mut query = || {
            wire.send(command(&read.words));
            let reply = wire.try_answer().expect("a reply");
            redis::parse_redis_value(&reply).expect("a reply")
        };
        let is_equal = (0..LOOKS).find_map(|_| {
            let before = look();
            let through = [query(), query()];
            // A key may expire between two looks at it.
            (before == look()).then(|| through.iter().all(|reply| *reply == before))
        });
        if is_equal != Some(true) {
            let words = read.words.join(" ");
            simulation.violation(format!("{words}, when all was quiet: not that of Redis"));
        }
    }
}

/// Returns the difference between a reply and its expectation, if there is one.
fn differs(expected: Option<&[u8]>, answer: &Response) -> Option<String> {
    let found = (answer.status == 200).then_some(answer.body.as_slice());
    let text =
        |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or(b"nothing")).into_owned();
    let agrees = found == expected && [200, 404].contains(&answer.status);
    (!agrees).then(|| {
        format!("Redis has {}, the proxy {} ({})", text(expected), text(found), answer.status)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Response {
        Response { status, headers: Vec::new(), body: body.as_bytes().to_owned() }
    }

    #[test]
    fn proxy_equals_redis_when_quiet() {
        assert_eq!(differs(Some(b"value"), &answer(200, "value")), None);
        assert_eq!(differs(None, &answer(404, "a problem")), None);
        for (expected, wrong) in [
            (Some(b"value".as_slice()), answer(200, "another")),
            (Some(b"value"), answer(404, "a problem")),
            (Some(b"value"), answer(503, "value")),
            (None, answer(200, "value")),
            (None, answer(503, "a problem")),
        ] {
            assert!(differs(expected, &wrong).is_some(), "{expected:?} {wrong:?}");
        }
    }
}
