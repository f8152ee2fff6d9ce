"""Log how many weights are zero."""

from collections.abc import Mapping

from tfedge.callbacks._base import AbstractLogger
from tfedge.engines.native.kernels import kernels_of
from tfedge.models import layers_of


class SparsityLogger(AbstractLogger):
    """Log the fraction of zeros in the kernels of a model after each epoch.

    `sparsity`, over all kernels, goes into Keras's logs, and so into its `History`, progress and
    TensorBoard; `sparsity/<layer>` into `history` and, with `log_dir`, into TensorBoard.

    Args:
        log_dir: Where TensorBoard finds the figures of every layer. Default: nowhere.

    Example:
        >>> model.fit(x, y, callbacks=[*stage.callbacks(), SparsityLogger()])  # doctest: +SKIP
    """

    def read(self) -> dict[str, float]:
        """`sparsity` and `sparsity/<layer>`."""
        zeros: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for layer in layers_of(self.model):
            for kernel in kernels_of(layer, depthwise=True):
                zeros[layer.name] = zeros.get(layer.name, 0) + kernel.zeros()
                sizes[layer.name] = sizes.get(layer.name, 0) + kernel.size
        share = sum(zeros.values()) / max(1, sum(sizes.values()))
        return {"sparsity": share} | {f"sparsity/{n}": zeros[n] / sizes[n] for n in sizes}

    def summary(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The fraction over all kernels."""
        return {"sparsity": figures["sparsity"]}
