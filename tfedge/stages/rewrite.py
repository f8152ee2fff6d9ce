"""Replace layers by cheaper ones, check what that costs, and take back what costs too much."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tfedge.callbacks import keep_zeros
from tfedge.data import Metric, Split
from tfedge.engines.native.costs import total_macs
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.patterns import DEFAULT, PATTERNS
from tfedge.engines.native.rewriting import Pattern, Rewritten, rewrite
from tfedge.errors import (
    SettingsError,
    TrainingError,
    UnsupportedModelError,
    did_you_mean,
)
from tfedge.models import (
    check_finite,
    check_keras3,
    check_rebuildable,
    choose_layers,
    copy_model,
    layers_of,
    output_differences,
)
from tfedge.report import Skipped, StageReport
from tfedge.stages._base import AbstractStage, Context
from tfedge.stages._fit import check_count, scored

TOLERANCE = 1e-5  # of the largest output of a sample
HALF_TOLERANCE = 2e-2  # of a model that computes in 16 bits


@dataclass(frozen=True, kw_only=True)
class Rewrite(AbstractStage):
    """Replace layers by others, exactly or approximately, pattern by pattern. Keras 3 only.

    After an exact pattern the outputs are compared and must be the same within 1e-5 of the largest
    output of a sample. After an approximate one the model is trained by the context's `fit`, where
    there is one (zeros of pruned kernels stay), and judged on training data: by the context's
    metric, or without one by the loss that the model is compiled with. A pattern that leaves the
    model more than `max_drop` worse than it came is taken back; the layers are then the same as
    before, bit by bit. Evaluation data are never looked at for that.

    The result is in plain layers, with nested models inlined: there is no scaffolding, so a script
    of one's own trains what `apply` returns.

    Args:
        patterns: Names from the table of patterns, applied in this order. Exact: `drop_identity`,
            `split_separable`, `fold_batch_norm` (these are the default), `drop_dropout`,
            `dense_to_conv1x1`. Approximate: `conv_to_separable`, `conv5_to_two_conv3`,
            `conv_to_2_groups`, `conv_to_4_groups`, `conv_to_8_groups`, `silu_to_hard_silu`,
            `mish_to_hard_silu`, `gelu_to_relu6`, `gelu_to_relu`, `sigmoid_to_hard_sigmoid`,
            `elu_to_relu`, `selu_to_relu`, `softplus_to_relu`.
        layers: Names of the layers that may be replaced. Default: all.
        max_drop: How much worse the model may become in all, in the unit of metric or loss, e.g.
            0.01 for a point of accuracy. `None`: nothing is checked and nothing taken back; without
            data that is the only way to apply an approximate pattern.
        samples: Most training samples that the model is judged on.

    Raises:
        SettingsError: A setting is out of range, or there is no such pattern.

    Example:
        >>> stage = Rewrite(patterns=("silu_to_hard_silu", "conv_to_separable"), max_drop=0.02)
        >>> model, report = stage.apply(model, context)  # doctest: +SKIP
    """

    name: ClassVar[str] = "rewrite"
    needs: ClassVar[frozenset[str]] = frozenset()

    patterns: tuple[str, ...] = DEFAULT
    layers: tuple[str, ...] | None = None
    max_drop: float | None = 0.01
    samples: int = 2000

    def __post_init__(self) -> None:
        for name in ("patterns", "layers"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise SettingsError(
                    f"`Rewrite.{name}` is a sequence of names. Received: {value!r}. Write "
                    f"`{name}=({value!r},)`."
                )
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        if not self.patterns:
            raise SettingsError("`Rewrite.patterns` names at least one pattern. Received: none.")
        for name in self.patterns:
            if name not in PATTERNS:
                raise SettingsError(
                    f"There is no pattern {name!r}.{did_you_mean(name, PATTERNS)} Patterns: "
                    f"{', '.join(PATTERNS)}."
                )
        check_count(self.samples, "Rewrite.samples")
        drop = self.max_drop
        is_number = isinstance(drop, int | float) and not isinstance(drop, bool)
        if drop is not None and not (is_number and 0 <= drop < math.inf):
            raise SettingsError(
                "`Rewrite.max_drop` is a number from 0 in the unit of the metric, or None. "
                f"Received: {drop!r}."
            )

    @property
    def trains(self) -> bool:
        """Whether a pattern is approximate; after an exact one there is nothing to train."""
        return not all(PATTERNS[name].exact for name in self.patterns)

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Rewrite an own copy of `model`.

        Args:
            model: A functional or Sequential Keras 3 model. It comes out bit-equal.
            context: Approximate patterns need `data` with a training split, and `metric` unless the
                model is compiled, or else `max_drop=None`; `fit` is used where it is given.

        Returns:
            The rewritten model, compiled if `model` is, and the report on every layer.

        Raises:
            UnsupportedModelError: The model is of tf_keras, or has no graph to rebuild.
            SettingsError: The context lacks something, or `layers` names none of the model.
            ModelError: Weights are not finite.
        """
        context = context or Context()
        _check_model(model)
        choose_layers(model, self.layers)
        chosen = [PATTERNS[name] for name in self.patterns]
        checked = self.trains and self.max_drop is not None
        judge = _judge(model, context, self.samples) if checked else None
        work = _Work(
            model=model,
            chosen=None if self.layers is None else frozenset(self.layers),
            context=context,
            judge=judge,
            max_drop=self.max_drop,
        )
        for pattern in chosen:
            work.try_pattern(pattern)
        return work.result, _report(self, model, work)


