//! The headers of responses with values, and the request headers that affect them.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::cache::{Answer, Freshness, Outcome, ReadMode, Value};

/// Adds `Cache-Status`, and `Age` if the answer comes from memory.
pub(super) fn put_cache_headers(answer: &Answer, headers: &mut HeaderMap) {
    insert_header(headers, CACHE_STATUS, cache_status(answer).as_bytes());
    if answer.outcome.from_memory() {
        headers.insert(header::AGE, answer.age.as_secs().into());
    }
}

pub(super) fn insert_header(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    // No value here contains a byte that is invalid in a header, so no header is skipped.
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(name, value);
    }
}

/// The `Cache-Status` header (RFC 9211).
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Returns the entity tag of a value, with its quotes.
pub(super) fn etag(value: Value<'_>) -> [u8; 34] {
    /// The two hexadecimal digits of each byte.
    static DIGITS: [[u8; 2]; 256] = {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut of_all = [[0; 2]; 256];
        let mut byte = 0;
        while byte < of_all.len() {
            of_all[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
            byte += 1;
        }
        of_all
    };
    let mut text = [b'"'; 34];
    for (at, byte) in value.digest().iter().enumerate() {
        [text[1 + 2 * at], text[2 + 2 * at]] = DIGITS[usize::from(*byte)];
    }
    text
}

/// Whether a client's entity tag matches this strong one by weak comparison (RFC 9110, section
/// 8.8.3.2).
pub(super) fn weakly_matches(tag: &[u8], etag: &[u8]) -> bool {
    tag.strip_prefix(b"W/").unwrap_or(tag) == etag
}

/// The same by strong comparison: a weak tag matches none.
pub(super) fn strongly_matches(tag: &[u8], etag: &[u8]) -> bool {
    tag == etag
}

/// Returns the read mode for a request's `Cache-Control` headers (RFC 9111, section 5.2.1).
/// `no-cache` and `max-age=0` require a value that is known to be current.
pub(super) fn read_mode<'a>(cache_control: impl Iterator<Item = &'a [u8]>) -> ReadMode {
    let current = |directive: &[u8]| {
        directive.eq_ignore_ascii_case(b"no-cache") || directive.eq_ignore_ascii_case(b"max-age=0")
    };
    if any_list_member(cache_control, current) { ReadMode::NoCache } else { ReadMode::Default }
}

/// Whether any member of the comma-separated `lists` is `wanted`.
pub(super) fn any_list_member<'a>(
    mut lists: impl Iterator<Item = &'a [u8]>,
    wanted: impl Fn(&[u8]) -> bool,
) -> bool {
    lists.any(|list| list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).any(&wanted))
}

/// Whether these `Accept` headers ask for OpenMetrics, and not for `text/plain` before it.
pub(super) fn prefers_openmetrics<'a>(accept: impl Iterator<Item = &'a [u8]>) -> bool {
    let (mut openmetrics, mut text) = (0.0, 0.0);
    for range in
        accept.filter_map(|list| str::from_utf8(list).ok()).flat_map(|list| list.split(','))
    {
        let mut parts = range.split(';').map(str::trim);
        let wanted = match parts.next() {
            Some(name) if name.eq_ignore_ascii_case("application/openmetrics-text") => {
                &mut openmetrics
            }
            Some(name) if name.eq_ignore_ascii_case("text/plain") => &mut text,
            _ => continue,
        };
        *wanted = quality(parts).max(*wanted);
    }
    openmetrics > 0.0 && openmetrics >= text
}

/// Returns the weight of a media range with these parameters (RFC 9110, section 12.4.2); 0 if the
/// weight is no number.
fn quality<'a>(mut parameters: impl Iterator<Item = &'a str>) -> f32 {
    let weight = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then_some(value.trim())
    });
    weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0))
}

/// Returns the `Cache-Status` value (RFC 9211): the source of the answer and its remaining time in
/// the cache.
fn cache_status(answer: &Answer) -> String {
    let mut text = String::with_capacity(48);
    text.push_str(match answer.outcome {
        Outcome::Hit | Outcome::Stale => "redis-proxy; hit",
        Outcome::NegativeHit => "redis-proxy; hit; detail=negative_hit",
        Outcome::Miss | Outcome::Error => "redis-proxy; fwd=miss",
        Outcome::Coalesced => "redis-proxy; fwd=miss; collapsed",
        Outcome::Bypass => "redis-proxy; fwd=bypass",
    });
    let mut add = |name, seconds| {
        text.push_str(name);
        text.push_str(itoa::Buffer::new().format(seconds));
    };
    match answer.freshness {
        Freshness::Fresh { remaining } => add("; ttl=", remaining.as_secs()),
        // Rounded up by one second, otherwise the value could be "-0".
        Freshness::Stale { past } => add("; ttl=-", past.as_secs() + 1),
        Freshness::Expired => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_preferred_by_weight() {
        let prefers =
            |accept: &[&str]| prefers_openmetrics(accept.iter().map(|header| header.as_bytes()));
        for accept in [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; version=1.0.0; charset=utf-8",
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6, \
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4",
            "text/plain;q=0.5 , application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0,application/openmetrics-text;q=0.1",
        ] {
            assert!(prefers(&[accept]), "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "application/*",
            "text/plain, application/openmetrics-text;q=0.9",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text; Q = none",
            "application/openmetrics",
            ",;=,",
        ] {
            assert!(!prefers(&[accept]), "{accept}");
        }
        assert!(prefers(&["text/html", "application/openmetrics-text"]));
        assert!(!prefers(&["text/plain", "application/openmetrics-text;q=0.1"]));
        assert!(!prefers_openmetrics([b"application/openmetrics-text\xff".as_slice()].into_iter()));
    }
}
