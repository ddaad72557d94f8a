//! The limit of `make bench`: an epoll loop that reads and writes sockets and does nothing else.
//!
//! It parses no request. It counts them by their length or by the blank line at their end, and
//! answers each with the same bytes. No server with one thread can cost less by much, so each table
//! gives the costs of the others as multiples of this one's.
//!
//! The rule: nothing happens between a read and its write, and there is one of each for an event.
//! Requests of one connection that arrive together are answered by one write.
//!
//! Usage: `bare answer PORT (BYTES | blank) FILE`: answers requests of BYTES bytes, or that end
//! with a blank line, with the content of FILE. `bare forward PORT BYTES REPLY ORIGIN`: forwards
//! requests of BYTES bytes over one connection to the port ORIGIN, and its replies of REPLY bytes.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, bail, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["answer", port, requests, file] => {
            let requests = match requests {
                "blank" => Requests::blank(),
                bytes => Requests::bytes(bytes.parse()?),
            };
            let answer = Answer::new(&fs::read(file)?)?;
            Clients::listen(port.parse()?)?.answer(&requests, &answer)
        }
        ["forward", port, bytes, reply, origin] => {
            let origin = TcpStream::connect((Ipv4Addr::LOCALHOST, origin.parse()?))?;
            let origin = Origin::new(origin, reply.parse()?)?;
            Clients::listen(port.parse()?)?.forward(&Requests::bytes(bytes.parse()?), origin)
        }
        _ => bail!("see the head of bench/bare.rs for its arguments"),
    }
}

/// The end of a request, and how much of the next one has been received.
#[derive(Clone, Copy)]
enum Requests {
    /// All are of this length; so many bytes of the next one are there.
    Bytes { length: usize, part: usize },
    /// A blank line ends them; so many bytes are there since the last end of a line.
    Blank { line: usize },
}

impl Requests {
    fn bytes(length: usize) -> Self {
        Self::Bytes { length: length.max(1), part: 0 }
    }

    fn blank() -> Self {
        Self::Blank { line: 0 }
    }

    /// Counts the requests that end in these bytes, which follow those of the previous call.
    fn count(&mut self, bytes: &[u8]) -> usize {
        match self {
            Self::Bytes { length, part } => {
                let all = *part + bytes.len();
                *part = all % *length;
                all / *length
            }
            Self::Blank { line } => {
                let (mut ends, mut next) = (0, 0);
                for end in memchr::memchr_iter(b'\n', bytes) {
                    ends += usize::from(*line + end + 1 - next == "\r\n".len());
                    (*line, next) = (0, end + 1);
                }
                *line += bytes.len() - next;
                ends
            }
        }
    }

    /// Whether the last bytes ended with a request's end.
    fn is_between(self) -> bool {
        matches!(self, Self::Bytes { part: 0, .. } | Self::Blank { line: 0 })
    }
}

/// The bytes of the answer, as often as one write may need them.
struct Answer {
    copies: Vec<u8>,
    length: usize,
}

/// The size of the buffer for requests, and the least of the buffer with copies of the answer.
const BUFFER: usize = 1 << 16;

impl Answer {
    fn new(one: &[u8]) -> anyhow::Result<Self> {
        ensure!(!one.is_empty(), "the answer is empty");
        // One more, because a write may begin within the first.
        let copies = one.repeat(BUFFER.div_ceil(one.len()) + 1);
        Ok(Self { copies, length: one.len() })
    }

    /// Returns the bytes to write next where so many are owed.
    fn next(&self, owed: usize) -> &[u8] {
        let begin = (self.length - owed % self.length) % self.length;
        &self.copies[begin..self.copies.len().min(begin + owed)]
    }
}

struct Client {
    stream: TcpStream,
    requests: Requests,
    /// The bytes of answers that the socket did not take.
    owed: usize,
}

