"""What the budget may move: the setting of a stage that says how much of a model goes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

AUTO = "auto"
Conversion = Callable[[float, Callable[[], Any]], float]  # (value, loads the model) -> value


@dataclass(frozen=True, kw_only=True)
class Strength:
    """A setting, and the fraction of the model that a value of it takes away.

    Attributes:
        setting: Name of the stage's field.
        to_fraction: From a value of the setting to the fraction that goes, in `[0, 1)`.
        from_fraction: The other way.
        usual: A value that works for most models.
        first: The fraction that a search begins with.
        top: The most that may go.
        repeats: Whether a stronger trial goes on from the last accepted model; else each begins
            with the model that the step was given.
    """

    setting: str
    to_fraction: Conversion
    from_fraction: Conversion
    usual: float
    first: float
    top: float
    repeats: bool = False


def _same(value: float, model: Callable[[], Any]) -> float:
    return float(value)


def _below_threshold(value: float, model: Callable[[], Any]) -> float:
    return min(0.999, float((_magnitudes(model()) < value).mean()))


def _threshold(fraction: float, model: Callable[[], Any]) -> float:
    return float(f"{np.quantile(_magnitudes(model()), fraction):.6g}")


def _magnitudes(model: Any) -> np.ndarray:
    from tfedge.engines.native.kernels import find_kernels
    from tfedge.engines.native.prune_settings import Pruning

    kernels, _ = find_kernels(model, Pruning(sparsity=0.5), training=False)
    return np.abs(np.concatenate([np.ravel(k.variable.numpy()) for k in kernels]))


# Of each stage, the settings that may be `auto` or moved by the budget.
STRENGTHS: Mapping[str, tuple[Strength, ...]] = {
    "prune": (
        Strength(
            setting="sparsity",
            to_fraction=_same,
            from_fraction=_same,
            usual=0.8,
            first=0.8,
            top=0.995,
            repeats=True,
        ),
        Strength(
            setting="threshold",
            to_fraction=_below_threshold,
            from_fraction=_threshold,
            usual=0.01,
            first=0.8,
            top=0.995,
            repeats=True,
        ),
    ),
}


def strength_of(stage: str, settings: Mapping[str, Any]) -> Strength | None:
    """The setting of a step that the budget may move, or `None`.

    Args:
        stage: Name of the stage.
        settings: What the step says.

    Example:
        >>> strength_of("prune", {"sparsity": 0.8}).setting
        'sparsity'
        >>> strength_of("finetune", {"epochs": 3})
    """
    for strength in STRENGTHS.get(stage, ()):
        value = settings.get(strength.setting)
        is_number = isinstance(value, float | int) and not isinstance(value, bool)
        if value == AUTO or is_number:
            return strength
    return None
