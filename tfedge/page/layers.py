"""Show the kernels before and after: zeros of each layer, and how its weights are spread."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from tfedge.page.formats import MISSING, format_count, format_percent
from tfedge.page.small_charts import draw_histogram
from tfedge.report import LayerRecord, RunReport

MOST = 24


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One kernel as the page shows it.

    Attributes:
        name: Name of the layer.
        kind: Its class.
        shape: Of the kernel, e.g. `"3 × 3 × 16"`.
        weights: How many there are.
        before: Zeros before, in percent.
        after: Zeros after; `"gone"` where the layer is.
        before_width: Length of the bar of `before`, in percent.
        after_width: Length of the bar of `after`.
        histogram: How its weights are spread.
    """

    name: str
    kind: str
    shape: str
    weights: str
    before: str
    after: str
    before_width: str
    after_width: str
    histogram: Markup | None


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The largest kernels, and how many more there are."""

    rows: tuple[LayerView, ...]
    left_out: int
    weights_left_out: str

    @property
    def has_histograms(self) -> bool:
        """Whether a layer has a histogram."""
        return any(row.histogram for row in self.rows)


def layers_of(report: RunReport) -> Layers:
    """The kernels of a run, the largest first."""
    ordered = sorted(report.layers, key=lambda row: -math.prod(row.shape))
    shown, rest = ordered[:MOST], ordered[MOST:]
    return Layers(
        rows=tuple(_view(row, f"layer-{number}") for number, row in enumerate(shown)),
        left_out=len(rest),
        weights_left_out=format_count(sum(math.prod(row.shape) for row in rest)),
    )


def _view(row: LayerRecord, key: str) -> LayerView:
    return LayerView(
        name=row.layer,
        kind=row.kind,
        shape=" × ".join(map(str, row.shape)) or MISSING,
        weights=format_count(math.prod(row.shape)),
        before=format_percent(row.sparsity_before),
        after="gone" if row.sparsity_after is None else format_percent(row.sparsity_after),
        before_width=_width(row.sparsity_before),
        after_width=_width(row.sparsity_after),
        histogram=draw_histogram(row, key=key),
    )


def _width(fraction: float | None) -> str:
    """Length of a bar, as a number of percent that CSS reads.

    Example:
        >>> _width(0.8812), _width(None)
        ('88.1', '0')
    """
    if fraction is None or not math.isfinite(fraction):
        return "0"
    return f"{100 * min(1.0, max(0.0, fraction)):.1f}"
