"""Load the data sets that have a name: digits, mnist, cifar10."""

import contextlib
import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

from tfedge.data.arrays import read_arrays
from tfedge.data.images import decode_jpegs
from tfedge.data.splits import Data, Split
from tfedge.errors import DataError, MissingExtraError

_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_DIGITS = tuple(str(digit) for digit in range(10))
_TEST_SEED = 0  # the test split of digits is the same for every seed


def digits() -> Data:
    """Handwritten digits of 8×8 pixels, bundled with scikit-learn; needs no network.

    Returns:
        1,797 images: a fixed test split of 30 % with every class in its proportion, the rest for
        training. x float32 in [0, 1], shape `(samples, 8, 8, 1)`; y int64, 0 to 9.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            'The digits are bundled with scikit-learn: pip install "tfedge[train]".'
        ) from error
    bunch = load_digits()
    x = (bunch.images / 16).astype(np.float32)[..., np.newaxis]
    y = bunch.target.astype(np.int64)
    train, evaluation = Split(x, y).divide(0.3, seed=_TEST_SEED)
    return Data(train=train, evaluation=evaluation, name="digits", classes=_DIGITS)


def mnist() -> Data:
    """MNIST from `mnist.npz` in `TFEDGE_DATA_DIR`, else from `keras.datasets`.

    Returns:
        60,000 training and 10,000 test images. x float32 in [0, 1], shape `(samples, 28, 28, 1)`;
        y int64, 0 to 9.

    Raises:
        DataError: The file is damaged, or there is none and it cannot be downloaded.
    """
    path = _in_data_dir("mnist.npz")
    arrays = _download("mnist") if path is None else _required(path, _KERAS_NAMES)
    pixels = {name: arrays[name] for name in ("x_train", "x_test")}
    scaled = {
        name: (x.astype(np.float32) / np.float32(255))[..., np.newaxis]
        for name, x in pixels.items()
    }
    return _train_and_test(scaled, arrays, "mnist", _DIGITS)


def cifar10() -> Data:
    """CIFAR-10 from `cifar10_jpeg.npz` in `TFEDGE_DATA_DIR`, else from `keras.datasets`.

    The file holds the images as JPEG: `train_jpeg` and `test_jpeg` (all files joined, uint8),
    `*_offsets` (where each begins, and the end), `y_train` and `y_test`. Pillow decodes them.

    Returns:
        50,000 training and 10,000 test images. x float32, **raw in 0 to 255**, shape
        `(samples, 32, 32, 3)`; y int64, 0 to 9.

    Raises:
        DataError: The file is damaged, or there is none and it cannot be downloaded.
    """
    path = _in_data_dir("cifar10_jpeg.npz")
    if path is None:
        arrays = _download("cifar10")
    else:
        status = path.stat()
        arrays = _decoded_cifar10(path, status.st_mtime_ns, status.st_size)
    pixels = {name: arrays[name].astype(np.float32) for name in ("x_train", "x_test")}
    return _train_and_test(pixels, arrays, "cifar10", _CIFAR10)


NAMED = {"digits": digits, "mnist": mnist, "cifar10": cifar10}

_KERAS_NAMES = ("x_train", "y_train", "x_test", "y_test")
_JPEG_NAMES = ("train_jpeg", "train_offsets", "y_train", "test_jpeg", "test_offsets", "y_test")


@lru_cache(maxsize=1)
def _decoded_cifar10(path: Path, modified_ns: int, size_bytes: int) -> dict[str, np.ndarray]:
    """The decoded pixels as uint8; a file that changed is decoded anew."""
    arrays = _required(path, _JPEG_NAMES)
    return {
        "x_train": decode_jpegs(arrays["train_jpeg"], arrays["train_offsets"], (32, 32)),
        "x_test": decode_jpegs(arrays["test_jpeg"], arrays["test_offsets"], (32, 32)),
        "y_train": arrays["y_train"],
        "y_test": arrays["y_test"],
    }


def _in_data_dir(file: str) -> Path | None:
    folder = os.environ.get("TFEDGE_DATA_DIR")
    if not folder:
        return None
    path = Path(folder) / file
    return path if path.is_file() else None


def _required(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    arrays = read_arrays(path)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(
            f"`{path}` must hold the arrays {', '.join(names)}. Received: {', '.join(arrays)}."
        )
    return arrays


def _download(name: str) -> dict[str, np.ndarray]:
    """The data set through `keras.datasets`, which keeps it in its own cache."""
    try:
        import keras
    except ImportError as error:
        raise MissingExtraError(
            f'{name!r} is downloaded by Keras: pip install "tfedge[train]".'
        ) from error
    sources = {"mnist": keras.datasets.mnist, "cifar10": keras.datasets.cifar10}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its progress bar
            (x_train, y_train), (x_test, y_test) = sources[name].load_data()
    except Exception as error:  # Keras raises a bare Exception where the network fails
        file = "mnist.npz" if name == "mnist" else "cifar10_jpeg.npz"
        folder = os.environ.get("TFEDGE_DATA_DIR")
        raise DataError(
            f"{name!r} could not be downloaded ({error}). Put `{file}` into a folder and set "
            f"TFEDGE_DATA_DIR to it (now: {folder or 'not set'}), or use the bundled 'digits'."
        ) from error
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _train_and_test(
    pixels: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    name: str,
    classes: tuple[str, ...],
) -> Data:
    y_train, y_test = (labels[key].reshape(-1).astype(np.int64) for key in ("y_train", "y_test"))
    return Data(
        train=Split(pixels["x_train"], y_train),
        evaluation=Split(pixels["x_test"], y_test),
        name=name,
        classes=classes,
    )
