"""Carry labels through a graph, and sort the channels that they mark into groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tfedge.engines.native.channel_moves import Untraceable, move
from tfedge.engines.native.graph import Call, Graph
from tfedge.engines.native.labels import Labels, Shape, collapse, rows_along, varying

Axes = tuple[np.ndarray | None, ...]


@dataclass(eq=False)
class Part:
    """A layer with weights whose size follows from the channels that stay.

    Attributes:
        layer: The layer.
        name: Its name in the graph.
        kind: Name of its class.
        calls: Its calls; several where it is shared.
        reads: Labels of its input channels, as its kernel or scale meets them.
        writes: Labels of its output channels; the ones it reads, where it keeps channels apart.
        axes: For each of its weights, for each axis the labels along it; `None` for axes that stay.
        settings: Entry of its configuration to the labels that it counts.
        makes: Whether its output channels are new ones.
        over_channels: Whether it computes statistics over all channels.
    """

    layer: Any
    name: str
    kind: str
    calls: list[Call]
    reads: np.ndarray
    writes: np.ndarray
    axes: tuple[Axes, ...]
    settings: Mapping[str, np.ndarray]
    makes: bool
    over_channels: bool = False


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that stand in for each other: any of them can be removed in all the same places.

    Attributes:
        index: Its place in `Channels.groups`.
        labels: The label of each channel.
        writers: The layers that make them; their filters go together.
        multiplicity: How many filters of a writer one channel is (greatest common divisor).
        followers: Other layers whose weights follow the channels one by one: batch
            normalisation, depthwise convolutions.
    """

    index: int
    labels: np.ndarray
    writers: tuple[Part, ...]
    multiplicity: int
    followers: tuple[Part, ...]

    @property
    def size(self) -> int:
        """How many channels it has."""
        return len(self.labels)

    @property
    def name(self) -> str:
        """The names of the layers that make its channels."""
        return " + ".join(part.name for part in self.writers)


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a graph.

    Attributes:
        graph: The graph.
        groups: What can be pruned, in order of execution.
        parts: By the `id` of a layer.
        values: Labels of each tensor, in the form of `labels.py`.
        reasons: Label to the reason why it is pinned.
        size: How many labels there are.
        alone: By the `id` of a layer or operation that channels are not followed through, why.
    """

    graph: Graph
    groups: tuple[Group, ...]
    parts: Mapping[int, Part]
    values: Mapping[int, np.ndarray]
    reasons: Mapping[int, str]
    size: int
    alone: Mapping[int, str]

    def kept(self, keep: Mapping[int, Any]) -> np.ndarray:
        """Label to whether it stays.

        Args:
            keep: Index of a group to a bool array, one for each of its channels.
        """
        kept = np.ones(self.size, bool)
        for index, chosen in keep.items():
            kept[self.groups[index].labels] = np.asarray(chosen, bool)
        return kept

    @cached_property
    def group_of(self) -> np.ndarray:
        """Label to the index of its group, −1 where it has none."""
        places = np.full(self.size, -1)
        for group in self.groups:
            places[group.labels] = group.index
        return places

    def why_whole(self, part: Part) -> str:
        """Why channels that a layer writes cannot be removed; empty where some can."""
        if (self.group_of[part.writes] >= 0).any():
            return ""
        for label in part.writes.tolist():
            if label in self.reasons:
                return self.reasons[label]
        return "its channels can only be removed all together"


class Tracer:
    """Labels on their way through a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.labels = Labels()
        self.values: dict[int, np.ndarray] = {}
        self.parts: dict[int, Part] = {}
        self.alone: dict[int, str] = {}

    def shape(self, index: int) -> Shape:
        """Shape of a tensor, samples aside."""
        return tuple(self.graph.specs[index].shape)[1:]

    def vector(self, index: int, axis: int) -> np.ndarray:
        """The label of each channel along an axis, joined over the other axes."""
        size = self.shape(index)[axis]
        if size is None:
            raise Untraceable("the axis of its channels has no fixed size")
        rows = rows_along(self.values[index], axis, size)
        if len(rows) > 1:
            self.labels.join(rows[:1], rows)
        return rows[0]

    def moved(self, call: Call) -> list[np.ndarray]:
        """Labels behind a call that only moves values."""
        return move(
            call,
            [self.shape(index) for index in call.inputs],
            [self.shape(index) for index in call.outputs],
            [self.values[index] for index in call.inputs],
        )

    def known(self, call: Call, reads: np.ndarray) -> Part | None:
        """The part of a layer that was called before, what it reads joined with what it read."""
        if id(call.operation) in self.alone:
            raise Untraceable(self.alone[id(call.operation)])
        part = self.parts.get(id(call.operation))
        if part is None:
            return None
        self.labels.join(part.reads, reads)
        part.calls.append(call)
        return part

    def add(
        self,
        call: Call,
        reads: np.ndarray,
        writes: np.ndarray,
        weights: Mapping[str, Axes],
        settings: Mapping[str, np.ndarray] | None = None,
        *,
        makes: bool = False,
        over_channels: bool = False,
    ) -> Part:
        """Note a layer; `weights` says by attribute name what its weights have along their axes."""
        layer = call.operation
        described = {id(getattr(layer, name)): axes for name, axes in weights.items()}
        if any(id(weight) not in described for weight in layer.weights):
            raise Untraceable(f"`{call.name}` holds weights that Keras's `{call.kind}` does not")
        part = Part(
            layer=layer,
            name=call.name,
            kind=call.kind,
            calls=[call],
            reads=reads,
            writes=writes,
            axes=tuple(described[id(weight)] for weight in layer.weights),
            settings=settings or {},
            makes=makes,
            over_channels=over_channels,
        )
        self.parts[id(layer)] = part
        return part

    def leave_alone(self, call: Call, reason: str) -> list[np.ndarray]:
        """Pin everything that a call reads and writes."""
        for index in call.inputs:
            self.labels.pin(self.values[index], reason)
        part = self.parts.get(id(call.operation))
        if part is not None:
            self.labels.pin(part.reads, reason)
            self.labels.pin(part.writes, reason)
        self.alone[id(call.operation)] = reason
        results = []
        for index in call.outputs:
            label = self.labels.fresh(1)
            self.labels.pin(label, reason)
            results.append(label.reshape([1] * len(self.shape(index))))
        return results

    def settled(self) -> Channels:
        """What was found, once what stays of every tensor is sure to be a rectangle of it."""
        changed = True
        while changed:
            changed = False
            roots = self.labels.roots()
            for index, values in self.values.items():
                values = self.values[index] = collapse(roots[values])
                axes = varying(values)
                if len(axes) > 1:
                    rows = rows_along(values, axes[-1], values.shape[axes[-1]])
                    self.labels.join(rows[:1], rows)
                    changed = True
        for part in self.parts.values():
            _to_roots(part, roots)
        reasons = {label: self.labels.reason(label) for label in np.unique(roots).tolist()}
        pinned = {label: reason for label, reason in reasons.items() if reason is not None}
        groups = _groups(list(self.parts.values()), pinned)
        return Channels(
            graph=self.graph,
            groups=groups,
            parts=self.parts,
            values=self.values,
            reasons=pinned,
            size=len(roots),
            alone=self.alone,
        )


