"""The layers, rules and observers that tfedge adds to TFMOT's quantization wrappers.

Imported lazily by `quantization.py`: its classes derive from classes of tf_keras and TFMOT.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow

from tfedge.engines.native.centroids import MOST_VALUES, is_clustered
from tfedge.engines.tfmot._library import internals, tf_keras, tfmot
from tfedge.engines.tfmot.cluster_keeping import ClusterKeeper, ZeroKeeper

_quantizers = tfmot().quantization.keras.quantizers
_wrapper = internals("quantization.keras.quantize_wrapper")
_layer = internals("quantization.keras.quantize_layer")
_activation = internals("quantization.keras.quantize_aware_activation")
_configs = internals("quantization.keras.default_8bit.default_8bit_quantize_configs")
_registry = internals("quantization.keras.default_8bit.default_8bit_quantize_registry")

# The classes that are derived from here. Names of type `Any`: mypy cannot look into calls.
_Layer: Any = tf_keras().layers.Layer
_BatchNormalization: Any = tf_keras().layers.BatchNormalization
_QuantizeConfig: Any = tfmot().quantization.keras.QuantizeConfig
_TheirLayer: Any = _layer.QuantizeLayer
_TheirWrapper: Any = _wrapper.QuantizeWrapperV2


class InferenceBatchNormalization(_BatchNormalization):
    """A batch normalisation that was called with `training=False`: its statistics stay."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Normalise with the moving statistics, whether training or not."""
        return super().call(inputs, training=False, mask=mask)


class QuantizeLayer(_TheirLayer):
    """TFMOT's layer that quantises a tensor, mended so that it can be loaded from `.keras`.

    Keras builds a layer when it loads it and again when it calls it, unless it is marked as built;
    TFMOT's does not mark itself, and then has twice the variables that the file holds.
    """

    def build(self, input_shape: Any) -> None:
        """Make the variables, once."""
        super().build(input_shape)
        self.built = True

    def get_build_config(self) -> None:
        """Nothing: TFMOT's own class, too, can then load it."""
        return


