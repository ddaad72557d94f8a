//! Random commands by REST.
//!
//! Promise: with `Upstash-Response-Format: resp2`, the response has Redis's own bytes.
//!
//! Model: seeded requests of random commands go to the proxy over REST, and the same commands to
//! another Redis in RESP2. Keys are few and most commands read, so memory often has the value.
//! Commands that no request may use, and those with different replies by their nature, are left
//! out. The token of the last response comes with the next request.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use redis_proxy::protocol::ReplyScanner;

use super::support::{TOKENS, request, start_rest};
use crate::support::RedisServer;
use crate::support::cluster::RedisCluster;
use crate::support::env::{number, seed_or};
use crate::support::http::Client;
use crate::support::resp_client::{command, show};
use crate::support::script::stateless_commands;
use crate::support::secret_file::SecretFile;

const REQUESTS: u64 = 1200;

#[test]
fn random_commands_by_rest_match_redis() {
    let (behind, straight) = (RedisServer::start(), RedisServer::start());
    let url = format!("redis.url = \"{}\"", behind.url());
    compare(&url, &straight.socket(), number("REST_REQUESTS").unwrap_or(REQUESTS), "");
}

#[test]
fn random_commands_by_rest_match_redis_in_ttl_mode() {
    let (behind, straight) = (RedisServer::start(), RedisServer::start());
    let url =
        format!("redis.url = \"{}\"\ncache.coherence = \"ttl\"\ncache.ttl = \"1h\"", behind.url());
    compare(&url, &straight.socket(), number("REST_REQUESTS").unwrap_or(REQUESTS / 3), "");
}

#[test]
fn random_commands_by_rest_match_redis_over_cluster() {
    let cluster = RedisCluster::of(3);
    // One node that serves all slots.
    let alone = RedisCluster::start(1, 0, &[]);
    let requests = number("REST_REQUESTS").unwrap_or(REQUESTS / 3);
    compare(&cluster.settings(), &alone.nodes[0].socket(), requests, "{tag}");
}

fn compare(redis: &str, straight: &Path, requests: u64, tag: &'static str) {
    let file = SecretFile::new(TOKENS);
    let proxy = start_rest(redis, &file, "");
    let (mut rest, mut token) = (Client::connect(proxy.http()), String::new());
    let mut straight = Straight::connect(straight);
    let first = seed_or(1);
    for seed in first..first + requests {
        let commands = stateless_commands(seed, tag);
        let expected = straight.run(&commands);
        let headers = [
            ("Authorization", "Bearer full-token"),
            ("Upstash-Response-Format", "resp2"),
            ("upstash-sync-token", &*token),
        ];
        let words = |command: &Vec<Vec<u8>>| {
            command.iter().map(|word| String::from_utf8(word.clone()).expect("UTF-8")).collect()
        };
        let lists: Vec<Vec<String>> = commands.iter().map(words).collect();
        let (path, body) = match &lists[..] {
            [alone] => ("/rest", serde_json::to_vec(alone)),
            all => ("/rest/pipeline", serde_json::to_vec(all)),
        };
        rest.send_raw(&request("POST", path, &headers, &body.expect("JSON")));
        let response = rest.read_response();
        assert!(
            response.body == expected,
            "seed {seed}: {lists:?}\n{}\ninstead of\n{}",
            show(&response.body),
            show(&expected)
        );
        response.header("upstash-sync-token").expect("a token").clone_into(&mut token);
    }
    let of = |outcome: &str| {
        let series = format!(
            "redis_proxy_request_duration_seconds_count{{front_end=\"rest\",outcome=\"{outcome}\"}}"
        );
        proxy.metrics().value(&series).unwrap_or_default()
    };
    let hits = of("hit") + of("negative_hit");
    // In ttl mode a read with a token that names a write goes to Redis.
    assert!(hits > 50.0 || redis.contains("ttl"), "{hits} of the reads came from memory");
}

/// A connection to a Redis, without a proxy.
struct Straight(UnixStream);

impl Straight {
    fn connect(socket: &Path) -> Self {
        Self(UnixStream::connect(socket).expect("a connection to Redis"))
    }

    /// Returns the bytes of all replies.
    fn run(&mut self, commands: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let bytes: Vec<u8> = commands.iter().flat_map(|words| command(words)).collect();
        self.0.write_all(&bytes).expect("Redis reads");
        let (mut replies, mut scanner) = (Vec::new(), ReplyScanner::default());
        let (mut done, mut left) = (0, commands.len());
        let mut buffer = [0; 16 << 10];
        while left > 0 {
            let length = self.0.read(&mut buffer).expect("Redis replies");
            assert!(length > 0, "Redis closed the connection");
            replies.extend_from_slice(&buffer[..length]);
            while done < replies.len() {
                let (length, frame) = scanner.scan(&replies[done..]).expect("a reply");
                done += length;
                if frame.is_none() {
                    break;
                }
                left -= 1;
            }
        }
        replies
    }
}
