"""Plays traces of reads through the real cache under each of its policies: `make bench CASES=policies TRACES=DIRECTORY`.

A trace is a text file, compressed with xz or not, with one read a line: the key as a number, and perhaps the size of its
value in bytes. A trace with sizes is played with bounds on memory too. Without TRACES, three are
generated: reads by Zipf's law, the same with scans in between, and a loop. The table goes to bench/POLICIES.md and the plot
to docs/src/internals/policies.svg if TRACES is given; otherwise both go beside the build.
"""

import bisect
import itertools
import lzma
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import install

# The numbers of entries at which a known trace is played. Another one is played with these parts of its keys.
SIZES = {
    "web12": (500, 2000), "web07": (1000, 4000), "multi3": (500, 2000), "2_pools": (500, 2000), "sprite": (200, 800),
    "scarab-recs": (5000, 25000), "loop": (500, 900), "orm-busy": (1000, 10000), "orm-night": (1000, 10000),
    "w106": (5000, 50000), "cdn-sized": (500, 4000),
}  # fmt: skip
PARTS = (0.02, 0.1)
# The bounds on memory for a trace with sizes.
MEMORY = ("8MiB", "32MiB", "128MiB")
POLICIES = ("LRU", "SIEVE", "S3-FIFO", "optimal", "lru", "tinylfu")
# The proxy's own policies, in the plot.
OWN = ("lru", "tinylfu")


def run():
    program = build()
    given = os.environ.get("TRACES")
    with tempfile.TemporaryDirectory(prefix="traces-") as directory:
        traces = unpacked(Path(given), Path(directory)) if given else generated(Path(directory))
        rows, sized = [], []
        for name, file, sizes in traces:
            rows += played(program, name, file, sizes)
            if has_sizes(file):
                sized += played_by_memory(program, name, file)
    path = install.PROJECT / "bench" / "POLICIES.md" if given else install.TOOLS / "POLICIES.md"
    picture = install.PROJECT / "docs/src/internals/policies.svg" if given else install.TOOLS / "policies.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(rows, sized, bool(given)))
    picture.write_text(plot(rows))
    install.say(f"Written to {path} and {picture}")


def build():
    install.say("Building the player of traces.")
    command = ["cargo", "build", "--profile", "instructions", "--locked", "--example", "policies"]
    if subprocess.run(command, cwd=install.PROJECT).returncode != 0:
        sys.exit("The player of traces could not be built.")
    return install.TARGET / "instructions" / "examples" / "policies"


def unpacked(source, directory):
    """The traces in a directory: name, plain file, numbers of entries."""
    only = os.environ.get("ONLY", "").split()
    known = list(SIZES)
    files = [file for file in source.iterdir() if file.suffix in ("", ".xz", ".txt")]
    for file in sorted(files, key=lambda file: (known + [file.stem]).index(file.stem)):
        if only and file.stem not in only:
            continue
        text = lzma.open(file, "rt").read() if file.suffix == ".xz" else file.read_text()
        plain = directory / file.stem
        plain.write_text(text)
        yield file.stem, plain, SIZES.get(file.stem) or parts_of(text.splitlines())


def parts_of(reads):
    keys = len({read.split()[0] for read in reads})
    return tuple(max(int(keys * part), 10) for part in PARTS)


def generated(directory):
    """Three traces of 10,000 keys and 300,000 reads, always the same."""
    choice = random.Random(1)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, 10_001)))

    def zipf():
        return bisect.bisect(weights, choice.random() * weights[-1])

    scans = [key for turn in range(30) for key in [zipf() for _ in range(7000)] + list(range(20_000, 23_000))]
    for name, reads in {
        "zipf": [zipf() for _ in range(300_000)], "scans": scans, "loop": [read % 10_000 for read in range(300_000)],
    }.items():  # fmt: skip
        file = directory / name
        file.write_text("\n".join(map(str, reads)))
        yield name, file, (500, 5000)


def played(program, name, file, sizes):
    """The rows of a trace: name, entries, and the hits of each policy in percent."""
    install.say(f"  {name}")
    command = [str(program), str(file), *map(str, sizes)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3600, check=True)
    rows = {size: {} for size in sizes}
    for line in result.stdout.splitlines():
        entries, policy, hits, reads, *_ = line.split("\t")
        rows[int(entries)][policy] = 100 * int(hits) / int(reads)
    return [(name, entries, figures) for entries, figures in rows.items()]


