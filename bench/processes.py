"""The measured servers: started, pinned, watched and stopped.

The rule: a server is known by the id of its started process and those of its descendants. Each is stopped by its id, and
no process outlives the run.
"""

import os
import re
import resource
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import install

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
# One core serves. The next one has the load, and the Redis behind a server.
SERVING, LOADING = {CORES[0]}, {CORES[-1]}


class Failed(Exception):
    """A failure of a server or a load; the message names it."""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server with its descendants. It serves on `port`, and over RESP on `resp_port`, which may be the same; over HTTP
    `path` and `suffix` enclose a key."""

    path = suffix = ""

    def __init__(self, name, command, port, directory, cores, variables=None):
        self.name, self.port, self.resp_port = name, port, port
        self.log = Path(directory) / f"{name.replace(' ', '-')}-{port}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env={**install.environment(), **(variables or {})},
                start_new_session=True,
                preexec_fn=lambda: (os.sched_setaffinity(0, cores), allow_open_files()),
            )

    def get(self, key, seconds):
        """The value of a key over HTTP."""
        url = f"http://127.0.0.1:{self.port}{self.path}{key}{self.suffix}"
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return answer.read()

    def ids(self):
        """The ids of its processes."""
        found, fresh = [], [self.process.pid]
        while fresh:
            found += fresh
            fresh = [child for parent in fresh for child in children(parent)]
        return found

    def cpu(self):
        """Seconds of CPU time so far of all its processes, and how much of that in the kernel."""
        times = [[int(ticks) / TICKS_A_SECOND for ticks in stat(pid)[11:13]] for pid in self.ids()]
        return sum(user + kernel for user, kernel in times), sum(kernel for _, kernel in times)

    def exact_cpu(self):
        """Seconds of CPU time so far of all its processes, by clocks that do not count in ticks."""
        return sum(time.clock_gettime(cpu_clock(pid)) for pid in self.ids())

    def memory(self):
        """Bytes in memory (VmRSS) of all its processes."""
        status = (Path(f"/proc/{pid}/status").read_text() for pid in self.ids())
        return sum(int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024 for text in status)

    def wait_until(self, is_ready, seconds=20):
        """Waits until `is_ready` returns true; an exception until then means that it is not ready yet."""
        end = time.monotonic() + seconds
        while True:
            try:
                if is_ready():
                    return self
            except (OSError, ValueError):
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise Failed(f"{self.name} does not serve: {self.log.read_text()[-500:]}")
            time.sleep(0.05)

    def stop(self):
        for act in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                os.killpg(self.process.pid, act)
                try:
                    self.process.wait(10)
                except subprocess.TimeoutExpired:
                    continue
        return self.process.returncode


class Pair:
    """Two servers as one; or a single one, given twice."""

    def __init__(self, servers):
        self.servers = set(servers)

    def cpu(self):
        return [sum(times) for times in zip(*(server.cpu() for server in self.servers))]

    def memory(self):
        return sum(server.memory() for server in self.servers)


def cpu_clock(pid):
    """The clock of the CPU time of a process, as clock_getcpuclockid(3) finds it on Linux."""
    return ~pid << 3 | 2


@contextmanager
def pinned(cores):
    """Keeps this program on these cores, while it is a load itself."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_open_files():
    """Lets this process open as many files as 50,000 Redis clients may need of the proxy, where the system allows it; returns
    how many it may open."""
    wanted = 131_072
    for hard in (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
            break
        except (ValueError, OSError):
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def children(pid):
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def stat(pid):
    """The fields of /proc/PID/stat from the third on; the second may have spaces in it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
