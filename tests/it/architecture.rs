//! Rooms, and the files inside each of them, use each other in one direction, as ARCHITECTURE.md
//! says.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room with those it may use.
const ALLOWED: [(&str, &str); 27] = [
    ("access", "settings"),
    ("backend", "cache key metrics net protocol settings sync telemetry"),
    ("boxed", ""),
    ("cache", "boxed key protocol settings sync telemetry"),
    ("cli", "settings"),
    ("client", "net settings"),
    ("cluster", "backend cache key metrics sync"),
    (
        "commands",
        "access backend boxed cache key metrics net protocol proxy settings telemetry verify",
    ),
    ("config", "access backend cache cli http resp rest settings telemetry verify warmup"),
    ("console", "client"),
    (
        "daemon",
        "access backend cache client cluster commands config http metrics proxy resp rest server \
            settings status telemetry \
         upstream verify warmup",
    ),
    (
        "http",
        "access backend boxed cache key metrics net proxy server settings status sync telemetry",
    ),
    ("key", ""),
    ("metrics", "cache sync"),
    ("net", "sync"),
    ("protocol", ""),
    ("proxy", "backend cache cluster key metrics protocol telemetry upstream verify"),
    (
        "resp",
        "access backend cache cluster commands metrics net protocol proxy server settings status \
         sync verify",
    ),
    (
        "rest",
        "access backend commands http key metrics protocol proxy resp server settings sync telemetry",
    ),
    ("server", "access metrics net settings sync"),
    ("settings", ""),
    ("status", "cache metrics proxy sync"),
    ("sync", ""),
    ("telemetry", "settings sync"),
    ("upstream", "backend cache cluster key metrics protocol telemetry"),
    ("verify", "backend cache key metrics protocol settings upstream"),
    ("warmup", "proxy settings sync telemetry"),
];

#[test]
fn rooms_use_only_what_they_may() {
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ALLOWED.iter().map(|(room, uses)| (*room, uses.split_whitespace().collect())).collect();
    let sources = Sources::read();
    let rooms: BTreeSet<_> = sources.0.keys().filter_map(|file| file.first()).collect();
    assert_eq!(rooms.len(), ALLOWED.len(), "{rooms:?}");
    for (file, used) in sources.edges() {
        let (Some(room), Some(other)) = (file.first(), used.first()) else { continue };
        let may =
            allowed.get(room.as_str()).unwrap_or_else(|| panic!("{room} is not in the list above"));
        assert!(
            room == other || may.contains(other.as_str()),
            "{} uses {}, which {room} may not",
            file.join("/"),
            used.join("/")
        );
    }
}

#[test]
fn rooms_have_no_circle() {
    let edges = ALLOWED.iter().flat_map(|(room, uses)| {
        uses.split_whitespace().map(|used| (vec![(*room).to_owned()], vec![used.to_owned()]))
    });
    assert_eq!(circle(&edges.collect()), None);
}

#[test]
fn files_of_a_room_have_no_circle() {
    let is_inside = |(file, used): &(Module, Module)| file.first() == used.first();
    let edges = Sources::read().edges().into_iter().filter(is_inside).collect();
    assert_eq!(circle(&edges), None);
}

#[test]
fn prometheus_and_hashbrown_have_few_users() {
    for (library, homes) in [
        (
            "prometheus::",
            &[
                "metrics/mod.rs",
                "metrics/openmetrics.rs",
                "metrics/per_thread.rs",
                "metrics/pull.rs",
                "daemon/start_error.rs",
            ][..],
        ),
        ("hashbrown::", &["cache/store.rs", "cache/flight.rs"]),
    ] {
        for path in files() {
            let uses = fs::read_to_string(&path).expect("a source file").contains(library);
            assert!(
                !uses || homes.iter().any(|home| path.ends_with(home)),
                "{} uses {library}",
                path.display()
            );
        }
    }
}

/// The path of a module, without `crate`.
type Module = Vec<String>;

/// The code of each module.
struct Sources(BTreeMap<Module, String>);

/// A path that code names, and whether it is named only to be known here by another name too.
#[derive(Debug, PartialEq)]
struct Named {
    path: Vec<String>,
    is_reexport: bool,
}

