//! Access to the parts of parsed replies.

use redis::Value;

/// Returns the value of a field of a map.
pub(super) fn field<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    let Value::Map(fields) = map else { return None };
    fields.iter().find(|(key, _)| text(key) == Some(name)).map(|(_, value)| value)
}

/// Returns the text of a string of any kind.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}
