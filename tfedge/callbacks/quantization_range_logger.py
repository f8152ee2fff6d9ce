"""Log the ranges that fake quantisation learns."""

from collections.abc import Mapping

from tfedge.callbacks._base import AbstractLogger
from tfedge.errors import ModelError
from tfedge.models import keras_of


class QuantizationRangeLogger(AbstractLogger):
    """Log the range of every fake-quantised activation after each epoch.

    `range/<tensor>/min` and `range/<tensor>/max` go into `history` and, with `log_dir`, into
    TensorBoard. Keras's logs get `largest_range_change`: by how much the range that moved most did
    so in the epoch, as a fraction of its width. Training is long enough when that is small.

    Args:
        log_dir: Where TensorBoard finds all ranges. Default: nowhere.

    Raises:
        ModelError: In `fit`: the model has no fake quantisation.

    Example:
        >>> prepared = Quantize().prepare(model)  # doctest: +SKIP
        >>> prepared.fit(x, y, callbacks=[QuantizationRangeLogger("logs")])  # doctest: +SKIP
    """

    def read(self) -> dict[str, float]:
        """`range/<tensor>/min` and `range/<tensor>/max`."""
        if keras_of(self.model) == "keras":
            from tfedge.engines.native.quantize import activation_ranges
        else:
            from tfedge.engines.tfmot import activation_ranges
        ranges = activation_ranges(self.model)
        if not ranges:
            raise ModelError(
                "`QuantizationRangeLogger` logs the ranges of a model with fake quantisation. "
                f"Received: `{self.model.name}`, which has none. Train what `Quantize.prepare` "
                "gives."
            )
        return {
            f"range/{name}/{end}": value
            for name, (low, high) in ranges.items()
            for end, value in (("min", low), ("max", high))
        }

    def summary(self, figures: Mapping[str, float]) -> dict[str, float]:
        """By how much the range that moved most has moved; 1 in the first epoch."""
        if len(self.history) < 2:
            return {"largest_range_change": 1.0}
        before = self.history[-2]
        changes = []
        for low in (name for name in figures if name.endswith("/min")):
            high = f"{low[:-3]}max"
            width = max(figures[high] - figures[low], 1e-12)
            moved = max(abs(figures[end] - before.get(end, 0.0)) for end in (low, high))
            changes.append(moved / width)
        return {"largest_range_change": max(changes)}
