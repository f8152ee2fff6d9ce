"""Read batches from a `tf.data` pipeline or a generator function."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tfedge.data.nests import Arrays, as_arrays, concatenate, leaves, map_leaves
from tfedge.errors import DataError

Rows = tuple[Arrays, ...]  # (x,), (x, y) or (x, y, sample_weight)


def is_dataset(value: Any) -> bool:
    """Whether `value` is a `tf.data.Dataset`, found without loading TensorFlow."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(value, tensorflow.data.Dataset)


def is_stream(value: Any) -> bool:
    """Whether `value` is a stream: a `tf.data.Dataset`, or a function that returns batches."""
    return is_dataset(value) or (callable(value) and not isinstance(value, np.ndarray))


def check_ends(stream: Any) -> None:
    """Refuse a `tf.data` pipeline that repeats for ever.

    Raises:
        DataError: It would never end.
    """
    if is_dataset(stream) and int(stream.cardinality()) == -1:
        raise DataError(
            "Data must end: one pass is one epoch. Received: a tf.data.Dataset that repeats for "
            "ever. Remove `.repeat()`, or add `.take(batches)`."
        )


def read(stream: Any, batched: bool | None = None) -> Iterator[Rows]:
    """Batches of one pass over a stream, in the size that it gives them.

    Args:
        stream: A `tf.data.Dataset`, or a function without arguments that returns an iterable.
            Elements are `x`, `(x, y)` or `(x, y, sample_weight)`, as for Keras.
        batched: Whether elements are batches. Default: as `looks_batched` says.

    Returns:
        Iterator of `(x,)`, `(x, y)` or `(x, y, sample_weight)` as NumPy arrays.

    Raises:
        DataError: It is empty, or its elements have no such form.
    """
    empty = True
    for element in _elements(stream):
        rows = _rows(element)
        if empty:
            batched = looks_batched(stream, rows) if batched is None else batched
            empty = False
        yield _checked(rows if batched else select(rows, np.newaxis))
    if empty:
        raise DataError(
            "Data must hold at least one sample. Received: a stream that gave nothing. A function "
            "must make a new iterator at every call."
        )


def looks_batched(stream: Any, rows: Rows) -> bool:
    """Whether elements look like batches: x, y and weights agree in their first axis.

    Inputs alone say little: a `tf.data.Dataset` counts as batched if its first axis is open (as
    `.batch(n)` leaves it), a generator function always does, as in Keras.
    """
    firsts = {leaf.shape[:1] for part in rows for leaf in leaves(part)}
    if len(firsts) > 1 or () in firsts:
        return False
    if len(rows) == 1 and is_dataset(stream):
        import tensorflow as tf

        specs = tf.nest.flatten(stream.element_spec)
        return all(spec.shape.rank and spec.shape[0] is None for spec in specs)
    return True


def is_batched(stream: Any) -> bool:
    """Whether the elements of a stream look like batches, judged by its first one."""
    for element in _elements(stream):
        return looks_batched(stream, _rows(element))
    return True


def rebatch(batches: Iterable[Rows], size: int) -> Iterator[Rows]:
    """The same samples in batches of `size`; the last one may be smaller.

    Example:
        >>> parts = [(np.arange(3),), (np.arange(3, 5),)]
        >>> [rows[0].tolist() for rows in rebatch(parts, 2)]
        [[0, 1], [2, 3], [4]]
    """
    pending: list[Rows] = []
    held = 0
    for batch in batches:
        pending.append(batch)
        held += count(batch)
        if held < size:
            continue
        rows = join(pending)
        whole = held - held % size
        for start in range(0, whole, size):
            yield select(rows, slice(start, start + size))
        held -= whole
        pending = [select(rows, slice(whole, None))] if held else []
    if pending:
        yield join(pending)


def shuffled(batches: Iterable[Rows], window: int, seed: int) -> Iterator[Rows]:
    """The same samples, shuffled within windows of `window` samples."""
    random = np.random.RandomState(seed)
    for rows in rebatch(batches, window):
        yield select(rows, random.permutation(count(rows)))


def draw_rows(batches: Iterable[Rows], samples: int, seed: int) -> Rows:
    """`samples` of a stream at random, in one pass, holding no more than these in memory."""
    random = np.random.RandomState(seed)
    kept: Rows | None = None
    keys = np.empty(0)
    for batch in batches:
        keys = np.concatenate([keys, random.random_sample(count(batch))])
        merged = batch if kept is None else join([kept, batch])
        lowest = np.argsort(keys, kind="stable")[:samples]
        keys, kept = keys[lowest], select(merged, lowest)
    if kept is None:
        raise DataError("Data must hold at least one sample. Received: none.")
    return kept


def join(parts: list[Rows]) -> Rows:
    """Batches joined to one.

    Raises:
        DataError: They differ in form or in shape.
    """
    arities = sorted({len(part) for part in parts})
    if len(arities) > 1:
        raise DataError(
            "Every element must have the form of the first one. Received: elements of "
            f"{' and of '.join(str(a) for a in arities)} parts (x, y, sample_weight)."
        )
    return tuple(concatenate(column) for column in zip(*parts, strict=True))


def select(rows: Rows, index: Any) -> Rows:
    """The samples of a batch at `index` (a slice, an index array, or `np.newaxis`)."""
    return tuple(map_leaves(lambda leaf: leaf[index], part) for part in rows)


def count(rows: Rows) -> int:
    """How many samples a batch holds."""
    return int(leaves(rows[0])[0].shape[0])


def _elements(stream: Any) -> Iterator[Any]:
    source: Any = stream() if not is_dataset(stream) else stream
    if is_dataset(source):
        check_ends(source)
        return iter(source.as_numpy_iterator())
    if not isinstance(source, Iterable):
        raise DataError(
            "A function that gives data must return an iterable of batches. Received: "
            f"{type(source).__name__} from {_name(stream)}."
        )
    return iter(source)


def _rows(element: Any) -> Rows:
    parts = tuple(element) if isinstance(element, tuple | list) else (element,)
    while len(parts) > 1 and parts[-1] is None:  # (x, y, None)
        parts = parts[:-1]
    if not 1 <= len(parts) <= 3 or parts[0] is None:
        raise DataError(
            "Elements of a stream are x, (x, y) or (x, y, sample_weight). Received: "
            f"{len(parts)} parts. Put several inputs into a tuple or dict of their own: "
            "`((image, angle), label)`."
        )
    return tuple(
        as_arrays(part, name)
        for part, name in zip(parts, ("x", "y", "sample_weight"), strict=False)
    )


def _checked(rows: Rows) -> Rows:
    firsts = {leaf.shape[:1] for part in rows for leaf in leaves(part)}
    if len(firsts) > 1 or () in firsts:
        shapes = ", ".join(str(leaf.shape) for part in rows for leaf in leaves(part))
        raise DataError(
            "The parts of a batch must agree in their first axis, the samples. Received shapes: "
            f"{shapes}. If elements are single samples, pass `batched=False`."
        )
    return rows


def _name(function: Callable[..., Any]) -> str:
    return f"`{getattr(function, '__qualname__', repr(function))}`"
