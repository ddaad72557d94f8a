// A transcript of what node-redis receives from a Redis: a line for each reply.
//
// Usage: node_redis.mjs HOST PORT PROTOCOL, with NODE_PATH where @redis/client is.
//
// The rule: the same commands sent to two fresh servers print the same lines, so what differs by its nature
// (identifiers, addresses, clocks) is left out. The Redis has to be empty and the program's alone.

import { createHash, randomBytes } from "node:crypto";
import { createRequire } from "node:module";

const { createClient, defineScript, RESP_TYPES } = createRequire(import.meta.url)("@redis/client");
const [host, port, protocol] = process.argv.slice(2);
const LARGE = 100_000_000;
const BINARY = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));

const connect = async (options = {}) => {
  // What fails is not tried again, so that nothing fails unseen.
  const socket = { host, port: Number(port), reconnectStrategy: false };
  const client = createClient({ socket, RESP: Number(protocol), ...options });
  client.on("error", (error) => say("error", String(error)));
  return client.connect();
};
const buffers = (client) => client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
const plain = (_, value) => {
  if (value instanceof Map) return ["map", ...value];
  if (value instanceof Set) return ["set", ...value];
  if (value instanceof Error) return `${value}`;
  return value === undefined ? "undefined" : value;
};
const say = (what, value) => console.log(`${what}: ${JSON.stringify(value, plain)}`);
const fails = async (what, promise) => say(what, await promise.catch((error) => `${error}`));
const inOrder = async (...acts) => {
  const found = [];
  for (const act of acts) found.push(await act());
  return found;
};
const digest = (value) => createHash("sha256").update(value).digest("hex");

async function strings(r) {
  say("set", await inOrder(() => r.set("key", "value"), () => r.get("key"), () => r.get("key")));
  say("absent", await inOrder(() => r.get("absent"), () => r.get("absent"), () => r.exists("absent")));
  say("parts", await inOrder(() => r.strLen("key"), () => r.getRange("key", 1, -2), () => r.exists(["key", "key", "absent"])));
  say("mget", await inOrder(() => r.mSet({ a: "1", b: "2" }), () => r.mGet(["a", "b", "absent"]), () => r.mGet(["a", "b"])));
  // All are sent in one write, because nothing waits in between.
  say("at once", await Promise.all([r.incr("n"), r.get("n"), r.incr("n"), r.get("n"), r.set("n", "x"), r.get("n"), r.del("n"), r.get("n")]));
  const many = [];
  for (let n = 0; n < 2000; n++) many.push(r.set(`k${n % 11}`, `${n}`), r.get(`k${n % 11}`), r.mGet(["k0", "k10"]));
  say("many at once", digest(JSON.stringify(await Promise.all(many))));
  await r.set(BINARY, BINARY);
  say("binary", await inOrder(async () => BINARY.equals(await buffers(r).get(BINARY)), async () => BINARY.equals(await buffers(r).get(BINARY))));
}

async function collections(r) {
  say("hash", await inOrder(() => r.hSet("h", { a: "1", b: "2" }), () => r.hGetAll("h"), () => r.hmGet("h", ["a", "x"])));
  say("list", await inOrder(() => r.rPush("l", ["1", "2"]), () => r.lRange("l", 0, -1)));
  say("zset", await inOrder(() => r.zAdd("z", [{ score: 1.5, value: "a" }]), () => r.zRangeWithScores("z", 0, -1), () => r.zScore("z", "a")));
  say("stream", await inOrder(() => r.xAdd("x", "1-1", { f: "v" }), () => r.xRange("x", "-", "+")));
  // The second time from memory, until something changes.
  for (let turn = 0; turn < 3; turn++) {
    say("reads", await inOrder(() => r.hGetAll("h"), () => r.hGet("h", "a"), () => r.hKeys("h"), () => r.hExists("h", "x"), () => r.lRange("l", 0, -1)));
    say("reads", await inOrder(() => r.zRangeWithScores("z", 0, -1), () => r.zScore("z", "a"), () => r.zRank("z", "a"), () => r.xRange("x", "-", "+")));
    if (turn === 1) say("changes", await inOrder(() => r.hSet("h", "a", "9"), () => r.rPush("l", "3"), () => r.zAdd("z", [{ score: 7, value: "a" }])));
  }
}

async function transactions(r) {
  say("multi", await r.multi().set("t", "1").incr("t").get("t").mGet(["t", "absent"]).exec());
  say("pipeline", await r.multi().set("t", "5").get("t").exists("t").execAsPipeline());
  say("read after", await inOrder(() => r.get("t"), () => r.get("t")));
  const other = await connect();
  await r.watch("t");
  await other.set("t", "changed");
  await fails("conflict", r.multi().set("t", "mine").exec());
  await r.watch("t");
  await fails("no conflict", r.multi().set("t", "mine").get("t").exec());
  say("mine", await r.get("t"));
  await fails("error within", r.multi().set("t", "word").incr("t").get("t").exec());
  await other.close();
}

