//! The adversary: one fault after another between the proxy and Redis.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{advance, sleep};

use super::network::longest;
use super::run::Stage;
use super::world::ms;

/// The time that the proxy takes to connect again at most, once Redis accepts connections: its
/// longest pause and a handshake.
const RECONNECT: Duration = ms(2500);

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

async fn cause_one(stage: &Stage) {
    let (world, path) = (&stage.world, &stage.to_redis);
    let (now, delay) = (world.now(), longest(stage.plan.delay));
    let response_timeout = stage.plan.response_timeout;
    // What is sent before the end of the fault arrives by then.
    let settle = 4 * delay;
    let span = world.duration(5, stage.plan.fault);
    match world.between(0, 9) {
        0 | 1 => {
            let percent = if world.chance(50) { 100 } else { 40 };
            world.record(|| format!("fault: {percent} % of the links are cut"));
            stage.conditions.disturb(now + settle, now + settle + RECONNECT);
            path.cut(percent);
        }
        2 | 3 => {
            let sides = SIDES[world.index(SIDES.len())];
            let end = now + span;
            world.record(|| format!("fault: {sides:?} are held for {span:?}"));
            stage.conditions.disturb(end + settle, end + settle + response_timeout + RECONNECT);
            path.hold(sides, world.instant(end));
        }
        4 => {
            world.record(|| "fault: the links lose everything".to_owned());
            let seen = now + stage.plan.ping_interval + 2 * response_timeout + settle;
            stage.conditions.disturb(seen, seen + RECONNECT);
            stage.conditions.lose(now);
            path.lose();
        }
        5 => {
            let end = now + span;
            world.record(|| format!("fault: Redis stands still for {span:?}"));
            stage.conditions.disturb(end + settle, end + settle + response_timeout + RECONNECT);
            stage.redis.stall(world.instant(end));
        }
        6 => {
            let (is_empty, end) = (world.chance(50), now + world.duration(0, 800));
            world.record(|| format!("fault: Redis restarts, empty: {is_empty}"));
            stage.conditions.disturb(now + settle, end + settle + RECONNECT);
            path.refuse(world.instant(end));
            stage.redis.restart(is_empty);
        }
        7 => {
            world.record(|| "fault: Redis closes connections".to_owned());
            stage.conditions.disturb(now + settle, now + settle + RECONNECT);
            stage.redis.kill(60);
        }
        8 => {
            let jump = world.duration(1, 5000);
            world.record(|| format!("fault: the clock jumps by {jump:?}"));
            stage
                .conditions
                .disturb(now + jump + settle, now + jump + settle + response_timeout + RECONNECT);
            advance(jump).await;
        }
        _ => {
            let most = world.between(20, 200);
            world.record(|| format!("fault: delays of up to {most} ms for {span:?}"));
            let end = now + span + ms(most) + settle;
            stage.conditions.disturb(end, end + response_timeout + RECONNECT);
            path.set_delay(0, most);
            sleep(span).await;
            path.set_delay(stage.plan.delay.0, stage.plan.delay.1);
        }
    }
}
