//! The import graph of the modules.
//!
//! Promise: modules use each other in one direction, as ARCHITECTURE.md says.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with the modules that it may use.
const ALLOWED: [(&str, &str); 28] = [
    ("access", "problem"),
    ("activity", "request_line"),
    ("admin", "access hotkeys metrics problem proxy server units"),
    ("backend", "activity cache frame key metrics tcp trace units"),
    ("cache", "key trace units"),
    ("cli", "units"),
    ("cluster", "backend cache key metrics"),
    ("config", "access admin backend cache cli http resp server telemetry units warm"),
    (
        "daemon",
        "access admin backend cache cluster config hotkeys http metrics proxy resp server systemd \
            telemetry warm",
    ),
    ("frame", ""),
    ("health", "server"),
    ("hotkeys", ""),
    ("http", "access backend cache key metrics problem proxy server trace units"),
    ("key", ""),
    ("metrics", "cache"),
    ("output", ""),
    ("proxy", "backend cache cluster hotkeys key metrics trace"),
    ("problem", ""),
    ("request_line", ""),
    (
        "resp",
        "access backend cache cluster frame key metrics output proxy seldom server trace units",
    ),
    ("seldom", ""),
    ("server", "access activity metrics output problem request_line seldom tcp units"),
    ("systemd", ""),
    ("tcp", ""),
    ("telemetry", "trace units"),
    ("trace", ""),
    ("units", ""),
    ("warm", "hotkeys proxy units"),
];

#[test]
fn modules_use_only_allowed_modules() {
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ALLOWED.iter().map(|(module, uses)| (*module, uses.split_whitespace().collect())).collect();
    let sources = sources();
    assert!(sources.len() >= ALLOWED.len(), "{sources:?}");
    for (module, path) in sources {
        let text = fs::read_to_string(&path).expect("a source file");
        let may = allowed
            .get(module.as_str())
            .unwrap_or_else(|| panic!("{module} is not in the list above"));
        for used in modules_in(&text).into_iter().filter(|used| *used != module) {
            assert!(
                may.contains(used.as_str()),
                "{} uses {used}, which {module} may not",
                path.display()
            );
        }
    }
}

#[test]
fn prometheus_and_hashbrown_have_one_user_each() {
    for (library, home) in
        [("prometheus::", ["metrics.rs", "daemon.rs"]), ("hashbrown::", ["store.rs", "store.rs"])]
    {
        for (_, path) in sources() {
            let uses = fs::read_to_string(&path).expect("a source file").contains(library);
            assert!(
                !uses || home.iter().any(|name| path.ends_with(name)),
                "{} uses {library}",
                path.display()
            );
        }
    }
}

/// Returns every source file with its module, without the roots of library and program.
fn sources() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for entry in fs::read_dir(&root).expect("src") {
        let path = entry.expect("an entry").path();
        let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            let files =
                fs::read_dir(&path).expect("a module").map(|file| file.expect("an entry").path());
            found.extend(files.map(|file| (module.clone(), file)));
        } else if module != "lib" && module != "main" {
            found.push((module, path));
        }
    }
    found
}

/// Returns the modules named behind `crate::`, alone or in braces.
fn modules_in(text: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    let (code, _tests) = text.split_once("#[cfg(test)]").unwrap_or((text, ""));
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(braces) => modules.extend(first_words(braces)),
            None => modules.extend(first_word(rest)),
        }
    }
    modules
}

fn first_word(text: &str) -> Option<String> {
    let word: String =
        text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
    (!word.is_empty() && word.starts_with(char::is_lowercase)).then_some(word)
}

/// Returns the first word of each part of `a::b, c::{d, e}, f}` at the outer level.
fn first_words(text: &str) -> Vec<String> {
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for letter in text.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => parts.push(String::new()),
            _ => parts.last_mut().expect("a part").push(letter),
        }
    }
    parts.iter().filter_map(|part| first_word(part.trim())).collect()
}
