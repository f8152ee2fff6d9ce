"""Learned step sizes: the step between two levels trains with the weights.

S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153; for activations
that may be negative Y. Bhalgat et al., "LSQ+", CVPR Workshops 2020, arXiv:2004.09576, with the
offset rounded to a whole zero point, as zero must be one of the levels of an integer file.

The trainable variable is the step relative to its start. An optimizer that ignores the size of
gradients (Adam) then moves every step by the same fraction, whatever its size; plain gradient
descent moves it exactly as the paper says.
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfedge.engines.native.fake_quant import (
    FakeQuantize,
    QuantizedWeights,
    WeightSpec,
    folded_scale,
)

SMALLEST = 1e-12  # stands for a step of zero: of weights that are all zero, of unseen values
LEAST = 1e-3  # smallest fraction of its start that a step may shrink to


def learned_step(
    values: Any, step: Any, *, lowest: int, highest: int, gradient_scale: float
) -> Any:
    """Values rounded to whole multiples of a step that has a gradient (Esser et al., eq. 1-3).

    Args:
        values: Float32 tensor `v`.
        step: Positive float32 tensor `s` that broadcasts against `values`.
        lowest: Lowest integer, `-Q_N`.
        highest: Highest integer, `Q_P`.
        gradient_scale: What the gradient of the step is multiplied by; `lsq_gradient_scale`.

    Returns:
        `clip(round(v / s), -Q_N, Q_P) * s`. Its gradient by `v` is 1 inside and 0 outside the
        range; by `s` it is `round(v / s) - v / s` inside, `-Q_N` below and `Q_P` above.
    """

    @tf.custom_gradient
    def apply(values: Any, step: Any) -> Any:
        ratio = values / step
        rounded = tf.floor(ratio + 0.5)
        clipped = tf.clip_by_value(rounded, float(lowest), float(highest))

        def gradient(upstream: Any) -> tuple[Any, Any]:
            inside = tf.logical_and(ratio > lowest, ratio < highest)
            slope = tf.where(inside, rounded - ratio, clipped)
            to_values = tf.where(inside, upstream, tf.zeros_like(upstream))
            return to_values, _sum_like(upstream * slope, step) * gradient_scale

        return clipped * step, gradient

    return apply(tf.convert_to_tensor(values), tf.convert_to_tensor(step))


def learned_step_and_offset(
    values: Any, step: Any, offset: Any, *, highest: int, gradient_scale: Any
) -> Any:
    """Values rounded to `highest + 1` levels from a learned offset upwards (LSQ+, eq. 1-5).

    Args:
        values: Float32 tensor.
        step: Positive float32 scalar.
        offset: Float32 scalar, at most 0: the real number of the lowest level, before it is
            rounded so that zero is a level.
        highest: Highest unsigned integer, `2**bits - 1`.
        gradient_scale: What the gradients of step and offset are multiplied by.

    Returns:
        Tensor of the shape of `values`. Its gradient by the step is `round - ratio` inside the
        range, 0 below and `highest` above it; by the offset 0 inside and 1 outside.
    """

    @tf.custom_gradient
    def apply(values: Any, step: Any, offset: Any) -> Any:
        zero = zero_point_of(step, offset, highest)
        ratio = values / step
        rounded = tf.floor(ratio + 0.5)
        low, high = -zero, highest - zero

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            below, above = ratio <= low, ratio >= high
            outside = tf.logical_or(below, above)
            slope = tf.where(outside, tf.where(above, float(highest), 0.0), rounded - ratio)
            to_values = tf.where(outside, tf.zeros_like(upstream), upstream)
            to_offset = tf.reduce_sum(upstream - to_values) * gradient_scale
            return to_values, tf.reduce_sum(upstream * slope) * gradient_scale, to_offset

        return tf.clip_by_value(rounded, low, high) * step, gradient

    return apply(*(tf.convert_to_tensor(x) for x in (values, step, offset)))


def zero_point_of(step: Any, offset: Any, highest: int) -> Any:
    """The whole, unsigned zero point of a step and an offset, as a float."""
    return tf.clip_by_value(tf.floor(-offset / step + 0.5), 0.0, float(highest))


def lsq_gradient_scale(count: Any, highest: int) -> Any:
    """`1 / sqrt(N * Q_P)`: brings steps and weights to like relative updates (section 2.2).

    Args:
        count: How many values share the step: weights of a step, or activations of one sample.
        highest: Highest integer `Q_P`.

    Example:
        >>> lsq_gradient_scale(100, 1)
        0.1
    """
    return 1.0 / math.sqrt(count * highest)


def first_step(values: np.ndarray, highest: int, axes: tuple[int, ...]) -> np.ndarray:
    """`2 <|v|> / sqrt(Q_P)`, the step to begin with (section 2.1), over the weights not zero.

    Weights that pruning has removed say nothing of how far apart the others lie.

    Args:
        values: Float32 array.
        highest: Highest integer `Q_P`.
        axes: Axes that share a step.

    Returns:
        Float32 array of the rank of `values`.

    Example:
        >>> first_step(np.float32([[1.0, -3.0, 0.0, 0.0]]), 4, (0, 1)).tolist()
        [[2.0]]
    """
    count = np.maximum(np.count_nonzero(values, axis=axes, keepdims=True), 1)
    mean = np.abs(values).sum(axis=axes, keepdims=True) / count
    return np.maximum(2 * mean / math.sqrt(highest), SMALLEST).astype(np.float32)


def in_units(unit: Any, relative: Any) -> Any:
    """`unit * relative`, with a gradient for `relative` that makes gradient descent the paper's.

    A step of gradient descent moves `relative` by `-rate * g / unit`, and so the product by
    `-rate * g`, as if the product itself were the variable.

    Args:
        unit: Positive tensor that does not train.
        relative: Tensor that does.
    """

    @tf.custom_gradient
    def apply(unit: Any, relative: Any) -> Any:
        return unit * relative, lambda upstream: (tf.zeros_like(unit), upstream / unit)

    return apply(ops.maximum(read(unit), SMALLEST), read(relative))


def read(variable: Any) -> Any:
    """The value of a variable as a plain tensor, which functions with own gradients ask for."""
    return tf.identity(ops.convert_to_tensor(variable))


class AtLeast(keras.constraints.Constraint):
    """Keep a variable at or above a value."""

    def __init__(self, least: float) -> None:
        self.least = least

    def __call__(self, value: Any) -> Any:
        """The value, raised where it is too low."""
        return ops.maximum(value, self.least)


@keras.saving.register_keras_serializable("tfedge")
class LearnedRange(FakeQuantize):
    """Round activations by a step that trains, and by an offset where they may be negative.

    The first batch sets the start: `2 <|v|> / sqrt(Q_P)` behind a ReLU, else the batch's range as
    in LSQ+. Calibration takes the mean over its batches.

    Args:
        bits: Width of the integers, from 2 to 8.
        after_float: As for `FakeQuantize`.
        non_negative: As for `FakeQuantize`; there is no offset then.
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        after_float: bool = False,
        non_negative: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(bits=bits, after_float=after_float, non_negative=non_negative, **kwargs)
        self.highest = 2**bits - 1

    def build(self, input_shape: Any) -> None:
        def variable(name: str, value: float, **settings: Any) -> Any:
            return self.add_weight(
                name=name,
                shape=(),
                dtype="float32",
                initializer=keras.initializers.Constant(value),
                autocast=False,
                aggregation="mean",
                **settings,
            )

        self.unit = variable("unit", 0.0, trainable=False)
        self.start = variable("start", 0.0, trainable=False)
        self.batches = variable("batches", 0.0, trainable=False)
        self.step = variable("step", 1.0, constraint=AtLeast(LEAST))
        self.offset = None if self.non_negative else variable("offset", 0.0)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        values = ops.cast(inputs, "float32")
        if training or self.observing:
            self._observe(values)
        if self.observing:
            return inputs
        step, offset = self._step_and_offset()
        scale = self._gradient_scale(values)
        if offset is None:
            rounded = learned_step(
                values, step, lowest=0, highest=self.highest, gradient_scale=scale
            )
        else:
            rounded = learned_step_and_offset(
                values, step, offset, highest=self.highest, gradient_scale=scale
            )
        return ops.cast(rounded, inputs.dtype)

    def _step_and_offset(self) -> tuple[Any, Any]:
        step = in_units(self.unit, self.step)
        if self.offset is None:
            return step, None
        return step, ops.convert_to_tensor(self.start) + in_units(self.unit, self.offset)

    def _gradient_scale(self, values: Any) -> Any:
        sample = values.shape[1:]
        if None not in sample:
            return lsq_gradient_scale(max(math.prod(sample), 1), self.highest)
        count = tf.cast(tf.reduce_prod(tf.shape(values)[1:]) * self.highest, tf.float32)
        return tf.math.rsqrt(count)

    def _observe(self, values: Any) -> None:
        self.batches.assign_add(1.0)
        batches = ops.convert_to_tensor(self.batches)
        first = ops.cast(batches <= 1.0, "float32")
        share = 1.0 / batches if self.observing else first
        unit, start = self._seen(values)
        self.unit.assign_add(share * (unit - self.unit))
        self.start.assign_add(share * (start - self.start))

    def _seen(self, values: Any) -> tuple[Any, Any]:
        """The step and the offset that a batch alone would begin with."""
        if self.non_negative:
            return 2.0 * ops.mean(ops.abs(values)) / math.sqrt(self.highest), ops.zeros(())
        low, high = ops.minimum(ops.min(values), 0.0), ops.maximum(ops.max(values), 0.0)
        return (high - low) / self.highest, low

    def exact_ends(self) -> tuple[np.float32, np.float32]:
        step, offset = self._step_and_offset()
        size = np.float32(step)
        zero = np.float32(0) if offset is None else zero_point_of(step, offset, self.highest)
        low = np.float32(zero) * size
        return np.float32(-low), np.float32(self.highest * size - low)

    def settle(self) -> None:
        low, high = self.exact_ends()
        self.unit.assign((high - low) / self.highest)
        self.start.assign(low)
        self.step.assign(1.0)
        if self.offset is not None:
            self.offset.assign(0.0)

    def forget(self) -> None:
        for variable in (self.unit, self.start, self.batches):
            variable.assign(0.0)
        self.step.assign(1.0)
        if self.offset is not None:
            self.offset.assign(0.0)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {k: v for k, v in config.items() if k not in ("fixed_range", "range", "percentile")}


