"""A simple caching proxy for Redis: FastAPI, uvicorn and cachetools."""

import os

import cachetools
from fastapi import FastAPI, HTTPException, Response
from redis.asyncio import Redis

app = FastAPI()
redis = Redis(host="127.0.0.1", port=int(os.environ["ORIGIN"]))
cache = cachetools.TTLCache(maxsize=int(os.environ["CAPACITY"]), ttl=3600)


@app.get("/keys/{key}")
async def read(key: str) -> Response:
    value = cache.get(key)
    if value is None:
        value = await redis.get(key)
        if value is None:
            raise HTTPException(status_code=404)
        cache[key] = value
    return Response(value, media_type="application/octet-stream")
