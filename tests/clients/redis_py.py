"""A transcript of what redis-py receives from a Redis: a line for each reply.

Usage: redis_py.py HOST PORT PROTOCOL

The rule: the same commands sent to two fresh servers print the same lines, so what differs by its nature (identifiers,
addresses, clocks) is left out. The Redis has to be empty and the program's alone.
"""

import asyncio
import hashlib
import os
import sys
import threading
import time

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST, PORT, PROTOCOL = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
LARGE = 100_000_000
BINARY = bytes(range(256))


def connect(**options):
    # What fails is not tried again, so that nothing fails unseen.
    options = {"protocol": PROTOCOL, "socket_timeout": 30, "retry": Retry(NoBackoff(), 0), **options}
    return redis.Redis(host=HOST, port=PORT, **options)


def say(what, value):
    print(f"{what}: {value!r}", flush=True)


def fails(what, act):
    try:
        say(what, act())
    except redis.RedisError as error:
        say(what, f"{type(error).__name__} {error}")


def strings(r):
    say("set", r.set("key", "value"))
    for _ in range(3):
        say("get", r.get("key"))
    say("absent", [r.get("absent"), r.get("absent"), r.exists("absent"), r.strlen("absent")])
    say("append", r.append("key", " and more"))
    say("get after append", r.get("key"))
    say("strlen", [r.strlen("key"), r.getrange("key", 2, -3), r.substr("key", 0, 3), r.exists("key", "key", "absent")])
    say("mset", r.mset({f"m{n}": n for n in range(50)}))
    say("mget", r.mget([f"m{n}" for n in range(55)]))
    say("mget again", r.mget([f"m{n}" for n in range(55)]))
    say("incr", [r.incr("counter") for _ in range(5)] + [r.get("counter")])
    say("getdel", [r.getdel("key"), r.get("key")])
    say("binary", [r.set(BINARY, BINARY * 10), r.get(BINARY) == BINARY * 10, r.get(BINARY) == BINARY * 10])
    say("empty", [r.set("", ""), r.get(""), r.get("")])
    say("getset", [r.getset("counter", "x"), r.get("counter"), r.set("counter", "y", get=True), r.get("counter")])
    with connect(decode_responses=True) as decoding:
        say("decoded", [decoding.set("text", "h\u00e9llo"), decoding.get("text"), decoding.mget("text", "absent")])


def collections(r):
    say("hash", [r.hset("h", mapping={"a": 1, "b": 2}), r.hgetall("h"), r.hmget("h", "a", "x")])
    say("list", [r.rpush("l", 1, 2, 3), r.lrange("l", 0, -1), r.lpop("l", 2)])
    say("set", [r.sadd("s", 1, 2, 3), sorted(r.smembers("s")), r.smismember("s", ["1", "9"])])
    say("zset", [r.zadd("z", {"a": 1, "b": 2.5}), r.zrange("z", 0, -1, withscores=True), r.zscore("z", "b"), r.zmscore("z", ["a", "x"])])
    say("stream", [r.xadd("x", {"f": "v"}, id="1-1"), r.xrange("x"), r.xread({"x": "0"})])
    say("geo", [r.geoadd("g", (13.4, 52.5, "here")), r.geopos("g", "here", "nowhere")])
    for turn in range(3):
        # The second time from memory, until something changes.
        say("reads", [r.hgetall("h"), r.hget("h", "a"), r.hmget("h", "a", "x"), r.hkeys("h"), r.hexists("h", "b"), r.hlen("h")])
        say("reads", [r.lrange("l", 0, -1), r.llen("l"), r.lindex("l", 0), sorted(r.smembers("s")), r.sismember("s", 2), r.scard("s")])
        say("reads", [r.zrange("z", 0, -1, withscores=True), r.zscore("z", "b"), r.zmscore("z", ["a", "x"]), r.zrank("z", "b"), r.zcount("z", 0, 9)])
        say("reads", [r.xrange("x"), r.xlen("x"), r.geopos("g", "here", "nowhere"), r.type("h"), r.sinter("s", "s2"), r.zunion(["z", "z"], withscores=True)])
        if turn == 1:
            say("changes", [r.hset("h", "a", 9), r.rpush("l", 4), r.sadd("s2", 3), r.zadd("z", {"a": 7}), r.xtrim("x", 0)])


