//! The end of a stream towards a client that may still send.
//!
//! The system resets a connection that is closed while received bytes are unread, or that receives
//! bytes after its close. A reset discards bytes that the client has not read yet. So the sending
//! side is closed first. Then input is read and discarded until the client closes too, for a
//! bounded time and up to a bounded size.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A close that reads until the client closes too.
pub(crate) struct LingeringClose {
    timeout: Duration,
    /// Set once the close has begun.
    timer: Option<Pin<Box<Sleep>>>,
    is_sending_closed: bool,
    /// The number of bytes that are still discarded.
    discards_left: usize,
}

/// The size of a discarded piece.
const DISCARD_CHUNK: usize = 4 << 10;
/// The most that is discarded. A client that sends more without a look at the end is reset.
const MAX_DISCARDED: usize = 1 << 20;

impl LingeringClose {
    /// Creates a close that takes at most `timeout`.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, timer: None, is_sending_closed: false, discards_left: MAX_DISCARDED }
    }

    /// Closes the sending side. Ready when the client has closed too, or the time is over.
    ///
    /// # Errors
    /// The stream's error, if the sending side cannot be closed.
    pub(crate) fn poll(
        &mut self,
        mut stream: Pin<&mut (impl AsyncRead + AsyncWrite)>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let timeout = self.timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        if timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !self.is_sending_closed {
            // TLS writes before the end, so this may wait for the client too.
            ready!(stream.as_mut().poll_shutdown(cx))?;
            self.is_sending_closed = true;
        }
        let mut discarded = [MaybeUninit::uninit(); DISCARD_CHUNK];
        while self.discards_left > 0 {
            let mut discarded = ReadBuf::uninit(&mut discarded);
            let read = ready!(stream.as_mut().poll_read(cx, &mut discarded));
            // After an error there is nothing to wait for.
            if read.is_err() || discarded.filled().is_empty() {
                break;
            }
            self.discards_left = self.discards_left.saturating_sub(discarded.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    async fn close(stream: impl AsyncRead + AsyncWrite, timeout: Duration) {
        let (mut stream, mut closing) = (Box::pin(stream), LingeringClose::new(timeout));
        poll_fn(|cx| closing.poll(stream.as_mut(), cx)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn input_is_read_until_client_closes() {
        let (ours, mut theirs) = duplex(16);
        let closing = tokio::spawn(close(ours, Duration::from_secs(3600)));
        assert_eq!(theirs.read(&mut [0; 1]).await.unwrap(), 0, "the sending side is closed");
        // More than the pipe holds.
        theirs.write_all(&[0; 10_000]).await.unwrap();
        assert!(!closing.is_finished());
        drop(theirs);
        closing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn endless_input_is_left_at_its_bound() {
        let (ours, mut theirs) = duplex(64 << 10);
        let closing = tokio::spawn(close(ours, Duration::from_secs(3600)));
        let piece = vec![0; 64 << 10];
        let mut sent = 0;
        while theirs.write_all(&piece).await.is_ok() {
            sent += piece.len();
        }
        assert!(sent <= MAX_DISCARDED + 2 * piece.len(), "{sent} bytes");
        closing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_stays_is_left_in_time() {
        let (ours, theirs) = duplex(16);
        let begun = tokio::time::Instant::now();
        close(ours, Duration::from_secs(1)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        drop(theirs);
    }
}
