//! A stream that swallows write errors, so that a final error reply of Redis can be read.
//!
//! Redis may send an error and close before it reads a command, for example `-ERR max number of
//! clients reached`. A write then fails with only a broken pipe or a reset. So bytes that can no
//! longer be sent count as sent. The next read returns the error reply, and then the end of the
//! stream, which fails all pending requests.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that swallows the write errors of a closed connection.
pub(super) struct ReadAfterReset<S> {
    stream: S,
    /// Whether the peer no longer accepts writes.
    write_failed: bool,
}

impl<S> ReadAfterReset<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, write_failed: false }
    }

    /// Maps the error of a closed connection to a complete write of `length` bytes.
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
        // The flush may fail as well: TLS buffers bytes that it can no longer send.
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
