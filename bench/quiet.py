"""How quiet the machine is: the load average, and in samples between the turns the CPU of others and the steal.

The rule: in a sample no load runs, and the measured servers are idle, so all that is busy belongs to others.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

# The fields of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
IDLE, STEAL, FIELDS = (3, 4), 7, 8
# The largest shares of CPU time with which a machine counts as quiet.
BUSY_LIMIT, STEAL_LIMIT = 0.05, 0.01


@dataclass
class Sample:
    """Shares of the CPU time of all processors, and the number of others that are runnable."""

    busy: float
    steal: float
    runnable: float


def times():
    """The CPU time of each kind since the start, of all processors."""
    return [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1 : 1 + FIELDS]]


def shares(before, after):
    """The shares of busy time and of steal between two readings."""
    spent = [now - then for then, now in zip(before, after)]
    whole = sum(spent) or 1
    busy = whole - spent[STEAL] - sum(spent[kind] for kind in IDLE)
    return busy / whole, spent[STEAL] / whole


def runnable():
    """The number of runnable threads, without the one that reads it."""
    return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1


def sample(seconds):
    before, counts, end = times(), [], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
        counts.append(runnable())
    return Sample(*shares(before, times()), sum(counts) / len(counts))


class Watch:
    """The samples of a run, and the steal of all of it."""

    def __init__(self, seconds):
        self.seconds, self.begin = seconds, times()
        self.load = os.getloadavg()[0]
        self.samples = []

    def look(self):
        self.samples.append(sample(self.seconds))

    def text(self):
        """Sentences for the report."""
        steal = shares(self.begin, times())[1]
        lines = [f"load average {self.load:.1f} before and {os.getloadavg()[0]:.1f} after; steal {steal:.1%} of the run"]
        if self.samples:
            lines.append(
                f"in {len(self.samples)} samples of {self.seconds} s between the turns (median, most) others used"
                f" {spread([one.busy for one in self.samples], '{:.1%}')} of the processors,"
                f" steal was {spread([one.steal for one in self.samples], '{:.1%}')},"
                f" and {spread([one.runnable for one in self.samples], '{:.1f}')} threads of others were runnable"
            )
        return "; ".join(lines) + f". {self.verdict(steal)}"

    def verdict(self, steal):
        limits = f"at most {BUSY_LIMIT:.0%} of others in the median and {STEAL_LIMIT:.0%} of steal"
        busy = median([one.busy for one in self.samples] or [0])
        is_quiet = busy <= BUSY_LIMIT and steal <= STEAL_LIMIT
        return f"It was {'quiet' if is_quiet else '**not quiet**'} ({limits})."


def spread(numbers, form):
    return f"{form.format(median(numbers))}, {form.format(max(numbers))}"
