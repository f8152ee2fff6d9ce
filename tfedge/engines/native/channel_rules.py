"""What each kind of layer and operation does to the labels of channels."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfedge.engines.native.channel_moves import (
    ACTIVATIONS,
    MOVES,
    PAIRWISE,
    POINTWISE,
    POINTWISE_LAYERS,
    SPATIAL,
    Untraceable,
    channel_axis,
    through_spatial,
)
from tfedge.engines.native.channel_tracer import Axes, Part, Tracer
from tfedge.engines.native.graph import Call
from tfedge.engines.native.labels import placed, varying
from tfedge.engines.native.lower import activation_name


def trace_call(tracer: Tracer, call: Call) -> list[np.ndarray]:
    """Labels of what a call writes.

    Raises:
        Untraceable: There is no rule, or the channels cannot be followed.
    """
    kind = call.kind
    if call.is_layer and kind in RULES:
        return [RULES[kind](tracer, call)]
    if not call.is_layer and kind in POINTWISE and len(call.inputs) == 1:
        return [tracer.values[call.inputs[0]]]
    if call.is_layer and kind in POINTWISE_LAYERS:
        return [_pointwise(tracer, call)]
    if kind in PAIRWISE and (call.is_layer or kind != "Average"):
        return [_pairwise(tracer, call)]
    if kind in SPATIAL:
        rank = len(tracer.shape(call.inputs[0]))
        vector = tracer.vector(call.inputs[0], channel_axis(call.operation, rank))
        return [through_spatial(call, vector, len(tracer.shape(call.outputs[0])))]
    if kind in MOVES:
        return _moved(tracer, call)
    what = "layer" if call.is_layer else "operation"
    raise Untraceable(
        f"`{call.name}` ({type(call.operation).__name__}) is a {what} that channels are not "
        "followed through"
    )


def _moved(tracer: Tracer, call: Call) -> list[np.ndarray]:
    if call.kind == "Reshape" and call.is_layer and tracer.graph.is_shared(call):
        raise Untraceable(f"`{call.name}` reshapes several tensors to one shape")
    results = tracer.moved(call)
    if call.kind == "Split":
        for result in results[1:]:  # as many stay in each part
            tracer.labels.join(results[0], result)
    return results


# ---------------------------------------------------------------------------- value by value


def _pointwise(tracer: Tracer, call: Call) -> np.ndarray:
    values = tracer.values[call.inputs[0]]
    noise = getattr(call.operation, "noise_shape", None) or ()
    if any(noise[axis + 1] not in (None, 1) for axis in varying(values) if noise):
        raise Untraceable(f"`{call.name}` has a `noise_shape` with the number of channels in it")
    return values


def _activation(tracer: Tracer, call: Call) -> np.ndarray:
    values = tracer.values[call.inputs[0]]
    name = activation_name(call)
    over_last = call.kind == "Softmax" or name in {"softmax", "log_softmax", "sparsemax"}
    axis = call.operation.axis if call.kind == "Softmax" else -1
    if over_last and isinstance(axis, int):
        rank = len(tracer.shape(call.inputs[0])) + 1
        if axis % rank - 1 in varying(values):
            tracer.labels.pin(values, f"`{call.name}` compares all channels")
        return values
    if name not in ACTIVATIONS:
        raise Untraceable(f"`{call.name}` is an activation that is not known to Keras")
    return values


def _rescaling(tracer: Tracer, call: Call) -> np.ndarray:
    if np.ndim(call.operation.scale) or np.ndim(call.operation.offset):
        raise Untraceable(f"`{call.name}` holds a number for each channel in its settings")
    return tracer.values[call.inputs[0]]


def _pairwise(tracer: Tracer, call: Call) -> np.ndarray:
    """Join what is combined; a single channel laid over many stays as it is."""
    shapes = [tracer.shape(index) for index in call.inputs]
    others = [np.ndim(value) for value in keras.tree.flatten((call.args, call.kwargs))]
    if len({len(shape) for shape in shapes}) > 1 or any(others):
        raise Untraceable(f"`{call.name}` combines tensors of unlike rank, or with own constants")
    values = [tracer.values[index] for index in call.inputs]
    total = values[0]
    size = np.array(shapes[0], dtype=object)
    for other, shape in zip(values[1:], shapes[1:], strict=True):
        one, two = (total, size), (other, np.array(shape, dtype=object))
        over = [_is_laid_over(*one, *two), _is_laid_over(*two, *one)]
        if over[0]:
            tracer.labels.pin(total, f"`{call.name}` lays one channel over all of another tensor")
        if over[1]:
            tracer.labels.pin(other, f"`{call.name}` lays one channel over all of another tensor")
        if not any(over):
            tracer.labels.join(total, other)
        total = other if over[0] else np.broadcast_arrays(total, other)[0]
        size = np.where(size == 1, two[1], size)
    return total


def _is_laid_over(values: np.ndarray, shape: Any, other: np.ndarray, other_shape: Any) -> bool:
    """Whether a tensor has size 1 where the labels of the other one differ."""
    return any(shape[axis] == 1 and other_shape[axis] != 1 for axis in varying(other))


# ---------------------------------------------------------------------------- layers with weights


def _conv(tracer: Tracer, call: Call) -> np.ndarray:
    layer = call.operation
    rank = len(tracer.shape(call.inputs[0]))
    axis = channel_axis(layer, rank)
    reads = tracer.vector(call.inputs[0], axis)
    part = tracer.known(call, reads) or _new_conv(tracer, call, reads)
    return placed(part.writes, axis, rank)


def _new_conv(tracer: Tracer, call: Call, reads: np.ndarray) -> Part:
    layer, groups = call.operation, getattr(call.operation, "groups", 1)
    if groups == len(reads) > 1:
        return _one_each(tracer, call, reads)
    writes = _new_channels(tracer, call, layer.filters)
    if groups > 1:  # every group keeps as many inputs, and as many outputs
        inputs, outputs = reads.reshape(groups, -1), writes.reshape(groups, -1)
        tracer.labels.join(inputs[:1], inputs)
        tracer.labels.join(outputs[:1], outputs)
    sides = (reads[: len(reads) // groups], writes)
    if "Transpose" in call.kind:
        sides = sides[::-1]
    places = (None,) * (layer.kernel.ndim - 2)
    weights: dict[str, Axes] = {"kernel": (*places, *sides), **_bias(layer, writes)}
    return tracer.add(call, reads, writes, weights, {"filters": writes}, makes=True)


def _one_each(tracer: Tracer, call: Call, reads: np.ndarray) -> Part:
    """A grouped convolution whose groups have one input channel: a depthwise one."""
    layer = call.operation
    writes = np.repeat(reads, layer.filters // len(reads))
    places = (None,) * (layer.kernel.ndim - 1)
    return tracer.add(
        call,
        reads,
        writes,
        {"kernel": (*places, writes), **_bias(layer, writes)},
        {"filters": writes, "groups": reads},
    )


def _depthwise(tracer: Tracer, call: Call) -> np.ndarray:
    layer = call.operation
    rank = len(tracer.shape(call.inputs[0]))
    axis = channel_axis(layer, rank)
    reads = tracer.vector(call.inputs[0], axis)
    part = tracer.known(call, reads)
    if part is None:
        writes = np.repeat(reads, layer.depth_multiplier)
        places = (None,) * (layer.kernel.ndim - 2)
        weights: dict[str, Axes] = {"kernel": (*places, reads, None), **_bias(layer, writes)}
        part = tracer.add(call, reads, _checked(tracer, call, writes), weights)
    return placed(part.writes, axis, rank)


def _separable(tracer: Tracer, call: Call) -> np.ndarray:
    layer = call.operation
    rank = len(tracer.shape(call.inputs[0]))
    axis = channel_axis(layer, rank)
    reads = tracer.vector(call.inputs[0], axis)
    part = tracer.known(call, reads)
    if part is None:
        writes = _new_channels(tracer, call, layer.filters)
        places = (None,) * (layer.depthwise_kernel.ndim - 2)
        between = np.repeat(reads, layer.depth_multiplier)
        weights: dict[str, Axes] = {
            "depthwise_kernel": (*places, reads, None),
            "pointwise_kernel": (*places, between, writes),
            **_bias(layer, writes),
        }
        part = tracer.add(call, reads, writes, weights, {"filters": writes}, makes=True)
    return placed(part.writes, axis, rank)


def _dense(tracer: Tracer, call: Call) -> np.ndarray:
    layer = call.operation
    rank = len(tracer.shape(call.inputs[0]))
    reads = tracer.vector(call.inputs[0], rank - 1)
    part = tracer.known(call, reads)
    if part is None:
        if layer.lora_enabled or layer.quantization_mode is not None:
            raise Untraceable(f"`{call.name}` has low-rank adapters, or Keras quantised it")
        writes = _new_channels(tracer, call, layer.units)
        weights: dict[str, Axes] = {"kernel": (reads, writes), **_bias(layer, writes)}
        part = tracer.add(call, reads, writes, weights, {"units": writes}, makes=True)
    return placed(part.writes, rank - 1, rank)


def _embedding(tracer: Tracer, call: Call) -> np.ndarray:
    layer = call.operation
    if layer.lora_enabled or layer.quantization_mode is not None:
        raise Untraceable(f"`{call.name}` has low-rank adapters, or Keras quantised it")
    nothing = np.zeros(0, int)
    part = tracer.known(call, nothing)
    if part is None:
        writes = tracer.labels.fresh(layer.output_dim)
        weights: dict[str, Axes] = {"embeddings": (None, writes)}
        settings = {"output_dim": writes}
        part = tracer.add(call, nothing, writes, weights, settings, makes=True)
    rank = len(tracer.shape(call.outputs[0]))
    return placed(part.writes, rank - 1, rank)


def _batch_norm(tracer: Tracer, call: Call) -> np.ndarray:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return _normalization(tracer, call, names, over_channels=False)


def _layer_norm(tracer: Tracer, call: Call) -> np.ndarray:
    return _normalization(tracer, call, ("gamma", "beta"), over_channels=True)


def _rms_norm(tracer: Tracer, call: Call) -> np.ndarray:
    return _normalization(tracer, call, ("scale",), over_channels=True)


def _normalization(
    tracer: Tracer, call: Call, names: tuple[str, ...], *, over_channels: bool
) -> np.ndarray:
    layer = call.operation
    rank = len(tracer.shape(call.inputs[0]))
    axes = layer.axis if isinstance(layer.axis, list | tuple) else (layer.axis,)
    if len(axes) != 1 or axes[0] % (rank + 1) == 0:
        raise Untraceable(f"`{call.name}` normalises over more axes than that of the channels")
    axis = axes[0] % (rank + 1) - 1
    reads = tracer.vector(call.inputs[0], axis)
    if tracer.known(call, reads) is None:
        present = [name for name in names if getattr(layer, name, None) is not None]
        weights: dict[str, Axes] = dict.fromkeys(present, (reads,))
        tracer.add(call, reads, reads, weights, over_channels=over_channels)
    return tracer.values[call.inputs[0]]


def _prelu(tracer: Tracer, call: Call) -> np.ndarray:
    values, alpha = tracer.values[call.inputs[0]], call.operation.alpha
    axes = varying(values)
    axis = axes[-1] if axes else values.ndim - 1
    reads = tracer.vector(call.inputs[0], axis)
    if tracer.known(call, reads) is None:
        own = [reads if i == axis and size > 1 else None for i, size in enumerate(alpha.shape)]
        tracer.add(call, reads, reads, {"alpha": tuple(own)})
    return placed(reads, axis, values.ndim)


def _new_channels(tracer: Tracer, call: Call, count: int) -> np.ndarray:
    return _checked(tracer, call, tracer.labels.fresh(count))


def _checked(tracer: Tracer, call: Call, writes: np.ndarray) -> np.ndarray:
    """Labels of the outputs, pinned if the layer's activation is more than value by value."""
    if activation_name(call) not in ACTIVATIONS:
        tracer.labels.pin(writes, "its activation compares channels, or is not known to Keras")
    return writes


def _bias(layer: Any, writes: np.ndarray) -> dict[str, Axes]:
    return {"bias": (writes,)} if layer.use_bias else {}


RULES: Mapping[str, Callable[[Tracer, Call], np.ndarray]] = {
    **{f"Conv{rank}D": _conv for rank in (1, 2, 3)},
    **{f"Conv{rank}DTranspose": _conv for rank in (1, 2, 3)},
    **{f"DepthwiseConv{rank}D": _depthwise for rank in (1, 2)},
    **{f"SeparableConv{rank}D": _separable for rank in (1, 2)},
    "Dense": _dense,
    "Embedding": _embedding,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "PReLU": _prelu,
    "Activation": _activation,
    "Softmax": _activation,
    "Rescaling": _rescaling,
}
