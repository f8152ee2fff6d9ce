"""Hold samples with their labels, and the splits of a data set."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tfedge.data import streams
from tfedge.data.nests import as_arrays, leaves, named_leaves
from tfedge.data.sampling import draw
from tfedge.errors import DataError, SettingsError

EVALUATION_FRACTION = 0.2
CALIBRATION_SAMPLES = 200
SHUFFLE_WINDOW = 8192


@dataclass(frozen=True, eq=False)
class Split:
    """Samples, and the labels and weights that belong to them.

    Args:
        x: Inputs, first axis the samples: an array, a tuple of arrays (one per input of the model)
            or a dict of them by input name. Or a stream: a `tf.data.Dataset`, or a function
            without arguments that returns an iterable anew at every call, with elements `x`,
            `(x, y)` or `(x, y, sample_weight)`.
        y: Labels or targets in the same forms. Default: none. A stream brings its own.
        sample_weight: Weight of each sample, shape `(samples,)`. Default: none.
        batched: For streams: whether elements are batches. Default: batches if x and y agree in
            their first axis, single samples if not.

    Raises:
        DataError: Lengths differ, nothing is there, or something is not an array of numbers.

    Example:
        >>> split = Split(np.zeros((5, 2)), np.array([0, 1, 0, 1, 0]))
        >>> len(split), [x.shape for x, y in split.batches(2)]
        (5, [(2, 2), (2, 2), (1, 2)])
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    batched: bool | None = None

    def __post_init__(self) -> None:
        if streams.is_stream(self.x):
            self._check_stream()
            return
        if self.batched is not None:
            raise SettingsError("`batched` is for streams; arrays hold samples. Leave it out.")
        for name in ("x", "y", "sample_weight"):
            value = getattr(self, name)
            if value is not None or name == "x":
                object.__setattr__(self, name, as_arrays(value, name))
        self._check_lengths()

    @property
    def is_stream(self) -> bool:
        """Whether the samples come from a stream, not from arrays in memory."""
        return streams.is_stream(self.x)

    @property
    def rows(self) -> streams.Rows:
        """`(x,)`, `(x, y)` or `(x, y, sample_weight)` as arrays; reads a stream into memory."""
        if self.is_stream:
            return streams.join(list(streams.read(self.x, self.batched)))
        if self.sample_weight is not None:
            return (self.x, self.y, self.sample_weight)
        return (self.x,) if self.y is None else (self.x, self.y)

    def __bool__(self) -> bool:
        return True  # without this, `if split` would count a stream

    def __len__(self) -> int:
        """Number of samples. The first call on a stream reads it once."""
        return self._length

    @cached_property
    def _length(self) -> int:
        if self.is_stream:
            return sum(streams.count(rows) for rows in streams.read(self.x, self.batched))
        return int(leaves(self.x)[0].shape[0])

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0
    ) -> Iterator[streams.Rows]:
        """One pass over the samples.

        Args:
            batch_size: Samples in a batch; the last one may hold fewer.
            shuffle: Whether in random order. Streams are shuffled within windows of 8192 samples.
            seed: Seed of the order; give each epoch its own.

        Returns:
            Iterator of `(x,)`, `(x, y)` or `(x, y, sample_weight)` as NumPy arrays.

        Raises:
            SettingsError: `batch_size` is not a positive whole number.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise SettingsError(
                f"`batch_size` must be a whole number of at least 1. Received: {batch_size!r}."
            )
        return self._batches(batch_size, shuffle, seed)

    def take(self, samples: int, seed: int = 0) -> "Split":
        """A seeded random sample, held as arrays; every class in its proportion.

        A stream is read once and sampled without regard to classes.

        Args:
            samples: How many; all of them (in random order) if there are fewer.
            seed: Seed of the draw.

        Raises:
            SettingsError: `samples` is not a positive whole number.
        """
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise SettingsError(
                f"`samples` must be a whole number of at least 1. Received: {samples!r}."
            )
        if self.is_stream:
            rows = streams.rebatch(streams.read(self.x, self.batched), 256)
            return _split(streams.draw_rows(rows, samples, seed))
        count = min(samples, len(self))
        return self.at(draw(len(self), count, labels=self.y, seed=seed))

    def at(self, index: np.ndarray) -> "Split":
        """The samples at `index`, an array of indices; for arrays in memory."""
        return _split(streams.select(self.rows, index))

    def divide(self, fraction: float, seed: int = 0) -> tuple["Split", "Split"]:
        """Two parts without a sample in common, every class in its proportion in both.

        Args:
            fraction: Part of the samples that goes to the second one, in (0, 1).
            seed: Seed of the draw.

        Returns:
            The larger rest and the drawn part, both as arrays and in random order.

        Raises:
            DataError: There are fewer than two samples.
        """
        whole = _split(self.rows) if self.is_stream else self
        total = len(whole)
        if total < 2:
            raise DataError(
                f"Data to be divided must hold at least 2 samples. Received: {total}. Give the "
                "evaluation data yourself."
            )
        count = min(max(1, round(fraction * total)), total - 1)
        drawn = draw(total, count, labels=whole.y, seed=seed)
        rest = np.setdiff1d(np.arange(total), drawn)
        rest = np.random.RandomState(seed).permutation(rest)
        return whole.at(rest), whole.at(drawn)

    def fit_arguments(
        self, batch_size: int, *, shuffle: bool = True, seed: int = 0
    ) -> dict[str, Any]:
        """The arguments that give these samples to `model.fit` of either Keras.

        Args:
            batch_size: Samples in a batch. A batched `tf.data.Dataset` keeps its own size.
            shuffle: Whether each epoch has its own random order. A `tf.data.Dataset` keeps its own.
            seed: Seed of the order for streams; arrays are shuffled by Keras's own seed.

        Example:
            >>> split = Split(np.zeros((4, 2)), np.zeros(4))
            >>> sorted(split.fit_arguments(2))
            ['batch_size', 'shuffle', 'x', 'y']
        """
        if not self.is_stream:
            given = {"x": self.x, "y": self.y, "sample_weight": self.sample_weight}
            given = {name: value for name, value in given.items() if value is not None}
            return {**given, "batch_size": batch_size, "shuffle": shuffle}
        if streams.is_dataset(self.x):
            batched = streams.is_batched(self.x) if self.batched is None else self.batched
            return {"x": self.x if batched else self.x.batch(batch_size), "shuffle": False}
        steps = -(-len(self) // batch_size)
        endless = self._endless(batch_size, shuffle, seed)
        return {"x": endless, "steps_per_epoch": steps, "shuffle": False}

    def _endless(self, batch_size: int, shuffle: bool, seed: int) -> Iterator[streams.Rows]:
        while True:
            yield from self._batches(batch_size, shuffle, seed)
            seed += 1

    def _batches(self, batch_size: int, shuffle: bool, seed: int) -> Iterator[streams.Rows]:
        if self.is_stream:
            source = streams.read(self.x, self.batched)
            if shuffle:
                source = streams.shuffled(source, max(SHUFFLE_WINDOW, batch_size), seed)
            yield from streams.rebatch(source, batch_size)
            return
        rows = self.rows
        total = len(self)
        order = np.random.RandomState(seed).permutation(total) if shuffle else None
        for start in range(0, total, batch_size):
            index: Any = slice(start, start + batch_size)
            yield streams.select(rows, index if order is None else order[index])

    def _check_stream(self) -> None:
        if self.y is not None or self.sample_weight is not None:
            raise DataError(
                "A stream brings its labels itself, as elements `(x, y)` or `(x, y, "
                "sample_weight)`. Received: `y` or `sample_weight` beside it. Leave them out."
            )
        streams.check_ends(self.x)

    def _check_lengths(self) -> None:
        arrays = [
            named
            for name in ("x", "y", "sample_weight")
            if getattr(self, name) is not None
            for named in named_leaves(getattr(self, name), name)
        ]
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays)
        if any(array.ndim == 0 for _, array in arrays):
            raise DataError(f"The first axis must be the samples. Received shapes: {shapes}.")
        lengths = {array.shape[0] for _, array in arrays}
        if len(lengths) > 1:
            raise DataError(
                f"All arrays must hold the same number of samples. Received shapes: {shapes}."
            )
        if lengths == {0}:
            raise DataError(f"Data must hold at least one sample. Received shapes: {shapes}.")
        if self.sample_weight is not None and self.y is None:
            raise DataError("`sample_weight` weighs labels. Received: no `y`. Give `y` too.")


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of a data set.

    Attributes:
        train: What models are trained on. Default: none.
        evaluation: What models are judged on; never trained on, never selected by. Default: none.
        calibration: Samples that set the ranges of quantisation; drawn from `train`. Default: none.
        name: What to call it in reports.
        classes: Name of each class, in the order of the labels. Default: unknown.
        notes: Sentences for the reader on how the splits came to be.
    """

    train: Split | None = None
    evaluation: Split | None = None
    calibration: Split | None = None
    name: str = ""
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("train", "evaluation", "calibration"):
            value = getattr(self, field)
            if not isinstance(value, Split | None):
                raise DataError(
                    f"`Data.{field}` must be a `Split`. Received: {type(value).__name__}. Write "
                    f"`Data({field}=Split(x, y))`."
                )
        if self.train is None and self.evaluation is None and self.calibration is None:
            raise DataError("`Data` must hold at least one split. Received: none.")

    def complete(self, seed: int = 0) -> "Data":
        """These data with the splits that were missing, drawn from `train` at random.

        An evaluation split is 20 % of the training samples, taken out of them; calibration is a
        sample of 200 of the rest. `notes` says so. Streams are not drawn from for calibration:
        that would read them whole; call `train.take(samples)` where it is worth it.
        """
        train, evaluation, notes = self.train, self.evaluation, list(self.notes)
        if train is not None and evaluation is None:
            memory = " (the stream was read into memory for it)" if train.is_stream else ""
            train, evaluation = train.divide(EVALUATION_FRACTION, seed)
            notes.append(
                f"No evaluation data were given: {len(evaluation)} of "
                f"{len(train) + len(evaluation)} samples (20 %, every class in its proportion, "
                f"seed {seed}) were set aside for it{memory}."
            )
        calibration = self.calibration
        if calibration is None and train is not None and not train.is_stream:
            calibration = train.take(CALIBRATION_SAMPLES, seed)
        return dataclasses.replace(
            self, train=train, evaluation=evaluation, calibration=calibration, notes=tuple(notes)
        )


def _split(rows: streams.Rows) -> Split:
    x, y, sample_weight = (*rows, None, None)[:3]
    return Split(x, y, sample_weight)
