"""What may be lost, and which strength to try next."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from tfedge.data import Metric
from tfedge.recipe.settings import drop_of

NEAREST = 1.15  # two densities whose ratio is smaller count as one


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of merit of a run.

    Attributes:
        name: What to call it.
        metric: The metric.
        fraction: Whether it is a fraction, shown in percent.
        reference: What the baseline's float32 file reaches.
        allowed: How much of that may be lost, in the figure's unit; `None` without a limit.
    """

    name: str
    metric: Metric
    fraction: bool
    reference: float
    allowed: float | None = None

    @property
    def worst(self) -> float | None:
        """The worst value that is allowed."""
        if self.allowed is None:
            return None
        sign = -1 if self.metric.higher_is_better else 1
        return self.reference + sign * self.allowed

    def drop(self, value: float) -> float:
        """How much worse a value is than the reference."""
        return self.metric.worse_by(self.reference, value)

    def over(self, value: float) -> float:
        """By how much a value breaks the limit; not above zero where it holds."""
        return -1.0 if self.allowed is None else self.drop(value) - self.allowed


@dataclass(frozen=True)
class Budget:
    """The figures of a run with their limits.

    Example:
        >>> metric = Metric(name="accuracy", higher_is_better=True, function=max)
        >>> figure = Figure(
        ...     name="accuracy", metric=metric, fraction=True, reference=0.98, allowed=0.005
        ... )
        >>> budget = Budget((figure,))
        >>> budget.broken({"accuracy": 0.976}), budget.broken({"accuracy": 0.97})
        ('', 'accuracy 97.00 % is 1.00 points below the float32 file, 0.50 are allowed')
    """

    figures: tuple[Figure, ...]

    @property
    def is_limited(self) -> bool:
        """Whether anything may not be lost."""
        return any(figure.allowed is not None for figure in self.figures)

    def drops(self, values: Mapping[str, float]) -> dict[str, float]:
        """How much worse each value is than the reference."""
        return {f.name: f.drop(values[f.name]) for f in self.figures if f.name in values}

    def broken(self, values: Mapping[str, float]) -> str:
        """The limit that values break, in words; empty where they hold all."""
        for figure in self.figures:
            value = values.get(figure.name)
            if value is not None and figure.over(value) > 1e-9:
                return _sentence(figure, value)
        return ""

    def with_limits(self, max_drop: object) -> "Budget":
        """The same figures with the limits that a recipe's `max_drop` sets."""
        limited = []
        for figure in self.figures:
            text = max_drop.get(figure.name) if isinstance(max_drop, Mapping) else max_drop
            if text is not None:
                allowed = drop_of(text, figure.reference, fraction=figure.fraction)  # type: ignore[arg-type]
                figure = dataclasses.replace(figure, allowed=allowed)
            limited.append(figure)
        return Budget(tuple(limited))


def shown(figure: Figure, value: float) -> str:
    """A value of a figure for people: percent for fractions."""
    return f"{100 * value:.2f} %" if figure.fraction else f"{value:.4g}"


def _sentence(figure: Figure, value: float) -> str:
    worse = "below" if figure.metric.higher_is_better else "above"
    drop, allowed = figure.drop(value), figure.allowed or 0.0
    if figure.fraction:
        amount = f"{100 * drop:.2f} points {worse} the float32 file, {100 * allowed:.2f} are"
    else:
        amount = f"{drop:.4g} {worse} the float32 file, {allowed:.4g} is"
    return f"{figure.name} {shown(figure, value)} is {amount} allowed"


def next_strength(
    accepted: float, rejected: float | None, tried: int, *, first: float, top: float
) -> float | None:
    """The fraction of a model to remove in the next trial, or `None` when it is settled.

    Densities (what stays) are halved in the geometric mean between the strongest that was
    accepted and the weakest that was rejected.

    Args:
        accepted: The strongest fraction that met the budget; 0 before any did.
        rejected: The weakest that did not; `None` before any.
        tried: Trials so far.
        first: What the first trial removes.
        top: The most that may be removed.

    Example:
        >>> next_strength(0.0, None, 0, first=0.8, top=0.995)
        0.8
        >>> next_strength(0.8, None, 1, first=0.8, top=0.995)
        0.95
        >>> next_strength(0.8, 0.95, 2, first=0.8, top=0.995)
        0.9
    """
    if tried == 0:
        return min(first, top)
    kept = 1 - accepted
    if rejected is None:
        if kept / (1 - top) < NEAREST:
            return None
        return round(min(1 - kept / 4, top), 3)
    if kept / (1 - rejected) < NEAREST:
        return None
    return round(1 - (kept * (1 - rejected)) ** 0.5, 3)
