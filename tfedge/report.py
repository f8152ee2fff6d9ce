"""Frozen records of what each step did."""

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of all records: plain values, `to_dict()` for JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The record as plain dicts, lists, strings and numbers that JSON can hold.

        Numbers that JSON has no word for (infinity, not-a-number) become `None`.
        """
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def plain(value: Any) -> Any:
    """`value` in types that JSON can hold.

    Example:
        >>> plain({"sqnr_db": float("inf"), "shape": (1, 2)})
        {'sqnr_db': None, 'shape': [1, 2]}
    """
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class Skipped:
    """A layer that a stage left alone, and why."""

    layer: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """The two as a dict."""
        return {"layer": self.layer, "reason": self.reason}


@dataclass(frozen=True, kw_only=True)
class StageReport(Record):
    """What one stage did to every layer of a model.

    Attributes:
        stage: Name of the stage, e.g. `"prune"`.
        engine: `"native"` (Keras 3) or `"tfmot"` (tf_keras).
        changed: Names of the layers that it changed.
        skipped: Layers that it left alone, each with the reason.
        metrics: Figures, e.g. `{"sparsity": 0.8}`; names carry their unit.
        notes: Sentences for the reader.
    """

    stage: str
    engine: str = "native"
    changed: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As `Record.to_dict`."""
        return {**super().to_dict(), "skipped": [row.to_dict() for row in self.skipped]}

    def __str__(self) -> str:
        head = f"{self.stage}: changed {len(self.changed)}, skipped {len(self.skipped)}"
        figures = "".join(
            f", {name} {value:.4g}"
            for name, value in self.metrics.items()
            if isinstance(value, int | float)
        )
        rows = "".join(f"\n  skipped {row.layer}: {row.reason}" for row in self.skipped)
        return head + figures + rows


def format_bytes(size: float) -> str:
    """A size for people: bytes, KiB or MiB.

    Example:
        >>> format_bytes(900), format_bytes(20_480), format_bytes(3_145_728)
        ('900 B', '20.0 KiB', '3.00 MiB')
    """
    if size < 1024:
        return f"{size:.0f} B"
    if size < 1024 * 1024:
        return f"{size / 1024:.1f} KiB"
    return f"{size / 1024 / 1024:.2f} MiB"
