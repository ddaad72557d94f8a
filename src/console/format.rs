//! Numbers as text of a few characters.

use super::snapshot::as_float;

/// Returns a count with a separator between thousands.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a rate per second.
pub(super) fn rate(rate: f64) -> String {
    if rate >= 10.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is a rate"
        )]
        return count(rate.round() as u64);
    }
    format!("{rate:.1}")
}

/// Returns a share in percent.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

/// Returns a number of bytes in binary units.
pub(super) fn bytes(number: u64) -> String {
    bytesize::ByteSize::b(number).display().iec().to_string()
}

/// Returns an upper bound of durations.
pub(super) fn seconds(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{} ms", (seconds * 1e4).round() / 10.0),
        Some(seconds) => format!("{seconds} s"),
    }
}

/// Returns the two largest units of an uptime.
pub(super) fn uptime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Returns a share of two numbers; zero if there is no bound.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (as_float(part) / as_float(whole)).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [count(0), count(999), count(1000), count(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [rate(0.0), rate(9.94), rate(10.0), rate(12345.6)],
            ["0.0", "9.9", "10", "12,346"]
        );
        assert_eq!([percent(None), percent(Some(0.5))], ["-", "50.0 %"]);
        assert_eq!([bytes(0), bytes(1023), bytes(1536)], ["0 B", "1023 B", "1.5 KiB"]);
        assert_eq!(
            [seconds(None), seconds(Some(0.000_025)), seconds(Some(0.0025)), seconds(Some(2.5))],
            ["-", "25 µs", "2.5 ms", "2.5 s"]
        );
        assert_eq!(
            [uptime(5), uptime(65), uptime(7500), uptime(90_000)],
            ["5s", "1m 5s", "2h 5m", "1d 1h"]
        );
        assert_eq!([share(1, 2).to_string(), share(1, 0).to_string()], ["0.5", "0"]);
    }
}