async function blocking(r) {
  const other = await connect();
  const popped = r.blPop("queue", 20);
  while (!(await other.sendCommand(["CLIENT", "LIST"])).includes(" flags=b ")) ;
  await other.rPush("queue", "job");
  say("blpop", await popped);
  say("blpop in vain", await r.blPop("queue", 0.05));
  await other.close();
}

async function scripts(r) {
  const options = { keys: ["s"], arguments: ["once"] };
  say("eval", await r.eval("redis.call('SET', KEYS[1], ARGV[1]) return {1, ARGV[1], false}", options));
  say("read", await inOrder(() => r.get("s"), () => r.get("s")));
  await fails("error", r.eval("return redis.call('INCR', KEYS[1])", options));
  const library = "#!lua name=lib\nredis.register_function('put', function(keys, args) return redis.call('SET', keys[1], args[1]) end)";
  say("function", await inOrder(() => r.functionLoad(library), () => r.fCall("put", options), () => r.get("s")));
}

async function pubsub(r) {
  const subscriber = await connect();
  const heard = [];
  const hear = (message, channel) => heard.push([channel, message]);
  const until = async (count) => {
    while (heard.length < count) await new Promise((later) => setTimeout(later, 1));
    say("heard", heard.splice(0));
  };
  await subscriber.subscribe(["news", "weather"], hear);
  await subscriber.pSubscribe("n*", hear);
  await subscriber.sSubscribe("shard", hear);
  say("receivers", await inOrder(() => r.publish("news", "one"), () => r.publish("weather", "two"), () => r.sPublish("shard", "three")));
  await until(4);
  await subscriber.unsubscribe("news");
  await r.publish("news", "four");
  await until(1);
  await subscriber.pUnsubscribe();
  await subscriber.sUnsubscribe();
  await subscriber.unsubscribe();
  say("another command after", await subscriber.get("key"));
  await subscriber.close();
}

async function large(r) {
  const value = Buffer.alloc(LARGE, randomBytes(1 << 20));
  say("set large", await r.set("large", value));
  for (let turn = 0; turn < 2; turn++) say("get large", value.equals(await buffers(r).get("large")));
  say("parts", await inOrder(() => r.strLen("large"), () => r.del("large"), () => r.get("large")));
}

async function iterate(r) {
  await r.flushDb();
  await r.mSet(Object.fromEntries(Array.from({ length: 300 }, (_, n) => [`scan:${n}`, "v"])));
  const found = new Set();
  for await (const keys of r.scanIterator({ MATCH: "scan:*", COUNT: 50 })) for (const key of keys) found.add(key);
  say("scan", found.size);
}

async function expiry(r) {
  await r.set("e", "v", { expiration: { type: "PX", value: 60 } });
  say("set", await r.get("e"));
  while ((await r.get("e")) !== null) ;
  say("expired", await inOrder(() => r.exists("e"), () => r.ttl("e")));
  say("expire", await inOrder(() => r.set("e", "v"), () => r.expireAt("e", 4102444800), () => r.expireTime("e"), () => r.pExpire("e", 0), () => r.get("e")));
}

async function errors(r) {
  await r.rPush("list", "1");
  await fails("wrong type", r.get("list"));
  await fails("arity", r.sendCommand(["GET"]));
  await fails("unknown", r.sendCommand(["NONESUCH", "a"]));
  say("still there", await r.ping());
}

async function databases(r) {
  const other = await connect({ database: 1 });
  await r.set("here", "zero");
  say("select", await inOrder(() => other.get("here"), () => other.set("here", "one"), () => other.get("here"), () => r.get("here")));
  say("swapdb", await inOrder(() => r.swapDb(0, 1), () => r.get("here"), () => r.select(1), () => r.get("here"), () => r.select(0), () => r.get("here")));
  say("flush", await inOrder(() => r.flushAll(), () => r.get("here")));
  await other.close();
}

async function talk(r) {
  say("name", await inOrder(() => r.clientSetName("tester"), () => r.clientGetName()));
  say("echo", await inOrder(() => r.echo("hello"), () => r.ping()));
  say("by hand", await inOrder(() => r.sendCommand(["SET", "k", "v"]), () => r.sendCommand(["GET", "k"]), () => r.sendCommand(["GET", "k"])));
  await r.close();
}

const client = await connect();
for (const part of [strings, collections, transactions, blocking, scripts, pubsub, large, iterate, expiry, errors, databases, talk]) {
  console.log(`# ${part.name}`);
  await part(client);
}
console.log("done");
