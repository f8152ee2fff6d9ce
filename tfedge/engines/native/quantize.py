"""Turn a Keras 3 model into one that trains with fake quantisation, and calibrate its ranges."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import keras

from tfedge.engines.native.bits import Bits
from tfedge.engines.native.cluster_keeping import Hold, holds_of, keeps_fold
from tfedge.engines.native.fake_quant import FakeQuantize, QuantizedWeights
from tfedge.engines.native.graph import Call, Copies, Graph, build_model, read_graph
from tfedge.engines.native.lower import lower
from tfedge.engines.native.place import LayerRule, Placement, place
from tfedge.engines.native.scheme import Scheme
from tfedge.errors import DataError
from tfedge.models import layers_of


def prepare_quantization(
    model: Any,
    *,
    keep_float: Collection[str] = (),
    keep_sparsity: bool = False,
    keep_clusters: bool = False,
    rules: Mapping[type, LayerRule] | None = None,
    scheme: Scheme | None = None,
) -> tuple[Any, Placement]:
    """An own copy of `model` with fake-quantised weights and activations.

    Args:
        model: A built Functional or Sequential Keras 3 model.
        keep_float: Names of layers that stay float.
        keep_sparsity: Weights that are zero now stay zero while training.
        keep_clusters: Kernels that are clustered now keep as many distinct values.
        rules: Class of an own layer to how it is quantised.
        scheme: Widths, ranges, freezing. Default: 8 bits, ranges by moving averages.

    Returns:
        The model, not compiled, and what was quantised in it.

    Raises:
        UnsupportedModelError: The model has no graph that can be rebuilt.
        SettingsError: A width was asked for that a layer cannot have.
    """
    whole = frozenset(keep_float)
    scheme = scheme or Scheme()
    simple = read_graph(lower(read_graph(model), keep=whole))
    placement = place(simple, keep_float=whole, rules=rules)
    clusters = _clusters(simple, placement) if keep_clusters else {}
    unfolded = [
        call.name
        for call in simple.calls
        if call.name in clusters and not keeps_fold(call.operation, clusters[call.name])
    ]
    if unfolded:
        placement = place(simple, keep_float=whole, rules=rules, unfolded=unfolded)
    bits = scheme.bits(simple, placement, [layer.name for layer in layers_of(model)])
    placement = dataclasses.replace(placement, notes=bits.notes)
    prepared = insert(
        simple,
        placement,
        keep_sparsity=keep_sparsity,
        clusters=clusters,
        scheme=scheme,
        bits=bits,
    )
    return prepared, placement


def _clusters(graph: Graph, placement: Placement) -> dict[str, dict[str, Hold]]:
    """Name of each call of a layer to the clusters that its weights have now."""
    weights = placement.weights
    operations = {call.name: call.operation for call in graph.calls if call.name in weights}
    found = {name: holds_of(layer, weights[name]) for name, layer in operations.items()}
    return {name: holds for name, holds in found.items() if holds}


def insert(
    graph: Graph,
    placement: Placement,
    *,
    keep_sparsity: bool,
    clusters: Mapping[str, Mapping[str, Hold]],
    scheme: Scheme,
    bits: Bits,
) -> Any:
    """Build the fake-quantised model that a placement describes.

    Args:
        graph: A graph of simple layers.
        placement: What to quantise in it.
        keep_sparsity: Weights that are zero now stay zero.
        clusters: Name of a call to the clusters that its weights keep.
        scheme: What the layers of fake quantisation are built with.
        bits: The width of each of them.
    """
    copies = Copies()
    wrappers: dict[str, Any] = {}
    calls = {call.name: call for call in graph.calls}
    absorbed = frozenset(placement.batch_norms.values())
    ranges: Counter[str] = Counter()

    def copy_of(call: Call) -> Any:
        if call.kind != "BatchNormalization":
            return copies.of(call)
        cls, changes = scheme.norm(call.operation)
        return copies.of(call, cls=cls, **changes)

    def wrapper(call: Call) -> Any:
        if call.name not in wrappers:
            batch_norm = placement.batch_norms.get(call.name)
            wrappers[call.name] = scheme.weights_class(call)(
                copy_of(call),
                weights=placement.weights[call.name],
                bits=bits.weights[call.name],
                keep_sparsity=keep_sparsity,
                batch_norm=copy_of(calls[batch_norm]) if batch_norm else None,
                clusters={
                    name: (hold.shape, hold.axis)
                    for name, hold in clusters.get(call.name, {}).items()
                },
                trainable=call.trainable,
            )
        return wrappers[call.name]

    def quantized(index: int, tensor: Any, name: str) -> Any:
        if index not in placement.tensors:
            return tensor
        number = ranges[name]
        ranges[name] += 1
        name = f"{name}_range_{number}" if number else f"{name}_range"
        return scheme.range_layer(index, graph, placement, bits=bits.tensors[index], name=name)(
            tensor
        )

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.name in absorbed:
            return args[0]
        layer = wrapper(call) if call.name in placement.weights else copy_of(call)
        results = keras.tree.flatten(layer(*args, **kwargs))
        return [quantized(i, t, call.name) for i, t in zip(call.outputs, results, strict=True)]

    return build_model(graph, emit, on_input=lambda i, t: quantized(i, t, graph.specs[i].name))


def calibrate(model: Any, batches: Iterable[Any]) -> int:
    """Set the learned ranges of a fake-quantised model from data, without training.

    Ranges come from one pass of the float computation, as `FakeQuantize` says; what was learned
    before is forgotten. Weights and batch statistics stay as they are.

    Args:
        model: A model from `prepare_quantization`.
        batches: Inputs of the model, batch by batch.

    Returns:
        How many batches were used.

    Raises:
        DataError: There was no batch.
    """
    layers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    used = 0
    for layer in layers:
        layer.forget()
        layer.observing = True
    try:
        for batch in batches:
            model(batch, training=False)
            used += 1
    finally:
        for layer in layers:
            layer.observing = False
    if not used:
        raise DataError("Calibration needs at least one batch of inputs. Received: none.")
    return used


def is_quantized(model: Any) -> bool:
    """Whether a Keras 3 model holds fake quantisation of tfedge."""
    return any(isinstance(layer, FakeQuantize | QuantizedWeights) for layer in model.layers)


def activation_ranges(model: Any) -> dict[str, tuple[float, float]]:
    """The range of each fake-quantised tensor of a model, by the name of what writes it.

    Args:
        model: A Keras 3 model. Without fake quantisation there are none.
    """
    return {
        layer.name.removesuffix("_range"): (
            float(keras.ops.convert_to_numpy(layer.minimum)),
            float(keras.ops.convert_to_numpy(layer.maximum)),
        )
        for layer in model.layers
        if isinstance(layer, FakeQuantize) and layer.has_range
    }


def unknown_layers(model: Any) -> tuple[str, ...]:
    """Names of the layers of a fake-quantised model whose inside training had no rule for."""
    graph = read_graph(model)
    own = (FakeQuantize, QuantizedWeights)
    placement = place(graph)
    return tuple(
        dict.fromkeys(
            call.name
            for call in graph.calls
            if call.name in placement.unknown and not isinstance(call.operation, own)
        )
    )
