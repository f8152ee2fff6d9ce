"""Draw small charts side by side: weights of each layer, training of each step."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from tfedge.page.drawing import ACCENT, INK, SECOND, blank, to_svg
from tfedge.page.formats import format_figure, signless_zero
from tfedge.report import LayerRecord

VALIDATION: Final = "val_"


def draw_histogram(layer: LayerRecord, *, key: str) -> Markup | None:
    """Non-zero weights of a kernel: before as a line, after filled.

    Args:
        layer: Its record.
        key: Makes the ids of the drawing unique.

    Returns:
        The drawing; `None` where the record's bins do not fit its limits.
    """
    bins = len(layer.edges) - 1
    counts = [row for row in (layer.before, layer.after) if len(row) == bins]
    rising = all(a < b for a, b in zip(layer.edges, layer.edges[1:], strict=False))
    if bins < 1 or not rising or len(layer.before) != bins:
        return None
    figure, axes = blank(240, 112, (4, 4, 20, 6))
    if len(counts) == 2:
        axes.stairs(layer.after, layer.edges, fill=True, color=ACCENT, linewidth=0)
    axes.stairs(layer.before, layer.edges, color=INK, linewidth=1.25)
    axes.set_xlim(layer.edges[0], layer.edges[-1])
    axes.set_ylim(0, max(1, *map(max, counts)) * 1.06)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    _tick_the_ends(axes, layer.edges[0], layer.edges[-1])
    title = f"Weights of {layer.layer}, from {layer.edges[0]:.3g} to {layer.edges[-1]:.3g}"
    return to_svg(figure, key=key, title=title)


def _tick_the_ends(axes: Axes, low: float, high: float) -> None:
    middle = [0.0] if low < 0 < high else []
    room = (high - low) * 0.2
    ticks = [low, *(tick for tick in middle if low + room < tick < high - room), high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: signless_zero(f"{v:.2g}")))
    labels = axes.get_xticklabels()
    for label, tick in zip(labels, ticks, strict=True):
        label.set_horizontalalignment(
            "left" if tick == low else "right" if tick == high else "center"
        )


def pair_curves(epochs: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each logged quantity with its curves: in training, and on validation data where it has one.

    Example:
        >>> list(pair_curves({"loss": (0.3, 0.2), "val_loss": (0.4, 0.3), "note": ()}))
        [('loss', {'training': (0.3, 0.2), 'validation': (0.4, 0.3)})]
    """
    names = dict.fromkeys(name.removeprefix(VALIDATION) for name in epochs)
    for name in names:
        both = {"training": epochs.get(name, ()), "validation": epochs.get(VALIDATION + name, ())}
        curves = {
            where: values
            for where, values in both.items()
            if any(math.isfinite(value) for value in values)
        }
        if curves:
            yield name, curves


def draw_curves(name: str, curves: Mapping[str, Sequence[float]], *, step: str, key: str) -> Markup:
    """How one quantity went from epoch to epoch.

    Args:
        name: Name of the quantity.
        curves: `"training"` and `"validation"` to a value for each epoch.
        step: Title of the step, for the description.
        key: Makes the ids of the drawing unique.
    """
    figure, axes = blank(320, 168, (46, 70, 22, 10))
    ends = {}
    for where, values in curves.items():
        colour, dashes = (ACCENT, "-") if where == "training" else (SECOND, (0, (4, 2)))
        epochs = np.arange(1, len(values) + 1)
        known = np.isfinite(values)
        axes.plot(epochs, values, color=colour, linestyle=dashes)
        if known.sum() == 1:
            axes.plot(epochs[known], np.asarray(values)[known], "o", color=colour, markersize=5)
        last = int(np.flatnonzero(known)[-1])
        ends[where] = (last + 1, float(values[last]), colour)
    longest = max(map(len, curves.values()))
    axes.set_xlim(0.75, longest + 0.25) if longest > 1 else axes.set_xlim(0.5, 1.5)
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: signless_zero(f"{v:.4g}")))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}"))
    _name_the_ends(axes, ends)
    sentence = ", ".join(
        f"{where} ends at {format_figure(value, '')}" for where, (_, value, _) in ends.items()
    )
    return to_svg(figure, key=key, title=f"{name} by epoch of {step}: {sentence}")


def _name_the_ends(axes: Axes, ends: Mapping[str, tuple[int, float, str]]) -> None:
    """Words at the ends of the curves, apart from each other."""
    right = axes.get_xlim()[1]
    heights = {w: axes.transData.transform((right, value))[1] for w, (_, value, _) in ends.items()}
    shifts = dict.fromkeys(heights, 0.0)
    if len(heights) == 2:
        lower, upper = sorted(heights, key=lambda where: heights[where])
        gap = max(0.0, 13 - (heights[upper] - heights[lower])) / 2
        shifts[lower], shifts[upper] = -gap, gap
    for where, (_, value, colour) in ends.items():
        axes.annotate(
            where, (right, value), (5, shifts[where]), textcoords="offset points",
            va="center_baseline", color=colour, fontsize=11, annotation_clip=False,
        )  # fmt: skip
