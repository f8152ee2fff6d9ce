"""Hold the clusters of kernels while a model trains on."""

from typing import Any

import keras

from tfedge.engines.native.cluster_keeping import ClusterKeeper, clustered_kernels
from tfedge.engines.native.pruning import install, uninstall


class KeepClusters(keras.callbacks.Callback):
    """Hold the clusters of kernels while a Keras 3 model trains on.

    What counts is what the kernels are when the training begins: weights of a clustered kernel that
    are equal stay equal, and zeros stay zero. The clusters themselves learn. A kernel counts as
    clustered that has at most half as many distinct values as weights, zeros aside.

    Example:
        >>> model.fit(x, y, callbacks=[KeepClusters()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        super().__init__()
        self._keepers: list[ClusterKeeper] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Put the clusters into the training step."""
        self._keepers = [ClusterKeeper(kernel) for kernel in clustered_kernels(self.model)]
        install(self.model, self._keepers)

    def on_train_end(self, logs: Any = None) -> None:
        """Take them out again."""
        keepers, self._keepers = self._keepers, []
        uninstall(self.model, keepers)


def keep_clusters(keras_name: str) -> Any:
    """A callback that holds clusters: `KeepClusters`, or its like for tf_keras.

    The variables of tf_keras take no constraint once they are made; so their clusters are restored
    after each batch.

    Args:
        keras_name: `"keras"` or `"tf_keras"`.
    """
    if keras_name == "keras":
        return KeepClusters()
    import tf_keras

    held: list[ClusterKeeper] = []

    def begin(logs: Any) -> None:
        held[:] = [ClusterKeeper(kernel) for kernel in clustered_kernels(callback.model)]

    def after_batch(batch: int, logs: Any) -> None:
        for keeper in held:
            variable = keeper.kernel.variable
            variable.assign(keeper(variable))

    callback = tf_keras.callbacks.LambdaCallback(
        on_train_begin=begin, on_train_batch_end=after_batch
    )
    return callback
