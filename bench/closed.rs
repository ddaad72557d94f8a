//! The same load for servers of different protocols: each connection sends a pipeline of commands,
//! waits for all replies, and sends the next.
//!
//! It is one thread with epoll, like redis-benchmark. It exists because redis-benchmark does not
//! know memcached's protocol, and because `memtier_benchmark` mixes reads with writes.
//!
//! The rule: every value has the same size, so the length of each reply is known before it is there.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::Rng as _;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::percentile;

/// The load.
pub(crate) struct Plan {
    pub(crate) commands: Commands,
    pub(crate) connections: usize,
    pub(crate) pipeline: usize,
    /// Keys are selected at random from so many.
    pub(crate) keys: u64,
    /// One command in so many is a write, by each connection in turn; 0: none is.
    pub(crate) write_every: usize,
    pub(crate) time: Duration,
}

/// The commands of a protocol, without the digits of their keys, and the replies to them.
pub(crate) struct Commands {
    read: Command,
    write: Command,
}

struct Command {
    /// The bytes before the first key.
    begin: Vec<u8>,
    /// The bytes before the digits of a key, and those behind them.
    around: [Vec<u8>; 2],
    /// The number of its keys.
    keys: usize,
    /// The length of its reply, and the begin of it.
    reply: usize,
    head: Vec<u8>,
}

/// The begin of a key over RESP, with its length.
const KEY: &str = "$16\r\nkey:";
/// The digits of a key, as in redis-benchmark.
const DIGITS: usize = 12;

impl Commands {
    /// Those of Redis.
    pub(crate) fn resp(size: usize) -> Self {
        let value = "x".repeat(size);
        let head = format!("${size}\r\n");
        let after = format!("\r\n${size}\r\n{value}\r\n");
        Self {
            read: Command::new("*2\r\n$3\r\nGET\r\n", [KEY, "\r\n"], &head, size + 2),
            write: Command::new("*3\r\n$3\r\nSET\r\n", [KEY, &after], "+OK\r\n", 0),
        }
    }

    /// Those of Redis, with MGETs of `keys` keys as reads.
    pub(crate) fn mget(size: usize, keys: usize) -> Self {
        let value = format!("${size}\r\n");
        let begin = format!("*{}\r\n$4\r\nMGET\r\n", 1 + keys);
        let rest = keys * (value.len() + size + 2) - value.len();
        let read = Command::new(&begin, [KEY, "\r\n"], &format!("*{keys}\r\n{value}"), rest);
        Self { read: Command { keys, ..read }, ..Self::resp(size) }
    }

    /// The meta commands of memcached.
    pub(crate) fn meta(size: usize) -> Self {
        let value = "x".repeat(size);
        let head = format!("VA {size}\r\n");
        let after = format!(" {size}\r\n{value}\r\n");
        Self {
            read: Command::new("mg ", ["key:", " v\r\n"], &head, size + 2),
            write: Command::new("ms ", ["key:", &after], "HD\r\n", 0),
        }
    }
}

impl Command {
    /// A command with one key; its reply has `value` bytes after its head.
    fn new(begin: &str, around: [&str; 2], head: &str, value: usize) -> Self {
        Self {
            begin: begin.into(),
            around: around.map(Into::into),
            keys: 1,
            reply: head.len() + value,
            head: head.into(),
        }
    }

    /// Appends the command with the next numbers as its keys.
    fn append(&self, mut number: impl FnMut() -> u64, requests: &mut Vec<u8>) {
        requests.extend_from_slice(&self.begin);
        for _ in 0..self.keys {
            requests.extend_from_slice(&self.around[0]);
            let mut digits = [b'0'; DIGITS];
            let mut rest = number();
            for digit in digits.iter_mut().rev() {
                *digit += u8::try_from(rest % 10).unwrap_or_default();
                rest /= 10;
            }
            requests.extend_from_slice(&digits);
            requests.extend_from_slice(&self.around[1]);
        }
    }
}

struct Connection {
    stream: TcpStream,
    sent: Instant,
    /// The bytes of replies that have not arrived.
    expected: usize,
    /// The begin of the next reply, if none of it has arrived.
    head: Option<Vec<u8>>,
    /// The commands sent so far.
    turn: usize,
}

/// The commands that were answered in a time, and the latencies of their pipelines.
pub(crate) struct Summary {
    commands: usize,
    time: Duration,
    latencies: Vec<Duration>,
}

impl Summary {
    /// The line for the bench.
    pub(crate) fn line(mut self) -> String {
        let percentiles = [500, 990, 999]
            .map(|permille| percentile(&mut self.latencies, permille).unwrap_or_default());
        let figures: Vec<_> = [self.time]
            .into_iter()
            .chain(percentiles)
            .map(|figure| figure.as_micros().to_string())
            .collect();
        format!("{} {}", self.commands, figures.join(" "))
    }
}

/// The wait for the replies after the last command.
const LAST_REPLIES: Duration = Duration::from_secs(5);
const EVENTS: usize = 1024;
const BUFFER: usize = 1 << 16;

