"""Measure what each layer's channels are worth: the metric when some of them are gone."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfedge.data import Data, Metric, Split, find_metric
from tfedge.errors import DataError, MissingExtraError, SettingsError
from tfedge.files import writing
from tfedge.models import (
    check_finite,
    check_keras3,
    check_rebuildable,
    choose_layers,
    copy_model,
)
from tfedge.report import Record, Skipped
from tfedge.stages._fit import scored

if TYPE_CHECKING:
    from tfedge.engines.native.channels import Channels, Group

FORMATS = (".svg", ".png", ".pdf")


@dataclass(frozen=True, kw_only=True)
class SensitivityRow(Record):
    """The metric with some channels of one group of layers gone.

    Attributes:
        layer: Names of the layers whose channels go together, joined by `" + "`.
        fraction: Fraction of the channels that was asked for.
        channels: Channels before.
        removed: How many were gone.
        figure: The metric.
        drop: How much worse that is than the whole model, in the metric's unit; negative where it
            is better.
    """

    layer: str
    fraction: float
    channels: int
    removed: int
    figure: float
    drop: float


@dataclass(frozen=True, kw_only=True)
class SensitivityReport(Record):
    """What a model loses with the channels of each layer.

    Attributes:
        metric: Name of the metric.
        higher_is_better: Its direction.
        baseline: The metric of the whole model.
        samples: How many samples it was measured on.
        rows: By layer in order of execution, then by fraction.
        skipped: Layers that no channel can be removed from, each with the reason.
    """

    metric: str
    higher_is_better: bool
    baseline: float
    samples: int
    rows: tuple[SensitivityRow, ...]
    skipped: tuple[Skipped, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As `Record.to_dict`."""
        return {**super().to_dict(), "skipped": [row.to_dict() for row in self.skipped]}

    def __str__(self) -> str:
        fractions = sorted({row.fraction for row in self.rows})
        width = max([len("layer"), *(len(row.layer) for row in self.rows)])
        head = f"{'layer':<{width}} {'channels':>8}" + "".join(f"{f:>9.0%}" for f in fractions)
        lines = [f"{self.metric} {self.baseline:.4f} with all channels", head]
        for layer in dict.fromkeys(row.layer for row in self.rows):
            own = {row.fraction: row for row in self.rows if row.layer == layer}
            first = next(iter(own.values()))
            lines.append(
                f"{layer:<{width}} {first.channels:>8}"
                + "".join(f"{own[f].figure:>9.4f}" for f in fractions)
            )
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the metric over the fraction removed, a line for each layer.

        Args:
            path: Where the picture is to stand, `.svg`, `.png` or `.pdf`. It is written whole or
                not at all.

        Returns:
            The path.

        Raises:
            SettingsError: The suffix is another one.
            MissingExtraError: matplotlib is not installed.
            FileWriteError: The file cannot be written.
        """
        target = Path(path)
        if target.suffix not in FORMATS:
            raise SettingsError(
                f"A plot is a file that ends in {', '.join(FORMATS)}. Received: {target.name!r}."
            )
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError(
                f"A plot needs matplotlib, which cannot be imported here ({error}). Run "
                '`pip install "tfedge[train]"`.'
            ) from error
        layers = list(dict.fromkeys(row.layer for row in self.rows))
        figure = Figure(figsize=(8, max(4.5, 0.22 * len(layers))), layout="constrained")
        axes = figure.add_subplot()
        for layer in layers:
            own = [row for row in self.rows if row.layer == layer]
            points = [
                (0.0, self.baseline),
                *((row.removed / row.channels, row.figure) for row in own),
            ]
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=layer)
        axes.set_xlabel("fraction of the channels removed")
        axes.set_ylabel(f"{self.metric} on {self.samples} samples")
        axes.grid(alpha=0.3)
        if layers:
            figure.legend(loc="outside right upper", fontsize="x-small")
        with writing(target) as temporary:
            figure.savefig(temporary, format=target.suffix[1:])
        return target


def sensitivity(
    model: Any,
    data: Data | Split,
    metric: str | Metric,
    fractions: Sequence[float] = (0.25, 0.5, 0.75),
    *,
    importance: Any = "l2",
    importance_samples: int = 512,
    layers: Sequence[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> SensitivityReport:
    """Measure the metric with the least important channels of one layer gone, layer by layer.

    Nothing is trained between. Layers whose channels go together are one row.

    Args:
        model: A built Functional or Sequential Keras 3 model. It is not changed.
        data: Labelled samples; of `Data`, the evaluation split, and the training split for
            importances that look at samples.
        metric: The figure of merit, or its name.
        fractions: Fractions of the channels that go, each in (0, 1).
        importance: As in `StructuredPrune`.
        importance_samples: As in `StructuredPrune`.
        layers: Names of the layers to look at. Default: all that can lose channels.
        batch_size: Samples at once.
        seed: Of random importances and of the samples drawn.

    Raises:
        SettingsError: A setting is out of range.
        DataError: There are no labelled samples.
        UnsupportedModelError: It is a tf_keras model, or has no graph of layers.

    Example:
        >>> report = sensitivity(model, data, "accuracy")    # doctest: +SKIP
        >>> report.plot("sensitivity.svg")                   # doctest: +SKIP
    """
    train = data.train if isinstance(data, Data) else data
    split = _checked(model, data.evaluation if isinstance(data, Data) else data, fractions)
    from tfedge.stages.structured import StructuredPrune

    StructuredPrune(amount=0.0, importance=importance, importance_samples=importance_samples)
    work = _Work(copy_model(model), split, find_metric(metric), batch_size)
    scores = work.scores(importance, train, importance_samples, seed)
    return work.measured(scores, sorted(set(fractions)), layers)


class _Work:
    """One call of `sensitivity`, on its own copy of the model."""

    def __init__(self, model: Any, split: Split, metric: Metric, batch_size: int) -> None:
        from tfedge.engines.native.channels import find_channels
        from tfedge.engines.native.graph import read_graph

        self.model, self.split, self.metric, self.batch_size = model, split, metric, batch_size
        self.channels = find_channels(read_graph(model))

    def scores(
        self, importance: Any, train: Split | None, samples: int, seed: int
    ) -> dict[int, np.ndarray]:
        from tfedge.engines.native.channel_importance import score_channels
        from tfedge.stages.structured import WITH_DATA

        data = train.take(samples, seed) if importance in WITH_DATA and train else None
        return score_channels(self.model, self.channels, importance, data=data, seed=seed)

    def measured(
        self,
        scores: Mapping[int, np.ndarray],
        fractions: Sequence[float],
        layers: Sequence[str] | None,
    ) -> SensitivityReport:
        from tfedge.stages._channel_report import unchanged

        wanted = {id(layer) for layer in choose_layers(self.model, layers)}
        baseline, rows = self.figure(self.model), []
        for group in self.channels.groups:
            if group.index in scores and wanted & {id(part.layer) for part in group.writers}:
                own = scores[group.index]
                rows += [self.row(group, own, fraction, baseline) for fraction in fractions]
        seen = {name for row in rows for name in row.layer.split(" + ")}
        others = unchanged(self.channels, lambda part: "not in `layers`, or without scores")
        return SensitivityReport(
            metric=self.metric.name,
            higher_is_better=self.metric.higher_is_better,
            baseline=baseline,
            samples=len(self.split),
            rows=tuple(rows),
            skipped=tuple(row for row in others if row.layer not in seen),
        )

    def row(
        self, group: "Group", scores: np.ndarray, fraction: float, baseline: float
    ) -> SensitivityRow:
        removed = min(max(1, round(fraction * group.size)), group.size - 1)
        gone = group.labels[np.argsort(scores, kind="stable")[:removed]]
        with _without(self.model, self.channels, group, gone) as subject:
            value = self.figure(subject)
        return SensitivityRow(
            layer=group.name,
            fraction=float(fraction),
            channels=group.size * group.multiplicity,
            removed=removed * group.multiplicity,
            figure=value,
            drop=self.metric.worse_by(baseline, value),
        )

    def figure(self, model: Any) -> float:
        return scored(model, self.split, self.metric, batch_size=self.batch_size)


@contextmanager
def _without(model: Any, channels: "Channels", group: "Group", gone: np.ndarray) -> Iterator[Any]:
    """The model without some channels: what reads them is set to zero meanwhile.

    Where statistics are taken over all channels, a smaller model is built instead.
    """
    parts = channels.parts.values()
    if any(part.over_channels and np.isin(group.labels, part.reads).any() for part in parts):
        from tfedge.engines.native.shrink import shrink

        kept = np.ones(channels.size, bool)
        kept[gone] = False
        yield shrink(channels, kept)
        return
    saved = []
    try:
        for weight, axis, labels in _readers(channels):
            rows = np.isin(labels, gone)
            if rows.any():
                value = np.array(weight.value.numpy())
                saved.append((weight, value.copy()))
                np.moveaxis(value, axis, 0)[rows] = 0
                weight.assign(value)
        yield model
    finally:
        for weight, value in saved:
            weight.assign(value)


def _readers(channels: "Channels") -> Iterator[tuple[Any, int, np.ndarray]]:
    """Kernels that mix channels, the axis of those that they read, and the labels along it."""
    for part in channels.parts.values():
        axis = -1 if part.kind.endswith("Transpose") else -2
        for weight, axes in zip(part.layer.weights, part.axes, strict=True):
            labels = axes[axis] if part.makes and len(axes) > 1 else None
            if labels is not None:
                yield weight, axis, labels


def _checked(model: Any, split: Split | None, fractions: Sequence[float]) -> Split:
    check_keras3(model, "sensitivity")
    check_rebuildable(model, "sensitivity")
    check_finite(model)
    if split is None:
        raise DataError(
            "`sensitivity` needs labelled samples. Received: data without `evaluation`."
        )
    numbers = [f for f in fractions if isinstance(f, int | float) and 0 < f < 1]
    if not len(fractions) or len(numbers) != len(fractions):
        raise SettingsError(
            "`fractions` are fractions of the channels that go, each in (0, 1). Received: "
            f"{tuple(fractions)!r}."
        )
    return split