/// The listener and its connections, which are found by their file descriptors.
struct Clients {
    epoll: OwnedFd,
    listener: TcpListener,
    by_number: Vec<Option<Client>>,
}

/// The events that one wait returns at most.
const EVENTS: usize = 1024;
/// The events of the listener and of the connection to the origin.
const LISTENER: u64 = u64::MAX;
const ORIGIN: u64 = u64::MAX - 1;

impl Clients {
    fn listen(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        // Otherwise a thousand connections at once overflow the queue of the standard library.
        rustix::net::listen(&listener, 4096)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self { epoll, listener, by_number: Vec::new() })
    }

    /// Waits for events, which replace those in the buffer.
    fn wait(&self, events: &mut Vec<Event>) -> io::Result<()> {
        events.clear();
        epoll::wait(&self.epoll, spare_capacity(events), None)?;
        Ok(())
    }

    fn accept(&mut self, requests: &Requests) -> anyhow::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let number = usize::try_from(stream.as_raw_fd())?;
            self.watch(&stream, EventFlags::IN, true)?;
            self.by_number.resize_with(self.by_number.len().max(number + 1), || None);
            self.by_number[number] = Some(Client { stream, requests: *requests, owed: 0 });
        }
    }

    fn watch(&self, stream: &TcpStream, flags: EventFlags, is_new: bool) -> anyhow::Result<()> {
        let data = EventData::new_u64(u64::try_from(stream.as_raw_fd())?);
        let change = if is_new { epoll::add } else { epoll::modify };
        Ok(change(self.epoll.as_fd(), stream.as_fd(), data, flags)?)
    }

    /// Answers requests until the process ends.
    fn answer(mut self, requests: &Requests, answer: &Answer) -> anyhow::Result<()> {
        let (mut events, mut buffer) = (Vec::with_capacity(EVENTS), vec![0; BUFFER]);
        loop {
            self.wait(&mut events)?;
            for event in &events {
                if event.data.u64() == LISTENER {
                    self.accept(requests)?;
                    continue;
                }
                let number = usize::try_from(event.data.u64())?;
                let Some(Some(client)) = self.by_number.get_mut(number) else { continue };
                let was_blocked = client.owed > 0;
                // A connection that fails ends, and the load counts that.
                if !client.serve(answer, &mut buffer).unwrap_or(false) {
                    self.by_number[number] = None;
                    continue;
                }
                let is_blocked = client.owed > 0;
                if is_blocked != was_blocked {
                    // Nothing is read from a client that does not read its answers.
                    let flags = if is_blocked { EventFlags::OUT } else { EventFlags::IN };
                    let Some(Some(client)) = self.by_number.get(number) else { continue };
                    self.watch(&client.stream, flags, false)?;
                }
            }
        }
    }

    /// Forwards requests and their replies until the process ends.
    fn forward(mut self, requests: &Requests, mut origin: Origin) -> anyhow::Result<()> {
        epoll::add(&self.epoll, &origin.stream, EventData::new_u64(ORIGIN), EventFlags::IN)?;
        let (mut events, mut buffer) = (Vec::with_capacity(EVENTS), vec![0; BUFFER]);
        loop {
            self.wait(&mut events)?;
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(requests)?,
                    ORIGIN => origin.give_replies(&mut self.by_number, &mut buffer)?,
                    number => {
                        self.take_requests(usize::try_from(number)?, &mut origin, &mut buffer)?;
                    }
                }
            }
            origin.send()?;
        }
    }

    fn take_requests(
        &mut self,
        number: usize,
        origin: &mut Origin,
        buffer: &mut [u8],
    ) -> anyhow::Result<()> {
        let Some(Some(client)) = self.by_number.get_mut(number) else { return Ok(()) };
        let length = client.stream.read(buffer).unwrap_or(0);
        if length == 0 {
            self.by_number[number] = None;
            return Ok(());
        }
        let count = client.requests.count(&buffer[..length]);
        // Otherwise the rest of it would follow another client's request.
        ensure!(client.requests.is_between(), "a request arrived in parts");
        origin.requests.extend_from_slice(&buffer[..length]);
        origin.waiting.extend(std::iter::repeat_n(number, count));
        Ok(())
    }
}

