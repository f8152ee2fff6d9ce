"""What a graph costs when only some of its channels are kept, without building it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfedge.engines.native.channels import Channels, Group, Part
from tfedge.engines.native.costs import macs_of

MEASURES = ("macs", "parameters", "channels")


class Costs:
    """Multiply-accumulates, parameters or channels of a graph, updated as channels go.

    A kernel costs the product of the lengths of its axes, times the places it is applied to. Each
    length is what stays in any case plus so many for each channel of some groups.

    Args:
        channels: Of the graph.
        measure: `"macs"`, `"parameters"` or `"channels"`.

    Attributes:
        total: The cost of what is kept.
        counts: How many channels each group keeps.

    Raises:
        UnsupportedModelError: Multiply-accumulates are asked for, and an axis has no size.
    """

    def __init__(self, channels: Channels, measure: str) -> None:
        self.counts = [group.size for group in channels.groups]
        self._lengths: list[int] = []
        self._shares: dict[int, list[tuple[int, int]]] = {g.index: [] for g in channels.groups}
        self._terms: list[tuple[int, tuple[int, ...]]] = []
        self._users: list[list[int]] = []
        self._known: dict[bytes, int] = {}
        fixed = 0
        if measure == "channels":
            for group in channels.groups:
                self._add(1, [self._axis(channels, np.repeat(group.labels, group.multiplicity))])
        else:
            fixed = self._read(channels, measure)
        self.total = fixed + sum(self._term(number) for number in range(len(self._terms)))

    def remove(self, group: int, count: int) -> None:
        """Take so many channels away from a group; a negative count gives some back."""
        touched = {term for axis, _ in self._shares[group] for term in self._users[axis]}
        self.total -= sum(map(self._term, touched))
        self.counts[group] -= count
        for axis, multiple in self._shares[group]:
            self._lengths[axis] -= multiple * count
        self.total += sum(map(self._term, touched))

    def _read(self, channels: Channels, measure: str) -> int:
        """Note what every weight costs; returns what does not depend on channels."""
        fixed = 0
        seen: set[int] = set()
        for call in channels.graph.calls:
            if not call.is_layer:
                fixed += macs_of(channels.graph, call) if measure == "macs" else 0
                continue
            part = channels.parts.get(id(call.operation))
            if part is None:
                fixed += _whole(channels, call, measure, seen)
            elif id(call.operation) not in seen:
                self._read_part(channels, part, measure)
            seen.add(id(call.operation))
        return fixed

    def _read_part(self, channels: Channels, part: Part, measure: str) -> None:
        places = 1
        if measure == "macs":
            macs = sum(macs_of(channels.graph, call) for call in part.calls)
            size = sum(int(np.prod(w.shape)) for w in part.layer.weights if _multiplies(w))
            places = macs // size if macs else 0
        for weight, axes in zip(part.layer.weights, part.axes, strict=True):
            if measure == "macs" and not _multiplies(weight):
                continue
            whole = [n for n, labels in zip(weight.shape, axes, strict=True) if labels is None]
            lengths = [self._axis(channels, labels) for labels in axes if labels is not None]
            self._add(places * int(np.prod(whole, dtype=int)), lengths)

    def _axis(self, channels: Channels, labels: np.ndarray) -> int:
        """The number of an axis; the same labels have the same one."""
        key = labels.tobytes()
        if key in self._known:
            return self._known[key]
        number = self._known[key] = len(self._lengths)
        self._lengths.append(len(labels))
        self._users.append([])
        owners = channels.group_of[labels]
        for group, count in zip(*np.unique(owners[owners >= 0], return_counts=True), strict=True):
            multiple = int(count) // channels.groups[group].size
            self._shares[int(group)].append((number, multiple))
        return number

    def _add(self, factor: int, axes: Sequence[int]) -> None:
        for axis in axes:
            self._users[axis].append(len(self._terms))
        self._terms.append((factor, tuple(axes)))

    def _term(self, number: int) -> int:
        factor, axes = self._terms[number]
        for axis in axes:
            factor *= self._lengths[axis]
        return factor


def _multiplies(weight: Any) -> bool:
    return weight.name.rpartition("_")[2] == "kernel"


def _whole(channels: Channels, call: Any, measure: str, seen: set[int]) -> int:
    if measure == "macs":
        return macs_of(channels.graph, call)
    if id(call.operation) in seen:
        return 0
    return sum(int(np.prod(weight.shape)) for weight in call.operation.weights)


def levels_of(group: Group, round_to: int, min_channels: int) -> list[int]:
    """The numbers of channels that a group may be left with, largest first.

    Args:
        group: What is pruned.
        round_to: Filters come in multiples of it, the number the group has now aside.
        min_channels: Filters that stay at least.

    Example:
        >>> labels = np.arange(20)
        >>> group = Group(index=0, labels=labels, writers=(), multiplicity=1, followers=())
        >>> levels_of(group, round_to=8, min_channels=4)
        [20, 16, 8]
    """
    step = round_to // int(np.gcd(round_to, group.multiplicity))
    lowest = max(1, -(-min_channels // group.multiplicity))
    below = range((group.size - 1) // step * step, 0, -step)
    return [group.size, *(level for level in below if level >= lowest)]


def keep_best(scores: np.ndarray, count: int) -> np.ndarray:
    """Bool array of the `count` highest scores; of equal ones, the first.

    Example:
        >>> keep_best(np.array([1.0, 3.0, 2.0]), 2).tolist()
        [False, True, True]
    """
    kept = np.zeros(len(scores), bool)
    kept[np.argsort(-scores, kind="stable")[:count]] = True
    return kept


def fewest(
    channels: Channels, levels: Mapping[int, Sequence[int]], measure: str
) -> tuple[int, int]:
    """The cost of a graph as it is, and with as few channels as the levels allow."""
    costs = Costs(channels, measure)
    whole = costs.total
    for group, counts in levels.items():
        costs.remove(group, costs.counts[group] - counts[-1])
    return whole, costs.total
