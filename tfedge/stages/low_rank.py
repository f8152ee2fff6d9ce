"""Factorise layers: one kernel becomes the product of two smaller ones."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tfedge.engines.native.prune_settings import check_names, check_option
from tfedge.errors import SettingsError, UnsupportedModelError
from tfedge.models import (
    check_finite,
    check_keras3,
    check_rebuildable,
    choose_layers,
    compile_like,
    copy_model,
    layers_of,
)
from tfedge.report import Skipped, StageReport
from tfedge.stages._base import AbstractStage, Context
from tfedge.stages._fit import measured

if TYPE_CHECKING:
    from tfedge.engines.native.graph import Graph
    from tfedge.engines.native.rank_choice import Choice

ASKS = ("rank", "energy", "flops", "params")
OPTIONS = ("auto", "channel", "spatial")
NOT_CHOSEN = "not among the layers that were chosen"
NOT_IN_GRAPH = "inside a model whose graph exists only as Python code"


@dataclass(frozen=True, kw_only=True)
class LowRank(AbstractStage):
    """Write kernels as products of two smaller ones, by truncated singular value decomposition.

    A dense layer becomes two, a k×k convolution a k×k and a 1×1 one (`"channel"`), or a k×1 and a
    1×k one (`"spatial"`), as `engines/native/low_rank.py` says with its sources. The second keeps
    name, bias and activation; the first is called `<name>_in`. Only layers that come out both
    smaller and cheaper are touched; grouped and depthwise ones never. Zeros of a pruned model do
    not survive it: factorise first, prune after.

    Exactly one of `rank`, `energy`, `flops` and `params` says how far it goes.

    Args:
        rank: The same rank for every layer; as float, the fraction of each layer's full rank in
            (0, 1]; as dict, one of the two by layer name, for these layers only.
        energy: Fraction of each kernel's squared singular values that is kept, in (0, 1].
        flops: Fraction of the model's multiply-accumulates that may remain, in (0, 1). Layers share
            the budget so that the least energy is lost.
        params: The same for its parameters.
        scheme: `"channel"`, `"spatial"` (where a kernel has two sides) or `"auto"`: the cheaper one
            under `energy`, the better one under a budget, `"channel"` under `rank`.
        layers: Names of the layers, or of nested models, that may be factorised. Default: all.
        exclude: Names of layers, or of nested models, that stay whole. Default: none.

    Raises:
        SettingsError: A setting is out of range.

    Example:
        >>> stage = LowRank(flops=0.5)
        >>> model, report = stage.apply(model, context)  # doctest: +SKIP
        >>> report.metrics["rank_per_layer"]             # doctest: +SKIP
        {'conv_2': 12, 'dense_1': 31}
    """

    name: ClassVar[str] = "low_rank"
    needs: ClassVar[frozenset[str]] = frozenset()

    rank: int | float | Mapping[str, int | float] | None = None
    energy: float | None = None
    flops: float | None = None
    params: float | None = None
    scheme: str = "auto"
    layers: Sequence[str] | None = None
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        given = [name for name in ASKS if getattr(self, name) is not None]
        if len(given) != 1:
            raise SettingsError(
                f"`LowRank` needs exactly one of {', '.join(f'`{name}`' for name in ASKS)}. "
                f"Received: {', '.join(f'`{name}`' for name in given) or 'none of them'}."
            )
        ranks = self.rank.values() if isinstance(self.rank, Mapping) else (self.rank,)
        for rank in ranks:
            if rank is not None:
                _check_rank(rank)
        for name in ("energy", "flops", "params"):
            _check_fraction(getattr(self, name), name, whole=name == "energy")
        check_option(self.scheme, OPTIONS, "scheme")
        for name in ("layers", "exclude"):
            check_names(getattr(self, name), name)
        if isinstance(self.rank, Mapping) and self.layers is not None:
            raise SettingsError(
                "`rank` by layer name chooses the layers. Received `layers` too: leave it out."
            )

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Factorise an own copy of `model`, and train it on where the context has `fit`.

        Args:
            model: A built Functional or Sequential Keras 3 model. It comes out bit-equal.
            context: `fit` to recover, `metric` and evaluation data to measure. Default: none.

        Returns:
            The factorised model, in plain layers, compiled if `model` is, and the report on every
            layer.

        Raises:
            UnsupportedModelError: It is a tf_keras model, or has no graph that can be rebuilt.
            ModelError: Weights are not finite.
            SettingsError: A named layer does not exist or cannot be factorised, a rank is above the
                full rank, or a budget cannot be met.
        """
        context = context or Context()
        check_keras3(model, "LowRank")
        check_rebuildable(model, "LowRank")
        check_finite(model)
        from tfedge.engines.native.graph import read_graph
        from tfedge.engines.native.low_rank import build_factorized

        graph = read_graph(model)
        reasons, choices = self._choose(model, graph)
        plan = {id(c.candidate.layer): c.option for c in choices if c.option is not None}
        metrics: dict[str, Any] = measured(model, context, "before")
        if not plan:
            return copy_model(model), self._report(model, graph, graph, choices, reasons, metrics)
        factorized = compile_like(build_factorized(graph, plan), model)
        metrics |= measured(factorized, context, "factorized")
        if context.fit is not None:
            context.fit(factorized, [])
            check_finite(factorized)
            metrics |= measured(factorized, context, "trained")
        after = read_graph(factorized)
        return factorized, self._report(model, graph, after, choices, reasons, metrics)

    # ------------------------------------------------------------------ choosing

    def _choose(self, model: Any, graph: "Graph") -> tuple[dict[int, str], list["Choice"]]:
        """Id of each layer that is left alone to the reason, and what becomes of the others."""
        from tfedge.engines.native.low_rank import candidate_of, why_not

        named = tuple(self.rank) if isinstance(self.rank, Mapping) else self.layers
        chosen = {id(layer) for layer in choose_layers(model, named)}
        chosen -= {id(layer) for layer in choose_layers(model, tuple(self.exclude))}
        reasons: dict[int, str] = {}
        candidates: dict[int, Any] = {}
        for call in graph.calls:
            key = id(call.operation)
            if not call.is_layer or key in candidates or key in reasons:
                continue
            reason = why_not(call)
            if reason is not None and call.operation.name in (named or ()):
                raise SettingsError(
                    f"Layer {call.operation.name!r} cannot be factorised: {reason}. Leave it out."
                )
            if key not in chosen:
                reason = NOT_CHOSEN
            if reason is None:
                candidates[key] = candidate_of(graph, call, self._schemes())
            else:
                reasons[key] = reason
        return reasons, self._ranks(graph, list(candidates.values()), bool(named))

    def _schemes(self) -> tuple[str, ...]:
        if self.scheme != "auto":
            return (self.scheme,)
        return ("channel",) if self.rank is not None else ("channel", "spatial")

    def _ranks(self, graph: "Graph", candidates: list[Any], named: bool) -> list["Choice"]:
        from tfedge.engines.native.costs import total_macs, total_parameters
        from tfedge.engines.native.rank_choice import by_energy, by_rank, within_budget

        if self.flops is not None:
            total = total_macs(graph)
            return within_budget(candidates, budget=self.flops, total=total, cost="flops")
        if self.params is not None:
            total = total_parameters(graph)
            return within_budget(candidates, budget=self.params, total=total, cost="params")
        if self.energy is not None:
            return [by_energy(candidate, self.energy) for candidate in candidates]
        choices = [by_rank(candidate, self._rank_of(candidate)) for candidate in candidates]
        above = [choice for choice in choices if choice.above_full_rank]
        if above and (named or len(above) == len(choices)):
            raise SettingsError(
                f"`rank` is at most the full rank of a kernel. Received: {above[0].reason}, layer "
                f"{above[0].candidate.name!r}. Lower it, or give a fraction such as 0.5."
            )
        return choices

    def _rank_of(self, candidate: Any) -> int | float:
        if not isinstance(self.rank, Mapping):
            return self.rank  # type: ignore[return-value]  # one of the four is given
        name = candidate.layer.name
        if name not in self.rank:  # chosen by the name of the model around it
            raise SettingsError(
                f"`rank` maps names of layers. Received the name of a nested model: name its "
                f"layers, such as {name!r}."
            )
        return self.rank[name]

    # ------------------------------------------------------------------ reporting

    def _report(
        self,
        model: Any,
        before: "Graph",
        after: "Graph",
        choices: Sequence["Choice"],
        reasons: Mapping[int, str],
        metrics: Mapping[str, Any],
    ) -> StageReport:
        done = {c.candidate.name: c.option for c in choices if c.option is not None}
        whole = {id(c.candidate.layer): c.reason for c in choices}
        why = {**whole, **reasons}
        changed = {id(c.candidate.layer) for c in choices if c.option is not None}
        layers = layers_of(model)
        dropped = [
            c.candidate.layer.name
            for c in choices
            if c.option is not None and c.candidate.layer.kernel_constraint is not None
        ]
        notes = []
        if dropped:
            notes.append(
                f"The kernel constraint of {', '.join(dropped)} means nothing for its factors and "
                "was left out."
            )
        return StageReport(
            stage=self.name,
            changed=tuple(layer.name for layer in layers if id(layer) in changed),
            skipped=tuple(
                Skipped(layer.name, why.get(id(layer), NOT_IN_GRAPH))
                for layer in layers
                if id(layer) not in changed
            ),
            metrics={
                **metrics,
                "factorized_layers": len(done),
                "rank_per_layer": {name: option.rank for name, option in done.items()},
                "scheme_per_layer": {name: option.scheme for name, option in done.items()},
                "energy_per_layer": {name: option.kept for name, option in done.items()},
                **_costs(before, "before"),
                **_costs(after, "after"),
            },
            notes=tuple(notes),
        )