impl Client {
    /// Reads once and writes what is owed; returns whether the connection goes on.
    fn serve(&mut self, answer: &Answer, buffer: &mut [u8]) -> io::Result<bool> {
        if self.owed == 0 {
            match self.stream.read(buffer)? {
                0 => return Ok(false),
                length => self.owed = self.requests.count(&buffer[..length]) * answer.length,
            }
        }
        while self.owed > 0 {
            match self.stream.write(answer.next(self.owed)) {
                Ok(written) => self.owed -= written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The server that answers what is forwarded.
struct Origin {
    stream: TcpStream,
    /// The length of each reply.
    length: usize,
    requests: Vec<u8>,
    replies: Vec<u8>,
    /// The clients of the next replies.
    waiting: VecDeque<usize>,
}

impl Origin {
    fn new(stream: TcpStream, length: usize) -> anyhow::Result<Self> {
        ensure!(length > 0, "a reply of no bytes");
        stream.set_nodelay(true)?;
        let (requests, replies, waiting) = (Vec::new(), Vec::new(), VecDeque::new());
        Ok(Self { stream, length, requests, replies, waiting })
    }

    /// Sends all requests of one turn at once.
    fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.requests)?;
        self.requests.clear();
        Ok(())
    }

    fn give_replies(
        &mut self,
        clients: &mut [Option<Client>],
        buffer: &mut [u8],
    ) -> anyhow::Result<()> {
        let length = self.stream.read(buffer)?;
        ensure!(length > 0, "the origin closed the connection");
        self.replies.extend_from_slice(&buffer[..length]);
        let replies = self.replies.chunks_exact(self.length);
        let rest = replies.remainder().len();
        for reply in replies {
            let number = self.waiting.pop_front().context("a reply to no request")?;
            if let Some(Some(client)) = clients.get_mut(number)
                && client.stream.write_all(reply).is_err()
            {
                clients[number] = None;
            }
        }
        self.replies.drain(..self.replies.len() - rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! Promise: the limit counts each request once, and owes whole answers.

    use super::*;

    fn counted(mut requests: Requests, parts: &[&str]) -> Vec<usize> {
        parts.iter().map(|part| requests.count(part.as_bytes())).collect()
    }

    #[test]
    fn requests_are_counted_by_their_length() {
        assert_eq!(counted(Requests::bytes(4), &["abcdab", "c", "dabcdabcd"]), [1, 0, 3]);
    }

    #[test]
    fn blank_lines_are_counted_in_any_parts() {
        let request = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
        assert_eq!(counted(Requests::blank(), &[request, &request.repeat(3)]), [1, 3]);
        for at in 1..request.len() {
            let (begin, end) = request.split_at(at);
            let next = format!("{end}{begin}");
            assert_eq!(counted(Requests::blank(), &[begin, &next, end]), [0, 1, 1], "at {at}");
        }
    }

    #[test]
    fn a_body_without_lines_is_no_request() {
        let request = "POST / HTTP/1.1\r\nContent-Length: 13\r\n\r\n[\"GET\",\"key\"]";
        assert_eq!(counted(Requests::blank(), &[&request.repeat(2), request]), [2, 1]);
    }

    #[test]
    fn an_answer_goes_on_where_it_stopped() -> anyhow::Result<()> {
        let answer = Answer::new(b"abc")?;
        let mut written = Vec::new();
        for owed in (1..=7).rev() {
            written.push(answer.next(owed)[0]);
        }
        // Seven bytes are owed of three answers, so the first two were written before.
        assert_eq!(written, b"cabcabc");
        assert_eq!(answer.next(7), b"cabcabc");
        assert!(Answer::new(b"").is_err());
        Ok(())
    }
}
