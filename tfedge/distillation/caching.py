"""Keep what a teacher says of every sample, in memory or on disk, so that it is asked once."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfedge.data.nests import leaves, map_leaves
from tfedge.distillation.teachers import BATCH, check_finite_outputs, digest_of
from tfedge.errors import FileWriteError

PROBED = 8
PROGRESS = "progress.json"
SAVED_EVERY = 16  # batches between two notes of the progress on disk
FORMAT = "1"  # of the folder; another one is another cache


class TeacherCache:
    """What teachers said, by a digest of teacher, layers and data: a stale entry is never found.

    Args:
        folder: Where to keep it on disk. Default: in memory, as long as this object lives.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._held: dict[str, list[np.ndarray]] = {}

    @property
    def on_disk(self) -> bool:
        """Whether it outlives this object."""
        return self._folder is not None

    def outputs(self, teacher: Any, x: Any) -> list[np.ndarray]:
        """What a teacher says of all samples; it is asked where that is not known yet.

        Args:
            teacher: `KerasTeacher` or `FileTeacher`.
            x: An array, or a tuple or dict of them; first axis the samples.

        Returns:
            Outputs, then features; first axis the samples, in the order of `x`.

        Raises:
            TrainingError: The teacher says NaN.
            FileWriteError: The folder cannot be written to.
        """
        key = cache_key(teacher, x)
        if key not in self._held:
            whole = None if self._folder is None else self._folder / f"teacher-{key}"
            said = _asked(teacher, x) if whole is None else _on_disk(whole, teacher, x)
            # of each teacher, only what it said of the latest data
            self._held = {k: v for k, v in self._held.items() if k[:40] != key[:40]}
            self._held[key] = said
        return self._held[key]


def _on_disk(whole: Path, teacher: Any, x: Any) -> list[np.ndarray]:
    if not whole.is_dir():
        try:
            _fill(whole, teacher, x)
        except OSError as error:
            raise FileWriteError(
                f"What the teacher says could not be written to `{whole.parent}`: {error}. Free "
                "some space, or keep it in memory: `cache=True`."
            ) from error
    return [np.load(path, mmap_mode="r") for path in _files(whole)]


def cache_key(teacher: Any, x: Any) -> str:
    """Digest of a teacher and of data, as hexadecimal digits; the first 40 are the teacher's."""
    sample = map_leaves(lambda leaf: leaf[:PROBED], x)
    return f"{teacher.identity(sample).hex()}-{digest_of(x).hex()}-{FORMAT}"


def _batches(teacher: Any, x: Any, start: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    count = len(leaves(x)[0])
    for first in range(start, count, BATCH):
        said = teacher.outputs(map_leaves(lambda leaf: leaf[first : first + BATCH], x))  # noqa: B023
        check_finite_outputs(said, teacher, first)
        yield first, said


def _asked(teacher: Any, x: Any) -> list[np.ndarray]:
    count = len(leaves(x)[0])
    arrays: list[np.ndarray] = []
    for first, said in _batches(teacher, x, 0):
        if not arrays:
            arrays = [np.empty((count, *part.shape[1:]), part.dtype) for part in said]
        for array, part in zip(arrays, said, strict=True):
            array[first : first + len(part)] = part
    return arrays


def _fill(whole: Path, teacher: Any, x: Any) -> None:
    """Write a cache into a folder beside its place, go on where one broke off, then move it."""
    partial = whole.with_name(f"{whole.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    start = _progress(partial)
    arrays: list[Any] = [np.load(path, mmap_mode="r+") for path in _files(partial)]
    for number, (first, said) in enumerate(_batches(teacher, x, start)):
        if not arrays:
            arrays = [_new_file(partial, i, len(leaves(x)[0]), p) for i, p in enumerate(said)]
        for array, part in zip(arrays, said, strict=True):
            array[first : first + len(part)] = part
        if number % SAVED_EVERY == SAVED_EVERY - 1:
            _save_progress(partial, arrays, first + len(said[0]))
    for array in arrays:
        array.flush()
    del arrays
    (partial / PROGRESS).unlink(missing_ok=True)
    try:
        partial.rename(whole)
    except OSError:
        if not whole.is_dir():  # else another process was quicker; it wrote the same
            raise
        shutil.rmtree(partial, ignore_errors=True)


def _progress(partial: Path) -> int:
    """Samples that are on disk already; what is not whole is thrown away."""
    try:
        return int(json.loads((partial / PROGRESS).read_text())["samples"])
    except (OSError, ValueError, KeyError, TypeError):
        for path in _files(partial):
            path.unlink()
        return 0


def _save_progress(partial: Path, arrays: list[Any], samples: int) -> None:
    for array in arrays:
        array.flush()  # the numbers first, then the note that says they are there
    temporary = partial / f"{PROGRESS}.new"
    temporary.write_text(json.dumps({"samples": samples}))
    temporary.replace(partial / PROGRESS)


def _new_file(partial: Path, index: int, count: int, part: np.ndarray) -> Any:
    path = partial / f"{index:03}.npy"
    array = np.lib.format.open_memmap(
        path, mode="w+", dtype=part.dtype, shape=(count, *part.shape[1:])
    )
    with contextlib.suppress(AttributeError), path.open("r+b") as file:
        # a full disk is an error here; later it would end the process
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.npy"))
