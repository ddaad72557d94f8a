//! The fields of a request that decide about a part of the value, or against the value: conditions
//! (RFC 9110, section 13) and ranges (section 14).
//!
//! Model: the fields are kept as they were sent, and judged once the value is known. A range that
//! is not understood is ignored, and the whole value is sent, as the RFC allows. So are several
//! ranges: their parts would have to be framed.

use std::ops::Range;

use super::headers::{any_list_member, strongly_matches, weakly_matches};

/// The conditions and the range of a request. Lists of several fields are joined.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    if_match: Option<Vec<u8>>,
    if_none_match: Option<Vec<u8>>,
    range: Option<Vec<u8>>,
    if_range: Option<Vec<u8>>,
}

/// The response that follows from a value and the conditions of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The whole value.
    Whole,
    /// These bytes of the value.
    Part(Range<usize>),
    /// The client has the value.
    NotModified,
    /// The value is not the one that the client requires.
    Failed,
    /// The value has no byte of the range.
    Unsatisfiable,
}

/// A range of bytes, as a client names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteRange {
    /// From a byte to another one, or to the end.
    From(usize, Option<usize>),
    /// The last bytes.
    Last(usize),
}

/// The names of the fields of [`Conditions`].
const IF_MATCH: &str = "if-match";
const IF_NONE_MATCH: &str = "if-none-match";
const RANGE: &str = "range";
const IF_RANGE: &str = "if-range";

/// Whether a field with this name changes the response with a value.
pub(super) fn is_condition(name: &[u8]) -> bool {
    [IF_MATCH, IF_NONE_MATCH, RANGE, IF_RANGE]
        .iter()
        .any(|field| name.eq_ignore_ascii_case(field.as_bytes()))
}