def _to_roots(part: Part, roots: np.ndarray) -> None:
    part.reads, part.writes = roots[part.reads], roots[part.writes]
    part.axes = tuple(
        tuple(None if labels is None else roots[labels] for labels in axes) for axes in part.axes
    )
    part.settings = {name: roots[labels] for name, labels in part.settings.items()}


def _groups(parts: Sequence[Part], pinned: Mapping[int, str]) -> tuple[Group, ...]:
    """Labels that occur equally often in the same places, as groups."""
    places: dict[int, list[tuple[int, int]]] = {}
    for number, part in enumerate(parts):
        for side, own in enumerate((part.reads, part.writes)):
            for label, count in zip(*np.unique(own, return_counts=True), strict=True):
                if int(label) not in pinned:
                    places.setdefault(int(label), []).append((2 * number + side, int(count)))
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for label, where in sorted(places.items()):
        alike.setdefault(tuple(where), []).append(label)
    groups: list[Group] = []
    for spots, labels in alike.items():
        if len(labels) < 2:
            continue
        written = {parts[place // 2].name: count for place, count in spots if place % 2}
        touched = {place // 2 for place, _ in spots if place % 2}
        groups.append(
            Group(
                index=len(groups),
                labels=np.array(labels),
                writers=tuple(parts[n] for n in sorted(touched) if parts[n].makes),
                multiplicity=int(np.gcd.reduce(list(written.values()))),
                followers=tuple(parts[n] for n in sorted(touched) if not parts[n].makes),
            )
        )
    return tuple(groups)
