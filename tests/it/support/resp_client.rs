//! A RESP client that knows only the end of a reply: blocking, and exact to the byte.
//!
//! Model: it sends the bytes of the test, and a reply is the bytes it came in. A read without a
//! reply ends in an error after 20 s, so a test never hangs.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use memchr::memmem;

const BOUND: Duration = Duration::from_secs(20);
const READ: usize = 64 << 10;

/// A connection.
pub(crate) struct RespClient {
    stream: TcpStream,
    held: Vec<u8>,
    /// The start of the next reply in `held`.
    from: usize,
    /// The buffer of a read.
    room: Vec<u8>,
}

impl RespClient {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, BOUND).expect("a connection");
        stream.set_nodelay(true).expect("a connection to set up");
        stream.set_write_timeout(Some(BOUND)).expect("a connection to set up");
        let wire = Self { stream, held: Vec::new(), from: 0, room: Vec::new() };
        wire.wait_at_most(BOUND);
        wire
    }

    /// Connects and sends `HELLO 3`.
    pub(crate) fn connect_resp3(address: SocketAddr) -> Self {
        let mut wire = Self::connect(address);
        let greeting = wire.query(&["HELLO", "3"]);
        assert_eq!(greeting.first(), Some(&b'%'), "{}", show(&greeting));
        wire
    }

    /// Limits the wait for bytes.
    pub(crate) fn wait_at_most(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).expect("a connection to set up");
    }

    /// Returns another handle, to send from another thread.
    pub(crate) fn sender(&self) -> TcpStream {
        self.stream.try_clone().expect("a second handle of a connection")
    }

    /// Sends bytes as they are; a closed connection is noticed by the next read.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        match self.stream.write_all(bytes.as_ref()) {
            Err(error) if is_gone(&error) => {}
            sent => sent.expect("the other end takes the bytes"),
        }
    }

    /// Sends as much as the other end accepts; it may accept no more until its replies are read.
    pub(crate) fn send_what_is_taken(&self, mut bytes: &[u8]) {
        const LONGEST: Duration = Duration::from_millis(200);
        self.stream.set_write_timeout(Some(LONGEST)).expect("a connection to set up");
        while let Ok(taken) = (&self.stream).write(bytes) {
            bytes = &bytes[taken..];
            if bytes.is_empty() {
                return;
            }
        }
    }

    /// Sends a command and returns its reply.
    #[track_caller]
    pub(crate) fn query<Word: AsRef<[u8]>>(&mut self, words: &[Word]) -> Vec<u8> {
        self.send(command(words));
        self.answer()
    }

    /// Sends a command and returns its reply as text.
    #[track_caller]
    pub(crate) fn reply_to_words<Word: AsRef<[u8]>>(&mut self, words: &[Word]) -> String {
        show(&self.query(words))
    }

    #[track_caller]
    pub(crate) fn answer(&mut self) -> Vec<u8> {
        match self.try_answer() {
            Ok(answer) => answer,
            Err(error) => panic!("no answer: {error}; held: {}", show(&self.held[self.from..])),
        }
    }

    #[track_caller]
    pub(crate) fn answers(&mut self, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| self.answer()).collect()
    }

    /// Reads the next reply if there is one.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` on a closed connection.
    pub(crate) fn try_answer(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(length) = answer_length(&self.held[self.from..]) {
                let to = self.from + length;
                let answer = self.held[self.from..to].to_vec();
                self.from = to;
                return Ok(answer);
            }
            if self.read_more()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads until the other end closes; panics if it does not.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        match self.try_rest() {
            Ok(rest) => rest,
            Err(error) => panic!("not closed: {error}; held: {}", show(&self.held[self.from..])),
        }
    }

    pub(crate) fn try_rest(&mut self) -> io::Result<Vec<u8>> {
        while self.read_more()? > 0 {}
        Ok(self.held.split_off(std::mem::take(&mut self.from)))
    }

    /// Whether the other end has closed, by a `PING`; nothing without a reply or an end.
    pub(crate) fn is_closed(&mut self) -> Option<bool> {
        self.send("PING\r\n");
        match self.try_answer() {
            Ok(_) => Some(false),
            Err(error) => (error.kind() == ErrorKind::UnexpectedEof).then_some(true),
        }
    }

    /// Closes the sending direction.
    pub(crate) fn end_sending(&self) {
        _ = self.stream.shutdown(Shutdown::Write);
    }

    fn read_more(&mut self) -> io::Result<usize> {
        self.held.drain(..std::mem::take(&mut self.from));
        // Room for each read in `held` itself would be filled with zeros each time, which was a
        // sixth of the processor time of the tests.
        let room = READ.max(self.held.len());
        if self.room.len() < room {
            self.room.resize(room, 0);
        }
        let mut read = self.stream.read(&mut self.room[..room]);
        // A machine that was paused interrupts a read that has a time limit.
        while read.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted) {
            read = self.stream.read(&mut self.room[..room]);
        }
        self.held.extend_from_slice(&self.room[..*read.as_ref().unwrap_or(&0)]);
        match read {
            // Data sent to a closed connection may have it reset.
            Err(error) if is_gone(&error) => Ok(0),
            read => read,
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind())
}

