//! The servers of a simulation: one Redis; or a primary, its replica and three sentinels.
//!
//! A failover promotes the replica with the writes that have reached it. The previous primary goes
//! on, crashes or stands still. It is a primary until it is demoted, and clients that do not know
//! better write to it. Then it takes the data of the next one, and its clients are disconnected.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;

use super::epochs::Epochs;
use super::model::Model;
use super::network::{Hosts, Path};
use super::redis::Redis;
use super::sentinel::{Report, Sentinel};
use super::world::{World, lock};

/// The hosts of the two servers.
const HOSTS: [&str; 2] = ["127.0.0.1", "127.0.0.2"];
/// The addresses of the sentinels.
pub(super) const SENTINELS: [&str; 3] = ["127.0.0.3:26379", "127.0.0.4:26379", "127.0.0.5:26379"];
/// The longest time for which a write does not reach the replica, in milliseconds.
const LAG: u64 = 1000;
/// The chance in percent that a write goes to a previous primary that is not demoted yet.
const MISLED: u64 = 25;

/// A write, with the time at which it ran.
pub(super) type Logged = (Duration, Vec<Vec<u8>>);

#[derive(Clone)]
pub(super) struct Servers(Arc<Shared>);

struct Shared {
    world: World,
    nodes: Vec<(Redis, Path)>,
    sentinels: Vec<(Sentinel, Path)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The index of the primary.
    primary: usize,
    config_epoch: u64,
    is_failing_over: bool,
    /// The time until which the proxy may not reach the sentinels.
    blind_until: Duration,
}

/// The fate of the primary in a failover.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cause {
    /// An operator asked for it.
    Asked,
    Crash,
    Standstill,
}

/// The times of a failover, since its beginning.
#[derive(Clone, Debug)]
pub(super) struct Failover {
    pub(super) cause: Cause,
    pub(super) promoted: Duration,
    /// The times at which each sentinel knows of it.
    pub(super) known: [Duration; SENTINELS.len()],
    /// The time at which the previous primary runs again.
    pub(super) returns: Duration,
    pub(super) demoted: Duration,
    /// The age of the writes that are lost at most.
    pub(super) lost: Duration,
}

impl Failover {
    pub(super) fn choose(world: &World) -> Self {
        let cause = [Cause::Asked, Cause::Crash, Cause::Standstill][world.index(3)];
        let is_asked = cause == Cause::Asked;
        let promoted = world.duration(0, if is_asked { 200 } else { 1500 });
        let returns = if is_asked { Duration::ZERO } else { promoted + world.duration(0, 1000) };
        let demoted = promoted.max(returns) + world.duration(0, 1500);
        let mut known = SENTINELS.map(|_| promoted + world.duration(0, 1500));
        // The sentinel that leads the failover.
        known[world.index(SENTINELS.len())] = promoted;
        let lost = if world.chance(30) { Duration::ZERO } else { world.duration(1, LAG) };
        Self { cause, promoted, known, returns, demoted, lost }
    }

    /// The time at which every sentinel knows of it.
    pub(super) fn known_to_all(&self) -> Duration {
        self.known.into_iter().max().unwrap_or_default()
    }
}

impl Servers {
    /// Starts one Redis, or two with sentinels. Returns them, and how the proxy reaches them.
    pub(super) fn start(
        world: &World,
        model: impl Fn() -> Model,
        with_sentinels: bool,
        delay: (u64, u64),
        epochs: &Epochs,
    ) -> (Self, Hosts) {
        let mut hosts = Hosts::default();
        let mut nodes = Vec::new();
        for host in &HOSTS[..if with_sentinels { 2 } else { 1 }] {
            let (path, ends) = Path::new(world, delay);
            hosts.add(&format!("{host}:6379"), &path);
            nodes.push((Redis::start(world, model(), ends), path));
        }
        nodes[0].0.lead(epochs.last());
        if let [(primary, _), (replica, _)] = &nodes[..] {
            replica.follow(primary);
        }
        let mut sentinels = Vec::new();
        for (number, address) in SENTINELS.iter().enumerate().filter(|_| with_sentinels) {
            let (path, ends) = Path::new(world, delay);
            hosts.add(address, &path);
            let report = Report { config_epoch: 0, host: HOSTS[0].to_owned() };
            sentinels.push((Sentinel::start(world, number, report, ends), path));
        }
        let shared = Shared { world: world.clone(), nodes, sentinels, state: Mutex::default() };
        (Self(Arc::new(shared)), hosts)
    }

    pub(super) fn has_sentinels(&self) -> bool {
        !self.0.sentinels.is_empty()
    }

    fn index(&self) -> usize {
        lock(&self.0.state).primary
    }

    pub(super) fn primary(&self) -> &Redis {
        &self.0.nodes[self.index()].0
    }

