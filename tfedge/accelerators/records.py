"""Frozen records of pre-flights and compilations, alike for every accelerator."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tfedge.report import Record


@dataclass(frozen=True, kw_only=True)
class LayerEstimate(Record):
    """What a compiler's performance model says of one operator of the file that went in.

    Attributes:
        index: Its number in the file, as in `OperatorMapping`; `None` for what the compiler added
            and ascribes to no operator.
        operator: Its kind, e.g. `"CONV_2D"`.
        layer: As in `OperatorMapping`.
        cycles: Clock cycles of the accelerator. An estimate.
        cycles_fraction: `cycles` as a fraction of the whole file's.
        macs: Multiply-accumulates that the accelerator makes of it.
        utilization: `macs` as a fraction of what it could do in `cycles`; `None` without cycles.
    """

    index: int | None
    operator: str
    layer: str
    cycles: int
    cycles_fraction: float
    macs: int
    utilization: float | None


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
        layers: What it estimates of each operator that it took, in the order of the file.
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
    layers: tuple[LayerEstimate, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    files: tuple[FileMade, ...] = ()

    @property
    def mapped(self) -> int:
        """How many operators the accelerator takes."""
        return sum(row.mapped is True for row in self.operators)
