//! The adversary: one fault after another between the proxy and Redis.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{advance, sleep, timeout};

use super::clients::Ended;
use super::http::Watch;
use super::network::{Path, longest};
use super::run::{Stage, Style};
use super::servers::Layout;
use super::world::{lock, ms};

/// The time that the proxy takes to connect again at most, once Redis accepts connections: its
/// longest pause and a handshake.
const RECONNECT: Duration = ms(2500);
/// The time that the sentinels add to it, or the discovery of a cluster.
const RESOLVE: Duration = ms(500);
/// The proxy's timeout of a connection attempt.
const CONNECT: Duration = ms(2000);
/// The time before the end of the lease from which keys are watched.
const WATCHED_BEFORE: Duration = ms(50);

/// Both directions, and each by itself.
const SIDES: [&[usize]; 3] = [&[0, 1], &[0], &[1]];

/// Causes faults until this time.
pub(super) async fn cause(stage: &Stage, until: Duration) {
    while stage.world.now() < until && !stage.has_failed() {
        sleep(stage.world.duration(0, stage.plan.fault_pause)).await;
        stage.counts.faults.fetch_add(1, Relaxed);
        cause_one(stage).await;
    }
}

/// The faults of a choice, the more often the more ways there are to it.
fn choose(stage: &Stage) -> Fault {
    let most = match stage.servers.layout() {
        Layout::One => 13,
        Layout::Sentinels | Layout::Cluster(_) => 18,
    };
    let choice = match stage.plan.style {
        Style::Mixed => stage.world.between(0, most),
        // Those after which the proxy connects again at once.
        Style::Restless => [0, 1, 7][stage.world.index(3)],
    };
    match choice {
        0 | 1 => Fault::Cut,
        2 | 3 => Fault::Hold,
        4 => Fault::Lose,
        5 => Fault::Standstill,
        6 => Fault::Restart,
        7 => Fault::Kill,
        // Otherwise the times of the failover would be of no use.
        8 if stage.servers.is_changing() => Fault::Delay,
        8 => Fault::Jump,
        9 => Fault::Delay,
        10 => Fault::Drop,
        11 => Fault::Crash,
        12 | 13 => Fault::HeldPushes,
        14..=15 => Fault::Failover,
        choice => match stage.servers.layout() {
            Layout::Cluster(_) => Fault::SlotMove,
            _ if choice < 18 => Fault::Failover,
            _ => Fault::Blindness,
        },
    }
}

#[derive(Clone, Copy)]
enum Fault {
    Cut,
    Hold,
    Lose,
    Standstill,
    Restart,
    Kill,
    Jump,
    Delay,
    /// Connections of clients are dropped in the program.
    Drop,
    Crash,
    /// All that follows a renewal of the lease is held, for as long as the lease lasts or longer.
    HeldPushes,
    Failover,
    /// A slot of a cluster moves.
    SlotMove,
    /// The sentinels are out of reach.
    Blindness,
}

/// Returns the time that the proxy takes to connect again at most.
fn reconnect(stage: &Stage) -> Duration {
    RECONNECT
        + match stage.servers.layout() {
            Layout::One => Duration::ZERO,
            Layout::Sentinels => RESOLVE,
            Layout::Cluster(_) => discovery(stage),
        }
}

/// Returns the time that the proxy takes to hear of a change from a cluster's nodes at most, once
/// all of them know of it: one of them may not reply.
fn discovery(stage: &Stage) -> Duration {
    3 * stage.plan.ping_interval + CONNECT + RESOLVE
}

/// Pushes may be late until the first time, and errors may occur until the second. The nodes of a
/// cluster, which report changes over the same links, may be late too.
fn disturb(stage: &Stage, late_until: Duration, errors_until: Duration) {
    stage.conditions.disturb(late_until, errors_until);
    if let Layout::Cluster(_) = stage.servers.layout() {
        let known_by = late_until + discovery(stage) + stage.plan.response_timeout;
        lock(&stage.epochs).delay_knowledge(stage.world.now(), known_by);
    }
}

async fn cause_one(stage: &Stage) {
    match choose(stage) {
        fault @ (Fault::Cut | Fault::Hold | Fault::Lose) => disturb_links(stage, fault),
        fault @ (Fault::Standstill | Fault::Restart | Fault::Kill) => disturb_redis(stage, fault),
        fault @ (Fault::Jump | Fault::Delay) => disturb_time(stage, fault).await,
        fault @ (Fault::Drop | Fault::Crash) => disturb_program(stage, fault),
        Fault::HeldPushes => hold_pushes(stage).await,
        Fault::Failover => fail_over(stage),
        Fault::SlotMove => move_slot(stage),
        Fault::Blindness => hide_sentinels(stage),
    }
}

