"""Hold each integer operator of a file against the fake-quantised model, one by one.

Every operator is fed what the model computed at its inputs, not what the operators before it made
of them: errors do not add up, and the operator that is wrong is the one that is named.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfedge.errors import VerificationError
from tfedge.inspection import read_model
from tfedge.report import Record
from tfedge.runtime import open_model, quantize

ACTIVATION_TYPES = (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16)


@dataclass(frozen=True, kw_only=True)
class OperatorDifference(Record):
    """How one operator of a file differs from the layer that it stands for.

    Attributes:
        layer: Name of the layer whose output it writes.
        tensor: Name of the tensor in the file.
        elements: How many values were compared.
        within_one_step: Fraction of them at most one integer apart.
        max_steps: Largest difference, in integers.
    """

    layer: str
    tensor: str
    elements: int
    within_one_step: float
    max_steps: int


def compare_operators(model: Any, data: bytes, inputs: Any) -> tuple[OperatorDifference, ...]:
    """Compare every operator that writes a tensor with a learned range.

    Args:
        model: A Keras 3 model from `Quantize`, trained or calibrated.
        data: The int8 file that `convert` made of it.
        inputs: Samples as the model takes them, `(samples, …)`; all are used.

    Returns:
        One row per operator, in the order of the file.

    Raises:
        VerificationError: No tensor of the file could be matched with the model.
    """
    import keras

    from tfedge.engines.native.export import export_model
    from tfedge.engines.native.fake_quant import FakeQuantize
    from tfedge.engines.native.graph import read_graph

    plain = export_model(model)
    ranges = [layer for layer in plain.layers if isinstance(layer, FakeQuantize)]
    graph = read_graph(plain)
    writers = graph.producers
    sources = {
        call.name: {_source(call.name), *(writers[i].name for i in call.inputs if i in writers)}
        for call in graph.calls
        if isinstance(call.operation, FakeQuantize)
    }
    probe = keras.Model(plain.input, [layer.output for layer in ranges])
    values = keras.tree.flatten(probe.predict(inputs, verbose=0))
    by_layer = {r.name: np.asarray(v) for r, v in zip(ranges, values, strict=True)}
    forced = read_model(data)
    matched = dict(_matches(forced.subgraphs[0], sources))
    if not matched:
        raise VerificationError(
            f"No tensor of the file has the name and range of a layer of `{model.name}`. Compare "
            "a file with the model that it was converted from."
        )
    fed = _feed_each_operator(forced, list(matched))
    return tuple(_compare(forced, fed, matched, by_layer))


def _source(layer: str) -> str:
    """Name of the call that a range layer stands behind."""
    return re.sub(r"_range(_\d+)?$", "", layer)


def _matches(graph: Any, sources: dict[str, set[str]]) -> Iterator[tuple[int, str]]:
    """Activation tensors of a graph with the range layer that each belongs to."""
    written = [index for operator in graph.operators for index in operator.outputs]
    taken: set[str] = set()
    for index in [*graph.inputs, *written]:
        tensor = graph.tensors[index]
        if tensor.type not in ACTIVATION_TYPES:
            continue
        scopes = re.split("[/;]", tensor.name.decode())
        names = {*scopes, *(re.sub(r"_\d+$", "", scope) for scope in scopes)}
        found = [r for r, own in sources.items() if r not in taken and ({r} | own) & names]
        if len(found) == 1:
            taken.add(found[0])
            yield int(index), found[0]


def _feed_each_operator(model: Any, matched: list[int]) -> bytes:
    """The file with every matched tensor also as an input, which is read in its place."""
    graph = model.subgraphs[0]
    graph.signatureDefs = None
    model.signatureDefs = None
    inner = [index for index in matched if index not in set(graph.inputs)]
    twin = {}
    for index in inner:
        tensor = copy.copy(graph.tensors[index])
        tensor.name = f"fed_{index}".encode()
        twin[index] = len(graph.tensors)
        graph.tensors.append(tensor)
    for operator in graph.operators:
        operator.inputs = np.array([twin.get(int(i), int(i)) for i in operator.inputs], np.int32)
    graph.inputs = np.array([*graph.inputs, *twin.values()], np.int32)
    graph.outputs = np.array(inner, np.int32)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _compare(
    model: Any, fed: bytes, matched: dict[int, str], values: dict[str, np.ndarray]
) -> Iterator[OperatorDifference]:
    graph = model.subgraphs[0]
    originals = {f"fed_{index}": index for index in matched}
    with open_model(fed, delegate="none") as runner:
        wanted: dict[int, np.ndarray] = {}
        feeds = []
        for info in runner.inputs:
            index = originals.get(info.name, info.index)
            if index not in matched:
                raise VerificationError(
                    f"Input `{info.name}` of the file has no learned range: it cannot be fed from "
                    "the model."
                )
            integers = quantize(values[matched[index]], info.scale, info.zero_point, info.dtype)
            wanted[index] = integers.reshape(-1, *info.shape[1:])
            feeds.append(wanted[index])
        samples = len(feeds[0])
        results = [runner.run([feed[i : i + 1] for feed in feeds]) for i in range(samples)]
        for place, info in enumerate(runner.outputs):
            got = np.concatenate([result[place] for result in results]).astype(np.int64)
            steps = np.abs(got - wanted[info.index].reshape(got.shape).astype(np.int64))
            yield OperatorDifference(
                layer=_source(matched[info.index]),
                tensor=graph.tensors[info.index].name.decode(),
                elements=int(steps.size),
                within_one_step=float((steps <= 1).mean()),
                max_steps=int(steps.max()),
            )
