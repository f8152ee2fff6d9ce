"""Follow the channels of a graph that have the same value for every sample and place."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from tfedge.engines.native.channel_moves import (
    ACTIVATIONS,
    MOVES,
    PAIRWISE,
    POINTWISE,
    SPATIAL,
    Untraceable,
    channel_axis,
    channel_values,
    move,
    through_spatial,
)
from tfedge.engines.native.channels import Channels, Part
from tfedge.engines.native.graph import Call, Ref
from tfedge.engines.native.labels import collapse, placed
from tfedge.engines.native.lower import TRAINING_ONLY, activation_name

UNKNOWN = math.nan
ZERO_ONLY = frozenset(
    {"Sum", "Pad", "Resize", "Resizing", *(f"ZeroPadding{n}D" for n in (1, 2, 3))}
)
"""What leaves constants constant only where they are zero."""

COMBINED: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Subtract": np.subtract,
    "Multiply": np.multiply,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Average": np.add,
}


class Mixing:
    """How a layer that makes channels mixes those that it reads.

    Args:
        part: A convolution, dense, separable or transposed convolution layer.

    Attributes:
        used: (inputs, outputs) bool: whether any weight between the two is not zero.
        exact: Whether a constant input gives a constant output: there is no padding.
    """

    def __init__(self, part: Part) -> None:
        layer = part.layer
        single = math.prod(getattr(layer, "kernel_size", (1,))) == 1
        if "Transpose" in part.kind:
            self.exact = single and math.prod(layer.strides) == 1
        else:
            self.exact = single or getattr(layer, "padding", "valid") == "valid"
        self._kernel = _kernel(part)
        self.used = (self._kernel != 0).any(axis=0)

    def sums(self, rows: np.ndarray) -> np.ndarray:
        """(rows, outputs): what inputs of value 1 at these rows add to each output."""
        return self._kernel[:, rows].sum(axis=0, dtype=np.float64)


def _kernel(part: Part) -> np.ndarray:
    """Weights from every input to every output, (places, inputs, outputs)."""
    layer = part.layer
    if part.kind.startswith("Separable"):
        depthwise = _array(layer.depthwise_kernel)
        inputs, multiplier = depthwise.shape[-2:]
        pointwise = _array(layer.pointwise_kernel).reshape(inputs, multiplier, -1)
        places = depthwise.reshape(-1, inputs, multiplier)
        return np.einsum("pim,imo->pio", places, pointwise)
    kernel = _array(layer.kernel)
    kernel = kernel.reshape(-1, *kernel.shape[-2:])
    if "Transpose" in part.kind:
        kernel = kernel.swapaxes(-1, -2)
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return kernel
    places, inputs, outputs = kernel.shape
    whole = np.zeros((places, inputs * groups, outputs), kernel.dtype)
    for group in range(groups):
        rows = slice(group * inputs, (group + 1) * inputs)
        columns = slice(group * outputs // groups, (group + 1) * outputs // groups)
        whole[:, rows, columns] = kernel[:, :, columns]
    return whole


def find_constants(channels: Channels) -> dict[int, np.ndarray]:
    """The constant value of every channel of every tensor, at inference.

    Args:
        channels: Of a graph.

    Returns:
        Tensor index to float64 values in the form of `labels.py`; not-a-number where a channel is
        not constant.
    """
    graph = channels.graph
    values: dict[int, np.ndarray] = {
        index: np.full([1] * (len(graph.specs[index].shape) - 1), UNKNOWN) for index in graph.inputs
    }
    for call in graph.calls:
        try:
            results = _results(channels, call, values)
        except Untraceable:
            results = None
        for place, index in enumerate(call.outputs):
            rank = len(graph.specs[index].shape) - 1
            unknown = np.full([1] * rank, UNKNOWN)
            values[index] = unknown if results is None else collapse(results[place])
    return values


def _results(
    channels: Channels, call: Call, values: Mapping[int, np.ndarray]
) -> list[np.ndarray] | None:
    kind, graph = call.kind, channels.graph
    part = channels.parts.get(id(call.operation)) if call.is_layer else None
    if part is not None:
        return _of_part(channels, part, call, values)
    if not call.inputs or kind == "Softmax":
        return None
    first = values[call.inputs[0]]
    if call.is_layer and kind in TRAINING_ONLY:
        return [first]
    if kind in {"ReLU", "LeakyReLU", "ELU", "Rescaling"} or (
        not call.is_layer and kind in POINTWISE
    ):
        return [_applied(call, first)]
    if kind == "Activation" and activation_name(call) in ACTIVATIONS:
        return [_applied(call, first)]
    if kind in PAIRWISE and kind in COMBINED and (call.is_layer or kind != "Average"):
        return [_combined(call, values)]
    shapes = [tuple(graph.specs[index].shape)[1:] for index in call.inputs]
    results = [tuple(graph.specs[index].shape)[1:] for index in call.outputs]
    if kind in SPATIAL:
        axis = channel_axis(call.operation, first.ndim)
        vector = _zero_only(kind, channel_values(first, axis, shapes[0][axis]))
        return [through_spatial(call, vector, len(results[0]))]
    if kind in MOVES:
        arrays = [_zero_only(kind, values[index]) for index in call.inputs]
        return [np.asarray(array) for array in move(call, shapes, results, arrays)]
    return None


def _of_part(
    channels: Channels, part: Part, call: Call, values: Mapping[int, np.ndarray]
) -> list[np.ndarray] | None:
    if part.over_channels or part.kind == "Embedding" or call.kwargs.get("training") is True:
        return None
    rank = len(channels.graph.specs[call.inputs[0]].shape) - 1
    axis = axis_of(part, rank)
    size = channels.graph.specs[call.inputs[0]].shape[axis + 1]
    constants = channel_values(values[call.inputs[0]], axis, size)
    if part.kind == "BatchNormalization":
        return [placed(_normalised(part.layer, constants), axis, rank)]
    if part.kind == "PReLU":
        return [placed(np.where(constants < 0, UNKNOWN, constants), axis, rank)]
    outputs = _made(part, constants) if part.makes else _kept_apart(part, constants)
    if part.layer.use_bias:
        outputs = outputs + _array(part.layer.bias)
    if activation_name(call) not in ACTIVATIONS:
        return None
    return [placed(_masked(part.layer.activation, outputs), axis, rank)]


def axis_of(part: Part, rank: int) -> int:
    """Axis of the channels that a layer reads, in one sample of that rank."""
    if part.kind == "BatchNormalization":
        return part.layer.axis % (rank + 1) - 1
    return rank - 1 if part.kind == "Dense" else channel_axis(part.layer, rank)


def _made(part: Part, constants: np.ndarray) -> np.ndarray:
    """Outputs of a mixing layer without its bias."""
    mixing = Mixing(part)
    unknown = np.isnan(constants) | ((constants != 0) & (not mixing.exact))
    known = np.flatnonzero(~unknown & (constants != 0))
    sums = constants[known] @ mixing.sums(known)
    return np.where(mixing.used[unknown].any(axis=0), UNKNOWN, sums)


def _kept_apart(part: Part, constants: np.ndarray) -> np.ndarray:
    """Outputs of a depthwise layer without its bias."""
    kernel = _array(part.layer.kernel)
    kernel = kernel.reshape(-1, len(part.writes))
    inputs = np.repeat(constants, len(part.writes) // len(constants))
    size = math.prod(part.layer.kernel_size)
    exact = part.layer.padding == "valid" or size == 1
    unknown = np.isnan(inputs) | ((inputs != 0) & (not exact))
    sums = np.where(unknown, 0, inputs) * kernel.sum(axis=0, dtype=np.float64)
    return np.where(unknown & (kernel != 0).any(axis=0), UNKNOWN, sums)


def _normalised(layer: Any, constants: np.ndarray) -> np.ndarray:
    scale = _array(layer.gamma) if layer.scale else np.ones(len(constants))
    offset = _array(layer.beta) if layer.center else np.zeros(len(constants))
    mean, variance = _array(layer.moving_mean), _array(layer.moving_variance)
    outputs = (constants - mean) / np.sqrt(variance + layer.epsilon) * scale + offset
    return np.where(scale == 0, offset, outputs)


def _applied(call: Call, values: np.ndarray) -> np.ndarray:
    """What an operation on single values makes of constants."""

    def function(x: Any) -> Any:
        args, kwargs = tree.map_structure(
            lambda value: x[None] if isinstance(value, Ref) else value, (call.args, call.kwargs)
        )
        return call.operation(*args, **kwargs)[0]

    return _masked(function, values)


def _masked(function: Callable[[Any], Any], values: np.ndarray) -> np.ndarray:
    known = tf.constant(np.nan_to_num(values, nan=0.0), tf.float32)
    results = np.asarray(tf.convert_to_tensor(function(known)), np.float64)
    return np.where(np.isnan(values), UNKNOWN, results)


def _combined(call: Call, values: Mapping[int, np.ndarray]) -> np.ndarray:
    operands = [
        values[value.index] if isinstance(value, Ref) else np.asarray(value, np.float64)
        for value in tree.flatten((call.args, call.kwargs))
        if value is not None
    ]
    total = operands[0]
    for other in operands[1:]:
        result = COMBINED[call.kind](total, other)
        if call.kind == "Multiply":  # zero times whatever it is
            result = np.where((total == 0) | (other == 0), 0.0, result)
        total = result
    return total / len(operands) if call.kind == "Average" else total


def _zero_only(kind: str, values: np.ndarray) -> np.ndarray:
    return np.where(values == 0, 0.0, UNKNOWN) if kind in ZERO_ONLY else values


def _array(variable: Any) -> np.ndarray:
    return np.asarray(variable.value.numpy())