fn disturb_links(stage: &Stage, fault: Fault) {
    let (world, plan) = (&stage.world, &stage.plan);
    let now = world.now();
    // What is sent before the end of the fault arrives by then.
    let settle = 4 * longest(plan.delay);
    let end = now + world.duration(5, plan.fault);
    match fault {
        Fault::Cut => {
            let percent = if world.chance(50) { 100 } else { 40 };
            world.record(|| format!("fault: {percent} % of the links are cut"));
            disturb(stage, now + settle, now + settle + reconnect(stage));
            stage.servers.paths().for_each(|path| path.cut(percent));
        }
        Fault::Hold => {
            let sides = SIDES[world.index(SIDES.len())];
            world.record(|| format!("fault: {sides:?} are held until {end:?}"));
            let errors = end + settle + plan.response_timeout + reconnect(stage);
            disturb(stage, end + settle, errors);
            stage.servers.paths().for_each(|path| path.hold(sides, world.instant(end)));
        }
        _ => {
            world.record(|| "fault: the links lose everything".to_owned());
            let seen = now + plan.ping_interval + 2 * plan.response_timeout + settle;
            disturb(stage, seen, seen + reconnect(stage));
            stage.conditions.lose(now);
            stage.servers.paths().for_each(Path::lose);
        }
    }
}

fn disturb_redis(stage: &Stage, fault: Fault) {
    let (world, plan) = (&stage.world, &stage.plan);
    let (now, settle) = (world.now(), 4 * longest(plan.delay));
    let pair = stage.servers.pick();
    match fault {
        Fault::Standstill => {
            let end = now + world.duration(5, plan.fault);
            world.record(|| format!("fault: Redis stands still until {end:?}"));
            let errors = end + settle + plan.response_timeout + reconnect(stage);
            disturb(stage, end + settle, errors);
            stage.servers.primary(pair).stall(world.instant(end));
        }
        Fault::Restart => {
            let (is_empty, end) = (world.chance(50), now + world.duration(0, 800));
            world.record(|| format!("fault: Redis restarts, empty: {is_empty}"));
            disturb(stage, now + settle, end + settle + reconnect(stage));
            stage.servers.primary_path(pair).refuse(world.instant(end));
            stage.servers.restart(pair, is_empty);
        }
        _ => {
            world.record(|| "fault: Redis closes connections".to_owned());
            disturb(stage, now + settle, now + settle + reconnect(stage));
            stage.servers.primary(pair).kill(60);
        }
    }
}

async fn disturb_time(stage: &Stage, fault: Fault) {
    let (world, plan) = (&stage.world, &stage.plan);
    let (now, settle) = (world.now(), 4 * longest(plan.delay));
    if let Fault::Jump = fault {
        let jump = world.duration(1, 5000);
        world.record(|| format!("fault: the clock jumps by {jump:?}"));
        let late = now + jump + settle;
        let known = late + plan.ping_interval + reconnect(stage);
        lock(&stage.epochs).delay_knowledge(now, known);
        disturb(stage, late, late + plan.response_timeout + reconnect(stage));
        advance(jump).await;
        return;
    }
    let (most, span) = (world.between(20, 200), world.duration(5, plan.fault));
    world.record(|| format!("fault: delays of up to {most} ms for {span:?}"));
    let late = now + span + ms(most) + settle;
    disturb(stage, late, late + plan.response_timeout + reconnect(stage));
    stage.servers.paths().for_each(|path| path.set_delay(0, most));
    sleep(span).await;
    stage.servers.paths().for_each(|path| path.set_delay(plan.delay.0, plan.delay.1));
}

fn disturb_program(stage: &Stage, fault: Fault) {
    let (world, plan) = (&stage.world, &stage.plan);
    let (now, settle) = (world.now(), 4 * longest(plan.delay));
    if let Fault::Crash = fault {
        world.record(|| "fault: the program crashes".to_owned());
        let errors = now + settle + plan.response_timeout + reconnect(stage);
        stage.conditions.disturb(Duration::ZERO, errors);
        stage.program.restart();
    } else {
        world.record(|| "fault: the program drops connections".to_owned());
        stage.conditions.disturb(Duration::ZERO, now + settle);
        stage.program.drop_connections(world, 40);
    }
}

