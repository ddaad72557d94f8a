//! Configuration: sources, errors and secrets.
//!
//! Promise: defaults < file < environment < flags; every error is reported at once; no secret is
//! ever shown.

#![expect(clippy::expect_used, clippy::panic, reason = "a test that panics has failed")]

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use redis_proxy::cli::Flags;
use redis_proxy::config::{Config, Environment, Problems, Sources};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::support::http::get;
use crate::support::serving::{serving, serving_from};
use crate::support::{Proxy, RedisServer, eventually};

const SECRET: &str = "hunter2";

/// A configuration file with this content.
struct File {
    _directory: TempDir,
    path: PathBuf,
}

impl File {
    fn new(content: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("redis-proxy.toml");
        fs::write(&path, content).expect("the file is written");
        Self { _directory: directory, path }
    }

    fn name(&self) -> &str {
        self.path.to_str().expect("a path that is text")
    }
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns the configuration of these sources in the form of `--print-config`.
#[track_caller]
fn printed(arguments: &[&str], environment: &[(&str, &str)]) -> Table {
    let output = Proxy::spawn_raw(&[arguments, &["--print-config"]].concat(), environment);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("a configuration is text");
    text.parse().expect("a configuration is TOML")
}

/// Returns one setting as text: `of(&table, "cache.ttl")`.
#[track_caller]
fn of(config: &Table, key: &str) -> String {
    let (section, name) = key.split_once('.').expect("a section and a name");
    match &config[section][name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns the keys of a configuration, each with its section.
fn keys(config: &Table) -> Vec<String> {
    let sections = config.iter();
    let names = sections.flat_map(|(section, keys)| {
        let keys = keys.as_table().expect("a section of keys");
        keys.keys().map(move |key| format!("{section}.{key}"))
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Returns the problems that `check` reports for a file and an environment, one a line, without the
/// first word. Asserts the exit code.
#[track_caller]
fn complaints(expected: i32, arguments: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
    let output = Proxy::spawn_raw(&[&["check"], arguments].concat(), environment);
    assert_eq!(code(&output), Some(expected), "{output:?}");
    let text = stderr(&output);
    let lines = text.lines().map(|line| line.strip_prefix("redis-proxy: "));
    let lines = lines.map(|line| line.expect("who complains").to_owned());
    lines.collect()
}

#[track_caller]
fn complaints_about(content: &str) -> Vec<String> {
    let file = File::new(content);
    let complaints = complaints(78, &["--config", file.name()], &[]);
    let source = format!("{}: ", file.name());
    let texts = complaints.iter().map(|line| {
        let text = line.strip_prefix(&source);
        text.unwrap_or_else(|| panic!("no source in {line}")).to_owned()
    });
    texts.collect()
}

/// Asserts that one of the lines contains all of the parts.
#[track_caller]
fn assert_line(lines: &[String], parts: &[&str]) {
    let has_all = |line: &String| parts.iter().all(|part| line.contains(part));
    assert!(lines.iter().any(has_all), "{parts:?} in none of {lines:#?}");
}

// Commands about the configuration

#[test]
fn set_flag_sets_any_key() {
    let file = File::new("cache.ttl = 1\ncache.capacity = 1\nredis.url = 'redis://file:1'");
    let config = printed(
        &[
            "--config",
            file.name(),
            "--set",
            " cache.ttl = 20s ",
            "--set",
            "http.allow_keys=a:*,b",
            "--set=redis.url=redis://set:2",
            "--redis_port",
            "3",
        ],
        &[("REDIS_PROXY_CACHE__TTL", "10s")],
    );
    assert_eq!(of(&config, "cache.ttl"), "20s");
    assert_eq!(of(&config, "cache.capacity"), "1");
    assert_eq!(of(&config, "http.allow_keys"), "a:*,b");
    assert_eq!(of(&config, "redis.url"), "redis://set:3/0");
}

#[test]
fn bad_set_flag_is_a_usage_error_without_its_text() {
    for (flag, text) in [
        (SECRET, "--set: found no =, expected SECTION.KEY=VALUE such as cache.ttl=30s"),
        ("cache.capacty=1", "--set: cache.capacty: unknown key; did you mean cache.capacity?"),
        ("cache.ttl=soon", "--set: cache.ttl: found string \"soon\", expected a duration"),
        ("http.allow_keys=a,,b", "http.allow_keys: found a comma too many, expected a list"),
        ("http.allow_keys=[\"a\"]", "http.allow_keys: found brackets, expected a list in the form"),
        ("resp.cache_except=GET,", "resp.cache_except: found a comma too many, expected a list"),
        ("resp.cache_except=[\"GET\"]", "resp.cache_except: found brackets, expected a list"),
        ("redis.seeds=a:1,", "redis.seeds: found a comma too many, expected redis://host:port"),
    ] {
        let lines = complaints(64, &["--set", flag], &[]);
        assert_line(&lines, &[text]);
        assert!(!lines.join("").contains(SECRET), "{lines:?}");
    }
}

#[test]
fn flag_without_an_effect_is_a_usage_error() {
    for (command, flag) in [
        (&["schema", "--config", "/nonexistent"][..], "config"),
        (&["--set", "cache.ttl=1", "man"], "set"),
        (&["completions", "bash", "--ttl", "1"], "ttl"),
    ] {
        let output = Proxy::spawn_raw(command, &[]);
        assert_eq!(code(&output), Some(64), "{output:?}");
        let text = format!("--{flag} has no effect on ");
        assert!(stderr(&output).contains(&text), "{output:?}");
    }
    let by_environment = [("REDIS_PROXY_CONFIG", "/nonexistent")];
    assert_eq!(code(&Proxy::spawn_raw(&["schema"], &by_environment)), Some(0));
}

#[test]
fn initial_file_is_private_and_never_replaced() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("new.toml");
    let path = path.to_str().expect("a path that is text");
    let init = |more: &[&str]| {
        Proxy::spawn_raw(&[&["init", path, "--redis_host", "db"], more].concat(), &[])
    };
    assert_eq!(code(&init(&["--password", SECRET])), Some(0));
    let mode = fs::metadata(path).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let config = printed(&["--config", path], &[]);
    assert_eq!(of(&config, "redis.url"), "redis://db:6379/0");
    let before = fs::read_to_string(path).expect("the file");
    assert!(before.contains(SECRET) && before.contains("# How old a cached value may be."));
    let again = init(&[]);
    assert_eq!((code(&again), stderr(&again).contains("expected --force")), (Some(1), true));
    assert_eq!(fs::read_to_string(path).expect("the file"), before);
    assert_eq!(code(&init(&["--force"])), Some(0));
    assert!(!fs::read_to_string(path).expect("the file").contains(SECRET));
}

#[test]
fn schema_and_manuals_need_no_configuration() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let directory = directory.path().join("man1");
    let path = directory.to_str().expect("a path that is text");
    let environment = [("REDIS_PROXY_CACHE__TTL", "nonsense")];
    let output = Proxy::spawn_raw(&["man", "--directory", path], &environment);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let pages = fs::read_dir(&directory).expect("the pages").count();
    assert_eq!(pages, 11, "one of the program, and one a command");
    let output = Proxy::spawn_raw(&["man", "nothing"], &environment);
    assert_eq!(code(&output), Some(64), "{output:?}");
    let output = Proxy::spawn_raw(&["schema"], &environment);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(schema["properties"]["cache"]["properties"]["ttl"]["default"], "1m");
}

// The shipped file

fn shipped() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("redis-proxy.toml");
    fs::read_to_string(path).expect("the file that comes with the program")
}

#[test]
fn shipped_file_is_the_defaults_plus_resp() {
    let file = File::new(&shipped());
    let flags = Flags { config: Some(file.path.clone()), ..Flags::default() };
    let mut shipped = load(&flags, &Environment::new()).expect("the shipped file is right");
    assert_eq!(String::from(shipped.resp.listen.clone()), "127.0.0.1:6380");
    shipped.resp.listen = Config::default().resp.listen;
    assert_eq!(shipped, Config::default());
}

#[test]
fn shipped_file_names_every_key_and_no_other() {
    let file: Table = shipped().parse().expect("TOML");
    let defaults = Config::default().to_toml().expect("a configuration as TOML");
    let defaults: Table = defaults.parse().expect("TOML");
    assert_eq!(keys(&file), keys(&defaults));
}

#[test]
fn shipped_file_documents_sections_and_keys() {
    let text = shipped();
    let explained = text
        .lines()
        .zip(text.lines().skip(1))
        .filter(|(before, line)| before.starts_with('#') && line.contains(" = "));
    let keys = text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#'));
    assert!(explained.count() + 3 >= keys.count());
}

#[test]
fn defaults_serve_only_this_machine() {
    assert_eq!(of(&printed(&[], &[]), "http.listen"), "127.0.0.1:8080");
}

// Layers

#[test]
fn each_source_overrides_the_one_below() {
    let file = File::new("[cache]\nttl = \"2s\"\ncapacity = 2\nnegative_ttl = \"2s\"\n");
    let config = printed(
        &["--config", file.name(), "--ttl", "4"],
        &[("REDIS_PROXY_CACHE__TTL", "3s"), ("REDIS_PROXY_CACHE__CAPACITY", "3")],
    );
    assert_eq!(of(&config, "cache.ttl"), "4s", "the flag");
    assert_eq!(of(&config, "cache.capacity"), "3", "the environment");
    assert_eq!(of(&config, "cache.negative_ttl"), "2s", "the file");
    assert_eq!(of(&config, "cache.stale_if_error"), "0s", "the default");
}

#[test]
fn config_flag_overrides_the_environment() {
    let (one, other) = (File::new("[cache]\ncapacity = 1\n"), File::new("[cache]\ncapacity = 2\n"));
    let environment = [("REDIS_PROXY_CONFIG", one.name())];
    assert_eq!(of(&printed(&[], &environment), "cache.capacity"), "1");
    assert_eq!(of(&printed(&["-c", other.name()], &environment), "cache.capacity"), "2");
}

#[test]
fn every_key_can_be_set_in_the_environment() {
    // Values that contradict no single other key.
    let others = Environment::from(
        [("URL", "rediss://:x@h"), ("TLS_CERT_FILE", "/x"), ("TLS_KEY_FILE", "/x")]
            .map(|(key, value)| (format!("REDIS_PROXY_REDIS__{key}"), value.to_owned())),
    );
    let without = load(&Flags::default(), &others).expect("a right configuration");
    let defaults: Table = Config::default().to_toml().expect("TOML").parse().expect("TOML");
    for key in keys(&defaults) {
        let variable = format!("REDIS_PROXY_{}", key.replace('.', "__").to_uppercase());
        let mut environment = others.clone();
        environment.insert(variable.clone(), "=".to_owned());
        // An invalid value is blamed on the variable, and a valid one makes a difference.
        match load(&Flags::default(), &environment) {
            Ok(config) => assert_ne!(config, without, "{variable} was passed over"),
            Err(problems) => {
                assert!(problems.to_string().starts_with(&variable), "{variable}: {problems}");
            }
        }
    }
}

#[test]
fn short_flags_accept_snake_and_kebab_case() {
    let snake =
        ["--redis_host", "h", "--redis_port", "1", "--proxy_host", "::1", "--proxy_port", "2"];
    let kebab =
        snake.map(|word| if word.starts_with("--") { word.replace('_', "-") } else { word.into() });
    let kebab = kebab.each_ref().map(String::as_str);
    for places in [snake, kebab] {
        let others = ["--password", SECRET, "--ttl", "3", "--k", "7"];
        let config = printed(&[&places[..], &others].concat(), &[]);
        for (key, value) in [
            ("redis.url", "redis://h:1/0"),
            ("redis.password", "********"),
            ("cache.ttl", "3s"),
            ("cache.capacity", "7"),
            ("http.listen", "[::1]:2"),
        ] {
            assert_eq!(of(&config, key), value, "{places:?}");
        }
    }
}

#[test]
fn flags_for_listeners_set_what_they_name() {
    for (listen, connections) in
        [("--resp_listen", "--max_connections"), ("--resp-listen", "--max-connections")]
    {
        let config = printed(&[listen, "127.0.0.1:7", connections, "9", "--capacity", "5"], &[]);
        for (key, expected) in [
            ("resp.listen", "127.0.0.1:7"),
            ("http.max_connections", "9"),
            ("resp.max_connections", "9"),
            ("cache.capacity", "5"),
        ] {
            assert_eq!(of(&config, key), expected, "{key}");
        }
    }
    let lines = complaints(64, &["--resp_listen", "nowhere", "--max_connections", "many"], &[]);
    assert_line(&lines, &["--resp_listen: resp.listen: ", "nowhere"]);
    assert_line(&lines, &["--max_connections: http.max_connections: ", "many"]);
}

#[test]
fn renamed_keys_are_errors_that_name_the_new_key() {
    let lines = complaints_about(
        "[cache]\nttl_absent = 5\nstale_grace = 5\n[http]\nallow = [\"a\"]\n[resp]\nallow = \
            [\"a\"]\n",
    );
    for (old, new) in [
        ("cache.ttl_absent", "cache.negative_ttl"),
        ("cache.stale_grace", "cache.stale_if_error"),
        ("http.allow", "http.allow_keys"),
        ("resp.allow", "resp.allow_keys"),
    ] {
        assert_line(&lines, &[&format!("{old}: unknown key; did you mean {new}?")]);
    }
}

#[test]
fn short_flag_changes_only_its_address_part() {
    let file = File::new(
        "[http]\nlisten = \"0.0.0.0:81\"\n[redis]\nurl = \"rediss://user:pass@host:7/3\"\n",
    );
    let arguments = ["--config", file.name(), "--redis_port", "8", "--proxy_port", "82"];
    let config = printed(&arguments, &[]);
    assert_eq!(of(&config, "redis.url"), "rediss://user:********@host:8/3");
    assert_eq!(of(&config, "http.listen"), "0.0.0.0:82");
    let arguments = ["--config", file.name(), "--redis_host", "other", "--proxy_host", "127.0.0.1"];
    let config = printed(&arguments, &[]);
    assert_eq!(of(&config, "redis.url"), "rediss://user:********@other:7/3");
    assert_eq!(of(&config, "http.listen"), "127.0.0.1:81");
}

#[test]
fn ttl_is_seconds_or_has_a_unit() {
    for (given, shown) in [
        ("60", "1m"),
        ("90s", "1m 30s"),
        ("5m", "5m"),
        ("0", "0s"),
        ("0.25", "250ms"),
        ("1h 30m", "1h 30m"),
    ] {
        assert_eq!(of(&printed(&["--ttl", given], &[]), "cache.ttl"), shown, "--ttl {given}");
    }
}

#[test]
fn container_platform_variables_are_ignored() {
    let environment = [
        ("REDIS_PROXY_PORT", "tcp://10.0.0.1:8080"),
        ("REDIS_PROXY_SERVICE_HOST", "10.0.0.1"),
        ("REDIS_PROXY_SERVICE_PORT", "8080"),
        ("REDIS_PROXY_SERVICE_PORT_HTTP", "8080"),
        ("REDIS_PROXY_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("REDIS_PROXY_PORT_8080_TCP_ADDR", "10.0.0.1"),
    ];
    assert_eq!(printed(&[], &environment), printed(&[], &[]));
    assert_eq!(warnings(&environment), Vec::<String>::new());
}

/// Returns the warnings that `check` prints for a valid environment.
#[track_caller]
fn warnings(environment: &[(&str, &str)]) -> Vec<String> {
    let output = Proxy::spawn_raw(&["check"], environment);
    assert_eq!(code(&output), Some(0), "{output:?}");
    stderr(&output).lines().map(str::to_owned).collect()
}

#[test]
fn variable_near_a_key_is_refused_with_its_name() {
    let environment = [
        ("REDIS_PROXY_REDIS_HOST", "h"),
        ("REDIS_PROXY_REDIS_PORT", "6379"),
        ("REDIS_PROXY_TTL", "5"),
        ("REDIS_PROXY_CAHCE_TTL", "5"),
        ("REDIS_PROXY_LOG_LEVEL", "debug"),
        ("REDIS_PROXY_CONFIG_FILE", "/x"),
    ];
    let lines = complaints(78, &[], &environment);
    for (written, meant) in [
        ("REDIS_HOST", "REDIS__URL"),
        ("REDIS_PORT", "REDIS__URL"),
        ("TTL", "CACHE__TTL"),
        ("CAHCE_TTL", "CACHE__TTL"),
        ("LOG_LEVEL", "TELEMETRY__LOG_FILTER"),
        ("CONFIG_FILE", "CONFIG"),
    ] {
        let expected =
            format!("REDIS_PROXY_{written}: unknown variable; did you mean REDIS_PROXY_{meant}?");
        assert!(lines.contains(&expected), "{expected} in {lines:#?}");
    }
    assert_eq!(lines.len(), environment.len(), "{lines:#?}");
}

#[test]
fn other_unknown_variable_is_a_warning() {
    let environment = [("REDIS_PROXY_COLOUR", "red"), ("REDIS_PROXY_TEST_SEED", "7")];
    let lines = warnings(&environment);
    for (name, _) in environment {
        assert_line(&lines, &[&format!("redis-proxy: warning: {name}: unknown variable")]);
    }
    assert_eq!(lines.len(), 2, "{lines:#?}");

    let proxy = Proxy::builder("http.listen = \"127.0.0.1:0\"")
        .environment("REDIS_PROXY_COLOUR", "red")
        .start();
    proxy.expect_log("REDIS_PROXY_COLOUR");
    proxy.expect_log("no connection to Redis");
    let line = proxy.wait_for_log(|line| line.text().contains("REDIS_PROXY_COLOUR"));
    assert_eq!(line.level(), "WARN");
}

// Problems

#[test]
fn bad_values_of_all_sources_are_reported_together() {
    let file = File::new(
        "[cache]\ncapacity = -1\npolicy = \"fifo\"\ncoherence = \"magic\"\n[http]\n\
            max_key = \"big\"\nlisten = 8080\n",
    );
    let environment = [
        ("REDIS_PROXY_CACHE__STALE_IF_ERROR", "long"),
        ("REDIS_PROXY_CACHE_NEGATIVE_TTL", "5s"),
        ("REDIS_PROXY_REDIS__MAX_FETCHES", "1.5"),
    ];
    let lines = complaints(64, &["--config", file.name(), "--ttl", "banana"], &environment);
    for (source, key, found, allowed) in [
        (file.name(), "cache.capacity", "-1", "a whole number"),
        (file.name(), "cache.policy", "fifo", "tinylfu"),
        (file.name(), "cache.coherence", "magic", "\"auto\" or \"tracking\" or \"ttl\""),
        (file.name(), "http.max_key", "\"big\"", "\"64KiB\""),
        (file.name(), "http.listen", "8080", "host:port"),
        ("REDIS_PROXY_CACHE__STALE_IF_ERROR", "cache.stale_if_error", "\"long\"", "a duration"),
        ("REDIS_PROXY_REDIS__MAX_FETCHES", "redis.max_fetches", "\"1.5\"", "a whole number"),
        ("--ttl", "cache.ttl", "\"banana\"", "\"5m\""),
    ] {
        let source = format!("{source}: {key}: ");
        assert_line(&lines, &[&source, found, allowed]);
    }
    assert_line(&lines, &["REDIS_PROXY_CACHE_NEGATIVE_TTL", "REDIS_PROXY_CACHE__NEGATIVE_TTL"]);
    assert_eq!(lines.len(), 9, "a line a problem: {lines:#?}");
}

#[test]
fn missing_file_hides_no_other_problem() {
    let environment = [("REDIS_PROXY_CACHE__CAPACITY", "many")];
    let lines = complaints(78, &["--config", "/nowhere/redis-proxy.toml"], &environment);
    assert_line(&lines, &["/nowhere/redis-proxy.toml", "cannot be read"]);
    assert_line(&lines, &["REDIS_PROXY_CACHE__CAPACITY", "cache.capacity", "\"many\""]);
}

#[test]
fn unknown_key_error_suggests_the_nearest() {
    let lines = complaints_about(
        "ttl = 5\n[cache]\ncapasity = 5\nnegative_tll = 5\n[htttp]\nlisten = \"127.0.0.1:1\"\n\
         [redis]\npasword_file = \"x\"\n[daemon]\ndrain-timeout = 1\n[tellemetry]\n",
    );
    for (wrong, right) in [
        ("cache.capasity", "cache.capacity"),
        ("cache.negative_tll", "cache.negative_ttl"),
        ("htttp.listen", "http.listen"),
        ("redis.pasword_file", "redis.password_file"),
        ("daemon.drain-timeout", "daemon.drain_timeout"),
        ("ttl", "cache.ttl"),
    ] {
        assert_line(&lines, &[&format!("{wrong}: unknown"), &format!("did you mean {right}?")]);
    }
    assert_line(&lines, &["tellemetry: unknown", "did you mean telemetry"]);
}

#[test]
fn hostile_key_name_stays_on_one_line() {
    let lines = complaints_about("\"a\\nb\\u001b[31m\" = 1\n");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert_line(&lines, &["a\\nb\\u{1b}[31m: unknown key"]);
}

#[test]
fn misspelt_variable_error_suggests_the_right_one() {
    let environment = [
        ("REDIS_PROXY_CACHE_TTL", "5s"),
        ("REDIS_PROXY_REDIS__PASWORD", SECRET),
        ("REDIS_PROXY_CASH__TTL", "5s"),
    ];
    let lines = complaints(78, &[], &environment);
    assert_line(&lines, &["REDIS_PROXY_CACHE_TTL: ", "REDIS_PROXY_CACHE__TTL"]);
    assert_line(&lines, &["REDIS_PROXY_REDIS__PASWORD: ", "redis.password"]);
    assert_line(&lines, &["REDIS_PROXY_CASH__TTL: ", "cache.ttl"]);
    assert!(!lines.concat().contains(SECRET));
}

#[test]
fn keys_of_other_programs_suggest_the_one_here() {
    let lines = complaints_about(
        "port = 1\n[redis]\nhost = \"h\"\nport = 1\ndb = 1\nuser = \"u\"\ntimeout = 1\n\
         [cache]\nmaxmemory = 1\nsize = 1\nmax_entries = 1\nexpire = 1\n\
         [http]\nbind = \"b\"\nport = 1\nmaxclients = 1\n[resp]\nhost = \"h\"\n\
         [telemetry]\nlevel = \"info\"\n[daemon]\nthreads = 1\n",
    );
    for (written, key) in [
        ("port", "http.listen"),
        ("redis.host", "redis.url"),
        ("redis.port", "redis.url"),
        ("redis.db", "redis.url"),
        ("redis.user", "redis.username"),
        ("redis.timeout", "redis.response_timeout"),
        ("cache.maxmemory", "cache.max_memory"),
        ("cache.size", "cache.capacity"),
        ("cache.max_entries", "cache.capacity"),
        ("cache.expire", "cache.ttl"),
        ("http.bind", "http.listen"),
        ("http.port", "http.listen"),
        ("http.maxclients", "http.max_connections"),
        ("resp.host", "resp.listen"),
        ("telemetry.level", "telemetry.log_filter"),
        ("daemon.threads", "daemon.worker_threads"),
    ] {
        assert_line(&lines, &[&format!("{written}: unknown key; did you mean {key}?")]);
    }
}

#[test]
fn unknown_key_unlike_any_lists_those_of_its_section() {
    let lines = complaints_about("[warm]\ncolour = 1\n[admin]\nx = 1\n");
    assert_line(&lines, &["warm.colour: unknown key; ", "warm.file, warm.keys, warm.rate"]);
    assert_line(&lines, &["admin.x: unknown key; ", "admin.listen"]);
    assert!(!lines.concat().contains("did you mean"), "{lines:#?}");
}

#[test]
fn contradicting_values_are_all_named() {
    let lines = complaints_about(
        "[http]\nlisten = \"127.0.0.1:7000\"\n[admin]\nlisten = \"127.0.0.1:7000\"\n\
         [redis]\nurl = \"redis://h\"\npassword = \"hunter2\"\npassword_file = \"/p\"\n\
         tls_ca_file = \"/ca\"\ntls_cert_file = \"/cert\"\n",
    );
    assert_line(&lines, &["admin.listen: ", "http.listen"]);
    assert_line(&lines, &["redis.password_file: ", "redis.password "]);
    assert_line(&lines, &["redis.url: ", "rediss://"]);
    assert_line(&lines, &["redis.tls_cert_file: ", "redis.tls_key_file"]);
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(!lines.concat().contains(SECRET));
}

#[test]
fn sentinel_settings_are_complete_or_absent() {
    let lines = complaints_about(
        "[redis]\nseeds = [\"redis://s:26379\"]\nsentinel_master = \"main\"\n\
            sentinel_username = \"u\"\n\
         sentinel_password_file = \"/p\"\n",
    );
    for key in ["seeds", "sentinel_master", "sentinel_username", "sentinel_password_file"] {
        assert_line(&lines, &[&format!("redis.{key}: "), "redis.mode = \"sentinel\""]);
    }
    assert_eq!(lines.len(), 4, "{lines:#?}");
    let lines =
        complaints_about("[redis]\nmode = \"sentinel\"\nurl = \"unix:///run/redis.sock\"\n");
    assert_line(&lines, &["redis.mode: ", "redis.seeds", "redis.sentinel_master"]);
    assert_line(&lines, &["redis.url: ", "unix", "rediss://"]);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let lines = complaints_about("[redis]\nmode = \"mirror\"\n");
    assert_line(&lines, &["redis.mode: ", "mirror", "sentinel"]);
}

#[test]
fn out_of_range_value_error_names_found_and_limit() {
    let lines = complaints_about(
        "[http]\nlisten = \"\"\nmax_connections = 0\nmax_header = \"1KiB\"\nidle_timeout = 0\n\
            header_timeout = 0\n\
         [admin]\nmax_connections = 0\n[cache]\ncapacity = 0\ncoherence_timeout = 0\n[daemon]\n\
         worker_threads = 5000\n\
         [resp]\nmax_query_buffer = \"127KiB\"\n\
         [redis]\nmax_fetches = 999999999\nconnect_timeout = 0\nresponse_timeout = 0\n\
         ping_interval = 0\n",
    );
    for (key, found) in [
        ("http.listen", "\"\""),
        ("http.max_connections", "0"),
        ("http.idle_timeout", "0"),
        ("http.header_timeout", "0"),
        ("admin.max_connections", "0"),
        ("cache.capacity", "0"),
        ("cache.coherence_timeout", "0"),
        ("redis.connect_timeout", "0"),
        ("redis.response_timeout", "0"),
        ("redis.ping_interval", "0"),
        ("http.max_header", "1KiB"),
        ("daemon.worker_threads", "5000"),
        ("resp.max_query_buffer", "127KiB"),
        ("redis.max_fetches", "999999999"),
    ] {
        assert_line(&lines, &[&format!("{key}: "), &format!("found {found}"), "expected"]);
    }
}

#[test]
fn unusable_file_error_names_the_reason() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let directory = directory.path().to_str().expect("a path that is text");
    for path in ["/nowhere/redis-proxy.toml", directory] {
        assert_line(&complaints(78, &["--config", path], &[]), &[path, "cannot be read"]);
    }
    for content in ["[cache", "cache = {", "[cache]\nttl = 1\nttl = 2\n", "no toml"] {
        let file = File::new(content);
        assert_line(&complaints(78, &["--config", file.name()], &[]), &[file.name(), "not TOML"]);
    }
    let not_text = File::new("");
    fs::write(&not_text.path, b"\xff\xfe").expect("the file is written");
    assert_line(&complaints(78, &["--config", not_text.name()], &[]), &[not_text.name()]);
}

#[test]
fn toml_error_has_position_and_reason() {
    for (content, place, reason) in [
        ("[cache", "line 1, column 7", "]"),
        ("[cache]\nttl = 1\nttl = 2\n", "line 3, column 1", "duplicate key"),
        ("[cache]\nttl = 5m\n", "line 2, column 7", "string values must be quoted"),
        ("[redis]\npassword = hunter2\n", "line 2, column 12", "string values must be quoted"),
        ("no toml", "line 1, column 4", "`=`"),
    ] {
        let file = File::new(content);
        let lines = complaints(78, &["--config", file.name()], &[]);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert_line(&lines, &[file.name(), place, "not TOML: ", reason]);
    }
}

#[test]
fn empty_file_is_valid() {
    let file = File::new("");
    assert_eq!(printed(&["--config", file.name()], &[]), printed(&[], &[]));
}

#[test]
fn sections_and_values_are_not_interchangeable() {
    assert_line(&complaints_about("cache = 5\n"), &["cache: ", "section"]);
    assert_line(&complaints_about("[cache.ttl]\n"), &["cache.ttl: "]);
    assert_line(&complaints_about("[cache.ttl]\nseconds = 5\n"), &["cache.ttl.seconds: "]);
    assert_line(&complaints_about("[[cache]]\nttl = 5\n"), &["cache: ", "section"]);
}

#[test]
fn wrong_command_line_is_a_usage_error() {
    for arguments in [
        &["--frobnicate"][..],
        &["serve"],
        &["check", "extra"],
        &["--ttl"],
        &["--ttl", "banana"],
        &["--ttl", "-1"],
        &["--k", "many"],
        &["--k", "0"],
        &["--k=-5"],
        &["--redis_port", "banana"],
        &["--redis_port", "65536"],
        &["--proxy_port", "banana"],
        &["--proxy_host", "a/b"],
    ] {
        let output = Proxy::spawn_raw(arguments, &[]);
        assert_eq!(code(&output), Some(64), "{arguments:?}: {output:?}");
        assert!(
            stderr(&output).contains(arguments[0].split('=').next().unwrap_or_default())
                || arguments[0] == "check"
        );
    }
}

#[test]
fn bad_address_part_is_blamed_on_its_flag() {
    for (good, bad) in [("--redis_host", "--redis_port"), ("--proxy_host", "--proxy_port")] {
        let lines = complaints(64, &[good, "localhost", bad, "banana"], &[]);
        assert_line(&lines, &[&format!("{bad}: "), "banana"]);
    }
}

#[test]
fn help_and_version_exit_with_success() {
    for argument in ["--help", "--version", "-h", "-V"] {
        let output = Proxy::spawn_raw(&[argument], &[]);
        assert_eq!(code(&output), Some(0), "{argument}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{argument}");
    }
}

#[test]
fn huge_duration_is_rejected_or_served() {
    for key in [
        "CACHE__TTL",
        "CACHE__NEGATIVE_TTL",
        "CACHE__STALE_IF_ERROR",
        "HTTP__IDLE_TIMEOUT",
        "HTTP__HEADER_TIMEOUT",
        "REDIS__CONNECT_TIMEOUT",
        "REDIS__RESPONSE_TIMEOUT",
        "REDIS__PING_INTERVAL",
        "REDIS__RECONNECT_DELAY_MAX",
        "DAEMON__DRAIN_TIMEOUT",
    ] {
        let forever = "10000000000000000000s";
        let variable = format!("REDIS_PROXY_{key}");
        if code(&Proxy::spawn_raw(&["check"], &[(&variable, forever)])) == Some(78) {
            continue;
        }
        let serving = serving(&[(key, forever)]);
        serving.set("a", "value");
        let mut client = serving.client();
        for path in ["/keys/a", "/keys/a", "/keys/absent", "/keys/absent"] {
            assert!([200, 404].contains(&client.get(path).status), "{key} {path}");
        }
    }
}

// Starting

#[test]
fn port_in_use_exits_with_1() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let http = Proxy::spawn_raw(&["--proxy_port", &port], &[]);
    assert_eq!(code(&http), Some(1), "{http:?}");
    assert!(stderr(&http).contains(&format!("http.listen: cannot listen on 127.0.0.1:{port}")));
    let address = format!("127.0.0.1:{port}");
    let admin =
        Proxy::spawn_raw(&["--proxy_port", "0"], &[("REDIS_PROXY_ADMIN__LISTEN", &address)]);
    assert_eq!(code(&admin), Some(1), "{admin:?}");
    assert!(stderr(&admin).contains("admin.listen: "));
}

#[test]
fn unusable_secret_file_is_named_at_start() {
    let no_pem = File::new("this is no certificate");
    for path in ["/nowhere/file", "/", no_pem.name()] {
        let (url, ca) = ("REDIS_PROXY_REDIS__URL", "REDIS_PROXY_REDIS__TLS_CA_FILE");
        let output =
            Proxy::spawn_raw(&["--proxy_port", "0"], &[(url, "rediss://127.0.0.1:1"), (ca, path)]);
        assert_eq!(code(&output), Some(78), "{output:?}");
        let text = stderr(&output);
        assert!(text.contains("redis.tls_ca_file") && text.contains(path), "{text}");
    }
    for path in ["/nowhere/file", "/"] {
        let variable = "REDIS_PROXY_REDIS__PASSWORD_FILE";
        let output = Proxy::spawn_raw(&["--proxy_port", "0"], &[(variable, path)]);
        assert_eq!(code(&output), Some(78), "{output:?}");
        let text = stderr(&output);
        assert!(text.contains("redis.password_file") && text.contains(path), "{text}");
    }
}

#[test]
fn check_opens_no_socket_and_reads_no_secret() {
    let (http, redis) =
        (TcpListener::bind((Ipv4Addr::LOCALHOST, 0)), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let (http, redis) = (http.expect("a port"), redis.expect("a port"));
    redis.set_nonblocking(true).expect("a listener to set up");
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    let file = File::new(&format!(
        "[http]\nlisten = \"127.0.0.1:{}\"\n[redis]\nurl = \"redis://127.0.0.1:{}\"\n\
            password_file = \"/nowhere/secret\"\n",
        port(&http),
        port(&redis),
    ));
    for arguments in [["check", "--config", file.name()], ["--config", file.name(), "check"]] {
        let output = Proxy::spawn_raw(&arguments, &[]);
        assert_eq!(code(&output), Some(0), "{output:?}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{output:?}");
    }
    assert!(redis.accept().is_err(), "Redis was connected to");
}

// Printing

#[test]
fn printed_config_loads_to_itself() {
    let file = File::new(
        "[http]\nlisten = \"[::1]:81\"\nidle_timeout = \"1h 1m 1s 1ms\"\nmax_key = 1025\n\
            cache_control = \"a=\\\"b\\\"\"\n\
         [admin]\nlisten = \"localhost:82\"\n[cache]\nttl = 0.5\npolicy = \"tinylfu\"\n\
         [redis]\nurl = \"unix:///run/a%20b.sock?db=3\"\nusername = \"u\\\\\\\"\"\n\
         password = \"hunter2\"\n\
         [telemetry]\nlog_format = \"json\"\nlog_filter = \"warn,redis_proxy=debug\"\n",
    );
    let first = printed(&["--config", file.name()], &[]);
    let again = File::new(&first.to_string());
    assert_eq!(printed(&["--config", again.name()], &[]), first);
    // Equal except for the mask in the place of the password.
    let load = |file: &File| {
        let flags = Flags {
            config: Some(file.path.clone()),
            password: Some("the same".to_owned().into()),
            ..Flags::default()
        };
        load(&flags, &Environment::new()).expect("a right configuration")
    };
    assert_eq!(load(&again), load(&file));
}

#[test]
fn printed_config_masks_every_password() {
    for (variable, value) in [
        ("REDIS_PROXY_REDIS__PASSWORD", SECRET),
        ("REDIS_PROXY_REDIS__URL", "redis://user:hunter2@host:1/2"),
        ("REDIS_PROXY_REDIS__URL", "redis://:hunter2@host"),
        ("REDIS_PROXY_REDIS__URL", "rediss://:%68unter2@host"),
        ("REDIS_PROXY_TELEMETRY__TRACES_ENDPOINT", "https://user:hunter2@host:4318"),
    ] {
        let config = printed(&[], &[(variable, value)]).to_string();
        assert!(!config.contains("hunter2") && config.contains("********"), "{value}: {config}");
    }
    assert!(!printed(&["--password", SECRET], &[]).to_string().contains(SECRET));
}

// Secrets

#[test]
fn config_error_never_repeats_a_password() {
    let wrong_files = [
        "[redis]\npassword = \"hunter2\n",
        "[redis]\npassword = hunter2\n",
        "[redis]\npassword = \"hunter2\"\npassword = \"hunter2\"\n",
        "[redis]\npassword = [\"hunter2\"]\n",
        "[redis]\npasswrod = \"hunter2\"\n",
        "[redis.password]\nvalue = \"hunter2\"\n",
        "[redis]\npassword = \"hunter2\"\npassword_file = \"/p\"\n",
        "[redis]\nurl = \"redis://user:hunter2@host:banana\"\n",
        "[redis]\nurl = \"redis://user:hunter2@host/banana\"\n",
        "[redis]\nurl = \"redis://user:a@b/hunter2@host:1/0\"\n",
        "[redis]\nurl = \"redis://user:a/hunter2@host:1/0\"\n",
        "[redis]\nurl = \"redis://user:a#hunter2@host:1/0\"\n",
        "[redis]\nurl = \"http://user:hunter2@host\"\n",
        "[redis]\nurl = \"user:hunter2@host\"\n",
        "[redis]\nurl = \"redis://user:hunter2@host\n",
        "[redis]\nurl = [\"redis://user:hunter2@host\"]\n",
        "[redis]\nmode = \"sentinel\"\nsentinel_master = \"m\"\n\
            seeds = \"redis://:hunter2@host:1\"\n",
        "[redis]\nmode = \"sentinel\"\nsentinel_master = \"m\"\n\
            seeds = [\"redis://host:1/hunter2\", \"hunter2\"]\n",
    ];
    let mut received = Vec::new();
    for content in wrong_files {
        let file = File::new(content);
        let output = Proxy::spawn_raw(&["check", "--config", file.name()], &[]);
        assert_eq!(code(&output), Some(78), "{content}{output:?}");
        if stderr(&output).contains(SECRET) {
            received.push(format!("{content}{}", stderr(&output)));
        }
    }
    assert!(received.is_empty(), "{}", received.join("\n"));
}

#[test]
fn usage_error_never_repeats_a_password() {
    for arguments in [
        &["--password", SECRET, "--frobnicate"][..],
        &["--pasword", SECRET],
        &["--pasword=hunter2"],
        &["--password", SECRET, "--password", SECRET],
        &["--password", SECRET, "--ttl", "banana"],
    ] {
        let output = Proxy::spawn_raw(arguments, &[]);
        assert_eq!(code(&output), Some(64), "{arguments:?}");
        assert!(!stderr(&output).contains(SECRET), "{arguments:?}: {}", stderr(&output));
    }
}

/// Asserts that the secret is absent from the log at its most verbose, from the metrics and from
/// every response.
#[track_caller]
fn assert_not_told(proxy: &Proxy, secret: &str) {
    eventually("the log is talkative", || (proxy.log_lines().len() > 2).then_some(()));
    let mut received: Vec<_> =
        proxy.log_lines().iter().map(|line| line.text().to_owned()).collect();
    received.push(proxy.metrics().text().to_owned());
    for (address, path) in
        [(proxy.admin(), "/readyz"), (proxy.admin(), "/livez"), (proxy.http(), "/keys/a")]
    {
        let response = get(address, path);
        received.push(format!("{response:?}{}", String::from_utf8_lossy(&response.body)));
    }
    let leak = received.iter().find(|text| text.contains(secret));
    assert!(leak.is_none(), "{leak:?}");
}

#[test]
fn running_proxy_never_reveals_its_password() {
    let redis = RedisServer::builder().tcp().arguments(&["--requirepass", SECRET]).start();
    let url = format!("redis://:{SECRET}@{}", redis.tcp_address());
    let serving = serving_from(redis, &url, &[("TELEMETRY__LOG_FILTER", "trace")]);
    serving.set("a", "value");
    assert_eq!(get(serving.address(), "/keys/a").body, b"value");
    assert_not_told(&serving.proxy, SECRET);
}

#[test]
fn rejected_password_is_never_revealed() {
    let redis = RedisServer::builder().tcp().arguments(&["--requirepass", "another"]).start();
    let secret_file = File::new("hunter2\n");
    let in_url = redis.tcp_url().replace("://", "://default:hunter2@");
    for settings in [
        format!("url = \"{}\"\npassword = \"hunter2\"\n", redis.tcp_url()),
        format!("url = \"{}\"\npassword_file = \"{}\"\n", redis.tcp_url(), secret_file.name()),
        format!("url = \"{in_url}\"\n"),
    ] {
        let proxy = Proxy::start(&format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[redis]\n\
                {settings}\
             [telemetry]\nlog_filter = \"trace\"\n"
        ));
        proxy.expect_log("no connection to Redis");
        eventually("/readyz says that the password is wrong", || {
            let response = get(proxy.admin(), "/readyz");
            let reason = String::from_utf8_lossy(&response.body).into_owned();
            (response.status == 503 && reason.contains("WRONGPASS")).then_some(())
        });
        assert_eq!(get(proxy.http(), "/keys/a").status, 503);
        assert_not_told(&proxy, SECRET);
    }
}

#[test]
fn rejected_reload_never_reveals_its_password() {
    let redis = RedisServer::start();
    let config = |password: &str| {
        format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[redis]\n\
                url = \"{}\"\n{password}",
            redis.url()
        )
    };
    let proxy = Proxy::start(&config(""));
    proxy.expect_log("config refused");
    for password in ["password = \"hunter2\"\n", "password = \"hunter2\n"] {
        proxy.reload(&config(password));
        assert_not_told(&proxy, SECRET);
    }
}

fn load(flags: &Flags, environment: &Environment) -> Result<Config, Problems> {
    Sources { flags: flags.clone(), environment: environment.clone() }.load()
}
