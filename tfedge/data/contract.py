"""Say once how samples become what a model takes: scale, mean, standard deviation, layout."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tfedge.data import streams
from tfedge.data.nests import Arrays, as_arrays, leaves, map_leaves
from tfedge.data.splits import Data, Split
from tfedge.errors import DataError, SettingsError, did_you_mean

LAYOUTS = ("NHWC", "NCHW")


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """How samples become what a model takes: `(x * scale - mean) / std`, for each channel.

    It is for models with one input, of any kind: images, sound, columns of a table. The channels
    are the last axis. With the default values nothing is changed.

    Args:
        mean: Taken away after scaling: one number, or one for each channel. Default: 0.
        std: Divided by last: one number, or one for each channel. Default: 1.
        scale: What samples are multiplied by first, e.g. 1/255. Default: 1.
        layout: Order of the axes of the data: `"NHWC"`, or `"NCHW"` where the channels follow the
            samples; these are brought to the end, where Keras has them.
        labels: Name of each class, in the order of the labels; or the path of a text file that
            holds one in each line, which is read at once. Default: unknown.

    Raises:
        SettingsError: A value is out of its range, or the numbers of channels disagree.
        DataError: The file of the labels cannot be read.

    Example:
        >>> contract = InputContract(scale=1 / 255, mean=0.5, std=0.25)
        >>> contract.apply(np.array([[0, 255]], np.uint8))
        array([[-2.,  2.]], dtype=float32)
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}  # where recipes are read

    mean: tuple[float, ...] | float = (0.0,)
    std: tuple[float, ...] | float = (1.0,)
    scale: float = 1.0
    layout: str = "NHWC"
    labels: tuple[str, ...] | str | Path = ()

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(getattr(self, name), name))
        if not all(value > 0 for value in self._std):
            raise SettingsError(
                f"`InputContract.std` is divided by, so it is positive. Received: {self.std}. "
                "Leave channels that are all equal at 1."
            )
        if not _is_number(self.scale) or self.scale <= 0:
            raise SettingsError(
                f"`InputContract.scale` is a positive number. Received: {self.scale!r}."
            )
        lengths = {len(self._mean), len(self._std)} - {1}
        if len(lengths) > 1:
            raise SettingsError(
                "`InputContract.mean` and `InputContract.std` hold one number, or one for each "
                f"channel. Received: {len(self._mean)} and {len(self._std)}."
            )
        if self.layout not in LAYOUTS:
            raise SettingsError(
                f"`InputContract.layout` is one of {', '.join(LAYOUTS)}. Received: "
                f"{self.layout!r}.{did_you_mean(str(self.layout).upper(), LAYOUTS)}"
            )
        object.__setattr__(self, "labels", _names(self.labels))

    @property
    def is_neutral(self) -> bool:
        """Whether it changes nothing."""
        return not self._steps() and self.layout == "NHWC"

    def apply(self, x: Any) -> Arrays:
        """Samples as the model takes them.

        Args:
            x: An array whose first axis is the samples; or a tuple or dict that holds one.

        Returns:
            The same structure in float32; `x` itself if nothing is to change.

        Raises:
            DataError: There are several inputs, too few axes, or another number of channels.

        Example:
            >>> InputContract(layout="NCHW").apply(np.zeros((8, 3, 32, 24))).shape
            (8, 32, 24, 3)
        """
        if self.is_neutral:
            return x
        arrays = as_arrays(x, "x")
        self._check_single(leaves(arrays))
        return map_leaves(self._apply_to_array, arrays)

    def apply_to(self, data: Data) -> Data:
        """Data whose every split holds samples as the model takes them.

        Arrays are changed at once, streams batch by batch as they are read. The names of the
        classes become those of the contract, where it has any.

        Args:
            data: Data as they are stored.

        Raises:
            DataError: As for `apply`; or the data name another number of classes.
        """
        classes = self._labels or data.classes
        if data.classes is not None and classes is not None and len(classes) != len(data.classes):
            raise DataError(
                f"`InputContract.labels` names each class. Received: {len(classes)} names for data "
                f"of {len(data.classes)} classes ({', '.join(data.classes[:3])}, …)."
            )
        return dataclasses.replace(
            data,
            train=self._apply_to_split(data.train),
            evaluation=self._apply_to_split(data.evaluation),
            calibration=self._apply_to_split(data.calibration),
            classes=classes,
        )

    def snippet(self, name: str = "x") -> str:
        """Lines of NumPy that do to an array what `apply` does; empty if nothing is to change.

        Args:
            name: What the array is called.

        Example:
            >>> print(InputContract(scale=0.5, mean=(1, 2), layout="NCHW").snippet())
            x = np.moveaxis(x, 1, -1)
            x = x.astype(np.float32)
            x = x * np.float32(0.5)
            x = x - np.float32([1.0, 2.0])
        """
        moved = [f"{name} = np.moveaxis({name}, 1, -1)"] if self.layout == "NCHW" else []
        if self.is_neutral:
            return ""
        steps = [
            f"{name} = {name} {sign} np.float32({list(values) if len(values) > 1 else values[0]})"
            for sign, values in self._steps()
        ]
        return "\n".join([*moved, f"{name} = {name}.astype(np.float32)", *steps])

    @property
    def _mean(self) -> tuple[float, ...]:
        return self.mean  # type: ignore[return-value]  # __post_init__ makes it a tuple

    @property
    def _std(self) -> tuple[float, ...]:
        return self.std  # type: ignore[return-value]

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.labels  # type: ignore[return-value]

    @property
    def _channels(self) -> int:
        """How many channels it is for; 1 for any number."""
        return max(len(self._mean), len(self._std))

    def _steps(self) -> list[tuple[str, tuple[float, ...]]]:
        """What is done, in this order, without what would change nothing."""
        steps = (("*", (self.scale,), 1), ("-", self._mean, 0), ("/", self._std, 1))
        return [(sign, values) for sign, values, idle in steps if set(values) != {idle}]

    def _compute(self, x: Any) -> Any:
        """The arithmetic, on float32 arrays of NumPy or tensors."""
        for sign, values in self._steps():
            operand = np.asarray(values if len(values) > 1 else values[0], np.float32)
            x = x * operand if sign == "*" else x - operand if sign == "-" else x / operand
        return x

    def _apply_to_array(self, x: np.ndarray) -> np.ndarray:
        self._check_shape(x.shape)
        if self.layout == "NCHW":
            x = np.moveaxis(x, 1, -1)
        return np.asarray(self._compute(x.astype(np.float32)), np.float32)

    def _apply_to_split(self, split: Split | None) -> Split | None:
        if split is None or self.is_neutral:
            return split
        if not split.is_stream:
            return dataclasses.replace(split, x=self.apply(split.x))
        if streams.is_dataset(split.x):
            return dataclasses.replace(split, x=self._mapped(split))
        return Split(self._wrapped(split), batched=True)

    def _wrapped(self, split: Split) -> Callable[[], Any]:
        """A function that reads the stream of a split and applies the contract to each batch."""

        def read() -> Any:
            for x, *rest in streams.read(split.x, split.batched):
                yield (self.apply(x), *rest)

        return read

    def _mapped(self, split: Split) -> Any:
        """The `tf.data.Dataset` of a split, with the contract in its pipeline."""
        import tensorflow as tf

        batched = streams.is_batched(split.x) if split.batched is None else split.batched

        def on_tensor(x: Any) -> Any:
            sample = x.shape[1:] if batched and x.shape.rank else x.shape
            if sample.rank is None:
                raise _unknown_shape()
            self._check_shape((None, *sample))
            x = tf.cast(x, tf.float32)
            if self.layout == "NCHW":
                axis = int(batched)
                order = [i for i in range(x.shape.rank) if i != axis]
                x = tf.transpose(x, [*order, axis])
            if self._channels > 1:
                x = tf.ensure_shape(x, [*x.shape[:-1], self._channels])
            return self._compute(x)

        @tf.autograph.experimental.do_not_convert  # its errors would hide ours
        def on_element(x: Any, *rest: Any) -> Any:
            self._check_single(tf.nest.flatten(x))
            mapped = tf.nest.map_structure(on_tensor, x)
            return (mapped, *rest) if rest else mapped

        return split.x.map(on_element, num_parallel_calls=tf.data.AUTOTUNE)

    def _check_single(self, inputs: Sequence[Any]) -> None:
        if len(inputs) > 1:
            raise DataError(
                "An `InputContract` is for a model with one input. Received: samples with "
                f"{len(inputs)} inputs. Scale them where the data are made (`module:function`), or "
                "in the model (`Rescaling`, `Normalization`)."
            )

    def _check_shape(self, shape: Sequence[int | None]) -> None:
        """Check the shape of an array of samples; `None` stands for what is not known."""
        least = 3 if self.layout == "NCHW" else 2
        if len(shape) < least:
            raise DataError(
                f"Samples in the layout {self.layout} have at least {least} axes, the first of "
                f"them the samples. Received the shape {tuple(shape)}."
            )
        channels = shape[1 if self.layout == "NCHW" else -1]
        if self._channels > 1 and channels is not None and channels != self._channels:
            raise DataError(
                f"`InputContract` holds numbers for {self._channels} channels. Received: samples "
                f"with {channels}, of shape {tuple(shape)} in the layout {self.layout}. Give one "
                "number for each channel, or one for all; or set `layout` to that of the data."
            )