/// Returns a command as it goes over the wire.
pub(crate) fn command<Word: AsRef<[u8]>>(words: &[Word]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Returns a command of words without spaces.
pub(crate) fn words(line: &str) -> Vec<u8> {
    command(&line.split(' ').collect::<Vec<_>>())
}

/// Returns a bulk string as it goes over the wire.
pub(crate) fn bulk(value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
}

/// Returns the length of the reply at the front, or nothing if its end has not come.
pub(crate) fn answer_length(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut missing) = (0, 1_usize);
    while missing > 0 {
        missing -= 1;
        let line = at + memmem::find(bytes.get(at..)?, b"\r\n")?;
        let kind = bytes[at];
        let text = str::from_utf8(&bytes[at + 1..line]).unwrap_or_default();
        let length = usize::try_from(text.parse::<i64>().unwrap_or(0)).ok();
        at = line + 2;
        match kind {
            b'$' | b'=' | b'!' => at += length.map_or(0, |length| length + 2),
            b'*' | b'~' | b'>' => missing += length.unwrap_or(0),
            b'%' => missing += 2 * length.unwrap_or(0),
            b'|' => missing += 2 * length.unwrap_or(0) + 1,
            _ => {}
        }
    }
    (at <= bytes.len()).then_some(at)
}

/// Returns bytes in readable form; of many, the first.
pub(crate) fn show(bytes: &[u8]) -> String {
    const MOST: usize = 600;
    let text = bytes[..bytes.len().min(MOST)].escape_ascii().to_string();
    if bytes.len() > MOST { format!("{text}... ({} bytes)", bytes.len()) } else { text }
}

/// Returns a reply in readable form, without the id of the connection in a `HELLO` reply.
pub(crate) fn show_without_id(answer: &[u8]) -> String {
    const BEFORE: &str = "$2\\r\\nid\\r\\n:";
    let text = show(answer);
    let Some((before, rest)) = text.split_once(BEFORE) else { return text };
    format!("{before}{BEFORE}{}", rest.trim_start_matches(|digit: char| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_ends_at_its_last_byte() {
        for answer in [
            "+OK\r\n",
            "$-1\r\n",
            "$3\r\na\r\n\r\n",
            "*2\r\n:1\r\n*1\r\n$0\r\n\r\n",
            "%1\r\n+a\r\n_\r\n",
            "*-1\r\n",
        ] {
            for cut in 0..answer.len() {
                assert_eq!(
                    answer_length(&answer.as_bytes()[..cut]),
                    None,
                    "{answer:?} cut at {cut}"
                );
            }
            assert_eq!(
                answer_length(format!("{answer}+").as_bytes()),
                Some(answer.len()),
                "{answer:?}"
            );
        }
    }
}
