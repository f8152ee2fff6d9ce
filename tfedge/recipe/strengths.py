"""What the budget may move: the setting of a stage that says how much of a model goes."""

import math
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


def _complement(value: float, model: Callable[[], Any]) -> float:
    return round(1.0 - float(value), 6)


def _saved_bits(value: float, model: Callable[[], Any]) -> float:
    """Clusters as the part of a float32 weight's bits that they save."""
    return 1.0 - math.log2(value) / 32


def _clusters(fraction: float, model: Callable[[], Any]) -> float:
    return max(2, round(2 ** (32 * (1.0 - fraction))))


def _remaining(setting: str) -> Strength:
    """A setting that says what fraction remains."""
    return Strength(
        setting=setting,
        to_fraction=_complement,
        from_fraction=_complement,
        usual=0.5,
        first=0.5,
        top=0.95,
    )


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
    "cluster": (
        Strength(
            setting="number_of_clusters",
            to_fraction=_saved_bits,
            from_fraction=_clusters,
            usual=16,
            first=_saved_bits(16, dict),
            top=_saved_bits(2, dict),
        ),
    ),
    "structured_prune": (_remaining("flops"), _remaining("params")),
    "low_rank": (_remaining("flops"), _remaining("params")),
    "drop_layers": (_remaining("flops"),),
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
