"""Rebuild a model with fewer channels."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from tfedge.engines.native.channels import Channels, Part
from tfedge.engines.native.graph import Call, Copies, build_model
from tfedge.engines.native.labels import varying
from tfedge.models import own_objects


@dataclass(frozen=True, eq=False)
class Bias:
    """What to add to the outputs of a layer that is rebuilt.

    Attributes:
        values: One number per output channel of the layer as it was.
    """

    values: np.ndarray


def shrink(
    channels: Channels,
    kept: np.ndarray,
    *,
    biases: dict[int, Bias] | None = None,
    fresh: bool = False,
) -> Any:
    """Build a model that holds only the channels that are kept.

    Args:
        channels: Of the model's graph.
        kept: Label to whether it stays, from `Channels.kept`.
        biases: By the `id` of a layer, what its bias gains; the layer gets a bias if it has none.
        fresh: Whether layers whose weights are trained start anew from their initialisers, all of
            them trainable, rather than with the weights that are kept.

    Returns:
        An uncompiled `keras.Model` with own copies of all layers, nested models inlined. With every
        label kept it computes bit for bit what the model does.
    """
    work = _Shrinking(channels, kept, biases or {}, fresh)
    with keras.saving.custom_object_scope(_own(channels)):
        model = build_model(channels.graph, work.emit)
    for layer, weights in work.waiting:
        layer.set_weights(weights)
    return model


def kept_shape(channels: Channels, index: int, kept: np.ndarray) -> tuple[int | None, ...]:
    """Shape of a tensor, samples aside, once only kept channels are left."""
    values = channels.values[index]
    shape = list(channels.graph.specs[index].shape[1:])
    for axis in varying(values):
        shape[axis] = int(kept[np.moveaxis(values, axis, -1).reshape(-1)].sum())
    return tuple(shape)


def kept_weights(part: Part, kept: np.ndarray) -> list[np.ndarray]:
    """The weights of a layer at the channels that stay."""
    weights = []
    for value, axes in zip(part.layer.get_weights(), part.axes, strict=True):
        for axis, labels in enumerate(axes):
            if labels is not None:
                value = np.compress(kept[labels], value, axis)
        weights.append(value)
    return weights


def _own(channels: Channels) -> dict[str, Any]:
    """Classes and functions of the user's that layers are made of."""
    found: dict[str, Any] = {}
    for call in channels.graph.calls:
        if call.is_layer:
            found |= own_objects(call.operation)
    return found


@dataclass
class _Shrinking:
    channels: Channels
    kept: np.ndarray
    biases: dict[int, Bias]
    fresh: bool
    copies: Copies = field(default_factory=Copies)
    made: dict[int, Any] = field(default_factory=dict)
    waiting: list[tuple[Any, list[np.ndarray]]] = field(default_factory=list)

    def emit(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.kind == "Reshape":
            return self._reshape(call, args, kwargs)
        if not call.is_layer:
            return call.operation(*args, **kwargs)
        if self.fresh and kwargs.get("training") is False:
            kwargs = {name: value for name, value in kwargs.items() if name != "training"}
        if self._stays(call):
            return self.copies.of(call)(*args, **kwargs)
        if id(call.operation) not in self.made:
            self.made[id(call.operation)] = self._make(call)
        layer = self.made[id(call.operation)]
        before = layer.built
        results = layer(*args, **kwargs)
        if not before and layer.weights:
            self._fill(call, layer)
        return results

    def _begins_anew(self, layer: Any) -> bool:
        """Whether a layer is to get fresh weights: it learns, or would if it were not frozen."""
        frozen = not layer.trainable and not isinstance(layer, keras.layers.Normalization)
        return self.fresh and bool(layer.weights) and (frozen or bool(layer.trainable_variables))

    def _stays(self, call: Call) -> bool:
        """Whether a layer has nothing to lose: it is copied as it was built."""
        if self._begins_anew(call.operation) or id(call.operation) in self.biases:
            return False
        same = [
            kept_shape(self.channels, index, self.kept)
            == tuple(self.channels.graph.specs[index].shape[1:])
            for other in self.channels.graph.calls
            if other.operation is call.operation
            for index in (*other.inputs, *other.outputs)
        ]
        return all(same)

    def _make(self, call: Call) -> Any:
        layer = call.operation
        part = self.channels.parts.get(id(layer))
        changes: dict[str, Any] = {} if part is None else self._settings(part)
        if id(layer) in self.biases:
            changes["use_bias"] = True
        changes["trainable"] = call.trainable or self._begins_anew(layer)
        config = {**layer.get_config(), "name": call.name, **changes}
        build: Callable[..., Any] = type(layer).from_config
        if isinstance(layer, keras.layers.Lambda):  # its code is in memory already
            return build(config, safe_mode=False)
        return build(config)

    def _settings(self, part: Part) -> dict[str, int]:
        return {name: int(self.kept[labels].sum()) for name, labels in part.settings.items()}

    def _fill(self, call: Call, layer: Any) -> None:
        """Note the weights of a layer that was just built."""
        source = call.operation
        part = self.channels.parts.get(id(source))
        if self._begins_anew(source):
            return
        weights = source.get_weights() if part is None else kept_weights(part, self.kept)
        if part is not None and id(source) in self.biases:
            gain = self.biases[id(source)].values[self.kept[part.writes]]
            if source.use_bias:
                weights[-1] = weights[-1] + gain.astype(weights[-1].dtype)
            else:
                weights.append(gain.astype(weights[-1].dtype))
        self.waiting.append((layer, weights))

    def _reshape(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A reshape to what is left of its result."""
        index = call.outputs[0]
        shape = kept_shape(self.channels, index, self.kept)
        if shape == tuple(self.channels.graph.specs[index].shape[1:]):
            return self.copies.of(call)(*args, **kwargs)
        if not call.is_layer:
            return keras.ops.reshape(args[0], (-1, *shape))
        if id(call.operation) not in self.made:
            config = {**call.operation.get_config(), "name": call.name, "target_shape": shape}
            self.made[id(call.operation)] = type(call.operation).from_config(config)
        return self.made[id(call.operation)](*args, **kwargs)