def has_sizes(file):
    with file.open() as lines:
        return len(lines.readline().split()) > 1


def played_by_memory(program, name, file):
    """The rows of a trace under bounds on memory: name, bound, policy, and the hits in percent of reads and of bytes."""
    command = [str(program), str(file), *MEMORY]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3600, check=True)
    for line in result.stdout.splitlines():
        bound, policy, hits, reads, hit_bytes, all_bytes = line.split("\t")
        yield name, bound, policy, 100 * int(hits) / int(reads), 100 * int(hit_bytes) / int(all_bytes)


def table_by_memory(sized):
    if not sized:
        return ""
    lines = [
        "| trace | memory | policy | hits, % of the reads | hits, % of the bytes |",
        "|---|--:|---|--:|--:|",
        *(
            f"| {name} | {bound.replace('MiB', ' MiB')} | {f'`{policy}`' if policy in OWN else policy} | {objects:.1f} | {of_bytes:.1f} |"
            for name, bound, policy, objects, of_bytes in sized
        ),
    ]
    return (
        "\nUnder a bound on memory, with values of the sizes of the trace. `lru` and `tinylfu` are under `cache.max_memory`, which\n"
        "counts all that an entry takes, and keep no value of more than a tenth of it. LRU counts the values alone.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def report(rows, sized, given):
    averages = {policy: sum(figures[policy] for _, _, figures in rows) / len(rows) for policy in POLICIES}
    lines = [
        f"| trace | entries | {' | '.join(f'`{policy}`' if policy in OWN else policy for policy in POLICIES)} |",
        "|---|--:|" + "--:|" * len(POLICIES),
        *(f"| {name} | {entries:,} | {cells(figures)} |" for name, entries, figures in rows),
        f"| average | | {cells(averages)} |",
    ]
    worst = min((figures["tinylfu"] - max(figures["LRU"], figures["S3-FIFO"]), name, entries) for name, entries, figures in rows)
    return (
        "# Hit ratios of the eviction policies\n\n"
        "Written by `make bench CASES=policies`. Hits in percent of all reads, of one client that reads one key after the\n"
        "other. `lru` and `tinylfu` are the proxy's own cache; the others are plain versions in `bench/reference.rs`.\n\n"
        + "\n".join(lines)
        + f"\n\nIn its worst row (`{worst[1]}`, {worst[2]:,} entries) `tinylfu` has {worst[0]:+.1f} points against the better of LRU"
        " and S3-FIFO.\n" + table_by_memory(sized) + ("" if given else "\nThe traces were generated.\n")
    )  # fmt: skip


def cells(figures):
    return " | ".join(f"{figures[policy]:.1f}" for policy in POLICIES)


def plot(rows):
    """A plot of each row: the hits of every policy as a dot, on a line from 0 to 100 percent."""
    colours = {"LRU": "#888888", "SIEVE": "#b8860b", "S3-FIFO": "#1f77b4", "optimal": "#2ca02c", "tinylfu": "#d62728"}
    left, width, step, top = 170, 560, 22, 46
    height = top + step * len(rows) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{left + width + 30}" height="{height}" fill="white"/>',
    ]
    for number, (policy, colour) in enumerate(colours.items()):
        x = left + number * 110
        parts.append(f'<circle cx="{x}" cy="18" r="5" fill="{colour}"/><text x="{x + 10}" y="22">{policy}</text>')
    for percent in range(0, 101, 20):
        x = left + width * percent / 100
        parts.append(f'<line x1="{x}" y1="{top - 8}" x2="{x}" y2="{height - 30}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x}" y="{height - 12}" text-anchor="middle">{percent} %</text>')
    for number, (name, entries, figures) in enumerate(rows):
        y = top + number * step + 6
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{name}, {entries:,}</text>')
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left + width}" y2="{y}" stroke="#eeeeee"/>')
        for policy, colour in colours.items():
            x = left + width * figures[policy] / 100
            parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{colour}" fill-opacity="0.8"/>')
    return "\n".join([*parts, "</svg>", ""])
