"""Fake quantisation: float values that only take the levels an integer file can hold.

The arithmetic is TensorFlow's `fake_quant_with_min_max_vars`, the same that TFMOT trains with, and
in NumPy `tfedge.affine`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras.saving import deserialize_keras_object, serialize_keras_object

from tfedge.affine import whole_zero_point
from tfedge.engines.native.cluster_keeping import Hold, make_sets
from tfedge.engines.native.observers import (
    OBSERVERS,
    Observer,
    check_observer,
    highest,
    lowest,
)
from tfedge.engines.native.stand_in import AbstractStandIn


def fake_quant_weights(weights: Any, *, axis: int | None, bits: int = 8) -> Any:
    """Weights rounded to the levels of symmetric, narrow-range integers.

    Args:
        weights: Float tensor of any shape.
        axis: Axis with one scale per index (per-channel), or `None` for one scale (per-tensor).
        bits: Width of the integers; 8 gives the levels -127 … 127.

    Returns:
        Tensor of the same shape and dtype; its gradient is that of the identity.

    Example:
        >>> fake_quant_weights(np.float32([[0.25, 2.75, -127.0]]), axis=None).numpy().tolist()
        [[0.0, 3.0, -127.0]]
    """
    values = ops.cast(weights, "float32")
    if axis is None:
        still = ops.stop_gradient(values)
        top = ops.maximum(ops.max(still), -ops.min(still))
        rounded = tf.quantization.fake_quant_with_min_max_vars(values, -top, top, bits, True)
        return ops.cast(rounded, weights.dtype)
    rank = len(values.shape)
    order = [i for i in range(rank) if i != axis % rank] + [axis % rank]
    last = axis % rank == rank - 1
    moved = values if last else ops.transpose(values, order)
    top = ops.max(ops.abs(ops.stop_gradient(moved)), axis=tuple(range(rank - 1)))
    rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(moved, -top, top, bits, True)
    if not last:
        rounded = ops.transpose(rounded, np.argsort(order).tolist())
    return ops.cast(rounded, weights.dtype)


@dataclass(frozen=True)
class WeightSpec:
    """One weight of a layer to be quantised.

    Attributes:
        name: Attribute of the layer, e.g. `"kernel"`.
        axis: Axis of the per-channel scales; `None` for per-tensor; a pair where two axes
            together are the channels (depthwise kernels: input channel × multiplier).
    """

    name: str
    axis: int | tuple[int, int] | None

    def fake_quant(self, value: Any, bits: int) -> Any:
        """`value` with the levels of its integers."""
        if not isinstance(self.axis, tuple):
            return fake_quant_weights(value, axis=self.axis, bits=bits)
        shape = value.shape
        flat = ops.reshape(value, (-1, shape[-2] * shape[-1]))
        return ops.reshape(fake_quant_weights(flat, axis=1, bits=bits), shape)


@keras.saving.register_keras_serializable("tfedge")
class FakeQuantize(keras.layers.Layer):
    """Round activations to the levels of asymmetric integers, and learn their range.

    While training, the range follows what its `Observer` makes of each batch. So it does while
    `observing` (calibration), when values pass unrounded.

    Args:
        bits: Width of the integers, from 2 to 8.
        fixed_range: `(minimum, maximum)` that never moves, e.g. `(0, 255 / 256)` after a sigmoid.
        after_float: Whether the values come from an operator that is to stay float.
        non_negative: Whether the values are never below zero (behind a ReLU): spares the search
            for their minimum.
        range: How the range is found: `kind` of an `Observer`.
        percentile: As for `Observer`.
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        fixed_range: tuple[float, float] | None = None,
        after_float: bool = False,
        non_negative: bool = False,
        range: str = "moving_average",
        percentile: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_observer(range, percentile, kinds=OBSERVERS)
        self.observer = Observer(range, percentile)
        self.after_float = after_float
        self.non_negative = non_negative
        self.bits = bits
        self.fixed_range = None if fixed_range is None else (fixed_range[0], fixed_range[1])
        self.supports_masking = True
        self.observing = False

    def build(self, input_shape: Any) -> None:
        low, high = self.fixed_range or (0.0, 0.0)

        def variable(name: str, value: float) -> Any:
            return self.add_weight(
                name=name,
                shape=(),
                dtype="float32",
                initializer=keras.initializers.Constant(value),
                trainable=False,
                autocast=False,
                aggregation="mean",
            )

        self.minimum = variable("minimum", low)
        self.maximum = variable("maximum", high)
        self.batches = variable("batches", 0.0)

    @property
    def has_range(self) -> bool:
        """Whether a range is known: fixed, calibrated or trained."""
        return self.fixed_range is not None or float(self.batches.numpy()) > 0

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        values = ops.cast(inputs, "float32")
        if self.fixed_range is None and (training or self.observing):
            self._observe(values)
        if self.observing:
            return inputs
        rounded = tf.quantization.fake_quant_with_min_max_vars(
            values, self.minimum.value, self.maximum.value, self.bits
        )
        return ops.cast(rounded, inputs.dtype)

    def _observe(self, values: Any) -> None:
        self.batches.assign_add(1.0)
        share = self.observer.share(self.batches, self.observing)
        outside = self.observer.outside(self.observing)
        high = highest(values, outside)
        self._move(self.maximum, high if self.non_negative else ops.maximum(high, 0.0), share)
        if not self.non_negative:
            self._move(self.minimum, ops.minimum(lowest(values, outside), 0.0), share)

    def _move(self, end: Any, seen: Any, share: Any) -> None:
        """Move one end of the range towards what a batch showed, or all the way to include it."""
        if not self.observer.includes(self.observing):
            end.assign_add(share * (seen - end))
        elif end is self.maximum:
            end.assign(ops.maximum(end, seen))
        else:
            end.assign(ops.minimum(end, seen))

    def exact_ends(self) -> tuple[np.float32, np.float32]:
        """Minimum and maximum of the range, moved to where its zero point is a whole number."""
        return whole_zero_point(self.minimum.numpy(), self.maximum.numpy(), self.bits)

    def settle(self) -> None:
        """Move the range to where its zero point is a whole number."""
        for end, value in zip((self.minimum, self.maximum), self.exact_ends(), strict=True):
            end.assign(value)

    def forget(self) -> None:
        """Go back to a range that was never learned."""
        if self.fixed_range is None:
            for variable in (self.minimum, self.maximum, self.batches):
                variable.assign(0.0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "bits": self.bits,
            "fixed_range": self.fixed_range,
            "after_float": self.after_float,
            "non_negative": self.non_negative,
            "range": self.observer.kind,
            "percentile": self.observer.percentile,
        }


