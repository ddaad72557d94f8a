"""The measured cases. Each starts its servers, lets them take turns for several rounds, and stops them.

The rule: only measurements of the same round of the same case are compared, so a disturbance of the machine affects all
of them.
"""

import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import contestants
import install
import load
import runs as repetition
from contestants import (
    BRIDGE, FASTAPI, FASTAPI_AS_STARTED, FASTAPI_UVLOOP, LIMIT, LIMIT_OF_FORWARDING, MEMCACHED, NGINX_FILE, NGINX_FIXED,
    NGINX_LRUCACHE, NGINX_SENDFILE, PROGRAMS, PROXY, REDIS, TWEMPROXY, VALKEY, WEBDIS, WEBDIS_AS_PACKAGED,
)
from processes import CORES, LOADING, SERVING, Failed, Pair, allow_open_files, pinned
from quiet import Watch
from redis_keys import Connection, encode, key, raw_reply, value, write, write_collections, write_memcached

VALUE = 100
# Keys that no cache has when they are read: more than any cache holds.
COLD = range(load.KEYS, load.KEYS + 400_000)


@dataclass
class Record:
    """One measurement; CPU in microseconds a read, memory in bytes, latencies in microseconds."""

    case: str
    name: str
    round: int
    figures: dict


# What no turn may raise to the whole run: the contestant is left out of the case.
FAILURES = (Failed, OSError, ValueError, subprocess.TimeoutExpired)


@dataclass
class Bench:
    """The duration and the number of rounds and runs, and the results."""

    rounds: int
    seconds: int
    is_quick: bool
    # The most runs of a case.
    runs: int = 1
    # The programs that WITHOUT names.
    without: frozenset = frozenset()
    watch: Watch = None
    records: list = field(default_factory=list)
    left_out: list = field(default_factory=list)
    # The contestants that did not start, and those without which nothing can be compared that failed later.
    failures: list = field(default_factory=list)
    # By case, the sentence about its runs.
    agreements: dict = field(default_factory=dict)

    def add(self, case, name, round_, **figures):
        self.records.append(Record(case, name, round_, figures))

    def repeat(self, case, run, figure="cpu"):
        """Calls `run` with the numbers of its rounds until two runs agree, or as often as is allowed. If two agree, the
        others are dropped."""
        ratios = []
        for number in range(self.runs):
            if self.watch:
                self.watch.look()
            rounds = range(number * self.rounds, (number + 1) * self.rounds)
            run(rounds)
            ratios.append(repetition.ratios([one for one in self.of(case) if one.round in rounds], figure))
            closest = repetition.closest(ratios)
            if closest and closest[1] <= repetition.AGREEMENT:
                kept = [number * self.rounds + place for number in closest[0] for place in range(self.rounds)]
                self.records = [one for one in self.records if one.case != case or one.round in kept]
                break
        self.agreements[case] = repetition.sentence(len(ratios), closest)

    def of(self, case):
        return [one for one in self.records if one.case == case]

    def take_turns(self, case, runs):
        """Lets each of `runs`, a server and its load by name, take its turn in every round; one that fails is left out."""
        install.say(f"  {case}: {', '.join(runs)}")
        runs = dict(runs)

        def run(rounds):
            for round_ in rounds:
                for name in rotated(runs, round_):
                    try:
                        self.add(case, name, round_, **measured(*runs[name]))
                    except FAILURES as error:
                        self.leave_out(case, name, error)
                        del runs[name]

        self.repeat(case, run)

    def share_turns(self, case, servers, act):
        """Has `act` query all of `servers`, by name, in each round, in separate turns; one that fails is left out."""
        install.say(f"  {case}: {', '.join(servers)}")
        servers = dict(servers)

        def run(rounds):
            for round_ in rounds:
                names = rotated(servers, round_)
                before = {name: servers[name].cpu() for name in names}
                for name, result in zip(names, act(names) if names else ()):
                    if isinstance(result, Failed):
                        self.leave_out(case, name, result)
                        del servers[name]
                    else:
                        self.add(case, name, round_, **figures(servers[name], before[name], result))

        self.repeat(case, run)

    def wants(self, name):
        """Whether the contestant takes part; one that WITHOUT names is listed in the report."""
        if PROGRAMS.get(name) not in self.without:
            return True
        self.left_out.append(("all cases", name, "left out by name"))
        return False

    def leave_out(self, case, name, reason):
        """Leaves a contestant out of a case. The run fails if it is this proxy or the limit."""
        install.say(f"  {name} is left out of {case}: {reason}")
        self.left_out.append((case, name, str(reason).strip().splitlines()[-1]))
        if name not in PROGRAMS:
            self.failures.append((case, name))

    def fail(self, name, reason):
        """Leaves out a contestant that does not start, and with it fails the run."""
        self.leave_out("all cases", name, reason)
        self.failures.append(("all cases", name))


def rotated(names, round_):
    """The names, rotated in each round, so that none always follows the same one."""
    names = list(names)
    if not names:
        return []
    return names[round_ % len(names) :] + names[: round_ % len(names)]


def measured(server, act, behind=None):
    """The cost of a load for a server, and for the Redis `behind` it."""
    before, before_behind = server.cpu(), behind and behind.cpu()
    result = act()
    found = figures(server, before, result)
    return found if behind is None else {**found, "cpu_behind": costs(behind, before_behind, result)[0]}