impl Conditions {
    /// Returns the conditions of a request. `values` returns the values of a field, and a `HEAD`
    /// request has no range (RFC 9110, section 14.2).
    pub(super) fn of<'a, I: Iterator<Item = &'a [u8]>>(
        is_get: bool,
        values: impl Fn(&'static str) -> I,
    ) -> Self {
        let joined = |name| {
            // One list is equivalent to several fields.
            let lists: Vec<_> = values(name).collect();
            (!lists.is_empty()).then(|| lists.join(&b','))
        };
        let range = if is_get { joined(RANGE) } else { None };
        Self {
            if_match: joined(IF_MATCH),
            if_none_match: joined(IF_NONE_MATCH),
            if_range: range.as_ref().and_then(|_| joined(IF_RANGE)),
            range,
        }
    }

    /// Whether the client has the rest of the value, of which it requests a part.
    pub(super) fn continues(&self) -> bool {
        self.if_range.is_some()
    }

    /// Returns the verdict about a value with this entity tag and length. The order is that of RFC
    /// 9110, section 13.2.2. A value has no date, so conditions with dates are ignored.
    pub(super) fn judge(&self, etag: &[u8], length: usize) -> Verdict {
        let names = |list: &Option<Vec<u8>>, matches: fn(&[u8], &[u8]) -> bool| {
            let list = list.as_deref()?;
            Some(any_list_member([list].into_iter(), |tag| tag == b"*" || matches(tag, etag)))
        };
        if names(&self.if_match, strongly_matches) == Some(false) {
            return Verdict::Failed;
        }
        if names(&self.if_none_match, weakly_matches) == Some(true) {
            return Verdict::NotModified;
        }
        let Some(range) = &self.range else { return Verdict::Whole };
        let is_current =
            self.if_range.as_ref().is_none_or(|tag| strongly_matches(tag.trim_ascii(), etag));
        if is_current {
            ByteRange::parse(range).map_or(Verdict::Whole, |range| range.of(length))
        } else {
            Verdict::Whole
        }
    }
}

impl ByteRange {
    /// Parses a `Range` field. `None` if it is no single range of bytes.
    fn parse(field: &[u8]) -> Option<Self> {
        let at = memchr::memchr(b'=', field)?;
        let (unit, set) = (&field[..at], &field[at + 1..]);
        if !unit.trim_ascii().eq_ignore_ascii_case(b"bytes") {
            return None;
        }
        let mut ranges = set
            .split(|&byte| byte == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|range| !range.is_empty());
        let (range, None) = (ranges.next()?, ranges.next()) else { return None };
        let at = memchr::memchr(b'-', range)?;
        let (first, last) = (&range[..at], &range[at + 1..]);
        match (first.is_empty(), last.is_empty()) {
            (true, _) => Some(Self::Last(position(last)?)),
            (false, true) => Some(Self::From(position(first)?, None)),
            (false, false) => {
                let (first, last) = (position(first)?, position(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// Returns the part of a value of this length.
    fn of(self, length: usize) -> Verdict {
        match self {
            Self::Last(0) => Verdict::Unsatisfiable,
            // An empty part cannot be described.
            Self::Last(_) if length == 0 => Verdict::Whole,
            Self::Last(count) => Verdict::Part(length.saturating_sub(count)..length),
            Self::From(first, _) if first >= length => Verdict::Unsatisfiable,
            Self::From(first, last) => {
                let end = last.map_or(length, |last| last.saturating_add(1).min(length));
                Verdict::Part(first..end)
            }
        }
    }
}

/// Returns a position or a count. A larger number than any value has bytes is the largest.
fn position(digits: &[u8]) -> Option<usize> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| {
        digits.iter().fold(0_usize, |number, digit| {
            number.saturating_mul(10).saturating_add(usize::from(digit - b'0'))
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Verdict::{Failed, NotModified, Part, Unsatisfiable, Whole};
    use super::*;

    const ETAG: &str = "\"a\"";
    const LENGTH: usize = 10;

    fn conditions(is_get: bool, fields: &[(&str, &str)]) -> Conditions {
        Conditions::of(is_get, |name| {
            let of_name = move |field: &&(&str, &str)| field.0.eq_ignore_ascii_case(name);
            fields.iter().filter(of_name).map(|(_, value)| value.as_bytes())
        })
    }

    fn judge(fields: &[(&str, &str)]) -> Verdict {
        conditions(true, fields).judge(ETAG.as_bytes(), LENGTH)
    }

    #[test]
    fn single_range_selects_its_bytes() {
        for (range, expected) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=2-5", Part(2..6)),
            ("bytes=2-9", Part(2..10)),
            ("bytes=2-10", Part(2..10)),
            ("bytes=9-", Part(9..10)),
            ("bytes=0-", Part(0..10)),
            ("bytes=-1", Part(9..10)),
            ("bytes=-10", Part(0..10)),
            ("bytes=-11", Part(0..10)),
            ("BYTES=1-2", Part(1..3)),
            ("bytes= 1-2 , ,", Part(1..3)),
            ("bytes=1-99999999999999999999999", Part(1..10)),
            ("bytes=-99999999999999999999999", Part(0..10)),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-20", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
        ] {
            assert_eq!(judge(&[("range", range)]), expected, "{range}");
        }
    }

    #[test]
    fn range_that_is_not_understood_is_ignored() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=5-2",
            "bytes=1-2,4-5",
            "bytes=0-,-1",
            "bytes=a-b",
            "bytes=1-2x",
            "bytes=+1-2",
            "bytes=1 -2",
            "bytes=--1",
            "bytes=1--2",
            "bytes:1-2",
            "lines=1-2",
            "1-2",
        ] {
            assert_eq!(judge(&[("range", range)]), Whole, "{range}");
        }
        assert_eq!(judge(&[("range", "bytes=1-2"), ("Range", "bytes=4-5")]), Whole);
    }

    #[test]
    fn empty_value_has_no_part() {
        for (range, expected) in [
            ("bytes=0-", Unsatisfiable),
            ("bytes=0-0", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=-1", Whole),
        ] {
            let found = conditions(true, &[("range", range)]).judge(ETAG.as_bytes(), 0);
            assert_eq!(found, expected, "{range}");
        }
    }

    #[test]
    fn conditions_are_judged_before_the_range() {
        let range = ("range", "bytes=1-2");
        let unsatisfiable = ("range", "bytes=10-");
        let with = |name, value| judge(&[(name, value), range]);
        for (name, value, expected) in [
            ("if-match", "\"a\"", Part(1..3)),
            ("if-match", "*", Part(1..3)),
            ("if-match", "\"b\", \"a\"", Part(1..3)),
            ("if-match", "\"b\"", Failed),
            ("if-match", "W/\"a\"", Failed),
            ("if-match", "", Failed),
            ("if-none-match", "\"a\"", NotModified),
            ("if-none-match", "W/\"a\"", NotModified),
            ("if-none-match", "*", NotModified),
            ("if-none-match", "\"b\"", Part(1..3)),
            ("if-range", "\"a\"", Part(1..3)),
            ("if-range", "\"b\"", Whole),
            ("if-range", "W/\"a\"", Whole),
            ("if-range", "*", Whole),
            ("if-range", "Sun, 06 Nov 1994 08:49:37 GMT", Whole),
        ] {
            assert_eq!(with(name, value), expected, "{name}: {value}");
        }
        let failed = ("if-match", "\"b\"");
        assert_eq!(judge(&[("if-none-match", "\"a\""), failed]), Failed);
        assert_eq!(judge(&[failed, unsatisfiable]), Failed);
        assert_eq!(judge(&[("if-none-match", "\"a\""), unsatisfiable]), NotModified);
        assert_eq!(judge(&[("if-range", "\"b\""), unsatisfiable]), Whole);
        assert_eq!(judge(&[("if-range", "\"a\"")]), Whole, "without a range");
        assert_eq!(judge(&[("if-none-match", "\"b\""), ("If-None-Match", "\"a\"")]), NotModified);
    }

    #[test]
    fn head_has_no_range() {
        let judge = |fields: &[_]| conditions(false, fields).judge(ETAG.as_bytes(), LENGTH);
        assert_eq!(judge(&[("range", "bytes=1-2")]), Whole);
        assert_eq!(judge(&[("range", "bytes=10-")]), Whole);
        assert_eq!(judge(&[("if-none-match", "\"a\"")]), NotModified);
    }

    proptest! {
        #[test]
        fn part_is_never_empty_and_lies_within(
            field in "bytes=[0-9 ,-]{0,8}", length in 0_usize..99,
        ) {
            if let Part(part) = conditions(true, &[("range", &field)]).judge(b"", length) {
                prop_assert!(part.start < part.end && part.end <= length, "{:?}", part);
            }
        }
    }
}