impl Sources {
    /// Those of the library, but the root and tests.
    fn read() -> Self {
        let root = root();
        let module = |path: PathBuf| {
            let file = path.strip_prefix(&root).expect("a file of src").with_extension("");
            let mut module: Module =
                file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            module.pop_if(|last| last == "mod");
            (module, fs::read_to_string(path).expect("a source file"))
        };
        let is_root = |module: &Module| module.len() == 1 && ["lib", "main"].contains(&&*module[0]);
        let is_test = |module: &Module| module.iter().any(|part| part == "tests");
        Self(
            files()
                .into_iter()
                .map(module)
                .filter(|(module, _)| !is_root(module) && !is_test(module))
                .collect(),
        )
    }

    /// Which module uses which.
    fn edges(&self) -> BTreeSet<(Module, Module)> {
        let mut edges = BTreeSet::new();
        for (module, text) in &self.0 {
            for named in names_in(text, module, &self.children(module)) {
                if let Some(used) = self.resolve(&named.path).filter(|_| !named.is_reexport)
                    && used != *module
                {
                    edges.insert((module.clone(), used));
                }
            }
        }
        edges
    }

    fn children(&self, module: &Module) -> BTreeSet<String> {
        let is_child =
            |other: &&Module| other.len() == module.len() + 1 && other.starts_with(module);
        self.0.keys().filter(is_child).filter_map(|child| child.last().cloned()).collect()
    }

    /// The module in which what has this path is defined.
    fn resolve(&self, path: &[String]) -> Option<Module> {
        let depth = (0..=path.len()).rev().find(|depth| self.0.contains_key(&path[..*depth]))?;
        let module = path[..depth].to_vec();
        let Some(item) = path.get(depth) else { return Some(module) };
        let reexports = names_in(self.0.get(&module)?, &module, &self.children(&module));
        let real = reexports.into_iter().find(|named| {
            named.is_reexport && named.path.last() == Some(item) && named.path != path[..=depth]
        });
        real.map_or(Some(module), |named| self.resolve(&named.path))
    }
}

/// The paths that the code of `module` names, but that of its tests.
fn names_in(text: &str, module: &Module, children: &BTreeSet<String>) -> Vec<Named> {
    let mut names = Vec::new();
    let (code, _tests) = text.split_once("#[cfg(test)]").unwrap_or((text, ""));
    let code: String = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut rest = &code[..];
    let mut last = ' ';
    while let Some(letter) = rest.chars().next() {
        let word = word(rest);
        if word.is_empty() {
            last = letter;
            rest = &rest[letter.len_utf8()..];
            continue;
        }
        let behind = &rest[word.len()..];
        if word == "use" && last != ':' {
            let tree = behind.split(';').next().unwrap_or_default();
            let is_reexport = code[..code.len() - rest.len()].trim_end().ends_with(['b', ')']);
            let paths = flatten(tree.trim())
                .into_iter()
                .filter_map(|path| absolute(&path, module, children));
            names.extend(paths.map(|path| Named { path, is_reexport }));
            rest = &behind[tree.len()..];
            continue;
        }
        if behind.starts_with("::") && last != ':' {
            let path = flatten(&rest[..path_length(rest)]);
            let paths = path.into_iter().filter_map(|path| absolute(&path, module, children));
            names.extend(paths.map(|path| Named { path, is_reexport: false }));
        }
        last = 'a';
        rest = behind;
        if let Some(after) = rest.strip_prefix("::") {
            last = ':';
            rest = after;
        }
    }
    names
}

/// The length of the path at the start of `text`, in bytes.
fn path_length(text: &str) -> usize {
    let mut length = word(text).len();
    while let Some(rest) = text[length..].strip_prefix("::") {
        let next = word(rest).len();
        if next == 0 {
            break;
        }
        length += 2 + next;
    }
    length
}