def figures(server, before, result):
    """The cost of a load with this result for a server, and the latencies of the load."""
    cpu, kernel = costs(server, before, result)
    rate = result.reads / result.seconds
    return {"cpu": cpu, "kernel": kernel, "rate": rate, "memory": server.memory(), **result.latency}


def costs(server, before, result):
    """The CPU of a read since `before`, in microseconds, and how much of it in the kernel."""
    return [(now - then) / result.reads * 1e6 for now, then in zip(server.cpu(), before)]


class Stage(ExitStack):
    """A directory, a Redis with keys in it, and the servers in front of it; all removed at the end."""

    def __init__(self, bench, numbers, size=VALUE):
        super().__init__()
        self.bench, self.size = bench, size
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.origin = self.keep(contestants.start_redis(self.directory, LOADING))
        write(self.origin.port, numbers, size)

    def keep(self, server):
        self.callback(server.stop)
        return server

    def redis(self, numbers):
        """A second Redis, as a contestant, with these keys."""
        server = self.keep(contestants.start_redis(self.directory))
        write(server.port, numbers, self.size)
        return server

    def proxy(self, **options):
        return self.keep(contestants.start_proxy(self.directory, self.origin.port, size=self.size, **options))

    def warm_proxy(self, numbers, **options):
        """A proxy that has read these keys over RESP."""
        proxy = self.proxy(**options)
        with Connection(proxy.resp_port) as client:
            client.read_all(numbers, self.size)
        return proxy

    def files(self, numbers):
        """Writes the values of these keys to the files that nginx serves."""
        # nginx's workers are another user where this one is root.
        self.directory.chmod(0o711)
        (files := self.directory / contestants.FILES).mkdir()
        for number in numbers:
            (files / key(number)).write_bytes(value(number, self.size))

    def started(self, name, start):
        """The contestant of this name by name, or nothing if it does not start or is left out by name."""
        if not self.bench.wants(name):
            return {}
        try:
            return {name: self.keep(start())}
        except FAILURES as error:
            self.bench.fail(name, error)
            return {}

    def http(self, names):
        """The contestants over HTTP of these names that start."""
        found = {}
        for name in names:
            start = lambda: contestants.start_http(name, self.directory, self.origin.port, self.size)  # noqa: E731
            found |= self.started(name, start)
        return found

    def limit(self, cores=SERVING):
        """The limit over RESP."""
        return self.keep(contestants.start_bare_resp(self.directory, self.size, cores))

    def nginx_by_workers(self, counts):
        """One nginx for each of these counts of worker processes, all with every core; none if nginx does not start."""
        found = []

        def start(count):
            server = contestants.start_nginx(
                NGINX_FIXED, self.directory, self.origin.port, self.size, set(CORES), count
            )
            return server.wait_until(lambda: contestants.answers_http(server, self.size))

        for count in counts:
            found += self.started(NGINX_FIXED, lambda count=count: start(count)).values()
        return found if len(found) == len(counts) else []

    def warm(self, servers, numbers):
        """Has each of `servers` that caches read these keys; those that cannot are left out."""
        for name in [name for name in CACHES if name in servers]:
            try:
                load.warm(servers[name], numbers)
            except FAILURES as error:
                self.bench.leave_out("all cases", name, error)
                del servers[name]

    def twemproxy(self):
        return self.started(TWEMPROXY, lambda: contestants.start_twemproxy(self.directory, self.origin.port))

    def valkey(self, numbers):
        """A Valkey with these keys, where its program is at hand."""
        if not contestants.valkey_server():
            self.bench.left_out.append(("all cases", VALKEY, "neither VALKEY_SERVER nor PATH has it"))
            return {}
        found = self.started(VALKEY, lambda: contestants.start_redis(self.directory, name=VALKEY))
        for server in found.values():
            write(server.port, numbers, self.size)
        return found

    def memcached(self, numbers, threads=1, cores=contestants.SERVING):
        """A memcached with these keys."""
        found = self.started(MEMCACHED, lambda: contestants.start_memcached(self.directory, threads, cores))
        for server in found.values():
            write_memcached(server.port, numbers, self.size)
        return found


CACHES = [PROXY, NGINX_LRUCACHE, FASTAPI_UVLOOP, FASTAPI, FASTAPI_AS_STARTED]


def http(bench):
    """Cached reads of 100 bytes over HTTP: by connections, then by hit ratio."""
    with Stage(bench, range(COLD.stop)) as stage:
        as_they_come = [WEBDIS_AS_PACKAGED, FASTAPI_AS_STARTED]
        names = [PROXY, LIMIT, NGINX_FIXED, NGINX_LRUCACHE, WEBDIS, FASTAPI, FASTAPI_UVLOOP]
        servers = stage.http([*names, *as_they_come])
        stage.warm(servers, range(load.KEYS))
        asked = {name: (server, wrk(bench, server)) for name, server in servers.items()}
        bench.take_turns(f"http 100 B, {load.CONNECTIONS} connections", asked)
        # The cost of logging and threads is known by now, so these take no more of the time.
        servers = {name: server for name, server in servers.items() if name not in as_they_come}
        for connections in (1, 1000):
            asked = {name: (server, wrk(bench, server, connections)) for name, server in servers.items()}
            bench.take_turns(f"http 100 B, {connections} connections", asked)
        for ratio, every in ((99, 100), (90, 10)):
            others = {name: load.Others(every, COLD) for name in (*CACHES, LIMIT) if name in servers}
            asked = {name: (servers[name], wrk(bench, servers[name], others=those)) for name, those in others.items()}
            bench.take_turns(f"http 100 B, {ratio} % hits", asked)


