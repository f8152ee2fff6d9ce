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


@dataclass(frozen=True, kw_only=True)
class StepRecord(Record):
    """A model on its way through a recipe: the baseline, or what a trial of a step made.

    Attributes:
        step: Name of the step, e.g. `"baseline"`, `"1-prune"`; trials of one step share it.
        title: What was done, for people, e.g. `"prune to 91 % zeros"`.
        outcome: `"baseline"`, `"accepted"`, `"rejected"` or `"skipped"`.
        reason: Why it was rejected or skipped; empty otherwise.
        settings: Settings of the stage, as in the recipe.
        strength: The setting that the budget moves, e.g. `{"sparsity": 0.91}`; empty without one.
        figures: Name of each figure of merit to its value on the evaluation data, of the model in
            float; empty for a step that was skipped.
        drops: The same names to how much worse that is than the baseline's float32 file, in the
            metric's unit; negative where it is better.
        size_bytes: Size as a float32 `.tflite` file; `None` where there is none.
        gzip_bytes: That size after `gzip -9`.
        sparsity: Fraction of zeros in its kernels.
        parameters: Weights of the model.
        stage: What the stage did to every layer; `None` for the baseline.
        epochs: What Keras logged per epoch, e.g. `{"loss": (0.3, 0.2)}`.
        model: Path of the Keras model in the run directory; empty where none was kept.
        final: Whether the files that the run leaves came by way of this model.
        seconds: How long it took.
    """

    step: str
    title: str
    outcome: str
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    strength: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    drops: Mapping[str, float] = field(default_factory=dict)
    size_bytes: int | None = None
    gzip_bytes: int | None = None
    sparsity: float | None = None
    parameters: int | None = None
    stage: StageReport | None = None
    epochs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    model: str = ""
    final: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FileRecord(Record):
    """A `.tflite` file that a run made.

    Attributes:
        path: Its path in the run directory.
        mode: Mode of its conversion.
        way: How its integers came about, e.g. `"calibration"` or `"quantization-aware training"`;
            empty for a float file.
        outcome: `"baseline"`, `"accepted"` or `"rejected"`.
        reason: Which limit it breaks; empty otherwise.
        figures: As in `StepRecord`, measured on the file itself.
        drops: As in `StepRecord`.
        size_bytes: Its size.
        gzip_bytes: Its size after `gzip -9`.
        sparsity: Fraction of zeros in its kernels.
        macs: Multiply-accumulates of one run.
        operators: Number of operators.
        float_operators: Rows `{"index", "name", "layer", "reason"}` of those that compute in float.
        agreement: Fraction of samples with the same argmax as the Keras model that it was
            converted from; `None` without classes.
        sqnr_db: Signal to quantisation noise between the two, in dB; `None` if there is no noise.
        verdict: The comparison of the two in words.
        sha256: Of its bytes.
        seconds: How long conversion and evaluation took.
    """

    path: str
    mode: str
    way: str = ""
    outcome: str
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    drops: Mapping[str, float] = field(default_factory=dict)
    size_bytes: int
    gzip_bytes: int
    sparsity: float
    macs: int
    operators: int
    float_operators: tuple[Mapping[str, Any], ...] = ()
    agreement: float | None = None
    sqnr_db: float | None = None
    verdict: str = ""
    sha256: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LayerRecord(Record):
    """The kernel of one layer before a run and after it.

    Attributes:
        layer: Name of the layer.
        kind: Its class.
        shape: Shape of its kernel.
        sparsity_before: Fraction of zeros in the kernel of the baseline.
        sparsity_after: The same of the last accepted model; `None` where the layer is gone.
        edges: Limits of the histogram's bins, one more than there are bins.
        before: Non-zero weights of the baseline in each bin.
        after: Non-zero weights of the last accepted model in each bin.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    sparsity_before: float
    sparsity_after: float | None
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RunReport(Record):
    """What `tfedge optimize` did: `report.json`.

    Attributes:
        name: Name of the recipe.
        fits: Whether a file meets every limit.
        best: Path of the smallest file (after gzip) that does, float32 aside where other modes were
            asked for; without one, of the smallest file within `max_drop`; `None` without any.
        spent_by: The step that spent the budget where nothing fits; empty otherwise.
        verdicts: The result in sentences.
        metrics: Rows `{"name", "higher_is_better", "unit"}`, `unit` being `"points"` for figures
            that are fractions (shown in percent) and empty for others.
        budget: Name of each figure to the worst value that is allowed; empty without `max_drop`.
        limits: Other limits, e.g. `{"gzip_bytes": 50000}`.
        steps: Baseline and every trial, in order of time.
        files: The files, the baseline's first.
        latency: Rows of `benchmark` (`BenchmarkRow.to_dict()`, `model` being the file's path).
        latency_verdicts: What the measurement says in words.
        layers: Kernels before and after.
        data: `{"name", "train_samples", "evaluation_samples", "calibration_samples", "notes",
            "sha256"}`.
        recipe: The recipe as resolved.
        hashes: SHA-256 of recipe, model and data.
        versions: Package to version.
        host: Facts about the machine, as `HostFacts.to_dict()`.
        inputs: Inputs of the best file, rows `{"label", "dtype", "shape", "scale"}`.
        accelerators: What the accelerators among the recipe's targets make of the int8 file, rows
            `{"target", "path", "preflight", "compiled", "compilation", "why_not"}`.
        notes: Sentences for the reader.
        started: When the run began, ISO 8601 in UTC.
        seconds: How long it took, interruptions not counted.
    """

    name: str
    fits: bool
    best: str | None
    spent_by: str = ""
    verdicts: tuple[str, ...]
    metrics: tuple[Mapping[str, Any], ...]
    budget: Mapping[str, float]
    limits: Mapping[str, float]
    steps: tuple[StepRecord, ...]
    files: tuple[FileRecord, ...]
    latency: tuple[Mapping[str, Any], ...]
    latency_verdicts: tuple[str, ...]
    layers: tuple[LayerRecord, ...]
    data: Mapping[str, Any]
    recipe: Mapping[str, Any]
    hashes: Mapping[str, str]
    versions: Mapping[str, str]
    host: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...] = ()
    accelerators: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    started: str = ""
    seconds: float = 0.0
