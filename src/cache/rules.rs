//! Rules by prefix: how the keys that begin with a prefix are cached. The longest prefix wins.
//!
//! Model: [`Rules`] holds the rules in force for all caches that share one bound on memory. Each
//! cache has the same [`RuleSet`] beside its store, so a lookup loads both with one step, and a
//! cache without rules only compares a pointer with null.
//!
//! A rule is applied at each read, as the TTLs are. So a changed rule applies at once to what is
//! cached already.

use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;

use super::settings::{KeyRule, RuleMode, Settings};
use super::ttl::Ttls;
use super::types::{LookupUse, RuleId};
use crate::sync::lock;

/// The way in which a read of one or more keys is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) id: RuleId,
    pub(super) mode: RuleMode,
    pub(super) ttls: Ttls,
    /// The largest value or reply that is kept, in bytes.
    pub(super) max_value: usize,
    /// Whether hot keys are fetched again before a reader needs that.
    pub(super) refreshes: bool,
    /// Whether a lookup needs only the TTLs: the mode is `cache`, and nothing is refreshed.
    pub(super) is_plain: bool,
}

impl Terms {
    /// The terms of a key without a rule.
    #[inline]
    pub(super) fn without_rule(ttls: Ttls) -> Self {
        let (mode, max_value) = (RuleMode::Cache, usize::MAX);
        Self { id: RuleId::NONE, mode, ttls, max_value, refreshes: false, is_plain: true }
    }

    /// Whether a lookup for this purpose may have a result.
    #[inline]
    pub(super) fn allows(&self, purpose: LookupUse) -> bool {
        match self.mode {
            RuleMode::Cache => true,
            RuleMode::Observe => purpose == LookupUse::Observe,
            RuleMode::Off => false,
        }
    }

    /// Returns the terms of a command with keys of both: the stricter mode, the smaller TTL and the
    /// smaller size. The read is counted for the rule with the stricter mode, or the smaller TTL.
    fn and(self, other: Self) -> Self {
        let is_stricter = |one: &Self, other: &Self| {
            (other.mode, std::cmp::Reverse(other.ttls.ttl))
                > (one.mode, std::cmp::Reverse(one.ttls.ttl))
        };
        let strictest = if is_stricter(&self, &other) { other } else { self };
        let ttls = if other.ttls.ttl < self.ttls.ttl { other.ttls } else { self.ttls };
        Self { ttls, max_value: self.max_value.min(other.max_value), ..strictest }
    }
}

/// The rules of one configuration, prepared for lookups.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RuleSet {
    /// The rules by the first byte of their prefix, in a list with the longest prefix first.
    lists: [RuleList; 256],
    /// The terms of all other keys.
    others: Terms,
    /// The longest time for which a key may be served as stale.
    longest_stale_if_error: u64,
}

type RuleList = Option<Box<PreparedRule>>;

/// A rule, prepared so that most comparisons are of one number.
#[derive(Debug, PartialEq, Eq)]
struct PreparedRule {
    /// The first bytes of the prefix, and the bits of a key's first bytes that they are compared
    /// with.
    head: u64,
    mask: u64,
    prefix: Box<[u8]>,
    terms: Terms,
    /// The rules to compare next.
    next: RuleList,
}

/// The bytes in the head of a prefix.
const HEAD: usize = size_of::<u64>();

impl PreparedRule {
    fn new(prefix: &[u8], terms: Terms, next: RuleList) -> Self {
        let (mut head, mut mask) = ([0; HEAD], [0; HEAD]);
        for ((head, mask), byte) in head.iter_mut().zip(&mut mask).zip(prefix) {
            (*head, *mask) = (*byte, u8::MAX);
        }
        let (head, mask) = (u64::from_ne_bytes(head), u64::from_ne_bytes(mask));
        Self { head, mask, prefix: prefix.into(), terms, next }
    }

    /// Whether the head is only a part of the prefix.
    #[inline]
    fn is_longer_than_head(&self) -> bool {
        self.prefix.len() > HEAD
    }
}