/// The word that `text` begins with.
fn word(text: &str) -> &str {
    let end = text.find(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
    &text[..end.unwrap_or(text.len())]
}

/// The paths of a tree such as `a::{b, c::{self, d}, e as f}`.
fn flatten(tree: &str) -> Vec<Vec<String>> {
    let Some((head, braces)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        return vec![path.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let head: Vec<_> = head
        .split("::")
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect();
    let inner = braces.trim_end().strip_suffix('}').unwrap_or(braces);
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for letter in inner.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if letter == ',' && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().expect("a part").push(letter);
        }
    }
    let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    let paths = parts.flat_map(flatten).map(|mut path| {
        path.pop_if(|last| last == "self");
        [head.clone(), path].concat()
    });
    paths.collect()
}

/// A path of this crate from its root, as `module` means it.
fn absolute(path: &[String], module: &Module, children: &BTreeSet<String>) -> Option<Vec<String>> {
    let (first, rest) = path.split_first()?;
    match &**first {
        "crate" => Some(rest.to_vec()),
        "self" => Some([module, rest].concat()),
        "super" => {
            let outer = module[..module.len().checked_sub(1)?].to_vec();
            if rest.first().is_some_and(|next| next == "super") {
                return absolute(rest, &outer, children);
            }
            Some([&outer, rest].concat())
        }
        child if children.contains(child) => Some([module, path].concat()),
        _ => None,
    }
}

/// A circle, if there is one.
fn circle(edges: &BTreeSet<(Module, Module)>) -> Option<Vec<String>> {
    let mut left: BTreeSet<_> = edges.iter().collect();
    // Who is used by nobody who is left, and who uses nobody, is in no circle.
    loop {
        let users: BTreeSet<_> = left.iter().map(|(user, _)| user).collect();
        let used: BTreeSet<_> = left.iter().map(|(_, used)| used).collect();
        let before = left.len();
        left.retain(|(user, other)| used.contains(user) && users.contains(other));
        if left.len() == before {
            break;
        }
    }
    let edge =
        |(user, used): &&(Module, Module)| format!("{} -> {}", user.join("/"), used.join("/"));
    (!left.is_empty()).then(|| left.iter().map(edge).collect())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All source files.
fn files() -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![root()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

fn sources(files: &[(&str, &str)]) -> Sources {
    let module = |path: &str| path.split('/').map(str::to_owned).collect();
    Sources(files.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect())
}

fn edges(files: &[(&str, &str)]) -> Vec<String> {
    let edge =
        |(user, used): &(Module, Module)| format!("{} -> {}", user.join("/"), used.join("/"));
    sources(files).edges().iter().map(edge).collect()
}

#[test]
fn edge_finder_sees_nested_folders_and_super() {
    let found = edges(&[
        ("a", "mod b;\nuse self::b::B;"),
        ("a/b", "mod c;\nuse super::d::{D, self};"),
        ("a/b/c", "use super::super::d::D;\nuse crate::e;"),
        ("a/d", "fn f() { let x = crate::e::g(); }"),
        ("e", "// crate::a::d::D\nuse std::e::a;"),
    ]);
    assert_eq!(found, ["a -> a/b", "a/b -> a/d", "a/b/c -> a/d", "a/b/c -> e", "a/d -> e"]);
}

#[test]
fn edge_finder_follows_reexports_to_where_items_are_defined() {
    let found = edges(&[
        ("a", "mod b;\nmod c;\npub use self::b::{B, Other};\nstruct Own;\nfn f() { c::run() }"),
        ("a/b", "pub struct B;"),
        ("a/c", "use super::{B, Own};"),
        ("d", "pub(crate) use crate::a::Other;\nuse crate::{a::B, d};"),
    ]);
    assert_eq!(found, ["a -> a/c", "a/c -> a", "a/c -> a/b", "d -> a/b"]);
}

#[test]
fn edge_finder_leaves_tests_out() {
    let found = edges(&[
        ("a", "use crate::b;\n#[cfg(test)]\nmod tests {\n use crate::c; }"),
        ("b", ""),
        ("c", ""),
    ]);
    assert_eq!(found, ["a -> b"]);
}

#[test]
fn circles_are_found_and_trees_are_not_circles() {
    let edges_of = |text: &[(&str, &str)]| sources(text).edges();
    let tree = edges_of(&[("a", "use crate::{b, c};"), ("b", "use crate::c;"), ("c", "")]);
    assert_eq!(circle(&tree), None);
    let round = edges_of(&[("a", "use crate::b;"), ("b", "use crate::c;"), ("c", "use crate::b;")]);
    assert_eq!(circle(&round), Some(vec!["b -> c".to_owned(), "c -> b".to_owned()]));
}
