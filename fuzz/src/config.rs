//! The configuration from any file, environment and flags: errors are named and secrets kept, and a
//! valid configuration survives printing and reading.

use std::fs;
use std::path::{Path, PathBuf};

use redis_proxy::cli::Flags;
use redis_proxy::config::{Config, Environment, Problems, Sources};
use redis_proxy::settings::Secret;
use tempfile::TempDir;

/// A password, wherever it occurs.
const SECRET: &str = "hunter2";

/// Checks one set of sources. The first byte selects the place of a password. A NUL divides the
/// rest: a file, lines of the environment (`CACHE__TTL=30s`), lines of flags (`ttl=30s`).
///
/// # Panics
///
/// If a problem names no cause, if a secret shows, or if a configuration is not read back.
pub fn check(input: &[u8]) {
    let Some((place, text)) = input.split_first() else { return };
    if text.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes()) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let sources = sources(*place, text, &directory);
    let read = sources.load();
    let right = sources.load_lenient();
    assert_hidden(&format!("{right:?}"));
    match &read {
        Ok(config) => {
            assert_eq!(config, &right);
            check_printed(config, &directory);
        }
        Err(problems) => check_problems(problems, &sources),
    }
    check_reload(&sources, &read);
}

fn sources(place: u8, text: &[u8], directory: &TempDir) -> Sources {
    let mut parts = text.splitn(3, |byte| *byte == 0);
    let mut file = parts.next().unwrap_or_default().to_vec();
    let mut environment: Environment =
        pairs(parts.next()).map(|(name, value)| (variable(&name), value)).collect();
    let mut flags = flags(pairs(parts.next()));
    match place % 6 {
        0 => {}
        1 => flags.password = Some(Secret::from(SECRET.to_owned())),
        2 => _ = environment.insert(variable("REDIS__PASSWORD"), SECRET.to_owned()),
        3 => {
            // The previous content comes behind the password.
            let rest = environment.remove(&variable("REDIS__URL")).unwrap_or_default();
            environment.insert(variable("REDIS__URL"), format!("redis://user:{SECRET}{rest}"));
        }
        4 => file = [b"[redis]\npassword = \"", SECRET.as_bytes(), &file].concat(),
        _ => file = [b"redis.url = \"redis://:", SECRET.as_bytes(), &file].concat(),
    }
    let path = directory.path().join("redis-proxy.toml");
    fs::write(&path, file).expect("the file is written");
    flags.config = Some(path);
    Sources { flags, environment }
}

fn variable(name: &str) -> String {
    format!("REDIS_PROXY_{name}")
}

/// Returns the lines of `part` with a `=`, divided there.
fn pairs(part: Option<&[u8]>) -> impl Iterator<Item = (String, String)> {
    let text = String::from_utf8_lossy(part.unwrap_or_default()).into_owned();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>().into_iter()
}

fn flags(pairs: impl Iterator<Item = (String, String)>) -> Flags {
    let mut flags = Flags::default();
    for (name, value) in pairs {
        match &*name {
            "redis_host" => flags.redis_host = Some(value),
            "redis_port" => flags.redis_port = Some(value),
            "password" => flags.password = Some(Secret::from(value)),
            "ttl" => flags.ttl = Some(value),
            "k" => flags.k = Some(value),
            "resp_listen" => flags.resp_listen = Some(value),
            "max_connections" => flags.max_connections = Some(value),
            "proxy_host" => flags.proxy_host = Some(value),
            "proxy_port" => flags.proxy_port = Some(value),
            _ => {}
        }
    }
    flags
}

fn assert_hidden(text: &str) {
    assert!(!text.contains(SECRET), "a password shows in {text}");
}

/// Checks that every problem names its place, the expectation and the error, on a line of its own.
fn check_problems(problems: &Problems, sources: &Sources) {
    assert!(!problems.0.is_empty());
    let path = sources.flags.config.as_deref().map(Path::display).map(|path| path.to_string());
    for problem in &problems.0 {
        let is_flag = problem.origin.starts_with("--");
        let is_source = Some(&problem.origin) == path.as_ref()
            || sources.environment.contains_key(&problem.origin);
        assert!(is_flag || is_source || problem.origin == "defaults", "{problem}");
        assert!(is_source || !problem.key.is_empty(), "{problem} names neither a key nor a source");
        assert!(!problem.text.is_empty(), "{problem:?}");
    }
    let text = problems.to_string();
    assert_hidden(&text);
    assert_hidden(&format!("{problems:?}"));
    assert_eq!(text.lines().count(), problems.0.len(), "{text:?}");
    assert!(!text.contains(|letter: char| letter.is_control() && letter != '\n'), "{text:?}");
}

/// Checks that the output of `--print-config` loads to the same configuration.
fn check_printed(config: &Config, directory: &TempDir) {
    let printed = config.to_toml().expect("a configuration can be printed");
    assert_hidden(&printed);
    let again =
        Sources { flags: file(directory, &printed), environment: Environment::new() }.load();
    let again =
        again.unwrap_or_else(|problems| panic!("{problems}\nin what was printed:\n{printed}"));
    assert_eq!(again.to_toml().expect("a configuration can be printed"), printed);
}

fn file(directory: &TempDir, text: &str) -> Flags {
    let path: PathBuf = directory.path().join("printed.toml");
    fs::write(&path, text).expect("the file is written");
    Flags { config: Some(path), ..Flags::default() }
}

/// Checks that a reload accepts and rejects the same as a start, if no change needs one.
fn check_reload(sources: &Sources, read: &Result<Config, Problems>) {
    match (sources.reload(&Config::default()), read) {
        (Ok(new), Ok(config)) => assert_eq!(&new, config),
        (Ok(_), Err(problems)) => panic!("a reload passes over {problems}"),
        (Err(more), Err(problems)) => {
            assert!(more.0.starts_with(&problems.0), "{more:?} without {problems:?}");
            assert_hidden(&more.to_string());
        }
        (Err(problems), Ok(config)) => {
            assert_hidden(&problems.to_string());
            assert_eq!(sources.reload(config).as_ref(), Ok(config));
        }
    }
}
