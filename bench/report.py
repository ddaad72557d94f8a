"""RESULTS.md: the measurements, in tables, and beside them the targets.

The rule: every number in it was measured in this run, but for the instructions of a read, which are those of
benches/instructions.txt. A ratio is that of two measurements of the same round. The report has the median of the ratios of
all rounds, and their range.
"""

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import install
from cases import (
    BETWEEN, BY_KEYS, BY_RESP, BY_REST, BYTES_ALONE, CHURN, IDLE_HTTP, IDLE_KINDS, IDLE_RESP, IN_FILES, LARGE, MANY,
    MANY_THREADS, MEMCACHED_THREADS, MGET, MGET_CASE, MISSES_HTTP, MISSES_RESP, NGINX_MANY, NGINX_PROCESSES, NGINX_WORKERS, ONE_CORE,
    PART, PROCESSES, RESP_AND_REQUEST, REST_PIPELINE, REST_SINGLE, STILL, THREADS, caches_case, churn_case, http_large_case,
    many_caches_case, many_idle, replies_case, resp_large_case,
)
from contestants import (
    BRIDGE, FASTAPI, FASTAPI_AS_STARTED, FASTAPI_UVLOOP, LIMIT, LIMIT_OF_FORWARDING, MEMCACHED, NGINX_FILE, NGINX_FIXED,
    NGINX_LRUCACHE, PROXY, REDIS, TWEMPROXY, VALKEY, WEBDIS, WEBDIS_AS_PACKAGED, valkey_server,
)
from load import SLICE, TURN, UNCOUNTED
from processes import LOADING, SERVING


@dataclass
class Target:
    """A ratio of `this` to `other` with a limit and an aim; a floor is a lower limit. Without `other` it is a figure."""

    what: str
    case: str
    this: str
    other: str | None
    must: float
    aim: float
    figure: str = "cpu"
    is_floor: bool = False


def http(what, other, must, aim):
    return Target(f"HTTP hit, CPU : {what}", "http 100 B, 32 connections", PROXY, other, must, aim)


def resp(pipeline, must, aim):
    what = f"RESP hit, P={pipeline}, CPU : redis-server"
    return Target(what, f"resp P={pipeline}, 32 connections", PROXY, REDIS, must, aim)


def resp_late(rate):
    what = f"RESP p99 at {rate:,} reads/s (lower quartile of slices) : redis-server"
    return Target(what, f"resp at {rate} reads/s", PROXY, REDIS, 1.2, 1.0, "p99 of slices")


def reply(what, pipeline, must, aim):
    case = replies_case(what, pipeline)
    return Target(f"{case}, CPU : redis-server", case, PROXY, REDIS, must, aim)


def two_threads(what, case):
    return Target(f"2 worker threads : 1, CPU of a hit, {what}", case, THREADS[2], THREADS[1], 1.15, 1.05)


def threads_apart(what, case):
    what = f"2 worker threads : 2 processes of one, CPU of a hit, {what}"
    return Target(what, f"threads beside processes, {case}", THREADS[2], PROCESSES, 1.15, 1.05)


def many_threads(what, case):
    what = f"16 worker threads : 2, reads/s, {what}"
    return Target(what, f"{MANY}, {case}", MANY_THREADS, THREADS[2], 0.9, 1.0, "rate", is_floor=True)


def many_keys(pipeline):
    this, other = (f"{PROXY}, {count:,} keys" for count in (5_000_000, 1000))
    what = f"5,000,000 keys : 1,000, CPU of a RESP hit, P={pipeline}"
    return Target(what, f"keys, resp P={pipeline}", this, other, 1.3, 1.3)


def churn(tasks, expiring=False):
    where = " and one key has a time to live" if expiring else ""
    what = f"reads/s of {tasks} readers where every read misses{where} : straight over one link"
    return Target(what, churn_case(tasks, expiring), CHURN[2], CHURN[0], 0.8, 1.0, "rate", is_floor=True)


def idle(name, most):
    return Target(f"idle connection, bytes: {name}", "idle", name, None, most, most, "connection")


def first_request(name):
    what = f"first request after idleness, CPU beyond that of the next, µs: {name}"
    return Target(what, "idle", name, None, 1.0, 1.0, "late")


def large_http(values, other):
    return Target(f"HTTP hit of {values.name}, CPU : {other}", http_large_case(values), PROXY, other, 1.05, 1.05)


