"""An application of upstash-redis and upstash-ratelimit, unchanged but for its URL and token.

Arguments: the URL of the REST front end, the token, and "base64" or "text". It ends with exit code 0
and the line "ok" if every reply is the expected one.
"""

import sys

from upstash_ratelimit import FixedWindow, Ratelimit, SlidingWindow
from upstash_redis import Redis
from upstash_redis.errors import UpstashError

url, token, encoding = sys.argv[1:]
redis = Redis(url=url, token=token, rest_encoding="base64" if encoding == "base64" else None, allow_telemetry=False)


def key(name):
    return f"py:{encoding}:{name}"


def same(found, expected):
    assert found == expected, f"found {found!r}, expected {expected!r}"


def fails(run, text):
    try:
        run()
    except UpstashError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error, expected {text}")


same(redis.set(key("s"), "grüße \n\0"), True)
same(redis.get(key("s")), "grüße \n\0")
same(redis.get(key("absent")), None)
same(redis.set(key("n"), 2**70), True)
same(redis.get(key("n")), str(2**70))
same(redis.incrby(key("c"), 3), 3)
same(redis.mget(key("s"), key("absent")), ["grüße \n\0", None])
same(redis.hset(key("h"), values={"a": 1, "b": "two"}), 2)
same(redis.hgetall(key("h")), {"a": "1", "b": "two"})
same(redis.rpush(key("l"), "a", "b"), 2)
same(redis.lrange(key("l"), 0, -1), ["a", "b"])
same(redis.sadd(key("t"), "x"), 1)
same(redis.smembers(key("t")), ["x"])
same(redis.zadd(key("z"), {"one": 1.5}), 1)
same(redis.zrange(key("z"), 0, -1, withscores=True), [("one", 1.5)])
same(redis.eval("return ARGV[1]", args=["x"]), "x")
fails(lambda: redis.evalsha("0" * 40), "NOSCRIPT")
fails(lambda: redis.lpush(key("s"), "x"), "WRONGTYPE")
fails(lambda: redis.flushall(), "NOPERM")
pipeline = redis.pipeline()
pipeline.set(key("p"), 1)
pipeline.incr(key("p"))
pipeline.get(key("p"))
same(pipeline.exec(), [True, 2, "2"])
multi = redis.multi()
multi.set(key("p"), 5)
multi.get(key("p"))
same(multi.exec(), [True, "5"])
for at, limiter in enumerate([FixedWindow(max_requests=2, window=60), SlidingWindow(max_requests=2, window=60)]):
    limit = Ratelimit(redis=redis, limiter=limiter, prefix=key(f"rate:{at}"))
    taken = [limit.limit("user").allowed for _ in range(4)]
    assert taken[:2] == [True, True] and False in taken, taken
print("ok")