/// Runs the load on the server of this port.
pub(crate) fn run(port: u16, plan: &Plan) -> anyhow::Result<Summary> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut connections = open(port, plan, &epoll)?;
    let (mut requests, mut buffer) = (Vec::new(), vec![0; BUFFER]);
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    let begun = Instant::now();
    let (mut commands, mut latencies, mut pending) = (0, Vec::new(), 0);
    for connection in &mut connections {
        connection.send(plan, &mut requests)?;
        pending += 1;
    }
    while pending > 0 {
        ensure!(begun.elapsed() < plan.time + LAST_REPLIES, "commands were not answered");
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&LAST_REPLIES.try_into()?))?;
        for event in &events {
            let number = usize::try_from(event.data.u64())?;
            let connection = connections.get_mut(number).context("an unknown connection")?;
            if !connection.receive(&mut buffer)? {
                continue;
            }
            let now = Instant::now();
            commands += plan.pipeline;
            latencies.push(now - connection.sent);
            if now - begun < plan.time {
                connection.send(plan, &mut requests)?;
            } else {
                pending -= 1;
            }
        }
    }
    Ok(Summary { commands, time: begun.elapsed(), latencies })
}

fn open(port: u16, plan: &Plan, epoll: &OwnedFd) -> anyhow::Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for number in 0..plan.connections {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(epoll, &stream, EventData::new_u64(u64::try_from(number)?), EventFlags::IN)?;
        // Otherwise all connections would write at the same time.
        let turn = number;
        connections.push(Connection {
            stream,
            sent: Instant::now(),
            expected: 0,
            head: None,
            turn,
        });
    }
    Ok(connections)
}

impl Connection {
    /// Sends the next pipeline at once.
    fn send(&mut self, plan: &Plan, requests: &mut Vec<u8>) -> io::Result<()> {
        requests.clear();
        self.expected = 0;
        self.head = None;
        for _ in 0..plan.pipeline {
            self.turn += 1;
            let is_write = plan.write_every > 0 && self.turn.is_multiple_of(plan.write_every);
            let command = if is_write { &plan.commands.write } else { &plan.commands.read };
            command.append(|| rand::rng().random_range(0..plan.keys), requests);
            self.expected += command.reply;
            if self.head.is_none() {
                self.head = Some(command.head.clone());
            }
        }
        self.sent = Instant::now();
        // It is so short that the socket takes it whole.
        self.stream.write_all(requests)
    }

    /// Reads once; returns whether all replies are there.
    fn receive(&mut self, buffer: &mut [u8]) -> anyhow::Result<bool> {
        let length = match self.stream.read(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        ensure!(length > 0, "the server closed the connection");
        if let Some(head) = self.head.take() {
            let begin = &buffer[..length.min(head.len())];
            ensure!(head.starts_with(begin), "a command was answered {:?}", begin.escape_ascii());
        }
        self.expected = self.expected.checked_sub(length).context("a reply was too long")?;
        Ok(self.expected == 0)
    }
}

#[cfg(test)]
mod tests {
    //! Promise: the load sends the commands of both protocols, and knows the length of each reply.

    use super::*;

    #[test]
    fn commands_have_the_digits_of_keys() {
        let mut requests = Vec::new();
        Commands::resp(3).read.append(|| 1205, &mut requests);
        Commands::resp(3).write.append(|| 7, &mut requests);
        assert_eq!(
            requests.escape_ascii().to_string(),
            "*2\\r\\n$3\\r\\nGET\\r\\n$16\\r\\nkey:000000001205\\r\\n\
             *3\\r\\n$3\\r\\nSET\\r\\n$16\\r\\nkey:000000000007\\r\\n$3\\r\\nxxx\\r\\n"
        );
        requests.clear();
        Commands::meta(3).read.append(|| 1205, &mut requests);
        Commands::meta(3).write.append(|| 7, &mut requests);
        assert_eq!(
            requests.escape_ascii().to_string(),
            "mg key:000000001205 v\\r\\nms key:000000000007 3\\r\\nxxx\\r\\n"
        );
        requests.clear();
        let mut numbers = 7..;
        Commands::mget(3, 2).read.append(|| numbers.next().unwrap_or_default(), &mut requests);
        assert_eq!(
            requests.escape_ascii().to_string(),
            "*3\\r\\n$4\\r\\nMGET\\r\\n\
             $16\\r\\nkey:000000000007\\r\\n$16\\r\\nkey:000000000008\\r\\n"
        );
    }

    #[test]
    fn replies_have_the_length_of_their_bytes() {
        for (commands, reply, written) in [
            (Commands::resp(3), "$3\r\nxxx\r\n", "+OK\r\n"),
            (Commands::meta(3), "VA 3\r\nxxx\r\n", "HD\r\n"),
            (Commands::mget(3, 2), "*2\r\n$3\r\nxxx\r\n$3\r\nxxx\r\n", "+OK\r\n"),
        ] {
            assert_eq!(commands.read.reply, reply.len());
            assert!(reply.as_bytes().starts_with(&commands.read.head));
            assert_eq!(commands.write.reply, written.len());
            assert_eq!(commands.write.head, written.as_bytes());
        }
    }
}
