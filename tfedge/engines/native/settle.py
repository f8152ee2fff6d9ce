"""Round what training leaves unrounded as the file will: ends of ranges, biases."""

from typing import Any

import numpy as np
from keras import ops

from tfedge.engines.native.export import linear
from tfedge.engines.native.fake_quant import (
    FakeQuantize,
    QuantizedWeights,
    folded_offset,
    folded_scale,
)
from tfedge.engines.native.graph import Call, Graph, read_graph
from tfedge.engines.native.levels import folded_kernel, kernel_steps
from tfedge.engines.native.place import LINEAR, PASSES, folded_batch_norm


def settle(model: Any) -> int:
    """Round the ranges and biases of a fake-quantised model, in place, as an integer file does.

    The zero point of a range is a whole number, and an integer operator adds its bias in steps of
    input scale × weight scale. Beyond those, an operator of the file computes what fake
    quantisation does; deep networks amplify the least difference. Half a step is below what the
    rounded output of the operator resolves.

    Args:
        model: A model from `prepare_quantization`, trained or calibrated.

    Returns:
        How many layers have settled biases. Those that are called twice, or whose input has no
        range that is known, keep theirs.
    """
    graph = read_graph(model)
    for range_ in _ranges(graph):
        range_.settle()
    count = 0
    for call in graph.calls:
        if not isinstance(call.operation, QuantizedWeights) or graph.is_shared(call):
            continue
        layer, before = linear(call), _range_before(graph, call)
        if type(layer).__name__ not in LINEAR or before is None:
            continue
        behind = folded_batch_norm(graph, call, layer)
        _settle_bias(
            call.operation, call.operation.batch_norm or (behind and behind.operation), before
        )
        count += 1
    return count


def _ranges(graph: Graph) -> list[FakeQuantize]:
    operations = {id(call.operation): call.operation for call in graph.calls}
    return [x for x in operations.values() if isinstance(x, FakeQuantize) and x.has_range]


def _range_before(graph: Graph, call: Call) -> FakeQuantize | None:
    """The range of the values that a call reads, through operators that pass values on."""
    before: Call | None = graph.producers.get(call.inputs[0])
    while before is not None and before.kind in PASSES:
        before = graph.producers.get(before.inputs[0])
    operation = before.operation if before else None
    return operation if isinstance(operation, FakeQuantize) and operation.has_range else None


def _settle_bias(wrapper: QuantizedWeights, batch_norm: Any, range_: FakeQuantize) -> None:
    layer = wrapper.layer
    kernel = folded_kernel(wrapper, batch_norm)
    scale, offset = np.float32(1), np.float32(0)
    if batch_norm is not None:
        scale = ops.convert_to_numpy(folded_scale(batch_norm))
        offset = ops.convert_to_numpy(folded_offset(batch_norm))
    bias = ops.convert_to_numpy(layer.bias).astype(np.float32) if layer.use_bias else np.float32(0)
    low, high = range_.exact_ends()
    step = (high - low) / (2**range_.bits - 1) * kernel_steps(wrapper, kernel, batch_norm)
    bias = bias * scale + offset
    with np.errstate(divide="ignore", invalid="ignore"):
        missing = np.where(step > 0, np.rint(bias / step) * step - bias, 0)
        if batch_norm is None and layer.use_bias:
            layer.bias.assign_add(missing)
        elif batch_norm is not None and batch_norm.center:
            batch_norm.beta.assign_add(missing)
        elif batch_norm is not None:
            batch_norm.moving_mean.assign_sub(np.where(scale == 0, 0, missing / scale))
