//! The explanation why a key is answered from memory or not.

use serde_json::{Value, json};

use crate::cache::{Coherence, EntryState, Freshness, KeyState, RuleMode};

/// Returns the state of a key as JSON. `name` is the key as it is written behind `/keys/`.
pub(super) fn explain(name: &str, state: &KeyState) -> Value {
    let seconds = |time: std::time::Duration| time.as_secs_f64();
    let entry = state.entry.map(|entry| {
        json!({
            "state": state_name(entry.freshness),
            "age_seconds": seconds(entry.age),
            "remaining_seconds": match entry.freshness {
                Freshness::Fresh { remaining } => Some(seconds(remaining)),
                Freshness::Stale { .. } | Freshness::Expired => None,
            },
            "expires_in_seconds": entry.expires_in.map(seconds),
            "value_bytes": entry.value_bytes,
        })
    });
    let invalidation = state
        .last_invalidation
        .map(|(since, cause)| json!({ "seconds_ago": seconds(since), "cause": cause.name() }));
    json!({
        "key": name,
        "kept": state.entry.is_some() || !state.replies.is_empty(),
        "answer": answer(state),
        "value": entry,
        "replies": state.replies,
        "rule": state.rule,
        "mode": state.mode.name(),
        "ttl_seconds": seconds(state.ttl),
        "fetching": state.is_fetching,
        "last_invalidation": invalidation,
        "coherence": state.coherence.name(),
    })
}

fn state_name(freshness: Freshness) -> &'static str {
    match freshness {
        Freshness::Fresh { .. } => "fresh",
        Freshness::Stale { .. } => "stale",
        Freshness::Expired => "expired",
    }
}

/// Returns what a read of the value gets, and why.
fn answer(state: &KeyState) -> &'static str {
    match (state.mode, state.entry) {
        (RuleMode::Off, _) => "from Redis: the rule of the key has mode off",
        (RuleMode::Observe, Some(EntryState { freshness: Freshness::Fresh { .. }, .. })) => {
            "from Redis: the rule of the key has mode observe; otherwise from memory"
        }
        (RuleMode::Observe, _) => "from Redis: the rule of the key has mode observe",
        (RuleMode::Cache, Some(entry)) => of_entry(state, entry),
        (RuleMode::Cache, None) => of_none(state),
    }
}

fn of_entry(state: &KeyState, entry: EntryState) -> &'static str {
    match (entry.freshness, state.coherence) {
        (Freshness::Fresh { .. }, _) if entry.value_bytes.is_none() => {
            "from memory: the key is known to be absent"
        }
        (Freshness::Fresh { .. }, _) => "from memory",
        (Freshness::Stale { .. }, Coherence::None) => {
            "from Redis; from memory while it cannot reply: no lease is valid"
        }
        (Freshness::Stale { .. }, _) => {
            "from Redis; from memory while it cannot reply: the TTL has ended"
        }
        (Freshness::Expired, Coherence::None) => "from Redis: no lease is valid",
        (Freshness::Expired, _) => "from Redis: the value has expired",
    }
}

fn of_none(state: &KeyState) -> &'static str {
    match state.last_invalidation {
        _ if state.ttl.is_zero() => "from Redis: the TTL of the key is 0",
        _ if state.is_fetching => "from a fetch that is in progress",
        Some(_) => "from Redis: not fetched since the last invalidation, evicted, or no string",
        None => "from Redis: not fetched yet, evicted, expired, or no string",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::cache::Invalidated;

    const SECOND: Duration = Duration::from_secs(1);

    fn state(mode: RuleMode, freshness: Option<Freshness>) -> KeyState {
        let entry = freshness.map(|freshness| EntryState {
            freshness,
            age: SECOND,
            value_bytes: Some(5),
            expires_in: None,
        });
        KeyState {
            entry,
            rule: None,
            mode,
            ttl: 60 * SECOND,
            is_fetching: false,
            replies: BTreeMap::new(),
            last_invalidation: None,
            coherence: Coherence::Tracking,
        }
    }

    #[test]
    fn answer_names_the_source_and_the_reason() {
        let fresh = Some(Freshness::Fresh { remaining: SECOND });
        let stale = Some(Freshness::Stale { past: SECOND });
        let invalidated = KeyState {
            last_invalidation: Some((SECOND, Invalidated::Key)),
            ..state(RuleMode::Cache, None)
        };
        let lost = KeyState {
            coherence: Coherence::None,
            ..state(RuleMode::Cache, Some(Freshness::Expired))
        };
        for (state, expected) in [
            (state(RuleMode::Cache, fresh), "from memory"),
            (state(RuleMode::Off, None), "mode off"),
            (state(RuleMode::Observe, fresh), "otherwise from memory"),
            (state(RuleMode::Observe, stale), "mode observe"),
            (state(RuleMode::Cache, stale), "TTL has ended"),
            (state(RuleMode::Cache, None), "not fetched yet"),
            (invalidated, "last invalidation"),
            (lost, "no lease"),
            (
                KeyState { ttl: Duration::ZERO, ..state(RuleMode::Cache, None) },
                "TTL of the key is 0",
            ),
            (KeyState { is_fetching: true, ..state(RuleMode::Cache, None) }, "in progress"),
        ] {
            let found = answer(&state);
            assert!(found.contains(expected), "{found}, not {expected}");
        }
    }
}
