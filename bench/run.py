"""Measures this proxy beside its alternatives, and writes bench/RESULTS.md.

Run by `make bench`. ROUNDS is the number of turns of each contestant in a case, QUICK=1 makes everything short, CASES
names some of the cases. A case is repeated until two runs of all rounds agree, RUNS times at most. WITHOUT names programs to
leave out; any other contestant that does not start fails the run. A quick, partial or failed measurement goes to
target/tools/bench/RESULTS.md instead. Every step has a time limit, and every process is stopped, however the run ends.
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
from cases import CASES, NEEDS, Bench
from contestants import PROGRAMS
from processes import Failed
from quiet import Watch


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
    without = install.without(os.environ.get("WITHOUT", ""))
    prepare(names, without)
    bench = Bench(
        rounds=positive("ROUNDS", 1 if quick else 5),
        seconds=1,
        is_quick=quick,
        runs=positive("RUNS", 1 if quick else 3),
        without=frozenset(without),
        watch=Watch(0.1 if quick else 0.5),
    )
    began = time.monotonic()
    for name in names:
        install.say(f"{name}: {CASES[name].__doc__}")
        try:
            CASES[name](bench)
        except (Failed, OSError, ValueError, subprocess.TimeoutExpired) as error:
            bench.leave_out(name, "what is missing of this case", error)
    # A measurement without one of its contestants does not replace one that has them all.
    whole = not quick and names == list(CASES) and not bench.failures
    path = (install.PROJECT / "bench" if whole else install.TOOLS) / "RESULTS.md"
    (install.TOOLS / "measurements.json").write_text(json.dumps([asdict(record) for record in bench.records], indent=1))
    path.write_text(report.text(bench, time.monotonic() - began))
    install.say(f"Written to {path}")
    sys.exit(verdict(bench))


def prepare(names, without):
    """Installs and builds what these cases need; ends the run if a program cannot be had that WITHOUT does not name."""
    needed = sorted({program for name in names for program in NEEDS.get(name, ())})
    install.install([program for program in needed if program not in without])
    missing = install.missing(needed, without)
    if missing:
        sys.exit(f"These cannot be had here: {', '.join(missing)} (the log: {install.LOG}). {hint(missing)}")
    build()


def verdict(bench):
    """The exit code: a sentence if a contestant did not start, or this proxy or the limit failed."""
    if not bench.failures:
        return 0
    failed = ", ".join(f"{name} (in {case})" for case, name in dict.fromkeys(bench.failures))
    return f"Failed: {failed}. {hint(sorted({PROGRAMS[name] for _, name in bench.failures if name in PROGRAMS}))}"


def hint(programs):
    return f"WITHOUT='{' '.join(programs)}' measures without them." if programs else ""


def positive(variable, default):
    word = os.environ.get(variable) or str(default)
    if not word.isdigit() or word == "0":
        sys.exit(f"{variable}={word} is not a number above 0.")
    return int(word)


def build():
    install.say("Building the proxy, the client for it, the limit and the bridge (cargo build --release).")
    command = ["cargo", "build", "--release", "--locked", "--bin", "redis-proxy"]
    command += [word for example in ("load", "bare", "bridge") for word in ("--example", example)]
    if subprocess.run(command, cwd=install.PROJECT).returncode != 0:
        sys.exit("The proxy could not be built.")


if __name__ == "__main__":
    # An exception, so that everything is stopped on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    main()
