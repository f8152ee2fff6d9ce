"""Make a student: the same architecture with fewer channels."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfedge.engines.native.channel_choice import by_fraction
from tfedge.engines.native.channel_costs import keep_best, levels_of
from tfedge.engines.native.channel_importance import score_channels
from tfedge.engines.native.channels import Channels, find_channels
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.prune_settings import check_option
from tfedge.engines.native.shrink import shrink
from tfedge.errors import ModelError, SettingsError
from tfedge.models import check_finite, check_keras3, check_rebuildable, compile_like

WEIGHTS = ("fresh", "sliced")


def narrow(
    model: Any,
    width: float = 0.5,
    *,
    round_to: int = 8,
    min_channels: int = 4,
    weights: str = "fresh",
    seed: int = 0,
) -> Any:
    """A model of the same architecture with a fraction of the channels of every layer.

    A student for distillation, or a smaller network to train from scratch. What goes into and comes
    out of the model stays as it is, and so do layers that channels cannot be followed through.

    Args:
        model: A built Functional or Sequential Keras 3 model. It is not changed.
        width: Fraction of the channels that each layer keeps, in (0, 1].
        round_to: Layers that get narrower keep a multiple of so many filters. Default: 8.
        min_channels: Filters that every layer keeps at least.
        weights: `"fresh"` draws them from the layers' initialisers and makes all layers trainable
            (statistics of preprocessing layers are kept); `"sliced"` takes those of the channels
            with the largest filters, flags as they are.
        seed: Of fresh weights, initialisers with a seed of their own aside.

    Returns:
        The narrow model, nested models inlined; compiled if `model` is.

    Raises:
        SettingsError: A setting is out of range.
        UnsupportedModelError: It is a tf_keras model, or has no graph of layers.
        ModelError: Nothing of it can be made narrower.

    Example:
        >>> import keras
        >>> layers = [keras.Input((4,)), keras.layers.Dense(32), keras.layers.Dense(2)]
        >>> student = narrow(keras.Sequential(layers), 0.5)
        >>> [layer.units for layer in student.layers if isinstance(layer, keras.layers.Dense)]
        [16, 2]
    """
    _check(model, width, weights)
    for name, value in (("round_to", round_to), ("min_channels", min_channels)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SettingsError(f"`{name}` is a whole number from 1. Received: {value!r}.")
    channels = find_channels(read_graph(model))
    levels = {g.index: levels_of(g, round_to, min_channels) for g in channels.groups}
    if not channels.groups:
        raise ModelError(_nothing(channels))
    counts = by_fraction(levels, dict.fromkeys(levels, 1 - width))
    if weights == "sliced":
        scores = score_channels(model, channels, "l2")
        small = shrink(channels, channels.kept(_best(counts, scores)))
    else:
        first = {g.index: -np.arange(g.size, dtype=np.float64) for g in channels.groups}
        with _seeded(seed):
            small = shrink(channels, channels.kept(_best(counts, first)), fresh=True)
    return compile_like(small, model)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what Keras draws the seeds of its initialisers from; Python's numbers go on after it."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _best(counts: dict[int, int], scores: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    return {group: keep_best(scores[group], count) for group, count in counts.items()}


def _check(model: Any, width: Any, weights: str) -> None:
    check_keras3(model, "narrow")
    check_rebuildable(model, "narrow")
    check_finite(model)
    is_number = isinstance(width, int | float) and not isinstance(width, bool)
    if not is_number or not 0 < width <= 1:
        hint = f" Did you mean {width / 100:g}?" if is_number and 1 < width < 100 else ""
        raise SettingsError(
            f"`width` is the fraction of channels that stays, in (0, 1]. Received: {width!r}.{hint}"
        )
    check_option(weights, WEIGHTS, "weights")


def _nothing(channels: Channels) -> str:
    reasons = {
        part.name: channels.why_whole(part) for part in channels.parts.values() if part.makes
    }
    rows = [f"{name}: {reason}." for name, reason in list(reasons.items())[:5]]
    return f"No layer of this model can be made narrower. {' '.join(rows)}"