def wrk(bench, server, connections=load.CONNECTIONS, keys=load.KEYS, others=None, size=0):
    return lambda: load.wrk(server, bench.seconds, connections, keys, others, size)


# The ways to read of the REST cases.
BY_KEYS, BY_REST, BY_RESP = "GET /keys/", "POST /rest", "RESP"
REST_SINGLE, REST_PIPELINE = "REST, one read a request", "REST, 50 reads a request"
PIPELINE = 50
# The reads of a pipeline over RESP, and one HTTP request: the least that a pipeline over HTTP could cost.
RESP_AND_REQUEST = "RESP, and one request by GET /keys/ for 50 reads"


def rest(bench):
    """Cached reads of 100 bytes by REST, beside the other ways into the same proxy and webdis."""
    keys = range(load.KEYS)
    with Stage(bench, keys) as stage:
        proxy = stage.proxy()
        load.warm(proxy, keys)

        def by_rest(commands, server=proxy, path=contestants.REST_PATH):
            token = contestants.REST_TOKEN
            return (server, lambda: load.wrk_rest(server, path, token, commands, bench.seconds))

        def limit(reads):
            """The limit with the body of a reply to so many reads."""
            one = b'{"result":"%s"}' % (b"x" * VALUE)
            body = one if reads == 1 else b"[%s]" % b",".join([one] * reads)
            return by_rest(reads, stage.keep(contestants.start_bare_http(stage.directory, body)))

        runs = {BY_REST: by_rest(1), LIMIT: limit(1), BY_KEYS: (proxy, wrk(bench, proxy))}
        runs |= {name: (server, wrk(bench, server)) for name, server in stage.http([WEBDIS]).items()}
        bench.take_turns(REST_SINGLE, runs)
        runs = {BY_REST: by_rest(PIPELINE), LIMIT: limit(PIPELINE)}
        runs |= {BY_RESP: (proxy, gets(bench, proxy.resp_port, pipeline=PIPELINE)), BY_KEYS: (proxy, wrk(bench, proxy))}
        bridge = stage.started(BRIDGE, lambda: contestants.start_bridge(stage.directory, stage.origin.port))
        runs |= {name: by_rest(PIPELINE, server, "") for name, server in bridge.items()}
        bench.take_turns(REST_PIPELINE, runs)
        add_resp_and_request(bench)


def add_resp_and_request(bench):
    """Adds what a pipeline's reads and one HTTP request cost, from the measurements of both, in each round."""
    rounds = {}
    for record in bench.records:
        if record.case == REST_PIPELINE:
            rounds.setdefault(record.round, {})[record.name] = record.figures
    for round_, found in rounds.items():
        if BY_RESP in found and BY_KEYS in found:
            both = {name: found[BY_RESP][name] + found[BY_KEYS][name] / PIPELINE for name in ("cpu", "kernel")}
            bench.add(REST_PIPELINE, RESP_AND_REQUEST, round_, **both)


@dataclass
class Values:
    """Larger values: their name, their bytes and their number, and how they are read."""

    name: str
    size: int
    keys: int
    connections: int = load.CONNECTIONS
    pipeline: int = 1


LARGE = {
    values.name: values
    for values in (
        Values("4 KiB", 4 << 10, load.KEYS, pipeline=16),
        Values("1 MiB", 1 << 20, 100),
        # The fewest that are not one and the same: each contestant has all of them in memory.
        Values("100 MiB", 100 << 20, 2, connections=4),
    )
}
# Those of which nginx has files too, and those that few can serve.
IN_FILES, HUGE = ("1 MiB", "100 MiB"), ("100 MiB",)


def http_large(bench):
    """Cached reads of larger values over HTTP, beside nginx with its cache and with files."""
    for values in LARGE.values():
        keys = range(values.keys)
        with Stage(bench, keys, values.size) as stage:
            names = [PROXY, LIMIT, NGINX_LRUCACHE]
            if values.name in IN_FILES:
                stage.files(keys)
                names += [NGINX_FILE, NGINX_SENDFILE]
            servers = stage.http(names if values.name in HUGE else [*names, WEBDIS, FASTAPI_UVLOOP])
            stage.warm(servers, keys)
            size = values.size if values.name in IN_FILES else 0
            asked = {name: (one, wrk(bench, one, values.connections, values.keys, size=size)) for name, one in servers.items()}
            bench.take_turns(http_large_case(values), asked)


def http_large_case(values):
    return f"http {values.name}, {values.connections} connections"


