"""Choose cluster centroids, and give each weight the nearest of them.

Plain functions of arrays and tensors. Initialisation, assignment and gradients are TFMOT's; finding
the nearest centroid costs less here, as no tensor of weights × centroids is made.
"""

from typing import Any

import numpy as np
import tensorflow as tf

GRID = 30  # points at which density-based initialisation looks at the distribution, as in TFMOT
GAP = 0.01  # by which that grid reaches beyond the weights
KMEANS_SEED = 9  # TFMOT's
LLOYD_STEPS = 300  # k-means stands still long before
MOST_VALUES = 1024  # of a clustered kernel; weights of 16 bits have more
MOST_OF_CHANNEL = 64
FEW_CENTROIDS = 64  # up to here one comparison per centroid is faster than a binary search


def initial_centroids(
    weights: Any,
    clusters: int,
    *,
    initialization: str = "linear",
    keep_zero: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """The centroids that clustering starts with.

    Args:
        weights: Float array of any shape.
        clusters: How many.
        initialization: `"linear"`, evenly spaced from the smallest weight to the largest;
            `"random"`, drawn evenly from that interval; `"density"`, by quantiles of the weights;
            or `"kmeans++"`.
        keep_zero: Whether one centroid is zero; the others are shared out to negative and positive
            weights by their numbers.
        seed: Of `"random"`; k-means++ draws from a seed of its own, TFMOT's.

    Returns:
        Float32 array of shape `(clusters,)`. Where the weights have no more distinct values than
        that, it is those values: clustering then changes nothing.

    Example:
        >>> initial_centroids(np.float32([-1, 0.3, 0.5, 0.6, 3]), 3).tolist()
        [-1.0, 1.0, 3.0]
        >>> initial_centroids(np.float32([-2, 5, 5, -2]), 3).tolist()
        [-2.0, 5.0]
    """
    weights = np.asarray(weights, np.float32).ravel()
    distinct = np.unique(weights)
    if len(distinct) <= clusters:
        return distinct + np.float32(0)  # no minus zero
    draw = np.random.default_rng(seed)
    if not keep_zero:
        return _over_interval(weights, clusters, initialization, False, draw)
    negative, positive = weights[weights < 0], weights[weights > 0]
    share = len(negative) / (len(negative) + len(positive))
    below = int(np.rint((clusters - 1) * share))
    parts = ((negative, below), (positive, clusters - 1 - below))
    low, high = (_over_interval(w, n, initialization, True, draw) for w, n in parts)
    return np.concatenate([low, np.zeros(1, np.float32), high])


def _over_interval(
    weights: np.ndarray,
    clusters: int,
    initialization: str,
    keep_zero: bool,
    draw: np.random.Generator,
) -> np.ndarray:
    if not clusters:
        return np.zeros(0, np.float32)
    low, high = weights.min(), weights.max()
    if initialization == "random":
        return draw.uniform(low, high, clusters).astype(np.float32)
    if initialization == "density":
        return _by_density(weights, clusters, keep_zero)
    if initialization == "kmeans++":
        chosen = tf.raw_ops.KmeansPlusPlusInitialization(
            points=weights.reshape(-1, 1),
            num_to_sample=tf.constant(clusters, tf.int64),
            seed=tf.constant(KMEANS_SEED, tf.int64),
            num_retries_per_sample=tf.constant(-1, tf.int64),
        )
        return chosen.numpy().ravel()
    return tf.linspace(low, high, clusters).numpy()


def _by_density(weights: np.ndarray, clusters: int, keep_zero: bool) -> np.ndarray:
    """Points of a grid over the weights where their distribution passes each quantile."""
    low, high = weights.min(), weights.max()
    gap = np.float32(GAP)
    if keep_zero:
        gap = min(gap, min(abs(low), abs(high)) / 2)
    grid = tf.linspace(low - gap, high + gap, GRID).numpy()
    counts = np.searchsorted(np.sort(weights), grid, side="right")
    shares = counts.astype(np.float32) / np.float32(weights.size)
    quantiles = tf.linspace(np.float32(0.01), np.float32(1), clusters).numpy()
    return grid[np.minimum(np.searchsorted(shares, quantiles, side="right"), GRID - 1)]


def refined(
    weights: Any, centroids: Any, *, keep_zero: bool = False, steps: int = LLOYD_STEPS
) -> np.ndarray:
    """Centroids after steps of k-means (Lloyd's algorithm): each becomes the mean of its weights.

    Args:
        weights: Float array of any shape.
        centroids: Shape `(clusters,)`.
        keep_zero: Whether a centroid that is zero stays so.
        steps: At most; it ends where no centroid moves.

    Returns:
        Float32 array of shape `(clusters,)`, ascending. One without weights stays where it was.

    Example:
        >>> refined([0.0, 1.0, 10.0, 14.0], [0.0, 9.0]).tolist()
        [0.5, 12.0]
    """
    ordered = np.sort(np.asarray(weights, np.float64).ravel())
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    table = np.sort(np.asarray(centroids, np.float64))
    for _ in range(steps):
        ends = np.searchsorted(ordered, (table[1:] + table[:-1]) / 2, side="right")
        ends = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(ends)
        means = np.where(counts, np.diff(sums[ends]) / np.maximum(counts, 1), table)
        if keep_zero:
            means = np.where(table == 0, 0.0, means)
        if np.array_equal(means, table):
            break
        table = np.sort(means)
    return table.astype(np.float32)


def centroids_of(
    weights: Any,
    clusters: int,
    *,
    initialization: str = "linear",
    axis: int | None = None,
    keep_zero: bool = False,
    steps: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Initial centroids of a kernel, k-means steps included.

    Args:
        weights: The kernel.
        clusters: How many at most; per channel where `axis` is given.
        initialization: As for `initial_centroids`.
        axis: Axis of the channels that have centroids of their own; `None` for one set.
        keep_zero: Whether one centroid is zero and stays so.
        steps: Steps of k-means.
        seed: Of `"random"`.

    Returns:
        Float32 array of shape `(k,)` or `(channels, k)`, `k <= clusters`; channels with fewer
        distinct values repeat the last one.
    """

    def of(values: np.ndarray) -> np.ndarray:
        first = initial_centroids(
            values, clusters, initialization=initialization, keep_zero=keep_zero, seed=seed
        )
        return refined(values, first, keep_zero=keep_zero, steps=steps) if steps else first

    weights = np.asarray(weights, np.float32)
    if axis is None:
        return of(weights)
    rows = [of(channel) for channel in np.moveaxis(weights, axis, 0)]
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])


def nearest(weights: Any, centroids: Any, *, axis: int | None = None) -> Any:
    """Index of the centroid nearest to each weight; halfway, of the lower one.

    Args:
        weights: Float tensor.
        centroids: Shape `(k,)`, or `(channels, k)` with `axis`.
        axis: Axis of `weights` whose indices have centroids of their own.

    Returns:
        Int32 tensor of the shape of `weights`.

    Example:
        >>> nearest(np.float32([0.1, 0.9, 7.0]), np.float32([1.0, 0.0])).numpy().tolist()
        [1, 0, 0]
    """
    weights, centroids = tf.convert_to_tensor(weights), tf.convert_to_tensor(centroids)
    order = tf.argsort(centroids, stable=True)
    table = tf.gather(centroids, order, batch_dims=len(centroids.shape) - 1)
    return tf.gather(tf.reshape(order, [-1]), _places(weights, table, axis))


def clustered(
    weights: Any, centroids: Any, *, axis: int | None = None, aggregation: str = "sum"
) -> Any:
    """Each weight replaced by its nearest centroid.

    Args:
        weights: Float tensor.
        centroids: Shape `(k,)`, or `(channels, k)` with `axis`; same type as `weights`.
        axis: Axis of `weights` whose indices have centroids of their own.
        aggregation: What reaches a centroid: the `"sum"` of its weights' gradients or their mean,
            `"avg"`. The weights get their own gradients unchanged (straight through).

    Returns:
        Tensor of the shape and type of `weights`.

    Example:
        >>> clustered(np.float32([0.1, 0.9, 7.0]), np.float32([1.0, 0.0])).numpy().tolist()
        [0.0, 1.0, 1.0]
    """
    weights, centroids = tf.convert_to_tensor(weights), tf.convert_to_tensor(centroids)
    rows = len(centroids.shape) - 1
    order = tf.argsort(tf.stop_gradient(centroids), stable=True)
    table = tf.gather(tf.stop_gradient(centroids), order, batch_dims=rows)
    places = _places(tf.stop_gradient(weights), table, axis)

    @tf.custom_gradient
    def chosen(weights: Any, centroids: Any) -> Any:
        def gradient(upstream: Any) -> tuple[Any, Any]:
            total = _sums(upstream, places, table.shape)
            if aggregation == "avg":
                total = tf.math.divide_no_nan(
                    total, _sums(tf.ones_like(upstream), places, table.shape)
                )
            return upstream, tf.gather(total, tf.argsort(order), batch_dims=rows)

        return tf.gather(tf.reshape(table, [-1]), places), gradient

    return chosen(weights, centroids)


def _sums(values: Any, places: Any, shape: Any) -> Any:
    """The sums of the values of each place in a flattened tensor of a shape, in that shape."""
    size = int(np.prod(tuple(shape)))
    flat = tf.reshape(values, [-1])
    return tf.reshape(tf.math.unsorted_segment_sum(flat, tf.reshape(places, [-1]), size), shape)


def _places(weights: Any, table: Any, axis: int | None) -> Any:
    """Places of the nearest centroids in the flattened `table`, whose rows ascend."""
    clusters = table.shape[-1]
    shape = [1] * len(weights.shape)
    start: Any = 0
    if axis is not None:
        shape[axis] = table.shape[0]
        start = tf.reshape(tf.range(table.shape[0]) * clusters, shape)
    middles = (table[..., 1:] + table[..., :-1]) / 2
    places = tf.zeros(weights.shape, tf.int32)
    if clusters <= FEW_CENTROIDS:
        for column in range(clusters - 1):
            middle = middles[column] if axis is None else tf.reshape(middles[:, column], shape)
            places += tf.cast(weights > middle, tf.int32)
        return places + start
    levels = int(clusters - 1).bit_length()
    width = 2**levels - 1
    padding = [[0, 0]] * (len(table.shape) - 1) + [[0, width - (clusters - 1)]]
    flat = tf.reshape(tf.pad(middles, padding, constant_values=np.inf), [-1])
    row: Any = 0
    if axis is not None:
        row = tf.reshape(tf.range(table.shape[0]) * width, shape)
    for level in reversed(range(levels)):
        step = 2**level
        places += step * tf.cast(weights > tf.gather(flat, row + places + step - 1), tf.int32)
    return places + start


def distinct_count(weights: Any, *, axis: int | None = None) -> int:
    """How many distinct values a kernel holds; of its channels, the one with the most.

    Example:
        >>> distinct_count(np.float32([[1, 2], [1, 3]])), distinct_count([[1, 2], [1, 3]], axis=1)
        (3, 2)
    """
    if axis is None:
        return len(np.unique(weights))
    return max(len(np.unique(channel)) for channel in np.moveaxis(np.asarray(weights), axis, 0))


def is_clustered(weights: Any) -> bool:
    """Whether a kernel looks clustered: few values, each of them twice on average.

    Zeros do not count, so that a kernel that was only pruned is none. A kernel with more than
    `MOST_VALUES` values counts as clustered per channel where each channel of its last axis is.

    Example:
        >>> is_clustered(np.float32([0, 0, 1, 1, 2, 2])), is_clustered(np.float32([0, 0, 0, 1, 2]))
        (True, False)
    """
    weights = np.asarray(weights)
    if _has_few_values(weights.ravel(), MOST_VALUES):
        return True
    channels = np.moveaxis(weights, -1, 0) if weights.ndim > 1 else ()
    return len(channels) > 0 and all(_has_few_values(c.ravel(), MOST_OF_CHANNEL) for c in channels)


def _has_few_values(values: np.ndarray, most: int) -> bool:
    kept = values[values != 0]
    distinct = len(np.unique(kept))
    several = distinct + (len(kept) < len(values)) > 1
    return several and distinct <= most and 2 * distinct <= len(kept)