def pipelines(r):
    for transaction in (False, True):
        with r.pipeline(transaction=transaction) as pipe:
            for n in range(200):
                pipe.set(f"p{n % 7}", n).get(f"p{n % 7}").incr("pipelined").mget("p0", "p1", "absent").exists("p3")
            answers = pipe.execute()
        say(f"pipeline of {len(answers)}", hashlib.sha256(repr(answers).encode()).hexdigest())
        say("pipeline's last", answers[-5:])
    with r.pipeline(transaction=False) as pipe:
        pipe.set("k", "string").lpush("k", 1).get("k").execute_command("NONESUCH").get("k")
        for answer in pipe.execute(raise_on_error=False):
            say("pipelined", f"{type(answer).__name__} {answer}")


def transactions(r):
    with r.pipeline() as pipe, connect() as other:
        pipe.watch("watched")
        say("read while watching", [pipe.get("watched"), pipe.get("watched")])
        other.set("watched", "changed")
        pipe.multi()
        pipe.set("watched", "mine")
        fails("conflict", pipe.execute)
        say("not mine", r.get("watched"))
        pipe.watch("watched")
        say("read while watching", pipe.get("watched"))
        pipe.multi()
        pipe.set("watched", "mine").get("watched").get("absent")
        fails("no conflict", pipe.execute)
        say("mine", [r.get("watched"), other.get("watched")])
    say("transaction()", r.transaction(lambda pipe: [pipe.multi(), pipe.incr("t"), pipe.get("t")], "watched"))
    say("read after", r.get("t"))


def blocking(r):
    def push():
        with connect() as other:
            while not any(one["flags"] == "b" for one in other.client_list()):
                time.sleep(0.002)
            other.rpush("queue", "job")

    thread = threading.Thread(target=push)
    thread.start()
    say("blpop", r.blpop("queue", timeout=20))
    thread.join()
    say("blpop in vain", r.blpop("queue", timeout=0.05))
    say("brpop", [r.rpush("queue", "a", "b"), r.brpop(["none", "queue"], timeout=1)])
    say("bzpopmin", [r.zadd("bz", {"one": 1}), r.bzpopmin("bz", timeout=1)])
    say("blmove", r.blmove("queue", "done", timeout=1))
    say("xread", r.xread({"none": "0"}, block=30))


def scripts(r):
    say("eval", r.eval("redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])", 1, "scripted", "once"))
    say("read", [r.get("scripted"), r.get("scripted")])
    script = r.register_script("return {redis.call('INCR', KEYS[1]), ARGV[1], false, {1, 'x'}}")
    say("script", [script(keys=["n"], args=["a"]), script(keys=["n"], args=["b"]), r.get("n")])
    r.script_flush()
    say("script after flush", script(keys=["n"], args=["c"]))
    fails("script error", lambda: r.eval("return redis.call('LPUSH', KEYS[1], 1)", 1, "scripted"))
    library = "#!lua name=lib\nredis.register_function('put', function(keys, args) return redis.call('SET', keys[1], args[1]) end)"
    say("function", [r.function_load(library), r.fcall("put", 1, "scripted", "by function"), r.get("scripted")])
    say("function list", [one[b"library_name"] if isinstance(one, dict) else one[1] for one in r.function_list()])


def published(subscriber, count):
    messages = []
    while len(messages) < count:
        message = subscriber.get_message(timeout=20)
        if message is None:
            messages.append("nothing came")
        else:
            messages.append((message["type"], message["pattern"], message["channel"], message["data"]))
    return messages


def pubsub(r):
    with connect() as other, r.pubsub() as subscriber:
        subscriber.subscribe("news", "weather")
        subscriber.psubscribe("n*")
        say("subscribed", published(subscriber, 3))
        say("receivers", [other.publish("news", "one"), other.publish("weather", BINARY), other.publish("silence", "x")])
        say("messages", published(subscriber, 3))
        say("channels", [sorted(other.pubsub_channels()), other.pubsub_numpat()])
        subscriber.unsubscribe("news")
        say("unsubscribed", published(subscriber, 1))
        other.publish("news", "two")
        say("by pattern", published(subscriber, 1))
        subscriber.ping("hello")
        say("ping", published(subscriber, 1))
        subscriber.unsubscribe()
        subscriber.punsubscribe()
        say("left", published(subscriber, 2))
        subscriber.ssubscribe("shard")
        say("sharded", published(subscriber, 1))
        say("receivers", other.spublish("shard", "message"))
        say("message", published(subscriber, 1))
    say("another command after", r.get("counter"))


