"""Frozen records of pre-flights and compilations, alike for every accelerator."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tfedge.report import Record


@dataclass(frozen=True, kw_only=True)
class OperatorMapping(Record):
    """Where an operator of a `.tflite` file runs.

    Attributes:
        index: Its number in the file, in order of execution.
        name: Its kind, e.g. `"CONV_2D"`.
        mapped: Whether the accelerator takes it; `None` where that is not known.
        reason: Why not, or why it is not known; `None` where it is taken.
        layer: The layer of the model that it came from, as far as the file says; empty without.
    """

    index: int
    name: str
    mapped: bool | None
    reason: str | None = None
    layer: str = ""


@dataclass(frozen=True, kw_only=True)
class FileMade(Record):
    """One of several files that a compilation made: a segment, or a model beside others.

    Attributes:
        path: Where it stands.
        size_bytes: Its size.
        figures: As `Compilation.figures`, of this file alone.
    """

    path: str
    size_bytes: int
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Compilation(Record):
    """What the compiler of an accelerator made of a `.tflite` file.

    Attributes:
        target: E.g. `"edgetpu"`, `"ethos-u55-128"`.
        compiler: Its name and version.
        path: The file that it made; `None` where the caller kept the bytes only.
        size_bytes: Size of that file.
        operators: Of the file that went in, in its order.
        figures: What the compiler says, by name with unit, e.g. `{"sram_bytes": 51840}`.
        estimates: The same for what it estimates and nobody measured, e.g. `{"cycles": 201747}`.
        settings: What it was told, written out, e.g. `{"memory_mode": "Shared_Sram"}`.
        notes: Sentences for the reader.
        seconds: How long it took.
        files: All files that it made, where there are several; `path` is then the first.
    """

    target: str
    compiler: str
    path: str | None
    size_bytes: int
    operators: tuple[OperatorMapping, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    estimates: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    files: tuple[FileMade, ...] = ()

    @property
    def mapped(self) -> int:
        """How many operators the accelerator takes."""
        return sum(row.mapped is True for row in self.operators)
