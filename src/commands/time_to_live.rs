//! The replies to `TTL` and `PTTL`, computed from the kept one.
//!
//! The reply of Redis ages, so it cannot be served as it was sent. It follows from the end of the
//! key, which counts from before the request was sent. So the computed time is never longer than
//! that of Redis, and shorter by at most the round trip of the fetch.

use std::time::Duration;

use bytes::BytesMut;

use crate::protocol::{ReplyFrame, Shape, parse_integer, write_integer};

/// The unit of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeUnit {
    /// `TTL`.
    Seconds,
    /// `PTTL`.
    Milliseconds,
}

impl TimeUnit {
    /// Returns the reply at `age` after the request for `reply`. A negative reply does not age:
    /// there is no key, or no end. `None` if it does not.
    pub(super) fn aged(
        self,
        reply: &[u8],
        remaining: Option<Duration>,
        age: Duration,
    ) -> Option<ReplyFrame> {
        let digits = reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?;
        let sent = u64::try_from(parse_integer(digits)?).ok()?;
        // The end of a key that lives for centuries is unknown. Then Redis's own number counts.
        let unit = if self == Self::Seconds { 1000 } else { 1 };
        let far = || Duration::from_millis(sent.saturating_mul(unit)).saturating_sub(age);
        Some(remaining.map_or_else(|| self.exact(far()), |remaining| self.reply(remaining)))
    }

    /// Returns the reply for a key that expires after `remaining`, rounded down.
    fn exact(self, remaining: Duration) -> ReplyFrame {
        self.reply(match self {
            Self::Seconds => Duration::from_secs(remaining.as_secs()),
            Self::Milliseconds => remaining,
        })
    }

    /// Returns the reply for a key that expires after `remaining`.
    fn reply(self, remaining: Duration) -> ReplyFrame {
        let milliseconds = remaining.as_millis();
        let time = match self {
            Self::Milliseconds => milliseconds,
            // Redis rounds to the nearest second (`ttlGenericCommand`).
            Self::Seconds => (milliseconds + 500) / 1000,
        };
        let mut output = BytesMut::new();
        write_integer(&mut output, usize::try_from(time).unwrap_or(usize::MAX));
        ReplyFrame::new(output.freeze(), Shape::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_rounded_as_redis_does() {
        for (unit, milliseconds, expected) in [
            (TimeUnit::Milliseconds, 1499, ":1499\r\n"),
            (TimeUnit::Milliseconds, 0, ":0\r\n"),
            (TimeUnit::Seconds, 1499, ":1\r\n"),
            (TimeUnit::Seconds, 1500, ":2\r\n"),
            (TimeUnit::Seconds, 499, ":0\r\n"),
        ] {
            let frame = unit.reply(Duration::from_millis(milliseconds));
            assert_eq!(frame.bytes(), expected.as_bytes(), "{unit:?} of {milliseconds} ms");
        }
    }

    #[test]
    fn reply_ages_unless_it_is_negative() {
        let age = Duration::from_millis(1100);
        for (unit, reply, remaining, expected) in [
            (TimeUnit::Milliseconds, ":5000\r\n", Some(3900), Some(":3900\r\n")),
            (TimeUnit::Seconds, ":5\r\n", Some(3900), Some(":4\r\n")),
            // More nanoseconds than a counter has.
            (
                TimeUnit::Milliseconds,
                ":9223372036854775807\r\n",
                None,
                Some(":9223372036854774707\r\n"),
            ),
            (TimeUnit::Seconds, ":9223372036854776\r\n", None, Some(":9223372036854774\r\n")),
            (TimeUnit::Seconds, ":-1\r\n", None, None),
            (TimeUnit::Milliseconds, ":-2\r\n", None, None),
        ] {
            let aged = unit.aged(reply.as_bytes(), remaining.map(Duration::from_millis), age);
            let aged = aged.map(|frame| String::from_utf8_lossy(frame.bytes()).into_owned());
            assert_eq!(aged.as_deref(), expected, "{unit:?} {reply}");
        }
    }
}
