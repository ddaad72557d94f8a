//! The replies to `TTL` and `PTTL`, computed from the kept one.
//!
//! The reply of Redis ages, so it cannot be served as it was sent. It follows from the end of the
//! key, which counts from before the request was sent. So the computed time is never longer than
//! that of Redis, and shorter by at most the round trip of the fetch.

use std::time::Duration;

use bytes::BytesMut;

use crate::protocol::{ReplyFrame, Shape, write_integer};

/// The unit of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeUnit {
    /// `TTL`.
    Seconds,
    /// `PTTL`.
    Milliseconds,
}

impl TimeUnit {
    /// Returns the reply for a key that expires after `remaining`.
    pub(super) fn reply(self, remaining: Duration) -> ReplyFrame {
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
}