def large_resp(values, most):
    what = f"RESP hit of {values.name}, P={values.pipeline}, CPU : redis-server"
    return Target(what, resp_large_case(values), PROXY, REDIS, most, most)


def near(what, case, aim, limit=LIMIT):
    """A ratio to the limit; its aim is a time on one quiet machine, divided by the limit's time there."""
    return Target(f"{what}, CPU : {limit}", case, PROXY, limit, aim, aim)


TARGETS = [
    http("nginx `return 200`", NGINX_FIXED, 1.1, 0.9),
    http("nginx + lrucache", NGINX_LRUCACHE, 0.8, 0.65),
    http("webdis, as Debian packages it", WEBDIS_AS_PACKAGED, 0.36, 0.3),
    http("webdis, one thread, no log", WEBDIS, 0.36, 0.3),
    http("FastAPI + uvicorn + cachetools, as uvicorn starts it", FASTAPI_AS_STARTED, 0.035, 0.027),
    http("FastAPI + uvicorn + cachetools, no access log", FASTAPI, 0.035, 0.027),
    resp(1, 1.0, 0.9),
    resp(16, 1.0, 0.7),
    resp(64, 1.0, 0.6),
    *(reply("HGET of 20 fields", *limits) for limits in ((1, 1.0, 0.9), (16, 0.95, 0.8), (64, 0.9, 0.7))),
    *(reply(what, pipeline, must, must)
      for what in ("HGETALL of 20 fields", "ZRANGE of 100", "SMEMBERS of 50")
      for pipeline, must in ((1, 0.9), (16, 0.5), (64, 0.4))),
    Target("REST, one read by POST, CPU : `GET /keys/`", REST_SINGLE, BY_REST, BY_KEYS, 1.6, 1.6),
    Target("REST, one read by POST, CPU : webdis, one thread, no log", REST_SINGLE, BY_REST, WEBDIS, 0.5, 0.5),
    Target(f"REST, pipeline of 50, CPU a read : {RESP_AND_REQUEST}", REST_PIPELINE, BY_REST, RESP_AND_REQUEST, 1.5, 1.5),
    Target(f"REST, pipeline of 50, CPU a read : {BRIDGE}", REST_PIPELINE, BY_REST, BRIDGE, 0.2, 0.2),
    resp_late(20_000),
    resp_late(40_000),
    near("HTTP hit, 32 connections", "http 100 B, 32 connections", 1.08),
    near("HTTP hit, 1,000 connections", "http 100 B, 1000 connections", 1.03),
    near("RESP hit, P=1", "resp P=1, 32 connections", 1.03),
    near("RESP hit, P=16", "resp P=16, 32 connections", 1.11),
    near("RESP hit, P=64", "resp P=64, 32 connections", 1.67),
    Target("RESP miss, 32 clients, CPU : twemproxy", MISSES_RESP, PROXY, TWEMPROXY, 1.0, 1.0),
    Target("HTTP miss, CPU : webdis, one thread, no log", MISSES_HTTP, PROXY, WEBDIS, 0.6, 0.6),
    *(Target(f"RESP hit by one load, P={pipeline}, CPU : {MEMCACHED}", caches_case(pipeline), PROXY, MEMCACHED, 1.0, 1.0)
      for pipeline in (1, 16, 64)),
    Target(f"MGET of {MGET} keys, CPU : redis-server", MGET_CASE, PROXY, REDIS, 0.5, 0.5),
    large_resp(LARGE["4 KiB"], 1.0),
    *(large_http(LARGE[name], other) for name in IN_FILES for other in (NGINX_LRUCACHE, NGINX_FILE)),
    *(large_resp(LARGE[name], 1.05) for name in IN_FILES),
    *(idle(of_number(name), most)
      for of_number in (str, many_idle) for name, most in ((IDLE_HTTP, 4096), (IDLE_RESP, 6144))),
    *(first_request(name) for name in (*IDLE_KINDS, many_idle(IDLE_HTTP), many_idle(IDLE_RESP))),
    Target("memory an entry : redis-server", "memory", PROXY, REDIS, 2.0, 1.3, "entry"),
    two_threads("HTTP", "threads, http"),
    two_threads("HTTP, both on one core", ONE_CORE),
    two_threads("RESP P=1", "threads, resp P=1"),
    two_threads("RESP P=16", "threads, resp P=16"),
    threads_apart("HTTP", "http"),
    threads_apart("RESP P=1", "resp P=1"),
    threads_apart("RESP P=16", "resp P=16"),
    many_threads("HTTP", "http"),
    many_threads("RESP P=1", "resp P=1"),
    many_threads("RESP P=16", "resp P=16"),
    many_keys(1),
    many_keys(16),
    churn(32),
    churn(256),
    churn(32, expiring=True),
    churn(256, expiring=True),
]
# The figures, each with its heading and its format.
COLUMNS = {
    "cpu": ("CPU, µs a read", "{:.2f}"),
    "kernel": ("of it in the kernel", "{:.2f}"),
    "cpu_behind": ("CPU of the Redis behind, µs a read", "{:.2f}"),
    "rate": ("reads/s", "{:,.0f}"),
    "p50": ("p50, µs", "{:,.0f}"),
    "p99": ("p99, µs", "{:,.0f}"),
    "p99.9": ("p99.9, µs", "{:,.0f}"),
    "p99 of slices": ("p99, lower quartile of slices, µs", "{:,.0f}"),
    "entry": ("bytes an entry", "{:,.0f}"),
    "connection": ("bytes a connection", "{:,.0f}"),
    "connections": ("connections", "{:,.0f}"),
    "first": ("CPU of a first request, µs", "{:.2f}"),
    "next": ("CPU of the next request, µs", "{:.2f}"),
    "late": ("first beyond next, µs", "{:.2f}"),
    "memory": ("memory, MiB", "{:,.0f}"),
}


