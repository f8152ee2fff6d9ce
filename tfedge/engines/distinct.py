"""Count the distinct values and the zeros of the kernels that a model computes with."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfedge.engines.native.kernels import kernels_of
from tfedge.models import keras_of, layers_of


def unique_values(model: Any) -> dict[str, int]:
    """How many distinct values each kernel of a model has.

    Args:
        model: A Keras 3 or tf_keras model. In one that is clustered or fake-quantised while it
            trains, the values count that its layers compute with.

    Returns:
        Name of each layer to the number; for a layer of several kernels, `"layer/kernel"` or,
        while it is clustered, `"layer/place"` of the kernel among its weights.

    Example:
        >>> import keras
        >>> layer = keras.layers.Dense(2, kernel_initializer="ones", name="dense")
        >>> unique_values(keras.Sequential([keras.Input((4,)), layer]))
        {'dense': 1}
    """
    return {name: len(np.unique(values)) for name, values in kernel_values(model)}


def zero_counts(model: Any) -> dict[str, int]:
    """How many zeros each kernel of a model has; named and looked at as by `unique_values`."""
    return {name: int(np.sum(values == 0)) for name, values in kernel_values(model)}


def kernel_values(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The kernels that the layers of a model compute with, named as by `unique_values`."""
    native = keras_of(model) == "keras"
    for layer in layers_of(model):
        layer_name, found = _native_values(layer) if native else _tfmot_values(layer)
        for name, values in found.items():
            yield layer_name if len(found) == 1 else f"{layer_name}/{name}", values


def _native_values(layer: Any) -> tuple[str, dict[str, np.ndarray]]:
    from keras import ops

    from tfedge.engines.native.clustering import ClusteredWeights
    from tfedge.engines.native.fake_quant import QuantizedWeights

    if isinstance(layer, QuantizedWeights):
        rounded = layer.effective_weights().items()
        return layer.name, {name: ops.convert_to_numpy(value) for name, value in rounded}
    if isinstance(layer, ClusteredWeights):
        return layer.name, {
            place: ops.convert_to_numpy(layer.clustered_kernel(place)) for place in layer.kernels
        }
    return layer.name, _plain_values(layer)


def _tfmot_values(layer: Any) -> tuple[str, dict[str, np.ndarray]]:
    from tfedge.engines import tfmot

    if tfmot.is_clustered_wrapper(layer):
        weights = tfmot.clustered_weights(layer)
        places = layer.position_original_weights.items()
        return layer.layer.name, {name: weights[place] for place, name in sorted(places)}
    if tfmot.is_quantized_wrapper(layer):
        return layer.layer.name, tfmot.rounded_weights(layer)
    return layer.name, _plain_values(layer)


def _plain_values(layer: Any) -> dict[str, np.ndarray]:
    kernels = kernels_of(layer, depthwise=True)
    names = [k.name if k.owner is layer else f"{k.owner.name}/{k.name}" for k in kernels]
    return {name: k.variable.numpy() for name, k in zip(names, kernels, strict=True)}