@dataclass(frozen=True)
class _Judge:
    """A figure of merit on training data: a metric, or the loss that a model is compiled with."""

    split: Split
    metric: Metric | None

    @property
    def name(self) -> str:
        return "loss" if self.metric is None else self.metric.name

    def figure(self, model: Any) -> float:
        if self.metric is not None:
            return scored(model, self.split, self.metric)
        arguments = self.split.fit_arguments(32)
        rows = {key: arguments[key] for key in ("x", "y", "sample_weight") if key in arguments}
        return float(model.evaluate(**rows, verbose=0, return_dict=True)["loss"])

    def worse_by(self, reference: float, candidate: float) -> float:
        if self.metric is None:
            return candidate - reference
        return self.metric.worse_by(reference, candidate)


@dataclass
class _Work:
    """The model on its way through the patterns, and what became of each."""

    model: Any
    chosen: frozenset[str] | None
    context: Context
    judge: _Judge | None
    max_drop: float | None

    def __post_init__(self) -> None:
        self.result = copy_model(self.model)
        graph = read_graph(self.model)
        # name of a call in the flat graph of `result` to the layer of `model` that it stems from
        self.origins = {call.name: call.operation.name for call in graph.calls}
        named = {id(layer) for layer in choose_layers(self.model, self._names())}
        self.open = {c.name for c in graph.calls if self.chosen is None or id(c.operation) in named}
        self.changed_by: dict[str, list[str]] = {}
        self.reasons: dict[str, list[str]] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.start = None if self.judge is None else self.judge.figure(self.model)
        self.figure = self.start

    def _names(self) -> list[str] | None:
        return None if self.chosen is None else sorted(self.chosen)

    def try_pattern(self, pattern: Pattern) -> None:
        """Apply a pattern, and keep the outcome or leave `result` as it is."""
        made = rewrite(self.result, pattern, None if self.chosen is None else self.open)
        for name, reason in made.refused.items():
            self._note(name, f"`{pattern.name}`: {reason}")
        if not made.changed:
            self.outcomes[pattern.name] = {"outcome": "fits nowhere", "layers": 0}
            return
        why, figures = self._check_exact(made) if pattern.exact else self._check_trained(made)
        if made.errors:
            figures["kernel_errors"] = {self.origins[n]: e for n, e in made.errors.items()}
        outcome = f"undone: {why}" if why else "kept"
        self.outcomes[pattern.name] = {"outcome": outcome, "layers": len(made.changed), **figures}
        if why:
            for name in made.changed:
                self._note(name, f"`{pattern.name}` was undone: {why}")
            return
        self._keep(pattern, made)

    def _check_exact(self, made: Rewritten) -> tuple[str, dict[str, Any]]:
        types = {layer.compute_dtype for layer in layers_of(self.result)}
        allowed = HALF_TOLERANCE if types & {"float16", "bfloat16"} else TOLERANCE
        worst = max(
            difference
            for _, difference in output_differences(self.result, made.model, seed=self.context.seed)
        )
        why = ""
        if not worst <= allowed:
            why = f"outputs differ by {worst:.2g} of their largest, with {allowed:.0e} allowed"
        return why, {"output_difference": worst}

    def _check_trained(self, made: Rewritten) -> tuple[str, dict[str, Any]]:
        figures: dict[str, Any] = {}
        if self.judge is not None and self.context.fit is not None:
            figures["untrained"] = self.judge.figure(made.model)
        try:
            if self.context.fit is not None:
                self.context.fit(made.model, [keep_zeros("keras")])
        except TrainingError as error:
            return f"its training failed ({error})", figures
        if self.judge is None or self.start is None or self.figure is None:
            return "", figures
        name, figure = self.judge.name, self.judge.figure(made.model)
        drop = self.judge.worse_by(self.start, figure)
        cost = self.judge.worse_by(self.figure, figure)
        figures |= {name: figure, "cost": cost}
        limit = self.max_drop if self.max_drop is not None else math.inf
        if not drop <= limit:
            change = f"{self.figure:.4g} to {figure:.4g}"
            why = f"it costs {cost:.4g} of {name} ({change}), and {limit:.4g} may be lost in all"
            return why, figures
        self.figure = figure
        return "", figures

    def _keep(self, pattern: Pattern, made: Rewritten) -> None:
        self.result = made.model
        for name in made.changed:
            self.changed_by.setdefault(self.origins[name], []).append(pattern.name)
        for new, name in made.made.items():
            self.origins[new] = self.origins[name]
            if name in self.open:
                self.open.add(new)

    def _note(self, name: str, reason: str) -> None:
        self.reasons.setdefault(self.origins[name], []).append(reason)


