"""Keep the `.tflite` file of the epoch whose file is the best."""

from pathlib import Path
from typing import Any

from tfedge.callbacks._base import AbstractCallback
from tfedge.convert import convert
from tfedge.data import Split, evaluate, find_metric
from tfedge.errors import SettingsError
from tfedge.files import write_whole
from tfedge.models import keras_of
from tfedge.runtime import open_model


class TFLiteCheckpoint(AbstractCallback):
    """Convert every few epochs, evaluate the real file, keep the best one by its own figure.

    The figure of the model while it trains says little about its int8 file; this looks at the file.
    `tflite_<metric>` and `tflite_gzip_bytes` go into Keras's logs.

    Args:
        path: Where the best file is written, whole or not at all.
        data: What files are judged by: a `Split` with labels, or `(x, y)`. Not the test data, where
            these are to stay unseen.
        metric: Name of a metric, or a `Metric`. Default: `"accuracy"`.
        mode: Mode of `convert`. Default: `"int8"`.
        calibration: As `convert` takes it; needed for int8 unless the model comes from `Quantize`.
        every: Epochs between two files; the last epoch has one too. Default: 1.
        allow_float: Whether an int8 file may hold float operators.

    Attributes:
        best: The figure of the file at `path`; `None` before the first.
        best_epoch: Its epoch, from 0.
        history: `(epoch, figure)` of every file.

    Raises:
        SettingsError: A setting is out of range.
        ConversionError: In `fit`, at the first file: the model cannot be converted.

    Example:
        >>> keep = TFLiteCheckpoint("best.tflite", (x_held_out, y_held_out))  # doctest: +SKIP
        >>> Quantize().prepare(model).fit(x, y, callbacks=[keep])  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        data: Any,
        *,
        metric: Any = "accuracy",
        mode: str = "int8",
        calibration: Any = None,
        every: int = 1,
        allow_float: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise SettingsError(f"`every` counts epochs, from 1. Received: {every!r}.")
        self.path = Path(path)
        self.data = Split(*data) if isinstance(data, tuple | list) else data
        self.metric = find_metric(metric)
        self.mode = mode
        self.calibration = calibration
        self.every = every
        self.allow_float = allow_float
        self._start_clean()

    def _start_clean(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.history: list[tuple[int, float]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Start clean."""
        self._start_clean()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Convert, evaluate, and keep the file if it is the best so far."""
        last = epoch + 1 == self.params.get("epochs")
        if (epoch + 1) % self.every and not last:
            return
        content, report = convert(
            _plain(self.model),
            mode=self.mode,
            calibration=self.calibration,
            allow_float=self.allow_float,
        )
        with open_model(content) as opened:
            figure = evaluate(opened.predict, self.data, self.metric)
        self.history.append((epoch, figure))
        if logs is not None:
            logs[f"tflite_{self.metric.name}"] = figure
            logs["tflite_gzip_bytes"] = report.gzip_bytes
        if self.best is None or self.metric.worse_by(self.best, figure) < 0:
            write_whole(self.path, content)
            self.best, self.best_epoch = figure, epoch


def _plain(model: Any) -> Any:
    """The model without the wrappers of a training that goes on; they stay where they are."""
    if keras_of(model) == "keras":
        return model
    from tfedge.engines import tfmot

    return tfmot.strip_pruning(model) if tfmot.is_pruning(model) else model