def large(r):
    value = os.urandom(1 << 20) * (LARGE >> 20)
    digest = hashlib.sha256(value).hexdigest()
    say("set large", [len(value) > 90_000_000, r.set("large", value)])
    for _ in range(2):
        say("get large", hashlib.sha256(r.get("large")).hexdigest() == digest)
    say("parts", [r.strlen("large"), r.getrange("large", 50_000_000, 50_000_099) == value[50_000_000:50_000_100]])
    say("delete large", [r.delete("large"), r.get("large")])


def iterate(r):
    r.flushdb()
    r.mset({f"scan:{n}": n for n in range(500)})
    say("scan", len(set(r.scan_iter(match="scan:*", count=50))))
    say("keys", sorted(r.keys("scan:1?")))
    r.hset("big", mapping={f"f{n}": n for n in range(600)})
    say("hscan", len(dict(r.hscan_iter("big"))))
    say("dbsize", r.dbsize())


def expiry(r):
    say("setex", [r.set("e", "v", px=80), r.get("e"), r.pttl("e") <= 80])
    deadline = time.monotonic() + 20
    while r.get("e") is not None and time.monotonic() < deadline:
        pass
    say("expired", [r.get("e"), r.exists("e"), r.ttl("e")])
    say("expire", [r.set("e", "v"), r.expire("e", 1000), r.persist("e"), r.expireat("e", 4102444800), r.expiretime("e")])
    say("at once", [r.pexpire("e", 0), r.get("e")])


def errors(r):
    r.rpush("list", 1)
    for name in ("list", "list"):
        fails("wrong type", lambda: r.get(name))
    fails("wrong type", lambda: r.strlen("list"))
    say("mget of a list", r.mget("list", "counter"))
    fails("arity", lambda: r.execute_command("GET"))
    fails("unknown", lambda: r.execute_command("NONESUCH", "a", "b"))
    fails("not a number", lambda: [r.set("word", "x"), r.incr("word")])
    fails("syntax", lambda: r.execute_command("SET", "a", "b", "EX"))
    fails("no auth", lambda: r.execute_command("AUTH", "x", "y"))
    say("still there", r.ping())


def databases(r):
    with connect(db=1) as other:
        r.set("here", "zero")
        say("select", [r.get("here"), other.get("here"), other.set("here", "one"), other.get("here"), r.get("here")])
        say("swapdb", [r.swapdb(0, 1), r.get("here"), other.get("here")])
        say("flushdb", [other.flushdb(), other.get("here"), r.get("here"), r.flushall(), r.get("here")])


def talk(r):
    with connect(single_connection_client=True) as one:
        say("client", [one.client_setname("tester"), one.client_getname(), one.client_id() > 0, one.client_info()["name"]])
        say("no-evict", one.client_no_evict("on"))
        say("echo", [one.echo("hello"), one.ping()])
        hello = one.execute_command("HELLO", str(PROTOCOL))
        hello = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2]))
        say("hello", [hello.get(b"proto", hello.get("proto")), hello.get(b"server", hello.get("server"))])
        say("get", [one.set("k", "v"), one.get("k"), one.get("k")])
        say("multi by hand", [one.execute_command("MULTI"), one.execute_command("GET", "k"), one.execute_command("EXEC")])
        say("command count", one.command_count() > 100)
    with connect(single_connection_client=True, protocol=2) as one:
        say("reset", [one.execute_command("SELECT", 3), one.get("k"), one.reset(), one.get("k"), one.client_getname()])


async def at_once():
    pool = redis.asyncio.Redis(host=HOST, port=PORT, protocol=PROTOCOL)

    async def write_and_read(number):
        async with pool.client() as one:
            for turn in range(20):
                await one.set(f"a{number}", f"{number}-{turn}")
                if (found := await one.get(f"a{number}")) != f"{number}-{turn}".encode():
                    return f"{number}-{turn} was {found}"
        return "all read"

    say("at once", sorted(set(await asyncio.gather(*(write_and_read(number) for number in range(20))))))
    await pool.aclose()


def main():
    with connect() as r:
        parts = [strings, collections, pipelines, transactions, blocking, scripts, pubsub, large, iterate, expiry, errors, databases, talk]
        for part in parts:
            print(f"# {part.__name__}", flush=True)
            part(r)
        print("# at once", flush=True)
        asyncio.run(at_once())
    print("done", flush=True)


main()