def _check_model(model: Any) -> None:
    check_keras3(model, "Rewrite")
    check_rebuildable(model, "Rewrite")
    check_finite(model)


def _judge(model: Any, context: Context, samples: int) -> _Judge:
    data = context.data
    split = None if data is None else data.train or data.calibration
    if split is None or (context.metric is None and not model.compiled):
        missing = "data" if split is None else "metric"
        raise SettingsError(
            "An approximate pattern is checked on training data, by a metric or the loss of a "
            f"compiled model. Received a `Context` without `{missing}`. Give it, or apply the "
            "pattern unchecked: `Rewrite(…, max_drop=None)`."
        )
    return _Judge(split.take(samples, seed=context.seed), context.metric)


def _report(stage: Rewrite, model: Any, work: _Work) -> StageReport:
    names = [layer.name for layer in layers_of(model)]
    flat = [name for name in work.changed_by if name not in names]  # operations of `keras.ops`
    metrics: dict[str, Any] = {
        "parameters_before": model.count_params(),
        "parameters_after": work.result.count_params(),
        **_macs(model, "before"),
        **_macs(work.result, "after"),
        "changed_by": dict(work.changed_by),
        "patterns": work.outcomes,
    }
    if work.judge is not None:
        metrics |= {f"{work.judge.name}_before": work.start}
        metrics |= {f"{work.judge.name}_after": work.figure}
    skipped = tuple(
        Skipped(name, _why_skipped(stage, model, name, work.reasons))
        for name in names
        if name not in work.changed_by
    )
    return StageReport(
        stage=stage.name,
        changed=tuple(name for name in [*names, *flat] if name in work.changed_by),
        skipped=skipped,
        metrics=metrics,
        notes=_notes(work),
    )


def _notes(work: _Work) -> tuple[str, ...]:
    notes = [f"`{name}` {row['outcome']}." for name, row in work.outcomes.items() if row["layers"]]
    approximate = [name for name in work.outcomes if not PATTERNS[name].exact]
    if approximate and work.judge is None:
        notes.append("What the approximate patterns cost was not checked (`max_drop=None`).")
    elif work.judge is not None:
        notes.append(f"Judged on {len(work.judge.split)} samples of the training data.")
    return tuple(notes)


def _why_skipped(
    stage: Rewrite, model: Any, name: str, reasons: Mapping[str, Sequence[str]]
) -> str:
    if name in reasons:
        return "; ".join(reasons[name])
    if stage.layers is not None and name not in {
        layer.name for layer in choose_layers(model, stage.layers)
    }:
        return "not in `layers`"
    return "none of the patterns is about it"


def _macs(model: Any, when: str) -> dict[str, int]:
    """Nothing for a model with an axis of open size."""
    try:
        return {f"macs_{when}": total_macs(read_graph(model))}
    except UnsupportedModelError:
        return {}
