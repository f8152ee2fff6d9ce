"""Find channels that nothing depends on, or that are constant and can go into the next bias."""

from dataclasses import dataclass, field

import numpy as np

from tfedge.engines.native.channel_moves import channel_values
from tfedge.engines.native.channels import Channels, Part
from tfedge.engines.native.constants import Mixing, axis_of, find_constants
from tfedge.engines.native.shrink import Bias


@dataclass(frozen=True)
class Dead:
    """Channels that can be removed without a change of any output.

    Attributes:
        kept: Label to whether it stays.
        biases: By the `id` of a layer, what its bias gains from constants that go.
        padded: Layers that need a constant channel at the padded borders of their input, each with
            how many.
        last: Layers all of whose channels are dead; one is left.
    """

    kept: np.ndarray
    biases: dict[int, Bias] = field(default_factory=dict)
    padded: dict[str, int] = field(default_factory=dict)
    last: tuple[str, ...] = ()


@dataclass(eq=False)
class _Reader:
    """A layer that mixes channels, with the constants that each of its calls reads."""

    part: Part
    mixing: Mixing
    constants: list[np.ndarray]

    @property
    def foldable(self) -> np.ndarray:
        """Bool per input: a constant, the same in each call, that its bias can take over."""
        first = self.constants[0]
        same = np.all([np.equal(first, other) for other in self.constants], axis=0)
        return same & ((first == 0) | self.mixing.exact)

    @property
    def padded(self) -> np.ndarray:
        """Bool per input: a constant that is lost at the padded borders."""
        constant = ~np.isnan(self.constants[0])
        return constant & ~self.foldable

    def needs(self, kept: np.ndarray) -> np.ndarray:
        """Bool per input: whether an output that stays depends on it."""
        return self.mixing.used[:, kept[self.part.writes]].any(axis=1) & ~self.foldable


def find_dead(channels: Channels) -> Dead:
    """The channels of a graph that can go.

    A channel goes if every layer that mixes it with others has only zeros for it, or reads a
    constant there that its bias can take over. Channels that only feed such channels follow.

    Args:
        channels: Of a model's graph.
    """
    readers = _readers(channels)
    allowed = np.zeros(channels.size, bool)
    for group in channels.groups:
        allowed[group.labels] = True
    for part in channels.parts.values():
        if part.over_channels:
            allowed[part.reads] = False
    kept = np.ones(channels.size, bool)
    while True:
        needed = ~allowed
        for reader in readers:
            needed[reader.part.reads[reader.needs(kept)]] = True
        last = _keep_one(channels, needed)
        if np.array_equal(needed, kept):
            break
        kept = needed
    padded = {}
    for reader in readers:
        stuck = reader.needs(kept) & reader.padded & allowed[reader.part.reads]
        if stuck.any():
            padded[reader.part.name] = len(np.unique(reader.part.reads[stuck]))
    return Dead(kept, _biases(readers, kept), padded, last)


def _readers(channels: Channels) -> list[_Reader]:
    constants = find_constants(channels)
    readers = []
    for part in channels.parts.values():
        if not part.makes or not len(part.reads):
            continue
        own = []
        for call in part.calls:
            shape = channels.graph.specs[call.inputs[0]].shape[1:]
            axis = axis_of(part, len(shape))
            own.append(channel_values(constants[call.inputs[0]], axis, shape[axis]))
        readers.append(_Reader(part, Mixing(part), own))
    return readers


def _keep_one(channels: Channels, needed: np.ndarray) -> tuple[str, ...]:
    """Keep the first channel of groups that would lose all."""
    last = []
    for group in channels.groups:
        if not needed[group.labels].any():
            needed[group.labels[0]] = True
            last.append(group.name)
    return tuple(last)


def _biases(readers: list[_Reader], kept: np.ndarray) -> dict[int, Bias]:
    biases = {}
    for reader in readers:
        constants = np.nan_to_num(reader.constants[0], nan=0.0)
        gone = np.flatnonzero(~kept[reader.part.reads] & (constants != 0) & reader.foldable)
        if len(gone):
            gain = constants[gone] @ reader.mixing.sums(gone)
            if np.any(gain):
                biases[id(reader.part.layer)] = Bias(gain)
    return biases
