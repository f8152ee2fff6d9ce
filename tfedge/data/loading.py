"""Load data from a name, a file, a folder, a function, or what a script holds."""

import dataclasses
import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfedge.data.arrays import data_of_arrays, inputs_of_arrays, read_arrays
from tfedge.data.checks import check_calibration
from tfedge.data.functions import find_function, is_reference
from tfedge.data.images import ImageSize, calibration_of_folder, data_of_folder
from tfedge.data.named import NAMED
from tfedge.data.nests import Arrays
from tfedge.data.splits import CALIBRATION_SAMPLES, Data, Split
from tfedge.data.streams import is_dataset, is_stream
from tfedge.errors import DataError, SettingsError, TfedgeError, did_you_mean
from tfedge.files import working_directory_importable

Source = str | os.PathLike[str]


def load_dataset(
    source: Source, *, seed: int = 0, image_size: ImageSize | None = None, model: Any = None
) -> Data:
    """Training, evaluation and calibration data from a name, a file, a folder or a function.

    Args:
        source: One of

            - `"digits"` (bundled with scikit-learn; x in [0, 1], `(samples, 8, 8, 1)`), `"mnist"`
              (x in [0, 1], `(samples, 28, 28, 1)`) or `"cifar10"` (x raw in 0 to 255,
              `(samples, 32, 32, 3)`); the last two from the folder `TFEDGE_DATA_DIR`, else
              downloaded by Keras;
            - an `.npz` file with arrays `x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test`,
              or a sole array; or an `.npy` file; pixels and labels stay as stored;
            - a folder of images, one folder in it per class, or `train/` and `test/` of such;
            - `module:function`, which returns what `as_data` takes.
        seed: Seed of the splits that the source does not have itself. Default: 0.
        image_size: For folders: `(height, width)` or `(height, width, channels)`. Default: that of
            `model`, else the images' own.
        model: A Keras model whose input gives `image_size`. Default: none.

    Returns:
        The data. Without evaluation data of its own, 20 % are set aside at random, every class in
        its proportion, and `notes` says so.

    Raises:
        DataError: There is no such source, or it cannot be read.
        SettingsError: `module:function` does not exist.
        MissingExtraError: scikit-learn, Keras or Pillow is needed and absent.

    Example:
        >>> data = load_dataset("digits")
        >>> data.train.x.shape, len(data.evaluation), len(data.calibration)
        ((1258, 8, 8, 1), 539, 200)
    """
    return _read(source, image_size, model).complete(seed)


def load_evaluation(
    source: Source, *, image_size: ImageSize | None = None, model: Any = None
) -> Split:
    """All samples that a source has for judging a model.

    Args:
        source: As for `load_dataset`.
        image_size: As for `load_dataset`.
        model: As for `load_dataset`.

    Returns:
        The evaluation split where the source has one; else all its samples.

    Raises:
        DataError: There is no such source, or it cannot be read.

    Example:
        >>> len(load_evaluation("digits"))
        539
    """
    data = _read(source, image_size, model)
    return data.evaluation or data.train or data.calibration  # type: ignore[return-value]


def load_calibration(
    source: Source,
    *,
    samples: int | None = None,
    seed: int = 0,
    image_size: ImageSize | None = None,
    model: Any = None,
) -> Arrays:
    """Inputs that set the ranges of quantisation.

    Args:
        source: As for `load_dataset`; of an `.npz` the array `x_calibration`, `x`, `x_train` or the
            only one; of a folder all images in it, with or without class folders; of a name or
            a function the calibration split, else training samples, never those set aside for
            evaluation.
        samples: How many, drawn at random. Default: all of a file or folder; 200 of a data set.
        seed: Seed of the draw. Default: 0.
        image_size: As for `load_dataset`.
        model: As for `load_dataset`.

    Returns:
        An array, a tuple of arrays (one per input), or a dict of them by input name.

    Raises:
        DataError: There is no such source, or it cannot be read.

    Warns:
        TfedgeWarning: The source holds training data too, of another range or layout.

    Example:
        >>> load_calibration("digits", samples=50).shape
        (50, 8, 8, 1)
    """
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise SettingsError(f"`samples` must be a whole number from 1. Received: {samples!r}.")
    text, path = _text_of(source), Path(source)
    if text not in NAMED and path.is_dir():
        size = image_size if image_size is not None else _image_size_of(model)
        return calibration_of_folder(path, image_size=size, samples=samples, seed=seed)
    if image_size is None and path.suffix.lower() in (".npz", ".npy"):
        arrays = read_arrays(path)
        split = Split(inputs_of_arrays(arrays, name=path.name))
        if "x_train" in arrays:
            check_calibration(split, arrays["x_train"])
        return split.x if samples is None else split.take(samples, seed).x
    data = _read(source, image_size, model)
    if data.train is not None and data.calibration is not None:
        check_calibration(data.calibration, data.train)
    if data.train is not None and data.train.y is not None:
        data = data.complete(seed)  # keeps what will be judged on out of it
    if data.calibration is not None and (samples is None or samples <= len(data.calibration)):
        return (
            data.calibration.rows[0] if samples is None else data.calibration.take(samples, seed).x
        )
    found = data.train or data.calibration or data.evaluation
    return found.take(samples or CALIBRATION_SAMPLES, seed).x  # type: ignore[union-attr]


