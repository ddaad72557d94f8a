"""The loads: wrk over HTTP, redis-benchmark and a client of this project over the protocols of Redis and memcached.

Each load runs on the core for loads, for a bounded time, and reports the number of reads and their latencies. A load with
a failed read is no measurement.
"""

import csv
import os
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import install
from processes import CORES, LOADING, Failed
from redis_keys import key

KEYS = 10_000
CONNECTIONS = 32


@dataclass
class Result:
    """The result of a load; latencies in microseconds, by percentile."""

    reads: float
    seconds: float
    latency: dict = field(default_factory=dict)


def run(command, seconds, cores=LOADING):
    """The output of a load; it may take 30 seconds more than it should need."""
    return run_at_once([command], seconds, cores)[0]


def run_at_once(commands, seconds, cores):
    """The outputs of these loads, which run at the same time."""
    end = time.monotonic() + seconds + 30
    with ExitStack() as stack:
        running = []
        for command in commands:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=install.environment(),
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        texts = []
        for process, command in zip(running, commands):
            text, errors = process.communicate(timeout=max(0, end - time.monotonic()))
            if process.returncode != 0:
                raise Failed(f"{command[0]} failed: {errors[-500:]}{text[-500:]}")
            texts.append(text)
        return texts


@dataclass
class Others:
    """Keys that are read in turn among those that are read often: at a fixed interval, the next of `numbers`."""

    every: int
    numbers: range
    turn: int = 0


def wrk(server, seconds, connections=CONNECTIONS, keys=KEYS, others=None, size=0):
    """Reads over HTTP of `keys` keys, few of them often, and of `others`, which is updated; by their bytes if all values have
    this size."""
    others = others or Others(0, range(1))
    result = wrk_result(server, run(wrk_command(server, seconds, connections, keys, others), seconds), size)
    others.turn += result.reads // others.every if others.every else 0
    return result


def wrk_command(server, seconds, connections, keys, others):
    script = install.PROJECT / "bench" / "keys.lua"
    command = [install.program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script]
    command += [f"http://127.0.0.1:{server.port}", "--", server.path, server.suffix, keys]
    return command + [others.every, others.turn, others.numbers.start, len(others.numbers)]


def wrk_rest(server, path, token, commands, seconds, connections=CONNECTIONS, keys=KEYS):
    """Reads by REST, `commands` in each request."""
    script = install.PROJECT / "bench" / "rest.lua"
    command = [install.program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script]
    command += [f"http://127.0.0.1:{server.port}", "--", path, token, keys, commands]
    result = wrk_result(server, run(command, seconds))
    return Result(result.reads * commands, result.seconds, result.latency)


def wrk_result(server, text, size=0):
    """The result of wrk. With a size of the values its reads are those bytes that arrived: the replies that the end of the run
    cuts off are many of a few large ones, and the server has written them too."""
    numbers = [int(word) for line in text.splitlines() if line.startswith("RESULT") for word in line.split()[1:]]
    reads, received, microseconds, failed, p50, p99, p999 = numbers
    if failed or not reads:
        raise Failed(f"{server.name}: {failed} of {reads} reads failed")
    return Result(received / size if size else reads, microseconds / 1e6, {"p50": p50, "p99": p99, "p99.9": p999})


