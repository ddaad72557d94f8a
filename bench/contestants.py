"""The contestants, and how each is configured and started.

All serve from one core, with room for the same number of keys, and without logs of reads, except those with their default
settings. Those that serve HTTP have `path`, the prefix of a key.
"""

import json
import os
import shutil
import socket
import ssl
import subprocess
import urllib.request
from pathlib import Path

import install
from processes import SERVING, Failed, Server, free_port
from redis_keys import Connection, encode, key

CAPACITY = 100_000
PROXY = "this proxy"
NGINX_FIXED = "nginx return 200"
NGINX_LRUCACHE = "nginx + lrucache"
NGINX_FILE, NGINX_SENDFILE = "nginx, a file, sendfile off", "nginx, a file, sendfile on"
WEBDIS = "webdis, one thread, no log"
WEBDIS_AS_PACKAGED = "webdis, as Debian packages it"
FASTAPI = "FastAPI, no access log"
FASTAPI_AS_STARTED = "FastAPI, as uvicorn starts it"
FASTAPI_UVLOOP = "FastAPI, uvloop, httptools, no access log"
REDIS = "redis-server"
TWEMPROXY = "twemproxy"
MEMCACHED = "memcached, meta commands"
VALKEY = "valkey-server"
# The least that a server costs, as bare.rs explains; the second forwards to a Redis.
LIMIT = "the limit: a bare epoll loop"
LIMIT_OF_FORWARDING = "the limit: a bare loop that forwards"
# A bridge from HTTP to Redis with a round trip a command, as bridge.rs explains.
BRIDGE = "bridge, one round trip a command"
# The program of each contestant that WITHOUT can leave out.
PROGRAMS = {
    BRIDGE: "bridge", FASTAPI: "fastapi", FASTAPI_AS_STARTED: "fastapi", FASTAPI_UVLOOP: "fastapi", MEMCACHED: "memcached",
    NGINX_FILE: "nginx", NGINX_FIXED: "nginx", NGINX_LRUCACHE: "nginx", NGINX_SENDFILE: "nginx", TWEMPROXY: "twemproxy",
    VALKEY: "valkey", WEBDIS: "webdis", WEBDIS_AS_PACKAGED: "webdis",
}
# The directory with the files of nginx: the values, each under its key.
FILES = "files"
# The REST front end of this proxy.
REST_PATH, REST_TOKEN = "/rest", "token-of-the-bench"


def answers_http(server, size):
    return len(server.get(key(0), 2)) == size


def answers_resp(server):
    with Connection(server.port, 2) as redis:
        return redis.ask("GET", key(0)) is not None


def start_redis(directory, cores=SERVING, name=REDIS):
    """A redis-server, or a valkey-server, empty, with room in its tracking table for every key."""
    port = free_port()
    program = valkey_server() if name == VALKEY else install.program("redis-server")
    command = [program, "--bind", "127.0.0.1", "--port", port, "--dir", directory]
    command += ["--save", "", "--appendonly", "no", "--maxclients", 15000, "--tracking-table-max-keys", 0]
    server = Server(name, command, port, directory, cores)

    def is_up():
        with Connection(port, 2) as redis:
            return redis.ask("PING") == b"PONG"

    return server.wait_until(is_up)


def valkey_server():
    """The program that VALKEY_SERVER names, or valkey-server on PATH; None without either. No package is unpacked for it."""
    return os.environ.get("VALKEY_SERVER") or shutil.which("valkey-server")


def start_memcached(directory, threads=1, cores=SERVING):
    port = free_port()
    command = [install.program("memcached"), "-l", "127.0.0.1", "-p", port, "-U", 0, "-t", threads, "-m", 1024, "-c", 4096]
    # As root it wants a user, and the files here belong to root.
    command += ["-u", "root"] if os.geteuid() == 0 else []
    server = Server(MEMCACHED, command, port, directory, cores)

    def is_up():
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"mn\r\n")
            return connection.recv(16).startswith(b"MN")

    return server.wait_until(is_up)


BARE = install.TARGET / "release" / "examples" / "bare"


def start_bare(directory, requests, reply, cores=SERVING):
    """The limit: every request, counted by its length or by its "blank" line, is answered with `reply`."""
    port = free_port()
    file = directory / f"reply-{port}"
    file.write_bytes(reply)
    server = Server(LIMIT, [BARE, "answer", port, requests, file], port, directory, cores)
    server.path = "/keys/"
    return server.wait_until(lambda: socket.create_connection(("127.0.0.1", port), timeout=2).close() is None)


def start_bare_resp(directory, size, cores=SERVING):
    return start_bare(directory, len(encode("GET", key(0))), resp_reply(size), cores)


def start_bare_mget(directory, size, keys):
    """The limit of an MGET of so many keys."""
    reply = b"*%d\r\n" % keys + resp_reply(size) * keys
    return start_bare(directory, len(encode("MGET", *[key(0)] * keys)), reply)


