"""Decode a `.tflite` file into plain values, every offset checked against the end of the file.

The generated FlatBuffer classes follow any offset that a damaged file holds; this reader does not.
It needs neither LiteRT nor flatbuffers.
"""

import functools
import struct
from typing import Any, Final

import numpy as np

from tfedge.errors import FileFormatError
from tfedge.inspection.layout import IDENTIFIER, NUMPY_KINDS, SCHEMA_VERSION, TABLES, UNIONS

Fields = dict[str, Any]

MAX_ITEMS: Final = 4_000_000
MAX_TABLES: Final = 400_000  # about 2 s; the largest known models have some ten thousand
_U16, _I32, _U32 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I")
_SCALARS: Final = {kind: struct.Struct("<" + kind) for kind in NUMPY_KINDS}


def decode(data: bytes) -> Fields:
    """The root table of a `.tflite` file: dicts of scalars, text, lists of dicts, numpy vectors.

    A table that is absent is `None`, and so is a vector; byte vectors are views into `data`. A
    union is a dict whose key `""` names its table.

    Args:
        data: The whole file.

    Returns:
        The fields of the table `Model` (see `layout.TABLES`).

    Raises:
        FileFormatError: It is no `.tflite` file, or an offset in it points out of it.
    """
    if len(data) < 16:
        raise FileFormatError(
            f"A `.tflite` file has at least 16 bytes. Received {len(data)} bytes. {_NEXT_MOVE}"
        )
    if data[4:8] != IDENTIFIER:
        raise FileFormatError(
            f"A `.tflite` file has the identifier {IDENTIFIER!r} at byte 4. Received "
            f"{bytes(data[4:8])!r}.{_guess(data)}"
        )
    model = _Reader(data).table(_U32.unpack_from(data, 0)[0], "Model")
    if model["version"] != SCHEMA_VERSION:
        raise FileFormatError(
            f"The file must be of schema version {SCHEMA_VERSION}. Received {model['version']}. "
            f"{_NEXT_MOVE}"
        )
    return model


_NEXT_MOVE: Final = "The file is damaged or truncated: copy or convert it again."
_OTHER_FORMATS: Final = (
    (0, b"\x89HDF", "a Keras `.h5` file"),
    (0, b"PK\x03\x04", "a zip archive, perhaps a `.keras` file"),
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the file itself"),
)


def _guess(data: bytes) -> str:
    for start, magic, meaning in _OTHER_FORMATS:
        if data[start : start + len(magic)] == magic:
            return f" It looks like {meaning}. Convert a Keras model with `tfedge convert` first."
    return " Give a file that a LiteRT (TensorFlow Lite) converter wrote."


@functools.cache
def _plan(name: str) -> tuple[tuple[str, str, Any], ...]:
    """The fields of table `name` in slot order: name, kind, default."""
    rows = []
    for word in TABLES.get(name, "").split():
        field, _, rest = word.partition(":")
        kind, _, default = rest.partition("=")
        rows.append((field, kind, int(default or 0)))
    return tuple(rows)