# The row of a table that is the limit.
LIMITS = (LIMIT, LIMIT_OF_FORWARDING, BYTES_ALONE, CHURN[0])
# The counted reads of benches/instructions.txt, by case and row.
COUNTED = {
    ("http 100 B, 1 connections", PROXY): "http",
    ("http 100 B, 32 connections", PROXY): "http",
    ("http 100 B, 1000 connections", PROXY): "http",
    ("resp P=1, 32 connections", PROXY): "resp-1",
    ("resp P=1, 1 connections", PROXY): "resp-1",
    ("resp P=1, 1000 connections", PROXY): "resp-1",
    ("resp P=16, 32 connections", PROXY): "resp-16",
    ("resp at 20000 reads/s", PROXY): "resp-1",
    ("resp at 40000 reads/s", PROXY): "resp-1",
    (caches_case(1), PROXY): "resp-1",
    (caches_case(16), PROXY): "resp-16",
    (REST_SINGLE, BY_REST): "rest-1",
    (REST_SINGLE, BY_KEYS): "http",
    (REST_PIPELINE, BY_REST): "rest-50",
    (REST_PIPELINE, BY_RESP): "resp-50",
    (REST_PIPELINE, BY_KEYS): "http",
    (MGET_CASE, PROXY): "mget-100",
    ("threads, http", THREADS[1]): "http",
    (ONE_CORE, THREADS[1]): "http",
    ("threads, resp P=1", THREADS[1]): "resp-1",
    ("threads, resp P=16", THREADS[1]): "resp-16",
}


def counts():
    """The recorded instructions by read."""
    lines = (install.PROJECT / "benches" / "instructions.txt").read_text().splitlines()
    return {name: int(count) for name, count in (line.split() for line in lines if not line.startswith("#"))}


def instructions(case, name):
    """The recorded instructions of this row's reads, or an empty string."""
    read = COUNTED.get((case, name))
    return f"{counts()[read]:,}" if read else ""


