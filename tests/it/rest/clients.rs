//! The clients of Upstash, unchanged but for URL and token.

use std::process::Command;

use super::support::Served;
use crate::support::clients;

#[test]
fn upstash_node_clients_work() {
    let Some(_) = clients::node() else { return };
    // A script finds the packages beside itself.
    let script = clients::folder().join("upstash.mjs");
    std::fs::copy(source("upstash.mjs"), &script).expect("the script is copied");
    run(clients::node, &script);
}

#[test]
fn upstash_python_clients_work() {
    run(clients::python, &source("upstash.py"));
}

fn source(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn run(client: fn() -> Option<Command>, script: &std::path::Path) {
    for encoding in ["base64", "text"] {
        let Some(mut command) = client() else { return };
        let served = Served::start();
        let url = format!("http://{}/rest", served.proxy.http());
        let output = command.arg(script).args([&*url, "full-token", encoding]).output();
        let output = output.expect("the client runs");
        let (text, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.trim() == "ok", "{encoding}: {text}\n{error}");
    }
}
