//! The README.
//!
//! Promise: its console examples, links and configuration are those of the program.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::support::http::{Client, Response};
use crate::support::{Proxy, RedisServer};

/// A command of the README with the output below it.
struct Example {
    command: String,
    output: Vec<String>,
}

#[test]
fn readme_console_lines_answer_as_printed() {
    let redis = RedisServer::start();
    redis.command(&["SET", "greeting", "hello"]);
    let proxy = Proxy::start(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[redis]\nurl = \"{}\"\n",
        redis.url()
    ));
    let examples = examples();
    assert_eq!(examples.len(), 4, "miss, hit, 304, 404");
    for Example { command, output } in examples {
        let response = perform(proxy.http(), &command);
        let printed = printed(&response);
        for line in output.iter().filter(|line| !line.is_empty()).map(|line| without_times(line)) {
            assert!(
                printed.contains(&line),
                "{command}\nthe README prints {line:?}, the proxy answers {printed:#?}"
            );
        }
        assert_eq!(
            printed.len(),
            output.iter().filter(|line| !line.is_empty()).count(),
            "{command}: {printed:#?}"
        );
    }
}

#[test]
fn readme_links_lead_somewhere() {
    let readme = readme();
    let headings = readme.lines().filter_map(|line| line.strip_prefix("## "));
    let sections: Vec<_> =
        headings.map(|heading| format!("#{}", heading.to_lowercase().replace(' ', "-"))).collect();
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.contains("://")) {
        let is_there = if link.starts_with('#') {
            sections.iter().any(|section| section == link)
        } else {
            let (file, _) = link.split_once('#').unwrap_or((link, ""));
            Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists()
        };
        assert!(is_there, "{link}");
    }
}

#[test]
fn readme_nixos_config_is_the_tested_one() {
    let page = file("docs/src/getting-started/nixos.md");
    let shown = page
        .split("```nix\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("a block of Nix");
    assert_eq!(shown, file("nix/template/redis-proxy.nix"));
}

fn readme() -> String {
    file("README.md")
}

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .expect("a file of this project")
}

fn examples() -> Vec<Example> {
    let readme = readme();
    let block = readme
        .split("```console\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("a console block");
    let examples = block.split("$ ").skip(1).map(|example| {
        let mut lines = example.lines().map(str::to_owned);
        Example { command: lines.next().expect("a command"), output: lines.collect() }
    });
    examples.collect()
}

/// Performs `curl -i [-H 'Name: value'] URL`.
fn perform(proxy: SocketAddr, command: &str) -> Response {
    let (_, path) = command.split_once("http://127.0.0.1:8080").expect("the address of make run");
    let header = command
        .split_once("-H '")
        .map(|(_, rest)| rest.split('\'').next().expect("a quoted header"));
    let headers: Vec<_> = header.into_iter().filter_map(|header| header.split_once(": ")).collect();
    let mut client = Client::connect(proxy);
    client.request("GET", path, &headers)
}

/// Returns the response as curl prints it, with the date and seconds masked.
fn printed(response: &Response) -> Vec<String> {
    let reason = match response.status {
        200 => "OK",
        304 => "Not Modified",
        404 => "Not Found",
        other => panic!("{other} is not in the README"),
    };
    let mut lines = vec![format!("HTTP/1.1 {} {reason}", response.status)];
    lines.extend(
        response.headers.iter().map(|(name, value)| without_times(&format!("{name}: {value}"))),
    );
    if !response.body.is_empty() {
        lines.push(String::from_utf8_lossy(&response.body).into_owned());
    }
    lines
}

fn without_times(line: &str) -> String {
    if let Some((before, _)) = line.split_once("ttl=") {
        return format!("{before}ttl=N");
    }
    let is_time = |name: &&str| line.starts_with(&format!("{name}: "));
    ["age", "date"].iter().copied().find(is_time).unwrap_or(line).to_owned()
}
