"""Keep the clusters of kernels in later training, under fake quantisation and in the int8 file.

A file can store as many distinct values as there are clusters only if one scale serves the whole
kernel, times the factor by which a folded batch normalisation multiplies each channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfedge.engines.native.centroids import MOST_VALUES, is_clustered
from tfedge.engines.native.clustering import CentroidSet
from tfedge.engines.native.kernels import Kernel, kernels_of
from tfedge.models import layers_of

# Layers whose kernels the converter takes with given scales per channel, and the channels' axis.
SCALED_CHANNELS: Mapping[str, int] = {"Conv2D": 3, "DepthwiseConv2D": 2}


def clustered_kernels(model: Any) -> list[Kernel]:
    """The kernels of a model, in either Keras, that look clustered."""
    kernels = [k for layer in layers_of(model) for k in kernels_of(layer, depthwise=True)]
    return [kernel for kernel in kernels if is_clustered(kernel.variable.numpy())]


def group_means(weights: Any, groups: Any, moving: Any) -> Any:
    """Each weight replaced by the mean of its group.

    Args:
        weights: Float tensor.
        groups: Int32 tensor of the same shape: the group of each weight.
        moving: One number per group, 0 where the group is to be zero and 1 elsewhere.

    Example:
        >>> group_means([1.0, 3.0, 9.0], [0, 0, 1], [1.0, 0.0]).numpy().tolist()
        [2.0, 2.0, 0.0]
    """
    moving = tf.convert_to_tensor(moving)
    flat = tf.reshape(tf.cast(weights, moving.dtype), [-1])
    means = tf.math.unsorted_segment_mean(flat, tf.reshape(groups, [-1]), moving.shape[0])
    return tf.gather(means * moving, groups)


class ClusterKeeper:
    """Holds the clusters of one kernel: weights that are equal now stay equal, zeros stay zero.

    After each step of the optimizer every weight becomes the mean of its cluster, which is the
    nearest kernel that has these clusters.

    Args:
        kernel: Clustered, in either Keras.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.others: Any = None  # the constraint that the variable had before
        values, groups = np.unique(kernel.variable.numpy(), return_inverse=True)
        self._groups = tf.constant(groups.reshape(tuple(kernel.variable.shape)), tf.int32)
        self._moving = tf.constant(values != 0, tf.float32)

    def install(self) -> None:
        """Go into the constraint of a Keras 3 variable, behind one that is there already."""
        self.others = self.kernel.variable.constraint
        self.kernel.variable.constraint = self

    def uninstall(self) -> None:
        """Leave it again, whatever was put around it since."""
        holder: Any = self.kernel.variable
        name = "constraint"
        while (found := getattr(holder, name)) is not None and found is not self:
            if "others" not in vars(found):
                return
            holder, name = found, "others"
        if found is self:
            setattr(holder, name, self.others)

    def __call__(self, variable: Any) -> Any:
        """The kernel with its clusters, at the end of an optimizer step."""
        weights = tf.convert_to_tensor(variable)
        if self.others is not None:
            weights = tf.convert_to_tensor(self.others(weights))
        return tf.cast(group_means(weights, self._groups, self._moving), weights.dtype)


# ---------------------------------------------------------------------- fake quantisation


@dataclass(frozen=True)
class Hold:
    """The clusters of one weight of a fake-quantised layer.

    Attributes:
        shape: Of its centroids: `(k,)`, or `(channels, k)` for a kernel that was clustered per
            channel and whose channels have scales of their own.
        axis: Axis of these channels.
    """

    shape: tuple[int, ...]
    axis: int | None


def holds_of(layer: Any, axes: Mapping[str, Any]) -> dict[str, Hold]:
    """Which weights of a layer have clusters to keep.

    Args:
        layer: A built Keras 3 layer.
        axes: Name of each weight that is quantised to the axis of its scales.
    """
    found = {}
    for name, axis in axes.items():
        values = ops.convert_to_numpy(getattr(layer, name))
        if not is_clustered(values):
            continue
        distinct = len(np.unique(values))
        if distinct <= MOST_VALUES:
            found[name] = Hold((distinct,), None)
        elif axis == values.ndim - 1:
            most = max(len(np.unique(channel)) for channel in np.moveaxis(values, -1, 0))
            found[name] = Hold((values.shape[-1], most), axis)
    return found


def keeps_fold(layer: Any, holds: Mapping[str, Hold]) -> bool:
    """Whether a batch normalisation behind a layer can be folded into it without loss of clusters.

    Args:
        layer: A built Keras 3 layer.
        holds: Its clusters.
    """
    if all(hold.axis is not None for hold in holds.values()):
        return True
    return _channels(layer) is not None


