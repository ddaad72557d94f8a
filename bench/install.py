"""Installs the measured programs that are missing.

Debian's packages are unpacked under target/tools/bench and not installed, so no service is started and the machine does
not change. Python's packages go into a separate environment there. The rule: a program that cannot be had fails the run,
unless WITHOUT names it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target")).resolve()
TOOLS = TARGET / "tools" / "bench"
ROOT = TOOLS / "root"
PYTHON = TOOLS / "python" / "bin" / "python"
LOG = TOOLS / "install.log"

# Programs, and the packages that contain them and the libraries they load.
PACKAGES = {
    "redis-server": ["redis-server", "redis-tools"],
    "redis-benchmark": ["redis-server", "redis-tools"],
    "wrk": ["wrk"],
    "webdis": ["webdis"],
    # With every module that its configuration loads: apt downloads no dependency that the machine has already.
    "nginx": [
        "nginx", "libnginx-mod-http-ndk", "libnginx-mod-http-lua", "lua-resty-core", "lua-resty-lrucache", "lua-nginx-redis",
    ],
    "nutcracker": ["nutcracker"],
    "memcached": ["memcached"],
}
# What nginx.conf loads from the unpacked packages: the machine's own may be of another nginx.
NGINX_FILES = [
    "usr/lib/nginx/modules/ndk_http_module.so",
    "usr/lib/nginx/modules/ngx_http_lua_module.so",
    "usr/share/lua/5.1/resty/core.lua",
    "usr/share/lua/5.1/resty/lrucache.lua",
    "usr/share/lua/5.1/nginx/redis.lua",
]
# The names by which WITHOUT leaves programs out of the measurement.
NAMES = ["bridge", "fastapi", "memcached", "nginx", "twemproxy", "valkey", "webdis"]
PYTHON_PACKAGES = ["fastapi", "uvicorn[standard]", "cachetools", "redis"]
# Without these nothing can be measured at all.
NEEDED = ["redis-server", "redis-benchmark", "wrk"]


def say(text):
    print(text, file=sys.stderr, flush=True)


def program(name):
    """The path of a program: the unpacked one, or the machine's own; None if there is neither."""
    directories = [str(ROOT / part) for part in ("usr/bin", "usr/sbin")]
    return shutil.which(name, path=":".join(directories + [os.environ["PATH"], "/usr/sbin"]))


def environment():
    """The variables with which unpacked programs find the libraries unpacked beside them."""
    libraries = [str(path) for path in (*ROOT.glob("usr/lib/*-linux-*"), *ROOT.glob("lib/*-linux-*"))]
    before = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries + ([before] if before else []))}


def is_there(name):
    """Whether the program can be started; nginx counts only with all that its configuration loads."""
    if name == "fastapi":
        return PYTHON.exists()
    if name == "nginx":
        return all((ROOT / file).exists() for file in ["usr/sbin/nginx", *NGINX_FILES]) and nginx_loads()
    return bool(program({"twemproxy": "nutcracker"}.get(name, name)))


def nginx_loads():
    """Whether nginx finds the libraries of its modules: those that the machine had when it was unpacked may be gone."""
    configuration = TOOLS / "nginx-test.conf"
    modules = "".join(f"load_module {ROOT / file};\n" for file in NGINX_FILES if file.endswith(".so"))
    configuration.write_text(f"{modules}pid nginx-test.pid;\nerror_log stderr;\nevents {{}}\n")
    return quietly(program("nginx"), "-t", "-p", str(TOOLS), "-c", str(configuration), env=environment())


def without(words):
    """The names in WITHOUT, after a check of them."""
    names = words.replace(",", " ").split()
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.exit(f"WITHOUT: there is no {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return set(names)


def missing(names, left_out):
    """Those of these programs that are not there although WITHOUT does not name them."""
    return [name for name in names if name not in left_out and not is_there(name)]


def quietly(*command, env=None):
    """Runs a command with its output in the log; returns whether it succeeded."""
    with LOG.open("a") as log:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=300, env=env)
    return done.returncode == 0


def apt(*arguments):
    """apt with private lists and downloads, which needs no root and leaves the machine's own as they are."""
    state, cache = TOOLS / "apt" / "state", TOOLS / "apt" / "cache"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::State": state,
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": cache,
        "Dir::Log": TOOLS / "apt",
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody"),
        "APT::Keep-Downloaded-Packages": "true",
        "Debug::NoLocking": "true",
    }
    # A rule of the machine to delete downloads must not apply here.
    options["DPkg::Post-Invoke"] = options["APT::Update::Post-Invoke"] = ""
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return quietly("apt-get", "-q", "-y", *words, *arguments)


def unpack(packages):
    say(f"Unpacking {', '.join(packages)} under {ROOT}; nothing is installed.")
    if not apt("install", "--download-only", "--no-install-recommends", "--reinstall", *packages):
        return
    for package in (TOOLS / "apt" / "cache" / "archives").glob("*.deb"):
        quietly("dpkg", "-x", str(package), str(ROOT))


def install_python():
    """Creates an environment with the packages of the FastAPI proxy; returns whether there is one."""
    if PYTHON.exists() and quietly(str(PYTHON), "-c", "import fastapi, uvicorn, uvloop, httptools, cachetools, redis"):
        return
    say(f"Installing {', '.join(PYTHON_PACKAGES)} under {PYTHON.parent.parent}.")
    shutil.rmtree(PYTHON.parent.parent, ignore_errors=True)
    if quietly(sys.executable, "-m", "venv", str(PYTHON.parent.parent)):
        quietly(str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *PYTHON_PACKAGES)


def install(names):
    """Installs the missing programs that can be had, of these and of those that every measurement needs."""
    ROOT.mkdir(parents=True, exist_ok=True)
    LOG.write_text("")
    wanted = [{"twemproxy": "nutcracker"}.get(name, name) for name in names] + NEEDED
    packages_of = {tuple(PACKAGES[name]) for name in wanted if name in PACKAGES and not is_there(name)}
    if packages_of and shutil.which("apt-get") and apt("update"):
        for packages in sorted(packages_of):
            unpack(packages)
    if "fastapi" in names:
        install_python()
    lacking = [name for name in NEEDED if not program(name)]
    if lacking:
        sys.exit(f"This needs {', '.join(lacking)}; they could not be had here (the log: {LOG}).")