def _unknown_shape() -> DataError:
    return DataError(
        "An `InputContract` needs to know the axes of the samples. Received: a tf.data.Dataset "
        "that does not say how many there are. Say it in the pipeline: "
        "`x = tf.ensure_shape(x, (None, None, 3))`."
    )


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float | np.integer | np.floating)
    return is_real and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any, name: str) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, list | tuple | np.ndarray) else (value,)
    if not values or not all(_is_number(item) for item in values):
        raise SettingsError(
            f"`InputContract.{name}` is a finite number, or one for each channel. Received: "
            f"{value!r}."
        )
    return tuple(float(item) for item in values)


def _names(labels: Any) -> tuple[str, ...]:
    """Names of classes, as given or from a file."""
    if isinstance(labels, str | Path):
        return _read_names(Path(labels))
    if not isinstance(labels, list | tuple) or not all(isinstance(item, str) for item in labels):
        raise SettingsError(
            "`InputContract.labels` is a sequence of names, or the path of a text file. Received: "
            f"{labels!r}."
        )
    return tuple(labels)


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise DataError(
            f"`InputContract.labels` names a text file with one class in each line. `{path}` "
            f"cannot be read: {cause}."
        ) from error
    names = tuple(line.strip() for line in lines)
    if not names or not all(names):
        empty = names.index("") + 1 if names else 1
        raise DataError(
            f"The file of labels names one class in each line. Line {empty} of `{path}` is empty."
        )
    return names
