"""Measures this proxy beside its alternatives, and writes bench/RESULTS.md.

Run by `make bench`. ROUNDS is the number of turns of each contestant in a case, QUICK=1 makes everything short, CASES
names some of the cases. A quick or partial measurement goes to target/tools/bench/RESULTS.md instead. Every step has a time
limit, and every process is stopped, however the run ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import install
import policies
import report
from cases import CASES, Bench
from processes import Failed


def main():
    quick = os.environ.get("QUICK", "") not in ("", "0")
    names = os.environ.get("CASES", "").split() or list(CASES)
    if names == ["policies"]:
        # It needs no server and no second program.
        policies.run()
        return
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"CASES: there is no {', '.join(unknown)}; there are {', '.join(CASES)}, and policies by itself")
    bench = Bench(rounds=rounds(quick), seconds=1 if quick else 2, is_quick=quick)
    install.install()
    build()
    began = time.monotonic()
    load_before = os.getloadavg()[0]
    for name in names:
        install.say(f"{name}: {CASES[name].__doc__}")
        try:
            CASES[name](bench)
        except (Failed, OSError, ValueError, subprocess.TimeoutExpired) as error:
            bench.leave_out(name, "what is missing of this case", error)
    whole = not quick and names == list(CASES)
    path = (install.PROJECT / "bench" if whole else install.TOOLS) / "RESULTS.md"
    (install.TOOLS / "measurements.json").write_text(json.dumps([asdict(record) for record in bench.records], indent=1))
    path.write_text(report.text(bench, time.monotonic() - began, load_before))
    install.say(f"Written to {path}")


def rounds(quick):
    word = os.environ.get("ROUNDS") or ("1" if quick else "5")
    if not word.isdigit() or word == "0":
        sys.exit(f"ROUNDS={word} is not a number of rounds.")
    return int(word)


def build():
    install.say("Building the proxy, the client for it and the bridge (cargo build --release).")
    command = ["cargo", "build", "--release", "--locked", "--bin", "redis-proxy", "--example", "load", "--example", "bridge"]
    if subprocess.run(command, cwd=install.PROJECT).returncode != 0:
        sys.exit("The proxy could not be built.")


if __name__ == "__main__":
    # An exception, so that everything is stopped on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    main()
