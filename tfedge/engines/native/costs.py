"""Count what each call of a graph costs: parameters, multiply-accumulates, memory."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfedge.engines.native.graph import Call, Graph
from tfedge.errors import UnsupportedModelError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one call costs for one sample.

    Attributes:
        name: Of the call.
        kind: Class name of the layer or operation.
        parameters: Weights of the layer; 0 where an earlier call of a shared layer counts them.
        macs: Multiply-accumulates of kernels; element-wise work is not counted.
        output_bytes: Size of what it writes, in its own dtype.
    """

    name: str
    kind: str
    parameters: int
    macs: int
    output_bytes: int


def costs_of(graph: Graph) -> tuple[Cost, ...]:
    """The cost of each call, in order of execution.

    Args:
        graph: Of a built Keras 3 model. Every axis but the batch must have a size.

    Raises:
        UnsupportedModelError: An axis has no size.
    """
    seen: set[int] = set()
    rows = []
    for call in graph.calls:
        counted = id(call.operation) in seen
        seen.add(id(call.operation))
        weights = call.operation.weights if call.is_layer and not counted else ()
        rows.append(
            Cost(
                name=call.name,
                kind=type(call.operation).__name__,
                parameters=sum(int(np.prod(weight.shape)) for weight in weights),
                macs=macs_of(graph, call),
                output_bytes=sum(size_bytes(graph.specs[index]) for index in call.outputs),
            )
        )
    return tuple(rows)


def total_macs(graph: Graph) -> int:
    """Multiply-accumulates of a whole graph for one sample."""
    return sum(macs_of(graph, call) for call in graph.calls)


def total_parameters(graph: Graph) -> int:
    """Weights of all layers of a graph, each layer once."""
    layers = {id(call.operation): call.operation for call in graph.calls if call.is_layer}
    return sum(_size(*layer.weights) for layer in layers.values())


def peak_bytes(graph: Graph) -> int:
    """The most memory that tensors take at once when the calls run in their order, one sample.

    A tensor lives from the call that writes it to the last one that reads it; outputs of the model
    live to the end. In-place operators and padding of a runtime are not modelled.
    """
    order = {id(call): place for place, call in enumerate(graph.calls)}
    end = len(graph.calls)
    change = [0] * (end + 2)
    for index, spec in graph.specs.items():
        writer = graph.producers.get(index)
        first = 0 if writer is None else order[id(writer)]
        readers = [order[id(call)] for call in graph.consumers[index]]
        last = end if index in graph.outputs else max([first, *readers])
        change[first] += size_bytes(spec)
        change[last + 1] -= size_bytes(spec)
    return int(np.cumsum(change).max())


def size_bytes(spec: Any) -> int:
    """Size of a tensor of one sample."""
    width = 1 if spec.dtype == "bool" else keras.backend.standardize_dtype(spec.dtype)
    bits = 8 if width == 1 else int("".join(c for c in str(width) if c.isdigit()) or 32)
    return _volume(spec) * bits // 8


def macs_of(graph: Graph, call: Call) -> int:
    """Multiply-accumulates of one call for one sample."""
    if not call.is_layer:
        return _matrix_product(graph, call)
    layer = call.operation
    for base in type(layer).__mro__:
        rule = RULES.get(base.__name__)
        if rule is not None:
            return rule(layer, graph.specs[call.inputs[0]], graph.specs[call.outputs[0]])
    return 0


def _volume(spec: Any, axes: slice = slice(1, None)) -> int:
    shape = spec.shape[axes]
    if any(size is None for size in shape):
        raise UnsupportedModelError(
            f"Costs need the size of every axis. Received: `{spec.name}` of shape {spec.shape}. "
            "Build the model with a fixed `keras.Input(shape)`."
        )
    return int(np.prod(shape))


def _positions(layer: Any, spec: Any) -> int:
    """How many places of an image or sequence a kernel is applied to."""
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return _volume(spec, slice(1, -1) if last else slice(2, None))


def _size(*variables: Any) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def _convolution(layer: Any, before: Any, after: Any) -> int:
    return _positions(layer, after) * _size(layer.kernel)


def _transposed(layer: Any, before: Any, after: Any) -> int:
    return _positions(layer, before) * _size(layer.kernel)


def _separable(layer: Any, before: Any, after: Any) -> int:
    return _positions(layer, after) * _size(layer.depthwise_kernel, layer.pointwise_kernel)


def _dense(layer: Any, before: Any, after: Any) -> int:
    return _volume(after, slice(1, -1)) * _size(layer.kernel)


def _einsum(layer: Any, before: Any, after: Any) -> int:
    operands, result = layer.equation.split("->")
    labels = zip(operands.split(",")[1], layer.kernel.shape, strict=True)
    return _volume(after) * int(np.prod([size for label, size in labels if label not in result]))


def _attention(layer: Any, before: Any, after: Any) -> int:
    steps = _volume(before, slice(1, -1))
    kernels = [v for v in layer.trainable_weights + layer.non_trainable_weights if v.name != "bias"]
    width = layer.num_heads * (layer.key_dim + (layer.value_dim or layer.key_dim))
    return steps * _size(*kernels) + steps * steps * width


def _recurrent(layer: Any, before: Any, after: Any) -> int:
    cell = layer.cell
    return _volume(before, slice(1, 2)) * _size(cell.kernel, cell.recurrent_kernel)


def _both_ways(layer: Any, before: Any, after: Any) -> int:
    ways = (layer.forward_layer, layer.backward_layer)
    return sum(_recurrent(way, before, after) for way in ways)


def _matrix_product(graph: Graph, call: Call) -> int:
    if type(call.operation).__name__ not in ("Matmul", "Dot") or len(call.inputs) != 2:
        return 0
    inner = graph.specs[call.inputs[0]].shape[-1]
    return _volume(graph.specs[call.outputs[0]]) * int(inner or 1)


def _named(names: Iterable[str], rule: Callable[..., int]) -> dict[str, Callable[..., int]]:
    return dict.fromkeys(names, rule)


# Class name of a layer, or of one that it derives from, to the count of its multiply-accumulates.
RULES: Mapping[str, Callable[[Any, Any, Any], int]] = {
    **_named(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _transposed),
    **_named(("Conv1D", "Conv2D", "Conv3D"), _convolution),
    **_named(("DepthwiseConv1D", "DepthwiseConv2D"), _convolution),
    **_named(("SeparableConv1D", "SeparableConv2D"), _separable),
    "Dense": _dense,
    "EinsumDense": _einsum,
    "MultiHeadAttention": _attention,
    **_named(("LSTM", "GRU", "SimpleRNN"), _recurrent),
    "Bidirectional": _both_ways,
}
