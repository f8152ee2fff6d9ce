"""Replace layers of a Keras 3 model by others, one pattern at a time."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfedge.engines.native.graph import Call, Copies, Graph, build_model, read_graph
from tfedge.models import compile_like, copy_model


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What stands in for a call.

    Attributes:
        layers: Built layers with their weights, to be called one after the other; none where the
            input is passed on. The last one has the name of what it stands for.
        error: Norm of the difference between the old kernel and what the new layers do together,
            as a part of the kernel's norm; `None` where there is no such figure.
        absorbed: Names of calls behind it whose work the new layers do too.
    """

    layers: tuple[Any, ...]
    error: float | None = None
    absorbed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A kind of layer and what to replace it by.

    Attributes:
        name: What users call it.
        exact: Whether outputs at inference stay equal.
        does: What it does and what that is good for, in a sentence.
        concerns: `concerns(graph, call)`: whether it is about this call at all.
        hindrance: `hindrance(graph, call)`: why a call that it is about stays as it is; empty
            where nothing hinders.
        replace: `replace(graph, call)`: what to put in place of the call.
    """

    name: str
    exact: bool
    does: str
    concerns: Callable[[Graph, Call], bool]
    hindrance: Callable[[Graph, Call], str]
    replace: Callable[[Graph, Call], Replacement]


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A model after one pattern.

    Attributes:
        model: An own copy in plain layers, compiled if the model was.
        changed: Names of the calls that were replaced or absorbed; nested models count as inlined.
        refused: Name of each call that stays although the pattern is about it, to the reason.
        made: Name of each new layer to the name of the call that it stands for.
        errors: Name of each call to the relative error of its kernel, where there is one.
    """

    model: Any
    changed: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


def rewrite(model: Any, pattern: Pattern, names: Collection[str] | None = None) -> Rewritten:
    """Apply one pattern wherever it fits.

    Args:
        model: A built Functional or Sequential Keras 3 model. It stays as it is.
        pattern: What to replace by what.
        names: Names of calls, as in `read_graph(model)`, to look at. Default: all.

    Returns:
        The new model and what became of the calls that the pattern is about. Where it fits nowhere
        the model is a plain copy, nested models and all.

    Raises:
        UnsupportedModelError: The model has no graph that can be rebuilt.
    """
    graph = read_graph(model)
    concerned = [
        call
        for call in graph.calls
        if (names is None or call.name in names) and pattern.concerns(graph, call)
    ]
    refused = _refused(graph, pattern, concerned)
    chosen = [call for call in concerned if call.name not in refused]
    if not chosen:
        return Rewritten(model=copy_model(model), refused=refused)
    swaps = {call.name: pattern.replace(graph, call) for call in chosen}
    rebuilt = compile_like(_rebuilt(graph, swaps), model)
    absorbed = {name for swap in swaps.values() for name in swap.absorbed}
    return Rewritten(
        model=rebuilt,
        changed=tuple(
            dict.fromkeys(c.name for c in graph.calls if c.name in swaps or c.name in absorbed)
        ),
        refused=refused,
        made={layer.name: name for name, swap in swaps.items() for layer in swap.layers},
        errors={name: swap.error for name, swap in swaps.items() if swap.error is not None},
    )


def _refused(graph: Graph, pattern: Pattern, concerned: list[Call]) -> dict[str, str]:
    """Reasons by name; a shared layer is replaced in all its calls or in none."""
    refused: dict[str, str] = {}
    for call in concerned:
        reason = _own_arguments(call) or pattern.hindrance(graph, call)
        if reason:
            refused.setdefault(call.name, reason)
    return refused


def _own_arguments(call: Call) -> str:
    given = [
        name for name, value in call.kwargs.items() if name != "training" and value is not None
    ]
    if call.is_layer and given:
        return f"it is called with `{given[0]}`"
    return ""


def _rebuilt(graph: Graph, swaps: Mapping[str, Replacement]) -> Any:
    copies = Copies()
    absorbed = {name for swap in swaps.values() for name in swap.absorbed}

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.name in absorbed:
            return args[0]
        if call.name not in swaps:
            return copies.of(call)(*args, **kwargs)
        x = args[0]
        for layer in swaps[call.name].layers:
            x = layer(x)
        return x

    return build_model(graph, emit)
