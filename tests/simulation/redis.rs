//! The model of Redis as a host of the network: it accepts connections, runs commands, expires
//! keys, stands still, restarts, and is a primary or a replica.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::epochs::KeyState;
use super::model::{Change, Model};
use super::network::End;
use super::partitions::{Division, Histories, Part};
use super::resp::take_command;
use super::servers::Logged;
use super::world::{World, lock, ms};

/// The interval of the active expiry.
const EXPIRY_INTERVAL: Duration = ms(100);
/// The chance in percent that one round of it deletes an expired key. The others stay until a
/// command or a later round finds them.
const EXPIRY_CHANCE: u64 = 40;
/// The time of day at which a simulation begins, in milliseconds.
const EPOCH: u64 = 1_700_000_000_000;

#[derive(Clone)]
pub(super) struct Redis(Arc<Shared>);

struct Shared {
    world: World,
    model: Mutex<Model>,
    division: Division,
    /// The histories of its epochs; `None`: it is a replica.
    histories: Mutex<Option<Histories>>,
    /// The writes since its replica was given the data; `None`: it has no replica.
    log: Mutex<Option<VecDeque<Logged>>>,
    wakers: Mutex<BTreeMap<u64, Waker>>,
    /// The time until which nothing runs.
    stalled_until: Mutex<Option<Instant>>,
    /// The client of the writers, which write without a delay.
    writer: Mutex<u64>,
    hold: Mutex<Option<Hold>>,
}

/// A hold of what follows the reply to the next `PING` that renews the lease, on its connection.
struct Hold {
    /// The delay of the reply.
    reply: Duration,
    /// The time for which the rest is held.
    rest: Duration,
    begun: oneshot::Sender<()>,
}

impl Redis {
    pub(super) fn start(
        world: &World,
        mut model: Model,
        division: Division,
        mut ends: mpsc::UnboundedReceiver<End>,
    ) -> Self {
        let writer = Mutex::new(model.connect_logged_in());
        let redis = Self(Arc::new(Shared {
            world: world.clone(),
            model: Mutex::new(model),
            division,
            histories: Mutex::default(),
            log: Mutex::default(),
            wakers: Mutex::default(),
            stalled_until: Mutex::default(),
            writer,
            hold: Mutex::default(),
        }));
        let accepting = redis.clone();
        tokio::spawn(async move {
            while let Some(end) = ends.recv().await {
                tokio::spawn(accepting.clone().serve(end));
            }
        });
        tokio::spawn(redis.clone().expire());
        redis
    }

    fn millis(&self) -> u64 {
        millis(self.0.world.now())
    }

    /// Records its changes in these histories.
    pub(super) fn lead(&self, histories: Histories) {
        *lock(&self.0.histories) = Some(histories);
    }

    /// Whether it is a primary.
    pub(super) fn leads(&self) -> bool {
        lock(&self.0.histories).is_some()
    }

    /// Records the changes of a part in the history of `other` too.
    pub(super) fn join_history(&self, part: Part, other: &Self) {
        let history = lock(&other.0.histories).as_ref().and_then(|all| all.get(part));
        if let (Some(own), Some(history)) = (&mut *lock(&self.0.histories), history) {
            own.add(part, history);
        }
    }

    /// Records the changes of a part no more.
    pub(super) fn leave_history(&self, part: Part) {
        lock(&self.0.histories).as_mut().into_iter().for_each(|all| all.remove(part));
    }

    /// Returns the parts whose changes it records.
    pub(super) fn parts(&self) -> Vec<Part> {
        lock(&self.0.histories).as_ref().map(Histories::parts).unwrap_or_default()
    }

    /// Calls `act` with the model.
    pub(super) fn with_model<T>(&self, act: impl FnOnce(&mut Model) -> T) -> T {
        act(&mut lock(&self.0.model))
    }

    /// Takes over the data of `primary`. No write is under way to it any more.
    pub(super) fn catch_up(&self, primary: &Self) {
        lock(&self.0.model).copy(&lock(&primary.0.model));
        *lock(&primary.0.log) = Some(VecDeque::new());
    }

