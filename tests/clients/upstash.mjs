// An application of @upstash/redis, @upstash/ratelimit and @upstash/lock, unchanged but for its URL and token.
//
// Arguments: the URL of the REST front end, the token, and "base64" or "text". It ends with exit
// code 0 and the line "ok" if every reply is the expected one.
import assert from "node:assert/strict";
import { Lock } from "@upstash/lock";
import { Ratelimit } from "@upstash/ratelimit";
import { Redis } from "@upstash/redis";

const [url, token, encoding] = process.argv.slice(2);
const options = { url, token, enableTelemetry: false, responseEncoding: encoding === "base64" ? "base64" : false };
const redis = new Redis(options);
const raw = new Redis({ ...options, automaticDeserialization: false });
const key = (name) => `sdk:${encoding}:${name}`;
const rejects = (promise, text) => assert.rejects(promise, (error) => {
  assert.match(error.message, text);
  return true;
});

// Strings and values like JSON.
assert.equal(await redis.set(key("s"), "value"), "OK");
assert.equal(await redis.get(key("s")), "value");
assert.equal(await redis.get(key("absent")), null);
assert.equal(await redis.set(key("ok"), "OK"), "OK");
assert.equal(await redis.get(key("ok")), "OK");
assert.equal(await redis.set(key("j"), { a: [1, "two", null], b: { c: true } }), "OK");
assert.deepEqual(await redis.get(key("j")), { a: [1, "two", null], b: { c: true } });
assert.equal(await redis.set(key("n"), 12.5), "OK");
assert.equal(await redis.get(key("n")), 12.5);
assert.equal(await redis.set(key("b"), true), "OK");
assert.equal(await redis.get(key("b")), true);
assert.equal(await redis.set(key("s"), "other", { nx: true }), null);
assert.equal(await redis.set(key("e"), "x", { ex: 100 }), "OK");
assert.ok((await redis.ttl(key("e"))) > 90);
assert.equal(await redis.append(key("s"), "!"), 6);
assert.equal(await redis.strlen(key("s")), 6);
assert.equal(await redis.getrange(key("s"), 0, 2), "val");
assert.deepEqual(await redis.mget(key("s"), key("absent"), key("n")), ["value!", null, 12.5]);
assert.equal(await redis.mset({ [key("m1")]: 1, [key("m2")]: "two" }), "OK");
assert.equal(await redis.incrby(key("c"), 5), 5);
assert.equal(await redis.incrbyfloat(key("c"), 0.5), 5.5);
assert.equal(await redis.exists(key("s"), key("absent")), 1);
assert.equal(await redis.type(key("s")), "string");
assert.equal(await redis.getdel(key("m1")), 1);
const text = "grüße \u{1f600} \" \\ \n \u0000 end";
assert.equal(await raw.set(key("u"), text), "OK");
assert.equal(await raw.get(key("u")), text);
assert.equal(await raw.set(key("big"), "x".repeat(1_000_000)), "OK");
assert.equal((await raw.get(key("big"))).length, 1_000_000);
assert.equal(await redis.ping(), "PONG");
assert.equal(await redis.echo("hello"), "hello");

// Hashes.
assert.equal(await redis.hset(key("h"), { a: 1, b: "two", c: { d: [3] } }), 3);
assert.deepEqual(await redis.hgetall(key("h")), { a: 1, b: "two", c: { d: [3] } });
assert.deepEqual(await redis.hgetall(key("h")), { a: 1, b: "two", c: { d: [3] } });
assert.equal(await redis.hgetall(key("absent")), null);
assert.deepEqual(await redis.hmget(key("h"), "a", "z"), { a: 1, z: null });
assert.deepEqual((await redis.hkeys(key("h"))).sort(), ["a", "b", "c"]);
assert.equal(await redis.hincrby(key("h"), "a", 2), 3);
assert.equal(await redis.hget(key("h"), "a"), 3);
assert.equal(await redis.hdel(key("h"), "a", "b"), 2);
assert.equal(await redis.hlen(key("h")), 1);

// Lists and sets.
assert.equal(await redis.rpush(key("l"), "a", "b", { c: 1 }), 3);
assert.deepEqual(await redis.lrange(key("l"), 0, -1), ["a", "b", { c: 1 }]);
assert.equal(await redis.lpop(key("l")), "a");
assert.equal(await redis.llen(key("l")), 2);
assert.equal(await redis.sadd(key("t"), "x", "y"), 2);
assert.deepEqual((await redis.smembers(key("t"))).sort(), ["x", "y"]);
assert.equal(await redis.sismember(key("t"), "x"), 1);
assert.equal(await redis.scard(key("t")), 2);

// Sorted sets.
assert.equal(await redis.zadd(key("z"), { score: 1.5, member: "one" }, { score: 2, member: "two" }), 2);
assert.deepEqual(await redis.zrange(key("z"), 0, -1, { withScores: true }), ["one", 1.5, "two", 2]);
assert.equal(await redis.zscore(key("z"), "one"), 1.5);
assert.equal(await redis.zrank(key("z"), "two"), 1);
assert.equal(await redis.zincrby(key("z"), 2.5, "one"), 4);
assert.deepEqual(await redis.zpopmax(key("z")), ["one", 4]);

// Streams.
const id = await redis.xadd(key("x"), "*", { f: "v", g: 1 });
assert.match(id, /^\d+-\d+$/);
assert.deepEqual(await redis.xrange(key("x"), "-", "+"), { [id]: { f: "v", g: 1 } });
assert.equal(await redis.xlen(key("x")), 1);
assert.ok(Array.isArray(await redis.xread(key("x"), "0")));

