"""Batch normalisation by TensorFlow's fused kernel while training: the same values in less time."""

from typing import Any

import keras
import tensorflow as tf

LOWEST_EPSILON = 1.001e-5  # the kernel raises smaller ones


@keras.saving.register_keras_serializable("tfedge")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with the fused kernel where that gives the same values.

    Keras 3 writes out mean, variance and scaling as separate operations. Images in float32 that are
    normalised over their last axis go through one kernel here; everything else is left to Keras.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise `inputs`; while training, by their own statistics."""
        fits = training and self.trainable and mask is None and len(inputs.shape) == 4
        if not fits or not self._has_kernel(inputs):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            self.gamma.value if self.scale else tf.ones_like(self.moving_mean.value),
            self.beta.value if self.center else tf.zeros_like(self.moving_mean.value),
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), variance.dtype)
        variance *= (count - 1.0) / count  # the kernel divides by count - 1, Keras by count
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs

    def _has_kernel(self, inputs: Any) -> bool:
        return (
            self.axis in (-1, 3)
            and keras.backend.standardize_dtype(inputs.dtype) == "float32"
            and self.epsilon >= LOWEST_EPSILON
            and not self.synchronized
            and not self.renorm
        )
