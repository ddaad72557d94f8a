//! What Redis tells a tracked link: whatever a push looks like, the keys it names are dropped, or all are.

use redis::{Parser, PushInfo, PushKind, Value};
use redis_proxy::backend::{Invalidated, parse_push};

use super::pieces::{Cuts, InPieces, split};

/// The first four bytes cut the rest, which is taken for what Redis sends, and then for keys, divided by line ends, of
/// which a push is made.
///
/// # Panics
/// If a key that a push names would be kept.
pub fn check(input: &[u8]) {
    let Some((cuts, stream)) = split(input) else { return };
    for value in values(stream, cuts) {
        check_value(value);
    }
    let keys: Vec<_> = stream.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let told = values(&[&push_of(&keys)[..], b"+PONG\r\n"].concat(), cuts);
    let [Value::Push { kind, data }, Value::SimpleString(pong)] =
        <[Value; 2]>::try_from(told).expect("two answers")
    else {
        panic!("a push and an answer are something else");
    };
    assert_eq!(pong, "PONG");
    assert_eq!(parse_push(PushInfo { kind, data }), Some(Invalidated::Keys(keys)));
}

/// What Redis says, as far as it can be understood.
fn values(stream: &[u8], cuts: Cuts) -> Vec<Value> {
    let mut pieces = InPieces::new(stream, cuts);
    let mut parser = Parser::new();
    std::iter::from_fn(|| parser.parse_value(&mut pieces).ok()).collect()
}

/// As Redis tells of keys.
fn push_of(keys: &[Vec<u8>]) -> Vec<u8> {
    let mut push = format!(">2\r\n$10\r\ninvalidate\r\n*{}\r\n", keys.len()).into_bytes();
    for key in keys {
        push.extend_from_slice(format!("${}\r\n", key.len()).as_bytes());
        push.extend_from_slice(key);
        push.extend_from_slice(b"\r\n");
    }
    push
}

fn check_value(value: Value) {
    let Value::Push { kind, data } = value else { return };
    let is_about_keys = kind == PushKind::Invalidate;
    let named = bytes_in(&data);
    let is_key = |value: &Value| matches!(value, Value::BulkString(_));
    let is_plain = matches!(&data[..], [Value::Array(keys)] if keys.iter().all(is_key));
    let changed = parse_push(PushInfo { kind, data });
    match changed {
        None => assert!(!is_about_keys),
        Some(Invalidated::All) => assert!(is_about_keys && !is_plain, "{named:?}"),
        Some(Invalidated::Keys(keys)) => {
            assert!(is_about_keys && is_plain && keys == named, "{keys:?} of {named:?}");
        }
    }
}

/// Whatever could be a key, however deep.
fn bytes_in(values: &[Value]) -> Vec<Vec<u8>> {
    let bytes = values.iter().flat_map(|value| match value {
        Value::BulkString(bytes) => vec![bytes.clone()],
        Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => {
            bytes_in(values)
        }
        Value::Map(pairs) => {
            pairs.iter().flat_map(|(key, value)| bytes_in(&[key.clone(), value.clone()])).collect()
        }
        Value::Attribute { data, .. } => bytes_in(&[(**data).clone()]),
        _ => Vec::new(),
    });
    bytes.collect()
}
