"""Choose how many channels each group keeps: a fraction of each, or the least important of all."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfedge.engines.native.channel_costs import Costs
from tfedge.engines.native.channels import Channels

Levels = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Step:
    """One group going down one level.

    Attributes:
        group: Index of the group.
        before, after: Channels it keeps.
        total: Cost of the graph after it.
    """

    group: int
    before: int
    after: int
    total: int


def by_fraction(levels: Levels, fractions: Mapping[int, float]) -> dict[int, int]:
    """Group to the level nearest to what is left of it; of two that are as near, the larger.

    Args:
        levels: Group to the numbers of channels that it may keep, all of them first.
        fractions: Group to the fraction of its channels that goes.

    Example:
        >>> by_fraction({0: [24, 16, 8]}, {0: 0.5})
        {0: 16}
    """
    counts = {}
    for group, options in levels.items():
        wanted = options[0] * (1 - fractions.get(group, 0.0))
        counts[group] = min(options, key=lambda level: (abs(level - wanted), -level))
    return counts


def least_important_first(
    channels: Channels,
    levels: Levels,
    scores: Mapping[int, np.ndarray],
    measure: str,
    *,
    per_cost: bool = False,
) -> list[Step]:
    """All steps down, the least important channels first.

    The fewer channels a group has left, the more each of them counts: what goes as the k-th of n is
    weighed with n / (n - k + 1). What a step saves shrinks as the layers around it do, so that a
    step that has waited is weighed again before it is taken.

    Args:
        channels: Of a graph.
        levels: As for `by_fraction`.
        scores: Group to the importance of each of its channels; comparable between groups.
        measure: What the steps' totals count.
        per_cost: Weigh importance against the cost that is saved, rather than by channel. For
            scores that are parts of one loss.
    """
    lost = {group: _lost(scores[group]) for group in levels}
    costs, steps = Costs(channels, measure), []
    waiting: list[tuple[float, int, int]] = []

    def price(group: int, place: int) -> float:
        before, after = levels[group][place : place + 2]
        size, saved = len(scores[group]), before - after
        if per_cost:
            total = costs.total
            costs.remove(group, before - after)
            saved = total - costs.total
            costs.remove(group, after - before)
        return float(lost[group][size - after] - lost[group][size - before]) / max(saved, 1)

    def offer(group: int, place: int) -> None:
        if place + 1 < len(levels[group]):
            heapq.heappush(waiting, (price(group, place), group, place))

    for group in levels:
        offer(group, 0)
    while waiting:
        _, group, place = heapq.heappop(waiting)
        if waiting and price(group, place) > waiting[0][0]:
            offer(group, place)
            continue
        before, after = levels[group][place : place + 2]
        costs.remove(group, before - after)
        steps.append(Step(group, before, after, costs.total))
        offer(group, place + 1)
    return steps


def _lost(scores: np.ndarray) -> np.ndarray:
    """The weight of the first 0, 1, … channels to go.

    Example:
        >>> _lost(np.array([2.0, 1.0])).tolist()
        [0.0, 1.0, 5.0]
    """
    size = len(scores)
    weighed = np.sort(scores) * size / np.arange(size, 0, -1)
    return np.concatenate([[0.0], np.cumsum(weighed)])


def within(
    channels: Channels, levels: Levels, steps: Sequence[Step], measure: str, most: float
) -> dict[int, int]:
    """The channels that groups keep once steps were taken until the cost is at most `most`.

    The last step may save more than was needed: earlier ones are taken back, the most important
    channels first, as long as the cost stays within.
    """
    costs, taken = Costs(channels, measure), []
    for step in steps:
        if costs.total <= most:
            break
        costs.remove(step.group, step.before - step.after)
        taken.append(step)
    for step in reversed(taken):
        if costs.counts[step.group] != step.after:
            continue
        costs.remove(step.group, step.after - step.before)
        if costs.total > most:
            costs.remove(step.group, step.before - step.after)
    return {group: costs.counts[group] for group in levels}


def evenly_within(channels: Channels, levels: Levels, measure: str, most: float) -> dict[int, int]:
    """The smallest fraction of every group gone with which the cost is at most `most`."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        counts = by_fraction(levels, dict.fromkeys(levels, middle))
        low, high = (low, middle) if cost_of(channels, counts, measure) <= most else (middle, high)
    return by_fraction(levels, dict.fromkeys(levels, high))


def cost_of(channels: Channels, counts: Mapping[int, int], measure: str) -> int:
    """The cost of a graph whose groups keep so many channels."""
    costs = Costs(channels, measure)
    for group, count in counts.items():
        costs.remove(group, costs.counts[group] - count)
    return costs.total
