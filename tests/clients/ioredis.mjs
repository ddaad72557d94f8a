// A transcript of what ioredis receives from a Redis: a line for each reply.
//
// Usage: ioredis.mjs HOST PORT PROTOCOL, with NODE_PATH where ioredis is.
//
// The rule: the same commands sent to two fresh servers print the same lines, so what differs by its nature
// (identifiers, addresses, clocks) is left out. The Redis has to be empty and the program's alone.

import { createHash, randomBytes } from "node:crypto";
import { createRequire } from "node:module";

const { Redis } = createRequire(import.meta.url)("ioredis");
const [host, port, protocol] = process.argv.slice(2);
const LARGE = 100_000_000;
const BINARY = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));

// What fails is not tried again, so that nothing fails unseen.
const connect = (options = {}) => {
  const client = new Redis({ host, port: Number(port), protocol: Number(protocol), retryStrategy: null, ...options });
  return client.on("error", (error) => say("error", `${error}`));
};
const say = (what, value) => console.log(`${what}: ${JSON.stringify(value, (_, part) => (part instanceof Error ? `${part}` : part))}`);
const fails = async (what, promise) => say(what, await promise.catch((error) => `${error}`));
const inOrder = async (...acts) => {
  const found = [];
  for (const act of acts) found.push(await act());
  return found;
};

async function strings(r) {
  say("set", await inOrder(() => r.set("key", "value"), () => r.get("key"), () => r.get("key")));
  say("parts", await inOrder(() => r.strlen("key"), () => r.getrange("key", 1, -2), () => r.substr("key", 0, 1), () => r.exists("key", "key", "absent")));
  say("mget", await inOrder(() => r.mset("a", 1, "b", 2), () => r.mget("a", "b", "absent"), () => r.mget("a", "b")));
  say("at once", await Promise.all([r.incr("n"), r.get("n"), r.set("n", "x"), r.get("n"), r.del("n"), r.get("n")]));
  const many = [];
  for (let n = 0; n < 2000; n++) many.push(r.set(`k${n % 11}`, n), r.get(`k${n % 11}`), r.mget("k0", "k10"));
  say("many at once", createHash("sha256").update(JSON.stringify(await Promise.all(many))).digest("hex"));
  await r.set(BINARY, BINARY);
  say("binary", [BINARY.equals(await r.getBuffer(BINARY)), BINARY.equals(await r.getBuffer(BINARY))]);
}

async function collections(r) {
  say("hash", await inOrder(() => r.hset("h", { a: 1, b: 2 }), () => r.hgetall("h")));
  say("zset", await inOrder(() => r.zadd("z", 1.5, "a"), () => r.zrange("z", 0, -1, "WITHSCORES"), () => r.zscore("z", "a")));
  // The second time from memory, until something changes.
  for (let turn = 0; turn < 3; turn++) {
    say("reads", await inOrder(() => r.hgetall("h"), () => r.hget("h", "a"), () => r.hkeys("h"), () => r.hexists("h", "x"), () => r.hlen("h")));
    say("reads", await inOrder(() => r.zrange("z", 0, -1, "WITHSCORES"), () => r.zscore("z", "a"), () => r.zrank("z", "a")));
    if (turn === 1) say("changes", await inOrder(() => r.hset("h", "a", 9), () => r.zadd("z", 7, "a")));
  }
  say("stream", await inOrder(() => r.xadd("x", "1-1", "f", "v"), () => r.xrange("x", "-", "+")));
}

async function transactions(r) {
  say("pipeline", await r.pipeline().set("p", 1).get("p").lpush("p", 1).get("p").exec());
  say("multi", await r.multi().set("t", 1).incr("t").get("t").exec());
  say("read after", await inOrder(() => r.get("t"), () => r.get("t")));
  const other = connect();
  await r.watch("t");
  await other.set("t", "changed");
  say("conflict", await r.multi().set("t", "mine").exec());
  await r.watch("t");
  say("no conflict", await r.multi().set("t", "mine").get("t").exec());
  say("by hand", await inOrder(() => r.multi({ pipeline: false }), () => r.get("t"), () => r.exec(), () => r.get("t")));
  await other.quit();
}

