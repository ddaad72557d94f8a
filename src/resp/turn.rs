//! The work of one connection in one turn of its worker.
//!
//! A worker serves its connections in turns. Without a limit a client that pipelines a million
//! reads, or reads a reply of many megabytes, would hold the worker for as long as there is input,
//! and all other clients of the worker would wait.

/// The most bytes that are read from Redis in one turn: about one read. With 256 KiB, and 1 MiB
/// that waits for the client, p99 beside a reader of a set of 1 GB was 0.8 ms instead of 0.10.
const MAX_READ: usize = 32 << 10;
/// The most commands that are taken in one turn. It is above the pipelines of benchmarks and client
/// libraries, so the limit costs them nothing.
const MAX_COMMANDS: usize = 1024;

/// The work of a turn so far.
#[derive(Debug, Default)]
pub(super) struct Turn {
    read: usize,
    commands: usize,
    /// Whether the client has sent no more. The task is woken when it has, so a second look in the
    /// same turn finds nothing.
    pub(super) awaits_client: bool,
}

impl Turn {
    /// Counts bytes that were read from Redis.
    pub(super) fn add_read(&mut self, bytes: usize) {
        self.read += bytes;
    }

    /// Counts a command that was taken.
    #[inline]
    pub(super) fn add_command(&mut self) {
        self.add_commands(1);
    }

    /// Counts commands that were taken together.
    #[inline]
    pub(super) fn add_commands(&mut self, commands: usize) {
        self.commands += commands;
    }

    /// Whether the rest has to wait for the next turn.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.read >= MAX_READ || self.commands >= MAX_COMMANDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_ends_at_its_bytes_or_commands() {
        let mut turn = Turn::default();
        turn.add_read(MAX_READ - 1);
        (1..MAX_COMMANDS).for_each(|_| turn.add_command());
        assert!(!turn.is_over());
        turn.add_command();
        assert!(turn.is_over());
        let mut turn = Turn::default();
        turn.add_read(MAX_READ);
        assert!(turn.is_over());
    }
}