class QuantizeWrapperV2(_TheirWrapper):
    """TFMOT's wrapper, mended: frozen layers stay frozen, and it can be loaded from `.keras`.

    TFMOT's trains the kernel of a layer with `trainable=False`. It also holds weights of the inner
    layer twice when it wraps a built layer, and once when it is loaded, which does not fit.

    Args:
        layer: The layer to wrap.
        quantize_config: TFMOT's rule for it.
        keep_zeros: Weights that are zero stay zero while training. TFMOT's own way of doing so is
            lost when a model is saved.
        clusters: How many distinct values the kernel keeps, under one scale; 0 for any.
    """

    def __init__(
        self,
        layer: Any,
        quantize_config: Any,
        keep_zeros: bool = False,
        clusters: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(layer, quantize_config, **settings)
        self.keep_zeros = keep_zeros
        self.clusters = clusters

    def build(self, input_shape: Any) -> None:
        """Make the variables; hold those of the inner layer once."""
        super().build(input_shape)
        self._trainable_weights[:] = [weight for weight, _, _ in self._weight_vars]
        if self.clusters:
            keeper = self._cluster_keeper
            self._weight_vars: list[tuple[Any, Any, Any]] = [
                (weight, keeper(weight, quantizer), ranges)
                for weight, quantizer, ranges in self._weight_vars
            ]
        if self.keep_zeros:
            self._weight_vars = [
                (weight, ZeroKeeper(quantizer), ranges)
                for weight, quantizer, ranges in self._weight_vars
            ]

    def _cluster_keeper(self, weight: Any, quantizer: Any) -> Any:
        first = np.unique(weight.numpy())[: self.clusters]  # loaded ones come later
        first = np.pad(first, (0, self.clusters - len(first)), mode="edge")
        constant = tf_keras().initializers.Constant
        centroids = self.add_weight(
            "centroids", shape=first.shape, initializer=constant(first), trainable=True
        )
        free = self.add_weight(
            "free_centroids",
            shape=first.shape,
            initializer=constant((first != 0) | (not self.keep_zeros)),
            trainable=False,
        )
        return ClusterKeeper(quantizer, centroids, free)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        config = super().get_config()
        return {**config, "keep_zeros": self.keep_zeros, "clusters": self.clusters}

    @property
    def trainable_weights(self) -> list[Any]:
        """What an optimizer may change: nothing where the inner layer is frozen."""
        return list(super().trainable_weights) if self.layer.trainable else []

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All other variables."""
        frozen = [] if self.layer.trainable else list(self._trainable_weights)
        return frozen + list(super().non_trainable_weights)


def clusters_to_keep(layer: Any) -> int:
    """How many clusters the kernel in a wrapper has that can be kept; 0 if it has none.

    These are kernels of Conv2D and Dense, as in TFMOT.
    """
    if type(layer.layer).__name__ not in ("Conv2D", "Dense"):
        return 0
    kernels = [weight.numpy() for weight in inner_weights(layer) if short_name(weight) == "kernel"]
    distinct = len(np.unique(kernels[0])) if kernels and is_clustered(kernels[0]) else 0
    return distinct if distinct <= MOST_VALUES else 0


def without_centroids(layer: Any) -> Any:
    """A wrapped layer of the same computation whose kernel is clustered as it stands."""
    inner = _copied(layer, type(layer.layer), _own_activation(layer.layer))
    return QuantizeWrapperV2(inner, layer.quantize_config, name=layer.name)


def set_clustered_weights(source: Any, target: Any) -> None:
    """Set the weights of one wrapper to those of another that keeps clusters, clustered."""
    values = {short_name(weight): weight.numpy() for weight in source.weights}
    for weight, keeper, _ in source._weight_vars:
        values[short_name(weight)] = keeper.clustered(weight).numpy()
    for weight in {id(one): one for one in (*target.weights, *inner_weights(target))}.values():
        weight.assign(values[short_name(weight)])


def carry(lambdas: dict[str, Any]) -> type:
    """The class of layers that stand for `Lambda` layers while TFMOT rebuilds a model.

    Keras refuses to read a Lambda back from a configuration, as it may come from a stranger's
    file. The code of these is in this process already.

    Args:
        lambdas: The `Lambda` layers by name.
    """

    class CarriedLambda(_Layer):
        def call(self, inputs: Any, *args: Any) -> Any:
            return lambdas[self.name].call(inputs, *args)

    return CarriedLambda


class RuleConfig(_QuantizeConfig):
    """How a layer of one's own is quantised.

    Args:
        weights: Attribute of the layer to whether its last axis has one scale per index.
        output: Whether its output is quantised.
        fixed_range: Range of the output where that is known, `[smallest, largest]`.
    """

    def __init__(
        self, weights: dict[str, bool], output: bool = True, fixed_range: list[float] | None = None
    ):
        self.weights = dict(weights)
        self.output = output
        self.fixed_range = fixed_range

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """The weights to quantise, each with its quantizer."""
        return [
            (getattr(layer, name), _weight_quantizer(per_axis))
            for name, per_axis in self.weights.items()
        ]

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """Nothing: the output is quantised instead."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Put the quantised weights in the place of the weights."""
        for name, value in zip(self.weights, quantize_weights, strict=True):
            setattr(layer, name, value)

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Nothing: the output is quantised instead."""
        del layer, quantize_activations  # AutoGraph cannot read an empty body

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """The quantizer of the output, or none."""
        if not self.output:
            return []
        if self.fixed_range is not None:
            low, high = self.fixed_range
            return [_quantizers.FixedQuantizer(8, low, high, narrow_range=False)]
        return [
            _quantizers.MovingAverageQuantizer(
                num_bits=8, per_axis=False, symmetric=False, narrow_range=False
            )
        ]

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {"weights": self.weights, "output": self.output, "fixed_range": self.fixed_range}


@dataclass(frozen=True)
class Mending:
    """What TFMOT's rewriting loses, and how it is put back.

    Attributes:
        frozen: Names of folded batch normalisations that were called with `training=False`.
        lambdas: The `Lambda` layers by name.
        keep_zeros: Whether weights that are zero stay zero.
        keep_clusters: Names of the layers whose kernels stay clustered where they are.
    """

    frozen: frozenset[str]
    lambdas: dict[str, Any]
    keep_zeros: bool
    keep_clusters: frozenset[str] = frozenset()

    def mend(self, layer: Any) -> Any:
        """A new layer for one that needs mending, or `layer` itself.

        - A folded batch normalisation that was called with `training=False` goes on so.
        - TFMOT gives the layer before a `ReLU` layer no fake quantisation at all, not even of its
          weights, although the int8 file has 8-bit weights: these are quantised here.
        - Lambdas come back, and layers that quantise a tensor can be loaded.
        """
        if layer.name in self.lambdas:
            source = self.lambdas[layer.name]
            return type(source).from_config(source.get_config())
        if type(layer) is _layer.QuantizeLayer:
            return QuantizeLayer.from_config(layer.get_config())
        if not isinstance(layer, _wrapper.QuantizeWrapper):
            return layer
        kind, config = type(layer.layer), layer.quantize_config
        activation = _own_activation(layer.layer)
        if layer.layer.name in self.frozen:
            kind = InferenceBatchNormalization
        elif isinstance(config, _configs.NoOpQuantizeConfig) and _has_kernel(layer.layer):
            activation = _activation.NoOpActivation()
            config = _registry.Default8BitQuantizeRegistry().get_quantize_config(layer.layer)
        keeps = layer.layer.name in self.keep_clusters
        clusters = clusters_to_keep(layer) if keeps else 0
        copied = _copied(layer, kind, activation)
        return QuantizeWrapperV2(copied, config, self.keep_zeros, clusters, name=layer.name)


def without_weight_ranges(layer: Any) -> Any:
    """A wrapped layer of the same computation that takes its weights as they are."""
    inner = _copied(layer, type(layer.layer), _own_activation(layer.layer))
    return QuantizeWrapperV2(inner, _configs.NoOpQuantizeConfig(), name=layer.name)


def rounded_weights(layer: Any) -> dict[str, Any]:
    """Name of each quantised weight of the layer in a wrapper to its rounded values."""
    return {
        short_name(weight): quantizer(tensorflow.identity(weight), False, weights=ranges).numpy()
        for weight, quantizer, ranges in layer._weight_vars
    }


def keeps_clusters(layer: Any) -> bool:
    """Whether a layer is a quantization wrapper that keeps the clusters of its kernel."""
    return isinstance(layer, QuantizeWrapperV2) and layer.clusters > 0


def round_weights(source: Any, target: Any) -> None:
    """Set the inner weights of one wrapper to those of another as that one rounds them."""
    values = rounded_weights(source)
    for weight in inner_weights(target):
        if short_name(weight) in values:
            weight.assign(values[short_name(weight)])


def inner_weights(layer: Any) -> list[Any]:
    """The variables of the layer in a wrapper.

    A quantised one is not an attribute of that layer any more: the wrapper puts the rounded
    tensor in its place.
    """
    found = {id(one): one for one, _, _ in layer._weight_vars}
    found.update((id(one), one) for one in layer.layer.weights)
    return list(found.values())


def is_wrapped(layer: Any, kind: str = "Layer") -> bool:
    """Whether `layer` is a quantization wrapper, around a layer of the class named `kind`."""
    wrapped = isinstance(layer, _wrapper.QuantizeWrapper)
    return wrapped and kind in {one.__name__ for one in type(layer.layer).__mro__}


def _copied(wrapper: Any, kind: Any, activation: Any) -> Any:
    """A copy of the layer in a wrapper, with its weights.

    Args:
        wrapper: A built wrapper.
        kind: The class of the copy.
        activation: The activation of the copy; `None` if it has none.
    """
    settings = wrapper.layer.get_config()
    if activation is not None:
        settings = {**settings, "activation": "linear"}
    made = kind.from_config(settings)
    if activation is not None:
        made.activation = activation
    with tf_keras().backend.name_scope(f"{wrapper.name}/{made.name}"):  # HDF5 needs unlike names
        made.build(wrapper.get_input_shape_at(0))
    values = {short_name(weight): weight.numpy() for weight in inner_weights(wrapper)}
    for weight in made.weights:
        weight.assign(values[short_name(weight)])
    return made


def _own_activation(layer: Any) -> Any:
    """The activation of a layer, out of the wrapper that TFMOT puts around it; `None` if none."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, _activation.QuantizeAwareActivation):
        return activation.activation
    return activation


def short_name(weight: Any) -> str:
    """`kernel` of `quant_conv/conv/kernel:0`."""
    return str(weight.name.split(":")[0].rsplit("/", 1)[-1])


class Observer:
    """Takes the place of quantizers: lets tensors through and remembers their extremes."""

    def __init__(self) -> None:
        self._ranges: dict[int, tuple[Any, Any, list[float], list[float]]] = {}

    def stand_in(self, quantizer: Any, learnt: bool) -> Any:
        """A quantizer's stand-in.

        Args:
            quantizer: What it stands in for.
            learnt: Whether its tensors are observed (activations), or only let through (weights).
        """
        overall = isinstance(quantizer, _quantizers.AllValuesQuantizer)

        def observe(inputs: Any, training: Any, weights: Any) -> Any:
            if not learnt:
                return tensorflow.identity(inputs)  # Keras would track a variable a second time
            if weights:
                self._note(weights, float(np.min(inputs)), float(np.max(inputs)), overall)
            return inputs

        return observe

    def _note(self, weights: Any, low: float, high: float, overall: bool) -> None:
        lows: list[float] = []
        highs: list[float] = []
        empty = (weights, overall, lows, highs)
        _, _, lows, highs = self._ranges.setdefault(id(weights), empty)
        lows.append(min(low, 0.0))
        highs.append(max(high, 0.0))

    def set_ranges(self) -> int:
        """Write what was observed into the ranges; returns how many."""
        for weights, overall, lows, highs in self._ranges.values():
            weights["min_var"].assign(min(lows) if overall else float(np.mean(lows)))
            weights["max_var"].assign(max(highs) if overall else float(np.mean(highs)))
        return len(self._ranges)


@contextlib.contextmanager
def observing(model: Any) -> Iterator[Observer]:
    """While the block runs, the quantizers of `model` observe and do not quantise.

    Afterwards the ranges of the weights are those of the weights.

    Args:
        model: A quantize-aware model.
    """
    observer, undo = Observer(), []
    try:
        for layer in model.layers:
            undo += _stand_in(layer, observer)
        yield observer
    finally:
        for restore in undo:
            restore()
    for layer in model.layers:
        for weight, quantizer, ranges in getattr(layer, "_weight_vars", ()):
            quantizer(weight, True, weights=ranges)


def _stand_in(layer: Any, observer: Observer) -> list[Any]:
    undo = []
    if isinstance(layer, _layer.QuantizeLayer) and layer.quantizer:
        undo.append(_swap(layer, "quantizer", observer.stand_in(layer.quantizer, True)))
    if isinstance(layer, _wrapper.QuantizeWrapper):
        for one in layer._quantize_activations:
            undo.append(_swap(one, "quantizer", observer.stand_in(one.quantizer, True)))
        outputs = [observer.stand_in(one, True) for one in layer._output_quantizers]
        undo.append(_swap(layer, "_output_quantizers", outputs))
        weights = [
            (weight, observer.stand_in(quantizer, False), ranges)
            for weight, quantizer, ranges in layer._weight_vars
        ]
        undo.append(_swap(layer, "_weight_vars", weights))
    return undo


def _swap(owner: Any, name: str, value: Any) -> Any:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def _has_kernel(layer: Any) -> bool:
    return type(layer).__name__ in ("Conv2D", "DepthwiseConv2D", "Dense")


def _weight_quantizer(per_axis: bool) -> Any:
    return _quantizers.LastValueQuantizer(
        num_bits=8, per_axis=per_axis, symmetric=True, narrow_range=True
    )
