"""Decode what the compiler put into its custom operator: a FlexBuffer that holds FlatBuffers.

The layout is the one that Google publishes in https://github.com/google-coral/libedgetpu: the
FlexBuffer map in `tflite/custom_op_data.cc`, the package in it in `executable/executable.fbs`.
Every offset is checked against the end of the bytes: a damaged package gives a `FileFormatError`.
"""

import struct
from dataclasses import dataclass
from typing import Final

from tfedge.errors import FileFormatError
from tfedge.report import Record

IDENTIFIER: Final = b"DWN1"
TYPES: Final = ("stand-alone", "parameter-caching", "execution-only")
MAX_ITEMS: Final = 256
MAX_TEXT: Final = 256

_KEY_PACKAGE: Final = b"4"
_KEY_MORE: Final = b"7"
_FLEX_STRING: Final = 5
_FLEX_MAP: Final = 9
_FLEX_VECTOR: Final = 10
_FLEX_BLOB: Final = 25
_SIZED: Final = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}

# Slots of the tables in executable.fbs.
_PACKAGE: Final = {"min_runtime_version": 0, "multi_executable": 1, "compiler_version": 4}
_EXECUTABLE: Final = {"scratch": 4, "bitstreams": 5, "parameters": 6, "chip": 10, "type": 13}


@dataclass(frozen=True, kw_only=True)
class Executable(Record):
    """A program in a package.

    Attributes:
        kind: `"stand-alone"`, `"parameter-caching"` (loads parameters once) or `"execution-only"`.
        chip: Chip that it is for; empty where it does not say.
        parameter_bytes: Parameters that come with it.
        instruction_bytes: Its instructions.
        scratch_bytes: Memory of the host that it needs.
    """

    kind: str
    chip: str
    parameter_bytes: int
    instruction_bytes: int
    scratch_bytes: int


@dataclass(frozen=True, kw_only=True)
class Package(Record):
    """What one Edge TPU custom operator holds.

    Attributes:
        runtime_version: Oldest Edge TPU runtime that can run it.
        compiler_version: What the compiler calls itself in it; empty without.
        executables: Its programs.
    """

    runtime_version: int
    compiler_version: str
    executables: tuple[Executable, ...]

    @property
    def parameter_bytes_on_chip(self) -> int:
        """Parameters that are loaded once and cached."""
        return sum(item.parameter_bytes for item in self.executables if item.kind == TYPES[1])

    @property
    def parameter_bytes_streamed(self) -> int:
        """Parameters that are sent for every run."""
        return sum(item.parameter_bytes for item in self.executables if item.kind != TYPES[1])


def read_packages(options: bytes | memoryview) -> tuple[Package, ...]:
    """The packages in the options of an Edge TPU custom operator, one for each chip.

    Args:
        options: The operator's custom options.

    Raises:
        FileFormatError: They hold no package, or a damaged one.
    """
    return tuple(_read_package(blob) for blob in _blobs(options))


def _read_package(blob: memoryview) -> Package:
    received = bytes(blob[4:8])
    if received != IDENTIFIER:
        raise _broken(f"an Edge TPU package has the identifier {IDENTIFIER!r}", received)
    flat = _Flat(blob)
    root = flat.root()
    inner = _Flat(flat.bytes_at(root, _PACKAGE["multi_executable"]))
    programs = inner.vector_of_bytes(inner.root(), 0)
    return Package(
        runtime_version=flat.number(root, _PACKAGE["min_runtime_version"], "<i"),
        compiler_version=_text(flat.bytes_at(root, _PACKAGE["compiler_version"])),
        executables=tuple(_read_executable(program) for program in programs),
    )


def _read_executable(program: memoryview) -> Executable:
    flat = _Flat(program)
    root = flat.root()
    kind = flat.number(root, _EXECUTABLE["type"], "<h")
    if not 0 <= kind < len(TYPES):
        raise _broken(f"an executable is of a type below {len(TYPES)}", kind)
    streams = flat.tables(root, _EXECUTABLE["bitstreams"])
    return Executable(
        kind=TYPES[kind],
        chip=_text(flat.bytes_at(root, _EXECUTABLE["chip"])),
        parameter_bytes=len(flat.bytes_at(root, _EXECUTABLE["parameters"])),
        instruction_bytes=sum(len(flat.bytes_at(stream, 0)) for stream in streams),
        scratch_bytes=flat.number(root, _EXECUTABLE["scratch"], "<i"),
    )


def _text(raw: memoryview) -> str:
    return bytes(raw[:MAX_TEXT]).decode("utf-8", "replace")


