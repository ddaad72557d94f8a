//! A second writer of a connection's socket, for other threads than the one that reads from it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// A second descriptor of a socket that does not block.
pub(super) struct DirectWriter(OwnedFd);

impl DirectWriter {
    /// A second writer of this socket.
    ///
    /// # Errors
    /// The error of the system, such as too many open files.
    pub(super) fn new(socket: &impl AsFd) -> io::Result<Self> {
        Ok(Self(socket.as_fd().try_clone_to_owned()?))
    }

    /// Writes as much of `bytes` as the socket accepts at once. Returns the number of bytes. An
    /// error of the socket counts as none accepted: the reader of the socket sees it too.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match send(&self.0, &bytes[written..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(accepted) => written += accepted,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn full_socket_accepts_a_part() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = DirectWriter::new(&ours).unwrap();
        let bytes = vec![1; 16 << 20];
        let written = writer.write(&bytes);
        assert!((1..bytes.len()).contains(&written), "{written}");
        assert_eq!(writer.write(&bytes), 0);
        let mut received = vec![0; written];
        theirs.read_exact(&mut received).unwrap();
        assert_eq!(received, bytes[..written]);
        drop(theirs);
        assert_eq!(writer.write(&bytes), 0);
    }
}
