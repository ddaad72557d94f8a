//! A bound on memory, in bytes or as a part of the memory that is available: that of the control
//! group, if it has a limit, or of the machine.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::types::ByteSize;

/// A bound on memory: `"auto"`, a size such as `"256MiB"`, or a part such as `"25%"` of the
/// available memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemorySize {
    /// The smaller of 256 MiB and 25 % of the memory.
    Auto,
    /// A number of bytes.
    Bytes(ByteSize),
    /// Hundredths of the available memory.
    Percent(u8),
}

/// The largest bound of [`MemorySize::Auto`].
const AUTO_MAX: usize = 256 << 20;
/// The bound of [`MemorySize::Auto`], in hundredths of the available memory.
const AUTO_PERCENT: usize = 25;
const AUTO: &str = "auto";

impl MemorySize {
    /// Returns the bound in bytes. `available` returns the available memory, if it matters.
    pub fn bytes(self, available: impl FnOnce() -> usize) -> usize {
        let part = |percent: usize| available() / 100 * percent;
        match self {
            Self::Auto => part(AUTO_PERCENT).min(AUTO_MAX),
            Self::Bytes(ByteSize(bytes)) => bytes,
            Self::Percent(percent) => part(percent.into()),
        }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(AUTO),
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for MemorySize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MemorySizeVisitor)
    }
}

struct MemorySizeVisitor;

impl Visitor<'_> for MemorySizeVisitor {
    type Value = MemorySize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a size such as \"512MiB\" or \"1GB\", a part of the memory from \"1%\" to \"100%\", \
             or \"auto\"",
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<MemorySize, E> {
        if text == AUTO {
            return Ok(MemorySize::Auto);
        }
        let size = if text.ends_with('%') {
            hundredths(text, 1..=100).map(MemorySize::Percent)
        } else {
            ByteSize::parse(text).map(MemorySize::Bytes)
        };
        size.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<MemorySize, E> {
        let size = usize::try_from(bytes).map(|bytes| MemorySize::Bytes(ByteSize(bytes)));
        size.map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<MemorySize, E> {
        let size = usize::try_from(bytes).map(|bytes| MemorySize::Bytes(ByteSize(bytes)));
        size.map_err(|_| E::invalid_value(Unexpected::Unsigned(bytes), &self))
    }
}

/// Returns the number in a text such as `"25%"`, if it is in `range`.
fn hundredths(text: &str, range: RangeInclusive<u8>) -> Option<u8> {
    let percent = text.strip_suffix('%')?.trim_end().parse().ok()?;
    range.contains(&percent).then_some(percent)
}

/// A part of a whole in hundredths, written `"25%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percent(pub u8);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(PercentVisitor)
    }
}

struct PercentVisitor;

impl Visitor<'_> for PercentVisitor {
    type Value = Percent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a part from \"0%\" to \"90%\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Percent, E> {
        let percent = hundredths(text, 0..=90).map(Percent);
        percent.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// Returns the memory that is available to the process, in bytes: the smallest limit of its control
/// groups, or the memory of the machine. Without `/proc` it is the maximum.
pub fn available_memory() -> usize {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total_of(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    limit_files(&groups)
        .iter()
        .filter_map(|file| read(Path::new(file))?.trim().parse().ok())
        .chain(machine)
        .min()
        .unwrap_or(usize::MAX)
}

/// Returns the total memory from the text of `/proc/meminfo`.
fn total_of(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1 << 10)
}

/// Returns the files that may have the limits of the control groups, from the text of
/// `/proc/self/cgroup`. A group is also limited by the groups around it, and in a container its own
/// group is mounted as the root.
fn limit_files(groups: &str) -> Vec<String> {
    const ROOT: &str = "/sys/fs/cgroup";
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, name) = match controllers {
            "" => (ROOT.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                (format!("{ROOT}/memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut around = group.trim_end_matches('/');
        loop {
            files.push(format!("{root}{around}/{name}"));
            let Some((outer, _)) = around.rsplit_once('/') else { break };
            around = outer;
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Document {
        size: MemorySize,
    }

    fn parse(value: &str) -> Result<MemorySize, String> {
        let document = toml::from_str(&format!("size = {value}"));
        document.map(|Document { size }| size).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn memory_is_a_size_a_part_or_automatic() {
        let bytes = |bytes| Ok(MemorySize::Bytes(ByteSize(bytes)));
        assert_eq!(parse("\"256MiB\""), bytes(256 << 20));
        assert_eq!(parse("\"2GB\""), bytes(2_000_000_000));
        assert_eq!(parse("\"3 MB\""), bytes(3_000_000));
        assert_eq!(parse("4096"), bytes(4096));
        assert_eq!(parse("\"25%\""), Ok(MemorySize::Percent(25)));
        assert_eq!(parse("\"auto\""), Ok(MemorySize::Auto));
        for wrong in ["\"0%\"", "\"101%\"", "\"2.5%\"", "\"5XB\"", "\"-1\"", "-1", "true"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains("expected a size such as \"512MiB\""), "{wrong}: {error}");
        }
    }

    #[test]
    fn text_of_a_size_parses_to_the_same_size() {
        for text in ["auto", "25%", "256MiB", "1GiB", "1234567B"] {
            assert_eq!(parse(&format!("\"{text}\"")).unwrap().to_string(), text);
        }
    }

    #[test]
    fn automatic_bound_is_a_quarter_up_to_its_maximum() {
        let size = |size: MemorySize, available: usize| size.bytes(|| available) >> 20;
        assert_eq!(size(MemorySize::Auto, 512 << 20), 127);
        assert_eq!(size(MemorySize::Auto, 64 << 30), 256);
        assert_eq!(size(MemorySize::Percent(50), 1 << 30), 511);
        assert_eq!(size(MemorySize::Bytes(ByteSize(1 << 30)), 1), 1024);
    }

    #[test]
    fn limits_of_all_groups_around_the_process_count() {
        let files = limit_files("0::/system.slice/redis-proxy.service\n");
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/system.slice/redis-proxy.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        let files = limit_files("12:cpu,cpuacct:/a\n3:memory:/a\nnonsense\n");
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes"
            ]
        );
        assert_eq!(limit_files("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
    }

    #[test]
    fn memory_of_the_machine_is_read_in_kibibytes() {
        let text = "MemTotal:       16303428 kB\nMemFree:         1000 kB\n";
        assert_eq!(total_of(text), Some(16_303_428 << 10));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert!((1 << 20..usize::MAX).contains(&available_memory()));
    }
}
