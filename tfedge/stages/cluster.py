"""Leave each kernel a few distinct values, which compress well."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tfedge.engines.native.centroids import distinct_count
from tfedge.engines.native.cluster_settings import Clustering
from tfedge.engines.native.clusterable import channel_axis, excess, find_clusterable
from tfedge.engines.native.kernels import Kernel
from tfedge.errors import SettingsError, TrainingError, UnsupportedModelError
from tfedge.models import (
    check_finite,
    check_rebuildable,
    check_strategy,
    compile_like,
    copy_model,
    keras_of,
)
from tfedge.report import Skipped, StageReport
from tfedge.stages._base import AbstractTrainedStage, Context
from tfedge.stages._fit import last_keras, remember_keras

UNDONE = (
    "What undoes clustering: weights loaded afterwards, or a training without `callbacks()` "
    "after clustering at once."
)

# Zeros of each kernel that was to keep them, by layer and name, as `prepare` found them.
_ZEROS: "weakref.WeakKeyDictionary[Any, dict[tuple[str, str], int]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Cluster(Clustering, AbstractTrainedStage):
    """Give the weights of each kernel a few shared values, while the model trains or at once.

    Clustered while it trains, a model computes with the centroids nearest to its weights; centroids
    and weights both learn, so that weights can change cluster. The file gets smaller once it is
    compressed; int8 files keep the clusters with `Quantize(keep_clusters=True)`. Keras 3 models are
    clustered natively; tf_keras models by TFMOT. Nested models come back inlined, unless they are
    clustered at once. Biases, normalisation and, unless they are named, depthwise kernels are left
    alone.

    Train with a small learning rate, such as Adam's at 1e-4: the gradients of many weights add up
    in a centroid. `gradient_aggregation="avg"` takes larger ones.

    Args:
        number_of_clusters: Distinct values that a kernel may have, from 2.
        initialization: Of the centroids: `"linear"`, evenly spaced over the weights; `"random"`;
            `"density"`, by their distribution; `"kmeans++"`.
        per_channel: Whether each output channel of a convolution has centroids of its own. TFMOT
            does so for Conv2D only.
        layers: Names of the layers to cluster. Default: every layer with a kernel.
        per_layer: Clusters of single layers by name.
        keep_sparsity: Whether zeros stay zero, which takes one of the clusters. Default: in
            kernels that have zeros.
        gradient_aggregation: What reaches a centroid: the `"sum"` of its weights' gradients, or
            their `"avg"`.
        kmeans_steps: Steps of k-means on the first centroids. Default: none while training, as
            TFMOT; at once, until it stands still.
        one_shot: Cluster at once, without training.

    Raises:
        SettingsError: A setting is out of range.

    Example:
        >>> model, report = Cluster(number_of_clusters=16).apply(model, context)  # doctest: +SKIP
        >>> model, report = Cluster(one_shot=True).apply(model)                   # doctest: +SKIP

        In a training script of one's own:

        >>> stage = Cluster(number_of_clusters=16)
        >>> prepared = stage.prepare(model)                              # doctest: +SKIP
        >>> prepared.fit(x, y, epochs=2, callbacks=stage.callbacks())    # doctest: +SKIP
        >>> clustered, report = stage.finish(prepared)                   # doctest: +SKIP
    """

    name: ClassVar[str] = "cluster"
    needs: ClassVar[frozenset[str]] = frozenset({"fit"})

    one_shot: bool = False

    def prepare(self, model: Any) -> Any:
        """An own copy of `model` with clustered kernels, ready to be trained by `fit`.

        Args:
            model: A Keras 3 or tf_keras model. Compiled, it comes back compiled.

        Raises:
            SettingsError: A layer that the settings name is missing or cannot be clustered.
            ModelError: Weights are not finite, or nothing can be clustered.
            UnsupportedModelError: The model has no graph to rebuild, which only training needs.
        """
        return self._prepare(model, Context())

    def callbacks(self) -> list[Any]:
        """None while centroids train; after clustering at once, what holds the clusters."""
        if not self.one_shot:
            return []
        from tfedge.callbacks import keep_clusters

        return [keep_clusters(last_keras(self))]

    def finish(self, trained: Any) -> tuple[Any, StageReport]:
        """Take the wrappers off, check clusters and zeros, and report.

        Args:
            trained: What `prepare` gave, after `fit`.

        Raises:
            TrainingError: A kernel has more values than clusters, or lost zeros that were to stay.
            UnsupportedModelError: The model does not come from `prepare`.
        """
        model = trained if self.one_shot else self._stripped(trained)
        check_finite(model)
        kernels, skipped = self._find(model)
        native = keras_of(model) == "keras"
        self._check_reached(kernels, _ZEROS.get(trained, {}), native or self.one_shot)
        return model, self._report(kernels, skipped, native or self.one_shot)

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Cluster an own copy of `model`.

        Args:
            model: A Keras 3 or tf_keras model. It comes out bit-equal.
            context: `fit` is needed, unless `one_shot`; `seed` is that of `"random"` centroids.

        Returns:
            The clustered model and the report on every layer.

        Raises:
            SettingsError: The context lacks `fit`, or a named layer cannot be clustered.
            TrainingError: Something undid the clustering.
        """
        context = context or Context() if self.one_shot else self._check_context(context)
        prepared = self._prepare(model, context)
        if not self.one_shot:
            context.fit(prepared, self.callbacks())  # type: ignore[misc]  # `needs` holds it
        return self.finish(prepared)

    # ------------------------------------------------------------------ preparing

    def _prepare(self, model: Any, context: Context) -> Any:
        from tfedge.engines.native.clustering import cluster_at_once, prepare_clustering

        check_finite(model)
        remember_keras(self, model)
        if not self.one_shot:
            check_rebuildable(model, "Cluster")
            check_strategy(model)
        kernels, _ = self._find(model)
        zeros = {
            (kernel.layer.name, kernel.name): kernel.zeros()
            for kernel in kernels
            if self.keeps_zeros(kernel.layer.name, kernel.variable.numpy())
        }
        if self.one_shot:
            prepared = copy_model(model)
            cluster_at_once(self._find(prepared)[0], self, seed=context.seed)
        elif keras_of(model) == "keras":
            prepared = prepare_clustering(model, kernels, self, seed=context.seed)
            compile_like(prepared, model)
        else:
            prepared = self._wrapped(model, kernels, context.seed)
        _ZEROS[prepared] = zeros
        return prepared

    def _find(self, model: Any) -> tuple[tuple[Kernel, ...], tuple[Skipped, ...]]:
        kernels, skipped = find_clusterable(model, self, training=not self.one_shot)
        if self.one_shot or keras_of(model) == "keras":
            return kernels, skipped
        from tfedge.engines import tfmot

        refused = {
            kernel.layer.name: reason
            for kernel in kernels
            if (reason := tfmot.why_not_clusterable(kernel.layer)) is not None
        }
        for name, reason in refused.items():
            if name in self.named():
                raise SettingsError(f"Layer {name!r} cannot be clustered: {reason}.")
        kept = tuple(kernel for kernel in kernels if kernel.layer.name not in refused)
        return kept, (*skipped, *(Skipped(name, reason) for name, reason in refused.items()))

    # ------------------------------------------------------------------ tf_keras

    def _wrapped(self, model: Any, kernels: Sequence[Kernel], seed: int) -> Any:
        from tfedge.engines import tfmot
        from tfedge.engines.native.clustering import first_centroids

        clusters: dict[str, int] = {}
        starts: dict[str, Any] = {}
        zeros: set[str] = set()
        for kernel in kernels:
            name, values = kernel.layer.name, kernel.variable.numpy()
            keeps = self.keeps_zeros(name, values)
            zeros |= {name} if keeps else set()
            axis = self._tfmot_axis(kernel)
            distinct = distinct_count(values, axis=axis)
            asked = self.clusters_of(name)
            least = 3 if keeps else 2
            clusters[name] = max(clusters.get(name, least), min(asked, distinct))
            own = distinct <= asked or self.initialization == "random" or self.kmeans_steps
            if own and sum(other.layer.name == name for other in kernels) == 1:
                starts[name] = first_centroids(kernel, self, steps=0, axis=axis, seed=seed)
        return tfmot.prepare_clustering(
            model,
            clusters,
            initialization=self.initialization,
            per_channel=self.per_channel,
            keep_zeros=tuple(zeros),
            aggregation=self.gradient_aggregation,
            centroids=starts,
        )

    def _tfmot_axis(self, kernel: Kernel) -> int | None:
        two_dimensional = type(kernel.owner).__name__ == "Conv2D"
        return channel_axis(kernel) if self.per_channel and two_dimensional else None

    def _stripped(self, trained: Any) -> Any:
        from tfedge.engines.native.clustering import is_clustering, strip_clustering

        native = keras_of(trained) == "keras"
        if native and is_clustering(trained):
            return compile_like(strip_clustering(trained), trained)
        if not native:
            from tfedge.engines import tfmot

            if tfmot.is_clustering(trained):
                return tfmot.strip_clustering(trained)
        raise UnsupportedModelError(
            f"`Cluster.finish` takes the model that `prepare` gave. Received: `{trained.name}`, "
            "which has no trained centroids."
        )

    # ------------------------------------------------------------------ finishing

    def _check_reached(
        self, kernels: Sequence[Kernel], zeros: dict[tuple[str, str], int], native: bool
    ) -> None:
        missing = excess(kernels, self, channels=native)
        for kernel in () if missing else kernels:
            before = zeros.get((kernel.layer.name, kernel.name), 0)
            if kernel.zeros() < before:
                missing = (
                    f"layer {kernel.layer.name!r} has {kernel.zeros()} zeros, before it had "
                    f"{before}"
                )
        if missing:
            raise TrainingError(f"The model is not clustered as asked: {missing}. {UNDONE}")

    def _report(
        self, kernels: Sequence[Kernel], skipped: Sequence[Skipped], native: bool
    ) -> StageReport:
        values: dict[str, int] = {}
        for kernel in kernels:
            name = kernel.layer.name
            values[name] = max(values.get(name, 0), distinct_count(kernel.variable.numpy()))
        zeros = sum(kernel.zeros() for kernel in kernels)
        size = sum(kernel.size for kernel in kernels)
        return StageReport(
            stage=self.name,
            engine="native" if native else "tfmot",
            changed=tuple(values),
            skipped=tuple(skipped),
            metrics={
                "most_unique_values": max(values.values()),
                "clustered_weights": size,
                "sparsity": zeros / size,
                "unique_values_per_layer": values,
            },
        )
