"""Show how far a training is."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tfedge.callbacks._base import AbstractCallback

BETWEEN_SECONDS = 0.2  # two updates of the bar


class Progress(AbstractCallback):
    """A bar over all epochs with the time left and the latest figures.

    On a terminal it moves; elsewhere it writes a line for each epoch. Use it with `verbose=0`.

    Args:
        description: What is being done. Default: "training".
        file: Where to. Default: stderr.

    Example:
        >>> model.fit(x, y, epochs=5, verbose=0, callbacks=[Progress()])  # doctest: +SKIP
    """

    def __init__(self, description: str = "training", *, file: Any = None) -> None:
        super().__init__()
        self.description = description
        self.file = file
        self._bar: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Draw the bar."""
        self._epoch, self._shown, self._started = 0, 0.0, time.monotonic()
        file = self.file or sys.stderr
        if not file.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Bar(*columns, console=Console(file=file, highlight=False), transient=True)
        self._bar.start()
        epochs = int(self.params.get("epochs") or 1)
        self._task = self._bar.add_task(self.description, total=epochs, figures="")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remember which epoch it is."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Move the bar, a few times a second."""
        now = time.monotonic()
        steps = self.params.get("steps")
        if self._bar is None or not steps or now - self._shown < BETWEEN_SECONDS:
            return
        self._shown = now
        self._move(self._epoch + (batch + 1) / steps, logs or {})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Move the bar to the end of the epoch, or write a line."""
        if self._bar is not None:
            self._move(epoch + 1, logs or {})
            return
        seconds = time.monotonic() - self._started
        place = f"epoch {epoch + 1} of {self.params.get('epochs')}"
        line = f"[{seconds:6.1f} s] {self.description}: {place}, {_figures(logs or {})}"
        print(line, file=self.file or sys.stderr, flush=True)

    def on_train_end(self, logs: Any = None) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def _move(self, done: float, logs: Mapping[str, Any]) -> None:
        place = f"{self.description}, epoch {self._epoch + 1} of {self.params.get('epochs')}"
        self._bar.update(self._task, completed=done, description=place, figures=_figures(logs))


def _figures(logs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {float(value):.4g}" for name, value in logs.items())
