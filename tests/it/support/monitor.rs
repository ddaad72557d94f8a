//! The commands that a Redis runs, as `MONITOR` reports them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use super::RedisServer;

/// A connection in `MONITOR` mode.
pub(crate) struct Monitor<'a> {
    redis: &'a RedisServer,
    lines: BufReader<UnixStream>,
}

impl<'a> Monitor<'a> {
    pub(crate) fn start(redis: &'a RedisServer) -> Self {
        let mut stream = UnixStream::connect(redis.socket()).expect("a connection to redis-server");
        stream.write_all(b"MONITOR\r\n").expect("redis-server takes the command");
        let mut monitor = Self { redis, lines: BufReader::new(stream) };
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    /// Returns all commands so far.
    pub(crate) fn commands(mut self) -> Vec<String> {
        const LAST: &str = "\"ECHO\" \"that is all\"";
        self.redis.command(&["ECHO", "that is all"]);
        let mut commands = Vec::new();
        loop {
            let line = self.line();
            if line.contains(LAST) {
                return commands;
            }
            commands.push(line);
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("redis-server goes on");
        line.trim_end().to_owned()
    }
}
