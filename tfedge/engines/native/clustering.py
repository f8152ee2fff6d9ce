"""Cluster the weights of Keras 3 models: with trained centroids while they train, and at once.

While a model trains, TFMOT's way is kept: each forward pass computes with the centroids nearest to
the weights; a centroid gets the gradients of its weights, and the weights get their own unchanged,
so that they can move to another centroid.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfedge.engines.native.centroids import (
    LLOYD_STEPS,
    centroids_of,
    clustered,
    nearest,
)
from tfedge.engines.native.cluster_settings import Clustering
from tfedge.engines.native.clusterable import channel_axis
from tfedge.engines.native.graph import Call, Copies, build_model, copy_layer, read_graph
from tfedge.engines.native.kernels import Kernel
from tfedge.engines.native.stand_in import AbstractStandIn


class CentroidSet:
    """The trained centroids of one weight, held by the layer that computes with them.

    Args:
        owner: The layer, in its `build`.
        name: Of the weight, e.g. `"kernel"`.
        shape: `(k,)`, or `(channels, k)` with `axis`.
        axis: Axis of the weight whose indices have centroids of their own.
        keep_zero: Whether centroids that are zero stay so.
        aggregation: `"sum"` or `"avg"` of the gradients of a centroid's weights.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        *,
        shape: Sequence[int],
        axis: int | None = None,
        keep_zero: bool = False,
        aggregation: str = "sum",
    ) -> None:
        self.axis = axis
        self.aggregation = aggregation
        self.values = owner.add_weight(
            name=f"{name}_centroids",
            shape=tuple(shape),
            dtype="float32",
            initializer="zeros",
            autocast=False,
        )
        self.free: Any = None  # which centroids may move
        if keep_zero:
            self.free = owner.add_weight(
                name=f"{name}_free",
                shape=tuple(shape),
                dtype="bool",
                initializer="ones",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
            )

    def start(self, centroids: Any) -> None:
        """Take first values; fewer than there is room for repeat the last one."""
        room = self.values.shape[-1] - centroids.shape[-1]
        padding = [(0, 0)] * (centroids.ndim - 1) + [(0, room)]
        self.values.assign(np.pad(centroids, padding, mode="edge"))
        if self.free is not None:
            self.free.assign(self.values.numpy() != 0)

    def current(self) -> Any:
        """The centroids, those that are held at zero included."""
        values = ops.convert_to_tensor(self.values)
        return values if self.free is None else values * ops.cast(self.free, values.dtype)

    def __call__(self, weights: Any) -> Any:
        """Each weight replaced by its nearest centroid."""
        values = ops.cast(weights, "float32")
        chosen = clustered(values, self.current(), axis=self.axis, aggregation=self.aggregation)
        return ops.cast(chosen, weights.dtype)