def _channels(layer: Any) -> int | None:
    """Axis of the channels that can be given scales, or `None`."""
    kind = type(layer).__name__
    if kind == "DepthwiseConv2D" and layer.depth_multiplier != 1:
        return None
    return SCALED_CHANNELS.get(kind)


def make_sets(
    owner: Any, layer: Any, holds: Mapping[str, Hold], *, keep_zero: bool
) -> dict[str, CentroidSet]:
    """The centroids of a fake-quantised layer, with the values that its weights have now.

    Args:
        owner: The wrapper, in its `build`.
        layer: The layer in it.
        holds: Its clusters.
        keep_zero: Whether a centroid that is zero stays so.
    """
    sets = {}
    for name, hold in holds.items():
        values = ops.convert_to_numpy(getattr(layer, name)).astype(np.float32)
        sets[name] = CentroidSet(owner, name, shape=hold.shape, axis=hold.axis, keep_zero=keep_zero)
        room = hold.shape[-1]  # a layer that is loaded has other weights now
        if hold.axis is None:
            sets[name].start(np.unique(values)[:room])
            continue
        rows = [np.unique(channel)[:room] for channel in np.moveaxis(values, hold.axis, 0)]
        sets[name].start(np.stack([np.pad(r, (0, room - len(r)), mode="edge") for r in rows]))
    return sets


def is_held(wrapper: Any) -> bool:
    """Whether the kernel of a `QuantizedWeights` has clusters under one scale."""
    hold = wrapper.holds.get("kernel")
    return hold is not None and hold.axis is None


def held_scales(wrapper: Any, factors: Any) -> np.ndarray:
    """Scales of the integers of a kernel with clusters.

    Args:
        wrapper: A built `QuantizedWeights` whose kernel has clusters under one scale.
        factors: By which a batch normalisation multiplies each channel; 1 without.

    Returns:
        Float32 array of the shape of `factors`.
    """
    kernel = ops.convert_to_numpy(wrapper.effective_weights()["kernel"]).astype(np.float32)
    scale = np.abs(kernel).max() / np.float32(2 ** (wrapper.bits - 1) - 1)
    factors = np.abs(np.asarray(factors, np.float32))
    return np.where(scale > 0, scale, np.float32(1)) * np.where(factors > 0, factors, 1)


def held_integers(wrapper: Any, factors: Any) -> np.ndarray:
    """The integers that a file stores of a kernel with clusters; arguments as `held_scales`."""
    kernel = ops.convert_to_numpy(wrapper.effective_weights()["kernel"]).astype(np.float32)
    integers = np.rint(kernel / held_scales(wrapper, 1)).astype(int)
    axis = _channels(wrapper.layer)
    signs = np.sign(np.asarray(factors)).astype(int)
    if axis is None or signs.ndim == 0:
        return integers
    return integers * signs.reshape([-1 if i == axis else 1 for i in range(integers.ndim)])


class FixedScales(keras.layers.Layer):
    """A layer with a baked kernel whose scales the converter is told, for export only.

    Args:
        layer: A built layer with a `kernel`.
        scales: One for the whole kernel, or one per channel of a layer in `SCALED_CHANNELS`.
    """

    def __init__(self, layer: Any, scales: np.ndarray) -> None:
        super().__init__(name=layer.name, dtype="float32", trainable=False)
        self.layer = layer
        axis = _channels(layer)
        top = 127 * np.asarray(scales, np.float32)
        self.top = top if axis is None else np.broadcast_to(top, (layer.kernel.shape[axis],))
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The output of the layer, its kernel marked with ranges."""
        kernel = self.layer.kernel
        with keras.StatelessScope([(kernel, self._marked(kernel.value))]):
            return self.layer(inputs)

    def _marked(self, kernel: Any) -> Any:
        axis = _channels(self.layer)
        mark = tf.quantization.fake_quant_with_min_max_vars_per_channel
        if axis is None:
            mark = tf.quantization.fake_quant_with_min_max_vars
            return mark(kernel, -self.top, self.top, 8, True)
        if axis == len(kernel.shape) - 1:
            return mark(kernel, -self.top, self.top, 8, True)
        turned = tf.transpose(kernel, (0, 1, 3, 2))
        return tf.transpose(mark(turned, -self.top, self.top, 8, True), (0, 1, 3, 2))

    def compute_output_spec(self, inputs: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_spec(inputs)
