"""What callbacks for both Kerases share."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras


class AbstractCallback(keras.callbacks.Callback):
    """A callback that `fit` of Keras 3 and of tf_keras takes.

    tf_keras asks its callbacks which hooks of batches they have; those of Keras 3 do not say.
    """

    def _implements_train_batch_hooks(self) -> bool:
        base, own = keras.callbacks.Callback, type(self)
        begins = own.on_train_batch_begin is not base.on_train_batch_begin
        return begins or own.on_train_batch_end is not base.on_train_batch_end

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False


class AbstractLogger(AbstractCallback, abc.ABC):
    """Reads figures off the model after each epoch.

    A logger overrides `read`, which gives the figures by name, and `summary`, the few of them that
    go into Keras's own logs.

    Args:
        log_dir: Where TensorBoard finds all figures. Default: nowhere.

    Attributes:
        history: For each epoch all figures by name.
    """

    def __init__(self, log_dir: str | Path | None = None) -> None:
        super().__init__()
        self.log_dir = log_dir
        self.history: list[dict[str, float]] = []
        self._writer: Any = None

    @abc.abstractmethod
    def read(self) -> dict[str, float]:
        """All figures of the model as it is."""

    @abc.abstractmethod
    def summary(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The figures that Keras logs and shows."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Start clean."""
        self.history = []
        if self.log_dir is not None:
            import tensorflow as tf

            self._writer = tf.summary.create_file_writer(str(self.log_dir))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Log the figures of the epoch."""
        figures = self.read()
        self.history.append(figures)
        if logs is not None:
            logs.update(self.summary(figures))
        if self._writer is not None:
            import tensorflow as tf

            with self._writer.as_default(step=epoch):
                for name, value in figures.items():
                    tf.summary.scalar(name, value)

    def on_train_end(self, logs: Any = None) -> None:
        """Finish writing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
