//! The way of log lines to standard error: a queue of limited size, and a thread that writes.
//!
//! The rule that must not be broken: logging never waits for the reader of standard error. That may
//! be a full pipe or a full disk. A line that finds no room, or that cannot be written, is dropped
//! and counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// The most bytes of lines that may be queued.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// The sender of log lines. Clones share the queue.
#[derive(Clone)]
pub(super) struct LogWriter {
    queue: Sender<Message>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Bytes in the queue.
    queued_bytes: AtomicUsize,
    /// Lines that were not written.
    dropped: AtomicU64,
}

enum Message {
    Line(Vec<u8>),
    /// A request to report that all earlier messages are written.
    Flush(Sender<()>),
}

impl LogWriter {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    /// [`io::Error`] if the system refuses a descriptor or a thread.
    pub(super) fn start() -> io::Result<Self> {
        // A handle of its own. The standard library's is locked during a write, so other threads
        // would wait, too.
        let error = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::with_sink(error)
    }

    fn with_sink(to: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, message) = channel();
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(to, &message, &counted))?;
        Ok(Self { queue, counts })
    }

    /// Returns the number of dropped lines.
    pub(super) fn dropped(&self) -> u64 {
        self.counts.dropped.load(Relaxed)
    }

    /// Returns when all earlier lines are written, but after `patience` at the latest.
    pub(super) fn flush_within(&self, patience: Duration) {
        let (notify, written) = channel();
        if self.queue.send(Message::Flush(notify)).is_ok() {
            _ = written.recv_timeout(patience);
        }
    }

    /// Logs a panic. It replaces the standard library's hook, which would wait for standard error.
    pub(super) fn log_panic(&self, panic: &PanicHookInfo<'_>) {
        const PATIENCE: Duration = Duration::from_millis(100);
        let trace = Backtrace::capture();
        let trace = if trace.status() == BacktraceStatus::Captured {
            format!("{trace}\n")
        } else {
            String::new()
        };
        self.enqueue(format!("{panic}\n{trace}").as_bytes());
        // The process may end after this.
        self.flush_within(PATIENCE);
    }

    fn enqueue(&self, line: &[u8]) {
        let before = self.counts.queued_bytes.fetch_add(line.len(), Relaxed);
        let has_room = before + line.len() <= MAX_QUEUED_BYTES;
        if !has_room || self.queue.send(Message::Line(line.to_vec())).is_err() {
            self.counts.queued_bytes.fetch_sub(line.len(), Relaxed);
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Takes each write as one line.
impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.enqueue(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines until the last sender is gone.
fn write_all(mut to: impl Write, queue: &Receiver<Message>, counts: &Counts) {
    for message in queue {
        match message {
            Message::Line(line) => {
                if to.write_all(&line).is_err() {
                    counts.dropped.fetch_add(1, Relaxed);
                }
                counts.queued_bytes.fetch_sub(line.len(), Relaxed);
            }
            // The requester may have stopped waiting.
            Message::Flush(notify) => _ = notify.send(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Accepts bytes only while the test does not hold the lock.
    struct Held(Arc<Mutex<Vec<u8>>>);

    impl Write for Held {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn log_lines_are_written_in_order() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = LogWriter::with_sink(Held(Arc::clone(&written))).unwrap();
        let lines: Vec<_> = (0..100).map(|number| format!("{number}\n")).collect();
        for line in &lines {
            writer.enqueue(line.as_bytes());
        }
        writer.flush_within(PATIENCE);
        assert_eq!(String::from_utf8(written.lock().unwrap().clone()).unwrap(), lines.concat());
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn stalled_log_writer_never_blocks_and_counts() {
        const LINE: usize = 1 << 10;
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = LogWriter::with_sink(Held(Arc::clone(&written))).unwrap();
        let lines = MAX_QUEUED_BYTES / LINE + 100;
        let held = written.lock().unwrap();
        let begun = Instant::now();
        (0..lines).for_each(|_| writer.enqueue(&[b'x'; LINE]));
        writer.flush_within(Duration::from_millis(10));
        assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
        assert_eq!(writer.dropped(), 100);
        drop(held);
        writer.flush_within(PATIENCE);
        assert_eq!(written.lock().unwrap().len(), MAX_QUEUED_BYTES);
        writer.enqueue(b"there is room again");
        writer.flush_within(PATIENCE);
        assert_eq!(writer.dropped(), 100);
    }

    #[test]
    fn unwritten_log_lines_are_counted() {
        let writer =
            LogWriter::with_sink(File::options().write(true).open("/dev/full").unwrap()).unwrap();
        writer.enqueue(b"a line\n");
        writer.flush_within(PATIENCE);
        assert_eq!(writer.dropped(), 1);
    }
}
