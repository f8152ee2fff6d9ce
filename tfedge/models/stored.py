"""Read what a model file stores once, before any Keras sees it: all of it is there, and fits.

HDF5 follows what a file says. Reading every part of it here, after a look at its size, finds data
sets that claim terabytes, links in circles and damaged blocks, with one error for all of them.
"""

import math
import shutil
import tempfile
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

from tfedge.errors import ModelError, UnsafeModelError

DAMAGE: Final = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
MAX_PACKING: Final = 1100  # deflate makes at most 1 byte of 1032
SMALL_BYTES: Final = 2**20


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise unless the members of a zip archive lie inside it and unpack to what its size allows.

    Args:
        path: The archive's file, for messages.
        archive: The open archive.

    Raises:
        UnsafeModelError: A member's name leads out of the archive.
        ModelError: The members are larger than the file can hold.
    """
    for info in archive.infolist():
        if info.filename.startswith("/") or ".." in Path(info.filename).parts:
            raise UnsafeModelError(
                f"The parts of a model file lie in it. `{path}` holds {info.filename!r}, which "
                "leads out of it. Fetch the model from a source that you trust."
            )
    size = sum(info.file_size for info in archive.infolist())
    if size > MAX_PACKING * path.stat().st_size + SMALL_BYTES:
        raise ModelError(
            f"`{path}` is not sound: it says that it unpacks to {size} bytes, more than a file of "
            f"{path.stat().st_size} bytes can hold. Fetch it or save it again."
        )


def check_weights(path: Path, archive: zipfile.ZipFile, h5py: types.ModuleType) -> int:
    """Read the weights in a `.keras` archive once.

    Args:
        path: The archive's file, for messages.
        archive: The open archive.
        h5py: The module.

    Returns:
        How many numbers they hold.

    Raises:
        UnsafeModelError: Parts of them lie in another file.
        ModelError: They are not sound.
    """
    stored = 0
    for name in archive.namelist():
        if not name.endswith(".h5"):
            continue
        with tempfile.TemporaryFile() as copied:
            with archive.open(name) as packed:
                shutil.copyfileobj(packed, copied, SMALL_BYTES)
            size = copied.tell()
            with h5py.File(copied, "r") as file:
                stored += check_hdf5(path, file, size, h5py)
    return stored


def check_hdf5(path: Path, file: Any, size_bytes: int, h5py: types.ModuleType) -> int:
    """Read an open HDF5 file once.

    Args:
        path: The file that it is or lies in, for messages.
        file: `h5py.File`.
        size_bytes: Its size.
        h5py: The module.

    Returns:
        How many numbers its data sets hold.

    Raises:
        UnsafeModelError: Parts of it lie in another file.
        ModelError: It claims more than it can hold, or leads in circles.
    """
    stored, seen = 0, set()
    waiting: list[tuple[str, Any]] = [("", file)]
    while waiting:
        name, node = waiting.pop()
        place = h5py.h5o.get_info(node.id).addr
        if place in seen:
            raise _unsound(path, f"its part `{name}` is another part, too")
        seen.add(place)
        for key in node.attrs:
            node.attrs[key]
        if isinstance(node, h5py.Group):
            waiting += [(f"{name}/{key}".lstrip("/"), _member(path, node, key, name, h5py))
                        for key in node]  # fmt: skip
        elif isinstance(node, h5py.Dataset):
            stored += _read(path, name, node, size_bytes, h5py)
    return stored


def _member(path: Path, group: Any, key: str, prefix: str, h5py: types.ModuleType) -> Any:
    link = group.get(key, getlink=True)
    member = None if isinstance(link, h5py.ExternalLink | h5py.SoftLink) else group[key]
    if member is None or (isinstance(member, h5py.Dataset) and member.external):
        name = f"{prefix}/{key}".lstrip("/")
        raise UnsafeModelError(
            f"A model file is complete in itself. `{path}` takes `{name}` from another file or "
            "place of this machine; tfedge does not follow such links."
        )
    return member


def _read(path: Path, name: str, data: Any, size_bytes: int, h5py: types.ModuleType) -> int:
    """Read a data set, after a look at the size that it claims; returns its number of elements."""
    if data.shape is None:
        return 0
    if data.dtype.kind == "O" and h5py.check_string_dtype(data.dtype) is None:
        raise _unsound(path, f"`{name}` holds no numbers but {data.dtype}")
    elements, kept = math.prod(data.shape), data.id.get_storage_size()
    claimed = elements * data.dtype.itemsize
    if kept > size_bytes or claimed > MAX_PACKING * kept + SMALL_BYTES:
        raise _unsound(path, f"`{name}` claims {claimed} bytes and stores {kept}")
    data[()]
    return elements


def _unsound(path: Path, cause: str) -> ModelError:
    return ModelError(f"`{path}` is not sound: {cause}. Fetch it or save it again.")