/// Holds what follows the reply to a `PING` that renews the lease, and delays that reply. All
/// strings change right behind it. They are read at the end of the lease.
async fn hold_pushes(stage: &Stage) {
    let (world, plan) = (&stage.world, &stage.plan);
    let lease = plan.coherence_timeout;
    let (reply, rest) = (world.duration(0, 300), lease + world.duration(0, 500));
    world.record(|| format!("fault: a PING's reply takes {reply:?}, the rest {rest:?}"));
    let watches = stage.plan.strings().into_iter().map(|key| Watch::begin(stage, key));
    let watches = join_all(watches).await.into_iter();
    let watches: Vec<_> = watches.filter_map(|one| keep(stage, one)).collect();
    let begun = stage.servers.primary(stage.servers.pick()).hold_behind_ping(reply, rest);
    if timeout(2 * plan.ping_interval + plan.response_timeout, begun).await.is_err() {
        return;
    }
    let (ping, settle) = (world.now(), 4 * longest(plan.delay));
    let late = ping + rest + reply + settle;
    disturb(stage, late, late + plan.response_timeout + reconnect(stage));
    for key in stage.plan.strings() {
        stage.servers.write(&[b"SET", &key, &stage.next_text()]);
        stage.counts.writes.fetch_add(1, Relaxed);
    }
    sleep((lease.saturating_sub(WATCHED_BEFORE)).min(rest)).await;
    let reads = watches.into_iter().map(|watch| watch.read_until(stage, ping + rest));
    join_all(reads).await.into_iter().for_each(|ended| keep(stage, ended).unwrap_or_default());
}

/// Returns the value, unless the connection ended. A breach fails the simulation.
fn keep<T>(stage: &Stage, result: Result<T, Ended>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Ended::Closed) => None,
        Err(Ended::Breach(breach)) => {
            stage.fail(format!("a watch: {breach}"));
            None
        }
    }
}

/// Begins a failover, if none runs. Other faults come meanwhile.
fn fail_over(stage: &Stage) {
    if !stage.servers.begin_change() {
        return;
    }
    let failover = stage.servers.choose_failover();
    let pair = stage.servers.pick();
    stage.world.record(|| format!("fault: of pair {pair}: {failover:?}"));
    let now = stage.world.now();
    let known = stage.servers.blind(now + failover.known_to_all());
    let resolve = match stage.servers.layout() {
        Layout::Cluster(_) => discovery(stage),
        _ => stage.plan.ping_interval + RESOLVE,
    };
    let known_by = known + 4 * longest(stage.plan.delay) + resolve;
    let errors = known_by + stage.plan.response_timeout + reconnect(stage);
    stage.conditions.disturb(known_by, errors);
    let stage = stage.clone();
    tokio::spawn(async move {
        stage.servers.fail_over(&failover, pair, &stage.epochs, known_by).await;
    });
}

/// Begins to move a slot, if nothing else changes. Commands may fail meanwhile, and pushes are in
/// time.
fn move_slot(stage: &Stage) {
    let parts = lock(&stage.epochs).parts();
    let pause = [20, 100, 400][stage.world.index(3)];
    let chosen = stage.servers.choose_move(&parts, pause);
    let Some(chosen) = chosen.filter(|_| stage.servers.begin_change()) else { return };
    stage.world.record(|| format!("fault: {chosen:?}"));
    let stage = stage.clone();
    tokio::spawn(async move {
        stage.servers.move_slot(&chosen).await;
        let settle = 4 * longest(stage.plan.delay) + discovery(&stage);
        stage.conditions.disturb(Duration::ZERO, stage.world.now() + settle);
    });
}

/// Holds or cuts the connections to some sentinels, or to all.
fn hide_sentinels(stage: &Stage) {
    let (world, plan) = (&stage.world, &stage.plan);
    let (now, settle) = (world.now(), 4 * longest(plan.delay));
    let (percent, is_cut) = ([40, 100][world.index(2)], world.chance(40));
    let end = now + if is_cut { Duration::ZERO } else { world.duration(5, plan.fault) };
    world.record(|| format!("fault: {percent} % of the sentinels are hidden until {end:?}"));
    let known = stage.servers.blind(end + settle + plan.ping_interval + reconnect(stage));
    lock(&stage.epochs).delay_knowledge(now, known);
    disturb(stage, known, known + plan.response_timeout + reconnect(stage));
    for path in stage.servers.sentinel_paths().filter(|_| world.chance(percent)) {
        if is_cut { path.cut(100) } else { path.hold(&[0, 1], world.instant(end)) }
    }
}