@keras.saving.register_keras_serializable("tfedge")
class LearnedStepWeights(QuantizedWeights):
    """Run a layer with weights rounded by steps that train; settings as for `QuantizedWeights`.

    The integers are the paper's, `-2**(bits-1)` to `2**(bits-1) - 1`; at 8 bits -127 to 127, as
    LiteRT wants them.
    """

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.units: dict[str, Any] = {}
        self.relative: dict[str, Any] = {}
        for spec in self.specs:
            start = first_step(self._start_of(spec), self.highest, self._shared_axes(spec))
            for kept, suffix, value in ((self.units, "unit", start), (self.relative, "step", 1.0)):
                is_step = suffix == "step"
                kept[spec.name] = self.add_weight(
                    name=f"{spec.name}_{suffix}",
                    shape=start.shape,
                    dtype="float32",
                    initializer="ones",
                    trainable=is_step,
                    autocast=False,
                    aggregation="mean",
                    constraint=AtLeast(LEAST) if is_step else None,
                )
                kept[spec.name].assign(np.broadcast_to(value, start.shape))

    @property
    def lowest(self) -> int:
        """Lowest integer."""
        return -(2 ** (self.bits - 1)) + (self.bits == 8)

    @property
    def highest(self) -> int:
        """Highest integer."""
        return int(2 ** (self.bits - 1)) - 1

    def steps(self, name: str) -> np.ndarray:
        """The step of each channel of a weight, with its rank: of what is rounded."""
        step = in_units(self.units[name], self.relative[name])
        return np.asarray(ops.convert_to_numpy(step))

    def _start_of(self, spec: WeightSpec) -> np.ndarray:
        value = ops.convert_to_numpy(getattr(self.layer, spec.name)).astype(np.float32)
        if self.batch_norm is None:
            return value
        factor = ops.convert_to_numpy(folded_scale(self.batch_norm))
        return value * np.where(factor == 0, 1, factor)

    def _shared_axes(self, spec: WeightSpec) -> tuple[int, ...]:
        rank = len(getattr(self.layer, spec.name).shape)
        kept = () if spec.axis is None else spec.axis
        own = {i % rank for i in ((kept,) if isinstance(kept, int) else kept)}
        return tuple(i for i in range(rank) if i not in own)

    def _rounded(self, spec: WeightSpec, value: Any) -> Any:
        step = in_units(self.units[spec.name], self.relative[spec.name])
        count = math.prod(value.shape) / math.prod(step.shape)
        rounded = learned_step(
            ops.cast(value, "float32"),
            step,
            lowest=self.lowest,
            highest=self.highest,
            gradient_scale=lsq_gradient_scale(count, self.highest),
        )
        return ops.cast(rounded, value.dtype)


def _sum_like(values: Any, like: Any) -> Any:
    """`values` summed over the axes along which `like` was broadcast."""
    if not like.shape.rank:
        return tf.reduce_sum(values)
    axes = [i for i, size in enumerate(like.shape) if size == 1]
    return tf.reduce_sum(values, axis=axes, keepdims=True)
