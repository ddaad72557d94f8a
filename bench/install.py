"""Installs the measured programs that are missing.

Debian's packages are unpacked under target/tools/bench and not installed, so no service is started and the machine does
not change. Python's packages go into a separate environment there. A program that cannot be had is left out of the
measurement, and the report lists it.
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
    "nginx": ["nginx", "libnginx-mod-http-lua", "lua-resty-lrucache", "lua-nginx-redis"],
    "nutcracker": ["nutcracker"],
}
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
    # nginx counts only with its module, which the nginx of the machine may lack.
    return program(name) and (name != "nginx" or any(ROOT.glob("usr/**/ngx_http_lua_module.so")))


def quietly(*command):
    """Runs a command with its output in the log; returns whether it succeeded."""
    with LOG.open("a") as log:
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=300).returncode == 0


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


def install():
    """Installs every missing program that can be had."""
    ROOT.mkdir(parents=True, exist_ok=True)
    LOG.write_text("")
    missing = {tuple(packages) for name, packages in PACKAGES.items() if not is_there(name)}
    if missing and shutil.which("apt-get") and apt("update"):
        for packages in sorted(missing):
            unpack(packages)
    install_python()
    lacking = [name for name in NEEDED if not program(name)]
    if lacking:
        sys.exit(f"This needs {', '.join(lacking)}; they could not be had here (the log: {LOG}).")
