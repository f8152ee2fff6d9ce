"""Find again in a `tf.data` pipeline, whatever its order, what the teacher said of a sample.

A sample is known by a fingerprint of its inputs. One pass asks the teacher; after that the pipeline
looks up what was said, and a sample that the first pass did not give is an error.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from tfedge.data.nests import as_arrays
from tfedge.distillation.lesson import LABELS, TEACHERS, WEIGHTS
from tfedge.distillation.teachers import check_finite_outputs
from tfedge.errors import DataError, SettingsError

UNKNOWN = "tfedge: a sample that the teacher was not asked about"

# What the teachers of a distillation said of a pipeline, as long as it lives.
_Known = tuple[Any, list[list[np.ndarray]]]
_known: "weakref.WeakKeyDictionary[Any, dict[bytes, _Known]]" = weakref.WeakKeyDictionary()


def with_teachers(dataset: Any, teachers: Sequence[Any]) -> tuple[Any, list[list[np.ndarray]]]:
    """A pipeline of batches whose y holds what the teachers say of each sample.

    Args:
        dataset: Batches `x`, `(x, y)` or `(x, y, sample_weight)`; the same samples in every pass,
            in any order.
        teachers: Open teachers. They are asked in one pass over the pipeline, now.

    Returns:
        The pipeline, and what each teacher said, sample by sample.

    Raises:
        SettingsError: The pipeline repeats for ever.
        DataError: It is empty.
        TrainingError: A teacher says NaN.
    """
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise SettingsError(
            "What a teacher says is kept from one pass over the data. Received: a tf.data.Dataset "
            "that repeats for ever. Remove `.repeat()`, or set `cache=False`."
        )
    sample = _zeros(dataset)
    who = b"".join(teacher.identity(sample) for teacher in teachers)
    said = _known.setdefault(dataset, {})
    if who not in said:
        said[who] = _asked(dataset, teachers)
    table, outputs = said[who]
    told = tf.nest.map_structure(tf.constant, tuple(tuple(parts) for parts in outputs))
    pack = _packing(table, told)
    joined = dataset.map(pack, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return joined, outputs


def _packing(table: Any, told: Any) -> Any:
    """The function that joins to a batch what was told of its samples."""

    def packed(*element: Any) -> Any:
        x, y, weights = (*element, None, None)[:3]
        rows = table.lookup(fingerprints(x))
        known = tf.debugging.assert_greater_equal(rows, tf.constant(0, tf.int64), message=UNKNOWN)
        with tf.control_dependencies([known]):
            rows = tf.identity(rows)
        content = {TEACHERS: tf.nest.map_structure(lambda part: tf.gather(part, rows), told)}
        content |= {} if y is None else {LABELS: y}
        content |= {} if weights is None else {WEIGHTS: weights}
        return x, content

    return packed


@contextmanager
def known_samples() -> Iterator[None]:
    """Say in words what went wrong where a pipeline gives a sample that is not known.

    Raises:
        DataError: In place of TensorFlow's own error.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if UNKNOWN not in str(error):
            raise
        raise DataError(
            "What a teacher says is kept for each sample, so every pass over the data must give "
            "the same ones. Received: a tf.data.Dataset that gave others in training than before "
            "(it augments, or draws samples). Set `cache=False` to run the teacher in the "
            "training step."
        ) from None


def fingerprints(x: Any) -> Any:
    """(samples,): one int64 for the inputs of each sample (FarmHash, 64 bits).

    Args:
        x: Tensor, or tuple or dict of tensors; first axis the samples.
    """
    parts = [
        tf.raw_ops.Fingerprint(data=part, method=tf.constant("farmhash64"))
        for part in tf.nest.flatten(x)
    ]
    joined = parts[0]
    if len(parts) > 1:
        joined = tf.raw_ops.Fingerprint(
            data=tf.concat(parts, axis=1), method=tf.constant("farmhash64")
        )
    return tf.bitcast(joined, tf.int64)


def _asked(dataset: Any, teachers: Sequence[Any]) -> _Known:
    keys: list[np.ndarray] = []
    said: list[list[list[np.ndarray]]] = [[] for _ in teachers]
    count = 0
    for element in dataset:
        x = element[0] if isinstance(element, tuple) else element
        keys.append(fingerprints(x).numpy())
        arrays = as_arrays(tf.nest.map_structure(lambda part: part.numpy(), x), "x")
        for teacher, batches in zip(teachers, said, strict=True):
            batches.append(teacher.outputs(arrays))
            check_finite_outputs(batches[-1], teacher, count)
        count += len(keys[-1])
    if not keys:
        raise DataError("Data must hold at least one sample. Received: an empty tf.data.Dataset.")
    unique, rows = np.unique(np.concatenate(keys), return_index=True)
    outputs = [[np.concatenate(parts) for parts in zip(*batches, strict=True)] for batches in said]
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(unique, rows.astype(np.int64)), default_value=-1
    )
    return table, outputs


def _zeros(dataset: Any) -> Any:
    """A sample of the pipeline's shape, to tell teachers apart with."""
    spec = dataset.element_spec
    spec = spec[0] if isinstance(spec, tuple) else spec
    zeros = tf.nest.map_structure(
        lambda s: np.zeros((1, *(1 if axis is None else axis for axis in s.shape[1:])),
                           s.dtype.as_numpy_dtype), spec,
    )  # fmt: skip
    return as_arrays(zeros, "x")
