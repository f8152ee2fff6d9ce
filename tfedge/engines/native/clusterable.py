"""Find the kernels of a model that can be clustered, in either Keras, and count their values."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfedge.engines.native.centroids import distinct_count
from tfedge.engines.native.cluster_settings import Clustering
from tfedge.engines.native.kernels import (
    Kernel,
    kernels_of,
    named_layers,
    nothing_to_do,
    without_kernel,
)
from tfedge.errors import ModelError, SettingsError
from tfedge.models import layers_of
from tfedge.report import Skipped

# Axis of the output channels of kernels that can have centroids per channel.
CHANNELS: Mapping[str, int] = {
    "Conv1D": -1,
    "Conv2D": -1,
    "Conv3D": -1,
    "Conv1DTranspose": -2,
    "Conv2DTranspose": -2,
    "Conv3DTranspose": -2,
}


def find_clusterable(
    model: Any, settings: Clustering, *, training: bool
) -> tuple[tuple[Kernel, ...], tuple[Skipped, ...]]:
    """The kernels that the settings choose, and every layer that is left alone.

    Args:
        model: A Keras 3 or tf_keras model, built.
        settings: What to cluster.
        training: Whether the model is clustered while it trains: frozen layers are then left alone.

    Raises:
        SettingsError: A layer named in the settings does not exist or cannot be clustered.
        ModelError: Nothing in the model can be clustered.
    """
    if not model.weights:
        raise ModelError(
            f"Clustering needs the weights, and `{model.name}` has none yet. Call it once on a "
            "batch, `model(x[:1])`."
        )
    named = named_layers(model, settings)
    kernels: list[Kernel] = []
    skipped: list[Skipped] = []
    for layer in layers_of(model):
        own = kernels_of(layer, depthwise=id(layer) in named)
        reason = _why_not(layer, own, training)
        if reason is None and settings.layers is not None and id(layer) not in named:
            reason = "not in `layers`"
        if reason is None:
            kernels += own
        elif layer.name in settings.named():
            raise SettingsError(f"Layer {layer.name!r} cannot be clustered: {reason}.")
        else:
            skipped.append(Skipped(layer.name, reason))
    if not kernels:
        raise nothing_to_do("clustered", skipped)
    return tuple(kernels), tuple(skipped)


def _why_not(layer: Any, kernels: Sequence[Kernel], training: bool) -> str | None:
    if not kernels:
        return without_kernel(layer, "clustered")
    if training and not layer.trainable:
        return "frozen (`trainable=False`); clustering at once would reach it"
    return None


def channel_axis(kernel: Kernel) -> int | None:
    """Axis of a kernel's output channels; `None` where it has one set of centroids in any case."""
    if kernel.name != "kernel":
        return None
    axes = [
        CHANNELS[cls.__name__] for cls in type(kernel.owner).__mro__ if cls.__name__ in CHANNELS
    ]
    rank = len(kernel.variable.shape)
    return axes[0] + rank if axes else None


def excess(kernels: Sequence[Kernel], settings: Clustering, *, channels: bool = True) -> str:
    """The kernel that has more values than clusters; empty where none has.

    Args:
        kernels: Clustered.
        settings: What was asked.
        channels: Whether `per_channel` is counted per channel for every kind of kernel that has
            channels, as the native engine does, or for two-dimensional convolutions alone.
    """
    for kernel in kernels:
        axis = channel_axis(kernel) if settings.per_channel else None
        if not channels and type(kernel.owner).__name__ != "Conv2D":
            axis = None
        count = distinct_count(kernel.variable.numpy(), axis=axis)
        asked = settings.clusters_of(kernel.layer.name)
        if count > asked:
            where = " in one channel" if axis is not None else ""
            return f"layer {kernel.layer.name!r} has {count} values{where}, asked were {asked}"
    return ""
