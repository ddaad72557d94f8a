#!/bin/sh
# The contract with curl alone. UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN name the proxy.
set -eu
ask() { curl -fsS -H "Authorization: Bearer $UPSTASH_REDIS_REST_TOKEN" "$@" && echo; }

ask -d '["SET","greeting","hello","EX",60]' "$UPSTASH_REDIS_REST_URL"
ask "$UPSTASH_REDIS_REST_URL/get/greeting"
ask -d '[["INCR","visits"],["GET","greeting"]]' "$UPSTASH_REDIS_REST_URL/pipeline"
ask -d '[["SET","a","1"],["INCR","a"]]' "$UPSTASH_REDIS_REST_URL/multi-exec"
ask -X PUT --data-binary 'a value of any bytes' "$UPSTASH_REDIS_REST_URL/set/file?EX=60"
