"""Read a file that the Edge TPU compiler made: what runs on the chip, what stays on the CPU."""

import os
from dataclasses import dataclass
from typing import Final

from tfedge.accelerators.edgetpu.graph import Graph, read_graph
from tfedge.accelerators.edgetpu.package import Package, read_packages
from tfedge.accelerators.records import OperatorMapping
from tfedge.errors import FileFormatError
from tfedge.inspection import check_sound, load_bytes
from tfedge.inspection.layout import EDGETPU_OPERATOR
from tfedge.report import Record, format_bytes

ON_CPU: Final = "The compiler left it on the CPU"
MAX_LOOKED_INTO: Final = 64


@dataclass(frozen=True, kw_only=True)
class CompiledFile(Record):
    """What a file holds that the Edge TPU compiler made.

    Attributes:
        path: The file; `None` when bytes were given.
        size_bytes: Its size.
        segments: Edge TPU custom operators in it, which is how many pieces run on the chip.
        operators: All its operators in their order, the custom ones mapped.
        runtime_version: Oldest Edge TPU runtime that can run it; `None` where no package says.
        compiler_version: What the compiler calls itself in it; empty where no package says.
        parameter_bytes_on_chip: Parameters that are loaded once and cached on the chip; `None`
            where a package cannot be read.
        parameter_bytes_streamed: Parameters that are sent to the chip for every run; `None` where
            a package cannot be read.
        packages: What each custom operator holds; the first where it serves several chips.
        notes: Sentences for the reader.
    """

    path: str | None
    size_bytes: int
    segments: int
    operators: tuple[OperatorMapping, ...]
    runtime_version: int | None
    compiler_version: str
    parameter_bytes_on_chip: int | None
    parameter_bytes_streamed: int | None
    packages: tuple[Package, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def cpu_operators(self) -> tuple[OperatorMapping, ...]:
        """The operators that are left on the CPU."""
        return tuple(row for row in self.operators if not row.mapped)

    def __str__(self) -> str:
        left = ", ".join(f"{row.index} {row.name}" for row in self.cpu_operators) or "none"
        cached = (
            "unknown"
            if self.parameter_bytes_on_chip is None or self.parameter_bytes_streamed is None
            else f"{format_bytes(self.parameter_bytes_on_chip)} on the chip, "
            f"{format_bytes(self.parameter_bytes_streamed)} streamed"
        )
        return (
            f"{self.path or 'model'}: {format_bytes(self.size_bytes)}, compiled for the Edge TPU, "
            f"custom operators: {self.segments}, Edge TPU runtime "
            f"{self.runtime_version or 'unknown'} or newer, parameters: {cached}, operators on the "
            f"CPU: {left}"
        )


def inspect_compiled(model: bytes | str | os.PathLike[str]) -> CompiledFile | None:
    """Read a file that the Edge TPU compiler made, without running it.

    Args:
        model: Path of the file, or its content.

    Returns:
        What it holds; `None` if it has no Edge TPU custom operator.

    Raises:
        FileFormatError: There is no such file, or it is no sound `.tflite` file. A package in it
            that cannot be read is no error: its figures are `None` and a note says why.

    Example:
        >>> compiled = inspect_compiled("model_edgetpu.tflite")  # doctest: +SKIP
        >>> compiled.runtime_version, [row.name for row in compiled.cpu_operators]  # doctest: +SKIP
        (14, ['ARG_MAX'])
    """
    data, path = load_bytes(model)
    return read_compiled(read_graph(data, check_sound(data)), path, len(data))


def read_compiled(graph: Graph, path: str | None, size_bytes: int) -> CompiledFile | None:
    """As `inspect_compiled`, of a file that has been read.

    Args:
        graph: Its main subgraph.
        path: Its path.
        size_bytes: Its size.
    """
    custom = [row for row in graph.operators if row.is_custom and row.name == EDGETPU_OPERATOR]
    if not custom:
        return None
    packages: list[Package] = []
    notes: list[str] = []
    for operator in custom[:MAX_LOOKED_INTO]:
        try:
            packages.append(read_packages(operator.custom_options)[0])
        except FileFormatError as error:
            notes.append(f"Operator {operator.index} cannot be looked into. {error}")
    if len(custom) > MAX_LOOKED_INTO:
        notes.append(f"Only the first {MAX_LOOKED_INTO} custom operators were looked into.")
    on_chip = sum(package.parameter_bytes_on_chip for package in packages)
    streamed = sum(package.parameter_bytes_streamed for package in packages)
    return CompiledFile(
        path=path,
        size_bytes=size_bytes,
        segments=len(custom),
        operators=compiled_rows(graph),
        runtime_version=max((row.runtime_version for row in packages), default=None),
        compiler_version=packages[0].compiler_version if packages else "",
        parameter_bytes_on_chip=None if notes else on_chip,
        parameter_bytes_streamed=None if notes else streamed,
        packages=tuple(packages),
        notes=tuple(notes),
    )


def compiled_rows(graph: Graph) -> tuple[OperatorMapping, ...]:
    """One row per operator of a compiled file: the custom ones are mapped, all others are not."""
    rows = []
    for operator in graph.operators:
        mapped = operator.is_custom and operator.name == EDGETPU_OPERATOR
        rows.append(
            OperatorMapping(
                index=operator.index,
                name=operator.name,
                mapped=mapped,
                reason=None if mapped else ON_CPU,
                layer=operator.layer,
            )
        )
    return tuple(rows)
