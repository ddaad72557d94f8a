//! The text forms of durations, sizes and counts in a config file, the environment and on the
//! command line.
//!
//! A bare number means seconds for a duration and bytes for a size. It may be a number or text,
//! because the environment and the command line only have text.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Serde functions for `#[serde(with = "settings::duration")]`: `"250ms"`, `"1m 30s"`, or seconds
/// as a number.
pub mod duration {
    use super::{Deserializer, Duration, DurationVisitor, Serializer};

    /// Writes the shortest text that parses to the same duration.
    ///
    /// # Errors
    /// Only the errors of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    /// Parses a duration, or `word`, which yields `None`.
    ///
    /// # Errors
    /// `D::Error` with the value that was found and the form that is expected.
    pub fn or_keyword<'de, D: Deserializer<'de>>(
        word: &'static str,
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        from.deserialize_any(super::DurationOrKeyword(word))
    }

    /// Parses text with units, or a number of seconds.
    ///
    /// # Errors
    /// `D::Error` with the value that was found and the form that is expected.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(DurationVisitor)
    }
}

/// Serde functions for a duration that may be left out.
pub mod optional_duration {
    use super::{Deserializer, Duration, Serializer, duration};

    /// Writes the duration as [`duration::serialize`] does.
    ///
    /// # Errors
    /// Only the errors of the serializer.
    pub fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => duration::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Parses a duration as [`duration::deserialize`] does. One that is left out does not get here.
    ///
    /// # Errors
    /// `D::Error` with the value that was found and the form that is expected.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(from).map(Some)
    }
}

/// Parses a duration, or this keyword as `None`.
struct DurationOrKeyword(&'static str);

impl Visitor<'_> for DurationOrKeyword {
    type Value = Option<Duration>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} or ", self.0)?;
        DurationVisitor.expecting(f)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<Duration>, E> {
        if text == self.0 {
            return Ok(None);
        }
        let duration = DurationVisitor.visit_str::<E>(text).ok();
        duration.map(Some).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: Error>(self, seconds: i64) -> Result<Option<Duration>, E> {
        DurationVisitor.visit_i64(seconds).map(Some)
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<Option<Duration>, E> {
        DurationVisitor.visit_u64(seconds).map(Some)
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<Option<Duration>, E> {
        DurationVisitor.visit_f64(seconds).map(Some)
    }
}

struct DurationVisitor;

/// The maximum duration: 100 years. It exceeds any useful timeout, and adding it to any time does
/// not overflow.
const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

fn bounded(duration: Option<Duration>) -> Option<Duration> {
    duration.filter(|duration| *duration <= MAX_DURATION)
}

impl Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a duration of at most 100 years: seconds as a number, or text such as \"250ms\", \
                \"90s\", \"5m\", \"1h 30m\"",
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        let seconds =
            text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let duration = seconds.or_else(|| humantime::parse_duration(text).ok());
        bounded(duration).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: Error>(self, seconds: i64) -> Result<Duration, E> {
        let duration = u64::try_from(seconds).ok().map(Duration::from_secs);
        bounded(duration).ok_or_else(|| E::invalid_value(Unexpected::Signed(seconds), &self))
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<Duration, E> {
        let duration = Some(Duration::from_secs(seconds));
        bounded(duration).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(seconds), &self))
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<Duration, E> {
        let duration = Duration::try_from_secs_f64(seconds).ok();
        bounded(duration).ok_or_else(|| E::invalid_value(Unexpected::Float(seconds), &self))
    }
}

/// Serde functions for `#[serde(with = "settings::count")]`: a whole number, as a number or as
/// text, never a boolean or a fraction.
pub mod count {
    use super::{CountVisitor, Deserializer, Serializer};

    /// Writes the number.
    ///
    /// # Errors
    /// Only the errors of the serializer.
    pub fn serialize<S: Serializer>(count: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*count as u64)
    }

    /// Parses a whole number of zero or more.
    ///
    /// # Errors
    /// `D::Error` with the value that was found and the form that is expected.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

struct CountVisitor;

/// The maximum count: more than any machine can use, and a number that every format can write.
const MAX_COUNT: u64 = 1 << 40;

fn bounded_count(number: Option<u64>) -> Option<usize> {
    number.filter(|number| *number <= MAX_COUNT).and_then(|number| usize::try_from(number).ok())
}

impl Visitor<'_> for CountVisitor {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from 0 to {MAX_COUNT}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<usize, E> {
        bounded_count(text.parse().ok())
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<usize, E> {
        bounded_count(number.try_into().ok())
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<usize, E> {
        bounded_count(Some(number))
            .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

/// A size in bytes, written `"64KiB"`, `"10MB"`, `"1.5GiB"`, or as a bare number. A KB is 1000
/// bytes, a KiB 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub usize);

const BYTE_UNITS: [(&str, usize); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    /// Parses a number with an optional unit.
    pub(super) fn parse(text: &str) -> Option<Self> {
        // The crate takes a number that is too large for its largest one.
        let bytes = text.trim().parse::<bytesize::ByteSize>().ok()?.0;
        (bytes <= MAX_SIZE).then_some(bytes)?.try_into().ok().map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            BYTE_UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        let (name, unit) = exact.unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ByteSizeVisitor)
    }
}

struct ByteSizeVisitor;

/// The maximum size as text: more than any machine has.
const MAX_SIZE: u64 = 1 << 60;

impl Visitor<'_> for ByteSizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a size of at most 1024 PiB: bytes as a number, or text such as \"64KiB\" (1 KiB = \
                1024), \"10MB\" (1 MB = 1000000), \"1.5GiB\"",
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
        ByteSize::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<ByteSize, E> {
        usize::try_from(bytes)
            .map(ByteSize)
            .map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<ByteSize, E> {
        usize::try_from(bytes)
            .map(ByteSize)
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(bytes), &self))
    }
}

