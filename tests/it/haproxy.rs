//! Several proxies behind docs/src/deployment/haproxy.cfg, with a real `HAProxy` and wrk.
//!
//! Promise: each key has one proxy, and a rolling restart loses no request.
//!
//! Model: three proxies at fixed addresses, one Redis, and `HAProxy` with the shipped configuration
//! but for the addresses. Both tools are Debian packages of the same names. Without them, the tests
//! are skipped with a message.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::http::{self, Client};
use crate::support::metrics::Metrics;
use crate::support::skip::skipped_without;
use crate::support::{Proxy, RedisServer, eventually};

const KEYS: usize = 300;
/// Longer than three restarts take on a busy machine; the load is ended after them.
const LOAD_SECONDS: u32 = 60;
const SCRIPT: &str = r#"
    request = function() return wrk.format("GET", "/keys/key/" .. math.random(1, KEYS)) end
    done = function(summary)
        local errors = summary.errors
        print(string.format("wrk: %d requests, errors %d", summary.requests,
            errors.connect + errors.read + errors.write + errors.status + errors.timeout))
    end
"#;

/// Three proxies, and the way to start each again.
struct Fleet {
    proxies: Vec<Proxy>,
    configs: Vec<String>,
    haproxy: HaProxy,
    redis: RedisServer,
}

struct HaProxy {
    child: Child,
    http: SocketAddr,
    resp: SocketAddr,
    directory: TempDir,
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Fleet {
    /// Starts the fleet; returns nothing where there is no `HAProxy`.
    fn start() -> Option<Self> {
        let redis = RedisServer::start();
        let addresses = free_addresses::<8>();
        let config = |number: usize| {
            let (http, resp) = (addresses[number], addresses[3 + number]);
            format!(
                "http.listen = \"{http}\"\nresp.listen = \"{resp}\"\n\
                 redis.url = \"{}\"\n",
                redis.url()
            )
        };
        let configs: Vec<_> = (0..3).map(config).collect();
        let proxies: Vec<_> = configs.iter().map(|config| Proxy::start(config)).collect();
        proxies.iter().for_each(await_ready);
        let haproxy = HaProxy::start(&addresses)?;
        Some(Self { proxies, configs, haproxy, redis })
    }

    /// Stops one proxy as systemd would, starts it again, and waits until `HAProxy` sends it reads.
    fn restart(&mut self, number: usize) {
        let old = self.proxies.remove(number);
        old.signal(Signal::TERM);
        old.finish();
        let new = Proxy::start(&self.configs[number]);
        await_ready(&new);
        eventually("the proxy is asked again", || (reads(&new) > 0.0).then_some(()));
        self.proxies.insert(number, new);
    }
}

impl HaProxy {
    /// Starts `HAProxy` with the shipped configuration and these addresses: three HTTP and three
    /// RESP proxies, two of its own.
    fn start(addresses: &[SocketAddr; 8]) -> Option<Self> {
        let shipped = ["127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083"];
        let shipped =
            shipped.into_iter().chain(["127.0.0.1:6381", "127.0.0.1:6382", "127.0.0.1:6383"]);
        let shipped = shipped.chain(["127.0.0.1:8000", "127.0.0.1:6400"]);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/deployment/haproxy.cfg");
        let mut config = fs::read_to_string(file).expect("the configuration");
        for (shipped, address) in shipped.zip(addresses) {
            assert!(config.contains(shipped), "{shipped} in {config}");
            config = config.replace(shipped, &format!("127.0.0.1:@{}", address.port()));
        }
        for (number, address) in addresses[..3].iter().enumerate() {
            config = config
                .replace(&format!("port 808{}", number + 1), &format!("port {}", address.port()));
        }
        // The mark protects an inserted address from being replaced again.
        let config = config.replace(":@", ":");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("haproxy.cfg");
        fs::write(&file, config).expect("the configuration is written");
        let child =
            started("haproxy", Command::new("haproxy").args(["-db", "-q", "-f"]).arg(file))?;
        let [.., http, resp] = *addresses;
        eventually("haproxy listens", || TcpStream::connect(http).ok());
        Some(Self { child, http, resp, directory })
    }