    /// Moves a key to `target`, as `MIGRATE` does. `false`: one of the two stands still.
    pub(super) fn migrate(&self, key: &[u8], target: &Self) -> bool {
        if self.is_stalled().is_some() || target.is_stalled().is_some() {
            return false;
        }
        let now = self.millis();
        let migrated = lock(&self.0.model).take_for_migration(key, now);
        // The key has the same content as before.
        _ = lock(&self.0.model).take_changes();
        self.wake_receivers();
        if let Some(migrated) = migrated {
            lock(&target.0.model).restore(key, migrated, now);
            target.apply_changes();
            target.wake_receivers();
        }
        true
    }

    /// Becomes a replica of `primary`, with its data. All clients are disconnected.
    pub(super) fn follow(&self, primary: &Self) {
        let mut model = lock(&self.0.model);
        model.follow(&lock(&primary.0.model));
        *lock(&self.0.writer) = model.connect_logged_in();
        drop(model);
        (*lock(&self.0.histories), *lock(&self.0.log)) = (None, None);
        *lock(&primary.0.log) = Some(VecDeque::new());
        self.wake_all();
    }

    /// Takes the writes since the replica was given the data. From now on none are kept.
    pub(super) fn take_log(&self) -> VecDeque<Logged> {
        lock(&self.0.log).take().unwrap_or_default()
    }

    /// Becomes a primary once it has run these writes. Returns its data.
    pub(super) fn promote(&self, writes: VecDeque<Logged>) -> Vec<KeyState> {
        let mut model = lock(&self.0.model);
        for (at, command) in writes {
            model.replay(&command, millis(at));
        }
        model.promote(self.millis()).into_iter().map(content).collect()
    }

    /// Runs a command of a writer, and returns the reply. `None`: Redis stands still.
    pub(super) fn write(&self, command: &[&[u8]]) -> Option<Vec<u8>> {
        if self.is_stalled().is_some() {
            return None;
        }
        let writer = *lock(&self.0.writer);
        self.run(writer, &command.iter().map(|word| word.to_vec()).collect::<Vec<_>>());
        Some(lock(&self.0.model).take_output(writer))
    }

    fn is_stalled(&self) -> Option<Instant> {
        lock(&self.0.stalled_until).filter(|until| *until > Instant::now())
    }

    /// Stands still until this time.
    pub(super) fn stall(&self, until: Instant) {
        *lock(&self.0.stalled_until) = Some(until);
    }

    /// Delays the reply to the next `PING` that renews the lease by `reply`, and holds the rest for
    /// `rest`. Returns the signal that it has run.
    pub(super) fn hold_behind_ping(
        &self,
        reply: Duration,
        rest: Duration,
    ) -> oneshot::Receiver<()> {
        let (begun, signal) = oneshot::channel();
        *lock(&self.0.hold) = Some(Hold { reply, rest, begun });
        signal
    }

    /// Closes each client with this chance in percent.
    pub(super) fn kill(&self, percent: u64) {
        let clients: Vec<_> = lock(&self.0.wakers).keys().copied().collect();
        for client in clients {
            if self.0.world.chance(percent) {
                lock(&self.0.model).disconnect(client);
                self.wake(client);
            }
        }
    }

    /// Restarts, empty or with its data.
    pub(super) fn restart(&self, is_empty: bool) {
        let mut model = lock(&self.0.model);
        if is_empty {
            model.restart_empty();
        } else {
            model.restart();
        }
        *lock(&self.0.writer) = model.connect_logged_in();
        drop(model);
        self.apply_changes();
        self.wake_all();
    }

    fn wake_all(&self) {
        for waker in std::mem::take(&mut *lock(&self.0.wakers)).into_values() {
            waker.wake();
        }
    }

    async fn expire(self) {
        loop {
            sleep(EXPIRY_INTERVAL).await;
            if self.is_stalled().is_some() {
                continue;
            }
            let now = self.millis();
            let expired = lock(&self.0.model).expired(now);
            for key in expired {
                if self.0.world.chance(EXPIRY_CHANCE) {
                    self.0.world.record(|| format!("expired {}", key.escape_ascii()));
                    lock(&self.0.model).expire(&key, now);
                }
            }
            let hashes = lock(&self.0.model).with_expired_fields(now);
            for key in hashes {
                if self.0.world.chance(EXPIRY_CHANCE) {
                    self.0.world.record(|| format!("fields of {} expired", key.escape_ascii()));
                    lock(&self.0.model).expire_fields(&key, now);
                }
            }
            self.wake_receivers();
        }
    }