def text(bench, seconds):
    """The whole report."""
    cases = dict.fromkeys(record.case for record in bench.records)
    parts = [HEAD.format(command=command(bench)), machine(bench, seconds), targets(bench), reasons(bench), READING]
    parts += [section(bench, case) for case in cases]
    if bench.left_out:
        rows = [f"- {name}, in {case}: {reason}" for case, name, reason in dict.fromkeys(bench.left_out)]
        parts.append("## Left out\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def section(bench, case):
    note = bench.agreements.get(case)
    return f"## {case[0].upper()}{case[1:]}\n\n{table(bench, case)}" + (f"\n\n{note}" if note else "")


HEAD = """# Side by side

Written by `{command}`; do not edit. What is measured and how stands in the files beside this one."""

READING = f"""In the tables the ratio is this proxy's CPU to the other's, round by round: the median, and the least and
the most of all rounds. Below 1 this proxy costs less. The other figures are medians. wrk and redis-benchmark ask as
fast as they are answered, so their latencies are those of a server (or a load) that has all it can do.

"x of the limit" is the same of each row to the limit: an epoll loop (bare.rs) that parses nothing and answers each request with
the same bytes. Where reads miss, the loop forwards, or answers by itself over HTTP; where only reads a second are measured, the
limit is the reads over one connection without a cache; of memory, it is the bytes of key and value.

Instructions are those of a read in user space, with the part of the client of scripts/instructions, as benches/instructions.txt
records them: they do not depend on the machine's other load.

A case is repeated until two runs agree: until the ratios of all its rows to its first one differ by at most 5 % between two runs.

webdis and FastAPI are there both as they come, webdis with the settings of its package (more threads, on the one core) and
uvicorn with its own (a line of log for each read), and with one thread and without logs.

Of values of 1 MiB and more all readers together have a few only, and over HTTP their bytes are counted, so that a reply that
the end of a turn cuts off counts by its part. nginx serves them from its cache and from files. With sendfile off it copies each
byte twice, from the file and to the socket; this proxy copies it once, to the socket. With sendfile on the socket refers to the
file's pages, which no server with values in memory of its own can do, so that row has no target.

A connection is idle when the memory of its server has not fallen for {STILL} s. The next request is the same one over the same
connection, sent so soon that no buffer has been given back, after requests over {PART * BETWEEN:,} others. Readings of {PART}
requests of both kinds take turns; the figures are medians of readings, and of the differences within a turn.

At a fixed rate a read is timed from when it was due. There the servers take turns of {TURN} ms in each round, so that what
disturbs the machine disturbs all of them. The first {UNCOUNTED} ms of a turn are not counted, as the processor's caches are still
those of the server before; the rest is, in slices of {SLICE} ms, each with a 99th percentile of its own, and the target is the
ratio of their lower quartiles: of each server the quarter of slices that was disturbed least. What stops a server in other
slices, be it the machine or the server itself, does not show there but in p99 and p99.9, which are of all that was counted.
(The medians of slices were tried: on a machine that others use more than half are disturbed, of either server, and the ratio of two
medians was anything from 0.1 to 7.)

Two worker threads need every core, so they share one with the load, whatever they do. Beside processes, the same load (two
clients, of half the connections each) is answered by one thread, by two, and by two processes of one thread each, one for
each client. Two processes share nothing but the machine, and have the keys twice; what two threads cost beyond them is what
threads of one process cost each other, and that each of them has connections of both clients. nginx's workers share nothing
either way, so its own ratio of this kind shows how much the latter is."""


def command(bench):
    without = f"WITHOUT='{' '.join(sorted(bench.without))}' " if bench.without else ""
    return f"{'QUICK=1 ' if bench.is_quick else ''}{without}ROUNDS={bench.rounds} RUNS={bench.runs} make bench"


def machine(bench, seconds):
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) / (1 << 20)
    names = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    return "\n".join([
        f"- Machine: {os.cpu_count()} processors ({model[1] if model else platform.machine()}), {memory:.0f} GiB,"
        f" Linux {platform.release()}.",
        f"- How quiet it was: {bench.watch.text()}",
        f"- Servers on core {min(SERVING)}; the load, and the Redis behind a server, on core {max(LOADING)}; where two"
        " worker threads are measured, the servers on every core, and beside processes the load too.",
        f"- {bench.rounds} rounds of about {bench.seconds} s for each contestant of a case, in at most {bench.runs} runs;"
        f" {seconds / 60:.0f} minutes in all.",
        f"- Versions: {names}.",
    ])


def versions():
    packages = "('fastapi', 'uvicorn', 'cachetools')"
    python = f"import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}}' for n in {packages}))"
    # The commands that print a version. webdis would not print it, but serve.
    said = {
        "redis-server": ["redis-server", "--version"],
        "nginx": ["nginx", "-v"],
        "webdis": ["ls", str(install.TOOLS / "apt" / "cache" / "archives")],
        "twemproxy": ["nutcracker", "--version"],
        "memcached": ["memcached", "--version"],
        "valkey-server": [valkey_server() or "valkey-server", "--version"],
        "wrk": ["wrk", "--version"],
        "Python": [str(install.PYTHON), "--version"],
    }
    found = {name: version(*words) for name, words in said.items()}
    found["redis-proxy"] = output("git", "describe", "--always", "--dirty").strip()
    for name, number in re.findall(r"(\S+) (\S+)", output(str(install.PYTHON), "-c", python)):
        found[name] = number
    return found


