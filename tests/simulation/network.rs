//! A network in memory: links that carry bytes in order, each way with delays of its own.
//!
//! Model: a path leads from one host to another. Each connection over it is a link of two pipes.
//! Bytes are written in pieces, each of which arrives after a delay, behind all earlier pieces of
//! its pipe. Pieces of different pipes overtake each other. A path can be slow, hold bytes in
//! either direction, refuse connections, cut its links at any byte, or lose everything that its
//! links carry from then on. One end can hold what it writes behind a certain byte.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use redis_proxy::backend::{Connecting, ConnectionAddr, SimulatedNetwork, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::world::{World, lock, ms};

/// The most bytes under way in a pipe.
const CAPACITY: usize = 64 << 10;

/// One direction of a link.
#[derive(Default)]
struct Pipe {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// The arrival of the last piece.
    last: Option<Instant>,
    /// The end behind the last piece; `true`: a reset.
    end: Option<(Instant, bool)>,
    /// Whether everything that is written is lost.
    is_lost: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn end(&mut self, at: Instant, is_reset: bool) {
        if self.end.is_none() && !self.is_lost {
            self.end = Some((self.last.map_or(at, |last| last.max(at)), is_reset));
            self.wake();
        }
    }
}

/// The two directions of a link: from the host that connected, and to it.
type Pipes = [Pipe; 2];

/// One end of a link.
pub(super) struct End {
    pipes: Arc<Mutex<Pipes>>,
    /// The direction in which this end writes.
    side: usize,
    path: Path,
    timer: Pin<Box<Sleep>>,
    hold: Option<Hold>,
}

/// A hold of what one end writes behind some bytes.
#[derive(Clone, Copy)]
struct Hold {
    /// The number of bytes that are not held.
    bytes: usize,
    /// The delay of these.
    delay: Duration,
    /// The time until which the others are held.
    until: Instant,
}

impl fmt::Debug for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the end {} of a link", self.side)
    }
}

/// The conditions of a path.
struct Conditions {
    /// The bounds of a delay, in milliseconds.
    delay: (u64, u64),
    /// The time until which each direction holds its bytes.
    held_until: [Option<Instant>; 2],
    refused_until: Option<Instant>,
    links: Vec<Weak<Mutex<Pipes>>>,
}

/// A way from one host to another.
#[derive(Clone)]
pub(super) struct Path(Arc<PathShared>);

struct PathShared {
    world: World,
    conditions: Mutex<Conditions>,
    accepted: mpsc::UnboundedSender<End>,
}

impl Path {
    /// A path, and the receiver of the ends at its host.
    pub(super) fn new(world: &World, delay: (u64, u64)) -> (Self, mpsc::UnboundedReceiver<End>) {
        let (accepted, ends) = mpsc::unbounded_channel();
        let conditions =
            Conditions { delay, held_until: [None; 2], refused_until: None, links: Vec::new() };
        let conditions = Mutex::new(conditions);
        (Self(Arc::new(PathShared { world: world.clone(), conditions, accepted })), ends)
    }

    pub(super) fn set_delay(&self, least: u64, most: u64) {
        lock(&self.0.conditions).delay = (least, most);
    }

    /// Returns a delay of a piece in this direction from now on.
    fn arrival(&self, side: usize) -> Instant {
        let conditions = lock(&self.0.conditions);
        let (least, most) = conditions.delay;
        let arrival = Instant::now() + self.0.world.duration(least, most);
        conditions.held_until[side].map_or(arrival, |until| until.max(arrival))
    }

    fn links(&self) -> Vec<Arc<Mutex<Pipes>>> {
        let mut conditions = lock(&self.0.conditions);
        conditions.links.retain(|link| link.strong_count() > 0);
        conditions.links.iter().filter_map(Weak::upgrade).collect()
    }

    /// Holds all bytes in these directions until this time.
    pub(super) fn hold(&self, sides: &[usize], until: Instant) {
        for side in sides {
            lock(&self.0.conditions).held_until[*side] = Some(until);
            for link in self.links() {
                let pipe = &mut lock(&link)[*side];
                for (arrival, _) in &mut pipe.pieces {
                    *arrival = (*arrival).max(until);
                }
                pipe.last = pipe.last.map(|last| last.max(until));
                pipe.end = pipe.end.map(|(at, is_reset)| (at.max(until), is_reset));
            }
        }
    }

    /// Refuses connections until this time.
    pub(super) fn refuse(&self, until: Instant) {
        lock(&self.0.conditions).refused_until = Some(until);
    }

    /// Cuts each link with this chance in percent. A part of what is under way still arrives.
    pub(super) fn cut(&self, percent: u64) {
        for link in self.links() {
            if !self.0.world.chance(percent) {
                continue;
            }
            for pipe in lock(&link).iter_mut() {
                let mut kept = self.0.world.index(pipe.bytes + 1);
                pipe.pieces.retain_mut(|(_, piece)| {
                    piece.truncate(kept);
                    kept -= piece.len();
                    !piece.is_empty()
                });
                pipe.bytes = pipe.pieces.iter().map(|(_, piece)| piece.len()).sum();
                pipe.last = pipe.pieces.back().map(|(arrival, _)| *arrival);
                pipe.end(Instant::now() + self.0.world.duration(0, 3), true);
            }
        }
    }

    /// Loses all that the present links carry, from now on. Neither end sees an end.
    pub(super) fn lose(&self) {
        for link in self.links() {
            for pipe in lock(&link).iter_mut() {
                pipe.is_lost = true;
                pipe.pieces.clear();
                pipe.end = None;
                pipe.bytes = 0;
                pipe.wake();
            }
        }
    }

