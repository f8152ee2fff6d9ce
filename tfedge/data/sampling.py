"""Draw samples at random, every class in its proportion."""

from typing import Any

import numpy as np

MOST_CLASSES = 1000


def class_numbers(y: Any) -> np.ndarray | None:
    """The class of each sample, or `None` where labels are not classes.

    Args:
        y: Labels: whole numbers of shape `(samples,)` or `(samples, 1)`, or one-hot rows
            `(samples, classes)`. Anything else (regression targets, masks, several outputs) is
            not classes.

    Returns:
        Array of shape `(samples,)`, int64.

    Example:
        >>> class_numbers(np.array([[0, 1, 0], [1, 0, 0]]))
        array([1, 0])
        >>> class_numbers(np.array([0.25, 1.5])) is None
        True
    """
    if not isinstance(y, np.ndarray) or y.ndim not in (1, 2) or y.dtype.kind not in "biuf":
        return None
    if y.ndim == 2 and y.shape[1] > 1:
        return y.argmax(axis=1) if is_one_hot(y) else None
    flat = y.reshape(-1)
    if flat.dtype.kind == "f" and not (np.isfinite(flat).all() and (flat == flat.round()).all()):
        return None
    classes, numbers = np.unique(flat, return_inverse=True)
    if len(classes) > min(MOST_CLASSES, max(2, len(flat) // 2)):
        return None
    return numbers.astype(np.int64)


def is_one_hot(y: np.ndarray) -> bool:
    """Whether every row along the last axis holds a single one and zeros.

    Example:
        >>> is_one_hot(np.array([[0, 1], [1, 0]])), is_one_hot(np.array([[1, 1], [1, 0]]))
        (True, False)
    """
    return bool(np.isin(y, (0, 1)).all() and (y.sum(axis=-1) == 1).all())


def draw(samples: int, count: int, *, labels: Any = None, seed: int = 0) -> np.ndarray:
    """Indices of `count` samples out of `samples`, at random and in random order.

    Where labels are classes, each class is drawn in its proportion (largest remainders first).
    Drawn by NumPy's `RandomState`, whose numbers are the same in every version of NumPy.

    Args:
        samples: How many there are.
        count: How many to draw, at most `samples`.
        labels: Labels as `class_numbers` reads them. Default: none, so no proportions are kept.
        seed: Seed of the draw.

    Returns:
        Array of shape `(count,)`, int64, without repeats.

    Example:
        >>> labels = np.array([0] * 90 + [1] * 10)
        >>> np.bincount(labels[draw(100, 20, labels=labels)])
        array([18,  2])
    """
    random = np.random.RandomState(seed)
    classes = class_numbers(labels)
    if classes is None:
        return random.permutation(samples)[:count]
    sizes = np.bincount(classes)
    exact = sizes * (count / samples)
    shares = np.floor(exact).astype(np.int64)
    short = count - int(shares.sum())
    order = np.argsort(-(exact - shares), kind="stable")
    shares[order[:short]] += 1
    chosen = [
        random.permutation(np.flatnonzero(classes == number))[:share]
        for number, share in enumerate(shares)
    ]
    return random.permutation(np.concatenate(chosen))