    /// Starts wrk with reads of random keys.
    fn load(&self) -> Option<Child> {
        let script = self.directory.path().join("wrk.lua");
        fs::write(&script, SCRIPT.replace("KEYS", &KEYS.to_string()))
            .expect("the script is written");
        let mut wrk = Command::new("wrk");
        wrk.args(["--threads", "1", "--connections", "16", "--timeout", "10s", "--duration"]);
        wrk.arg(format!("{LOAD_SECONDS}s"))
            .arg("--script")
            .arg(script)
            .arg(format!("http://{}/", self.http));
        started("wrk", &mut wrk)
    }
}

/// Ends wrk early; returns its report.
fn end_load(wrk: Child) -> String {
    kill_process(Pid::from_child(&wrk), Signal::INT).expect("wrk takes the signal");
    let output = wrk.wait_with_output().expect("wrk ends");
    String::from_utf8(output.stdout).expect("wrk writes text")
}

/// Starts the program; returns nothing where it is not installed.
fn started(name: &str, command: &mut Command) -> Option<Child> {
    match command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn() {
        Ok(child) => Some(child),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skipped_without(name, "it is Debian's package of this name");
            None
        }
        Err(error) => panic!("{name} does not start: {error}"),
    }
}

fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let listeners =
        [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("an address"))
}

/// Waits for /readyz at the address that `HAProxy` checks, beside /keys/.
fn await_ready(proxy: &Proxy) {
    eventually("the proxy is ready", || {
        (http::get(proxy.http(), "/readyz").status == 200).then_some(())
    });
}

fn metric(proxy: &Proxy, series: &str) -> f64 {
    let text =
        String::from_utf8(http::get(proxy.http(), "/metrics").body).expect("metrics are text");
    Metrics::parse(text).value(&format!("redis_proxy_{series}")).expect("a metric")
}

fn sum(proxies: &[Proxy], outcome: &str) -> f64 {
    let series = format!("reads_total{{front_end=\"http\",outcome=\"{outcome}\"}}");
    proxies.iter().map(|proxy| metric(proxy, &series)).sum()
}

fn reads(proxy: &Proxy) -> f64 {
    ["hit", "miss", "coalesced", "negative_hit"]
        .iter()
        .map(|outcome| sum(std::slice::from_ref(proxy), outcome))
        .sum()
}

fn fill(redis: &RedisServer) {
    let pairs = (1..=KEYS).flat_map(|key| [format!("key/{key}"), "value".to_owned()]);
    let words: Vec<_> = std::iter::once("MSET".to_owned()).chain(pairs).collect();
    redis.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn each_key_has_its_proxy() {
    let Some(fleet) = Fleet::start() else { return };
    fill(&fleet.redis);
    let (there, back) = ((1..=KEYS).collect::<Vec<_>>(), (1..=KEYS).rev().collect());
    // In a different order the second time, so that only the key decides.
    for keys in [there.clone(), back, there] {
        let mut client = Client::connect(fleet.haproxy.http);
        for key in keys {
            assert_eq!(client.get(format!("/keys/key/{key}")).status, 200);
        }
    }
    let keys = f64::from(u32::try_from(KEYS).expect("a small number"));
    assert_eq!(
        (sum(&fleet.proxies, "miss").to_string(), sum(&fleet.proxies, "hit").to_string()),
        { (keys.to_string(), (2.0 * keys).to_string()) }
    );
    for proxy in &fleet.proxies {
        let entries = metric(proxy, "cache_entries");
        assert!(
            (keys / 6.0..keys / 1.5).contains(&entries),
            "{entries} of {keys} keys at one of three proxies"
        );
    }
    let client =
        redis::Client::open(format!("redis://{}", fleet.haproxy.resp)).expect("an address");
    let mut connection = client.get_connection().expect("a connection through HAProxy");
    let value: String = redis::cmd("GET").arg("key/1").query(&mut connection).expect("a value");
    assert_eq!(value, "value");
}

#[test]
fn rolling_restart_loses_no_request() {
    let Some(mut fleet) = Fleet::start() else { return };
    fill(&fleet.redis);
    let Some(wrk) = fleet.haproxy.load() else { return };
    eventually("every proxy is asked", || {
        fleet.proxies.iter().all(|proxy| reads(proxy) > 0.0).then_some(())
    });
    for number in 0..3 {
        fleet.restart(number);
    }
    let received = end_load(wrk);
    let line = received.lines().find(|line| line.starts_with("wrk: ")).expect("what wrk saw");
    let (_, requests) = line.split_once("wrk: ").expect("its requests");
    let requests: u64 =
        requests.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
    assert!(line.ends_with("errors 0") && requests > 100, "{received}");
}