def resp_large(bench):
    """Cached reads of larger values over Redis's own protocol, by one and the same load."""
    for values in LARGE.values():
        keys = range(values.keys)
        with Stage(bench, keys, values.size) as stage:
            servers = {PROXY: stage.warm_proxy(keys), LIMIT: stage.limit(), REDIS: stage.redis(keys), **stage.valkey(keys)}
            how = {"connections": values.connections, "pipeline": values.pipeline, "keys": values.keys, "size": values.size}
            runs = {name: (server, closed(bench, server.resp_port, **how)) for name, server in servers.items()}
            bench.take_turns(resp_large_case(values), runs)


def resp_large_case(values):
    return f"resp {values.name}, P={values.pipeline}, {values.connections} connections"


# The keys of one MGET.
MGET = 100
MGET_CASE = f"MGET of {MGET} keys, {load.CONNECTIONS} connections, each key a read"


def mget(bench):
    """Cached reads of 100 keys by one command, by one and the same load."""
    keys = range(load.KEYS)
    with Stage(bench, keys) as stage:
        limit = stage.keep(contestants.start_bare_mget(stage.directory, VALUE, MGET))
        servers = {PROXY: stage.warm_proxy(keys), LIMIT: limit, REDIS: stage.redis(keys), **stage.valkey(keys)}
        bench.take_turns(
            MGET_CASE, {name: (server, closed(bench, server.resp_port, read=MGET)) for name, server in servers.items()}
        )


def resp(bench):
    """Cached reads over Redis's own protocol: by pipeline and by connections, then at a fixed rate."""
    keys = range(load.KEYS)
    with Stage(bench, keys) as stage:
        proxy, redis = stage.warm_proxy(keys), stage.redis(keys)
        others = {LIMIT: stage.limit(), REDIS: redis, **stage.valkey(keys), **stage.twemproxy()}
        ports = {PROXY: (proxy, proxy.resp_port)} | {name: (server, server.port) for name, server in others.items()}
        for connections, pipeline in ((32, 1), (32, 16), (32, 64), (1, 1), (1000, 1)):
            runs = {name: (server, gets(bench, port, connections, pipeline)) for name, (server, port) in ports.items()}
            bench.take_turns(f"resp P={pipeline}, {connections} connections", runs)
        for rate in (20_000,) if bench.is_quick else (20_000, 40_000):
            servers = {name: server for name, (server, _) in ports.items()}
            bench.share_turns(f"resp at {rate} reads/s", servers, paced(bench, ports, rate))


# Reads of other types than strings, by their name in the report.
REPLIES = {
    "HGET of 20 fields": ("HGET", "hash:__rand_int__", "field:07"),
    "HGETALL of 20 fields": ("HGETALL", "hash:__rand_int__"),
    "ZRANGE of 100": ("ZRANGE", "zset:__rand_int__", "0", "-1"),
    "SMEMBERS of 50": ("SMEMBERS", "set:__rand_int__"),
}


def replies(bench):
    """Kept replies to reads of hashes, sorted sets and sets: by command and by pipeline."""
    with Stage(bench, range(1)) as stage:
        redis = stage.redis(range(1))
        for server in (stage.origin, redis):
            write_collections(server.port, load.KEYS)
        for what, read in REPLIES.items():
            # One for each command, so that the replies to another do not take its memory.
            proxy = stage.proxy()
            # All of them are kept before they are counted, but for a few that chance leaves out.
            load.redis_benchmark(proxy.resp_port, 12 * load.KEYS, pipeline=16, read=read)
            words = [word.replace("__rand_int__", f"{1:012d}") for word in read]
            reply = contestants.string_of_length(len(raw_reply(redis.port, words)))
            limit = stage.keep(contestants.start_bare(stage.directory, len(encode(*words)), reply))
            for pipeline in (1, 16, 64):
                ports = {PROXY: (proxy, proxy.resp_port), LIMIT: (limit, limit.port), REDIS: (redis, redis.port)}
                runs = {name: (server, gets(bench, port, 32, pipeline, read=read)) for name, (server, port) in ports.items()}
                bench.take_turns(replies_case(what, pipeline), runs)


def replies_case(what, pipeline):
    return f"{what}, P={pipeline}"


def caches(bench):
    """Reads of 100 bytes from this proxy and from stores in memory, each in its own protocol, by one and the same load."""
    keys = range(load.KEYS)
    with Stage(bench, keys) as stage:
        proxy = stage.warm_proxy(keys)
        servers = {LIMIT: stage.limit(), REDIS: stage.redis(keys), **stage.valkey(keys), **stage.memcached(keys)}
        for pipeline in (1, 16, 64):
            runs = {PROXY: (proxy, closed(bench, proxy.resp_port, pipeline=pipeline))}
            for name, server in servers.items():
                runs[name] = (server, closed(bench, server.port, pipeline=pipeline, read=get_of(name)))
            bench.take_turns(caches_case(pipeline), runs)


def caches_case(pipeline):
    return f"one load for all, P={pipeline}"


def get_of(name):
    """The read of one key in the protocol of the contestant."""
    return load.MG if name == MEMCACHED else 1


def closed(bench, port, **options):
    return lambda: load.closed(port, bench.seconds, **options)


