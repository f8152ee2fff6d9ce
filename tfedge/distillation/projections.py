"""A learned projection: the student's channels on their way to the teacher's."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfedge.distillation import losses
from tfedge.models import import_keras, keras_of, scope_of

LEARNING_RATE = 1e-3


class Projection:
    """A matrix that learns beside the student, with an optimizer (Adam) of its own.

    So the student's optimizer holds the student's variables only, and nothing of the projection is
    left when the training is over.

    Args:
        model: What is trained, for its Keras and its devices.
        channels: Of the student's layer.
        wanted: Of the teacher's layer.
        seed: Of its first values.
    """

    def __init__(self, model: Any, channels: int, wanted: int, seed: int) -> None:
        self._keras = import_keras(keras_of(model))
        limit = np.sqrt(6 / (channels + wanted))  # Glorot and Bengio, 2010
        values = np.random.default_rng(seed).uniform(-limit, limit, (channels, wanted))
        with scope_of(model):
            self._matrix = self._variable(values.astype(np.float32))
            self._optimizer = self._keras.optimizers.Adam(LEARNING_RATE)
            self._optimizer.build([self._matrix])

    def losses(self, student: Any, teacher: Any, weights: Any) -> Any:
        """`feature_loss` through the projection, which learns from the same samples.

        Args:
            student: (samples, …, channels).
            teacher: (samples, …, its channels).
            weights: Of the samples, or none.

        Returns:
            (samples,)
        """
        matrix = tf.convert_to_tensor(self._matrix)
        with tf.GradientTape() as tape:
            tape.watch(matrix)
            rows = losses.feature_loss(tf.stop_gradient(student), teacher, matrix)
            mean = losses.weighted_mean(rows, weights)
        self._optimizer.apply_gradients([(tape.gradient(mean, matrix), self._matrix)])
        return losses.feature_loss(student, teacher, matrix)

    @property
    def matrix(self) -> np.ndarray:
        """Its values, (channels, its channels)."""
        return np.array(self._matrix.numpy())

    def set_matrix(self, values: np.ndarray) -> None:
        """Go on from these values."""
        self._matrix.assign(values)

    def _variable(self, values: np.ndarray) -> Any:
        if self._keras.__name__ == "keras":
            return self._keras.Variable(values, dtype="float32", name="projection")
        return tf.Variable(values, name="projection")
