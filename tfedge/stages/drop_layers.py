"""Drop whole residual blocks and layers that a model can do without."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tfedge.data import Data, Split
from tfedge.engines.native.prune_settings import check_names
from tfedge.errors import SettingsError
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
from tfedge.stages._fit import check_count
from tfedge.stages._judge_outputs import BATCH_SIZE, choose_figure

if TYPE_CHECKING:
    from tfedge.engines.native.graph import Graph
    from tfedge.engines.native.layer_dropping import Span

ASKS = ("count", "flops", "max_worse")


@dataclass(frozen=True, kw_only=True)
class DropLayers(AbstractStage):
    """Drop residual blocks and layers whose input and output have one form, the least missed first.

    Each piece is measured by the figure without it: the metric of the context, else the loss, else
    (without labels) how far the outputs move. The best one goes, the rest is measured anew, and so
    on. Samples are drawn from the training split; only where there is none, from the evaluation
    split, which the report then says: a choice made on it makes its figures too good.

    A residual block is what lies between an addition and the one of its inputs that the other is
    computed from. A layer goes alone, or with the normalisation and activation behind it. What
    saves nothing (an activation, say) goes only where it is named.

    Args:
        count: How many pieces go.
        flops: Fraction of the model's multiply-accumulates that may remain, in (0, 1).
        max_worse: How much worse the figure may get in all, in its own unit (0.01 of an accuracy is
            a point); what exceeds it is undone. Alone, everything goes that fits.
        layers: Names of additions and layers, or of nested models, that may go. Default: all.
        exclude: Names of those that must stay. Default: none.
        samples: How many samples pieces are measured on.

    Raises:
        SettingsError: A setting is out of range.

    Example:
        >>> model, report = DropLayers(count=1).apply(model, context)  # doctest: +SKIP
        >>> report.metrics["dropped"]                                  # doctest: +SKIP
        ['block of add_3']
    """

    name: ClassVar[str] = "drop_layers"
    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    count: int | None = None
    flops: float | None = None
    max_worse: float | None = None
    layers: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    samples: int = 512

    def __post_init__(self) -> None:
        given = [name for name in ASKS if getattr(self, name) is not None]
        if not given or {"count", "flops"} <= set(given):
            raise SettingsError(
                "`DropLayers` needs `count` or `flops`, or `max_worse` alone or beside one of "
                f"them. Received: {', '.join(f'`{name}`' for name in given) or 'none of them'}."
            )
        if self.count is not None:
            check_count(self.count, "count")
        check_count(self.samples, "samples")
        for name, top in (("flops", 1.0), ("max_worse", math.inf)):
            value = getattr(self, name)
            if value is not None and not _is_between(value, 0.0, top):
                limits = "a fraction in (0, 1)" if name == "flops" else "a number above 0"
                raise SettingsError(f"`{name}` is {limits}. Received: {value!r}.")
        for name in ("layers", "exclude"):
            check_names(getattr(self, name), name)

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Drop pieces of an own copy of `model`, training it on in between where there is `fit`.

        Args:
            model: A built Functional or Sequential Keras 3 model. It comes out bit-equal.
            context: `data` is needed, with labels unless outputs alone shall count; `metric` to
                measure by; `fit` to recover after each drop.

        Returns:
            The smaller model, compiled if `model` is, and the report on every layer.

        Raises:
            UnsupportedModelError: It is a tf_keras model, or has no graph that can be rebuilt.
            ModelError: Weights are not finite.
            SettingsError: A named layer does not exist, or what was asked cannot be reached.
        """
        context = self._check_context(context)
        check_keras3(model, "DropLayers")
        check_rebuildable(model, "DropLayers")
        check_finite(model)
        work = _Dropping(self, model, context)
        work.run()
        return work.current, work.report()