def version(name, *arguments):
    """The first version in the output of a program, or for a list of files, of the one with that name."""
    said = output(install.program(name) or name, *arguments)
    found = re.search(rf"{'webdis_' if name == 'ls' else ''}(\d+\.\d+[.\d]*)", said)
    return found[1] if found else ""


def output(*words):
    where = {"cwd": install.PROJECT, "env": install.environment()}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, **where)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def targets(bench):
    rows = [row(target, figures_of(bench, target)) for target in TARGETS]
    return "## Targets\n\n" + markdown(["this : other", "must", "aim", "measured", ""], rows)


def figures_of(bench, target):
    """The figures that the target limits, by round."""
    if target.other is None:
        return list(values(bench, target.case, target.this, target.figure).values())
    return ratios(bench, target.case, target.figure, target.this, target.other)


REASONS = """## Where the time goes

The processor's time for a read, where a target is one of time, in µs: all of it, and the part that the kernel takes for the
sockets, which Linux tells apart by its ticks, so it is an estimate. The floor is the ratio that this proxy would reach if its
own code took no time at all and the kernel's part stayed as it is; a server with a smaller part could go below it."""


def reasons(bench):
    """The parts of each ratio of time."""
    rows = []
    for target in (target for target in TARGETS if target.figure == "cpu" and target.other not in LIMITS):
        parts = [values(bench, target.case, name, figure) for name in (target.this, target.other) for figure in TIMES]
        if all(parts):
            cpu, kernel, others, others_kernel = (median(part.values()) for part in parts)
            times = [f"{microseconds:.2f}" for microseconds in (cpu, kernel, others, others_kernel)]
            counted = instructions(target.case, target.this)
            rows.append([target.what, *times, f"{kernel / others:.3f}", target.must, counted])
    heads = ["this : other", "this", "of it in the kernel", "other", "of it in the kernel", "floor", "must", "instructions of this"]
    return f"{REASONS}\n\n{markdown(heads, rows)}\n\n{other_reasons(bench)}"


TIMES = ("cpu", "kernel")


def other_reasons(bench):
    """Other figures of the same run about missed targets."""
    few, many = (f"{REDIS}, {count:,} of 5,000,000 keys" for count in (1000, 5_000_000))
    told = [
        ("A second worker of nginx (`return 200`), on every core beside the load, takes {} of the CPU a read of one.",
         ratios(bench, "threads, http", "cpu", NGINX_WORKERS[2], NGINX_WORKERS[1])),
        ("Two processes of one thread each, which share nothing, take {} of the CPU a read of one process, HTTP, with the"
         " same load on every core.", ratios(bench, "threads beside processes, http", "cpu", PROCESSES, THREADS[1])),
        ("The same, RESP P=16: {}.",
         ratios(bench, "threads beside processes, resp P=16", "cpu", PROCESSES, THREADS[1])),
        ("Two workers of one nginx take {} of the CPU a read of two nginx of one worker each.",
         ratios(bench, "threads beside processes, http", "cpu", NGINX_WORKERS[2], NGINX_PROCESSES)),
        ("Sixteen workers of nginx serve {} of the reads/s of two, HTTP, with the same load on every core.",
         ratios(bench, f"{MANY}, http", "rate", NGINX_MANY, NGINX_WORKERS[2])),
        *((f"By one load for all, P={pipeline}, sixteen threads of {name} serve {{}} of the reads/s of two.",
           ratios(bench, many_caches_case(pipeline), "rate", sixteen, two))
          for pipeline in (1, 16)
          for name, sixteen, two in (
              ("this proxy", MANY_THREADS, THREADS[2]), ("memcached", MEMCACHED_THREADS[16], MEMCACHED_THREADS[2]))),
        ("This proxy takes {} of the CPU a read of FastAPI with uvloop and httptools, which `uvicorn[standard]` brings, and"
         " no access log.", ratios(bench, "http 100 B, 32 connections", "cpu", PROXY, FASTAPI_UVLOOP)),
        ("nginx with an answer that is fixed (`return 200`) takes {} of the CPU a read of webdis as Debian packages it.",
         ratios(bench, "http 100 B, 32 connections", "cpu", NGINX_FIXED, WEBDIS_AS_PACKAGED)),
        ("And {} of that of webdis with one thread and no log.",
         ratios(bench, "http 100 B, 32 connections", "cpu", NGINX_FIXED, WEBDIS)),
        ("A hit of this proxy over 5,000,000 keys, P=16, takes {} of the CPU of redis-server's GET over as many.",
         ratios(bench, "keys, resp P=16", "cpu", f"{PROXY}, 5,000,000 keys", many)),
        ("redis-server's own GET, P=16, takes {} as much CPU over 5,000,000 keys as over 1,000 of them.",
         ratios(bench, "keys, resp P=16", "cpu", many, few)),
    ]
    for tasks in (32, 256):
        told.append((
            "Where a key has a time to live, a read that misses asks for value and time to live over a tracked link;"
            f" {tasks} readers who do that straight get {{}} of the reads/s of a GET alone, before any cache.",
            ratios(bench, churn_case(tasks, True), "rate", CHURN[1], CHURN[0]),
        ))
        told.append((
            "Through the cache they get {} of what they get straight when they ask for both.",
            ratios(bench, churn_case(tasks, True), "rate", CHURN[2], CHURN[1]),
        ))
        told.append((
            f"Where every read of {tasks} readers misses, one is done every {{}} µs straight,",
            intervals(bench, churn_case(tasks, False), CHURN[0]),
        ))
        told.append((
            "and every {} µs through the cache: its flight and its task, making its entry, and driving out another are more.",
            intervals(bench, churn_case(tasks, False), CHURN[2]),
        ))
    return "\n".join(f"- {text.format(spread(found))}" for text, found in told if found)


