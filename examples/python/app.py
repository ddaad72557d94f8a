"""Reads a page through the proxy, and changes it: redis-py sends what it would send to Redis.

    pip install redis
    redis-proxy --resp_listen 127.0.0.1:6380 &
    python app.py redis://127.0.0.1:6380/0
"""
import sys
import time

import redis

url = sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6380/0"
# The proxy answers -LOADING while Redis is unavailable, which clients retry by themselves.
cache = redis.Redis.from_url(url, decode_responses=True, socket_timeout=5)


def page(name):
    """A page of the shop: GET, which the proxy answers from memory if it can."""
    return cache.get(f"page:{name}")


def main():
    cache.set("page:home", "welcome", ex=300)
    # A client reads its own writes.
    assert page("home") == "welcome"

    began = time.perf_counter()
    for _ in range(1000):
        page("home")
    took = time.perf_counter() - began
    print(f"1000 reads, {took * 1000:.0f} µs each on average")

    # A change by anyone else is pushed to the proxy.
    cache.set("page:home", "closed")
    assert page("home") == "closed"

    # All else is forwarded: other types, scripts, transactions.
    cache.hset("cart:1", mapping={"apples": 3})
    with cache.pipeline(transaction=True) as pipe:
        pipe.incr("visits").get("page:home").hgetall("cart:1")
        visits, home, cart = pipe.execute()
    print(f"visit {visits}, home is {home!r}, the cart has {cart}")


if __name__ == "__main__":
    main()
