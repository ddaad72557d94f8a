//! A stream to Redis on which Redis's last words are heard.
//!
//! Redis may say why it hangs up before it is asked anything, as with `-ERR max number of clients reached`. Whoever writes
//! then is told only that nobody is there. So what cannot be sent any more counts as sent: the next read brings what Redis
//! said, and after that the end, by which all that is still owed is known to be lost.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream.
pub(super) struct ReadAfterReset<S> {
    stream: S,
    /// Nobody takes what is written any more.
    write_failed: bool,
}

impl<S> ReadAfterReset<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, write_failed: false }
    }

    /// What has become of a write of so many bytes.
    fn swallow_reset(
        &mut self,
        written: Poll<io::Result<usize>>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(error))
                if [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()) =>
            {
                self.write_failed = true;
                Poll::Ready(Ok(length))
            }
            written => written,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAfterReset<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAfterReset<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.swallow_reset(written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.write_failed {
            return Poll::Ready(Ok(length));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.swallow_reset(written, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_failed {
            return Poll::Ready(Ok(()));
        }
        // What TLS held back may be what cannot be sent.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx).map_ok(|()| 0);
        self.swallow_reset(flushed, 0).map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn final_error_is_read_after_write_failure() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut ours = ReadAfterReset::new(ours);
        theirs.write_all(b"-ERR max number of clients reached\r\n").await.unwrap();
        drop(theirs);
        ours.write_all(b"PING\r\n").await.unwrap();
        ours.flush().await.unwrap();
        assert_eq!(
            ours.write_vectored(&[IoSlice::new(b"PING"), IoSlice::new(b"\r\n")]).await.unwrap(),
            6
        );
        let mut said = String::new();
        ours.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "-ERR max number of clients reached\r\n");
    }
}
