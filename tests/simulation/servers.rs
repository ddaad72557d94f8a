//! The servers of a simulation: one Redis; a primary, its replica and three sentinels; or a cluster
//! of several primaries with a replica each.
//!
//! Model: a pair is a primary and its replica. In a cluster each pair has slots of its own, and a
//! node learns of a change at a time that the adversary chooses. A slot moves key by key
//! ([`Servers::move_slot`]), while no failover runs.
//!
//! A failover promotes the replica with the writes that have reached it. The previous primary goes
//! on, crashes or stands still. It is a primary until it is demoted, and clients that do not know
//! better write to it. Then it takes the data of the next one, and its clients are disconnected.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;

use super::model::Model;
use super::model::cluster::{Claim, Member, SLOTS, View};
use super::network::{Hosts, Path};
use super::partitions::{Division, Histories, Part, Partitions};
use super::redis::Redis;
use super::sentinel::{Report, Sentinel};
use super::world::{World, lock, ms};

/// The most pairs.
const PAIRS: usize = 3;
/// The hosts of the servers, those of a pair side by side.
const HOSTS: [&str; 2 * PAIRS] =
    ["127.0.0.1", "127.0.0.2", "127.0.1.1", "127.0.1.2", "127.0.2.1", "127.0.2.2"];
/// The port of the servers.
const PORT: u16 = 6379;
/// The addresses of the sentinels.
pub(super) const SENTINELS: [&str; 3] = ["127.0.0.3:26379", "127.0.0.4:26379", "127.0.0.5:26379"];
/// The longest time for which a write does not reach the replica, in milliseconds.
const LAG: u64 = 1000;
/// The chance in percent that a write goes to a previous primary that is not demoted yet.
const MISLED: u64 = 25;
/// The most redirections that a writer follows.
const MAX_REDIRECTS: usize = 5;

/// A write, with the time at which it ran.
pub(super) type Logged = (Duration, Vec<Vec<u8>>);

/// The servers that a simulation has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Layout {
    One,
    Sentinels,
    /// A cluster of this many pairs.
    Cluster(usize),
}

impl Layout {
    fn pairs(self) -> usize {
        match self {
            Self::One | Self::Sentinels => 1,
            Self::Cluster(pairs) => pairs,
        }
    }

    pub(super) fn division(self) -> Division {
        match self {
            Self::One | Self::Sentinels => Division::Whole,
            Self::Cluster(_) => Division::Slots,
        }
    }

    /// Returns the addresses that the proxy is given.
    pub(super) fn seeds(self) -> Vec<String> {
        match self {
            Self::One => Vec::new(),
            Self::Sentinels => SENTINELS.map(str::to_owned).into(),
            Self::Cluster(_) => vec![address(0), address(2)],
        }
    }
}

/// Returns the address of a server.
fn address(node: usize) -> String {
    format!("{}:{PORT}", HOSTS[node])
}

#[derive(Clone)]
pub(super) struct Servers(Arc<Shared>);

struct Shared {
    world: World,
    layout: Layout,
    nodes: Vec<(Redis, Path)>,
    sentinels: Vec<(Sentinel, Path)>,
    state: Mutex<State>,
}

struct State {
    /// The index of the primary of each pair.
    primaries: Vec<usize>,
    failovers: u64,
    /// The number of slots that have moved.
    moves: u64,
    /// Whether a failover runs, or a slot moves.
    is_changing: bool,
    /// The time until which the proxy may not reach the sentinels.
    blind_until: Duration,
}

/// The news of a change, for a sentinel or for a node of a cluster.
#[derive(Clone, Debug)]
enum News {
    Report(Report),
    Claim(Claim),
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
    /// The times at which each sentinel knows of it, or each node of another pair.
    pub(super) known: Vec<Duration>,
    /// The time at which the previous primary runs again.
    pub(super) returns: Duration,
    pub(super) demoted: Duration,
    /// The age of the writes that are lost at most.
    pub(super) lost: Duration,
}

impl Failover {
    /// Chooses a failover that this many others learn of.
    fn choose(world: &World, others: usize) -> Self {
        let cause = [Cause::Asked, Cause::Crash, Cause::Standstill][world.index(3)];
        let is_asked = cause == Cause::Asked;
        let promoted = world.duration(0, if is_asked { 200 } else { 1500 });
        let returns = if is_asked { Duration::ZERO } else { promoted + world.duration(0, 1000) };
        let demoted = promoted.max(returns) + world.duration(0, 1500);
        let mut known: Vec<_> = (0..others).map(|_| promoted + world.duration(0, 1500)).collect();
        // The sentinel that leads the failover, or the first that votes.
        known[world.index(others)] = promoted;
        let lost = if world.chance(30) { Duration::ZERO } else { world.duration(1, LAG) };
        Self { cause, promoted, known, returns, demoted, lost }
    }