def row(target, found):
    if not found:
        return [target.what, target.must, target.aim, "not measured", ""]
    reached = (word for word in ("aim", "must") if is_reached(target, getattr(target, word), median(found)))
    verdict = next(reached, "missed")
    return [target.what, target.must, target.aim, spread(found), verdict]


def is_reached(target, limit, ratio):
    return ratio >= limit if target.is_floor else ratio <= limit


def values(bench, case, name, figure):
    """The figure by round."""
    found = [one for one in bench.records if (one.case, one.name) == (case, name) and figure in one.figures]
    return {one.round: one.figures[figure] for one in found}


def ratios(bench, case, figure, this, other):
    mine, others = values(bench, case, this, figure), values(bench, case, other, figure)
    return [mine[round_] / others[round_] for round_ in sorted(mine.keys() & others.keys()) if others[round_]]


def intervals(bench, case, name):
    """The µs between one read and the next."""
    return [1e6 / rate for rate in values(bench, case, name, "rate").values()]


def spread(numbers):
    """The median of figures with their range; small ones with more digits."""
    form = "{:,.0f}" if median(numbers) >= 100 else "{:.3f}" if median(numbers) < 0.1 else "{:.2f}"
    middle, low, high = (form.format(number) for number in (median(numbers), min(numbers), max(numbers)))
    return middle if len(numbers) == 1 else f"{middle} ({low} – {high})"


def table(bench, case):
    names = list(dict.fromkeys(one.name for one in bench.records if one.case == case))
    figures = [figure for figure in COLUMNS if any(values(bench, case, name, figure) for name in names)]
    compared = "cpu" if "cpu" in figures else figures[0]
    limit = next((name for name in LIMITS if name in names), None)
    # The columns behind the figures: a heading, and the text for each row.
    more = {}
    if PROXY in names:
        more["ratio"] = lambda name: "" if name == PROXY else compare(bench, case, compared, PROXY, name)
    if limit:
        # Of a rate, the limit is the larger one.
        pair = (lambda name: (limit, name)) if compared == "rate" else (lambda name: (name, limit))
        more["x of the limit"] = lambda name: "1" if name == limit else compare(bench, case, compared, *pair(name))
    if any(instructions(case, name) for name in names):
        more["instructions"] = lambda name: instructions(case, name)
    rows = []
    for name in names:
        row = [name] + [cell(figure, values(bench, case, name, figure)) for figure in figures]
        rows.append(row + [column(name) for column in more.values()])
    return markdown([""] + [COLUMNS[figure][0] for figure in figures] + list(more), rows)


def compare(bench, case, figure, this, other):
    found = ratios(bench, case, figure, this, other)
    return spread(found) if found else ""


def cell(figure, found):
    if not found:
        return ""
    middle = median(found.values()) / ((1 << 20) if figure == "memory" else 1)
    return COLUMNS[figure][1].format(middle)


def markdown(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(word) for word in line) + " |" for line in lines)
