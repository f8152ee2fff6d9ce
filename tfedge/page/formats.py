"""Write numbers as people read them."""

import math
from typing import Final

from tfedge.report import format_bytes

MISSING: Final = "–"
SAME: Final = 0.005  # relative differences of size below it are not worth a word


def format_count(value: float) -> str:
    """A whole number with its thousands apart.

    Example:
        >>> format_count(45290)
        '45,290'
    """
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def format_size(value: float | None) -> str:
    """A size in bytes, KiB or MiB; a dash where there is none.

    Example:
        >>> format_size(13_926), format_size(None)
        ('13.6 KiB', '–')
    """
    return MISSING if value is None or not math.isfinite(value) else format_bytes(value)


def format_percent(fraction: float | None, decimals: int = 1) -> str:
    """A fraction in percent.

    Example:
        >>> format_percent(0.88), format_percent(0.98701, 2)
        ('88.0 %', '98.70 %')
    """
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    return signless_zero(f"{100 * fraction:.{decimals}f}") + " %"


def format_figure(value: float | None, unit: str) -> str:
    """A figure of merit: in percent if its unit is points, else with four digits.

    Example:
        >>> format_figure(0.98887, "points"), format_figure(0.41273, ""), format_figure(31.0, "")
        ('98.89 %', '0.4127', '31.00')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return format_percent(value, 2) if unit == "points" else _digits(value)


def format_change(drop: float | None, unit: str, higher_is_better: bool) -> str:
    """How a figure of merit moved, signed: the report's drop says how much worse it became.

    Example:
        >>> format_change(0.00186, "points", True), format_change(0.013, "", False)
        ('−0.19', '+0.0130')
        >>> format_change(0.0, "points", True)
        '±0.00'
    """
    if drop is None or not math.isfinite(drop):
        return ""
    moved = -drop if higher_is_better else drop
    text = f"{100 * abs(moved):.2f}" if unit == "points" else _digits(abs(moved), 3)
    return _signed(moved, text)


def format_relative(now: float | None, before: float | None) -> str:
    """How a size or a time moved, in percent of what it was.

    Example:
        >>> format_relative(13_926, 168_960), format_relative(5, 5), format_relative(5, None)
        ('−92 %', '±0 %', '')
    """
    if now is None or before is None or not now >= 0 or not before > 0:
        return ""
    moved = 100 * (now / before - 1)
    text = f"{abs(moved):.0f}" if abs(moved) <= 99 or moved > 0 else f"{abs(moved):.1f}"
    return _signed(moved, text) + " %"


def format_times(now: float | None, before: float | None) -> str:
    """How a size compares with what it was, in words.

    Example:
        >>> format_times(13_926, 168_960), format_times(11, 10), format_times(10, 10)
        ('12.1× smaller', '10 % larger', 'the same size')
    """
    if now is None or before is None or not now > 0 or not before > 0:
        return ""
    ratio = before / now
    if abs(ratio - 1) < SAME:
        return "the same size"
    word = "smaller" if ratio > 1 else "larger"
    if max(ratio, 1 / ratio) < 1.5:
        return f"{100 * abs(1 - now / before):.0f} % {word}"
    return f"{max(ratio, 1 / ratio):.1f}× {word}"


def format_ms(value: float | None) -> str:
    """Milliseconds, or microseconds where there are few.

    Example:
        >>> format_ms(0.00123), format_ms(0.02131), format_ms(152.34)
        ('1.23 µs', '0.021 ms', '152.3 ms')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 0.01:
        return f"{1000 * value:.2f} µs"
    decimals = 1 if value >= 100 else 2 if value >= 10 else 3
    return f"{value:.{decimals}f} ms"


def format_seconds(value: float) -> str:
    """A duration.

    Example:
        >>> format_seconds(0.42), format_seconds(192), format_seconds(7290)
        ('0.4 s', '3 min 12 s', '2 h 01 min')
    """
    if not math.isfinite(value):
        return MISSING
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def signless_zero(text: str) -> str:
    """A number's text with a true minus sign, or with none if all its digits are zero.

    Example:
        >>> signless_zero("-0.00"), signless_zero("-1.5")
        ('0.00', '−1.5')
    """
    text = text.replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text.removeprefix("−")


def _signed(moved: float, text: str) -> str:
    if not any(digit in text for digit in "123456789"):
        return f"±{text}"
    return ("−" if moved < 0 else "+") + text


def _digits(value: float, digits: int = 4) -> str:
    """So many digits that matter; powers of ten only where zeros would hide them."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    plain = 1e-4 <= abs(value) < 1e6
    return signless_zero(f"{value:.{decimals}f}" if plain else f"{value:.{digits}g}")