# The defaults of memtier_benchmark: 4 threads of 50 connections, one SET for 10 GETs (its --ratio=1:10), random keys of equal
# probability (--key-pattern=R:R), values of 32 bytes, no pipeline. Its keys would be 10,000,000, of which none is written
# before, so that nearly all reads would find nothing; here they are as many as a cache holds, and all of them are written.
MEMTIER = {"connections": 200, "keys": contestants.CAPACITY, "size": 32, "write_every": 11}
MEMTIER_CASE = "as memtier_benchmark by default, 200 connections, 1 write for 10 reads"


def memtier(bench):
    """Reads and writes in the proportions of memtier_benchmark's defaults; the writes of the proxy go to the Redis behind."""
    keys = range(MEMTIER["keys"])
    with Stage(bench, keys, MEMTIER["size"]) as stage:
        proxy = stage.warm_proxy(keys)
        runs = {PROXY: (proxy, closed(bench, proxy.resp_port, **MEMTIER), stage.origin)}
        # It cannot tell a write from a read, so it has reads only.
        limit = stage.limit()
        runs[LIMIT] = (limit, closed(bench, limit.port, **MEMTIER | {"write_every": 0}))
        for name, server in {REDIS: stage.redis(keys), **stage.valkey(keys), **stage.memcached(keys)}.items():
            runs[name] = (server, closed(bench, server.port, read=get_of(name), **MEMTIER))
        bench.take_turns(MEMTIER_CASE, runs)


def gets(bench, port, connections=load.CONNECTIONS, pipeline=1, keys=load.KEYS, read=()):
    """GETs, or other reads, for about the bench's seconds; a trial finds their number."""
    trial = 20_000 * pipeline if pipeline > 1 else 10_000
    probe = load.redis_benchmark(port, trial, connections, pipeline, keys, read)
    reads = max(1000, int(probe.reads / probe.seconds * bench.seconds))
    return lambda: load.redis_benchmark(port, reads, connections, pipeline, keys, read)


def paced(bench, ports, rate):
    """The number of turns in which the counted part takes the bench's seconds."""
    turns = bench.seconds * 1000 // (load.SLICE * load.SLICES)
    return lambda names: load.paced([ports[name][1] for name in names], rate, turns)


THREADS = {1: "1 worker thread", 2: "2 worker threads"}
NGINX_WORKERS = {1: f"{NGINX_FIXED}, 1 worker", 2: f"{NGINX_FIXED}, 2 workers"}
PROCESSES = "2 processes of 1 worker thread"
NGINX_PROCESSES = f"{NGINX_FIXED}, 2 of 1 worker"


def threads(bench):
    """One worker thread and two, both with every core, beside the load; then two beside two processes of one."""
    keys = range(load.KEYS)
    with Stage(bench, keys) as stage:
        one, two, other = (stage.warm_proxy(keys, cores=set(CORES), workers=workers) for workers in (1, 2, 1))
        proxies = {THREADS[1]: one, THREADS[2]: two}
        nginx = stage.nginx_by_workers((1, 2, 1))
        runs = {name: (proxy, wrk(bench, proxy)) for name, proxy in proxies.items()}
        limits = [contestants.start_bare_http(stage.directory, b"x" * VALUE, set(CORES)), stage.limit(set(CORES))]
        stage.keep(limits[0])
        runs[LIMIT] = (limits[0], wrk(bench, limits[0]))
        # Tells whether the proxy or the machine causes the cost of a second thread.
        runs |= {name: (server, wrk(bench, server)) for name, server in zip(NGINX_WORKERS.values(), nginx)}
        bench.take_turns("threads, http", runs)
        threads_over_resp(bench, "threads", proxies, limits[1])
        beside_processes(bench, (one, two, other), nginx, limits)
    threads_on_one_core(bench)


def threads_over_resp(bench, case, proxies, limit):
    """The same proxies over RESP, alone and in a pipeline, beside the limit."""
    for pipeline in (1, 16):
        runs = {name: (proxy, gets(bench, proxy.resp_port, 32, pipeline)) for name, proxy in proxies.items()}
        runs[LIMIT] = (limit, gets(bench, limit.port, 32, pipeline))
        bench.take_turns(f"{case}, resp P={pipeline}", runs)


ONE_CORE = "threads on one core, http"


def threads_on_one_core(bench):
    """One worker thread and two, both on one core, without the load."""
    keys = range(load.KEYS)
    with Stage(bench, keys) as stage:
        proxies = {name: stage.proxy(workers=count) for count, name in THREADS.items()}
        for proxy in proxies.values():
            load.warm(proxy, keys)
        runs = {name: (proxy, wrk(bench, proxy)) for name, proxy in proxies.items()}
        limit = stage.keep(contestants.start_bare_http(stage.directory, b"x" * VALUE))
        bench.take_turns(ONE_CORE, runs | {LIMIT: (limit, wrk(bench, limit))})


MANY, MANY_THREADS = "many threads", "16 worker threads"
NGINX_MANY = f"{NGINX_FIXED}, 16 workers"
MEMCACHED_THREADS = {count: f"{MEMCACHED}, {count} threads" for count in (2, 16)}


