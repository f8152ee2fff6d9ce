"""Train with a penalty that pushes weights, filters or channels towards zero."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tfedge.engines.native.prune_settings import check_names, check_option
from tfedge.errors import SettingsError, UnsupportedModelError
from tfedge.models import (
    check_finite,
    check_keras3,
    check_rebuildable,
    choose_layers,
    compile_like,
    copy_model,
)
from tfedge.report import Skipped, StageReport
from tfedge.stages._base import AbstractTrainedStage, Context
from tfedge.stages._fit import measured

KINDS = ("l1", "group_lasso", "batch_norm", "l0")
# Kind to the groups that it knows, the default first.
GROUPS_OF = {
    "l1": ("weights",),
    "group_lasso": ("outputs", "inputs"),
    "batch_norm": ("weights",),
    "l0": ("outputs", "inputs", "weights"),
}
UNITS = {"l1": "weights", "group_lasso": "groups", "batch_norm": "channels", "l0": "gates"}


@dataclass(frozen=True, kw_only=True)
class SparsityPenalty(AbstractTrainedStage):
    """Train with a penalty on weights, so that pruning afterwards costs less.

    The penalty is added to the training loss once per weight, however often its layer is called,
    and counted once under mixed precision and on several devices. `finish` takes it off; the
    regularisers that the layers had themselves are never touched. Weights end near zero, hardly
    ever at zero: `zero_out` sets them there.

    Args:
        kind: `"l1"`: magnitudes of kernels. `"group_lasso"`: norms of whole groups of them (Wen et
            al. 2016). `"batch_norm"`: magnitudes of BatchNormalization's scales, network slimming
            (Liu et al. 2017). `"l0"`: the expected number of weights behind open hard-concrete
            gates (Louizos et al. 2018); what they close is exactly zero.
        strength: Factor of the penalty: of `Σ|w|`, `Σ √size · norm`, `Σ|scale|`, or for each weight
            behind an open gate. From 0.
        groups: For `"group_lasso"` and `"l0"` what goes together: `"outputs"` (filters, neurons;
            those that the model returns are kept), `"inputs"` (channels that a layer reads), and
            for `"l0"` also single `"weights"`. Default: `"outputs"`.
        layers: Names of the layers, or of nested models, that are penalised. Default: all.
        exclude: Names of layers, or of nested models, that are not. Default: none.
        threshold: What counts as near zero: magnitude of a weight or scale, root mean square of a
            group, gate. From 0.
        zero_out: Whether `finish` sets all that is near zero to exactly zero.
        gate_speed: For `"l0"`: how many times as far as a weight a gate moves in a step of an
            adaptive optimizer such as Adam; to close, a gate has to move by about 5.
        seed: Of the draws of gates.

    Raises:
        SettingsError: A setting is out of range.

    Example:
        >>> stage = SparsityPenalty(kind="batch_norm", strength=1e-4)
        >>> prepared = stage.prepare(model)                              # doctest: +SKIP
        >>> prepared.fit(x, y, epochs=4, callbacks=stage.callbacks())    # doctest: +SKIP
        >>> sparse, report = stage.finish(prepared)                      # doctest: +SKIP
    """

    name: ClassVar[str] = "sparsity_penalty"

    kind: str
    strength: float
    groups: str | None = None
    layers: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    threshold: float = 1e-3
    zero_out: bool = False
    gate_speed: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_option(self.kind, KINDS, "kind")
        for name in ("strength", "threshold", "gate_speed"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf:
                raise SettingsError(f"`{name}` is a finite number from 0. Received: {value!r}.")
        if not self.gate_speed:
            raise SettingsError("`gate_speed` 0 would hold every gate open. Received: 0.")
        known = GROUPS_OF[self.kind]
        if self.groups is not None and len(known) == 1:
            raise SettingsError(
                f"`groups` is for the kinds 'group_lasso' and 'l0'. Received: kind={self.kind!r}, "
                f"groups={self.groups!r}. Leave it out."
            )
        if self.groups is not None:
            check_option(self.groups, known, "groups")
        for name in ("layers", "exclude"):
            check_names(getattr(self, name), name)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise SettingsError(f"`seed` is a whole number. Received: {self.seed!r}.")

    def prepare(self, model: Any) -> Any:
        """An own copy of `model` whose training loss holds the penalty; compiled if `model` is.

        Args:
            model: A built Keras 3 model. `"l1"` and `"batch_norm"` take subclassed ones too.

        Raises:
            UnsupportedModelError: It is a tf_keras model, or its graph is needed and cannot be
                read.
            ModelError: Weights are not finite.
            SettingsError: A named layer does not exist, or nothing is left to be penalised.
        """
        check_keras3(model, "SparsityPenalty")
        check_finite(model)
        if self._needs_graph:
            check_rebuildable(model, "SparsityPenalty")
        if self.kind == "l0":
            return self._gated(model)
        from tfedge.engines.native.penalties import absolute_sum, add_penalties, group_lasso

        copy = copy_model(model)
        targets, skipped = self._find(copy)
        self._check_some(targets, skipped)
        formula = group_lasso if self.kind == "group_lasso" else absolute_sum
        add_penalties(targets, self.strength, formula)
        return copy

    def callbacks(self) -> list[Any]:
        """None: the penalty is part of the model."""
        return []

    def finish(self, trained: Any) -> tuple[Any, StageReport]:
        """The trained model without the penalty, and how much of it is near zero.

        Args:
            trained: What `prepare` gave, after `fit`. It keeps the penalty and may train on.

        Returns:
            An own copy in plain layers, compiled if `trained` is, and the report.

        Raises:
            UnsupportedModelError: The model holds no penalty.
            ModelError: Weights are not finite.
        """
        check_keras3(trained, "SparsityPenalty")
        check_finite(trained)
        return self._unfolded(trained) if self.kind == "l0" else self._plain(trained)

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Prepare, train and finish.

        Args:
            model: As for `prepare`. It comes out bit-equal.
            context: `fit` is needed; with a metric and evaluation data, the metric before and after
                is recorded.

        Raises:
            SettingsError: The context lacks `fit`.
            TrainingError: The loss became NaN.
        """
        context = self._check_context(context)
        prepared = self.prepare(model)
        before = measured(model, context, "before")
        context.fit(prepared, self.callbacks())  # type: ignore[misc]  # `needs` holds it
        finished, report = self.finish(prepared)
        metrics = {**report.metrics, **before, **measured(finished, context, "trained")}
        return finished, dataclasses.replace(report, metrics=metrics)

    # ------------------------------------------------------------------ regularisers

    @property
    def _groups(self) -> str:
        return self.groups or GROUPS_OF[self.kind][0]

    @property
    def _needs_graph(self) -> bool:
        return self.kind == "l0" or self._groups == "outputs"

    def _find(self, model: Any) -> tuple[list[Any], list[Skipped]]:
        from tfedge.engines.native.graph import read_graph
        from tfedge.engines.native.penalties import find_targets

        chosen = {id(layer) for layer in choose_layers(model, self.layers)}
        chosen -= {id(layer) for layer in choose_layers(model, tuple(self.exclude))}
        outputs = self._groups == "outputs" or self.kind == "batch_norm"
        graph = read_graph(model) if outputs and _has_graph(model) else None
        return find_targets(model, kind=self.kind, groups=self._groups, chosen=chosen, graph=graph)

    def _check_some(self, targets: Sequence[Any], skipped: Sequence[Skipped]) -> None:
        if not targets:
            rows = " ".join(f"{row.layer}: {row.reason}." for row in skipped[:5])
            raise SettingsError(f"No layer of this model takes the penalty {self.kind!r}. {rows}")

    def _plain(self, trained: Any) -> tuple[Any, StageReport]:
        from tfedge.engines.native.penalties import penalty_of, zero_below

        penalty = penalty_of(trained)
        if penalty is None:
            raise _not_prepared(trained)
        model = copy_model(trained)
        targets, skipped = self._find(model)
        near: dict[str, list[int]] = {}
        for target in targets:
            values = target.magnitudes()
            row = near.setdefault(target.layer.name, [0, 0])
            row[0] += int((values <= self.threshold).sum())
            row[1] += values.size
        metrics: dict[str, Any] = {"penalty": penalty}
        if self.zero_out:
            metrics["zeroed_weights"] = zero_below(targets, self.threshold)
        return model, self._report(near, skipped, metrics)

    # ------------------------------------------------------------------ gates

    def _gated(self, model: Any) -> Any:
        from tfedge.engines.native.gates import build_gated
        from tfedge.engines.native.graph import read_graph

        targets, skipped = self._find(model)
        self._check_some(targets, skipped)
        gated = build_gated(
            read_graph(model),
            targets,
            groups=self._groups,
            strength=self.strength,
            speed=self.gate_speed,
            seed=self.seed,
        )
        return compile_like(gated, model)

    def _unfolded(self, trained: Any) -> tuple[Any, StageReport]:
        import numpy as np

        from tfedge.engines.native.gates import fold_gates, gated_layers, open_probability

        wrappers = gated_layers(trained)
        if not wrappers:
            raise _not_prepared(trained)
        below = self.threshold if self.zero_out else 0.0
        model = compile_like(fold_gates(trained, below=below), trained)
        near: dict[str, list[int]] = {}
        expected: dict[str, float] = {}
        still_open = 0
        for layer in wrappers:
            gates = np.asarray(layer.gates())
            near[layer.name] = [int((gates <= self.threshold).sum()), gates.size]
            expected[layer.name] = float(np.sum(open_probability(layer.log_alpha)))
            still_open += int((gates > below).sum())
        _, skipped = self._find(model)
        skipped = [row for row in skipped if row.layer not in near]
        metrics = {
            "penalty": sum(wrapper.penalty() for wrapper in wrappers),
            "open_gates": still_open,
            "expected_open_gates": sum(expected.values()),
            "expected_open_gates_per_layer": expected,
        }
        return model, self._report(near, skipped, metrics)

    def _report(
        self, near: dict[str, list[int]], skipped: Sequence[Skipped], metrics: dict[str, Any]
    ) -> StageReport:
        unit = UNITS[self.kind]
        return StageReport(
            stage=self.name,
            changed=tuple(near),
            skipped=tuple(skipped),
            metrics={
                unit: sum(row[1] for row in near.values()),
                f"{unit}_near_zero": sum(row[0] for row in near.values()),
                "near_zero_per_layer": {name: row[0] / row[1] for name, row in near.items()},
                **metrics,
            },
        )


def _has_graph(model: Any) -> bool:
    from tfedge.engines.native.graph import is_inlinable

    return is_inlinable(model)


def _not_prepared(model: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"`SparsityPenalty.finish` takes the model that `prepare` gave, with the same `kind`. "
        f"Received: `{model.name}`, which holds no such penalty."
    )
