"""The keys that are read: written to Redis, and read once over a connection with Redis's own protocol.

A key is `key:` and twelve digits, as in redis-benchmark, so 16 bytes. A value begins with the digits of its key: a server that
keeps equal strings once, as LuaJIT does, would have only one.
"""

import re
import socket

# The number of reads that are sent before their replies are awaited.
BATCH = 1000


def key(number):
    return f"key:{number:012d}"


def value(number, size):
    """The value of a key."""
    return (b"%012d" % number + b"x" * size)[:size]


class Connection:
    """A connection to Redis, or to a server with the same protocol."""

    def __init__(self, port, seconds=120):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.stream = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.socket.close()

    def ask(self, *words):
        """The reply to one command; an error is raised."""
        self.socket.sendall(encode(*words))
        kind, rest = (line := self.stream.readline())[:1], line[1:-2]
        if kind == b"-" or not line:
            raise ValueError(line.decode() or "the connection was closed")
        if kind != b"$":
            return rest
        return None if rest == b"-1" else self.stream.read(int(rest) + 2)[:-2]

    def read_all(self, numbers, size):
        """Reads each of the keys; all values are of `size` bytes, as `write` writes them."""
        for first in range(numbers.start, numbers.stop, BATCH):
            batch = range(first, min(first + BATCH, numbers.stop))
            self.socket.sendall(b"".join(encode("GET", key(number)) for number in batch))
            expected = b"".join(b"$%d\r\n%s\r\n" % (size, value(number, size)) for number in batch)
            answers = self.stream.read(len(expected))
            if answers != expected:
                error = re.search(rb"-[A-Z][^\r]*", answers)
                raise ValueError(f"reads of {batch} were answered {error[0] if error else answers[:80]}")


def encode(*words):
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


# Many keys at once: this program would need longer to write them than Redis.
WRITE = """
local fill = string.rep('x', ARGV[3])
for number = ARGV[1], ARGV[2] - 1 do
  local digits = string.format('%012d', number)
  redis.call('SET', 'key:' .. digits, (digits .. fill):sub(1, ARGV[3]))
end
"""


# Hashes of 20 fields of 32 bytes, sorted sets of 100 members and sets of 50.
WRITE_COLLECTIONS = """
local value = string.rep('x', 32)
for number = ARGV[1], ARGV[2] - 1 do
  local name = string.format('%012d', number)
  for field = 1, 20 do redis.call('HSET', 'hash:' .. name, string.format('field:%02d', field), value) end
  for member = 1, 100 do redis.call('ZADD', 'zset:' .. name, member, string.format('member:%03d', member)) end
  for member = 1, 50 do redis.call('SADD', 'set:' .. name, string.format('member:%03d', member)) end
end
"""


def write_collections(port, count):
    """Writes `count` hashes, sorted sets and sets."""
    with Connection(port) as redis:
        for first in range(0, count, 1000):
            redis.ask("EVAL", WRITE_COLLECTIONS, 0, first, min(first + 1000, count))


def raw_reply(port, words):
    """The bytes of the reply to a command."""
    with Connection(port) as redis:
        redis.socket.sendall(encode(*words) + encode("PING"))
        received = b""
        while not received.endswith(PONG):
            part = redis.stream.read1()
            if not part:
                raise ValueError("the connection was closed")
            received += part
        return received[: -len(PONG)]


PONG = b"+PONG\r\n"


def write_memcached(port, numbers, size):
    """Writes values of `size` bytes to the keys of these numbers, with memcached's meta commands."""
    with Connection(port) as memcached:
        for first in range(numbers.start, numbers.stop, BATCH):
            batch = range(first, min(first + BATCH, numbers.stop))
            sets = (b"ms %s %d q\r\n%s\r\n" % (key(number).encode(), size, value(number, size)) for number in batch)
            memcached.socket.sendall(b"".join(sets) + b"mn\r\n")
            # It answers a quiet command only if that fails.
            answer = memcached.stream.readline()
            if answer != b"MN\r\n":
                raise ValueError(f"writes of {batch} were answered {answer[:80]}")


def write(port, numbers, size):
    """Writes values of `size` bytes to the keys of these numbers."""
    with Connection(port) as redis:
        for first in range(numbers.start, numbers.stop, 100_000):
            redis.ask("EVAL", WRITE, 0, first, min(first + 100_000, numbers.stop), size)
