"""Choose the weights that stay: masks from scores.

All functions take arrays or tensors and return bool tensors, `True` where a weight stays. The
counts, the rounding and the ties are TFMOT's.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def kept_count(size: int, sparsity: Any) -> Any:
    """How many of `size` weights stay at a sparsity: rounded half to even, at least one.

    Example:
        >>> int(kept_count(10, 0.75)), int(kept_count(10, 0.99))
        (2, 1)
    """
    share = 1 - tf.cast(sparsity, tf.float32)
    return tf.cast(tf.maximum(tf.round(tf.cast(size, tf.float32) * share), 1), tf.int32)


def top_mask(scores: Any, sparsity: Any) -> Any:
    """Keep the highest scores; scores equal to the last one kept stay too.

    Args:
        scores: Any shape, float.
        sparsity: Fraction to drop, in `[0, 1)`; may be a tensor.

    Example:
        >>> top_mask([0.1, 3.0, 0.2, 4.0], 0.5).numpy()
        array([False,  True, False,  True])
    """
    keys = _ordered(scores)
    flat = tf.reshape(keys, [-1])
    return keys >= _highest(flat, kept_count(tf.size(flat), sparsity))


def global_masks(scores: Sequence[Any], sparsity: Any) -> list[Any]:
    """Keep the highest scores of several kernels together, and the best one of each.

    A kernel that lost every weight would cut the network in two; so its highest score stays.

    Example:
        >>> [mask.numpy().tolist() for mask in global_masks([[1.0, 2.0], [7.0, 9.0]], 0.5)]
        [[False, True], [True, True]]
    """
    keys = [_ordered(score) for score in scores]
    flat = tf.concat([tf.reshape(key, [-1]) for key in keys], 0)
    threshold = _highest(flat, kept_count(tf.size(flat), sparsity))
    return [key >= tf.minimum(threshold, tf.reduce_max(key)) for key in keys]


def block_mask(scores: Any, sparsity: Any, block_size: Sequence[int]) -> Any:
    """Keep or drop whole blocks of a matrix, by their mean score.

    Blocks start at the first row and column; those at the far edges may be cut off.

    Args:
        scores: Rank 2, or a 1×1 convolution's kernel (1, 1, in, out).
        sparsity: Fraction of blocks to drop.
        block_size: Height and width of a block.

    Example:
        >>> block_mask([[1.0, 1.0, 0.0, 9.0]], 0.5, (1, 2)).numpy()
        array([[False, False,  True,  True]])
    """
    scores = tf.cast(scores, tf.float32)
    shape = scores.shape
    matrix = tf.reshape(scores, shape[-2:])
    height, width = block_size
    kept = top_mask(_block_means(matrix, height, width), sparsity)
    spread = tf.repeat(tf.repeat(kept, height, axis=0), width, axis=1)
    return tf.reshape(spread[: shape[-2], : shape[-1]], shape)


def two_of_four_mask(scores: Any) -> Any:
    """Keep the two best of every four weights along the input channels.

    A rest of fewer than four counts as if filled up with zeros.

    Args:
        scores: Rank 2 (in, out) or rank 4 (height, width, in, out).

    Example:
        >>> two_of_four_mask([[4.0], [1.0], [3.0], [2.0]]).numpy().ravel()
        array([ True, False,  True, False])
    """
    scores = tf.cast(scores, tf.float32)
    by_input = tf.linalg.matrix_transpose(scores)  # (…, out, in)
    inputs = by_input.shape[-1]
    filled = tf.pad(by_input, [[0, 0]] * (len(by_input.shape) - 1) + [[0, -inputs % 4]])
    groups = tf.reshape(filled, (-1, 4))
    best = tf.math.top_k(groups, k=2).indices
    kept = tf.reduce_any(tf.one_hot(best, 4, on_value=True, off_value=False), axis=1)
    kept = tf.reshape(kept, tf.shape(filled))[..., :inputs]
    return tf.linalg.matrix_transpose(kept)


def kernel_mask(
    scores: Any, sparsity: Any, *, block_size: Sequence[int] = (1, 1), pattern: str | None = None
) -> Any:
    """The mask of one kernel: by pattern, by blocks or by single weights."""
    if pattern is not None:
        return two_of_four_mask(scores)
    if tuple(block_size) != (1, 1):
        return block_mask(scores, sparsity, block_size)
    return top_mask(scores, sparsity)


def _block_means(matrix: Any, height: int, width: int) -> Any:
    rows, columns = matrix.shape
    edges = [[0, -rows % height], [0, -columns % width]]
    shape = ((rows + edges[0][1]) // height, height, (columns + edges[1][1]) // width, width)
    sums = tf.reduce_sum(tf.reshape(tf.pad(matrix, edges), shape), axis=(1, 3))
    counts = tf.reshape(tf.pad(tf.ones_like(matrix), edges), shape)
    return sums / tf.reduce_sum(counts, axis=(1, 3))


def _ordered(scores: Any) -> Any:
    """Scores as int32 in the same order: their bits, those of negative scores turned over."""
    bits = tf.bitcast(tf.cast(scores, tf.float32), tf.int32)
    turned = tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, tf.int32.max), bits)
    return tf.where(bits == tf.int32.min, 0, turned)  # -0.0 is as high as 0.0


def _highest(keys: Any, count: Any) -> Any:
    """The lowest of the `count` highest keys.

    Found bit by bit from above, in 32 counts over the keys: several times faster than sorting.
    """

    def add_bit(place: Any, low: Any) -> tuple[Any, Any]:
        higher = low + tf.bitwise.left_shift(1, 31 - place)
        enough = tf.reduce_sum(tf.cast(keys >= higher, tf.int32)) >= count
        return place + 1, tf.where(enough, higher, low)

    start = (tf.constant(0), tf.constant(tf.int32.min))
    return tf.while_loop(lambda place, low: place < 32, add_bit, start)[1]
