//! The check of `[[cache.rules]]`, the one key that is a list of tables. Each problem names the
//! table by its number, as in `cache.rules[2].ttl`. The first one is 0.

use config::{Map, Value, ValueKind};
use serde::Deserialize as _;

use super::problems::{Problem, explain, problem_at};
use crate::cache::KeyRule;

/// The key.
pub(super) const RULES: &str = "cache.rules";

/// The keys of a table.
pub(super) const FIELDS: [&str; 7] =
    ["keys", "mode", "ttl", "negative_ttl", "stale_if_error", "max_value", "refresh"];

/// The key that each table has.
const KEYS: &str = "keys";

/// The similarity, from 0 to 1, below which no key is suggested for another.
const MIN_SIMILARITY: f64 = 0.8;

/// Checks the tables one by one, and each of their keys by itself.
pub(super) fn check(value: &Value) -> Vec<Problem> {
    let ValueKind::Array(tables) = &value.kind else {
        let text = "expected [[cache.rules]] in the file: a list of tables is no text".to_owned();
        return vec![problem_at(RULES, Some(value), text)];
    };
    let mut problems: Vec<_> = tables.iter().enumerate().flat_map(check_table).collect();
    if tables.len() > KeyRule::MOST {
        let text = format!("found {} rules, expected at most {}", tables.len(), KeyRule::MOST);
        problems.push(problem_at(RULES, None, text));
    }
    problems.extend(duplicates(tables));
    let at = |problem: Problem| problem_at(&problem.key, Some(value), problem.text);
    problems.into_iter().map(at).collect()
}

fn check_table((index, table): (usize, &Value)) -> Vec<Problem> {
    let at = |name: &str, text: String| problem_at(&path(index, name), None, text);
    let ValueKind::Table(table) = &table.kind else {
        let text = "found no table, expected keys such as keys = \"session:*\"".to_owned();
        return vec![problem_at(&format!("{RULES}[{index}]"), None, text)];
    };
    let mut problems = Vec::new();
    if !table.contains_key(KEYS) {
        let text = "missing, expected a prefix with one * behind it, such as \"session:*\"";
        problems.push(at(KEYS, text.to_owned()));
    }
    for (name, value) in table {
        if !FIELDS.contains(&&**name) {
            problems.push(at(name, format!("unknown key; {}", hint(name))));
        } else if let Some(text) = refusal(name, value) {
            problems.push(at(name, text));
        }
    }
    problems.sort_by(|one, other| one.key.cmp(&other.key));
    problems
}

fn path(index: usize, name: &str) -> String {
    format!("{RULES}[{index}].{name}")
}

fn hint(name: &str) -> String {
    let similarity = |known: &str| strsim::jaro_winkler(known, name);
    let nearest = FIELDS.into_iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    match nearest.filter(|known| similarity(known) > MIN_SIMILARITY) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("the keys of a rule are {}", FIELDS.join(", ")),
    }
}

/// Returns the error of this key of a table for a value; `None` if it accepts it.
pub(super) fn refusal(name: &str, value: &Value) -> Option<String> {
    let mut table = Map::new();
    table.insert(KEYS.to_owned(), Value::new(None, ValueKind::String("*".to_owned())));
    table.insert(name.to_owned(), value.clone());
    let error = KeyRule::deserialize(Value::new(None, ValueKind::Table(table))).err()?;
    Some(explain(&error))
}

/// Returns a problem for each rule with the keys of an earlier one.
fn duplicates(tables: &[Value]) -> Vec<Problem> {
    let keys = |table: &Value| match &table.kind {
        ValueKind::Table(table) => table.get(KEYS)?.clone().into_string().ok(),
        _ => None,
    };
    let keys: Vec<_> = tables.iter().map(keys).collect();
    let duplicate = |(index, own): (usize, &Option<String>)| {
        let own = own.as_ref()?;
        let first = keys[..index].iter().position(|other| other.as_ref() == Some(own))?;
        let text = format!("found {own:?} again, which cache.rules[{first}] has: expected it once");
        Some(problem_at(&path(index, KEYS), None, text))
    };
    keys.iter().enumerate().filter_map(duplicate).collect()
}

