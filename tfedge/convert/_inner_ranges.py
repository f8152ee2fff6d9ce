"""Give ranges to the inside of layers that training had no rule for, from calibration samples."""

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import tensorflow as tf

from tfedge.convert._calibration import Samples

# Operations that only move values, or whose output LiteRT keeps inside one operator.
MOVES = frozenset(
    ["Identity", "Reshape", "Squeeze", "ExpandDims", "Transpose", "Shape", "StridedSlice", "Pack"]
)
LINEAR = frozenset(["MatMul", "BatchMatMulV2", "Conv2D", "DepthwiseConv2dNative", "Einsum"])
BIAS = frozenset(["BiasAdd", "AddV2", "Add"])
LOOPS = frozenset(["While", "StatelessWhile", "If", "StatelessIf", "TensorListReserve"])
RELUS = frozenset(["Relu", "Relu6"])


def with_inner_ranges(function: Any, layers: Collection[str], samples: Samples) -> Any:
    """A concrete function with fake quantisation on the float tensors inside some layers.

    Args:
        function: A frozen concrete function of batch 1.
        layers: Names of the layers, as they stand in the scopes of the function's operations.
        samples: What to take the ranges from.

    Returns:
        A function of the same inputs and outputs; `function` itself if there is nothing inside.
    """
    graph = function.graph
    operations = graph.get_operations()
    looping = {layer for op in operations if op.type in LOOPS for layer in _inside(op, layers)}
    layers = set(layers) - looping
    chosen = [op.outputs[0] for op in operations if _wants_range(op, layers)]
    if not chosen:
        return function
    ranges = _observed(function, chosen, samples)
    return _rebuilt(function, ranges)


def _inside(op: Any, layers: Collection[str]) -> set[str]:
    """Which of the layers an operation belongs to, by its scopes."""
    scopes = op.name.split("/")
    return {*scopes, *(re.sub(r"_\d+$", "", scope) for scope in scopes)} & set(layers)


def _wants_range(op: Any, layers: Collection[str]) -> bool:
    if not _inside(op, layers) or len(op.outputs) != 1 or op.type in MOVES:
        return False
    output = op.outputs[0]
    if output.dtype != tf.float32 or not _depends_on_input(op):
        return False
    readers = output.consumers()
    if any(reader.type.startswith("FakeQuant") for reader in readers):
        return False
    if len(readers) != 1:
        return True
    fuses_bias = op.type in LINEAR and readers[0].type in BIAS and _adds_constant(readers[0])
    return not fuses_bias and readers[0].type not in RELUS


def _depends_on_input(op: Any) -> bool:
    waiting, seen = [op], {op.name}
    while waiting:
        current = waiting.pop()
        if current.type == "Placeholder":
            return True
        for tensor in current.inputs:
            if tensor.op.name not in seen:
                seen.add(tensor.op.name)
                waiting.append(tensor.op)
    return False


def _adds_constant(op: Any) -> bool:
    return any(not _depends_on_input(tensor.op) for tensor in op.inputs)


def _observed(
    function: Any, tensors: list[Any], samples: Samples
) -> dict[str, tuple[float, float]]:
    """Name of the operation that writes each tensor to the range of its values."""
    probe = _imported(function.graph.as_graph_def(), function, [t.name for t in tensors])
    low, high = np.zeros(len(tensors)), np.zeros(len(tensors))
    for arrays in samples.single():
        values = [value.numpy() for value in probe(*[tf.constant(array) for array in arrays])]
        low = np.minimum(low, [value.min() for value in values])
        high = np.maximum(high, [value.max() for value in values])
    return {t.op.name: (a, b) for t, a, b in zip(tensors, low, high, strict=True)}


def _rebuilt(function: Any, ranges: dict[str, tuple[float, float]]) -> Any:
    """The function with a fake quantisation behind each operation named in `ranges`."""
    graph_def = function.graph.as_graph_def()
    for node in graph_def.node:
        for place, source in enumerate(node.input):
            if source.removesuffix(":0") in ranges:
                node.input[place] = f"{source.removesuffix(':0')}/range"
    for name, (low, high) in ranges.items():
        node = graph_def.node.add(op="FakeQuantWithMinMaxArgs", name=f"{name}/range")
        node.input.append(name)
        node.attr["min"].f = low
        node.attr["max"].f = high if high > low else low + 1e-6
        node.attr["num_bits"].i = 8
    outputs = {}
    for place, tensor in enumerate(function.outputs):
        ranged = tensor.op.name in ranges
        outputs[f"output_{place:03d}"] = f"{tensor.op.name}/range:0" if ranged else tensor.name
    return _imported(graph_def, function, outputs, function.structured_input_signature)


def _imported(graph_def: Any, function: Any, fetches: Any, signature: Any = None) -> Any:
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
    graph = wrapped.graph
    return wrapped.prune(
        [graph.as_graph_element(tensor.name) for tensor in function.inputs],
        tf.nest.map_structure(graph.as_graph_element, fetches),
        input_signature=signature,
    )