def as_data(value: Any, *, name: str = "", seed: int = 0) -> Data:
    """What a script holds, as `Data` with all its splits.

    Args:
        value: `Data`; a `Split`; an array of inputs; `(x, y)` or `(x, y, sample_weight)`;
            `((x, y), (x, y))` for training and evaluation; a `tf.data.Dataset` or a function that
            returns an iterable of batches; a pair of those; or a dict of arrays as in an `.npz`.
            A model of several inputs takes `Split` or a dict, so that nothing is guessed.
        name: What to call it in reports.
        seed: Seed of the splits that it does not have itself.

    Raises:
        DataError: It is none of these.

    Example:
        >>> import numpy as np
        >>> data = as_data((np.arange(10.0).reshape(10, 1), np.arange(10) % 2))
        >>> len(data.train), len(data.evaluation)
        (8, 2)
    """
    return _as_given(value, name).complete(seed)


def _read(source: Source, image_size: ImageSize | None, model: Any) -> Data:
    """The splits that a source has itself."""
    text = _text_of(source)
    path = Path(text)
    if text not in NAMED and path.is_dir():
        size = image_size if image_size is not None else _image_size_of(model)
        return data_of_folder(path, image_size=size)
    if image_size is not None:
        raise SettingsError(
            f"`image_size` is for folders of images. Received it with {text!r}. Leave it out."
        )
    if text in NAMED:
        return NAMED[text]()
    if path.suffix.lower() in (".npz", ".npy") or path.is_file():
        return data_of_arrays(read_arrays(path), name=path.name)
    if is_reference(text):
        return _as_given(_call(text), text)
    raise DataError(_no_source(text))


def _text_of(source: Source) -> str:
    text = os.fspath(source)
    if not text:
        raise DataError(_no_source(text))
    return text


def _as_given(value: Any, name: str) -> Data:
    if isinstance(value, Data):
        data = value
    elif isinstance(value, Mapping):
        data = data_of_arrays(value, name=name)
    elif isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_pair, value)):
        data = Data(train=_one_split(value[0]), evaluation=_one_split(value[1]))
    else:
        data = Data(train=_one_split(value))
    return dataclasses.replace(data, name=data.name or name)


def _is_pair(part: Any) -> bool:
    """Whether it is a split of its own: labelled arrays, a stream or a `Split`."""
    if isinstance(part, tuple | list):
        return len(part) in (2, 3) and all(not isinstance(item, int | float) for item in part)
    return isinstance(part, Split) or is_stream(part)


def _one_split(value: Any) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, tuple | list) and 2 <= len(value) <= 3:
        return Split(*value)
    return Split(value)


def _call(reference: str) -> Any:
    """What a data function gives; one that yields batches is a stream itself."""
    function = find_function(reference)
    if inspect.isgeneratorfunction(function):
        return function
    with working_directory_importable():
        try:
            value = function()
        except TfedgeError:
            raise
        except Exception as error:  # the user's function can raise anything
            raise DataError(
                f"`{reference}` failed: {type(error).__name__}: {error}. It is called without "
                "arguments."
            ) from error
    if isinstance(value, Iterator) and not is_dataset(value):
        return function  # made anew at each call
    if callable(value) and not inspect.isroutine(value) and not is_dataset(value):
        raise DataError(
            f"`{reference}` must return arrays, `Data`, a `Split`, a `tf.data.Dataset` or batches. "
            f"Received: {type(value).__name__}."
        )
    return value


def _image_size_of(model: Any) -> ImageSize | None:
    """Height, width and channels of the one input of a model, where it says them."""
    inputs: Any = getattr(model, "inputs", None) or ()  # a subclassed model has none
    if len(inputs) != 1:
        return None
    shape = tuple(inputs[0].shape)
    if len(shape) != 4 or None in shape[1:]:
        return None
    return int(shape[1]), int(shape[2]), int(shape[3])


def _no_source(text: str) -> str:
    known = ", ".join(repr(name) for name in NAMED)
    return (
        f"There is no data set, file or folder {text!r}. Give {known}, an `.npz` or `.npy` file, a "
        f"folder of images, or `module:function`.{did_you_mean(text, NAMED)}"
    )
