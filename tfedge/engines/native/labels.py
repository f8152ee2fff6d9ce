"""Mark channels with labels, join labels of channels that stand and fall together.

A tensor's labels are an integer array of the rank of one sample. An axis has its full size where
the labels differ along it, and size 1 where they are the same all along: the labels of an image
whose channels come last have the shape `(1, 1, channels)`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Shape = Sequence[int | None]


class Labels:
    """A union-find of labels; some of them are pinned: what they mark cannot be removed."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def fresh(self, count: int) -> np.ndarray:
        """New labels, each on its own."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def find(self, label: int) -> int:
        """What stands for all labels joined with this one."""
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def join(self, first: Any, second: Any) -> None:
        """Join labels element by element; the arrays are broadcast.

        Example:
            >>> labels = Labels()
            >>> one, two = labels.fresh(2), labels.fresh(2)
            >>> labels.join(one, two)
            >>> labels.roots()[two].tolist()
            [0, 1]
        """
        first, second = np.broadcast_arrays(first, second)
        pairs = np.unique(np.stack([first.ravel(), second.ravel()], axis=1), axis=0)
        for one, two in pairs.tolist():
            a, b = sorted((self.find(one), self.find(two)))
            if a != b:
                self._parents[b] = a
                reason = self._reasons.pop(b, None)
                if reason is not None:
                    self._reasons.setdefault(a, reason)

    def pin(self, labels: Any, reason: str, *, foremost: bool = False) -> None:
        """Say that what these labels mark cannot be removed, and why.

        The first reason stays, unless a later one is `foremost`.
        """
        for label in np.unique(labels).tolist():
            root = self.find(label)
            if foremost or root not in self._reasons:
                self._reasons[root] = reason

    def roots(self) -> np.ndarray:
        """Each label's representative."""
        return np.array([self.find(label) for label in range(len(self._parents))], dtype=np.int64)

    def reason(self, label: int) -> str | None:
        """Why a label is pinned; `None` where it is not."""
        return self._reasons.get(self.find(label))


def spread(values: Any, shape: Shape) -> np.ndarray:
    """Values at their full size; axes whose size is not known stay at 1.

    Args:
        values: Of the rank of `shape`, each axis full or 1.
        shape: Of one sample; `None` where a size is not known.

    Example:
        >>> spread(np.array([[1, 2]]), (2, 2)).tolist()
        [[1, 2], [1, 2]]
    """
    return np.broadcast_to(values, [size or 1 for size in shape])


def collapse(values: np.ndarray) -> np.ndarray:
    """The same values, with size 1 along every axis on which they do not differ.

    Not-a-number counts as equal to itself.

    Example:
        >>> collapse(np.array([[1, 2], [1, 2]])).tolist()
        [[1, 2]]
    """
    for axis in range(values.ndim):
        if values.shape[axis] > 1:
            first = values.take([0], axis)
            if np.array_equal(np.broadcast_to(first, values.shape), values, equal_nan=True):
                values = first
    return values


def varying(values: np.ndarray) -> list[int]:
    """The axes along which values differ, as far as their shape tells."""
    return [axis for axis, size in enumerate(values.shape) if size > 1]


def rows_along(values: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Values as rows, one for each place on the other axes, `size` values along `axis`.

    Example:
        >>> rows_along(np.array([[1, 2], [3, 4]]), 0, 2).tolist()
        [[1, 3], [2, 4]]
    """
    rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    return np.broadcast_to(rows, (len(rows), size))


def placed(vector: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """A vector along one axis of an array of that rank, size 1 along the others."""
    shape = [1] * rank
    shape[axis] = len(vector)
    return vector.reshape(shape)