class _Bytes:
    """Reads numbers and pieces of `data`, none of them beyond its end. Pieces are views."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)

    def unpack(self, layout: str, position: int) -> int:
        if not 0 <= position <= len(self.data) - struct.calcsize(layout):
            raise _broken("every offset points into the custom operator", position)
        return int(struct.unpack_from(layout, self.data, position)[0])

    def piece(self, start: int, size: int) -> memoryview:
        if not (start >= 0 and 0 <= size <= len(self.data) - start):
            raise _broken("every piece ends in the custom operator", (start, size))
        return self.data[start : start + size]


class _Flat(_Bytes):
    """A FlatBuffer: tables are known by their position, fields by their slot."""

    def root(self) -> int:
        return self.unpack("<I", 0)

    def field(self, table: int, slot: int) -> int | None:
        """Position of a field, `None` where the table leaves it out."""
        vtable = table - self.unpack("<i", table)
        if 4 + 2 * slot >= self.unpack("<H", vtable):
            return None
        offset = self.unpack("<H", vtable + 4 + 2 * slot)
        return table + offset if offset else None

    def number(self, table: int, slot: int, layout: str) -> int:
        position = self.field(table, slot)
        return 0 if position is None else self.unpack(layout, position)

    def bytes_at(self, table: int, slot: int) -> memoryview:
        position = self.field(table, slot)
        return self.data[:0] if position is None else self._sized(position)

    def vector_of_bytes(self, table: int, slot: int) -> list[memoryview]:
        return [self._sized(position) for position in self._items(table, slot)]

    def tables(self, table: int, slot: int) -> list[int]:
        return [at + self.unpack("<I", at) for at in self._items(table, slot)]

    def _sized(self, position: int) -> memoryview:
        start = position + self.unpack("<I", position)
        return self.piece(start + 4, self.unpack("<I", start))

    def _items(self, table: int, slot: int) -> list[int]:
        position = self.field(table, slot)
        if position is None:
            return []
        start = position + self.unpack("<I", position)
        count = self.unpack("<I", start)
        if count > MAX_ITEMS:
            raise _broken(f"a package lists up to {MAX_ITEMS} items", count)
        return [start + 4 + 4 * i for i in range(count)]


class _Flex(_Bytes):
    """A FlexBuffer, read from its end: a value is known by position, type and width."""

    def uint(self, position: int, width: int) -> int:
        return self.unpack(_SIZED[width], position)

    def root(self) -> tuple[int, int]:
        """Position of the root map and the width of its elements."""
        if len(self.data) < 3:
            raise _broken("a custom operator of the Edge TPU has options", len(self.data))
        width, packed = self.data[-1], self.data[-2]
        if width not in _SIZED or packed >> 2 != _FLEX_MAP:
            raise _broken("the options of the custom operator are a map", packed >> 2)
        at = len(self.data) - 2 - width
        return at - self.uint(at, width), 1 << (packed & 3)

    def items(self, start: int, width: int) -> list[tuple[int, int, int]]:
        """Position, type and width of each element of a vector or map."""
        count = self.uint(start - width, width)
        if count > MAX_ITEMS:
            raise _broken(f"the options hold up to {MAX_ITEMS} items", count)
        types = self.piece(start + count * width, count)
        found = []
        for i, packed in enumerate(types):
            at = start + i * width
            kind, own = packed >> 2, 1 << (packed & 3)
            direct = kind not in (_FLEX_STRING, _FLEX_MAP, _FLEX_VECTOR, _FLEX_BLOB)
            found.append((at if direct else at - self.uint(at, width), kind, own))
        return found

    def keys(self, start: int, width: int) -> list[bytes]:
        """The keys of a map."""
        vector = start - 3 * width
        keys_at = vector - self.uint(vector, width)
        own = self.uint(start - 2 * width, width)
        if own not in _SIZED:
            raise _broken("keys are 1, 2, 4 or 8 bytes apart", own)
        count = self.uint(keys_at - own, own)
        if count > MAX_ITEMS:
            raise _broken(f"the options hold up to {MAX_ITEMS} keys", count)
        places = [keys_at + i * own for i in range(count)]
        return [self._key(at - self.uint(at, own)) for at in places]

    def blob(self, start: int, width: int) -> memoryview:
        """A text or blob."""
        return self.piece(start, self.uint(start - width, width))

    def _key(self, start: int) -> bytes:
        text, end, _ = bytes(self.data[max(start, 0) :][:MAX_TEXT]).partition(b"\0")
        if start < 0 or not end:
            raise _broken("every key ends in the custom operator", start)
        return text


def _blobs(options: bytes | memoryview) -> list[memoryview]:
    flex = _Flex(options)
    start, width = flex.root()
    fields = dict(zip(flex.keys(start, width), flex.items(start, width), strict=False))
    if _KEY_PACKAGE not in fields:
        raise _broken("the options of the custom operator hold a package", sorted(fields))
    at, kind, own = fields[_KEY_PACKAGE]
    if kind not in (_FLEX_STRING, _FLEX_BLOB):
        raise _broken("the package is stored as bytes", kind)
    blobs = [flex.blob(at, own)]
    more, kind, own = fields.get(_KEY_MORE, (0, 0, 0))
    if kind == _FLEX_VECTOR:
        rows = flex.items(more, own)
        blobs += [flex.blob(at, w) for at, k, w in rows if k in (_FLEX_STRING, _FLEX_BLOB)]
    return blobs


def _broken(rule: str, received: object) -> FileFormatError:
    return FileFormatError(
        f"{rule[0].upper()}{rule[1:]}. Received: {received!r}. The compiled file is damaged, or of "
        "a compiler that this version does not know: compile the model again."
    )
