#!/usr/bin/env python3
"""Latency of reads of a key that is written often, kept hot and not, side by side.

Starts a redis-server and a proxy. Two keys are written at Redis at the same rate, and read through
the proxy at the same rate; only one of them has a rule with `refresh = true`. Both take their turns
in one run, so the machine treats them alike. Prints percentiles of each and the part of reads that
memory answered.

Usage: keep_hot.py PROXY [SECONDS] [READS] [WRITES], with READS and WRITES a second for each key.
"""

import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from processes import free_port

KEYS = ("hot:1", "cold:1")
CONFIG = """
http.listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:{admin}"
resp.listen = "127.0.0.1:{port}"
redis.url = "redis://127.0.0.1:{redis}"
cache.ttl = "1h"
[[cache.rules]]
keys = "hot:*"
refresh = true
[[cache.rules]]
keys = "cold:*"
"""


def connect(port):
    for _ in range(200):
        try:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def query(connection, *words):
    parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
    connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
    reply = connection.recv(4096)
    if not reply or reply[:1] == b"-":
        raise SystemExit(f"{words}: {reply!r}")
    return reply


def paced(rate, until):
    """Yields at this rate. A turn that is late does not move the later ones."""
    begun, turn = time.perf_counter(), 0
    while (now := time.perf_counter()) < until:
        due = begun + turn / rate
        if due > now:
            time.sleep(due - now)
        turn += 1
        yield turn


def write(port, rate, until):
    connection = connect(port)
    for turn in paced(rate, until):
        for key in KEYS:
            query(connection, "SET", key, str(turn))


def read(port, rate, until, times):
    connection = connect(port)
    for turn in paced(rate, until):
        # Neither is always the first.
        for key in KEYS if turn % 2 else reversed(KEYS):
            begun = time.perf_counter()
            query(connection, "GET", key)
            times[key].append(time.perf_counter() - begun)


def metrics(admin):
    text = urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics").read().decode()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}


def measure(proxy, seconds, reads, writes):
    redis, port, admin = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "proxy.toml")
        config.write_text(CONFIG.format(redis=redis, port=port, admin=admin))
        server = ["redis-server", "--port", str(redis), "--save", "", "--dir", folder, "--loglevel", "warning"]
        processes = [subprocess.Popen(server)]
        try:
            connect(redis).close()
            processes.append(subprocess.Popen([proxy, "--config", str(config)], stderr=subprocess.DEVNULL))
            connect(port).close()
            times, until = {key: [] for key in KEYS}, time.perf_counter() + seconds
            threads = [
                threading.Thread(target=write, args=(redis, writes, until)),
                threading.Thread(target=read, args=(port, reads, until, times)),
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return times, metrics(admin)
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


def main():
    proxy, *numbers = sys.argv[1:]
    seconds, reads, writes = [float(number) for number in numbers] + [30, 1000, 100][len(numbers) :]
    times, counts = measure(proxy, seconds, reads, writes)
    for key in KEYS:
        ordered, rule = sorted(times[key]), key.split(":", 1)[0] + ":*"
        of = {
            outcome: counts[f'redis_proxy_rule_reads_total{{outcome="{outcome}",rule="{rule}"}}']
            for outcome in ("hit", "miss", "coalesced")
        }
        at = lambda part: f"{1e6 * ordered[int(part * (len(ordered) - 1))]:.0f} us"
        print(
            f"{rule:8} {len(ordered)} reads: p50 {at(0.5)}, p90 {at(0.9)}, p99 {at(0.99)}, p99.9 {at(0.999)};"
            f" {100 * of['hit'] / sum(of.values()):.2f} % hits, {of['miss']:.0f} misses, {of['coalesced']:.0f} joined"
        )
    results = {name: count for name, count in counts.items() if "refreshes_total" in name}
    print(", ".join(f"{name.split(chr(34))[1]} {count:.0f}" for name, count in results.items()))


main()
