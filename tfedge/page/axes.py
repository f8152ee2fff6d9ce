"""Choose the limits and ticks of axes that show sizes and figures of merit."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tfedge.page.formats import signless_zero

UNITS: Final = ((1024 * 1024, "MiB"), (1024, "KiB"), (1, "B"))
ROUND: Final = (1, 2, 2.5, 5, 10)
WIDE: Final = 10  # largest over smallest size above which the axis is logarithmic


def scale_sizes(axes: Axes, sizes: Sequence[float], limit: float | None) -> None:
    """An x axis in KiB or MiB, logarithmic where the sizes differ much.

    Args:
        axes: The chart's axes.
        sizes: All sizes, in bytes.
        limit: A size that is shown too, unless it is far away.
    """
    low, high = min(sizes), max(sizes)
    if limit is not None and low / 4 < limit < high * 4:
        low, high = min(low, limit), max(high, limit)
    if high / low > WIDE:
        low, high = low / 1.35, high * 1.35
        axes.set_xscale("log")
        ticks, write = list(_powers(low, high)), tick_size
    else:
        room = (high - low or high) * 0.12
        low, high = max(0.0, low - room), high + room
        unit, name = next(row for row in UNITS if high >= 1.5 * row[0] or row[0] == 1)
        ticks = [tick * unit for tick in _round_ticks(low / unit, high / unit, 6)]

        def write(value: float) -> str:
            return f"{value / unit:.4g} {name}"

    axes.set_xlim(low, high)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _powers(low: float, high: float) -> Iterator[float]:
    """At most six powers of two between the limits."""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    stride = math.ceil((last - first + 1) / 6)
    yield from (2.0**exponent for exponent in range(first, last + 1, stride))


def _round_ticks(low: float, high: float, most: int) -> list[float]:
    ticks = MaxNLocator(nbins=most, steps=ROUND).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def tick_size(value: float) -> str:
    """A round size.

    Example:
        >>> tick_size(16384.0), tick_size(512.0), tick_size(1_572_864.0)
        ('16 KiB', '512 B', '1.5 MiB')
    """
    unit, name = next(row for row in UNITS if value >= row[0] or row[0] == 1)
    return f"{value / unit:.4g} {name}"


def scale_values(axes: Axes, kept: Sequence[float], values: Sequence[float], unit: str) -> None:
    """A y axis on which what lies far off does not squeeze what was kept.

    Args:
        axes: The chart's axes.
        kept: What must lie inside.
        values: All values.
        unit: `"points"` for fractions, which are shown in percent.
    """
    low, high = limits_of(kept or values, values)
    axes.set_ylim(low, high)
    scale, suffix = (100, " %") if unit == "points" else (1, "")
    ticks = _round_ticks(low * scale, high * scale, 5)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else (high - low) * scale
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    decimals += abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6
    axes.yaxis.set_major_locator(FixedLocator([tick / scale for tick in ticks]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: signless_zero(f"{value * scale:.{decimals}f}") + suffix)
    )


def limits_of(kept: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Limits that hold all that was kept, and of the rest what is not much further away.

    Example:
        >>> low, high = limits_of([0.98, 0.99], [0.1, 0.97, 0.98, 0.99])
        >>> 0.96 < low < 0.97, 0.99 < high < 1.0
        (True, True)
    """
    span = max(kept) - min(kept) or abs(kept[0]) * 0.02 or 1.0
    near = [v for v in values if min(kept) - 2 * span <= v <= max(kept) + 2 * span]
    low, high = min(*kept, *near), max(*kept, *near)
    room = 0.14 * (high - low or span)
    return low - room, high + room
