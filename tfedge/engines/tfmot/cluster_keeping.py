"""Keep the clusters of kernels under TFMOT's fake quantisation, so that they reach the file.

TFMOT's own scheme for that has scales per channel, and then a file more distinct values than there
are clusters; and it is lost when a model is saved.
"""

from typing import Any

import tensorflow

from tfedge.engines.native.centroids import clustered


class ZeroKeeper:
    """A quantizer of weights that gives no gradient to those that are zero."""

    def __init__(self, quantizer: Any) -> None:
        self._quantizer = quantizer

    def __call__(self, inputs: Any, training: Any, weights: Any) -> Any:
        """The rounded weights."""
        return self._quantizer(self._kept(inputs), training, weights=weights)

    def clustered(self, inputs: Any) -> Any:
        """The weights, clustered and not rounded; the quantizer inside must be a keeper too."""
        return self._quantizer.clustered(self._kept(inputs))

    def _kept(self, inputs: Any) -> Any:
        return inputs * tensorflow.cast(tensorflow.not_equal(inputs, 0), inputs.dtype)


class ClusterKeeper:
    """A quantizer of weights that gives each its nearest centroid, and all of them one scale.

    Args:
        quantizer: TFMOT's, with one scale or with one per channel: all are set to the same.
        centroids: Variable of shape `(k,)`.
        free: Of the same shape, 0 where a centroid is to be zero and 1 elsewhere.
    """

    def __init__(self, quantizer: Any, centroids: Any, free: Any) -> None:
        self._quantizer = quantizer
        self._centroids = centroids
        self._free = free

    def __call__(self, inputs: Any, training: Any, weights: Any) -> Any:
        """The rounded weights; while training, their range is set first."""
        kernel = self.clustered(inputs)
        if training:
            top = tensorflow.reduce_max(tensorflow.abs(kernel))
            for name, end in (("min_var", -top), ("max_var", top)):
                weights[name].assign(tensorflow.fill(weights[name].shape, end))
        return self._quantizer(kernel, False, weights=weights)

    def clustered(self, inputs: Any) -> Any:
        """The weights, clustered and not rounded."""
        return clustered(tensorflow.identity(inputs), self._centroids * self._free)
