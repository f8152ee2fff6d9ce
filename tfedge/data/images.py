"""Read images from folders and from joined JPEG bytes."""

import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tfedge.data.sampling import draw
from tfedge.data.splits import Data, Split
from tfedge.errors import DataError, MissingExtraError, SettingsError
from tfedge.report import format_bytes

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TRAIN, _TEST = ("train", "training"), ("test", "evaluation", "val", "validation")

ImageSize = tuple[int, int] | tuple[int, int, int]


def data_of_folder(folder: str | Path, *, image_size: ImageSize | None = None) -> Data:
    """Splits of a folder of images, one folder in it per class.

    Labels number the class folders in alphabetical order. With folders `train/` and `test/` (or
    `val/`) in it, each of them is read as its split. Pixels are float32 in 0–255 as stored, like
    those of `keras.utils.image_dataset_from_directory`; Pillow decodes, and resizes bilinearly.

    Args:
        folder: e.g. with `cat/001.jpg` and `dog/001.jpg` in it.
        image_size: `(height, width)` or `(height, width, channels)` to bring all images to;
            channels 1, 3 or 4. Default: their own size, which must be one, and 3 channels.

    Raises:
        DataError: No image is found, one cannot be decoded, sizes differ, or a class of the test
            images has no training images.
    """
    folder = Path(folder)
    parts = [_find_part(folder, names) for names in (_TRAIN, _TEST)]
    if parts[0] is None:
        split, classes = _read_classes(folder, None, image_size)
        return Data(train=split, name=folder.name, classes=classes)
    train, classes = _read_classes(parts[0], None, image_size)
    size = image_size if image_size is not None else train.x.shape[1:]
    evaluation = None if parts[1] is None else _read_classes(parts[1], classes, size)[0]
    return Data(train=train, evaluation=evaluation, name=folder.name, classes=classes)


