"""The integers that the weights of a fake-quantised model are, and their real step.

A converter that is handed rounded weights derives 8-bit integers from their largest magnitude. For
weights of fewer bits, or of a learned step, that is another grid than they were rounded to: 7 steps
become 127, one step 18.14. A file that computes what the model computes holds these integers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from tfedge.affine import quantize_values, symmetric_scale
from tfedge.engines.native.cluster_keeping import held_scales, is_held
from tfedge.engines.native.export import linear, over_channels
from tfedge.engines.native.fake_quant import QuantizedWeights, folded_scale
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.place import LINEAR, WEIGHTS, folded_batch_norm
from tfedge.engines.native.step_size import LearnedStepWeights

FULL = 8


@dataclass(frozen=True)
class Levels:
    """The integers of one kernel, output channels first.

    Attributes:
        layer: Name of the layer.
        is_dense: Whether it is a Dense layer.
        bits: Width of its integers.
        integers: Int8 array of shape `(channels, weights of a channel)`.
        steps: Their real size, float32 of shape `(channels,)` or `(1,)`; 0 where all are zero.
    """

    layer: str
    is_dense: bool
    bits: int
    integers: np.ndarray
    steps: np.ndarray


def folded_kernel(wrapper: QuantizedWeights, batch_norm: Any) -> np.ndarray:
    """The rounded kernel of a layer times the scale of the normalisation behind it. Float32.

    Args:
        wrapper: Of the layer.
        batch_norm: The BatchNormalization that is folded into the kernel, or `None`.
    """
    kernel = ops.convert_to_numpy(wrapper.effective_weights()["kernel"]).astype(np.float32)
    if batch_norm is None:
        return kernel
    scale = ops.convert_to_numpy(folded_scale(batch_norm))
    return np.asarray(kernel * over_channels(wrapper.layer, kernel, scale))


def kernel_steps(wrapper: QuantizedWeights, kernel: np.ndarray, batch_norm: Any) -> np.ndarray:
    """The step of the integers of a kernel, per output channel where it has one for each.

    Args:
        wrapper: Of the layer that the kernel belongs to.
        kernel: Its values, rounded, times the scale of `batch_norm`, as `folded_kernel` gives it.
        batch_norm: The BatchNormalization that is folded into the kernel, or `None`.

    Returns:
        Float32 array of shape `(channels,)`, or `()` where one step serves the whole kernel.
    """
    axis = WEIGHTS[type(wrapper.layer).__name__]["kernel"]
    if is_held(wrapper):
        folded = batch_norm is not None
        factors = ops.convert_to_numpy(folded_scale(batch_norm)) if folded else np.float32(1)
        return held_scales(wrapper, factors)
    if not isinstance(wrapper, LearnedStepWeights):
        return symmetric_scale(kernel, bits=wrapper.bits, axis=axis).reshape(_flat(axis))
    steps = wrapper.steps("kernel")
    if batch_norm is not None and wrapper.batch_norm is None:
        scale = np.abs(ops.convert_to_numpy(folded_scale(batch_norm)))
        steps = steps * over_channels(wrapper.layer, kernel, scale)
    return steps.astype(np.float32).reshape(_flat(axis))


def stored_levels(model: Any) -> tuple[Levels, ...]:
    """The kernels whose integers a converter would not find by itself.

    Args:
        model: A model from `prepare_quantization`, trained or calibrated.

    Returns:
        One row for each kernel of fewer than 8 bits or with a learned step.
    """
    return tuple(_levels(read_graph(model)))


def _levels(graph: Any) -> Iterator[Levels]:
    seen = set()
    for call in graph.calls:
        wrapper, layer = call.operation, linear(call)
        if not isinstance(wrapper, QuantizedWeights) or id(wrapper) in seen:
            continue
        seen.add(id(wrapper))
        narrow = wrapper.bits < FULL or isinstance(wrapper, LearnedStepWeights)
        if not narrow or type(layer).__name__ not in LINEAR:
            continue
        behind = folded_batch_norm(graph, call, layer)
        batch_norm = wrapper.batch_norm or (behind and behind.operation)
        kernel = folded_kernel(wrapper, batch_norm)
        yield _row(wrapper, kernel, kernel_steps(wrapper, kernel, batch_norm))


def _row(wrapper: QuantizedWeights, kernel: np.ndarray, steps: np.ndarray) -> Levels:
    kind = type(wrapper.layer).__name__
    divisors = np.where(steps > 0, steps, 1)
    integers = quantize_values(kernel, scale=divisors, axis=WEIGHTS[kind]["kernel"], bits=FULL)
    return Levels(
        layer=wrapper.layer.name,
        is_dense=kind == "Dense",
        bits=wrapper.bits,
        integers=channels_first(kind, integers),
        steps=np.atleast_1d(steps),
    )


def channels_first(kind: str, kernel: np.ndarray) -> np.ndarray:
    """A Keras kernel as LiteRT orders it, flattened to `(channels, weights of a channel)`.

    Args:
        kind: Class name of the layer.
        kernel: Its kernel.

    Example:
        >>> channels_first("Dense", np.array([[1, 2, 3], [4, 5, 6]])).tolist()
        [[1, 4], [2, 5], [3, 6]]
    """
    axis = WEIGHTS[kind]["kernel"]
    if isinstance(axis, tuple):  # depthwise: input channel × multiplier
        kernel = kernel.reshape(*kernel.shape[:-2], -1)
        axis = -1
    moved = np.moveaxis(kernel, -1 if axis is None else axis, 0)
    return moved.reshape(moved.shape[0], -1)


def _flat(axis: Any) -> tuple[int, ...]:
    return () if axis is None else (-1,)
