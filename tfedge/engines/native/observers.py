"""How a range of activations is found: what of a batch counts, and how far it moves the range."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from tfedge.errors import SettingsError, did_you_mean

OBSERVERS = ("moving_average", "minmax", "percentile")
RANGES = (*OBSERVERS, "lsq")
EMA_DECAY = 0.999  # TFMOT's MovingAverageQuantizer
OUTLIERS = 5e-5  # fraction of a calibration batch that may lie outside the range, at each end
PERCENTILE = 99.99


@dataclass(frozen=True)
class Observer:
    """A way to find a range.

    Attributes:
        kind: `"moving_average"` of each batch's minimum and maximum; the first batches count
            fully, so that no start value has to be guessed. While calibrating: all that was seen
            but the outermost 0.005 % of a batch at either end (none in a batch of fewer than
            20,000 values). `"minmax"`: all that was ever seen. `"percentile"`: a moving average of
            two order statistics of each batch; while calibrating their plain mean.
        percentile: For `"percentile"`: percentage of a batch that lies below the upper end; as
            much lies above the lower end. Above 50, at most 100.
    """

    kind: str = "moving_average"
    percentile: float | None = None

    def outside(self, calibrating: bool) -> float:
        """Fraction of a batch that lies outside the range, at each end."""
        if self.kind == "percentile":
            percentile = PERCENTILE if self.percentile is None else self.percentile
            return 1.0 - percentile / 100.0
        return OUTLIERS if self.kind == "moving_average" and calibrating else 0.0

    def includes(self, calibrating: bool) -> bool:
        """Whether the range moves all the way to include what a batch showed."""
        return self.kind == "minmax" or (self.kind == "moving_average" and calibrating)

    def share(self, batches: Any, calibrating: bool) -> Any:
        """How much of the way an end moves towards what batch number `batches` showed."""
        mean = 1.0 / batches
        return mean if calibrating else ops.maximum(1.0 - EMA_DECAY, mean)


def check_observer(kind: Any, percentile: Any, *, kinds: tuple[str, ...] = RANGES) -> None:
    """Refuse a way to find ranges that does not exist.

    Args:
        kind: One of `kinds`.
        percentile: For `"percentile"`: above 50, at most 100; `None` for the default of 99.99.
        kinds: What there is.

    Raises:
        SettingsError: It is none of them, or the percentile is out of range or has no use.
    """
    if kind not in kinds:
        raise SettingsError(
            f"`range` is one of {', '.join(kinds)}. Received: {kind!r}.{did_you_mean(kind, kinds)}"
        )
    if percentile is None:
        return
    if kind != "percentile":
        raise SettingsError(
            f"`percentile` goes with `range='percentile'`. Received: percentile={percentile!r} "
            f"and range={kind!r}. Set `range`, or leave `percentile` out."
        )
    is_number = isinstance(percentile, int | float) and not isinstance(percentile, bool)
    if not is_number or not 50 < percentile <= 100:
        raise SettingsError(
            f"`percentile` is a percentage above 50 and at most 100. Received: {percentile!r}."
        )


def highest(values: Any, outside: float) -> Any:
    """The largest value of a tensor once the few that stick out are left aside.

    Args:
        values: Float tensor of any shape, possibly of open sizes.
        outside: Fraction of the values to leave aside, rounded down to whole values.

    Returns:
        A scalar: the value of rank `floor(outside * size)` from the top, counted from 0.
    """
    if not outside:
        return ops.max(values)
    if None not in values.shape:
        left = int(outside * np.prod(values.shape))
        if not left:
            return ops.max(values)
    else:
        left = tf.cast(outside * tf.cast(tf.size(values), tf.float64), tf.int32)
    return tf.math.top_k(tf.reshape(values, [-1]), left + 1).values[-1]


def lowest(values: Any, outside: float) -> Any:
    """The smallest value of a tensor once the few that stick out are left aside; as `highest`.

    A whole tensor is searched by `min`, not by `-max(-values)`: TensorFlow 2.21's graph optimizer
    mixes up the axes of two such expressions on tensors of unlike rank.
    """
    return -highest(-values, outside) if outside else ops.min(values)
