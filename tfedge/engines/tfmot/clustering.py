"""Cluster a tf_keras model while it trains, with TFMOT's wrappers around copies of its layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfedge.engines.tfmot._library import internals, tf_keras, tfmot
from tfedge.engines.tfmot.flattening import own_classes, read_graph
from tfedge.engines.tfmot.unwrapping import unwrapped
from tfedge.models import check_rebuildable, compile_like, scope_of

_WRAPPERS = "clustering.keras.cluster_wrapper"
# What TFMOT calls the initialisations and aggregations.
_INITIALIZATIONS = {
    "linear": "LINEAR",
    "random": "RANDOM",
    "density": "DENSITY_BASED",
    "kmeans++": "KMEANS_PLUS_PLUS",
}


def prepare_clustering(
    model: Any,
    clusters: Mapping[str, int],
    *,
    initialization: str = "linear",
    per_channel: bool = False,
    keep_zeros: Sequence[str] = (),
    aggregation: str = "sum",
    centroids: Mapping[str, Any] | None = None,
) -> Any:
    """An own copy of a tf_keras model whose kernels TFMOT clusters while it trains.

    Train it as it is, then take the wrappers off with `strip_clustering`. TFMOT's wrappers are used
    and not its `cluster_weights`, which takes a convolution without bias for one that has too few
    weights per channel, and leaves it out.

    Args:
        model: A built functional or Sequential tf_keras model. It is not changed.
        clusters: Name of each layer to cluster, to how many clusters it gets.
        initialization: `"linear"`, `"random"`, `"density"` or `"kmeans++"`.
        per_channel: Whether each channel of a Conv2D has centroids of its own.
        keep_zeros: Names of the layers whose zeros stay.
        aggregation: `"sum"` or `"avg"`, of the gradients that reach a centroid.
        centroids: First centroids of single layers by name, in the place of TFMOT's.

    Returns:
        The model, nested models inlined, compiled with a fresh optimizer if `model` is compiled.

    Raises:
        UnsupportedModelError: The model is subclassed or not built, or a layer cannot be copied.
        MissingExtraError: TFMOT is not installed.
    """
    library = tfmot().clustering.keras
    check_rebuildable(model, "cluster")
    first = library.CentroidInitialization[_INITIALIZATIONS[initialization]]
    summed = internals("clustering.keras.cluster_config").GradientAggregation[aggregation.upper()]

    def wrap(layer: Any) -> Any:
        if layer.name not in clusters:
            return layer
        return _wrapper_class(layer)(
            layer,
            clusters[layer.name],
            first,
            preserve_sparsity=layer.name in keep_zeros,
            cluster_per_channel=per_channel and type(layer).__name__ == "Conv2D",
            cluster_gradient_aggregation=summed,
        )

    with scope_of(model), own_classes(model):
        # The built model is a copy already: the wrapped one may share its layers.
        wrapped = tf_keras().models.clone_model(read_graph(model).build(), clone_function=wrap)
        for layer in wrapped.layers:
            if is_clustered_wrapper(layer) and layer.layer.name in (centroids or {}):
                _start(layer, (centroids or {})[layer.layer.name])
        return compile_like(wrapped, model)


def strip_clustering(model: Any) -> Any:
    """An own copy of a clustered model without its wrappers, its kernels clustered.

    Args:
        model: A model of `prepare_clustering`.

    Returns:
        A model of plain layers under their first names, compiled with a fresh optimizer if
        `model` is compiled.
    """
    return unwrapped(model, is_clustered_wrapper, clustered_weights)


def is_clustering(model: Any) -> bool:
    """Whether a tf_keras model holds TFMOT's clustering wrappers."""
    return any(is_clustered_wrapper(layer) for layer in model.layers)


def clustered_weights(layer: Any) -> list[Any]:
    """The weights of a layer, or of the one inside a clustering wrapper with clustered kernels."""
    if not is_clustered_wrapper(layer):
        return layer.get_weights()
    layer.update_clustered_weights_associations()
    weights = layer.layer.get_weights()  # without the kernels: tensors are in their places
    for place, name in sorted(layer.position_original_weights.items()):
        weights.insert(place, np.asarray(layer.get_weight_from_layer(name)))
    return weights


def why_not_clusterable(layer: Any) -> str | None:
    """The reason why TFMOT does not cluster a layer, or `None` if it does.

    Args:
        layer: A built tf_keras layer.
    """
    registry = internals("clustering.keras.clustering_registry").ClusteringRegistry
    own = internals("clustering.keras.clusterable_layer").ClusterableLayer
    if isinstance(layer, own):
        return None if layer.get_clusterable_weights() else "it has no weights to cluster"
    if not layer.weights:
        return "it has no weights"
    if not registry.supports(layer):
        return f"TFMOT clusters no {type(layer).__name__}"
    listed = registry._LAYERS_WEIGHTS_MAP.get(type(layer))
    if listed is None or listed:
        return None
    if type(layer).__name__ == "DepthwiseConv2D":
        return "TFMOT does not cluster depthwise kernels; `one_shot=True` does where they are named"
    return "no kernel that can be clustered"


def _wrapper_class(layer: Any) -> Any:
    wrappers, layers = internals(_WRAPPERS), tf_keras().layers
    if isinstance(layer, layers.RNN | layers.Bidirectional):
        return wrappers.ClusterWeightsRNN
    if isinstance(layer, layers.MultiHeadAttention):
        return wrappers.ClusterWeightsMHA
    return wrappers.ClusterWeights


def is_clustered_wrapper(layer: Any) -> bool:
    """Whether a tf_keras layer is one of TFMOT's clustering wrappers."""
    return isinstance(layer, internals(_WRAPPERS).ClusterWeights)


def _start(wrapper: Any, centroids: np.ndarray) -> None:
    """Give a wrapper of one kernel other first centroids, and what TFMOT derives from them."""
    (name,) = wrapper.cluster_centroids
    variable = wrapper.cluster_centroids[name]
    room = variable.shape[-1] - centroids.shape[-1]
    padding = [(0, 0)] * (centroids.ndim - 1) + [(0, room)]
    variable.assign(np.pad(centroids, padding, mode="edge"))
    if wrapper.preserve_sparsity:
        algorithm = wrapper.clustering_algorithms[name]
        weights = wrapper.original_clusterable_weights[name]
        kept = algorithm.get_clustered_weight(algorithm.get_pulling_indices(weights), weights)
        wrapper.sparsity_masks[name] = np.not_equal(kept, 0).astype(np.float32)
        wrapper.zero_idx[name] = np.abs(variable.numpy()).argmin(axis=-1)