def wrk_twice(servers, seconds):
    """The reads over HTTP of two wrks at the same time, on every core; each has half of the connections, and queries one
    of `servers`."""
    commands = [wrk_command(server, seconds, CONNECTIONS // 2, KEYS, Others(0, range(1))) for server in servers]
    texts = run_at_once(commands, seconds, set(CORES))
    return both([wrk_result(server, text) for server, text in zip(servers, texts)])


def both(results):
    """Two simultaneous loads as one, without latencies, because percentiles cannot be added."""
    return Result(sum(result.reads for result in results), max(result.seconds for result in results))


# The most runs of wrk until all keys have been read, and the most keys for which a run would take longer than a loop here.
WARMING, FEW = 60, 1000


def warm(server, numbers, connections=CONNECTIONS):
    """Reads each of these keys over HTTP at least once."""
    if len(numbers) <= FEW:
        for number in numbers:
            server.get(key(number), 60)
        return
    others = Others(1, numbers)
    for _ in range(WARMING):
        wrk(server, 2, connections, 1, others)
        # The reads that are cut off at the end of a run are the last ones, and the next run begins
        # with them.
        if others.turn > len(numbers) + connections:
            return
    raise Failed(f"{server.name}: {others.turn} reads in {2 * WARMING} seconds")


def redis_benchmark(port, reads, connections=CONNECTIONS, pipeline=1, keys=KEYS, read=()):
    """`reads` times the words of `read`, with `__rand_int__` for a random key, or else GETs; `pipeline` at a time on each
    connection."""
    command = redis_benchmark_command(port, reads, connections, pipeline, keys, read)
    return redis_benchmark_result(reads, run(command, 60))


def redis_benchmark_command(port, reads, connections, pipeline, keys, read=()):
    command = [install.program("redis-benchmark"), "-p", port, "-n", reads, "-r", keys]
    command += ["-c", connections, "-P", pipeline, "--csv"]
    return command + (list(read) or ["-t", "get"])


def redis_benchmark_result(reads, text):
    row = list(csv.reader(text.splitlines()))[-1]
    rate, p50, p99 = float(row[1]), float(row[4]), float(row[6])
    return Result(reads, reads / rate, {"p50": p50 * 1000, "p99": p99 * 1000})


def redis_benchmark_twice(ports, reads, pipeline):
    """GETs of two redis-benchmarks at the same time, on every core; each has half of the reads and connections, and queries
    one of `ports`."""
    half = reads // 2
    commands = [redis_benchmark_command(port, half, CONNECTIONS // 2, pipeline, KEYS) for port in ports]
    return both([redis_benchmark_result(half, text) for text in run_at_once(commands, 60, set(CORES))])


# The turns at a fixed rate, in milliseconds. The first reads of a turn are not counted, because the
# caches of the CPU still hold the data of the previous server. Then the length of a slice, and the
# number of slices in a turn.
UNCOUNTED, SLICE, SLICES = 50, 100, 2
TURN = UNCOUNTED + SLICE * SLICES


def paced(ports, rate, turns):
    """GETs at a fixed rate, whether or not the replies keep up, of one port after the other in short turns. Each is
    timed from its due time. Returns for each port its result, or the reason for none; one that fails does not affect
    the others."""
    command = [client(), "paced", CONNECTIONS, KEYS, rate, turns, UNCOUNTED, SLICE, SLICES, *ports]
    return [paced_result(line) for line in run(command, turns * TURN / 1000 * len(ports)).splitlines()]


def paced_result(line):
    if line.startswith("failed"):
        return Failed(line)
    reads, microseconds, p50, p99, p999, p99_of_slices = (int(word) for word in line.split())
    latency = {"p50": p50, "p99": p99, "p99.9": p999, "p99 of slices": p99_of_slices}
    return Result(reads, microseconds / 1e6, latency)


def closed(port, seconds, connections=CONNECTIONS, pipeline=1, keys=KEYS, size=100, write_every=0, read=1):
    """Reads of random keys of one port; one command in `write_every` writes. A read is a GET, or an MGET of `read` keys, each
    of which counts as a read, or with MG an mg command. A latency is that of a pipeline."""
    command = [client(), "closed", read, connections, pipeline, keys, size, write_every, seconds * 1000, port]
    commands, microseconds, p50, p99, p999 = (int(word) for word in run(command, seconds).split())
    return Result(commands * max(1, read), microseconds / 1e6, {"p50": p50, "p99": p99, "p99.9": p999})


# Stands for memcached's meta commands in place of a number of keys.
MG = 0


def straight(origin, tasks, seconds, rounds):
    """Reads a second straight over one connection, then with the commands that a cache needs, then through a cache that
    never has the key; for each round."""
    text = run([client(), "straight", origin, tasks, seconds, rounds], 3 * seconds * rounds, set(CORES))
    return [tuple(float(word) for word in line.split()) for line in text.splitlines()]


def client():
    return install.TARGET / "release" / "examples" / "load"