def calibration_of_folder(
    folder: str | Path,
    *,
    image_size: ImageSize | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Images found anywhere under a folder, without labels; `train/` alone if there is one.

    Args:
        folder: Where to look.
        image_size: As for `data_of_folder`.
        samples: How many to draw at random before decoding. Default: all.
        seed: Seed of the draw.

    Returns:
        Array of shape `(samples, height, width, channels)`, float32 in 0–255.
    """
    folder = Path(folder)
    files = _image_files(_find_part(folder, _TRAIN) or folder)
    if not files:
        raise DataError(f"`{folder}` holds no image. Images end in {', '.join(sorted(SUFFIXES))}.")
    if samples is not None and samples < len(files):
        files = [files[index] for index in draw(len(files), samples, seed=seed)]
    return read_images(files, image_size)


def read_images(files: Sequence[Path], image_size: ImageSize | None = None) -> np.ndarray:
    """Images of one size in one array.

    Args:
        files: Paths of images.
        image_size: As for `data_of_folder`.

    Returns:
        Array of shape `(files, height, width, channels)`, float32 in 0–255.
    """
    height, width, channels = _target(files[0], image_size)
    size_bytes = len(files) * height * width * channels * 4
    memory_bytes = _memory_bytes()
    if size_bytes > 0.7 * memory_bytes:
        raise DataError(
            f"{len(files)} images of {height}×{width}×{channels} take {format_bytes(size_bytes)} "
            f"as float32; this machine has {format_bytes(memory_bytes)} of memory. Give a smaller "
            "`image_size`, or a `module:function` that returns a `tf.data.Dataset`."
        )
    images = np.empty((len(files), height, width, channels), np.float32)

    def read_one(index: int) -> None:
        content = files[index].read_bytes()
        decoded = decode_image(content, str(files[index]), _MODES[channels])
        if decoded.size != (width, height):
            if image_size is None:
                raise DataError(
                    "Images must be of one size, or `image_size` be given. Received: "
                    f"`{files[0]}` {height}×{width}, `{files[index]}` "
                    f"{decoded.height}×{decoded.width}."
                )
            decoded = decoded.resize((width, height), 2)  # 2 is Pillow's BILINEAR
        images[index] = np.asarray(decoded).reshape(height, width, channels)

    _in_threads(read_one, len(files))
    return images


def decode_jpegs(joined: np.ndarray, offsets: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """RGB images out of JPEG files joined to one array of bytes.

    Args:
        joined: All files, one after another, uint8.
        offsets: Where each begins, and at last where all end; shape `(images + 1,)`.
        shape: Height and width that each must have.

    Returns:
        Array of shape `(images, height, width, 3)`, uint8.

    Raises:
        DataError: Offsets do not fit the bytes, or an image is damaged or of another size.
    """
    if (
        offsets.ndim != 1
        or len(offsets) < 2
        or (np.diff(offsets.astype(np.int64)) <= 0).any()
        or offsets[0] < 0
        or offsets[-1] > len(joined)
    ):
        raise DataError(
            f"Offsets must rise from 0 to the {len(joined)} bytes of the joined images. Received: "
            f"{offsets.shape} offsets, last {offsets.reshape(-1)[-1:].tolist()}."
        )
    images = np.empty((len(offsets) - 1, *shape, 3), np.uint8)
    content = memoryview(np.ascontiguousarray(joined, np.uint8).data)

    def decode_one(index: int) -> None:
        piece = content[int(offsets[index]) : int(offsets[index + 1])]
        decoded = decode_image(piece, f"image {index}", "RGB")
        if decoded.size != shape[::-1]:
            raise DataError(
                f"Images must be {shape[0]}×{shape[1]}. Received: image {index} of "
                f"{decoded.height}×{decoded.width}."
            )
        images[index] = decoded

    _in_threads(decode_one, len(images))
    return images


def decode_image(content: Any, name: str, mode: str) -> Any:
    """One image file as a Pillow image of a mode.

    Raises:
        DataError: It is no image, it is damaged, or has more than 8 bits per channel.
    """
    image_module = _pillow()
    try:
        image = image_module.open(io.BytesIO(content))
        if image.mode in ("F", "I") or image.mode.startswith("I;"):
            raise DataError(
                f"Images must have 8 bits per channel. Received: `{name}` (mode {image.mode}). "
                "Give its pixels as an `.npz` array."
            )
        return image.convert(mode)
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"`{name}` cannot be decoded as an image: {error}.") from error


def _in_threads(work: Callable[[int], None], items: int, chunk: int = 256) -> None:
    def run(start: int) -> None:
        for index in range(start, min(start + chunk, items)):
            work(index)

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for _ in pool.map(run, range(0, items, chunk)):
            pass


def _read_classes(
    folder: Path, classes: tuple[str, ...] | None, image_size: ImageSize | None
) -> tuple[Split, tuple[str, ...]]:
    found = {
        entry.name: _image_files(entry)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise DataError(
            "A folder of images holds one folder per class, `class_name/*.png`. Received: "
            f"`{folder}` without any. For images without classes, use it as calibration data."
        )
    classes = tuple(found) if classes is None else classes
    strange = sorted(set(found) - set(classes))
    if strange:
        raise DataError(
            f"Every class in `{folder}` must be one of the training images: {', '.join(classes)}. "
            f"Received: {', '.join(strange)}."
        )
    files = [file for name in found for file in found[name]]
    labels = [classes.index(name) for name in found for _ in found[name]]
    return Split(read_images(files, image_size), np.asarray(labels, np.int64)), classes


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.rglob("*")
        if entry.suffix.lower() in SUFFIXES and entry.is_file() and not entry.name.startswith(".")
    )


def _find_part(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _target(first: Path, image_size: ImageSize | None) -> tuple[int, int, int]:
    if image_size is None:
        width, height = decode_image(first.read_bytes(), str(first), "RGB").size
        return height, width, 3
    size = tuple(image_size)
    whole = all(isinstance(side, int | np.integer) and side > 0 for side in size)
    if len(size) not in (2, 3) or not whole or (len(size) == 3 and size[2] not in _MODES):
        raise SettingsError(
            "`image_size` is (height, width) or (height, width, channels), channels 1, 3 or 4. "
            f"Received: {image_size!r}."
        )
    return int(size[0]), int(size[1]), int(size[2]) if len(size) == 3 else 3


def _memory_bytes() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system says it
        return math.inf


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            'Reading images needs Pillow: pip install "tfedge[train]" (or `pip install pillow`).'
        ) from error
    return Image