async function blocking(r) {
  const other = connect();
  const popped = r.blpop("queue", 20);
  while (!(await other.client("LIST")).includes(" flags=b ")) ;
  await other.rpush("queue", "job");
  say("blpop", await popped);
  say("blpop in vain", await r.blpop("queue", 0.05));
  await other.quit();
}

async function scripts(r) {
  r.defineCommand("put", { numberOfKeys: 1, lua: "redis.call('SET', KEYS[1], ARGV[1]) return {1, ARGV[1], false}" });
  say("script", await inOrder(() => r.put("s", "once"), () => r.get("s"), () => r.put("s", "twice"), () => r.get("s")));
  await fails("error", r.eval("return redis.call('INCR', KEYS[1])", 1, "s"));
}

async function pubsub(r) {
  const subscriber = connect();
  const heard = [];
  subscriber.on("message", (channel, message) => heard.push([channel, message]));
  subscriber.on("pmessage", (pattern, channel, message) => heard.push([pattern, channel, message]));
  const until = async (count) => {
    while (heard.length < count) await new Promise((later) => setTimeout(later, 1));
    say("heard", heard.splice(0));
  };
  say("subscribed", await inOrder(() => subscriber.subscribe("news", "weather"), () => subscriber.psubscribe("n*")));
  say("receivers", await inOrder(() => r.publish("news", "one"), () => r.publish("weather", "two")));
  await until(3);
  say("left", await inOrder(() => subscriber.unsubscribe("news", "weather"), () => subscriber.punsubscribe("n*")));
  say("another command after", await subscriber.get("key"));
  await subscriber.quit();
}

async function large(r) {
  const value = Buffer.alloc(LARGE, randomBytes(1 << 20));
  say("set large", await r.set("large", value));
  for (let turn = 0; turn < 2; turn++) say("get large", value.equals(await r.getBuffer("large")));
  say("parts", await inOrder(() => r.strlen("large"), () => r.del("large"), () => r.get("large")));
}

async function expiry(r) {
  say("set", await inOrder(() => r.set("e", "v", "PX", 60), () => r.get("e")));
  while ((await r.get("e")) !== null) ;
  say("expired", await inOrder(() => r.exists("e"), () => r.ttl("e")));
}

async function errors(r) {
  await r.rpush("list", 1);
  await fails("wrong type", r.get("list"));
  await fails("arity", r.call("GET"));
  await fails("unknown", r.call("NONESUCH", "a"));
  say("still there", await r.ping());
}

async function databases(r) {
  await r.set("here", "zero");
  say("select", await inOrder(() => r.select(1), () => r.get("here"), () => r.set("here", "one"), () => r.get("here"), () => r.select(0), () => r.get("here")));
  say("swapdb", await inOrder(() => r.swapdb(0, 1), () => r.get("here"), () => r.flushdb(), () => r.get("here")));
  let found = 0;
  await r.mset(Object.fromEntries(Array.from({ length: 300 }, (_, n) => [`scan:${n}`, "v"])));
  for await (const keys of r.scanStream({ match: "scan:*", count: 50 })) found += keys.length;
  say("scan", found >= 300);
}

async function talk(r) {
  say("name", await inOrder(() => r.client("SETNAME", "tester"), () => r.client("GETNAME")));
  say("reset", await inOrder(() => r.echo("hello"), () => r.get("scan:1"), () => r.get("scan:1")));
  say("quit", await r.quit());
}

const client = connect();
for (const part of [strings, collections, transactions, blocking, scripts, pubsub, large, expiry, errors, databases, talk]) {
  console.log(`# ${part.name}`);
  await part(client);
}
console.log("done");