    /// The time at which all of them know of it.
    pub(super) fn known_to_all(&self) -> Duration {
        self.known.iter().copied().max().unwrap_or_default()
    }
}

/// The times of a slot that moves.
#[derive(Clone, Debug)]
pub(super) struct SlotMove {
    part: Part,
    /// The pairs.
    from: usize,
    to: usize,
    /// The longest pause before each step.
    pause: u64,
}

impl Servers {
    /// Starts the servers. Returns them, and how the proxy reaches them.
    pub(super) fn start(
        world: &World,
        model: impl Fn() -> Model,
        layout: Layout,
        delay: (u64, u64),
        partitions: &Partitions,
    ) -> (Self, Hosts) {
        let mut hosts = Hosts::default();
        let mut nodes = Vec::new();
        let count = if layout == Layout::One { 1 } else { 2 * layout.pairs() };
        for (node, host) in HOSTS[..count].iter().enumerate() {
            let (path, ends) = Path::new(world, delay);
            hosts.add(&format!("{host}:{PORT}"), &path);
            let mut model = model();
            if let Layout::Cluster(pairs) = layout {
                model.join(view(node, pairs));
            }
            nodes.push((Redis::start(world, model, layout.division(), ends), path));
        }
        for pair in 0..layout.pairs() {
            let mut histories = Histories::default();
            for part in partitions.parts().into_iter().filter(|part| is_first(layout, pair, *part))
            {
                histories.add(part, partitions.last(part));
            }
            nodes[2 * pair].0.lead(histories);
            if let Some((replica, _)) = nodes.get(2 * pair + 1) {
                replica.follow(&nodes[2 * pair].0);
            }
        }
        let mut sentinels = Vec::new();
        for (number, address) in SENTINELS.iter().enumerate() {
            if layout == Layout::Sentinels {
                let (path, ends) = Path::new(world, delay);
                hosts.add(address, &path);
                let report = Report { config_epoch: 0, host: HOSTS[0].to_owned() };
                sentinels.push((Sentinel::start(world, number, report, ends), path));
            }
        }
        let state = Mutex::new(State {
            primaries: (0..layout.pairs()).map(|pair| 2 * pair).collect(),
            failovers: 0,
            moves: 0,
            is_changing: false,
            blind_until: Duration::ZERO,
        });
        (Self(Arc::new(Shared { world: world.clone(), layout, nodes, sentinels, state })), hosts)
    }

    pub(super) fn layout(&self) -> Layout {
        self.0.layout
    }

    fn index(&self, pair: usize) -> usize {
        lock(&self.0.state).primaries[pair]
    }

    fn node(&self, index: usize) -> &Redis {
        &self.0.nodes[index].0
    }

    /// Returns a random pair.
    pub(super) fn pick(&self) -> usize {
        self.0.world.index(self.0.layout.pairs())
    }

    /// The primary of a pair.
    pub(super) fn primary(&self, pair: usize) -> &Redis {
        self.node(self.index(pair))
    }

    /// The path to the primary of a pair.
    pub(super) fn primary_path(&self, pair: usize) -> &Path {
        &self.0.nodes[self.index(pair)].1
    }

    /// The other server of a pair, if there is one.
    fn other(&self, pair: usize) -> Option<&Redis> {
        self.0.nodes.get(self.index(pair) ^ 1).map(|(redis, _)| redis)
    }

