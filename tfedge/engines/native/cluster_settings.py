"""Hold and check the settings of weight clustering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.engines.native.prune_settings import check_names, check_option
from tfedge.errors import SettingsError

INITIALIZATIONS = ("linear", "random", "density", "kmeans++")
AGGREGATIONS = ("sum", "avg")


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """What is clustered and how far; `Cluster` says what each setting means.

    Raises:
        SettingsError: A setting is out of range, or two of them contradict each other.
    """

    number_of_clusters: int = 16
    initialization: str = "linear"
    per_channel: bool = False
    layers: Sequence[str] | None = None
    per_layer: Mapping[str, int] | None = None
    keep_sparsity: bool | None = None
    gradient_aggregation: str = "sum"
    kmeans_steps: int | None = None

    def __post_init__(self) -> None:
        self._check_clusters(self.number_of_clusters, "number_of_clusters")
        for name, value in (self.per_layer or {}).items():
            self._check_clusters(value, f"per_layer[{name!r}]")
        check_option(self.initialization, INITIALIZATIONS, "initialization")
        check_option(self.gradient_aggregation, AGGREGATIONS, "gradient_aggregation")
        check_names(self.layers, "layers")
        steps = self.kmeans_steps
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool)):
            raise SettingsError(f"`kmeans_steps` is a whole number from 0. Received: {steps!r}.")
        if steps is not None and steps < 0:
            raise SettingsError(f"`kmeans_steps` is a whole number from 0. Received: {steps}.")

    def named(self) -> tuple[str, ...]:
        """The layers that the settings name."""
        return tuple(dict.fromkeys((*(self.layers or ()), *(self.per_layer or ()))))

    def clusters_of(self, layer: str) -> int:
        """How many clusters a layer is to have."""
        return (self.per_layer or {}).get(layer, self.number_of_clusters)

    def keeps_zeros(self, layer: str, weights: Any) -> bool:
        """Whether the zeros of a kernel are kept: as asked, by default where it has some.

        Raises:
            SettingsError: There are too few clusters for that.
        """
        has_zeros = 0 < np.count_nonzero(weights) < np.size(weights)
        if self.keep_sparsity is False or not (self.keep_sparsity or has_zeros):
            return False
        if self.clusters_of(layer) < 3:
            raise SettingsError(
                f"Layer {layer!r} is to keep its zeros, and one cluster of 2 for them leaves one "
                "value for all other weights. Ask for 3 clusters or more, or set "
                "`keep_sparsity=False`."
            )
        return True

    def _check_clusters(self, value: Any, name: str) -> None:
        least = 3 if self.keep_sparsity else 2
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return
        more = ", and one more with `keep_sparsity`, as one of them is zero" if least == 3 else ""
        raise SettingsError(
            f"`{name}` is a whole number from 2{more}. Received: {value!r}. Usual are 8, 16 or 32."
        )