/// Returns a note for each rule that takes a part of the keys of another.
pub(super) fn overlaps(rules: &[KeyRule]) -> Vec<String> {
    let prefix = |rule: &KeyRule| rule.keys.prefix().to_vec();
    let wider_than = |index: usize| {
        let own = prefix(&rules[index]);
        let others = rules.iter().enumerate().filter(|(other, _)| *other != index);
        others
            .filter(|(_, rule)| own.starts_with(rule.keys.prefix()))
            .max_by_key(|(_, rule)| rule.keys.prefix().len())
    };
    let note = |index: usize| {
        let (other, wider) = wider_than(index)?;
        let (own, wider) = (rules[index].keys.to_string(), wider.keys.to_string());
        Some(format!(
            "{}: {own:?} overlaps {wider:?} of cache.rules[{other}]; the longer prefix wins, and \
             inherits nothing from the shorter one",
            path(index, KEYS)
        ))
    };
    (0..rules.len()).filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_toml(text: &str) -> Vec<String> {
        let file = config::File::from_str(text, config::FileFormat::Toml);
        let tree = config::Config::builder().add_source(file).build().unwrap();
        let problems = check(&tree.get::<Value>("rules").unwrap());
        problems.into_iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect()
    }

    #[test]
    fn right_rules_have_no_problem() {
        let text = r#"
            [[rules]]
            keys = "a:*"
            mode = "observe"
            ttl = "5m"
            negative_ttl = "auto"
            stale_if_error = 60
            max_value = "64KiB"
            refresh = true
            [[rules]]
            keys = "*"
        "#;
        assert_eq!(check_toml(text), [""; 0]);
    }

    #[test]
    fn each_problem_names_its_key() {
        let text = r#"
            [[rules]]
            keys = "a"
            mode = "of"
            [[rules]]
            ttl = "soon"
            max_value = "64 apples"
            stale = 1
            [[rules]]
            keys = "x*"
            [[rules]]
            keys = "x*"
            colour = "red"
            negative_ttl = -1
            stale_if_error = true
            refresh = "often"
            [[rules]]
            keys = "a*b*"
        "#;
        let found = check_toml(text);
        let expected = [
            ("cache.rules[0].keys: ", "expected a prefix with one * behind it"),
            ("cache.rules[0].mode: ", "expected \"cache\" or \"observe\" or \"off\""),
            ("cache.rules[1].keys: ", "missing"),
            ("cache.rules[1].max_value: ", "expected a size"),
            ("cache.rules[1].stale: ", "did you mean stale_if_error?"),
            ("cache.rules[1].ttl: ", "expected a duration"),
            ("cache.rules[3].colour: ", "the keys of a rule are keys, mode"),
            ("cache.rules[3].negative_ttl: ", "found integer `-1`"),
            ("cache.rules[3].refresh: ", "found string"),
            ("cache.rules[3].stale_if_error: ", "found boolean `true`"),
            ("cache.rules[4].keys: ", "expected a prefix"),
            ("cache.rules[3].keys: ", "found \"x*\" again, which cache.rules[2] has"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, (key, text)) in found.iter().zip(expected) {
            assert!(found.starts_with(key) && found.contains(text), "{found} {key} {text}");
        }
    }

    #[test]
    fn number_of_rules_is_limited() {
        let rules = |count: usize| -> String {
            let rule = |number: usize| format!("[[rules]]\nkeys = \"{number}:*\"\n");
            (0..count).map(rule).collect::<Vec<_>>().concat()
        };
        assert_eq!(check_toml(&rules(64)), [""; 0]);
        assert_eq!(check_toml(&rules(65)), ["cache.rules: found 65 rules, expected at most 64"]);
    }

    #[test]
    fn overlap_names_the_next_wider_rule() {
        let rules = ["s*", "session:*", "t*", "session:a*"]
            .map(|keys| KeyRule::new(keys.to_owned().try_into().unwrap()));
        let notes = overlaps(&rules);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].starts_with("cache.rules[1].keys: \"session:*\" overlaps \"s*\""));
        assert!(notes[1].contains("overlaps \"session:*\" of cache.rules[1]"), "{}", notes[1]);
    }

    #[test]
    fn fields_are_those_of_a_rule() {
        let bad = Value::new(None, ValueKind::Table(Map::new()));
        for name in FIELDS {
            let text = refusal(name, &bad).unwrap();
            assert!(!text.contains("unknown field"), "{name}: {text}");
        }
        assert!(refusal("other", &bad).unwrap().contains("unknown field"));
    }
}
