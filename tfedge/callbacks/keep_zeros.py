"""Hold the zeros of a pruned model while it trains on."""

from typing import Any

import keras

from tfedge.engines.native.kernels import pruned_kernels
from tfedge.engines.native.prune_settings import Pruning
from tfedge.engines.native.pruning import KernelPruner, install, uninstall
from tfedge.models import scope_of


class KeepZeros(keras.callbacks.Callback):
    """Hold the zeros of pruned kernels while a Keras 3 model trains on.

    What counts is what the kernels are when the training begins: a weight that is exactly zero
    stays so, in every kernel that has both zeros and other values.

    Example:
        >>> model.fit(x, y, callbacks=[KeepZeros()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        super().__init__()
        self._pruners: list[KernelPruner] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Put the masks into the training step."""
        with scope_of(self.model):
            self._pruners = [
                KernelPruner(kernel, Pruning(), None) for kernel in pruned_kernels(self.model)
            ]
        for pruner in self._pruners:
            pruner.set_mask(pruner.kernel.variable.numpy() != 0)
        install(self.model, self._pruners)

    def on_train_end(self, logs: Any = None) -> None:
        """Take the masks out again."""
        pruners, self._pruners = self._pruners, []
        uninstall(self.model, pruners)
        for pruner in pruners:
            pruner.apply()


def keep_zeros(keras_name: str) -> Any:
    """A callback that holds zeros: `KeepZeros`, or its like for tf_keras.

    The variables of tf_keras take no constraint once they are made; so their zeros are restored
    after each batch.

    Args:
        keras_name: `"keras"` or `"tf_keras"`.
    """
    if keras_name == "keras":
        return KeepZeros()
    import tf_keras

    held: list[tuple[Any, Any]] = []

    def begin(logs: Any) -> None:
        kernels = pruned_kernels(callback.model)
        held[:] = [(kernel.variable, kernel.variable.numpy() != 0) for kernel in kernels]

    def after_batch(batch: int, logs: Any) -> None:
        for variable, mask in held:
            variable.assign(variable * mask)

    callback = tf_keras.callbacks.LambdaCallback(
        on_train_begin=begin, on_train_batch_end=after_batch
    )
    return callback