def start_bare_http(directory, body, cores=SERVING):
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    return start_bare(directory, "blank", head + body, cores)


def start_bare_forward(directory, origin, size):
    port = free_port()
    command = [BARE, "forward", port, len(encode("GET", key(0))), len(resp_reply(size)), origin]
    server = Server(LIMIT_OF_FORWARDING, command, port, directory, SERVING)
    return server.wait_until(lambda: answers_resp(server))


def resp_reply(size):
    return b"$%d\r\n%s\r\n" % (size, b"x" * size)


def string_of_length(length):
    """A reply of about this length. It is no array, for which redis-benchmark would take the reply to its CONFIG."""
    return resp_reply(max(0, length - len(f"${length}\r\n\r\n")))


def start_proxy(
    directory, origin, cores=SERVING, workers=1, capacity=CAPACITY, connections=(2000, 2000), size=0, certificate=None
):
    """This proxy; `port` serves HTTP and `resp_port` Redis clients, each at most `connections`, with TLS if there is a
    certificate. It keeps values of `size`."""
    port, resp_port = free_port(), free_port()
    tokens = directory / f"rest-tokens-{port}"
    tokens.write_text(REST_TOKEN + "\n")
    command = [install.TARGET / "release" / "redis-proxy", "--redis_host", "127.0.0.1", "--redis_port", origin]
    command += ["--proxy_host", "127.0.0.1", "--proxy_port", port, "--ttl", "24h", "--k", capacity]
    variables = {
        "REDIS_PROXY_DAEMON__WORKER_THREADS": str(workers),
        "REDIS_PROXY_RESP__LISTEN": f"127.0.0.1:{resp_port}",
        "REDIS_PROXY_HTTP__MAX_CONNECTIONS": str(connections[0]),
        "REDIS_PROXY_HTTP__IDLE_TIMEOUT": "1h",
        "REDIS_PROXY_RESP__MAX_CONNECTIONS": str(connections[1]),
        "REDIS_PROXY_REST__PATH": REST_PATH,
        "REDIS_PROXY_REST__TOKENS_FILE": str(tokens),
        **room_for(size, capacity),
        **with_tls(certificate),
    }
    server = Server(PROXY, command, port, directory, cores, variables)
    server.resp_port, server.path = resp_port, "/keys/"
    ready = f"{'https' if certificate else 'http'}://127.0.0.1:{port}/readyz"
    return server.wait_until(lambda: urllib.request.urlopen(ready, timeout=2, context=trusting()).status == 200)


# The largest values that the proxy keeps with its defaults.
KEPT_BY_DEFAULT = 16 << 20


# More bytes than an entry of 100 bytes takes, and the keys for which the bound on memory by default has room.
ENTRY, KEYS_BY_DEFAULT = 400, 500_000


def room_for(size, capacity):
    """The settings with which the proxy keeps so many values of 100 bytes, or a few of this size; none where its defaults do."""
    if size <= KEPT_BY_DEFAULT:
        return {"REDIS_PROXY_CACHE__MAX_MEMORY": str(ENTRY * capacity)} if capacity > KEYS_BY_DEFAULT else {}
    return {
        # It keeps no value above a tenth of this.
        "REDIS_PROXY_CACHE__MAX_MEMORY": str(20 * size),
        # Room for every reader at once, otherwise a value that one of them still takes is fetched again.
        "REDIS_PROXY_CACHE__MAX_IN_FLIGHT": str(10 * size),
        "REDIS_PROXY_REDIS__RESPONSE_TIMEOUT": "30s",
    }


def with_tls(certificate):
    """The settings with which both front ends have this certificate; none without one."""
    if not certificate:
        return {}
    parts = {"CERT": certificate, "KEY": key_of(certificate)}
    return {f"REDIS_PROXY_{end}__TLS_{part}_FILE": str(file) for end in ("HTTP", "RESP") for part, file in parts.items()}


def certificate(directory):
    """A certificate that signs itself, with a key on P-256, as most servers on the web have."""
    file = directory / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=bench", "-days", "1", "-keyout", key_of(file), "-out", file]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise Failed(f"openssl makes no certificate: {done.stderr[-200:]}")
    return file


def key_of(certificate):
    return certificate.with_name("key.pem")


