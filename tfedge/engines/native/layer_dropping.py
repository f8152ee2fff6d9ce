"""Find pieces of a graph that can be taken out, see what it says without them, and drop them.

A piece is what lies between two tensors of the same shape. It is dropped by letting all that reads
the second one read the first; calls that nothing reads any more vanish.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops, tree

from tfedge.engines.native import _private
from tfedge.engines.native.costs import total_macs, total_parameters
from tfedge.engines.native.graph import Call, Copies, Graph, Ref, build_model
from tfedge.engines.native.lower import TRAINING_ONLY

FOLLOWERS = frozenset(
    [
        "Activation",
        "BatchNormalization",
        "ELU",
        "GroupNormalization",
        "LayerNormalization",
        "LeakyReLU",
        "PReLU",
        "ReLU",
        "Relu",
        "Relu6",
        "Silu",
        "Gelu",
        "HardSilu",
    ]
)


@dataclass(frozen=True)
class Span:
    """A piece of a graph that can be taken out.

    Attributes:
        name: Of the residual block's addition, or of the layer.
        kind: `"block"`, `"layer"`, or `"chain"`: a layer with the normalisation and activation
            behind it.
        start, end: What reads tensor `end` reads `start` instead.
        calls: Names of the calls that vanish.
        macs: Multiply-accumulates that this saves.
        parameters: Weights that this saves.
    """

    name: str
    kind: str
    start: int
    end: int
    calls: tuple[str, ...]
    macs: int
    parameters: int

    @property
    def title(self) -> str:
        """What to call it in a report."""
        if self.kind == "chain":
            return f"{self.name} … {self.calls[-1]}"
        return f"block of {self.name}" if self.kind == "block" else self.name


def find_spans(
    graph: Graph, *, layers: Collection[str] | None = None, exclude: Collection[str] = ()
) -> tuple[list[Span], dict[str, str]]:
    """The pieces that can be taken out, and why every other call can not.

    Args:
        graph: Of a Keras 3 model.
        layers: Names of additions and layers that may be taken out; those named may also save
            nothing. Default: all that save something.
        exclude: Names of calls that must stay.

    Returns:
        The spans, and name of a call that is no span by itself to the reason.
    """
    spans: list[Span] = []
    reasons: dict[str, str] = {}
    for call in graph.calls:
        found: list[Span] = []
        reason = "not among the layers that were chosen"
        if (layers is None or call.name in layers) and call.name not in exclude:
            found, reason = _spans_of(graph, call)
            kept = [s for s in found if not set(s.calls) & set(exclude)]
            if found and not kept:
                reason = "a layer that would vanish with it is excluded"
            if layers is None and kept:
                kept = [s for s in kept if s.macs or s.parameters]
                reason = "dropping it saves neither weights nor multiply-accumulates"
            found = kept
        spans += found
        if not found:
            reasons[call.name] = reason
    return spans, reasons


def _spans_of(graph: Graph, call: Call) -> tuple[list[Span], str]:
    """The spans that a call gives its name to; where there are none, the reason."""
    if call.kind == "Add":
        start = _shortcut(graph, call)
        if start is None:
            return [], "no identity shortcut: neither input leads to the other"
        span = _span(graph, call.name, "block", start, call.outputs[0])
        return ([span], "") if span else ([], "its output is the model's")
    reason = _why_not(graph, call)
    if reason is not None:
        return [], reason
    start = call.inputs[0]
    found = [_span(graph, call.name, "layer", start, call.outputs[0])]
    last = _last_follower(graph, call)
    if last is not call:
        found.append(_span(graph, call.name, "chain", start, last.outputs[0]))
    spans = [span for span in found if span is not None]
    return spans, "its output is the model's"


def _why_not(graph: Graph, call: Call) -> str | None:
    if not call.is_layer:
        return "an operation without weights"
    if call.kind in TRAINING_ONLY:
        return "acts only while training"
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return "several inputs or outputs"
    if not _alike(graph, call.inputs[0], call.outputs[0]):
        before, after = (graph.specs[i].shape for i in (call.inputs[0], call.outputs[0]))
        return f"its output {tuple(after)} has not the form of its input {tuple(before)}"
    if graph.is_shared(call):
        return "shared: it is called elsewhere too"
    return None


def _alike(graph: Graph, first: int, second: int) -> bool:
    one, other = graph.specs[first], graph.specs[second]
    return tuple(one.shape) == tuple(other.shape) and one.dtype == other.dtype


def _shortcut(graph: Graph, call: Call) -> int | None:
    """The input of an addition that the other input is computed from."""
    if len(call.inputs) != 2:
        return None
    for start, other in (call.inputs, call.inputs[::-1]):
        if start != other and _leads_to(graph, start, other):
            return start if _alike(graph, start, call.outputs[0]) else None
    return None


def _leads_to(graph: Graph, start: int, end: int) -> bool:
    waiting, seen = [end], {end}
    while waiting:
        call = graph.producers.get(waiting.pop())
        fresh = set(call.inputs) - seen if call is not None else set()
        if start in fresh:
            return True
        seen |= fresh
        waiting += fresh
    return False


def _last_follower(graph: Graph, call: Call) -> Call:
    """The last of the normalisations and activations that alone read a call's output in turn."""
    while True:
        reader = graph.only_reader(call)
        if reader is None or reader.kind not in FOLLOWERS or graph.is_shared(reader):
            return call
        call = reader


