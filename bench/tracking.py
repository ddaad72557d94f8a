#!/usr/bin/env python3
"""The cost of client tracking for Redis: memory for each key and client of the tracking table, and CPU for each write.

Starts a redis-server on a unix socket and opens plain connections with CLIENT TRACKING ON, like a proxy's connection.
Prints one table for docs/src/deployment/several-proxies.md. The rule it keeps: CPU is Redis's own (INFO cpu), so other
load of the machine matters little; every write is of a key that every connection has read.

Usage: bench/tracking.py [redis-server]
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time


class Connection:
    """One connection, in RESP3."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.socket.connect(path)
                break
            except BlockingIOError:
                time.sleep(0.01)
        self.file = self.socket.makefile("rb", 1 << 16)
        self.ask("HELLO", "3")

    def send(self, *commands):
        words = [b"*%d\r\n%s" % (len(c), b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in map(str.encode, c))) for c in commands]
        self.socket.sendall(b"".join(words))

    def answer(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind in b"$=":
            length = int(rest)
            return None if length < 0 else self.file.read(length + 2)[:-2]
        if kind in b"*~>":
            value = [self.answer() for _ in range(int(rest))]
            return self.answer() if kind == b">" else value
        if kind == b"%":
            return [self.answer() for _ in range(2 * int(rest))]
        return rest

    def ask(self, *words):
        self.send(words)
        return self.answer()

    def info(self, section):
        lines = self.ask("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def cpu(self):
        info = self.info("cpu")
        return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])

    def memory(self):
        return int(self.info("memory")["used_memory"])


def drain(connections, stop):
    """Reads and drops the pushes, so that Redis need not buffer them."""
    import select

    poll = select.epoll()
    by_number = {c.socket.fileno(): c.socket for c in connections}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    while not stop.is_set():
        for number, _ in poll.poll(0.05):
            by_number[number].recv(1 << 16)


def pipelined(connection, commands, at_once=500):
    for begin in range(0, len(commands), at_once):
        part = commands[begin : begin + at_once]
        connection.send(*part)
        for _ in part:
            connection.answer()


def memory_per_key(control, path, keys, clients, length):
    """Bytes of Redis for each key of the tracking table, and for each client of a key."""
    names = [f"{number:0{length}}" for number in range(keys)]
    before = control.memory()
    told = []
    for number in range(clients):
        reader = Connection(path)
        reader.ask("CLIENT", "TRACKING", "ON")
        told.append(reader)
        own = control.memory()
        pipelined(reader, [("GET", name) for name in names])
        # Redis returns the client's own buffers when it is quiet.
        time.sleep(1.5)
        grown = control.memory() - own
        info = control.info("stats")
        print(
            f"| {length} | {number + 1} | {info['tracking_total_keys']} | {info['tracking_total_items']} "
            f"| {grown / keys:.1f} |",
            flush=True,
        )
    for reader in told:
        reader.socket.close()
    control.ask("FLUSHALL")
    return before


def cpu_per_write(control, path, clients, writes):
    """Microseconds of Redis's CPU for a write of a key that all clients have read, without the reads."""
    connections = []
    for _ in range(clients):
        connection = Connection(path)
        connection.ask("CLIENT", "TRACKING", "ON")
        connections.append(connection)
    names = [f"key:{number}" for number in range(writes)]
    for connection in connections:
        pipelined(connection, [("GET", name) for name in names])
    stop = threading.Event()
    reader = threading.Thread(target=drain, args=(connections, stop)) if connections else None
    if reader:
        reader.start()
    before = control.cpu()
    began = time.time()
    # One at a time, because writes come from many clients: no pipeline makes the pushes cheaper.
    for name in names:
        control.ask("SET", name, "value")
    control.ask("PING")
    took, cpu = time.time() - began, control.cpu() - before
    stop.set()
    if reader:
        reader.join()
    for connection in connections:
        connection.socket.close()
    control.ask("FLUSHALL")
    return cpu / writes * 1e6, took / writes * 1e6


def main():
    server = sys.argv[1] if len(sys.argv) > 1 else "redis-server"
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "redis.sock")
        arguments = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--maxclients", "3000"]
        arguments += ["--tracking-table-max-keys", "10000000"]
        redis = subprocess.Popen([server, *arguments], stdout=subprocess.DEVNULL, cwd=directory)
        try:
            while not os.path.exists(path):
                time.sleep(0.02)
            control = Connection(path)
            info = control.info("server")
            print(f"{info.get('valkey_version', info['redis_version'])}\n")
            print("| key, bytes | clients | keys | items | bytes a key for this client |\n|---|---|---|---|---|")
            memory_per_key(control, path, 200_000, 3, 16)
            memory_per_key(control, path, 200_000, 2, 64)
            print("\n| connections told | Redis's CPU for a write, us | a write took, us |\n|---|---|---|")
            for clients, writes in [(0, 20_000), (1, 20_000), (3, 20_000), (10, 10_000), (100, 2000), (1000, 300)]:
                cpu, took = cpu_per_write(control, path, clients, writes)
                print(f"| {clients} | {cpu:.1f} | {took:.1f} |", flush=True)
        finally:
            redis.terminate()
            redis.wait()


main()