@keras.saving.register_keras_serializable("tfedge")
class QuantizedWeights(AbstractStandIn):
    """Run a layer with fake-quantised weights, and optionally the BatchNormalization behind it.

    Args:
        layer: The layer. Its own float weights are what trains.
        weights: Attribute of the layer to its `WeightSpec` axis.
        bits: Width of the integers.
        keep_sparsity: Weights that are zero when this wrapper is built stay zero.
        batch_norm: A BatchNormalization that takes the output of `layer` and will be folded into
            it. Its per-channel scale is applied before rounding and undone after, so that the
            *folded* kernel has one scale.
        clusters: Attribute of the layer to the `Hold` of its clusters, which stay: the weight gets
            trained centroids and, where these serve all of it, one scale.
    """

    def __init__(
        self,
        layer: Any,
        *,
        weights: Mapping[str, Any],
        bits: int = 8,
        keep_sparsity: bool = False,
        batch_norm: Any = None,
        clusters: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.batch_norm = batch_norm
        self.specs = tuple(
            WeightSpec(name, tuple(axis) if isinstance(axis, list) else axis)
            for name, axis in weights.items()
        )
        self.bits = bits
        self.keep_sparsity = keep_sparsity
        self.holds = {
            name: Hold(tuple(shape), axis) for name, (shape, axis) in (clusters or {}).items()
        }

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
        if self.batch_norm is not None and not self.batch_norm.built:
            self.batch_norm.build(self.layer.compute_output_shape(input_shape))
        self.masks = []
        for spec in self.specs if self.keep_sparsity else ():
            value = getattr(self.layer, spec.name)
            mask = self.add_weight(
                name=f"{spec.name}_mask",
                shape=value.shape,
                dtype="bool",
                initializer="ones",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
            )
            mask.assign(ops.not_equal(value, 0))
            self.masks.append(mask)
        self.sets = make_sets(self, self.layer, self.holds, keep_zero=self.keep_sparsity)

    def effective_weights(self) -> dict[str, Any]:
        """Attribute name to the masked, rounded tensor that the layer computes with."""
        return {
            spec.name: self._effective(spec, mask)
            for spec, mask in zip(self.specs, self.masks or [None] * len(self.specs), strict=True)
        }

    def _effective(self, spec: WeightSpec, mask: Any) -> Any:
        value = ops.convert_to_tensor(getattr(self.layer, spec.name))
        if mask is not None:
            value = value * ops.cast(mask, value.dtype)
        if spec.name in self.sets:
            value = self.sets[spec.name](value)
            return WeightSpec(spec.name, self.holds[spec.name].axis).fake_quant(value, self.bits)
        if self.batch_norm is None:
            return self._rounded(spec, value)
        factor = ops.cast(ops.stop_gradient(folded_scale(self.batch_norm)), value.dtype)
        factor = ops.where(factor == 0, ops.ones_like(factor), factor)
        return self._rounded(spec, value * factor) / factor

    def _rounded(self, spec: WeightSpec, value: Any) -> Any:
        return spec.fake_quant(value, self.bits)

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if self._takes_training:
            kwargs["training"] = training
        replaced = {id(getattr(self.layer, n)): v for n, v in self.effective_weights().items()}
        outputs = self.call_with(replaced, *args, **kwargs)
        if self.batch_norm is not None:
            outputs = self.batch_norm(outputs, training=training)
        return outputs

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weights": {spec.name: spec.axis for spec in self.specs},
            "bits": self.bits,
            "keep_sparsity": self.keep_sparsity,
            "clusters": {name: [list(h.shape), h.axis] for name, h in self.holds.items()},
            "batch_norm": serialize_keras_object(self.batch_norm) if self.batch_norm else None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedWeights":
        behind = config["batch_norm"] and deserialize_keras_object(config["batch_norm"])
        made: QuantizedWeights = super().from_config({**config, "batch_norm": behind})
        return made


def folded_scale(batch_norm: Any) -> Any:
    """Per-channel factor by which a BatchNormalization multiplies at inference.

    Args:
        batch_norm: A built `keras.layers.BatchNormalization`.

    Returns:
        Float32 tensor of shape `(channels,)`.
    """
    factor = ops.rsqrt(ops.cast(batch_norm.moving_variance, "float32") + batch_norm.epsilon)
    return factor * ops.cast(batch_norm.gamma, "float32") if batch_norm.scale else factor


def folded_offset(batch_norm: Any) -> Any:
    """Per-channel value that a BatchNormalization adds at inference, after its scale.

    Args:
        batch_norm: A built `keras.layers.BatchNormalization`.

    Returns:
        Float32 tensor of shape `(channels,)`.
    """
    shift = -ops.cast(batch_norm.moving_mean, "float32") * folded_scale(batch_norm)
    return shift + ops.cast(batch_norm.beta, "float32") if batch_norm.center else shift
