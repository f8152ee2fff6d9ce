"""Where values that belong to channels go when a tensor is reshaped, joined, sliced or pooled.

Each function moves arrays in the form of `labels.py` (an axis has its full size, or size 1 where
values do not differ along it), whatever the values are: labels, or the constants of channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfedge.engines.native.graph import Call
from tfedge.engines.native.labels import Shape, placed, rows_along, spread, varying
from tfedge.engines.native.lower import TRAINING_ONLY

Arrays = Sequence[np.ndarray]


class Untraceable(Exception):  # noqa: N818  # a verdict on a layer, caught where layers are read
    """Channels cannot be followed through a call; the text says why."""


ACTIVATIONS = frozenset(
    [
        "linear",
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "swish",
        "hard_silu",
        "hard_swish",
        "sigmoid",
        "hard_sigmoid",
        "log_sigmoid",
        "tanh",
        "hard_tanh",
        "softplus",
        "softsign",
        "mish",
        "exponential",
    ]
)
"""Names of Keras's activations that look at each value on its own."""

POINTWISE = frozenset(
    [
        "Relu",
        "Relu6",
        "Sigmoid",
        "Silu",
        "HardSigmoid",
        "HardSilu",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "Gelu",
        "Tanh",
        "HardTanh",
        "Softplus",
        "Softsign",
        "LogSigmoid",
        "Absolute",
        "Abs",
        "Negative",
        "Square",
        "Sqrt",
        "Rsqrt",
        "Reciprocal",
        "Exp",
        "Expm1",
        "Log",
        "Log1p",
        "Clip",
        "Cast",
        "Sign",
        "Floor",
        "Ceil",
        "Round",
        "StopGradient",
        "Identity",
        "Copy",
    ]
)
"""`keras.ops` operations of one tensor that look at each value on its own."""

POINTWISE_LAYERS = TRAINING_ONLY | {"ReLU", "LeakyReLU", "ELU"}

PAIRWISE = frozenset(
    [
        "Add",
        "Subtract",
        "Multiply",
        "Divide",
        "TrueDivide",
        "Maximum",
        "Minimum",
        "Power",
        "Average",
    ]
)
"""Layers and operations that combine tensors value by value, broadcast against each other."""

SPATIAL = frozenset(
    [
        f"{name}{rank}D"
        for name in (
            "MaxPooling",
            "AveragePooling",
            "AdaptiveMaxPooling",
            "AdaptiveAveragePooling",
            "GlobalMaxPooling",
            "GlobalAveragePooling",
            "ZeroPadding",
            "Cropping",
            "UpSampling",
        )
        for rank in (1, 2, 3)
    ]
    + ["Resizing", "Resize"]
)
"""Layers that treat every channel alike and on its own, places of the others apart."""

REDUCTIONS = frozenset({"Mean", "Max", "Min", "Amax", "Amin", "Sum"})