class _Reader:
    """Follows offsets in `data`.

    Tables, numbers and text may be shared in a FlatBuffer, so a small file can describe a huge
    one: what is decoded is counted, and may not exceed twice what the file could hold unshared.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.left = min(MAX_ITEMS, len(data) // 2 + 16)
        self.tables = 0

    def table(self, position: int, name: str) -> Fields:
        """Decode the table `name` at `position`."""
        self._spend(1)
        self.tables += 1
        if self.tables > MAX_TABLES:
            raise FileFormatError(
                f"A file holds up to {MAX_TABLES} tables. Received: more. {_NEXT_MOVE}"
            )
        slots = self._vtable(position, name)
        fields: Fields = {}
        for slot, (field, kind, default) in enumerate(_plan(name)):
            offset = slots[slot] if slot < len(slots) else 0
            if offset:
                fields[field] = self._value(position + offset, field, kind, fields)
            else:
                fields[field] = default if kind in _SCALARS else None
        return fields

    def _vtable(self, position: int, name: str) -> tuple[int, ...]:
        self._need(position, 4, f"table {name}", aligned=4)
        start = position - _I32.unpack_from(self.data, position)[0]
        self._need(start, 4, f"vtable of {name}", aligned=2)
        vtable_size, table_size = struct.unpack_from("<HH", self.data, start)
        self._need(start, vtable_size, f"vtable of {name}")
        self._need(position, table_size, f"table {name}")
        if vtable_size < 4 or vtable_size % 2 or table_size < 4:
            raise self._broken(f"vtable of {name}", start)
        count = (vtable_size - 4) // 2
        slots = struct.unpack_from(f"<{count}H", self.data, start + 4)
        for (field, kind, _), offset in zip(_plan(name), slots, strict=False):
            width = _SCALARS[kind].size if kind in _SCALARS else 4
            if offset and not 4 <= offset <= table_size - width:
                raise self._broken(f"{name}.{field}", position)
        if any(offset >= table_size for offset in slots[len(_plan(name)) :]):
            raise self._broken(f"vtable of {name}", start)
        return slots

    def _value(self, position: int, field: str, kind: str, fields: Fields) -> Any:
        if kind in _SCALARS:
            return _SCALARS[kind].unpack_from(self.data, position)[0]
        target = position + _U32.unpack_from(self.data, position)[0]
        if kind == "s":
            return self._text(target, field)
        if kind == "U":
            return self._union(target, field, fields[f"{field}_type"])
        if kind[0] == "[":
            return self._vector(target, field, kind[1:])
        return self.table(target, kind)

    def _union(self, position: int, field: str, type_number: int) -> Fields | None:
        tables = UNIONS[field]
        if type_number >= len(tables):
            raise FileFormatError(
                f"`{field}` must be of a type below {len(tables)}. Received {type_number}. The "
                "file is damaged, or written for a newer LiteRT than this version knows."
            )
        if type_number == 0:
            return None
        name = tables[type_number]
        return {"": name, **self.table(position, name)}

    def _vector(self, position: int, field: str, kind: str) -> Any:
        self._need(position, 4, field, aligned=4)
        count = _U32.unpack_from(self.data, position)[0]
        start = position + 4
        if kind in NUMPY_KINDS:
            dtype = NUMPY_KINDS[kind]
            self._need(start, count * dtype.itemsize, field)
            if dtype.itemsize > 1:  # bytes are only viewed
                self._spend(count)
            return np.frombuffer(self.data, dtype, count, start)
        self._need(start, count * 4, field)
        offsets = struct.unpack_from(f"<{count}I", self.data, start)
        return [self.table(start + 4 * i + offset, kind) for i, offset in enumerate(offsets)]

    def _text(self, position: int, field: str) -> str:
        self._need(position, 4, field, aligned=4)
        count = _U32.unpack_from(self.data, position)[0]
        self._need(position + 4, count + 1, field)
        self._spend(count // 4)
        raw = self.data[position + 4 : position + 5 + count]
        if raw[-1] != 0:
            raise self._broken(field, position)
        try:
            return bytes(raw[:-1]).decode()
        except UnicodeDecodeError as error:  # LiteRT's Python side cannot read it either
            raise FileFormatError(
                f"Text must be UTF-8. Received for `{field}`: {raw[:32]!r}. {_NEXT_MOVE}"
            ) from error

    def _spend(self, items: int) -> None:
        self.left -= items
        if self.left < 0:
            raise FileFormatError(
                f"A file of {self.size} bytes cannot hold as much as this one describes. "
                f"{_NEXT_MOVE}"
            )

    def _need(self, position: int, size: int, what: str, *, aligned: int = 1) -> None:
        if position < 0 or position + size > self.size or position % aligned:
            raise self._broken(what, position)

    def _broken(self, what: str, position: int) -> FileFormatError:
        return FileFormatError(
            f"Every offset must point into the file ({self.size} bytes). Received one at or to "
            f"byte {position} for {what} that does not. {_NEXT_MOVE}"
        )