/// A fraction from 0 to 1. The default is 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Ratio(pub f64);

/// The value is never NaN, so equality is reflexive.
impl Eq for Ratio {}

impl Default for Ratio {
    fn default() -> Self {
        Self(1.0)
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RatioVisitor)
    }
}

struct RatioVisitor;

impl Visitor<'_> for RatioVisitor {
    type Value = Ratio;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number from 0 to 1")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Ratio, E> {
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Ratio).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Ratio, E> {
        match number {
            0 => Ok(Ratio(0.0)),
            1 => Ok(Ratio(1.0)),
            _ => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Ratio, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Ratio, E> {
        let ratio = Some(number).filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Ratio).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
    }
}

/// A secret text that is never printed: its `Debug` and serialized forms are asterisks.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the secret itself, for the single place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether no secret is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// The text printed in place of a secret.
pub const MASK: &str = "********";

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "" } else { MASK })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

/// Returns the choice that `text` names among `choices`. Meant for `TryFrom<String>`.
///
/// # Errors
/// A text with the value that was found and the names that are allowed.
pub fn parse_choice<T: Copy, const N: usize>(
    text: &str,
    choices: [(&str, T); N],
) -> Result<T, String> {
    let found = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice);
    found.ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("invalid value: string {text:?}, expected {}", names.join(" or "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Serialize, Debug)]
    struct Sample {
        #[serde(with = "duration")]
        wait: Duration,
        size: ByteSize,
        #[serde(with = "count")]
        number: usize,
    }

    fn sample(wait: &str, size: &str, number: &str) -> Result<Sample, toml::de::Error> {
        toml::from_str(&format!("wait = {wait}\nsize = {size}\nnumber = {number}"))
    }

    #[test]
    fn numbers_and_strings_parse_alike() {
        for wait in ["90", "\"90\"", "\"90s\"", "\"1m 30s\"", "90.0", "\"1500ms 88500ms\""] {
            assert_eq!(sample(wait, "1", "1").unwrap().wait, Duration::from_secs(90), "{wait}");
        }
        for size in ["2048", "\"2048\"", "\"2KiB\"", "\"2 kib\"", "\"2048B\"", "\"2.048kB\""] {
            assert_eq!(sample("1", size, "1").unwrap().size, ByteSize(2048), "{size}");
        }
        assert_eq!(sample("1", "1", "\"7\"").unwrap().number, 7);
    }

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        for (text, bytes) in [
            ("10MB", 10_000_000),
            ("10 mb", 10_000_000),
            ("64kb", 64_000),
            ("64KB", 64_000),
            ("64k", 64_000),
            ("64Ki", 65_536),
            ("1.5GiB", 1_610_612_736),
            ("1GB", 1_000_000_000),
            ("0.5 MiB", 524_288),
            ("1TiB", 1 << 40),
        ] {
            let size = sample("1", &format!("{text:?}"), "1").map(|sample| sample.size);
            assert_eq!(size, Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn parse_error_names_the_expected_form() {
        for (wait, size, number) in [
            ("\"banana\"", "1", "1"),
            ("-1", "1", "1"),
            ("\"-1s\"", "1", "1"),
            ("true", "1", "1"),
            ("\"NaN\"", "1", "1"),
            ("1", "\"2 kilo\"", "1"),
            ("1", "\"-2KiB\"", "1"),
            ("1", "\"KiB\"", "1"),
            ("1", "\"2KiB 3\"", "1"),
            ("1", "\"NaN\"", "1"),
            ("1", "\"inf\"", "1"),
            ("1", "\"\"", "1"),
            ("1", "\"99999999999GiB\"", "1"),
            ("1", "1", "-3"),
            ("1", "1", "1.5"),
            ("1", "1", "true"),
        ] {
            let error = sample(wait, size, number).unwrap_err().to_string();
            assert!(error.contains(", expected a "), "{error}");
        }
    }

    #[test]
    fn sizes_print_in_largest_exact_unit() {
        for (bytes, text) in
            [(0, "0B"), (1, "1B"), (1024, "1KiB"), (1536, "1536B"), (512 << 20, "512MiB")]
        {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    #[test]
    fn secret_is_never_printed() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), MASK);
        assert_eq!(serde_json::to_string(&secret).unwrap(), format!("\"{MASK}\""));
        assert_eq!(serde_json::to_string(&Secret::default()).unwrap(), "\"\"");
    }
}