    /// The paths to all servers but the sentinels.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.nodes.iter().map(|(_, path)| path)
    }

    pub(super) fn sentinel_paths(&self) -> impl Iterator<Item = &Path> {
        self.0.sentinels.iter().map(|(_, path)| path)
    }

    /// Runs a command of a writer. `false`: no Redis has run it.
    pub(super) fn write(&self, command: &[&[u8]]) -> bool {
        let world = &self.0.world;
        let pair = self.pick();
        let misled = self.other(pair).filter(|other| other.leads() && world.chance(MISLED));
        let first = misled.unwrap_or(self.primary(pair));
        if self.0.layout.division() == Division::Whole || command.len() == 1 {
            return first.write(command).is_some();
        }
        let mut reply = first.write(command);
        // A writer follows redirections, as a client of a cluster does.
        for _ in 0..MAX_REDIRECTS {
            let Some(text) = reply else { return false };
            if !text.starts_with(b"-") {
                return true;
            }
            let line = String::from_utf8_lossy(&text).trim_end().to_owned();
            let [kind @ ("-MOVED" | "-ASK"), _, to] = line.split(' ').collect::<Vec<_>>()[..]
            else {
                return false;
            };
            let next = (0..self.0.nodes.len()).find(|node| address(*node) == to);
            let next = self.node(next.expect("a node of the cluster"));
            if kind == "-ASK" {
                next.write(&[b"ASKING"]);
            }
            reply = next.write(command);
        }
        false
    }

    /// Restarts the primary of a pair. Its replica takes its data again.
    pub(super) fn restart(&self, pair: usize, is_empty: bool) {
        self.primary(pair).restart(is_empty);
        if let Some(replica) = self.other(pair).filter(|other| !other.leads()) {
            replica.follow(self.primary(pair));
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
        lock(&self.0.state).failovers
    }

    /// Returns the number of slots that have moved.
    pub(super) fn moves(&self) -> u64 {
        lock(&self.0.state).moves
    }

    /// Whether a failover runs, or a slot moves.
    pub(super) fn is_changing(&self) -> bool {
        lock(&self.0.state).is_changing
    }

    /// Reserves the servers for a failover or a move, if none runs.
    pub(super) fn begin_change(&self) -> bool {
        !std::mem::replace(&mut lock(&self.0.state).is_changing, true)
    }

    pub(super) fn choose_failover(&self) -> Failover {
        let others = match self.0.layout {
            Layout::Cluster(pairs) => 2 * (pairs - 1),
            _ => SENTINELS.len(),
        };
        Failover::choose(&self.0.world, others)
    }

    /// Runs a failover of a pair. The proxy knows of it by `known_by`.
    pub(super) async fn fail_over(
        &self,
        plan: &Failover,
        pair: usize,
        partitions: &Mutex<Partitions>,
        known_by: Duration,
    ) {
        let (world, begin) = (&self.0.world, self.0.world.now());
        let previous = self.index(pair);
        let next = previous ^ 1;
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
        let news = self.promote(next, plan.lost, partitions, known_by);
        {
            let mut state = lock(&self.0.state);
            (state.primaries[pair], state.failovers) = (next, state.failovers + 1);
        }
        for (number, known) in plan.known.iter().enumerate() {
            let (servers, news) = (self.clone(), news.clone());
            let wait = known.saturating_sub(plan.promoted);
            // The nodes of the other pairs.
            let node = if number < 2 * pair { number } else { number + 2 };
            tokio::spawn(async move {
                sleep(wait).await;
                servers.tell(if let News::Report(_) = news { number } else { node }, &news);
            });
        }
        sleep(plan.demoted.saturating_sub(plan.promoted)).await;
        world.record(|| format!("{} is demoted", HOSTS[previous]));
        if let News::Claim(claim) = &news {
            old.with_model(|model| model.learn(claim));
        }
        old.follow(self.node(next));
        // A sentinel that knows late would report this primary in the place of the next one.
        sleep((begin + plan.known_to_all()).saturating_sub(world.now())).await;
        lock(&self.0.state).is_changing = false;
    }

    /// Tells a sentinel or a node of a change.
    fn tell(&self, number: usize, news: &News) {
        match news {
            News::Report(report) => {
                self.0.world.record(|| format!("sentinel {number} knows {report:?}"));
                self.0.sentinels[number].0.report(report.clone());
            }
            News::Claim(claim) => {
                let Claim { owner, epoch, slots, .. } = claim;
                let count = slots.len();
                self.0.world.record(|| {
                    format!(
                        "{} knows: {count} slots at {}, epoch {epoch}",
                        HOSTS[number], HOSTS[*owner]
                    )
                });
                self.node(number).with_model(|model| model.learn(claim));
            }
        }
    }

    /// Promotes a replica, without the writes of the last time. Returns the news of it.
    fn promote(
        &self,
        next: usize,
        lost: Duration,
        partitions: &Mutex<Partitions>,
        known_by: Duration,
    ) -> News {
        let now = self.0.world.now();
        let (redis, previous) = (self.node(next), self.node(next ^ 1));
        let (kept, missing): (VecDeque<Logged>, VecDeque<Logged>) =
            previous.take_log().into_iter().partition(|(at, _)| *at + lost <= now);
        let missing = missing.len();
        self.0.world.record(|| format!("{} is promoted without {missing} writes", HOSTS[next]));
        let (parts, contents) = (previous.parts(), redis.promote(kept));
        redis.lead(lock(partitions).begin(&parts, contents, now, known_by));
        if self.0.layout.division() == Division::Whole {
            let config_epoch = self.failovers() + 1;
            return News::Report(Report { config_epoch, host: HOSTS[next].to_owned() });
        }
        News::Claim(redis.with_model(|model| {
            let slots = model.view().slots_of(next ^ 1);
            model.bump_epoch();
            let claim = model.claim(slots, Some(next ^ 1));
            model.learn(&claim);
            claim
        }))
    }

    /// Chooses a slot of these parts, and the pair that it moves to. `None`: there is one pair.
    pub(super) fn choose_move(&self, parts: &[Part], pause: u64) -> Option<SlotMove> {
        let (world, pairs) = (&self.0.world, self.0.layout.pairs());
        let part = parts[world.index(parts.len())];
        let from = (0..pairs).find(|pair| self.primary(*pair).parts().contains(&part))?;
        let to = (from + 1 + world.index(pairs.saturating_sub(1).max(1))) % pairs;
        (from != to).then_some(SlotMove { part, from, to, pause })
    }

    /// Moves a slot with its keys, one by one, as an operator does.
    pub(super) async fn move_slot(&self, plan: &SlotMove) {
        let SlotMove { part, from, to, pause } = *plan;
        let ([source, target], number) =
            ([from, to].map(|pair| self.index(pair)), part.to_string());
        let id = |node: usize| id(node);
        self.node(target).join_history(part, self.node(source));
        self.command(target, &["cluster", "setslot", &number, "importing", &id(source)]).await;
        sleep(self.0.world.duration(0, pause)).await;
        self.command(source, &["cluster", "setslot", &number, "migrating", &id(target)]).await;
        loop {
            sleep(self.0.world.duration(0, pause)).await;
            let keys = self.node(source).with_model(|model| model.keys_in(part));
            let Some(key) = keys.first() else { break };
            self.0.world.record(|| format!("{} moves", key.escape_ascii()));
            if self.node(source).migrate(key, self.node(target)) {
                for pair in [from, to] {
                    let replica = self.other(pair).expect("a replica");
                    replica.catch_up(self.primary(pair));
                }
            }
        }
        self.command(target, &["cluster", "setslot", &number, "node", &id(target)]).await;
        self.node(source).leave_history(part);
        let claim = self.node(target).with_model(|model| model.claim(vec![part], None));
        let mut others: Vec<_> = (0..self.0.nodes.len()).filter(|node| *node != target).collect();
        while !others.is_empty() {
            let node = others.remove(self.0.world.index(others.len()));
            sleep(self.0.world.duration(0, pause)).await;
            self.tell(node, &News::Claim(claim.clone()));
        }
        let mut state = lock(&self.0.state);
        (state.moves, state.is_changing) = (state.moves + 1, false);
    }

    /// Runs a command of an operator, once the server runs commands.
    async fn command(&self, node: usize, words: &[&str]) {
        let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
        loop {
            match self.node(node).write(&words) {
                Some(reply) if reply == b"+OK\r\n" => return,
                Some(reply) => panic!("an operator got {}", reply.escape_ascii()),
                None => sleep(ms(10)).await,
            }
        }
    }
}