impl RuleSet {
    fn new(settings: &Settings, id: impl Fn(&KeyRule) -> RuleId) -> Self {
        let mut others = Terms::without_rule(settings.ttls());
        let mut prefixes = Vec::new();
        for rule in &settings.rules {
            let terms = terms(settings, rule, id(rule));
            match rule.keys.prefix() {
                b"" => others = terms,
                prefix => prefixes.push((prefix, terms)),
            }
        }
        let all = prefixes.iter().map(|(_, terms)| terms).chain([&others]);
        let longest_stale_if_error = all.map(|terms| terms.ttls.stale_if_error).max().unwrap_or(0);
        prefixes.sort_by_key(|(prefix, _)| prefix.len());
        let mut lists = [const { None }; 256];
        // Each goes in front of those that are shorter.
        for (prefix, terms) in prefixes {
            let list = &mut lists[usize::from(prefix[0])];
            *list = Some(Box::new(PreparedRule::new(prefix, terms, list.take())));
        }
        Self { lists, others, longest_stale_if_error }
    }

    /// Returns the terms of a key.
    #[inline]
    pub(super) fn find(&self, key: &[u8]) -> &Terms {
        let Some(head @ [first, ..]) = key.first_chunk::<HEAD>() else {
            let list = key.first().map(|first| &self.lists[usize::from(*first)]);
            return list.map_or(&self.others, |list| self.find_by_bytes(list, key));
        };
        let head = u64::from_ne_bytes(*head);
        let mut list = &self.lists[usize::from(*first)];
        while let Some(rule) = list {
            if head & rule.mask == rule.head {
                if rule.is_longer_than_head() {
                    return self.find_by_bytes(list, key);
                }
                return &rule.terms;
            }
            list = &rule.next;
        }
        &self.others
    }

    /// Returns the terms of a key by the rest of a list. Apart, so that most searches contain no
    /// call: they would have to save their registers for it.
    #[inline(never)]
    fn find_by_bytes<'a>(&'a self, mut rest: &'a RuleList, key: &[u8]) -> &'a Terms {
        while let Some(rule) = rest {
            if key.starts_with(&rule.prefix) {
                return &rule.terms;
            }
            rest = &rule.next;
        }
        &self.others
    }

    /// Returns the terms of a command with these keys.
    pub(super) fn find_all<'a>(&self, mut keys: impl Iterator<Item = &'a [u8]>) -> Terms {
        let first = keys.next().map_or(self.others, |key| *self.find(key));
        keys.fold(first, |terms, key| terms.and(*self.find(key)))
    }

    /// Returns the longest time for which a key may be served as stale.
    pub(super) fn longest_stale_if_error(&self) -> u64 {
        self.longest_stale_if_error
    }
}

/// Returns the terms of a rule. Keys that it leaves out have the value of the section.
fn terms(settings: &Settings, rule: &KeyRule, id: RuleId) -> Terms {
    let ttls = Ttls::new(
        rule.ttl.unwrap_or(settings.ttl),
        rule.negative_ttl.unwrap_or(settings.negative_ttl),
        rule.stale_if_error.unwrap_or(settings.stale_if_error),
    );
    let max_value = rule.max_value.map_or(usize::MAX, |size| size.0);
    let ttls = if rule.mode == RuleMode::Off { Ttls::NOTHING } else { ttls };
    // With another mode no reader would be spared a fetch.
    let refreshes = rule.refresh && rule.mode == RuleMode::Cache;
    let is_plain = rule.mode == RuleMode::Cache && !refreshes;
    Terms { id, mode: rule.mode, ttls, max_value, refreshes, is_plain }
}

/// The rules in force, and the names of all rules since the start.
#[derive(Debug, Default)]
pub struct Rules {
    current: ArcSwapOption<RuleSet>,
    /// Whether there are rules in force. Where there are none, a read does not load them.
    are_any: AtomicBool,
    /// The prefixes, each with a `*`, by the index of their identity.
    names: Mutex<Vec<String>>,
}

impl Rules {
    /// Applies the rules of `settings`.
    pub(super) fn apply(&self, settings: &Settings) {
        let mut names = lock(&self.names);
        for rule in &settings.rules {
            let name = rule.keys.to_string();
            if !names.contains(&name) && names.len() < RuleId::MOST {
                names.push(name);
            }
        }
        let id = |rule: &KeyRule| {
            let name = rule.keys.to_string();
            names.iter().position(|other| *other == name).map_or(RuleId::NONE, RuleId::at)
        };
        let rules = (!settings.rules.is_empty()).then(|| Arc::new(RuleSet::new(settings, id)));
        let are_any = rules.is_some();
        self.current.store(rules);
        self.are_any.store(are_any, Release);
    }

