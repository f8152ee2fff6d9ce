"""The losses of distillation, as functions of tensors; TensorFlow serves both Kerases.

Each returns one number per sample, so that sample weights can be applied; `weighted_mean` ends it.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

TINY = 1e-7  # probabilities are held away from 0 by this, as Keras holds them


def logits_of(outputs: Any, *, probabilities: bool, binary: bool = False) -> Any:
    """Outputs as float32 logits; of probabilities, their logarithm (binary: their log-odds).

    In a graph, what went into the softmax or sigmoid is taken, as Keras's own losses do.

    Args:
        outputs: Logits or probabilities, (samples, …, classes).
        probabilities: Which of the two they are.
        binary: Whether every unit is a probability of its own, as after a sigmoid.
    """
    if probabilities and tf.is_symbolic_tensor(outputs):
        last = outputs.op
        if last.type == ("Sigmoid" if binary else "Softmax"):
            return tf.cast(last.inputs[0], tf.float32)
    outputs = tf.cast(outputs, tf.float32)
    if not probabilities:
        return outputs
    clipped = tf.clip_by_value(outputs, TINY, 1 - TINY)
    return tf.math.log(clipped) - tf.math.log1p(-clipped) if binary else tf.math.log(clipped)


def soft_label_loss(
    student: Any,
    teachers: Sequence[Any],
    *,
    temperature: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Any:
    """Kullback-Leibler divergence of the student's softened classes from the teachers'.

    `T² · Σ q (log q − log p)` with `p = softmax(student / T)` and `q` the mean of the teachers'
    `softmax(teacher / T)`. The factor keeps the gradients' size whatever the temperature is
    (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015).

    Args:
        student: Logits, (samples, …, classes).
        teachers: Logits of each teacher, of the same shape.
        temperature: T; above 1 the smaller probabilities count for more.
        weights: Of the teachers; they are scaled to sum to one. Default: all alike.

    Returns:
        (samples,): the mean over all axes between samples and classes.

    Example:
        >>> z = tf.constant([[2.0, 0.0, -1.0]])
        >>> abs(float(soft_label_loss(z, [z], temperature=3.0)[0])) < 1e-5
        True
    """
    softened = [tf.nn.softmax(_float(teacher) / temperature) for teacher in teachers]
    q = _mean_of(softened, weights)
    crossed = tf.nn.softmax_cross_entropy_with_logits(
        labels=q, logits=_float(student) / temperature
    )
    entropy = -tf.reduce_sum(tf.math.xlogy(q, q), axis=-1)
    return temperature**2 * per_sample(crossed - entropy)


def soft_binary_loss(
    student: Any,
    teachers: Sequence[Any],
    *,
    temperature: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Any:
    """The same as `soft_label_loss` where every unit is a yes or no of its own.

    Args:
        student: Logits, (samples, …, units).
        teachers: Logits of each teacher, of the same shape.
        temperature: As for `soft_label_loss`.
        weights: As for `soft_label_loss`.

    Returns:
        (samples,): the mean over all other axes.
    """
    q = _mean_of([tf.sigmoid(_float(teacher) / temperature) for teacher in teachers], weights)
    z = _float(student) / temperature
    crossed = tf.nn.sigmoid_cross_entropy_with_logits(labels=q, logits=z)
    entropy = -tf.math.xlogy(q, q) - tf.math.xlogy(1 - q, 1 - q)
    return temperature**2 * per_sample(crossed - entropy)


def value_loss(
    student: Any, teachers: Sequence[Any], *, weights: Sequence[float] | None = None
) -> Any:
    """Mean squared error from the mean of the teachers' outputs, for regression.

    Args:
        student: (samples, …).
        teachers: Of the same shape.
        weights: Of the teachers; they are scaled to sum to one. Default: all alike.

    Returns:
        (samples,)
    """
    target = _mean_of([_float(teacher) for teacher in teachers], weights)
    return per_sample(tf.math.squared_difference(_float(student), target))


def feature_loss(student: Any, teacher: Any, projection: Any = None) -> Any:
    """Mean squared error between what a layer of each gives.

    Args:
        student: (samples, …, channels).
        teacher: (samples, …, its channels). A map of another height and width is resized
            (bilinear) to the student's.
        projection: Matrix (channels, its channels) that the student's channels go through: a dense
            layer, or on maps a 1×1 convolution. Default: none.
            (Romero et al., "FitNets: Hints for Thin Deep Nets", 2015.)

    Returns:
        (samples,)
    """
    student = _float(student)
    if projection is not None:
        student = tf.tensordot(student, _float(projection), axes=1)
    return per_sample(tf.math.squared_difference(student, _of_size(_float(teacher), student)))


def attention_loss(student: Any, teacher: Any) -> Any:
    """Squared distance between attention maps: where in the image a layer is active.

    A map is the sum of squares over the channels, scaled to length one. Channels may differ.
    (Zagoruyko and Komodakis, "Paying More Attention to Attention", 2017.)

    Args:
        student: (samples, height, width, channels), or with one spatial axis.
        teacher: The same with channels of its own; a map of another size is resized (bilinear).

    Returns:
        (samples,), between 0 and 2.
    """
    student = tf.reduce_sum(tf.square(_float(student)), axis=-1, keepdims=True)
    teacher = tf.reduce_sum(tf.square(_float(teacher)), axis=-1, keepdims=True)
    maps = [_rows(student), _rows(_of_size(teacher, student))]
    first, second = (tf.math.l2_normalize(rows, axis=-1, epsilon=1e-12) for rows in maps)
    return tf.reduce_sum(tf.math.squared_difference(first, second), axis=-1)


def distance_loss(student: Any, teacher: Any) -> Any:
    """Huber loss between the distances of samples, each set scaled to a mean of one.

    Args:
        student: (samples, …); the shapes of the two need not agree.
        teacher: (samples, …).

    Returns:
        (samples,): for each, the mean over all samples of the batch.
        (Park et al., "Relational Knowledge Distillation", 2019, equation 5.)
    """
    pairs = [_distances(_rows(_float(side))) for side in (student, teacher)]
    return tf.reduce_mean(_huber(pairs[0] - pairs[1]), axis=-1)


def angle_loss(student: Any, teacher: Any) -> Any:
    """Huber loss between the cosines of the angles that triplets of samples form.

    Args:
        student: (samples, …); the shapes of the two need not agree.
        teacher: (samples, …).

    Returns:
        (samples,): for each as the corner, the mean over all pairs of the batch.
        (Park et al., "Relational Knowledge Distillation", 2019, equation 7.)
    """
    cosines = [_cosines(_rows(_float(side))) for side in (student, teacher)]
    return tf.reduce_mean(_huber(cosines[0] - cosines[1]), axis=[1, 2])


def relational_loss(student: Any, teacher: Any) -> Any:
    """`distance_loss + 2 · angle_loss`, the weighting of Park et al. (2019)."""
    return distance_loss(student, teacher) + 2 * angle_loss(student, teacher)


FEATURE_LOSSES = {
    "mse": feature_loss,
    "attention": attention_loss,
    "relational": relational_loss,
}


def weighted_mean(losses: Any, weights: Any = None) -> Any:
    """One number of a batch: the sum of weighted losses over the number of samples, as Keras does.

    Args:
        losses: (samples,)
        weights: (samples,) or (samples, 1). Default: one each.
    """
    if weights is not None:
        losses = losses * per_sample(_float(weights))
    count = tf.maximum(tf.shape(losses)[0], 1)
    return tf.reduce_sum(losses) / tf.cast(count, losses.dtype)


def per_sample(values: Any) -> Any:
    """The mean over all axes but the first."""
    rank = values.shape.rank
    return values if rank == 1 else tf.reduce_mean(values, axis=list(range(1, rank)))


def _float(values: Any) -> Any:
    return tf.cast(values, tf.float32)  # under mixed_float16 too


def _mean_of(values: Sequence[Any], weights: Sequence[float] | None) -> Any:
    if len(values) == 1:
        return values[0]
    shares = [1.0] * len(values) if weights is None else weights
    total = sum(shares)
    return tf.add_n([value * (share / total) for value, share in zip(values, shares, strict=True)])


def _rows(values: Any) -> Any:
    return tf.reshape(values, [tf.shape(values)[0], -1])


def _of_size(teacher: Any, student: Any) -> Any:
    """The teacher's map in the height and width of the student's."""
    if teacher.shape.rank == 4 and teacher.shape[1:3] != student.shape[1:3]:
        return tf.image.resize(teacher, student.shape[1:3])
    return teacher


def _distances(rows: Any) -> Any:
    """Euclidean distances of all pairs, over the mean of those of different samples."""
    squares = tf.reduce_sum(tf.square(rows), axis=-1)
    between = squares[:, None] + squares[None, :] - 2 * tf.matmul(rows, rows, transpose_b=True)
    apart = between > 1e-12
    # the square root's slope at zero is infinite: it must not see zeros
    distances = tf.where(apart, tf.sqrt(tf.where(apart, between, 1.0)), 0.0)
    count = tf.maximum(tf.reduce_sum(tf.cast(apart, tf.float32)), 1.0)
    return distances / tf.maximum(tf.reduce_sum(distances) / count, 1e-12)


def _cosines(rows: Any) -> Any:
    """[corner, first, second]: cosine of the angle at a corner."""
    edges = tf.math.l2_normalize(rows[None, :, :] - rows[:, None, :], axis=-1, epsilon=1e-12)
    return tf.matmul(edges, edges, transpose_b=True)


def _huber(difference: Any) -> Any:
    size = tf.abs(difference)
    return tf.where(size <= 1, 0.5 * tf.square(difference), size - 0.5)