/// Returns the name of a node in its cluster.
fn id(node: usize) -> String {
    format!("{node:040x}")
}

/// Whether a part belongs to this pair at the beginning.
fn is_first(layout: Layout, pair: usize, part: Part) -> bool {
    match layout {
        Layout::One | Layout::Sentinels => true,
        Layout::Cluster(pairs) => first_pair(part, pairs) == pair,
    }
}

/// Returns the pair that a slot belongs to at the beginning.
fn first_pair(slot: u16, pairs: usize) -> usize {
    usize::from(slot) * pairs / usize::from(SLOTS)
}

/// Returns what a node knows at the beginning.
fn view(node: usize, pairs: usize) -> View {
    let members = (0..2 * pairs).map(|one| Member {
        id: id(one),
        address: address(one),
        epoch: if one.is_multiple_of(2) { 1 + one as u64 / 2 } else { 0 },
        primary: (!one.is_multiple_of(2)).then(|| one - 1),
    });
    let owners = (0..SLOTS).map(|slot| Some(2 * first_pair(slot, pairs)));
    View::new(node, members.collect(), owners.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failover_promotes_before_it_demotes() {
        let world = World::new(1, false);
        for _ in 0..1000 {
            let plan = Failover::choose(&world, 3);
            assert!(plan.promoted <= plan.demoted && plan.returns <= plan.demoted, "{plan:?}");
            assert!(plan.known.contains(&plan.promoted), "{plan:?}");
            assert!(plan.known.iter().all(|known| *known >= plan.promoted), "{plan:?}");
        }
    }
}
