//! A proxy that serves REST, and requests to it.

use serde_json::Value;

use crate::support::http::{Client, Response};
use crate::support::secret_file::SecretFile;
use crate::support::serving::await_ready;
use crate::support::{Proxy, RedisServer, eventually};

pub(super) const TOKENS: &str = "# comment\nfull-token\nreader-token read-only\n\
    scoped-token keys=a:*\nscoped-reader keys=a:* read-only\n";

/// Starts a proxy with REST at `/rest`. `redis` are the lines that name its Redis, `more` are other
/// lines of the configuration, with the section in each.
pub(super) fn start_rest(redis: &str, file: &SecretFile, more: &str) -> Proxy {
    let proxy = Proxy::start(&format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\nrest.path = \"/rest\"\n\
            rest.tokens_file = \"{}\"\n{redis}\n{more}",
        file.name()
    ));
    await_ready(&proxy);
    proxy
}

/// A proxy with its Redis.
pub(super) struct Served {
    pub(super) proxy: Proxy,
    pub(super) redis: RedisServer,
    pub(super) file: SecretFile,
}

impl Served {
    pub(super) fn start() -> Self {
        Self::with("")
    }

    /// Starts a proxy with more lines of `[rest]`.
    pub(super) fn with(more: &str) -> Self {
        let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
        let config = format!(
            "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
                redis.url = \"{}\"\n[rest]\npath = \"/rest\"\ntokens_file = \"{}\"\n{more}\n",
            redis.url(),
            file.name()
        );
        let proxy = Proxy::start(&config);
        eventually("the proxy is ready", || {
            (crate::support::http::get(proxy.admin(), "/readyz").status == 200).then_some(())
        });
        Self { proxy, redis, file }
    }

    pub(super) fn client(&self) -> Client {
        Client::connect(self.proxy.http())
    }

    /// Sends a body with the token that may do everything.
    pub(super) fn post(&self, path: &str, body: &str) -> (u16, Value) {
        self.post_as("full-token", path, body)
    }

    pub(super) fn post_as(&self, token: &str, path: &str, body: &str) -> (u16, Value) {
        let authorization = format!("Bearer {token}");
        let response = self.send("POST", path, &[("Authorization", &authorization)], body);
        json(&response)
    }

    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Response {
        let mut client = self.client();
        client.send_raw(&request(method, path, headers, body.as_ref()));
        client.read_response()
    }

    /// The number of reads with this outcome.
    pub(super) fn reads(&self, outcome: &str) -> f64 {
        let series = format!(
            "redis_proxy_reads_total{{front_end=\"rest\",kind=\"string\",outcome=\"{outcome}\"}}"
        );
        self.proxy.metrics().value(&series).unwrap_or_default()
    }

    /// Returns the text of Redis's own reply.
    pub(super) fn redis_text(&self, words: &[&str]) -> String {
        redis::from_redis_value(self.redis.command(words)).expect("a text")
    }

    /// Returns the lines of `CLIENT LIST` of connections whose last command was this one.
    pub(super) fn connections_of(&self, command: &str) -> Vec<String> {
        let list = self.redis_text(&["CLIENT", "LIST"]);
        let wanted = format!("cmd={command} ");
        let lines = list.lines().filter(|line| line.contains(&wanted));
        lines.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    }
}

/// The bytes of a request with a body.
pub(super) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let lines = headers.iter().map(|(name, value)| [*name, ": ", *value, "\r\n"].concat());
    let headers = lines.collect::<Vec<_>>().concat();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// The status and the body, which has to be JSON.
#[track_caller]
pub(super) fn json(response: &Response) -> (u16, Value) {
    let body = serde_json::from_slice(&response.body);
    let body = body.unwrap_or_else(|error| panic!("{error}: {response:?}"));
    (response.status, body)
}