    /// The path to the primary.
    pub(super) fn primary_path(&self) -> &Path {
        &self.0.nodes[self.index()].1
    }

    /// The paths to all servers but the sentinels.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.nodes.iter().map(|(_, path)| path)
    }

    pub(super) fn sentinel_paths(&self) -> impl Iterator<Item = &Path> {
        self.0.sentinels.iter().map(|(_, path)| path)
    }

    /// Runs a command of a writer. `false`: it reaches no Redis that runs.
    pub(super) fn write(&self, command: &[&[u8]]) -> bool {
        let primary = self.index();
        let other = self.0.nodes.get(1 - primary).map(|(redis, _)| redis);
        let misled = other.filter(|other| other.leads() && self.0.world.chance(MISLED));
        misled.unwrap_or(&self.0.nodes[primary].0).write(command)
    }

    /// Restarts the primary. Its replica takes its data again.
    pub(super) fn restart(&self, is_empty: bool) {
        self.primary().restart(is_empty);
        let other = self.0.nodes.get(1 - self.index()).map(|(redis, _)| redis);
        if let Some(replica) = other.filter(|other| !other.leads()) {
            replica.follow(self.primary());
        }
    }

    /// The proxy may not reach the sentinels before `until`. Returns the latest such time.
    pub(super) fn blind(&self, until: Duration) -> Duration {
        let mut state = lock(&self.0.state);
        state.blind_until = state.blind_until.max(until);
        state.blind_until
    }

    /// Returns the number of failovers.
    pub(super) fn failovers(&self) -> u64 {
        lock(&self.0.state).config_epoch
    }

    pub(super) fn is_failing_over(&self) -> bool {
        lock(&self.0.state).is_failing_over
    }

    /// Reserves the servers for a failover, if none runs.
    pub(super) fn begin_failover(&self) -> bool {
        let mut state = lock(&self.0.state);
        !std::mem::replace(&mut state.is_failing_over, true)
    }

    /// Runs a failover. The proxy knows of it by `known_by`.
    pub(super) async fn fail_over(
        &self,
        plan: &Failover,
        epochs: &Mutex<Epochs>,
        known_by: Duration,
    ) {
        let (world, begin) = (&self.0.world, self.0.world.now());
        let (previous, next) = (self.index(), 1 - self.index());
        let (old, old_path) = &self.0.nodes[previous];
        let returns = world.instant(begin + plan.returns);
        match plan.cause {
            Cause::Asked => {}
            Cause::Crash => {
                old_path.refuse(returns);
                old.restart(false);
                old.stall(returns);
            }
            Cause::Standstill => old.stall(returns),
        }
        sleep(plan.promoted).await;
        self.promote(next, plan.lost, epochs, known_by);
        let config_epoch = {
            let mut state = lock(&self.0.state);
            (state.primary, state.config_epoch) = (next, state.config_epoch + 1);
            state.config_epoch
        };
        for (number, known) in plan.known.into_iter().enumerate() {
            let (servers, wait) = (self.clone(), known.saturating_sub(plan.promoted));
            tokio::spawn(async move {
                sleep(wait).await;
                let report = Report { config_epoch, host: HOSTS[next].to_owned() };
                servers.0.world.record(|| format!("sentinel {number} knows {report:?}"));
                servers.0.sentinels[number].0.report(report);
            });
        }
        sleep(plan.demoted.saturating_sub(plan.promoted)).await;
        world.record(|| format!("{} is demoted", HOSTS[previous]));
        old.follow(&self.0.nodes[next].0);
        // A sentinel that knows late would report this primary in the place of the next one.
        sleep((begin + plan.known_to_all()).saturating_sub(world.now())).await;
        lock(&self.0.state).is_failing_over = false;
    }

    /// Promotes a replica, without the writes of the last time.
    fn promote(&self, next: usize, lost: Duration, epochs: &Mutex<Epochs>, known_by: Duration) {
        let now = self.0.world.now();
        let (kept, missing): (VecDeque<Logged>, VecDeque<Logged>) =
            self.0.nodes[1 - next].0.take_log().into_iter().partition(|(at, _)| *at + lost <= now);
        let missing = missing.len();
        self.0.world.record(|| format!("{} is promoted without {missing} writes", HOSTS[next]));
        let redis = &self.0.nodes[next].0;
        let contents = redis.promote(kept);
        redis.lead(lock(epochs).begin(contents, now, known_by));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failover_promotes_before_it_demotes() {
        let world = World::new(1, false);
        for _ in 0..1000 {
            let plan = Failover::choose(&world);
            assert!(plan.promoted <= plan.demoted && plan.returns <= plan.demoted, "{plan:?}");
            assert!(plan.known.contains(&plan.promoted), "{plan:?}");
            assert!(plan.known.iter().all(|known| *known >= plan.promoted), "{plan:?}");
        }
    }
}
