"""End a training that has cost more than it may."""

import math
from typing import Any

from tfedge.callbacks._base import AbstractCallback
from tfedge.errors import SettingsError, did_you_mean

HIGHER_IS_WORSE = ("loss", "error", "mse", "mae", "rmse")


class StopAtDrop(AbstractCallback):
    """Stop when a figure is worse than a reference by more than may be lost.

    While pruning grows, the figure falls: this ends the training where that costs too much, with
    the weights of the last epoch that was within the limit. With `schedule`s of pruning that model
    is less sparse than was asked, which `Prune.finish` then says.

    Args:
        max_drop: How much may be lost, in the unit of the figure: 0.01 is a point of accuracy.
        reference: What is lost from: the figure of the model as it came.
        monitor: Name of the figure in Keras's logs. Default: `"val_accuracy"`.
        mode: `"max"` where higher is better, `"min"` where lower is. Default: by the name.
        patience: Epochs in a row that may exceed the limit. Default: 0.
        restore: Whether the weights of the last epoch within the limit come back. Default: True.

    Attributes:
        stopped_epoch: The epoch, from 0, after which it stopped; `None` where it did not.
        last_good_epoch: The last epoch within the limit; `None` before one.

    Raises:
        SettingsError: A setting is out of range; in `fit`: there is no such figure.

    Example:
        >>> stop = StopAtDrop(0.01, reference=0.98)
        >>> model.fit(x, y, validation_data=held_out, callbacks=[stop])  # doctest: +SKIP
    """

    def __init__(
        self,
        max_drop: float,
        *,
        reference: float,
        monitor: str = "val_accuracy",
        mode: str | None = None,
        patience: int = 0,
        restore: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= max_drop < math.inf:
            raise SettingsError(f"`max_drop` is a number from 0. Received: {max_drop!r}.")
        if not math.isfinite(reference):
            raise SettingsError(f"`reference` is a finite number. Received: {reference!r}.")
        if mode not in (None, "max", "min"):
            raise SettingsError(f"`mode` is 'max' or 'min'. Received: {mode!r}.")
        if patience < 0:
            raise SettingsError(f"`patience` counts epochs, from 0. Received: {patience!r}.")
        worse_up = mode == "min" or (mode is None and monitor.endswith(HIGHER_IS_WORSE))
        self._sign = 1 if worse_up else -1
        self.max_drop = max_drop
        self.reference = reference
        self.monitor = monitor
        self.patience = patience
        self.restore = restore
        self._start_clean()

    def _start_clean(self) -> None:
        self.stopped_epoch: int | None = None
        self.last_good_epoch: int | None = None
        self._good: Any = None
        self._over = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Start clean."""
        self._start_clean()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Compare, and stop where the limit is exceeded."""
        figures = logs or {}
        if self.monitor not in figures:
            raise SettingsError(
                f"`StopAtDrop.monitor` is a figure that Keras logs: {', '.join(figures)}. "
                f"Received: {self.monitor!r}.{did_you_mean(self.monitor, figures)}"
            )
        drop = self._sign * (float(figures[self.monitor]) - self.reference)
        if drop <= self.max_drop:
            self._over, self.last_good_epoch = 0, epoch
            self._good = self.model.get_weights() if self.restore else None
            return
        self._over += 1
        if self._over > self.patience:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Bring back the weights of the last epoch within the limit."""
        good, self._good = self._good, None
        if self.stopped_epoch is not None and good is not None:
            self.model.set_weights(good)
