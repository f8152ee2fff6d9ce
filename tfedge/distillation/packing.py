"""Let what the teacher says travel with the samples of a `fit`, as a part of y."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfedge.data.nests import Arrays, as_arrays, concatenate, leaves, map_leaves
from tfedge.distillation.caching import TeacherCache
from tfedge.distillation.lesson import LABELLED, LABELS, NO_LABEL, TEACHERS, WEIGHTS
from tfedge.distillation.lookup import with_teachers
from tfedge.errors import DataError, SettingsError


class Pack:
    """The arguments of a `fit`, and what goes with its samples.

    Arrays are packed: Keras shuffles and batches what the teacher said together with the labels, as
    parts of one y, so that an epoch runs in the order that it has without a teacher. A
    `tf.data.Dataset` is mapped: each sample is found again by what is in it.

    Args:
        given: What `fit` was called with, by name.
        teachers: Open teachers.
        cache: Where what they say is kept; `None` to ask them in the step.
        unlabelled: Further inputs without labels; `None` for none.

    Raises:
        SettingsError: The data cannot be what the settings want of them.
    """

    def __init__(
        self,
        given: dict[str, Any],
        teachers: Sequence[Any],
        cache: TeacherCache | None,
        unlabelled: Arrays | None,
    ) -> None:
        self.class_weight: Mapping[int, float] | None = given.pop("class_weight", None)
        self.asks_in_step = cache is None
        self.said: list[list[np.ndarray]] | None = None
        self.x = given.get("x")
        self.arguments = given
        self.has_labels = given.get("y") is not None or _brings_labels(self.x)
        self.all_labelled = unlabelled is None and _all_labelled(given.get("y"))
        if _is_arrays(self.x):
            self._pack_arrays(teachers, cache, unlabelled)
            return
        if unlabelled is not None:
            raise SettingsError(
                "`unlabelled` is joined to arrays. Received: a "
                f"{type(self.x).__name__} as training data. Put the samples into it yourself, "
                "with class number -1."
            )
        if cache is None:
            return
        if not isinstance(self.x, tf.data.Dataset):
            raise SettingsError(
                "What a teacher says is kept for arrays and for a `tf.data.Dataset`. Received: a "
                f"{type(self.x).__name__} as training data. Set `cache=False` to run the teacher "
                "in the training step."
            )
        if cache.on_disk:
            raise SettingsError(
                "What a teacher says of arrays is kept on disk. Received: a tf.data.Dataset, whose "
                "samples are known only when they come. Set `cache=True`, which keeps it in memory."
            )
        self.arguments["x"], self.said = with_teachers(self.x, teachers)

    def _pack_arrays(
        self, teachers: Sequence[Any], cache: TeacherCache | None, unlabelled: Arrays | None
    ) -> None:
        arguments = self.arguments
        x, y = as_arrays(_as_numpy(self.x), "x"), arguments.get("y")
        weights = arguments.get("sample_weight")
        packed: dict[str, Any] = {}
        if unlabelled is not None:
            if arguments.get("validation_split"):
                raise SettingsError(
                    "`validation_split` takes the last samples, which are those without labels. "
                    "Give `validation_data` beside `unlabelled`."
                )
            labelled, extra = len(leaves(x)[0]), len(leaves(unlabelled)[0])
            x = concatenate([x, unlabelled])
            y = None if y is None else _longer(y, extra, 0)
            weights = None if weights is None else _longer(weights, extra, 1)
            packed[LABELLED] = np.repeat(np.array([1, 0], np.float32), [labelled, extra])
            arguments["x"] = list(x) if isinstance(x, tuple) else x
        if cache is not None:
            self.said = [cache.outputs(teacher, x) for teacher in teachers]
            packed[TEACHERS] = tuple(tuple(said) for said in self.said)
        self.x = x
        if not packed:
            return
        packed |= {} if y is None else {LABELS: y}
        packed |= {} if weights is None else {WEIGHTS: weights}
        arguments["y"] = packed
        arguments.pop("sample_weight", None)


def first_samples(x: Any, count: int) -> Arrays | None:
    """The first samples of training data as arrays; `None` where looking would use them up.

    Args:
        x: What `fit` takes as `x`.
        count: At most so many.

    Raises:
        DataError: There are none.
    """
    if isinstance(x, tf.data.Dataset):
        elements = list(itertools.islice(x.as_numpy_iterator(), 1))
        if not elements:
            raise DataError("Data must hold at least one sample. Received: an empty Dataset.")
        first = elements[0][0] if isinstance(elements[0], tuple) else elements[0]
        x = as_arrays(first, "x")
    elif not _is_arrays(x):
        return None
    return map_leaves(lambda leaf: leaf[:count], as_arrays(_as_numpy(x), "x"))


def _brings_labels(x: Any) -> bool:
    if isinstance(x, tf.data.Dataset):
        return isinstance(x.element_spec, tuple) and len(x.element_spec) > 1
    return not _is_arrays(x)


def _all_labelled(y: Any) -> bool:
    """Whether labels can be seen, and none is a class number that stands for no label."""
    if not isinstance(y, np.ndarray) or not np.issubdtype(y.dtype, np.signedinteger):
        return False
    return not (y == NO_LABEL).any()


def _is_arrays(x: Any) -> bool:
    found = tf.nest.flatten(x) if isinstance(x, Mapping | list | tuple) else [x]
    return bool(found) and all(isinstance(leaf, np.ndarray) or tf.is_tensor(leaf) for leaf in found)


def _as_numpy(x: Any) -> Any:
    return tf.nest.map_structure(np.asarray, x)


def _longer(values: Any, extra: int, fill: int) -> Any:
    """Labels or weights with `extra` rows more."""

    def longer(part: Any) -> np.ndarray:
        part = np.asarray(part)
        return np.concatenate([part, np.full((extra, *part.shape[1:]), fill, part.dtype)])

    return tf.nest.map_structure(longer, values)