def _costs(graph: "Graph", when: str) -> dict[str, int]:
    """Parameters and, where every axis has a size, multiply-accumulates of a graph."""
    from tfedge.engines.native.costs import total_macs, total_parameters

    costs = {f"parameters_{when}": total_parameters(graph)}
    with contextlib.suppress(UnsupportedModelError):  # an axis without a size: nothing to count
        costs[f"macs_{when}"] = total_macs(graph)
    return costs


def _check_rank(rank: Any) -> None:
    is_number = isinstance(rank, int | float) and not isinstance(rank, bool)
    if is_number and (rank >= 1 if isinstance(rank, int) else 0 < rank <= 1):
        return
    hint = f" Did you mean {int(rank)}?" if isinstance(rank, float) and rank > 1 else ""
    raise SettingsError(
        "`rank` is a rank (int, from 1) or a fraction of the full rank (float in (0, 1]). "
        f"Received: {rank!r}.{hint}"
    )


def _check_fraction(value: Any, name: str, *, whole: bool) -> None:
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (0 < value < 1 or (whole and value == 1)):
        return
    hint = f" Did you mean {value / 100:g}?" if is_number and 1 < value < 100 else ""
    what = "is kept" if whole else "may remain"
    raise SettingsError(
        f"`{name}` is the fraction that {what}, in (0, 1{']' if whole else ')'}. "
        f"Received: {value!r}.{hint}"
    )