class _Dropping:
    """One application of the stage: the model as far as it is, and what was seen on the way."""

    def __init__(self, stage: DropLayers, model: Any, context: Context) -> None:
        from tfedge.engines.native.graph import read_graph

        self.stage, self.model, self.context = stage, model, context
        self.current = copy_model(model)
        self.first = read_graph(model)
        self.graph = read_graph(self.current)
        self.split, self.drawn_from = _sample(stage, context)
        self.layers = None if stage.layers is None else self._names(stage.layers)
        self.exclude = self._names(stage.exclude)
        whole, _ = self.outputs([])
        self.figure = choose_figure(self.current, self.split, context.metric, whole)
        self.before = self.now = self.figure.of(whole)
        self.candidates: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self.undone: tuple[str, float] | None = None
        self.reasons: dict[str, str] = {}

    def _names(self, layers: Sequence[str]) -> set[str]:
        """Names in the flat graph of the layers that the user named."""
        chosen = {id(layer) for layer in choose_layers(self.model, tuple(layers))}
        return {call.name for call in self.first.calls if id(call.operation) in chosen}

    def outputs(self, spans: Sequence["Span"]) -> tuple[list[Any], list[list[Any]]]:
        from tfedge.engines.native.layer_dropping import outputs_without

        batches = (rows[0] for rows in self.split.batches(BATCH_SIZE))
        return outputs_without(self.graph, spans, batches)

    def run(self) -> None:
        while not self.is_done() and self.drop_one():
            pass
        if not self.is_done() and self.stage.max_worse is None:
            raise SettingsError(self.unreached())

    def is_done(self) -> bool:
        if self.stage.count is not None:
            return len(self.dropped) >= self.stage.count
        if self.stage.flops is None:
            return False
        return _macs(self.graph) <= self.stage.flops * _macs(self.first)

    def drop_one(self) -> bool:
        """Drop the piece that is missed least; `False` where none may go."""
        from tfedge.engines.native.graph import read_graph
        from tfedge.engines.native.layer_dropping import drop

        scored = self.score()
        if not scored:
            return False
        figure, span = scored[0]
        trial = compile_like(drop(self.graph, span), self.model)
        previous = self.current, self.graph
        self.current, self.graph = trial, read_graph(trial)
        if self.context.fit is not None:
            self.context.fit(trial, [])
            check_finite(trial)
            figure = self.figure.of(self.outputs([])[0])
        limit = self.stage.max_worse
        if limit is not None and not self.figure.worse_by(self.before, figure) <= limit:
            self.current, self.graph = previous
            self.undone = (span.title, figure)
            return False
        self.dropped.append(span.title)
        self.now = figure
        return True

    def score(self) -> list[tuple[float, "Span"]]:
        """The pieces that may go with the figure without them, the least missed first."""
        from tfedge.engines.native.layer_dropping import find_spans

        spans, self.reasons = find_spans(self.graph, layers=self.layers, exclude=self.exclude)
        if self.stage.flops is not None:
            spans = [span for span in spans if span.macs]
        rows = [
            (self.figure.of(outputs), span)
            for outputs, span in zip(self.outputs(spans)[1], spans, strict=True)
        ]
        rows.sort(
            key=lambda row: (
                self.figure.worse_by(self.before, row[0]),
                -row[1].macs,
                -row[1].parameters,
            )
        )
        self.candidates += [
            {
                "round": len(self.dropped) + 1,
                "candidate": span.title,
                "layers": list(span.calls),
                self.figure.name: figure,
                "macs_saved": span.macs,
                "parameters_saved": span.parameters,
            }
            for figure, span in rows
        ]
        return rows

    # ------------------------------------------------------------------ reporting

    def unreached(self) -> str:
        stage, done = self.stage, len(self.dropped)
        left = _macs(self.graph) / max(_macs(self.first), 1)
        asked = f"count={stage.count}" if stage.count is not None else f"flops={stage.flops:g}"
        why = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:4])
        return (
            f"`{asked}` cannot be met: after {done} {'piece' if done == 1 else 'pieces'} "
            f"({', '.join(self.dropped) or 'none'}), with a fraction of {left:.3f} of the "
            f"multiply-accumulates left, nothing more can go ({why}). Ask for less."
        )

    def report(self) -> StageReport:
        left = {call.name for call in self.graph.calls}
        names = {id(call.operation): call.name for call in self.first.calls}
        changed, skipped = [], []
        for layer in layers_of(self.model):
            name = names.get(id(layer), layer.name)
            if id(layer) in names and name not in left:
                changed.append(layer.name)
            else:
                skipped.append(Skipped(layer.name, self._why_kept(name)))
        figure = self.figure.name
        return StageReport(
            stage=self.stage.name,
            changed=tuple(changed),
            skipped=tuple(skipped),
            metrics={
                "dropped": list(self.dropped),
                f"{figure}_before": self.before,
                f"{figure}_after": self.now,
                **_costs(self.first, "before"),
                **_costs(self.graph, "after"),
                "candidates": self.candidates,
            },
            notes=tuple(self._notes()),
        )

    def _why_kept(self, name: str) -> str:
        figure = self.figure.name
        rows = [row for row in self.candidates if name in row["layers"]]
        if rows:  # the best of the last round comes first
            last = max(row["round"] for row in rows)
            best = next(row for row in rows if row["round"] == last)
            return f"kept: without {best['candidate']} the {figure} was {best[figure]:.4g}"
        return self.reasons.get(name, "inside a model whose graph exists only as Python code")

    def _notes(self) -> list[str]:
        notes = [f"Pieces were measured on {len(self.split)} samples of the {self.drawn_from}."]
        if self.drawn_from == "evaluation split":
            notes[0] += " There is no training split: figures on these data are too good."
        if self.undone is not None:
            title, figure = self.undone
            notes.append(
                f"{title} was put back: without it the {self.figure.name} was {figure:.4g}, worse "
                f"than {self.before:.4g} by more than {self.stage.max_worse:g}."
            )
            if self.stage.count is not None or self.stage.flops is not None:
                notes.append("What was asked for was not reached within `max_worse`.")
        return notes


# ---------------------------------------------------------------------------- measuring


def _sample(stage: DropLayers, context: Context) -> tuple[Split, str]:
    data = context.data or Data()
    for split, name in ((data.train, "training split"), (data.evaluation, "evaluation split")):
        if split is not None:
            return split.take(stage.samples, context.seed), name
    raise SettingsError(
        "`DropLayers` measures on `data.train` or `data.evaluation`. Received data with neither."
    )


def _macs(graph: "Graph") -> int:
    from tfedge.engines.native.costs import total_macs

    return total_macs(graph)


def _costs(graph: "Graph", when: str) -> dict[str, int]:
    from tfedge.engines.native.costs import total_parameters

    return {f"parameters_{when}": total_parameters(graph), f"macs_{when}": _macs(graph)}


def _is_between(value: Any, low: float, high: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and low < value < high
