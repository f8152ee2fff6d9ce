"""Log how many distinct values kernels have."""

from collections.abc import Mapping

from tfedge.callbacks._base import AbstractLogger
from tfedge.engines.distinct import unique_values


class ClusterLogger(AbstractLogger):
    """Log the number of distinct values of each kernel after each epoch.

    `most_unique_values`, of the kernel that has most, goes into Keras's logs;
    `unique_values/<layer>` into `history` and, with `log_dir`, into TensorBoard. While a model is
    clustered or fake-quantised, the values count that its layers compute with.

    Args:
        log_dir: Where TensorBoard finds the figures of every layer. Default: nowhere.

    Example:
        >>> prepared = Cluster(number_of_clusters=16).prepare(model)  # doctest: +SKIP
        >>> prepared.fit(x, y, callbacks=[ClusterLogger()])           # doctest: +SKIP
    """

    def read(self) -> dict[str, float]:
        """`unique_values/<layer>`."""
        return {f"unique_values/{n}": float(v) for n, v in unique_values(self.model).items()}

    def summary(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The number of the kernel that has most."""
        return {"most_unique_values": max(figures.values(), default=0.0)}