def _span(graph: Graph, name: str, kind: str, start: int, end: int) -> Span | None:
    """The span, unless an end or an input of the model would be lost with it."""
    if end in graph.outputs:
        return None
    smaller = without(graph, start, end)
    if any(graph.consumers[i] and not smaller.consumers[i] for i in graph.inputs):
        return None
    left = {call.name for call in smaller.calls}
    return Span(
        name=name,
        kind=kind,
        start=start,
        end=end,
        calls=tuple(dict.fromkeys(c.name for c in graph.calls if c.name not in left)),
        macs=total_macs(graph) - total_macs(smaller),
        parameters=total_parameters(graph) - total_parameters(smaller),
    )


def without(graph: Graph, start: int, end: int) -> Graph:
    """The graph in which all that read tensor `end` reads `start`, less what nothing reads."""

    def moved(value: Any) -> Any:
        return Ref(start) if value == Ref(end) else value

    calls = [
        dataclasses.replace(
            call,
            args=tree.map_structure(moved, call.args),
            kwargs=tree.map_structure(moved, call.kwargs),
            inputs=tuple(start if index == end else index for index in call.inputs),
        )
        for call in graph.calls
    ]
    outputs = tree.map_structure(moved, graph.output_structure)
    needed = {ref.index for ref in tree.flatten(outputs)}
    kept = []
    for call in reversed(calls):
        if needed & set(call.outputs):
            kept.append(call)
            needed |= set(call.inputs)
    return dataclasses.replace(graph, calls=tuple(reversed(kept)), output_structure=outputs)


def drop(graph: Graph, span: Span) -> Any:
    """Build the model of a graph without a span, with own copies of all layers, not compiled."""
    copies = Copies()
    return build_model(
        without(graph, span.start, span.end),
        lambda call, args, kwargs: copies.of(call)(*args, **kwargs),
    )


# ---------------------------------------------------------------------------- measuring


def outputs_without(
    graph: Graph, spans: Sequence[Span], batches: Iterable[Any]
) -> tuple[list[Any], list[list[Any]]]:
    """What a graph says at inference, as it is and without each span.

    The graph runs once per batch; for each span, only what depends on its end runs again.

    Args:
        graph: Of a Keras 3 model. Its layers are called.
        spans: Of that graph.
        batches: Inputs: an array, a sequence of them, or a dict by input name.

    Returns:
        The outputs batch by batch in the structure of the model's, then the same for each span.
    """
    whole: list[Any] = []
    parted: list[list[Any]] = [[] for _ in spans]
    for batch in batches:
        env = dict(_feeds(graph, batch))
        for call in graph.calls:
            env.update(_run(call, env))
        whole.append(_read(graph, env))
        for span, rows in zip(spans, parted, strict=True):
            rows.append(_read(graph, _rerun(graph, span, env)))
    return whole, parted


def _rerun(graph: Graph, span: Span, env: Mapping[int, Any]) -> dict[int, Any]:
    fresh = {span.end: env[span.start]}
    changed = {span.end}
    merged = {**env, **fresh}
    for call in graph.calls:
        if span.end not in call.outputs and changed & set(call.inputs):
            merged.update(_run(call, merged))
            changed |= set(call.outputs)
    return merged


def _run(call: Call, env: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    def fill(value: Any) -> Any:
        return env[value.index] if isinstance(value, Ref) else value

    args, kwargs = tree.map_structure(fill, (call.args, call.kwargs))
    if call.is_layer and _private.takes_training(call.operation):
        kwargs["training"] = kwargs.get("training") or False
    return zip(call.outputs, tree.flatten(call.operation(*args, **kwargs)), strict=True)


def _feeds(graph: Graph, batch: Any) -> Iterator[tuple[int, Any]]:
    names = [graph.specs[index].name for index in graph.inputs]
    values = [batch[name] for name in names] if isinstance(batch, dict) else tree.flatten(batch)
    for index, value in zip(graph.inputs, values, strict=True):
        spec = graph.specs[index]
        tensor = ops.convert_to_tensor(value, dtype=spec.dtype)
        flat = len(tensor.shape) == len(spec.shape) - 1 and spec.shape[-1] == 1
        yield index, ops.expand_dims(tensor, -1) if flat else tensor


def _read(graph: Graph, env: Mapping[int, Any]) -> Any:
    return tree.map_structure(
        lambda ref: np.asarray(ops.convert_to_numpy(env[ref.index])), graph.output_structure
    )