def many_threads(bench):
    """Sixteen worker threads and two, on the same cores, beside the load. A lock for which threads queue would cost reads/s."""
    keys = range(load.KEYS)
    with Stage(bench, keys) as stage:
        proxies = {name: stage.proxy(cores=set(CORES), workers=count) for name, count in ((THREADS[2], 2), (MANY_THREADS, 16))}
        for proxy in proxies.values():
            load.warm(proxy, keys)
        runs = {name: (proxy, wrk(bench, proxy)) for name, proxy in proxies.items()}
        limit = stage.keep(contestants.start_bare_http(stage.directory, b"x" * VALUE, set(CORES)))
        runs[LIMIT] = (limit, wrk(bench, limit))
        # Its workers share no lock, so it shows the cost of the switches between sixteen.
        nginx = stage.nginx_by_workers((2, 16))
        runs |= {name: (server, wrk(bench, server)) for name, server in zip((NGINX_WORKERS[2], NGINX_MANY), nginx)}
        bench.take_turns(f"{MANY}, http", runs)
        limit = stage.limit(set(CORES))
        threads_over_resp(bench, MANY, proxies, limit)
        memcached = {}
        for count, name in MEMCACHED_THREADS.items():
            memcached |= {name: server for server in stage.memcached(keys, count, set(CORES)).values()}
        for pipeline in (1, 16):
            runs = {name: (proxy, closed(bench, proxy.resp_port, pipeline=pipeline)) for name, proxy in proxies.items()}
            runs[LIMIT] = (limit, closed(bench, limit.port, pipeline=pipeline))
            for name, server in memcached.items():
                runs[name] = (server, closed(bench, server.port, pipeline=pipeline, read=load.MG))
            bench.take_turns(many_caches_case(pipeline), runs)


def many_caches_case(pipeline):
    return f"{MANY}, one load for all, P={pipeline}"


