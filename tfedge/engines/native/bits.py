"""How many bits the weights and the activations of each layer have."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfedge.engines.native.graph import Call, Graph
from tfedge.engines.native.lower import activation_name
from tfedge.engines.native.place import FIXED_RANGES, JOINS, LINEAR, PASSES, Placement
from tfedge.errors import SettingsError, did_you_mean

FULL = 8
AVERAGES = frozenset({"AveragePooling1D", "AveragePooling2D", "AveragePool"})


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """Widths of one layer, or of a class of layers.

    Args:
        weights: Bits of its weights, from 2 to 8. Default: as all layers.
        activations: Bits of its output, from 2 to 8. Default: as all layers.

    Example:
        >>> LayerBits(weights=4)
        LayerBits(weights=4, activations=None)
    """

    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        if self.weights is None and self.activations is None:
            raise SettingsError(
                "`LayerBits` sets `weights`, `activations` or both. Received: neither."
            )
        for name in ("weights", "activations"):
            if getattr(self, name) is not None:
                check_bits(getattr(self, name), f"LayerBits.{name}")


@dataclass(frozen=True, kw_only=True)
class Bits:
    """The widths of all that is quantised in a graph.

    Attributes:
        weights: Name of a call to the bits of its weights.
        tensors: Index of a tensor that has a range to the bits of its values.
        notes: Sentences on what has 8 bits though fewer were asked for.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    tensors: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_bits(value: Any, name: str) -> None:
    """Refuse what is not a whole number from 2 to 8.

    Raises:
        SettingsError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= FULL:
        raise SettingsError(
            f"`{name}` is a whole number of bits from 2 to {FULL}. Received: {value!r}."
        )


def as_layer_bits(value: Any, name: str) -> LayerBits:
    """`value` as `LayerBits`; a mapping of its fields is one too.

    Raises:
        SettingsError: It is neither, or has other fields.
    """
    if isinstance(value, LayerBits):
        return value
    if not isinstance(value, Mapping):
        raise SettingsError(
            f"`per_layer` maps layers to `LayerBits(weights=…, activations=…)`. Received: "
            f"{value!r} for {name!r}."
        )
    known = ("weights", "activations")
    for key in value:
        if key not in known:
            raise SettingsError(
                f"`LayerBits` has {' and '.join(f'`{k}`' for k in known)}. Received: {key!r} for "
                f"{name!r}.{did_you_mean(key, known)}"
            )
    return LayerBits(**value)


def assign_bits(
    graph: Graph,
    placement: Placement,
    layers: Collection[str],
    *,
    weights: int = FULL,
    activations: int = FULL,
    per_layer: Mapping[str, LayerBits] | None = None,
    named: Collection[str] = (),
) -> Bits:
    """Decide the widths.

    What the model takes and returns keeps 8 bits unless its layer is named: that is the interface
    of the file. So do tensors whose scale or rounding LiteRT decides, and weights outside dense
    layers and convolutions.

    Args:
        graph: A graph of simple layers, as `lower` builds it.
        placement: What is quantised in it.
        layers: Names of the layers of the model that was lowered.
        weights: Bits of the weights.
        activations: Bits of the activations.
        per_layer: Name of a layer to its own widths.
        named: Those of `per_layer` that were named themselves, rather than by their class: what
            cannot be done for them is an error.

    Raises:
        SettingsError: A named layer has nothing of what its widths are for.
    """
    return _Assigner(
        graph, placement, _Owners(layers), weights, activations, per_layer or {}, frozenset(named)
    ).assign()


class _Owners:
    """Finds the layer of a model that a call of the lowered graph stands for."""

    def __init__(self, layers: Collection[str]) -> None:
        self.layers = sorted(layers, key=len, reverse=True)

    def of(self, name: str) -> str:
        if name in self.layers:
            return name
        return next((layer for layer in self.layers if name.startswith(f"{layer}_")), name)


@dataclass
class _Assigner:
    graph: Graph
    placement: Placement
    owners: _Owners
    weight_bits: int
    activation_bits: int
    per_layer: Mapping[str, LayerBits]
    named: frozenset[str]
    notes: dict[str, list[str]] = field(default_factory=dict)  # reason to layers
    served: set[tuple[str, str]] = field(default_factory=set)  # layer and what of it has widths

    def assign(self) -> Bits:
        weights = {name: self._of_weights(name) for name in self.placement.weights}
        tensors = {index: self._of_tensor(index) for index in self.placement.tensors}
        self._check_named()
        notes = tuple(
            f"Kept at 8 bits, {reason}: {', '.join(dict.fromkeys(names))}."
            for reason, names in self.notes.items()
        )
        return Bits(weights=weights, tensors=tensors, notes=notes)

    def _of_weights(self, name: str) -> int:
        owner = self.owners.of(name)
        own = self.per_layer.get(owner)
        bits = self.weight_bits if own is None or own.weights is None else own.weights
        call = next(call for call in self.graph.calls if call.name == name)
        if call.kind in LINEAR or bits == FULL:
            self.served.add((owner, "weights"))
            return bits
        reason = "weights that LiteRT has no operator with a scale of its own for"
        return self._pinned(owner, "weights", reason)

    def _of_tensor(self, index: int) -> int:
        writer = self.graph.producers.get(index)
        group = [self.owners.of(call.name) for call in self._group(writer)]
        asked = next((own for own in group if self._asks(own)), None)
        bits = self.per_layer[asked].activations if asked else self.activation_bits
        if bits in (None, FULL):
            self.served.update((own, "activations") for own in group)
            return FULL
        label = asked or (group[0] if group else self.graph.specs[index].name)
        reason = self._reason_for_full(index, writer, by_name=asked in self.named)
        if reason:
            return self._pinned(label, "activations", reason)
        self.served.update((own, "activations") for own in group)
        return int(bits)

    def _asks(self, owner: str) -> bool:
        own = self.per_layer.get(owner)
        return own is not None and own.activations is not None

    def _pinned(self, owner: str, what: str, reason: str) -> int:
        own = self.per_layer.get(owner)
        if owner in self.named and own is not None and getattr(own, what) is not None:
            raise SettingsError(
                f"The {what} of `{owner}` keep 8 bits: {reason}. Received: "
                f"{getattr(own, what)} bits in `per_layer`. Leave `{what}` out for it."
            )
        self.notes.setdefault(reason, []).append(owner)
        return FULL

    def _group(self, writer: Call | None) -> Iterator[Call]:
        """The call that writes a tensor and those computed in one operator with it."""
        while writer is not None:
            yield writer
            if writer.kind in JOINS or writer.name in self.placement.weights or not writer.inputs:
                return
            index = writer.inputs[0]
            before = self.graph.producers.get(index)
            merged = index not in self.placement.tensors and len(writer.inputs) == 1
            writer = before if merged and before and before.kind not in PASSES else None

    def _reason_for_full(self, index: int, writer: Call | None, *, by_name: bool) -> str:
        if index in self.graph.inputs:
            return "the inputs of the file"
        if writer is not None and _fixed_by_litert(writer):
            return "outputs whose scale LiteRT fixes"
        readers, returned = self._reached(index)
        if any(_averages(call) for call in readers):
            return "read by an operator that averages, which rounds to the steps of its input"
        return "the outputs of the file" if returned and not by_name else ""

    def _reached(self, index: int) -> tuple[list[Call], bool]:
        """The calls that read a tensor, also through those that pass values on; and whether the
        model returns it, as it is or by way of a softmax or its like.
        """
        waiting, seen, readers = [index], set(), []
        while waiting:
            current = waiting.pop()
            seen.add(current)
            for call in self.graph.consumers[current]:
                readers.append(call)
                ends = _fixed_by_litert(call) and set(call.outputs) & set(self.graph.outputs)
                if call.kind in PASSES or ends:
                    waiting.extend(i for i in call.outputs if i not in seen)
        return readers, bool(seen & set(self.graph.outputs))

    def _check_named(self) -> None:
        for owner in self.named:
            for what in ("weights", "activations"):
                asked = getattr(self.per_layer[owner], what)
                if asked is None or (owner, what) in self.served:
                    continue
                why = self.placement.reasons.get(owner, f"it has no quantised {what} of its own")
                raise SettingsError(
                    f"`per_layer` gives the {what} of `{owner}` {asked} bits, but {why}. Leave "
                    f"`{what}` out for it, or name the layer that has them."
                )


def _fixed_by_litert(call: Call) -> bool:
    name = activation_name(call) if call.kind == "Activation" else call.kind.lower()
    return name in FIXED_RANGES


def _averages(call: Call) -> bool:
    if call.kind == "UpSampling2D" and call.is_layer:
        return bool(call.operation.interpolation != "nearest")
    return call.kind in AVERAGES
