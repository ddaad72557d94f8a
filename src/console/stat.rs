//! `redis-proxy stat`: a line for each interval, as `redis-cli --stat` prints them.

use std::io::{self, Write};

use super::format::{bytes, count, percent, rate};
use super::source::{Source, Update};

/// The number of lines below a heading.
const LINES: u64 = 20;

const HEADING: &str = "   reads/s  hit ratio   redis/s    entries      memory  clients  state";

/// The number of lines to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// As long as it runs.
    Endless,
    /// So many.
    Lines(u64),
}

/// Prints a line for each interval to `out`.
///
/// # Errors
/// [`io::Error`] if the proxy does not answer at first, or `out` takes nothing.
pub fn stat(source: &mut Source, lines: Count, out: &mut dyn Write) -> io::Result<()> {
    source.fetch_first()?;
    let mut printed = 0;
    while lines == Count::Endless || lines != Count::Lines(printed) {
        source.wait();
        if printed % LINES == 0 {
            writeln!(out, "{HEADING}")?;
        }
        match source.fetch() {
            Ok(update) => writeln!(out, "{}", line(&update))?,
            Err(error) => writeln!(out, "no answer from {}: {error}", source.shown())?,
        }
        out.flush()?;
        printed += 1;
    }
    Ok(())
}

/// Returns the line of a state. After a restart of the proxy there are no rates, but dashes.
fn line(Update { snapshot, rates, .. }: &Update) -> String {
    let dash = || "-".to_owned();
    let (reads, ratio, redis) = match rates {
        Some(rates) => (rate(rates.reads), percent(rates.hit_ratio), rate(rates.redis_reads)),
        None => (dash(), dash(), dash()),
    };
    format!(
        "{reads:>10} {ratio:>10} {redis:>9} {:>10} {:>11} {:>8}  {}",
        count(snapshot.entries()),
        bytes(snapshot.memory_total.bytes),
        snapshot.clients(),
        snapshot.state.level,
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::snapshot::tests::snapshot;
    use super::*;

    #[test]
    fn columns_stand_below_their_names() {
        let (before, after) = (snapshot(100, 10, true), snapshot(160, 30, true));
        let rates = after.rates_since(&before, Duration::from_secs(2));
        let update = |rates| Update {
            document: serde_json::Value::Null,
            snapshot: after.clone(),
            rates,
            events: Vec::new(),
        };
        let line = |rates| super::line(&update(rates));
        let (shown, started) = (line(rates), line(None));
        let expected = "        40     75.0 %        10         42     5.0 KiB        7  fresh";
        assert_eq!(shown, expected);
        let expected = "         -          -         -         42     5.0 KiB        7  fresh";
        assert_eq!(started, expected);
        for (name, value) in [("reads/s", "40"), ("hit ratio", "75.0 %"), ("clients", "       7")] {
            let end = |text: &str, part: &str| text.find(part).unwrap() + part.len();
            assert_eq!(end(HEADING, name), end(&shown, value), "{name}");
        }
    }
}