    /// Returns the rules in force; `None` if there are none.
    pub(super) fn current(&self) -> Option<Arc<RuleSet>> {
        self.current.load_full()
    }

    /// Whether there are rules in force.
    #[inline]
    pub(super) fn are_any(&self) -> bool {
        self.are_any.load(Acquire)
    }

    /// Returns the rule and the mode for a read of these keys; `None` without rules.
    pub fn find<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Option<(RuleId, RuleMode)> {
        if !self.are_any() {
            return None;
        }
        let current = self.current.load();
        let terms = current.as_ref()?.find_all(keys);
        Some((terms.id, terms.mode))
    }

    /// Returns the names of all rules since the start, by the index of their identity.
    pub fn names(&self) -> Vec<String> {
        lock(&self.names).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::ttl::as_nanos;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rule(keys: &str, mode: RuleMode, ttl: Option<u64>) -> KeyRule {
        let keys = keys.to_owned().try_into().unwrap();
        KeyRule { mode, ttl: ttl.map(Duration::from_secs), ..KeyRule::new(keys) }
    }

    fn settings(rules: Vec<KeyRule>) -> Settings {
        Settings { rules, ttl: 60 * SECOND, ..Settings::default() }
    }

    fn rules(rules: Vec<KeyRule>) -> Rules {
        let all = Rules::default();
        all.apply(&settings(rules));
        all
    }

    fn name(rules: &Rules, key: &str) -> String {
        let id = rules.current().unwrap().find(key.as_bytes()).id;
        id.index().map_or_else(String::new, |index| rules.names()[index].clone())
    }

    #[test]
    fn longest_prefix_wins() {
        let mode = RuleMode::Cache;
        let prefixes = ["s:*", "session:*", "session:admin:*", "t*", "se*", "\u{e4}*"];
        let mut all: Vec<_> = prefixes.map(|keys| rule(keys, mode, None)).into();
        let without = rules(all.clone());
        all.push(rule("*", mode, None));
        let with = rules(all);
        for (key, expected) in [
            ("session:1", "session:*"),
            ("session:", "session:*"),
            ("session", "se*"),
            ("session:admin:1", "session:admin:*"),
            ("session:admin", "session:*"),
            ("session:admin;1", "session:*"),
            ("sessions", "se*"),
            ("s:1", "s:*"),
            ("t", "t*"),
            ("\u{e4}1", "\u{e4}*"),
            ("s", ""),
            ("", ""),
            ("zebra", ""),
            ("\0", ""),
        ] {
            assert_eq!(name(&without, key), expected, "{key:?}");
            let expected = if expected.is_empty() { "*" } else { expected };
            assert_eq!(name(&with, key), expected, "{key:?}");
        }
        assert_eq!(without.current().unwrap().find(b"\xff\xff").id, RuleId::NONE);
        // A short key is not taken for one with zeros behind it.
        let zeros = rules(vec![rule("a\0\0*", mode, None)]);
        assert_eq!([name(&zeros, "a\0"), name(&zeros, "a\0\0")], ["", "a\0\0*"]);
    }

    /// Returns the rule of a key as a search through all prefixes finds it.
    fn longest<'a>(prefixes: &'a [String], key: &str) -> &'a str {
        let fitting = prefixes.iter().filter(|prefix| key.starts_with(&prefix[..prefix.len() - 1]));
        fitting.max_by_key(|prefix| prefix.len()).map_or("", |prefix| prefix)
    }

    #[test]
    fn as_many_rules_as_allowed_are_told_apart() {
        // One for each first byte; all with the same one, around the length of a head; and a mix.
        let apart = (b'0'..).take(KeyRule::MOST).map(|first| format!("{}:*", char::from(first)));
        let nested = (1..=KeyRule::MOST).map(|length| format!("{}*", "k".repeat(length)));
        let mixed = (0..KeyRule::MOST).map(|at| format!("{}{:0>1$}*", at % 5, at % 16));
        for prefixes in [apart.collect::<Vec<_>>(), nested.collect(), mixed.collect()] {
            let own =
                rules(prefixes.iter().map(|prefix| rule(prefix, RuleMode::Cache, None)).collect());
            let stems = prefixes.iter().map(|prefix| prefix.trim_end_matches('*'));
            let keys = stems.flat_map(|stem| {
                let shorter = stem[..stem.len() - 1].to_owned();
                [stem.to_owned(), format!("{stem}0"), format!("{stem}key:00000000"), shorter]
            });
            for key in keys {
                assert_eq!(name(&own, &key), longest(&prefixes, &key), "{key:?}");
            }
        }
    }

    #[test]
    fn rule_inherits_what_it_leaves_out() {
        let rules =
            rules(vec![rule("a*", RuleMode::Cache, Some(5)), rule("b*", RuleMode::Off, Some(5))]);
        let current = rules.current().unwrap();
        assert_eq!(current.find(b"a").ttls.ttl, as_nanos(5 * SECOND));
        assert_eq!(current.find(b"c").ttls.ttl, as_nanos(60 * SECOND));
        assert_eq!(current.find(b"b").ttls, Ttls::NOTHING);
        assert_eq!(current.find(b"a").max_value, usize::MAX);
    }

    #[test]
    fn only_mode_cache_refreshes() {
        for (mode, expected) in
            [(RuleMode::Cache, true), (RuleMode::Observe, false), (RuleMode::Off, false)]
        {
            let refreshing = KeyRule { refresh: true, ..rule("a*", mode, None) };
            let rules = rules(vec![refreshing, rule("b*", mode, None)]);
            let current = rules.current().unwrap();
            let found = [b"a", b"b", b"c"].map(|key| current.find(key).refreshes);
            assert_eq!(found, [expected, false, false], "{mode:?}");
        }
    }

    #[test]
    fn command_of_several_keys_has_the_strictest_terms() {
        let small = KeyRule {
            max_value: Some(crate::settings::ByteSize(10)),
            ..rule("small*", RuleMode::Cache, Some(90))
        };
        let rules = rules(vec![
            rule("off*", RuleMode::Off, None),
            rule("see*", RuleMode::Observe, None),
            rule("short*", RuleMode::Cache, Some(1)),
            rule("long*", RuleMode::Cache, Some(100)),
            small,
        ]);
        let of = |keys: &str| {
            let current = rules.current().unwrap();
            let terms = current.find_all(keys.split(' ').map(str::as_bytes));
            let name = terms.id.index().map_or_else(String::new, |at| rules.names()[at].clone());
            (name, terms.mode, terms.ttls.ttl / as_nanos(SECOND), terms.max_value)
        };
        let any = usize::MAX;
        for (keys, (name, mode, ttl, max_value)) in [
            ("long1", ("long*", RuleMode::Cache, 100, any)),
            ("long1 short1", ("short*", RuleMode::Cache, 1, any)),
            ("short1 long1", ("short*", RuleMode::Cache, 1, any)),
            ("long1 none", ("", RuleMode::Cache, 60, any)),
            ("long1 small1", ("small*", RuleMode::Cache, 90, 10)),
            ("short1 small1", ("short*", RuleMode::Cache, 1, 10)),
            ("short1 see1", ("see*", RuleMode::Observe, 1, any)),
            ("see1 off1 short1", ("off*", RuleMode::Off, 0, any)),
        ] {
            assert_eq!(of(keys), (name.to_owned(), mode, ttl, max_value), "{keys}");
        }
    }

    #[test]
    fn identity_stays_with_the_prefix() {
        let rules =
            rules(vec![rule("a*", RuleMode::Cache, None), rule("b*", RuleMode::Cache, None)]);
        let id = |key: &[u8]| rules.find([key].into_iter()).unwrap().0;
        let (a, b) = (id(b"a"), id(b"b"));
        rules.apply(&settings(vec![
            rule("c*", RuleMode::Off, None),
            rule("b*", RuleMode::Off, None),
        ]));
        assert_eq!((id(b"b"), id(b"a")), (b, RuleId::NONE));
        assert_ne!(id(b"c"), a);
        rules.apply(&settings(Vec::new()));
        assert_eq!(rules.find([&b"a"[..]].into_iter()), None);
        assert_eq!(rules.names(), ["a*", "b*", "c*"]);
    }

    #[test]
    fn stale_time_of_any_rule_counts() {
        let stale =
            KeyRule { stale_if_error: Some(7 * SECOND), ..rule("a*", RuleMode::Cache, None) };
        let rules = rules(vec![rule("b*", RuleMode::Cache, None), stale]);
        assert_eq!(rules.current().unwrap().longest_stale_if_error(), as_nanos(7 * SECOND));
    }
}