def trusting():
    """TLS that accepts every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def start_bridge(directory, origin):
    port = free_port()
    program = install.TARGET / "release" / "examples" / "bridge"
    server = Server(BRIDGE, [program, port, origin], port, directory, SERVING)

    def is_up():
        url, body = f"http://127.0.0.1:{port}/pipeline", json.dumps([["GET", key(0)]]).encode()
        with urllib.request.urlopen(url, body, timeout=2) as answer:
            return len(json.load(answer)) == 1

    return server.wait_until(is_up)


def start_nginx(name, directory, origin, size, cores=SERVING, workers=1):
    port = free_port()
    # Its configuration has room for no longer value.
    fixed = "x" * min(size, 1000)
    values = {"ROOT": install.ROOT, "PORT": port, "ORIGIN": origin, "CAPACITY": CAPACITY, "VALUE": fixed}
    values |= {"WORKERS": workers, "FILES": directory / FILES}
    text = (install.PROJECT / "bench" / "nginx.conf").read_text()
    for name_of_value, value in values.items():
        text = text.replace(f"@{name_of_value}@", str(value))
    configuration = directory / f"nginx-{port}.conf"
    configuration.write_text(text)
    server = Server(name, [install.program("nginx"), "-p", directory, "-c", configuration], port, directory, cores)
    server.path = {NGINX_FIXED: "/fixed/", NGINX_FILE: "/file/", NGINX_SENDFILE: "/sendfile/"}.get(name, "/keys/")
    return server


def start_webdis(name, directory, origin):
    """With one thread and no log, or with its package's own settings, except its address, its Redis, the foreground mode and
    the path of its log."""
    port = free_port()
    settings = {"threads": 1, "verbosity": 0, "database": 0}
    if name == WEBDIS_AS_PACKAGED:
        settings = json.loads(packaged_webdis().read_text())
    settings |= {"redis_host": "127.0.0.1", "redis_port": origin, "http_host": "127.0.0.1", "http_port": port}
    settings |= {"daemonize": False, "logfile": f"{directory}/webdis-{port}.log"}
    configuration = directory / f"webdis-{port}.json"
    configuration.write_text(json.dumps(settings))
    server = Server(name, [install.program("webdis"), configuration], port, directory, SERVING)
    server.path, server.suffix = "/GET/", ".txt"
    return server


def packaged_webdis():
    """The settings of the webdis package, as its unit starts it.

    Those of Debian's webdis 0.1.9+dfsg-1.1 that matter here are "threads": 2, which share the one core then, and
    "verbosity": 3, which is all but the lines about each read; "acl" has two rules; there is no "pool_size".
    """
    paths = (root / "etc" / "webdis" / "webdis.json" for root in (install.ROOT, Path("/")))
    found = [path for path in paths if path.exists()]
    if not found:
        raise Failed("the settings of webdis's package are not there")
    return found[0]


# The flags of uvicorn. By default it writes a line of each read to standard output, which is a file
# here (uvicorn 0.54.0, config.py: access_log=True, LOGGING_CONFIG with the level INFO). Its default
# for loop and HTTP, "auto", is asyncio and h11 if only fastapi and uvicorn are installed. They are
# named because the others are installed as well.
UVICORN = {
    FASTAPI_AS_STARTED: ["--loop", "asyncio", "--http", "h11"],
    FASTAPI: ["--loop", "asyncio", "--http", "h11", "--no-access-log", "--log-level", "warning"],
    FASTAPI_UVLOOP: ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"],
}


def start_fastapi(name, directory, origin):
    port = free_port()
    command = [install.PYTHON, "-m", "uvicorn", "--app-dir", install.PROJECT / "bench", "fastapi_proxy:app"]
    command += ["--host", "127.0.0.1", "--port", port, *UVICORN[name]]
    variables = {"ORIGIN": str(origin), "CAPACITY": str(CAPACITY), "PYTHONDONTWRITEBYTECODE": "1"}
    server = Server(name, command, port, directory, SERVING, variables)
    server.path = "/keys/"
    return server


def start_twemproxy(directory, origin):
    """twemproxy, which forwards every read over one connection."""
    port, statistics = free_port(), free_port()
    configuration = directory / f"nutcracker-{port}.yml"
    configuration.write_text(
        f"pool:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: modula\n  redis: true\n"
        f"  backlog: 4096\n  server_connections: 1\n  servers:\n   - 127.0.0.1:{origin}:1\n"
    )
    command = [install.program("nutcracker"), "-c", configuration, "-o", directory / "nutcracker.log"]
    command += ["-s", statistics, "-a", "127.0.0.1"]
    server = Server(TWEMPROXY, command, port, directory, SERVING)
    return server.wait_until(lambda: answers_resp(server))


def start_http(name, directory, origin, size):
    """The contestant of this name, after a check of its replies; `size` is that of its values."""
    if name == PROXY:
        server = start_proxy(directory, origin, size=size)
    elif name == LIMIT:
        server = start_bare_http(directory, b"x" * size)
    elif PROGRAMS.get(name) == "nginx":
        server = start_nginx(name, directory, origin, size)
    elif name in (WEBDIS, WEBDIS_AS_PACKAGED):
        server = start_webdis(name, directory, origin)
    else:
        server = start_fastapi(name, directory, origin)
    return server.wait_until(lambda: answers_http(server, size))
