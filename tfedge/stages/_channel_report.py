"""Say what became of every layer of a model that lost channels."""

from collections.abc import Callable
from typing import Any

from tfedge.engines.native.channels import Channels, Part
from tfedge.engines.native.costs import costs_of
from tfedge.engines.native.graph import Graph
from tfedge.errors import UnsupportedModelError
from tfedge.report import Skipped

FIGURES = ("channels", "macs", "parameters")


def changes(before: Graph, after: Graph) -> dict[str, dict[str, list[int]]]:
    """Layer that changed to its `FIGURES`, each before and after.

    Layers without weights, which only pass on fewer channels, are left out, but for reshapes, whose
    settings change.

    Args:
        before: Of the model that came in.
        after: Of the model that came out.
    """
    old, new = _sizes(before), _sizes(after)
    reshapes = {call.name for call in before.calls if call.kind == "Reshape"}
    return {
        name: {figure: [own[figure], new[name][figure]] for figure in FIGURES}
        for name, own in old.items()
        if own != new[name] and (own["parameters"] or name in reshapes)
    }


def totals(before: Graph, after: Graph) -> dict[str, float]:
    """Multiply-accumulates and parameters of two models, and what remains of them.

    Multiply-accumulates are left out where an axis has no fixed size.
    """
    old, new = _sizes(before), _sizes(after)
    metrics: dict[str, float] = {}
    for figure in FIGURES[1:]:
        if any(own[figure] < 0 for own in old.values()):
            continue
        first, last = (sum(own[figure] for own in side.values()) for side in (old, new))
        metrics |= {f"{figure}_before": first, f"{figure}_after": last}
        metrics[f"{figure}_fraction"] = last / first if first else 1.0
    return metrics


def unchanged(channels: Channels, why_all_stay: Callable[[Part], str]) -> list[Skipped]:
    """Every layer, with the reason why nothing of it goes.

    Args:
        channels: Of the model that came in.
        why_all_stay: The reason for a layer whose channels could go.
    """
    rows: dict[str, str] = {}
    for call in channels.graph.calls:
        if not call.is_layer or call.name in rows:
            continue
        part = channels.parts.get(id(call.operation))
        if not call.operation.weights:
            reason = "no weights"
        elif part is None:
            reason = channels.alone.get(id(call.operation), "no channels of its own")
        elif not part.makes:
            reason = "the channels that it follows all stay"
        else:
            reason = channels.why_whole(part) or why_all_stay(part)
        rows[call.name] = reason
    return [Skipped(name, reason) for name, reason in rows.items()]


def _sizes(graph: Graph) -> dict[str, dict[str, int]]:
    """Layer to its `FIGURES`; −1 where an axis has no size."""
    costs: dict[str, list[int]] = {}
    try:
        for cost in costs_of(graph):
            own = costs.setdefault(cost.name, [0, 0])
            own[0] += cost.macs
            own[1] += cost.parameters
    except UnsupportedModelError:
        costs = {c.name: [-1, c.operation.count_params()] for c in graph.calls if c.is_layer}
    sizes: dict[str, dict[str, int]] = {}
    for call in graph.calls:
        if call.is_layer:
            figures: tuple[Any, ...] = (_channels(graph, call), *costs[call.name])
            sizes[call.name] = dict(zip(FIGURES, figures, strict=True))
    return sizes


def _channels(graph: Graph, call: Any) -> int:
    shape = graph.specs[call.outputs[0]].shape
    first = getattr(call.operation, "data_format", "") == "channels_first"
    return int(shape[1 if first else -1] or -1)