    /// Connects to the host.
    pub(super) async fn connect(&self) -> io::Result<End> {
        sleep(self.arrival(0).saturating_duration_since(Instant::now())).await;
        let refused_until = lock(&self.0.conditions).refused_until;
        if refused_until.is_some_and(|until| until > Instant::now()) {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let pipes = Arc::new(Mutex::new(Pipes::default()));
        lock(&self.0.conditions).links.push(Arc::downgrade(&pipes));
        let end = |side| End {
            pipes: Arc::clone(&pipes),
            side,
            path: self.clone(),
            timer: Box::pin(sleep_until(Instant::now())),
            hold: None,
        };
        _ = self.0.accepted.send(end(1));
        sleep(self.arrival(1).saturating_duration_since(Instant::now())).await;
        Ok(end(0))
    }
}

/// The paths to several hosts, by host and port.
#[derive(Clone, Default)]
pub(super) struct Hosts(BTreeMap<String, Path>);

impl Hosts {
    pub(super) fn add(&mut self, address: &str, path: &Path) {
        self.0.insert(address.to_owned(), path.clone());
    }
}

impl SimulatedNetwork for Hosts {
    fn connect(&self, addr: &ConnectionAddr) -> Connecting {
        let path = self.0.get(&addr.node()).cloned();
        Box::pin(async move {
            let path = path.ok_or(ErrorKind::AddrNotAvailable)?;
            Ok(Box::new(path.connect().await?) as Box<dyn Stream>)
        })
    }
}

impl End {
    /// Delays the next `bytes` that it writes, and holds all others until `until`.
    pub(super) fn hold_behind(&mut self, bytes: usize, delay: Duration, until: Instant) {
        self.hold = Some(Hold { bytes, delay, until });
    }

    /// Returns the length and the arrival of a piece under the hold.
    fn held(&self, length: usize, arrival: Instant) -> (usize, Instant) {
        match self.hold {
            Some(hold) if hold.bytes > 0 => (length.min(hold.bytes), arrival + hold.delay),
            Some(hold) => (length, arrival.max(hold.until)),
            None => (length, arrival),
        }
    }

    /// Returns what `take` takes from the front of `input`, with as many more bytes as it needs, or
    /// `None` if the link ends before.
    pub(super) async fn receive<T>(
        &mut self,
        input: &mut Vec<u8>,
        take: impl Fn(&mut Vec<u8>) -> Option<T>,
    ) -> Option<T> {
        loop {
            if let Some(taken) = take(input) {
                return Some(taken);
            }
            if !matches!(self.read_buf(input).await, Ok(1..)) {
                return None;
            }
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pipes = Arc::clone(&self.pipes);
        loop {
            let mut pipes = lock(&pipes);
            let pipe = &mut pipes[1 - self.side];
            let now = Instant::now();
            let due = match (pipe.pieces.front_mut(), pipe.end) {
                (Some((arrival, piece)), _) if *arrival <= now => {
                    let most = piece.len().min(buffer.remaining());
                    buffer.put_slice(&piece[..most]);
                    piece.drain(..most);
                    pipe.bytes -= most;
                    if piece.is_empty() {
                        pipe.pieces.pop_front();
                    }
                    pipe.writer.take().into_iter().for_each(Waker::wake);
                    return Poll::Ready(Ok(()));
                }
                (Some((arrival, _)), _) => Some(*arrival),
                (None, Some((at, is_reset))) if at <= now => {
                    let reset = || Err(ErrorKind::ConnectionReset.into());
                    return Poll::Ready(if is_reset { reset() } else { Ok(()) });
                }
                (None, end) => end.map(|(at, _)| at),
            };
            pipe.reader = Some(cx.waker().clone());
            drop(pipes);
            let Some(due) = due else { return Poll::Pending };
            self.timer.as_mut().reset(due);
            ready!(self.timer.as_mut().poll(cx));
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let world = &self.path.0.world;
        let length = match bytes.len() {
            // A piece may end at any byte.
            2.. if world.chance(20) => 1 + world.index(bytes.len() - 1),
            length => length,
        };
        let (length, arrival) = self.held(length, self.path.arrival(self.side));
        let (pipes, side) = (Arc::clone(&self.pipes), self.side);
        let mut pipes = lock(&pipes);
        let pipe = &mut pipes[side];
        if pipe.is_lost {
            return Poll::Ready(Ok(bytes.len()));
        }
        if pipe.end.is_some() {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        if pipe.bytes >= CAPACITY {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let arrival = pipe.last.map_or(arrival, |last| last.max(arrival));
        pipe.last = Some(arrival);
        pipe.pieces.push_back((arrival, bytes[..length].to_vec()));
        pipe.bytes += length;
        pipe.reader.take().into_iter().for_each(Waker::wake);
        if let Some(hold) = &mut self.hold {
            hold.bytes = hold.bytes.saturating_sub(length);
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let arrival = self.path.arrival(self.side);
        lock(&self.pipes)[self.side].end(arrival, false);
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let arrival = self.path.arrival(self.side);
        let mut pipes = lock(&self.pipes);
        pipes[self.side].end(arrival, false);
        // What the other end writes from now on is answered by a reset.
        let incoming = &mut pipes[1 - self.side];
        if incoming.end.is_none() {
            incoming.end = Some((arrival.max(Instant::now() + ms(1)), true));
            incoming.wake();
        }
    }
}

/// The longest delay of a piece over a path of this delay, with the rounding of timers.
pub(super) fn longest(delay: (u64, u64)) -> Duration {
    ms(delay.1 + 2)
}