def channel_axis(layer: Any, rank: int) -> int:
    """Axis of the channels in one sample of that rank."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return 0 if first else rank - 1


def through_spatial(call: Call, vector: np.ndarray, rank: int) -> np.ndarray:
    """One value per channel, in the rank of what a `SPATIAL` layer writes."""
    return placed(vector, channel_axis(call.operation, rank), rank)


def move(call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays) -> Any:
    """Values of what a call writes, from values of what it reads.

    Args:
        call: Of a layer or operation in `MOVES`.
        shapes: Of the tensors that it reads, samples aside.
        results: Of those that it writes.
        arrays: Values of what it reads.

    Returns:
        A list with an array for each result.

    Raises:
        Untraceable: The channels do not stay whole.
    """
    moved = MOVES[call.kind](call, shapes, results, arrays)
    return moved if isinstance(moved, list) else [moved]


def _flatten(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    _check_sizes(call, *shapes)
    values = spread(arrays[0], shapes[0])
    if values.ndim > 1 and channel_axis(call.operation, values.ndim) == 0:
        values = np.moveaxis(values, 0, -1)
    return values.reshape(-1)


def _reshape(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    if arrays[0].size == 1:
        return arrays[0].reshape([1] * len(results[0]))
    _check_sizes(call, *shapes, *results)
    values, shape = spread(arrays[0], shapes[0]), [size or 1 for size in results[0]]
    if values.size != np.prod(shape, dtype=int):
        raise Untraceable(f"`{call.name}` reshapes across samples")
    return values.reshape(shape)


def _permute(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    axes = (0, *call.operation.dims) if call.is_layer else call.operation.axes
    if axes is None or axes[0] != 0:
        raise Untraceable(f"`{call.name}` moves the axis of the samples")
    rank = len(axes)
    return arrays[0].transpose([axis % rank - 1 for axis in axes[1:]])


def _concatenate(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    axis = _sample_axis(call, call.operation.axis, len(shapes[0]) + 1)
    _check_sizes(call, *[(shape[axis],) for shape in shapes])
    common = np.broadcast_shapes(*[np.delete(array.shape, axis) for array in arrays])
    parts = [
        np.broadcast_to(array, (*common[:axis], shape[axis] or 1, *common[axis:]))
        for array, shape in zip(arrays, shapes, strict=True)
    ]
    return np.concatenate(parts, axis)


def _squeeze(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    axes = call.operation.axis
    if axes is None:
        raise Untraceable(f"`{call.name}` may drop the axis of the samples")
    axes = axes if isinstance(axes, list | tuple) else (axes,)
    rank = len(shapes[0]) + 1
    return arrays[0].squeeze(tuple(_sample_axis(call, axis, rank) for axis in axes))


def _expand(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    axes = call.operation.axis
    axes = axes if isinstance(axes, list | tuple) else (axes,)
    rank = len(results[0]) + 1
    return np.expand_dims(arrays[0], tuple(_sample_axis(call, axis, rank) for axis in axes))


def _repeat(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    return arrays[0][None]


def _reduce(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    axes, rank = call.operation.axis, len(shapes[0]) + 1
    if axes is None:
        raise Untraceable(f"`{call.name}` reduces over all channels")
    axes = axes if isinstance(axes, list | tuple) else (axes,)
    reduced = tuple(_sample_axis(call, axis, rank) for axis in axes)
    if set(reduced) & set(varying(arrays[0])):
        raise Untraceable(f"`{call.name}` reduces over all channels")
    return arrays[0] if call.operation.keepdims else arrays[0].squeeze(reduced)


def _pad(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    widths = call.operation.pad_width
    for axis in varying(arrays[0]):
        if tuple(widths[axis + 1]) != (0, 0):
            raise Untraceable(f"`{call.name}` adds channels")
    return arrays[0]


def _split(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> list[np.ndarray]:
    axis = _sample_axis(call, call.operation.axis, len(shapes[0]) + 1)
    sections = call.operation.indices_or_sections
    if axis not in varying(arrays[0]):
        return [arrays[0]] * len(results)
    if not isinstance(sections, int):
        raise Untraceable(f"`{call.name}` splits channels at fixed places")
    return np.split(arrays[0], sections, axis)


def _get_item(
    call: Call, shapes: Sequence[Shape], results: Sequence[Shape], arrays: Arrays
) -> np.ndarray:
    keys = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
    keys = list(keys) if isinstance(keys, list | tuple) else [keys]
    rank = len(shapes[0]) + 1
    place = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
    given = len(keys) - (Ellipsis in keys)
    keys[place : place + 1] = [slice(None)] * (rank - given)
    if not all(isinstance(key, int | slice) for key in keys) or keys[0] != slice(None):
        raise Untraceable(f"`{call.name}` indexes samples, or by more than numbers and slices")
    own = []
    for axis, key in enumerate(keys[1:]):
        if axis in varying(arrays[0]) and key != slice(None):
            raise Untraceable(f"`{call.name}` takes channels at fixed places")
        own.append(0 if isinstance(key, int) else slice(None))
    return arrays[0][tuple(own)]


def _sample_axis(call: Call, axis: int, rank: int) -> int:
    """An axis of a batch as an axis of one sample."""
    if axis % rank == 0:
        raise Untraceable(f"`{call.name}` works on the axis of the samples")
    return axis % rank - 1


def _check_sizes(call: Call, *shapes: Shape) -> None:
    if any(size is None for shape in shapes for size in shape):
        raise Untraceable(f"`{call.name}` reads or writes an axis that has no fixed size")


MOVES: Mapping[str, Callable[..., Any]] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Transpose": _permute,
    "Concatenate": _concatenate,
    "Squeeze": _squeeze,
    "ExpandDims": _expand,
    "RepeatVector": _repeat,
    "Pad": _pad,
    "Split": _split,
    "GetItem": _get_item,
    **dict.fromkeys(REDUCTIONS, _reduce),
}


def channel_values(values: np.ndarray, axis: int, size: int | None) -> np.ndarray:
    """One value per channel; not-a-number where it differs from place to place."""
    rows = rows_along(values, axis, size or 1)
    same = (rows == rows[0]).all(axis=0)
    return np.where(same, rows[0], np.nan)