@keras.saving.register_keras_serializable("tfedge")
class ClusteredWeights(AbstractStandIn):
    """Run a layer with clustered kernels.

    Args:
        layer: The layer. Its own weights train on, and choose their centroids by nearness.
        kernels: For each clustered kernel, by its place in `layer.weights`: `"shape"` of the
            centroids, `"axis"` of its channels or `None`, and whether it `"keeps_zeros"`.
        aggregation: `"sum"` or `"avg"`, of the gradients that reach a centroid.
    """

    def __init__(
        self,
        layer: Any,
        *,
        kernels: Mapping[str, Mapping[str, Any]],
        aggregation: str = "sum",
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.kernels = {str(place): dict(entry) for place, entry in kernels.items()}
        self.aggregation = aggregation

    def build(self, *shapes: Any, **named_shapes: Any) -> None:
        """Make centroids and masks."""
        if not self.layer.built:
            self.layer.build(*shapes, **named_shapes)
        self.sets: dict[str, CentroidSet] = {}
        self.masks: dict[str, Any] = {}
        for place, entry in self.kernels.items():
            weight = self.layer.weights[int(place)]
            name = f"{weight.name}_{place}"
            self.sets[place] = CentroidSet(
                self,
                name,
                shape=entry["shape"],
                axis=entry["axis"],
                keep_zero=entry["keeps_zeros"],
                aggregation=self.aggregation,
            )
            if entry["keeps_zeros"]:
                self.masks[place] = self.add_weight(
                    name=f"{name}_mask",
                    shape=weight.shape,
                    dtype="bool",
                    initializer="ones",
                    trainable=False,
                    autocast=False,
                    aggregation="only_first_replica",
                )

    def start(self, place: str, centroids: Any) -> None:
        """Take the first centroids of a kernel; its weights that go to zero stay there."""
        self.sets[place].start(centroids)
        if place in self.masks:
            self.masks[place].assign(ops.not_equal(self.clustered_kernel(place), 0))

    def clustered_kernel(self, place: str) -> Any:
        """The kernel at a place in `layer.weights` as the layer computes with it."""
        weights = ops.convert_to_tensor(self.layer.weights[int(place)])
        if place in self.masks:
            weights = weights * ops.cast(self.masks[place], weights.dtype)
        return self.sets[place](weights)

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """The output of the layer."""
        if self._takes_training:
            kwargs["training"] = training
        weights = self.layer.weights
        replaced = {id(weights[int(p)]): self.clustered_kernel(p) for p in self.kernels}
        return self.call_with(replaced, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {
            **super().get_config(),
            "kernels": self.kernels,
            "aggregation": self.aggregation,
        }


# ---------------------------------------------------------------------- at once and in training


def first_centroids(
    kernel: Kernel, settings: Clustering, *, steps: int, axis: int | None, seed: int = 0
) -> np.ndarray:
    """The centroids that the clustering of a kernel starts with.

    Args:
        kernel: In either Keras.
        settings: What was asked.
        steps: Steps of k-means, unless the settings say how many.
        axis: Axis of the channels, `None` for one set.
        seed: Of `"random"`.
    """
    weights = kernel.variable.numpy()
    return centroids_of(
        weights,
        settings.clusters_of(kernel.layer.name),
        initialization=settings.initialization,
        axis=axis,
        keep_zero=settings.keeps_zeros(kernel.layer.name, weights),
        steps=steps if settings.kmeans_steps is None else settings.kmeans_steps,
        seed=seed,
    )


def cluster_at_once(kernels: Sequence[Kernel], settings: Clustering, *, seed: int = 0) -> None:
    """Replace the weights of kernels, in either Keras, by k-means centroids.

    Args:
        kernels: Changed in place.
        settings: What was asked; by default k-means runs until it stands still.
        seed: Of `"random"` centroids.
    """
    for kernel in kernels:
        axis = channel_axis(kernel) if settings.per_channel else None
        weights = kernel.variable.numpy()
        table = first_centroids(kernel, settings, steps=LLOYD_STEPS, axis=axis, seed=seed)
        places = nearest(weights.astype(np.float32), table, axis=axis).numpy()
        if axis is None:
            chosen = table[places]
        else:
            channels = np.arange(table.shape[0]).reshape(
                [-1 if i == axis else 1 for i in range(weights.ndim)]
            )
            chosen = table[channels, places]
        if settings.keeps_zeros(kernel.layer.name, weights):
            chosen = np.where(weights == 0, 0, chosen)
        kernel.variable.assign(chosen.astype(weights.dtype))


def prepare_clustering(
    model: Any, kernels: Sequence[Kernel], settings: Clustering, *, seed: int = 0
) -> Any:
    """An own copy of a Keras 3 model that computes with trained centroids.

    Args:
        model: A built Functional or Sequential model; nested models are inlined in the copy.
        kernels: Which of its kernels are clustered.
        settings: How.
        seed: Of `"random"` centroids.

    Returns:
        The model, not compiled.
    """
    chosen: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        chosen.setdefault(id(kernel.layer), []).append(kernel)
    copies = Copies()
    wrappers: dict[str, Any] = {}
    starts: list[tuple[Any, str, np.ndarray]] = []

    def wrapper(call: Call, own: Sequence[Kernel]) -> Any:
        entries = {}
        for kernel in own:
            place = _place_of(kernel)
            axis = channel_axis(kernel) if settings.per_channel else None
            table = first_centroids(kernel, settings, steps=0, axis=axis, seed=seed)
            zeros = settings.keeps_zeros(kernel.layer.name, kernel.variable.numpy())
            entries[place] = {"shape": list(table.shape), "axis": axis, "keeps_zeros": zeros}
            starts.append((call.name, place, table))
        return ClusteredWeights(
            copies.of(call),
            kernels=entries,
            aggregation=settings.gradient_aggregation,
            trainable=call.trainable,
        )

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = chosen.get(id(call.operation))
        if own is None:
            return copies.of(call)(*args, **kwargs)
        if call.name not in wrappers:
            wrappers[call.name] = wrapper(call, own)
        return wrappers[call.name](*args, **kwargs)

    prepared = build_model(read_graph(model), emit)
    for name, place, table in starts:
        wrappers[name].start(place, table)
    return prepared


def _place_of(kernel: Kernel) -> str:
    return str(next(i for i, w in enumerate(kernel.layer.weights) if w is kernel.variable))


def strip_clustering(model: Any) -> Any:
    """An own copy of a model from `prepare_clustering` in plain layers, its kernels clustered.

    Args:
        model: It is not changed.

    Returns:
        The model, not compiled.
    """
    copies = Copies()
    made: dict[str, Any] = {}

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(call.operation, ClusteredWeights):
            return copies.of(call)(*args, **kwargs)
        if call.name not in made:
            made[call.name] = plain_layer(call.operation)
        return made[call.name](*args, **kwargs)

    return build_model(read_graph(model), emit)


def plain_layer(wrapper: ClusteredWeights) -> Any:
    """A copy of the layer in a wrapper that holds the clustered kernels as its own."""
    layer = copy_layer(wrapper.layer, trainable=wrapper.layer.trainable)
    for place in wrapper.kernels:
        layer.weights[int(place)].assign(wrapper.clustered_kernel(place))
    return layer


def is_clustering(model: Any) -> bool:
    """Whether a Keras 3 model computes with trained centroids."""
    return any(isinstance(layer, ClusteredWeights) for layer in model.layers)