    fn run(&self, client: u64, command: &[Vec<u8>]) {
        self.0.world.record(|| {
            let words: Vec<_> =
                command.iter().map(|word| word.escape_ascii().to_string()).collect();
            format!("redis {client}: {}", words.join(" "))
        });
        lock(&self.0.model).run(client, command, self.millis());
        self.apply_changes();
        self.wake_receivers();
    }

    fn apply_changes(&self) {
        let now = self.0.world.now();
        let (changes, writes) = {
            let mut model = lock(&self.0.model);
            (model.take_changes(), model.take_executed())
        };
        if let Some(log) = &mut *lock(&self.0.log) {
            log.extend(writes.into_iter().map(|command| (now, command)));
        }
        let histories = lock(&self.0.histories);
        let Some(histories) = &*histories else { return };
        for KeyState { key, content, later } in changes.into_iter().map(content) {
            let history = histories.get(self.0.division.part_of(&key));
            if let Some(history) = history {
                lock(&history).change(&key, content, later, now);
            }
        }
    }

    fn wake_receivers(&self) {
        for client in lock(&self.0.model).with_output() {
            self.wake(client);
        }
    }

    fn wake(&self, client: u64) {
        lock(&self.0.wakers).remove(&client).into_iter().for_each(Waker::wake);
    }

    async fn serve(self, end: End) {
        let client = lock(&self.0.model).connect();
        let mut connection = Connection {
            redis: self.clone(),
            client,
            end,
            input: Vec::new(),
            output: Vec::new(),
            is_proof: false,
        };
        let mut stall = Box::pin(sleep_until(Instant::now()));
        poll_fn(|cx| {
            loop {
                lock(&self.0.wakers).insert(client, cx.waker().clone());
                let Some(until) = self.is_stalled() else { return connection.poll(cx) };
                stall.as_mut().reset(until);
                if stall.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
        self.0.world.record(|| format!("redis {client}: closed"));
        lock(&self.0.model).disconnect(client);
        lock(&self.0.wakers).remove(&client);
    }
}

/// Returns the time of day at this moment of the simulation.
fn millis(moment: Duration) -> u64 {
    EPOCH + u64::try_from(moment.as_millis()).unwrap_or(0)
}

/// Returns a change with the times of the simulation.
fn content(Change { key, content, later }: Change) -> KeyState {
    // A key is still there in the millisecond of its end.
    let moment = |end: u64| ms((end + 1).saturating_sub(EPOCH));
    let later = later.into_iter().map(|(end, content)| (moment(end), content)).collect();
    KeyState { key, content, later }
}

struct Connection {
    redis: Redis,
    client: u64,
    end: End,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Whether the last command was a proof of rights, behind which a `PING` renews the lease.
    is_proof: bool,
}

impl Connection {
    /// Begins a hold behind the reply to this command, if one waits for it.
    fn begin_hold(&mut self, command: &[Vec<u8>]) {
        let is_renewal = self.is_proof && command[0] == b"PING";
        self.is_proof = command[0] == b"ACL";
        let Some(hold) = lock(&self.redis.0.hold).take_if(|_| is_renewal) else { return };
        if hold.begun.send(()).is_err() {
            // The fault has been given up.
            return;
        }
        self.output.extend(lock(&self.redis.0.model).take_output(self.client));
        self.end.hold_behind(self.output.len(), hold.reply, Instant::now() + hold.rest);
    }

    /// Runs what has arrived and sends what is there. Ready at the end of the connection.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut piece = [0; 16 << 10];
        loop {
            if !lock(&self.redis.0.model).is_connected(self.client) {
                return Poll::Ready(());
            }
            self.output.extend(lock(&self.redis.0.model).take_output(self.client));
            while !self.output.is_empty() {
                match Pin::new(&mut self.end).poll_write(cx, &self.output) {
                    Poll::Ready(Ok(written)) => drop(self.output.drain(..written)),
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            let mut piece = ReadBuf::new(&mut piece);
            match Pin::new(&mut self.end).poll_read(cx, &mut piece) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    self.input.extend_from_slice(piece.filled());
                }
                Poll::Ready(_) => return Poll::Ready(()),
            }
            // As Redis does: all commands of what was read, with those of no other client between.
            while let Some(command) = take_command(&mut self.input) {
                self.redis.run(self.client, &command);
                self.begin_hold(&command);
            }
        }
    }
}
