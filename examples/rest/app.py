"""An application that uses Redis over HTTP: pip install upstash-redis.

UPSTASH_REDIS_REST_URL (with the proxy's rest.path) and UPSTASH_REDIS_REST_TOKEN name the proxy.
"""

from upstash_redis import Redis

redis = Redis.from_env()
redis.set("greeting", "hello", ex=60)
print(redis.get("greeting"))

pipeline = redis.pipeline()
pipeline.incr("visits")
pipeline.hset("user:1", "name", "Ada")
pipeline.hgetall("user:1")
print(pipeline.exec())
