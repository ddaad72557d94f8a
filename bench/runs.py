"""Repetition of a case until two of its runs agree.

The rule: runs are compared by what the report has, the median of each contestant's ratio to the first of the case. So a
disturbance that affects all contestants of a round does not count.
"""

from statistics import median

# Two runs agree if no ratio differs by more than this share.
AGREEMENT = 0.05


def ratios(records, figure):
    """The median ratio of the figure of each contestant to that of the first one, in the same rounds."""
    by_name = {}
    for record in records:
        if figure in record.figures:
            by_name.setdefault(record.name, {})[record.round] = record.figures[figure]
    if not by_name:
        return {}
    (_, base), *others = by_name.items()
    found = {name: [those[round_] / base[round_] for round_ in base if base[round_] and round_ in those] for name, those in others}
    return {name: median(ratios_of_one) for name, ratios_of_one in found.items() if ratios_of_one}


def difference(one, other):
    """The largest relative difference of two runs' ratios; None if they have none in common."""
    common = one.keys() & other.keys()
    # A turn in which the server got less than a tick of the clock has no cost.
    return max((abs(one[name] / other[name] - 1) for name in common if other[name]), default=None)


def closest(runs):
    """The pair of runs, by their numbers, whose ratios differ least, and the difference; None for less than two runs."""
    pairs = [
        (found, (first, second))
        for second in range(len(runs))
        for first in range(second)
        if (found := difference(runs[first], runs[second])) is not None
    ]
    if not pairs:
        return None
    found, pair = min(pairs)
    return pair, found


def sentence(count, closest_pair):
    """The result of the repetition, for the report."""
    if closest_pair is None:
        return "One run." if count == 1 else f"{count} runs, which cannot be compared."
    (first, second), found = closest_pair
    if found <= AGREEMENT:
        return f"Runs {first + 1} and {second + 1} of {count} agree within {found:.1%}; the table has both."
    return f"No two of {count} runs agree within {AGREEMENT:.0%}, the closest within {found:.1%}; the table has all."
