"""Look at a model: count, measure, and order its layers, the bottlenecks first."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tfedge.analyze.activity import as_split, constant_channels
from tfedge.analyze.advice import Findings, advise, dead_channels
from tfedge.analyze.attribution import with_times
from tfedge.analyze.records import Analysis, LayerCost
from tfedge.engines.native.costs import Cost, costs_of, peak_bytes
from tfedge.engines.native.graph import Copies, Graph, build_model, read_graph
from tfedge.engines.native.kernels import kernels_of
from tfedge.engines.native.quantize import is_quantized
from tfedge.errors import ConversionError, SettingsError
from tfedge.models import check_finite, check_rebuildable, keras_of, to_keras3


def look(
    model: Any,
    data: Any,
    *,
    measure: bool,
    threads: int,
    progress: Callable[[str], None] | None,
) -> Analysis:
    """What `tfedge.analyze.analyze` promises; its arguments."""
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise SettingsError(f"`threads` is a whole number from 1. Received: {threads!r}.")
    say = progress or (lambda sentence: None)
    check_rebuildable(model, "analyze")
    check_finite(model)
    notes: list[str] = []
    if keras_of(model) != "keras":
        model = to_keras3(model)
        notes.append("The tf_keras model was looked at as `to_keras3` rebuilds it in Keras 3.")
    say("Counting")
    flat = _flat(model)
    graph = read_graph(flat)
    rows = _counted(graph)
    if data is not None:
        say("Looking at activations")
        constant = constant_channels(flat, graph, as_split(data))
        rows = [dataclasses.replace(row, constant_channels=constant.get(row.layer)) for row in rows]
    times: dict[str, float] = {}
    if measure:
        say("Converting and timing")
        rows, times = _timed(graph, rows, threads, notes)
    rows = _ordered(rows, bool(times))
    findings = Findings(graph, rows, model.count_params(), is_quantized(model))
    return Analysis(
        model=model.name,
        layers=tuple(rows),
        parameters=model.count_params(),
        macs=sum(row.macs for row in rows),
        peak_bytes=peak_bytes(graph),
        threads=threads,
        suggestions=advise(findings),
        notes=tuple(notes),
        **times,  # type: ignore[arg-type]
    )


def _flat(model: Any) -> Any:
    """The model with nested models inlined, so that each layer has a name of its own."""
    copies = Copies()
    return build_model(
        read_graph(model), lambda call, args, kwargs: copies.of(call)(*args, **kwargs)
    )


def _counted(graph: Graph) -> list[LayerCost]:
    """A row for each layer; the calls of a shared one add up."""
    layers = {call.name: call.operation for call in graph.calls if call.is_layer}
    costs: dict[str, list[Cost]] = {}
    for cost in costs_of(graph):
        costs.setdefault(cost.name, []).append(cost)
    rows = []
    for place, (name, calls) in enumerate(costs.items()):
        kernels = kernels_of(layers[name], depthwise=True) if name in layers else []
        size = sum(kernel.size for kernel in kernels)
        rows.append(
            LayerCost(
                layer=name,
                kind=calls[0].kind,
                place=place,
                parameters=sum(call.parameters for call in calls),
                macs=sum(call.macs for call in calls),
                output_bytes=sum(call.output_bytes for call in calls),
                zeros=sum(kernel.zeros() for kernel in kernels) / size if size else None,
                dead_channels=dead_channels(layers[name]) if name in layers else 0,
            )
        )
    return rows


def _timed(
    graph: Graph, rows: list[LayerCost], threads: int, notes: list[str]
) -> tuple[list[LayerCost], dict[str, float]]:
    try:
        measured, figures, remarks = with_times(graph, rows, threads)
    except ConversionError as error:
        notes.append(f"Nothing was measured: {error}")
        return rows, {}
    notes += remarks
    return measured, figures


def _ordered(rows: Sequence[LayerCost], measured: bool) -> list[LayerCost]:
    """Bottlenecks first, each with its share."""

    def size(row: LayerCost) -> float:
        return (row.latency_ms or 0.0) if measured else float(row.macs)

    total = sum(map(size, rows)) or 1.0
    shared = [dataclasses.replace(row, share=size(row) / total) for row in rows]
    return sorted(shared, key=lambda row: (-row.share, row.place))
