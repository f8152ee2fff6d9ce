"""Say which zeros and values a fake-quantised model keeps, and whether its file has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.inspection import WeightRecord
from tfedge.models import keras_of


@dataclass(frozen=True)
class Kept:
    """What a fake-quantised kernel holds that an earlier stage gave it.

    Attributes:
        layer: Name of the layer.
        size: How many weights the kernel has.
        zeros: How many of them are to be zero.
        clusters: How many values it may have; `None` for any number.
        now_zeros: How many are zero as the layer computes.
        distinct: How many distinct integers a file stores of it. A folded batch normalisation with
            negative factors adds the negatives of integers, one that is zero adds zero.
    """

    layer: str
    size: int
    zeros: int
    clusters: int | None
    now_zeros: int
    distinct: int


def kept_kernels(model: Any) -> tuple[Kept, ...]:
    """The kernels of a fake-quantised model, of either Keras, that keep zeros or clusters.

    Args:
        model: From `Quantize.prepare`, trained or not.
    """
    return _native(model) if keras_of(model) == "keras" else _tfmot(model)


def lost_in_model(kept: Sequence[Kept]) -> str:
    """What a model has lost of what it was to keep; empty where nothing is."""
    for row in kept:
        if row.now_zeros < row.zeros:
            return f"layer {row.layer!r} has {row.now_zeros} zeros, before it had {row.zeros}"
        if row.clusters is not None and row.distinct > 2 * row.clusters + 1:
            return f"layer {row.layer!r} has {row.distinct} values, before it had {row.clusters}"
    return ""


def lost_in_file(kept: Sequence[Kept], weights: Sequence[WeightRecord]) -> str:
    """What a file has lost of what its model keeps; empty where nothing is.

    A kernel is looked for among those of its size, as the converter turns axes and gives names of
    its own.

    Args:
        kept: Of the model.
        weights: Of the file.
    """
    for row in kept:
        alike = [w for w in weights if w.is_kernel and int(np.prod(w.shape)) == row.size]
        most = row.size if row.clusters is None else row.distinct
        if alike and not any(w.distinct <= most and w.zeros >= row.zeros for w in alike):
            best = min(alike, key=lambda weight: weight.distinct)
            return (
                f"the kernel of layer {row.layer!r} is to have {row.zeros} zeros and at most "
                f"{most} values, in the file it has {best.zeros} and {best.distinct}"
            )
    return ""


def doubled(kept: Sequence[Kept]) -> tuple[str, ...]:
    """Sentences on kernels of which a file stores more values than there are clusters."""
    return tuple(
        f"{row.layer}: the batch normalisation behind it has factors below or at zero, so the file "
        f"stores {row.distinct} values for {row.clusters} clusters."
        for row in kept
        if row.clusters is not None and row.distinct > row.clusters
    )


def _native(model: Any) -> tuple[Kept, ...]:
    from keras import ops

    from tfedge.engines.native.cluster_keeping import held_integers, is_held
    from tfedge.engines.native.export import linear
    from tfedge.engines.native.fake_quant import QuantizedWeights, folded_scale
    from tfedge.engines.native.graph import read_graph
    from tfedge.engines.native.place import folded_batch_norm

    graph = read_graph(model)
    found: dict[str, Kept] = {}
    for call in graph.calls:
        wrapper = call.operation
        if not isinstance(wrapper, QuantizedWeights) or not (wrapper.masks or wrapper.holds):
            continue
        weights = wrapper.effective_weights()
        if "kernel" not in weights:
            continue
        kernel = ops.convert_to_numpy(weights["kernel"])
        distinct, clusters = kernel.size, None
        if is_held(wrapper):
            behind = folded_batch_norm(graph, call, linear(call))
            factors = 1 if behind is None else ops.convert_to_numpy(folded_scale(behind.operation))
            distinct = len(np.unique(held_integers(wrapper, factors)))
            clusters = wrapper.holds["kernel"].shape[0]
        zeros = sum(int(np.sum(~ops.convert_to_numpy(mask))) for mask in wrapper.masks[:1])
        found[call.name] = Kept(
            call.name, kernel.size, zeros, clusters, int(np.sum(kernel == 0)), distinct
        )
    return tuple(found.values())


def _tfmot(model: Any) -> tuple[Kept, ...]:
    from tfedge.engines import tfmot

    found = []
    for wrapper in tfmot.quantized_kernels(model):
        for name, values in tfmot.rounded_weights(wrapper).items():
            if "kernel" not in name:
                continue
            zeros = tfmot.kept_zeros(wrapper, name)
            distinct, clusters = values.size, None
            if wrapper.clusters:
                clusters = wrapper.clusters
                distinct = len(np.unique(values))
                if tfmot.has_factors_below_zero(model, wrapper):
                    distinct = len(np.unique(np.concatenate([values, -values, 0 * values], None)))
            row = (wrapper.layer.name, values.size, zeros, clusters, int(np.sum(values == 0)))
            found.append(Kept(*row, distinct))
    return tuple(found)