def beside_processes(bench, proxies, nginx, limits):
    """Two worker threads beside two processes of one, which share nothing but the machine. All have the same load, of two
    clients of half the connections each; two processes have one client each."""
    pairs = dict(zip((*THREADS.values(), PROCESSES), pairs_of(proxies)))
    # nginx's workers share nothing either way, so it shows how else the two ways differ.
    asked = pairs | dict(zip((*NGINX_WORKERS.values(), NGINX_PROCESSES), pairs_of(nginx)))
    # Half as long as elsewhere, because there are many of them.
    seconds = max(1, bench.seconds // 2)
    asked[LIMIT] = (limits[0], limits[0])
    runs = {name: (Pair(pair), lambda pair=pair: load.wrk_twice(pair, seconds)) for name, pair in asked.items()}
    bench.take_turns("threads beside processes, http", runs)
    for pipeline in (1, 16):
        runs = {
            name: (Pair(pair), gets_twice([server.resp_port for server in pair], seconds, pipeline))
            for name, pair in pairs.items()
        }
        runs[LIMIT] = (limits[1], gets_twice([limits[1].port] * 2, seconds, pipeline))
        bench.take_turns(f"threads beside processes, resp P={pipeline}", runs)


def pairs_of(servers):
    """One server with one worker, one with two, and another with one: the targets of the two clients, each in turn."""
    if not servers:
        return []
    one, two, other = servers
    return [(one, one), (two, two), (one, other)]


def gets_twice(ports, seconds, pipeline):
    probe = load.redis_benchmark_twice(ports, 20_000 * pipeline, pipeline)
    reads = max(1000, int(probe.reads / probe.seconds * seconds))
    return lambda: load.redis_benchmark_twice(ports, reads, pipeline)


def keys(bench):
    """The cost of a hit by the number of cached keys; the reads are spread over all of them."""
    counts = (1000, 100_000) if bench.is_quick else (1000, 10_000, 100_000, 1_000_000, 5_000_000)
    with Stage(bench, range(counts[-1])) as stage:
        proxies = {count: stage.warm_proxy(range(count), capacity=count) for count in counts}
        limit = stage.limit()
        for pipeline in (1, 16):
            runs = {
                f"{PROXY}, {count:,} keys": (proxy, gets(bench, proxy.resp_port, 32, pipeline, count))
                for count, proxy in proxies.items()
            }
            for count in (counts[0], counts[-1]):
                behind = gets(bench, stage.origin.port, 32, pipeline, count)
                runs[f"{REDIS}, {count:,} of {counts[-1]:,} keys"] = (stage.origin, behind)
            runs[LIMIT] = (limit, gets(bench, limit.port, 32, pipeline))
            bench.take_turns(f"keys, resp P={pipeline}", runs)


MISSES_RESP, MISSES_HTTP = "misses, resp", "misses, http"


def misses(bench):
    """Reads that all miss, by proxy and by other forwarders; and the cache alone beside its connection."""
    numbers = range(100_000 if bench.is_quick else 1_000_000)
    with Stage(bench, numbers) as stage:
        proxy = stage.proxy(capacity=len(numbers) // 100)
        behind, keys = stage.origin, len(numbers)
        limit = contestants.start_bare_forward(stage.directory, behind.port, VALUE)
        ports = {PROXY: (proxy, proxy.resp_port), LIMIT_OF_FORWARDING: (stage.keep(limit), limit.port)}
        ports |= {name: (server, server.port) for name, server in stage.twemproxy().items()}
        # Not by redis-benchmark: the loop that forwards could not tell its CONFIG from a GET.
        runs = {name: (server, closed(bench, port, keys=keys), behind) for name, (server, port) in ports.items()}
        runs["straight"] = (behind, closed(bench, behind.port, keys=keys))
        bench.take_turns(MISSES_RESP, runs)
        others = load.Others(1, numbers, len(numbers) // 2)
        runs = {PROXY: (proxy, wrk(bench, proxy, keys=1, others=others), behind)}
        limit = stage.keep(contestants.start_bare_http(stage.directory, b"x" * VALUE))
        # It answers by itself: the least that the connections of the clients cost.
        runs[LIMIT] = (limit, wrk(bench, limit, keys=1, others=load.Others(1, numbers, 0)))
        for name, server in stage.http([WEBDIS]).items():
            those = load.Others(1, numbers, len(numbers) // 2)
            runs[name] = (server, wrk(bench, server, keys=1, others=those), behind)
        bench.take_turns(MISSES_HTTP, runs)
    churn(bench)


def churn(bench):
    """The cost of the cache and its flights where every read misses: one program, one connection, the same reads."""
    with Stage(bench, range(1_000_000)) as stage:
        for expiring in (False, True):
            if expiring:
                with Connection(stage.origin.port) as redis:
                    redis.ask("SET", "another key", "value", "EX", 24 * 3600)
            for tasks in (32, 256):
                case = churn_case(tasks, expiring)
                install.say(f"  {case}")
                bench.repeat(case, lambda rounds: churn_once(bench, case, stage.origin.port, tasks, rounds), "rate")


def churn_once(bench, case, port, tasks, rounds):
    for round_, rates in zip(rounds, load.straight(port, tasks, bench.seconds, len(rounds))):
        for name, rate in zip(CHURN, rates):
            bench.add(case, name, round_, rate=rate)


def churn_case(tasks, expiring):
    """Reads that all miss; each TTL is requested from Redis as soon as one key has one."""
    return f"misses, {tasks} tasks in one program" + (", one key with a time to live" if expiring else "")


# The order in which the client prints their reads a second.
CHURN = ("straight over one link", "straight, with PTTL, tracked", "through the cache")


def memory(bench):
    """Bytes that 100,000 entries of 16-byte keys and 100-byte values take."""
    numbers = range(contestants.CAPACITY)
    with Stage(bench, numbers) as stage:
        empty = stage.keep(contestants.start_redis(stage.directory))
        before = empty.memory()
        write(empty.port, numbers, VALUE)
        weigh(bench, REDIS, empty, before, numbers)
        bench.add("memory", BYTES_ALONE, 0, entry=len(key(0)) + VALUE)
        servers = stage.http([PROXY, NGINX_LRUCACHE] if bench.is_quick else [PROXY, NGINX_LRUCACHE, FASTAPI_UVLOOP])
        for name, server in servers.items():
            # The memory of serving itself is allocated before the keys are read.
            load.wrk(server, 1, keys=100)
            before = server.memory()
            load.warm(server, numbers)
            weigh(bench, name, server, before, numbers)


# The limit of memory.
BYTES_ALONE = "the limit: the bytes of key and value"


def weigh(bench, name, server, before, numbers):
    bench.add("memory", name, 0, entry=(server.memory() - before) / len(numbers), memory=server.memory())


# The idle connections of each kind, and how many are measured too where the limit of open files allows it.
IDLE, MANY_IDLE = 10_000, 50_000
IDLE_HTTP, IDLE_RESP = f"{PROXY}, HTTP", f"{PROXY}, RESP"
# The kinds of connections to the proxy: whether over RESP, and whether with TLS.
IDLE_KINDS = {
    IDLE_HTTP: (False, False),
    IDLE_RESP: (True, False),
    f"{PROXY}, HTTP with TLS": (False, True),
    f"{PROXY}, RESP with TLS": (True, True),
}


def many_idle(name):
    return f"{name}, {MANY_IDLE:,} connections"


def idle(bench):
    """The memory of a connection that has read once and is silent, and the cost of its first request after that."""
    files = allow_open_files()
    # On the core of the server: to wake another core for each request would cost more than to serve it, and not always as much.
    with Stage(bench, range(1)) as stage, pinned(SERVING):
        for name, how in IDLE_KINDS.items():
            hold(bench, name, *to_proxy(stage, *how, idle_count(IDLE, files, *how)))
        for name, kind in to_others(stage).items():
            hold(bench, name, kind, idle_count(IDLE, files))
        for name, (is_resp, has_tls) in IDLE_KINDS.items():
            if has_tls:
                continue
            if idle_count(MANY_IDLE, files, is_resp) == MANY_IDLE:
                hold(bench, many_idle(name), *to_proxy(stage, is_resp, has_tls, MANY_IDLE))
            else:
                bench.left_out.append(("idle", many_idle(name), f"a process may open {files:,} files"))


# The files that this program and the servers need beside their connections.
FILES_BESIDE = 600


def idle_count(wanted, files, is_resp=False, has_tls=False):
    """The connections of those wanted that so many open files allow, in whole hundreds, but one hundred at least. A Redis client
    may need two files of the proxy: its connection, and one of its own to Redis."""
    fit = max(0, files - FILES_BESIDE) // (2 if is_resp else 1)
    return max(100, min(wanted, fit - fit % 100))


def to_proxy(stage, is_resp, has_tls, count):
    """So many connections to a proxy of their own, which admits no more of them by much."""
    limits = (10, count + 10) if is_resp else (count + 10, 10)
    proxy = stage.proxy(connections=limits, certificate=contestants.certificate(stage.directory) if has_tls else None)
    tls = contestants.trusting() if has_tls else None
    where = (proxy.resp_port, RESP_READ) if is_resp else (proxy.port, http_read(proxy))
    return Kind(proxy, *where, tls), count


def to_others(stage):
    """Connections to the other servers, without TLS."""
    servers = {LIMIT: stage.limit(), REDIS: stage.redis(range(1))}
    kinds = {name: Kind(server, server.port, RESP_READ) for name, server in servers.items()}
    nginx = stage.http([NGINX_LRUCACHE])
    return kinds | {name: Kind(server, server.port, http_read(server)) for name, server in nginx.items()}


RESP_READ = encode("GET", key(0))


def http_read(server):
    return f"GET {server.path}{key(0)}{server.suffix} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


@dataclass
class Kind:
    """Connections of one kind: to which server and port, with which request and with which TLS, if any."""

    server: object
    port: int
    read: bytes
    tls: ssl.SSLContext = None

    def open(self, number):
        """The connection of this number."""
        connection = socket.socket()
        connection.settimeout(10)
        # Otherwise its port would have to be free for every destination.
        connection.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
        connection.bind((source(number), 0))
        connection.connect(("127.0.0.1", self.port))
        return self.tls.wrap_socket(connection) if self.tls else connection

    def ask(self, connections):
        """Reads once over each of these connections."""
        for connection in connections:
            connection.sendall(self.read)
            if not connection.recv(4096):
                raise ConnectionError("the server hung up")


# IP_BIND_ADDRESS_NO_PORT of Linux, which Python 3.11 does not name.
BIND_ADDRESS_NO_PORT = 24
# Fewer than the ports that Linux gives to the connections of one source address.
PORTS = 20_000


def source(number):
    """The source address of the connection of this number."""
    return f"127.0.0.{1 + number // PORTS}"


def hold(bench, name, kind, count):
    """Adds the figures of so many connections."""
    try:
        bench.add("idle", name, 0, **held(kind, count))
    except FAILURES as error:
        bench.leave_out("idle", name, error)


def held(kind, count):
    """The bytes of a connection while all are silent, and the CPU of a first request after that and of the next one."""
    before = kind.server.memory()
    with ExitStack() as stack:
        connections = []
        for number in range(count):
            connections.append(stack.enter_context(kind.open(number)))
            kind.ask(connections[-1:])
        size = (settled(kind.server) - before) / count
        first, next_, late = (median(found) for found in zip(*first_and_next(kind, connections)))
    return {"connections": count, "connection": size, "first": first, "next": next_, "late": late}


# The connections in one reading of the clock, and the readings between the two requests of a connection: so many that the
# processor's nearest caches have lost it by then, as after the silence, and that no buffer is returned in so short a time.
PART, BETWEEN = 250, 4


def first_and_next(kind, connections):
    """The CPU of a request on each connection, of another one soon after, and the difference, in µs a request. The readings of
    both take turns, so that what disturbs the machine disturbs both of a turn."""
    size = min(PART, len(connections) // (2 * BETWEEN))
    parts = [connections[at : at + size] for at in range(0, len(connections), size)]
    readings = []
    for turn, part in enumerate(parts):
        first = cost(kind, part)
        if turn >= BETWEEN:
            next_ = cost(kind, parts[turn - BETWEEN])
            readings.append((first, next_, first - next_))
    return readings


def cost(kind, connections):
    """The CPU of a request on each of these connections, in µs a request."""
    before = kind.server.exact_cpu()
    kind.ask(connections)
    return (kind.server.exact_cpu() - before) / len(connections) * 1e6


# The seconds without less memory after which a server has returned its buffers, more than the proxy may take to look for them;
# and the most of all seconds.
STILL, PATIENCE = 12, 60


def settled(server):
    """The memory of a server that is silent, when it has not fallen for some seconds."""
    least, since, end = server.memory(), time.monotonic(), time.monotonic() + PATIENCE
    while time.monotonic() < min(end, since + STILL):
        time.sleep(0.5)
        # A change of a few pages is no return of buffers.
        if (memory := server.memory()) < 0.99 * least:
            least, since = memory, time.monotonic()
    return least


CASES = {
    "http": http,
    "rest": rest,
    "http_large": http_large,
    "resp": resp,
    "resp_large": resp_large,
    "mget": mget,
    "replies": replies,
    "caches": caches,
    "memtier": memtier,
    "threads": threads,
    "many_threads": many_threads,
    "keys": keys,
    "misses": misses,
    "memory": memory,
    "idle": idle,
}
# The programs of each case, besides those of every case.
NEEDS = {
    "http": ["nginx", "webdis", "fastapi"],
    "rest": ["webdis"],
    "http_large": ["nginx", "webdis", "fastapi"],
    "resp": ["twemproxy"],
    "caches": ["memcached"],
    "memtier": ["memcached"],
    "threads": ["nginx"],
    "many_threads": ["nginx", "memcached"],
    "misses": ["twemproxy", "webdis"],
    "memory": ["nginx", "fastapi"],
    "idle": ["nginx"],
}
