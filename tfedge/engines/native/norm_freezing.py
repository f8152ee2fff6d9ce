"""Stop the statistics of batch normalisations part of the way through a training.

R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018,
arXiv:1806.08342, section 3.2.2: the noise of batch statistics keeps rounded weights jumping between
levels; towards the end, train with the moving statistics that inference uses, and leave them be.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfedge.engines.native.batch_norm import FusedBatchNormalization
from tfedge.errors import SettingsError, TrainingError

NEVER = 2**31 - 1


@keras.saving.register_keras_serializable("tfedge")
class FreezingBatchNormalization(FusedBatchNormalization):
    """A BatchNormalization that counts training steps, and from one on uses its moving statistics.

    Args:
        freeze_at: Steps that train the statistics. Default: all.
    """

    def __init__(self, *, freeze_at: int = NEVER, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first_freeze_at = freeze_at

    def build(self, input_shape: Any) -> None:
        """Make the counters beside the weights."""
        super().build(input_shape)

        def counter(name: str, value: int) -> Any:
            return self.add_weight(
                name=name,
                shape=(),
                dtype="int32",
                initializer=keras.initializers.Constant(value),
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
            )

        self.seen = counter("seen", 0)
        self.freeze_at = counter("freeze_at", self.first_freeze_at)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise `inputs`; while training, by their own statistics until these freeze."""
        if not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        seen = tf.identity(ops.convert_to_tensor(self.seen))
        frozen = seen >= ops.convert_to_tensor(self.freeze_at)
        self.seen.assign_add(1)
        statistics = (self.moving_mean, self.moving_variance)
        before = [tf.identity(ops.convert_to_tensor(value)) for value in statistics]
        trained = super().call(inputs, training=True, mask=mask)
        for value, old in zip(
            statistics, before, strict=True
        ):  # replicas cannot assign in a branch
            value.assign(tf.where(frozen, old, ops.convert_to_tensor(value)))
        still = super().call
        return tf.cond(frozen, lambda: still(inputs, training=False, mask=mask), lambda: trained)

    def get_config(self) -> dict[str, Any]:
        """Settings of the layer."""
        return {**super().get_config(), "freeze_at": self.first_freeze_at}


class FreezeAtFraction(keras.callbacks.Callback):
    """Tell the batch normalisations of a model, once per training, at which step to freeze.

    Args:
        fraction: Of the steps of this training, above 0 and below 1.
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def on_train_begin(self, logs: Any = None) -> None:
        """Start clean."""
        self._told = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Count the steps ahead when the first epoch begins."""
        if self._told:
            return
        self._told = True
        steps = self.params.get("steps")
        if steps is None:
            raise SettingsError(
                f"`freeze_batch_norm={self.fraction}` is a fraction of the training, whose length "
                "is not known here. Give `fit` `steps_per_epoch`, or a step as a whole number."
            )
        ahead = steps * (self.params["epochs"] - epoch)
        for layer in freezing_layers(self.model):
            if int(layer.freeze_at.numpy()) == NEVER:
                layer.freeze_at.assign(int(layer.seen.numpy()) + round(self.fraction * ahead))


def freezing_layers(model: Any) -> list[FreezingBatchNormalization]:
    """The batch normalisations of a fake-quantised model that train and are to freeze."""
    inner = [layer.batch_norm for layer in model.layers if "batch_norm" in vars(layer)]
    return [
        layer
        for layer in (*model.layers, *inner)
        if isinstance(layer, FreezingBatchNormalization) and layer.trainable
    ]


def check_frozen(model: Any) -> None:
    """Check that a training reached the step at which its statistics were to freeze.

    Raises:
        TrainingError: It did not. A model that was not trained is let through.
    """
    for layer in freezing_layers(model):
        seen, wanted = int(layer.seen.numpy()), int(layer.freeze_at.numpy())
        if seen and wanted == NEVER:
            raise TrainingError(
                f"The batch normalisation `{layer.name}` was to freeze, but was never told when. "
                "Give `fit` the callbacks of the stage: `callbacks=stage.callbacks()`."
            )
        if 0 < seen < wanted:
            raise TrainingError(
                f"The batch normalisation `{layer.name}` was to freeze at step {wanted}, but "
                f"training ended after {seen} steps. Train longer, or lower `freeze_batch_norm`."
            )
