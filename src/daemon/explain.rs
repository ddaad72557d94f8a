//! `redis-proxy explain`: the state of a key in memory, as text.

use serde_json::Value;

/// Renders the JSON of `/cache/{key}` as lines. `None` if it is no such JSON.
pub fn render(state: &str) -> Option<String> {
    let state: Value = serde_json::from_str(state).ok()?;
    let text = |key: &str| state[key].as_str().unwrap_or_default().to_owned();
    let rule = match state["rule"].as_str() {
        Some(rule) => format!("{rule}, mode {}", text("mode")),
        None => "none".to_owned(),
    };
    let lines = [
        ("key", state["key"].as_str()?.to_owned()),
        ("answer", text("answer")),
        ("value", value(&state["value"])),
        ("replies", replies(&state["replies"])),
        ("rule", rule),
        ("ttl", seconds(&state["ttl_seconds"])),
        ("last invalidation", invalidation(&state["last_invalidation"])),
        ("coherence", text("coherence")),
    ];
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    Some(lines.map(|(name, text)| format!("{name:width$}  {text}\n")).concat())
}

fn value(value: &Value) -> String {
    let Some(state) = value["state"].as_str() else { return "none".to_owned() };
    let size = match value["value_bytes"].as_u64() {
        Some(bytes) => format!("{bytes} bytes"),
        None => "absent in Redis".to_owned(),
    };
    let mut parts = vec![state.to_owned(), size, format!("age {}", seconds(&value["age_seconds"]))];
    if !value["remaining_seconds"].is_null() {
        parts.push(format!("fresh for {}", seconds(&value["remaining_seconds"])));
    }
    if !value["expires_in_seconds"].is_null() {
        parts.push(format!("expires in {}", seconds(&value["expires_in_seconds"])));
    }
    parts.join(", ")
}

fn replies(replies: &Value) -> String {
    let counts: Vec<_> = replies
        .as_object()
        .map(|replies| replies.iter().map(|(name, count)| format!("{name} {count}")).collect())
        .unwrap_or_default();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

fn invalidation(invalidation: &Value) -> String {
    match invalidation["cause"].as_str() {
        Some(cause) => format!("{} ago, {cause}", seconds(&invalidation["seconds_ago"])),
        None => "none known".to_owned(),
    }
}

fn seconds(seconds: &Value) -> String {
    format!("{:.1} s", seconds.as_f64().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_lines() {
        let state = r#"{
            "key": "session:1", "kept": true, "answer": "from memory",
            "value": {"state": "fresh", "age_seconds": 1.23, "remaining_seconds": 58.77,
                "expires_in_seconds": null, "value_bytes": 100},
            "replies": {"HGET": 3, "HGETALL": 1},
            "rule": "session:*", "mode": "cache", "ttl_seconds": 60, "fetching": false,
            "last_invalidation": {"seconds_ago": 5, "cause": "key"}, "coherence": "tracking"
        }"#;
        let expected = "key                session:1\n\
            answer             from memory\n\
            value              fresh, 100 bytes, age 1.2 s, fresh for 58.8 s\n\
            replies            HGET 3, HGETALL 1\n\
            rule               session:*, mode cache\n\
            ttl                60.0 s\n\
            last invalidation  5.0 s ago, key\n\
            coherence          tracking\n";
        assert_eq!(render(state).unwrap(), expected);
        let unknown = r#"{"key": "k", "replies": {}, "value": null, "rule": null}"#;
        assert!(render(unknown).unwrap().contains("value              none\n"));
        assert_eq!(render("{}"), None);
    }
}