// Scan, bits, geo, expiry.
const [cursor, found] = await redis.scan(0, { match: key("*"), count: 10000 });
assert.equal(String(cursor), "0");
assert.ok(found.includes(key("s")));
assert.equal(await redis.setbit(key("bits"), 7, 1), 0);
assert.equal(await redis.bitcount(key("bits"), 0, -1), 1);
assert.equal(await redis.geoadd(key("g"), { longitude: 13.4, latitude: 52.5, member: "b" }), 1);
assert.equal(await redis.expire(key("l"), 100), 1);
assert.equal(await redis.persist(key("l")), 1);
assert.equal(await redis.del(key("l"), key("absent")), 1);

// Scripts: EVALSHA, NOSCRIPT, EVAL.
const script = redis.createScript(`return {ARGV[1], ARGV[2] or false, tonumber(ARGV[3])} -- ${encoding}`);
await rejects(redis.evalsha("0".repeat(40), [], []), /NOSCRIPT/);
assert.deepEqual(await script.exec([], ["a", "b", "3"]), ["a", "b", 3]);
assert.deepEqual(await script.exec([], ["a", "b", "3"]), ["a", "b", 3]);
assert.equal(await redis.eval("return redis.call('GET', KEYS[1])", [key("s")], []), "value!");
const sha = await redis.scriptLoad("return 7");
assert.deepEqual(await redis.scriptExists(sha), [1]);

// Pipelines and transactions.
const pipeline = redis.pipeline();
pipeline.set(key("p"), { a: 1 });
pipeline.get(key("p"));
pipeline.incr(key("pn"));
pipeline.hgetall(key("h"));
assert.deepEqual(await pipeline.exec(), ["OK", { a: 1 }, 1, { c: { d: [3] } }]);
const multi = redis.multi();
multi.set(key("p"), 1);
multi.incr(key("p"));
multi.get(key("p"));
assert.deepEqual(await multi.exec(), ["OK", 2, 2]);
const failing = redis.pipeline();
failing.get(key("p"));
failing.lpush(key("p"), "x");
await rejects(failing.exec(), /WRONGTYPE/);
const kept = redis.pipeline();
kept.get(key("p"));
kept.lpush(key("p"), "x");
const [first, second] = await kept.exec({ keepErrors: true });
assert.deepEqual(first, { result: 2, error: undefined });
assert.match(second.error, /WRONGTYPE/);
const discarded = redis.multi();
discarded.set(key("p"), 3);
discarded.eval("not a script", [], []);
await discarded.exec().catch(() => {});
await rejects(redis.multi().set(key("p"), 9).json.set("", "x", "y").exec(), /ERR/).catch(() => {});

// Automatic pipelines: all of one turn are one request.
const many = await Promise.all(Array.from({ length: 200 }, (_, at) => redis.set(key(`auto:${at}`), at)));
assert.ok(many.every((reply) => reply === "OK"));
const values = await Promise.all(Array.from({ length: 200 }, (_, at) => redis.get(key(`auto:${at}`))));
assert.deepEqual(values, Array.from({ length: 200 }, (_, at) => at));

// Errors.
await rejects(redis.lpush(key("s"), "x"), /WRONGTYPE/);
await rejects(redis.exec(["NONESUCH", "a"]), /unknown command/);
await rejects(redis.flushall(), /NOPERM/);
await rejects(new Redis({ ...options, token: "wrong", retry: false }).get("a"), /WRONGPASS/);

// Streams of events.
for (const [open, event] of [
  [() => redis.subscribe(key("news")), "message"],
  [() => redis.psubscribe(key("new*")), "pmessage"],
]) {
  const subscription = open();
  const arrived = new Promise((resolve) => subscription.on(event, resolve));
  const confirmed = event === "message" ? "subscribe" : "psubscribe";
  await new Promise((resolve) => subscription.on(confirmed, resolve));
  // The end of an earlier subscription is noticed late.
  assert.ok((await redis.publish(key("news"), { n: 1, text: "a, b\nc" })) >= 1);
  const { channel, message } = await arrived;
  assert.deepEqual([channel, message], [key("news"), { n: 1, text: "a, b\nc" }]);
  await subscription.unsubscribe();
}

// Rate limits.
const limiters = [Ratelimit.fixedWindow(3, "60 s"), Ratelimit.slidingWindow(3, "60 s"), Ratelimit.tokenBucket(3, "60 s", 3)];
for (const [at, limiter] of limiters.entries()) {
  const limit = new Ratelimit({ redis, limiter, prefix: key(`rate:${at}`), ephemeralCache: false });
  const taken = [];
  for (let round = 0; round < 5; round += 1) taken.push((await limit.limit("user")).success);
  assert.deepEqual(taken.slice(0, 3), [true, true, true]);
  assert.ok(taken.slice(3).includes(false), `limiter ${at}: ${taken}`);
  assert.ok((await limit.getRemaining("user")).remaining <= 1);
  await limit.resetUsedTokens("user");
  assert.equal((await limit.limit("user")).success, true);
}

// Locks.
const one = new Lock({ id: key("lock"), redis, lease: 5000, retry: { attempts: 1, delay: 10 } });
const other = new Lock({ id: key("lock"), redis, lease: 5000, retry: { attempts: 1, delay: 10 } });
assert.equal(await one.acquire(), true);
assert.equal(await other.acquire(), false);
assert.equal(await one.extend(5000), true);
assert.equal(await one.getStatus(), "ACQUIRED");
assert.equal(await other.release(), false);
assert.equal(await one.release(), true);
assert.equal(await one.getStatus(), "FREE");
assert.equal(await other.acquire(), true);
assert.equal(await other.release(), true);
console.log("ok");
