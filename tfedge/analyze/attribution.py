"""Tell which layer each operator of a converted file came from, and give layers their times."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from tfedge.analyze.records import LayerCost
from tfedge.analyze.timing import Timing, time_operators
from tfedge.convert import convert
from tfedge.engines.native.graph import Call, Graph, build_model, copy_layer

LABEL = re.compile(r"^row(\d+)x(?:_\d+)*$")

SUMS = (
    "Each operator of the float32 file was run alone, {sum:.3f} ms in all; the whole file takes "
    "{whole:.3f} ms. The two differ: alone, an operator finds its input in the cache and pays for "
    "being called."
)


class Named(keras.layers.Layer):
    """A call of a `keras.ops` operation as a layer of its tensors, so that its operators are named.

    Args:
        operation: What is called.
        arguments: What it is called with, `(args, kwargs)`, symbolic tensors included.
        name: Name of the layer.
    """

    def __init__(self, operation: Any, arguments: Any, name: str) -> None:
        super().__init__(name=name)
        self.operation = operation
        self._values = tree.flatten(arguments)
        self._pack = functools.partial(tree.pack_sequence_as, arguments)

    def call(self, tensors: Any) -> Any:
        """What the operation returns for these tensors in place of the symbolic ones."""
        given = iter(tensors)
        filled = [next(given) if _is_symbolic(value) else value for value in self._values]
        args, kwargs = self._pack(filled)
        return self.operation(*args, **kwargs)


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def labelled(graph: Graph, names: Sequence[str]) -> Any:
    """A copy of a model whose layers have names by which its operators can be told apart.

    Keras appends numbers to the scopes of layers, so `relu_1` may be the scope of `relu`.

    Args:
        graph: Of the model.
        names: Names of its calls; layer `names[7]` is called `row7x`.
    """
    labels = {name: f"row{number}x" for number, name in enumerate(names)}
    made: dict[str, Any] = {}

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not call.is_layer:
            tensors = [value for value in tree.flatten((args, kwargs)) if _is_symbolic(value)]
            return Named(call.operation, (args, kwargs), labels[call.name])(tensors)
        if call.name not in made:
            made[call.name] = copy_layer(call.operation, name=labels[call.name])
        return made[call.name](*args, **kwargs)

    return build_model(graph, emit)


def with_times(
    graph: Graph, rows: Sequence[LayerCost], threads: int
) -> tuple[list[LayerCost], dict[str, float], list[str]]:
    """The rows with the times of their operators.

    Args:
        graph: The flat graph of the model.
        rows: A row for each layer.
        threads: Threads to time with.

    Returns:
        The rows, the figures of the whole (`latency_ms`, `layers_ms`, `unassigned_ms`), and notes.

    Raises:
        ConversionError: The model cannot be converted to float32.
    """
    names = [row.layer for row in rows]
    data, report = convert(labelled(graph, names), mode="float32")
    timing = time_operators(data, threads=threads)
    macs = {row.layer: row.macs for row in rows}
    ends = {
        info.name: graph.producers[index].name
        for info, index in zip(report.inspection.outputs, graph.outputs, strict=True)
        if index in graph.producers
    }
    own: dict[str, list[tuple[str, float]]] = {}
    holders: dict[str, str] = {}
    operators = [row for row in report.inspection.operators if row.subgraph == 0]
    for operator, time in zip(operators, timing.operators, strict=True):
        named = layers_in(operator.output_name, names)
        end = ends.get(operator.output_name)
        main = max(named, key=lambda name: macs[name], default=end or "")
        own.setdefault(main, []).append((operator.name, time or 0.0))
        holders |= {name: main for name in named if name != main}
    measured = []
    for row in rows:
        found = own.get(row.layer, [])
        measured.append(
            dataclasses.replace(
                row,
                latency_ms=sum(time for _, time in found),
                operators=tuple(name for name, _ in found),
                fused_into="" if found else holders.get(row.layer) or _before(graph, row, own),
            )
        )
    return measured, *_figures(own, timing)


def layers_in(tensor_name: str, names: Sequence[str]) -> list[str]:
    """The layers whose labels stand in the name of a tensor, each once.

    Args:
        tensor_name: As the converter makes it of all that an operator computes.
        names: Names of the layers, in the order of their labels.

    Example:
        >>> layers_in("net_1/row1x_1/Relu;net_1/row0x_1/convolution", ["conv", "relu"])
        ['relu', 'conv']
    """
    scopes = (scope for part in tensor_name.split(";") for scope in part.split("/"))
    labels = (LABEL.match(scope) for scope in scopes)
    return list(dict.fromkeys(names[int(label[1])] for label in labels if label))


def _before(graph: Graph, row: LayerCost, own: dict[str, Any]) -> str:
    """The layer before one without an operator, whose values it passes on."""
    call = next(call for call in graph.calls if call.name == row.layer)
    before = graph.producers.get(call.inputs[0]) if call.inputs else None
    while before is not None and before.name not in own:
        before = graph.producers.get(before.inputs[0]) if before.inputs else None
    return before.name if before is not None else ""


def _figures(
    own: dict[str, list[tuple[str, float]]], timing: Timing
) -> tuple[dict[str, float], list[str]]:
    total = sum(time for found in own.values() for _, time in found)
    notes = [SUMS.format(sum=total, whole=timing.whole)]
    if timing.unaided:
        notes.append(f"Not taken by XNNPACK when run alone: {', '.join(timing.unaided)}.")
    unassigned = sum(time for _, time in own.get("", []))
    if unassigned:
        notes.append(f"{unassigned:.3f} ms belong to operators whose layer cannot be told.")
    figures = {"latency_ms": timing.whole, "layers_ms": total, "unassigned_ms": unassigned}
    return figures, notes
