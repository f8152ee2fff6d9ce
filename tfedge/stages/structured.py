"""Remove whole filters and neurons: the model gets smaller and faster on any hardware."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tfedge.engines.native.prune_settings import check_fraction, check_names, check_option
from tfedge.errors import SettingsError, TrainingError
from tfedge.models import check_finite, check_keras3, check_rebuildable, compile_like
from tfedge.report import StageReport
from tfedge.stages._base import AbstractStage, Context
from tfedge.stages._fit import check_count, measured

IMPORTANCES = (
    "l1",
    "l2",
    "bn_scale",
    "activation_mean",
    "apoz",
    "entropy",
    "taylor",
    "gradient",
    "random",
)
WITH_DATA = frozenset({"activation_mean", "apoz", "entropy", "taylor", "gradient"})
WITH_LOSS = frozenset({"taylor", "gradient"})
SCOPES = ("layer", "global")
BUDGETS = {"flops": "macs", "params": "parameters"}
ASKS = ("amount", "per_layer", "flops", "params", "latency_ms")


@dataclass(frozen=True, kw_only=True)
class StructuredPrune(AbstractStage):
    """Remove the channels that matter least, with everything that belongs to them.

    Channels that are added, multiplied or normalised together go together; the model that comes
    out is made of plain, smaller layers. Keras 3 only: for tf_keras models, `to_keras3` first.
    With `fit` in the context the model is trained after every iteration; without, channels are
    removed at once and training is left to the caller.

    Args:
        amount: Fraction of channels that goes, in `[0, 1)`: of each layer, or of all together.
        per_layer: Such fractions of single layers by name; the others are left alone, or follow
            `amount`. Layers whose channels go together follow one number.
        flops: Fraction of the multiply-accumulates that may remain, in `(0, 1]`.
        params: Fraction of the parameters that may remain, in `(0, 1]`.
        latency_ms: Median latency of the float32 `.tflite` file on this machine, one thread, that
            may remain: candidates are converted and measured.
        scope: `"layer"` takes the same fraction of every layer; `"global"` compares the channels
            of all layers. Default: `"layer"` with `amount`, `"global"` with a budget.
        importance: `"l1"`, `"l2"` (norm of the filters with batch normalisation folded in),
            `"bn_scale"`, `"activation_mean"`, `"apoz"`, `"entropy"`, `"taylor"`, `"gradient"`,
            `"random"`, or a callable: filters (channels, weights) to scores (channels,).
        importance_samples: Training samples that outputs and gradients are taken from.
        round_to: Layers that lose channels keep a multiple of so many; kernels of runtimes are
            fastest at multiples of 8. Layers of no more than that keep all.
        min_channels: Filters that every layer keeps at least.
        iterations: In how many turns of removing and training the channels go.
        layers: Names of the layers whose channels may go. Default: all that can.
        exclude: Names of layers whose channels stay.

    Raises:
        SettingsError: A setting is out of range, or two of them contradict each other.

    Example:
        >>> stage = StructuredPrune(flops=0.5, importance="taylor", iterations=3)
        >>> model, report = stage.apply(model, context)                      # doctest: +SKIP
        >>> model, report = StructuredPrune(amount=0.25).apply(model)        # doctest: +SKIP
    """

    name: ClassVar[str] = "structured_prune"
    needs: ClassVar[frozenset[str]] = frozenset()

    amount: float | None = None
    per_layer: Mapping[str, float] | None = None
    flops: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    scope: str | None = None
    importance: Any = "l2"
    importance_samples: int = 512
    round_to: int = 8
    min_channels: int = 4
    iterations: int = 1
    layers: Sequence[str] | None = None
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._check_asked()
        if self.amount is not None:
            _check_removed(self.amount, "amount")
        for name, value in (self.per_layer or {}).items():
            _check_removed(value, f"per_layer[{name!r}]")
        for name in BUDGETS:
            _check_remaining(getattr(self, name), name)
        _check_latency(self.latency_ms)
        if self.scope is not None:
            check_option(self.scope, SCOPES, "scope")
        if not callable(self.importance):
            check_option(self.importance, IMPORTANCES, "importance")
        for name in ("importance_samples", "round_to", "min_channels", "iterations"):
            check_count(getattr(self, name), f"StructuredPrune.{name}")
        for name in ("layers", "exclude"):
            check_names(getattr(self, name), name)

    @property
    def compares_all(self) -> bool:
        """Whether the channels of all layers are compared with each other."""
        if self.scope is not None:
            return self.scope == "global"
        return self.amount is None and self.per_layer is None

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Remove channels from an own copy of `model`.

        Args:
            model: A built Functional or Sequential Keras 3 model.
            context: `fit` trains after every iteration; `data` serves importances that look at
                samples; with `metric` and evaluation data the report holds the metric before
                removal, after it and after training.

        Returns:
            The smaller model, compiled as `model` is, and the report: for every layer channels,
            multiply-accumulates and parameters before and after.

        Raises:
            SettingsError: The budget cannot be met (the message says what can), a named layer is
                missing or cannot be pruned, or the context lacks what the settings need.
            UnsupportedModelError: It is a tf_keras model, or has no graph of layers.
            TrainingError: The model that comes out is above the budget.
        """
        context = self._check_context(context)
        self._check_model(model, context)
        from tfedge.stages._structured_work import Work

        work = Work(self, model, context)
        metrics: dict[str, Any] = dict(measured(model, context, "before"))
        current = model
        for turn in range(1, self.iterations + 1):
            smaller = work.smaller(current, turn)
            current = compile_like(smaller, current)
            if turn == self.iterations:
                metrics |= measured(current, context, "pruned")
            if context.fit is not None:
                context.fit(current, ())
        check_finite(current)
        if context.fit is not None:
            metrics |= measured(current, context, "trained")
        report = work.report(current, metrics)
        self._check_reached(report)
        return current, report

    def _check_model(self, model: Any, context: Context) -> None:
        check_keras3(model, "StructuredPrune")
        check_rebuildable(model, "StructuredPrune")
        check_finite(model)
        if self.iterations > 1 and context.fit is None:
            raise SettingsError(
                f"`iterations={self.iterations}` trains between its turns. Received a context "
                "without `fit`. Give one, or leave `iterations` at 1."
            )
        if self.importance in WITH_DATA and (context.data is None or context.data.train is None):
            raise SettingsError(
                f"`importance={self.importance!r}` looks at data. Received a context without "
                "`data.train`. Call `apply(model, Context(data=…))`."
            )
        if self.importance in WITH_LOSS and not model.compiled:
            raise SettingsError(
                f"`importance={self.importance!r}` uses gradients of the loss, and the model is "
                "not compiled. Compile it first."
            )

    def _check_reached(self, report: StageReport) -> None:
        for setting, figure in BUDGETS.items():
            asked, remains = getattr(self, setting), report.metrics.get(f"{figure}_fraction")
            if asked is not None and remains is not None and remains > asked + 1e-9:
                raise TrainingError(
                    f"The model that came out has {remains:.3f} of its {figure}, asked was "
                    f"{setting}={asked}. A `fit` that changes the architecture undoes pruning."
                )

    def _check_asked(self) -> None:
        given = [name for name in ASKS if getattr(self, name) is not None]
        if not given:
            raise SettingsError(
                f"`StructuredPrune` needs one of {', '.join(f'`{name}`' for name in ASKS)}. "
                "Received: none of them."
            )
        if len(given) > 1 and set(given) != {"amount", "per_layer"}:
            raise SettingsError(
                f"`{given[0]}` and `{given[1]}` both say how much goes. Received: "
                f"{given[0]}={getattr(self, given[0])!r}, {given[1]}={getattr(self, given[1])!r}. "
                "Leave one out."
            )
        if self.per_layer is not None and self.scope == "global":
            raise SettingsError(
                "`per_layer` says what goes from single layers, `scope='global'` compares all of "
                "them. Leave one out."
            )
        if self.per_layer is not None and self.amount is None and self.layers is not None:
            raise SettingsError(
                "`per_layer` alone chooses the layers. Received `layers` too: leave it out, or "
                "give `amount` for the layers in it."
            )


def _check_removed(value: Any, name: str) -> None:
    try:
        check_fraction(value, name)
    except SettingsError as error:
        text = str(error).replace("the fraction of zeros", "the fraction of channels that goes")
        raise SettingsError(text.replace("every weight", "every channel")) from None


def _check_remaining(value: Any, name: str) -> None:
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 < value <= 1:
        return
    hint = f" Did you mean {value / 100:g}?" if is_number and 1 < value < 100 else ""
    raise SettingsError(
        f"`{name}` is the fraction that may remain, in (0, 1]. Received: {value!r}.{hint}"
    )


def _check_latency(value: Any) -> None:
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise SettingsError(f"`latency_ms` is a positive number. Received: {value!r}.")
