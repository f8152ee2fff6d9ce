"""What an analysis found: rows for layers, suggestions, and the recipe that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfedge.report import Record, format_bytes

PLACEHOLDER = "your_data.npz"
MAX_DROP = 1.0  # points of the metric

# Stage classes in the order in which a recipe runs them, each with its key in recipes.
STAGES: Mapping[str, str] = {
    "Rewrite": "rewrite",
    "RemoveDead": "remove_dead",
    "DropLayers": "drop_layers",
    "LowRank": "low_rank",
    "StructuredPrune": "structured_prune",
    "Prune": "prune",
    "Cluster": "cluster",
    "Quantize": "quantize",
}
# What a recipe says of the stages whose strength the budget chooses.
SEARCHED: Mapping[str, Any] = {
    "low_rank": {"flops": "auto"},
    "structured_prune": {"flops": "auto"},
    "prune": {"sparsity": "auto"},
    "cluster": {"number_of_clusters": "auto"},
    "quantize": "auto",
}


@dataclass(frozen=True, kw_only=True)
class LayerCost(Record):
    """What one layer costs for one sample.

    Attributes:
        layer: Its name; nested models are taken apart.
        kind: Its class.
        place: Its place in the order of execution, from 0.
        parameters: Its weights.
        macs: Multiply-accumulates of its kernels, all its calls together.
        output_bytes: Size of what it writes, in the model's own types.
        zeros: Fraction of zeros in its kernels; `None` without one.
        dead_channels: Output channels whose kernel is all zero.
        constant_channels: Output channels that were the same everywhere on the data; `None`
            without data.
        latency_ms: Median time of its operators, each run alone; `None` where nothing was measured,
            0 where the converter left no operator of it.
        operators: LiteRT's names of its operators.
        fused_into: The layer whose operator does its work too; empty where it has its own.
        share: Its part of the measured time of all layers; of the multiply-accumulates where
            nothing was measured.
    """

    layer: str
    kind: str
    place: int
    parameters: int
    macs: int
    output_bytes: int
    zeros: float | None = None
    dead_channels: int = 0
    constant_channels: int | None = None
    latency_ms: float | None = None
    operators: tuple[str, ...] = ()
    fused_into: str = ""
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Suggestion(Record):
    """What would help a layer, or the whole model.

    Attributes:
        layer: Name of the layer; empty for the whole model.
        stage: Class of the stage, e.g. `"LowRank"`.
        settings: Some of its settings, where the analysis knows them.
        why: The reason, with the figures that were found.
        exact: Whether outputs stay equal.
    """

    layer: str
    stage: str
    why: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class Analysis(Record):
    """Where the costs of a model lie.

    Attributes:
        model: Its name.
        layers: A row for each layer, bottlenecks first: by measured time, by multiply-accumulates
            where nothing was measured.
        parameters: Weights of the model.
        macs: Multiply-accumulates for one sample.
        peak_bytes: The most memory that activations take at once, in order of execution.
        threads: Threads that were measured with.
        latency_ms: Median time of the whole float32 file; `None` where nothing was measured.
        layers_ms: Sum of the times of the operators, each run alone.
        unassigned_ms: The part of that whose layer could not be told from the file.
        suggestions: What would help, for the slowest layers first, for the whole model last.
        notes: Sentences for the reader.
    """

    model: str
    layers: tuple[LayerCost, ...]
    parameters: int
    macs: int
    peak_bytes: int
    threads: int
    latency_ms: float | None = None
    layers_ms: float | None = None
    unassigned_ms: float = 0.0
    suggestions: tuple[Suggestion, ...] = ()
    notes: tuple[str, ...] = ()

    def steps(self, known: Sequence[str]) -> list[Any]:
        """The steps of a recipe that the suggestions add up to, as YAML holds them.

        Suggestions that change outputs and have no search by budget (rewriting activations, say)
        are choices of their own and left to the reader.

        Args:
            known: Names of the stages that recipes have.
        """
        steps: list[Any] = []
        for stage, key in STAGES.items():
            rows = [row for row in self.suggestions if row.stage == stage]
            if not rows or key not in known:
                continue
            if key in SEARCHED:
                steps.append({key: SEARCHED[key]})
            elif exact := [row for row in rows if row.exact]:
                steps.append(_exact_step(key, exact))
        return steps

    def recipe(
        self,
        model: str,
        data: str = PLACEHOLDER,
        *,
        known: Sequence[str] = ("prune", "finetune", "quantize"),
    ) -> dict[str, Any]:
        """A recipe in plain values, as `tfedge.recipe.as_recipe` takes them.

        Args:
            model: What it says of the model: a file or `module:function`.
            data: What it says of the data. Default: a name to replace.
            known: Names of the stages that recipes have.
        """
        return {
            "name": Path(model).stem.replace(":", "_"),
            "model": model,
            "data": data,
            "max_drop": MAX_DROP,
            "stages": self.steps(known),
            "convert": ["float32", "int8"],
        }

    def __str__(self) -> str:
        head = (
            f"{self.model}: {self.parameters:,} parameters, {self.macs:,} multiply-accumulates, "
            f"{format_bytes(self.peak_bytes)} of activations at most"
        )
        if self.latency_ms is not None:
            head += f", {self.latency_ms:.3f} ms"
        rows = [
            f"  {row.share:6.1%}  {row.layer} ({row.kind}): {row.parameters:,} parameters, "
            f"{row.macs:,} MACs, {format_bytes(row.output_bytes)} out{_time(row)}"
            for row in self.layers
        ]
        helps = [f"{row.stage} {row.layer or 'whole model'}: {row.why}" for row in self.suggestions]
        return "\n".join([head, *rows, *helps, *self.notes])


def _exact_step(key: str, rows: Sequence[Suggestion]) -> Any:
    """One step for several suggestions of a stage: their lists of names joined."""
    joined: dict[str, list[str]] = {}
    for row in rows:
        for name, values in row.settings.items():
            known = joined.setdefault(name, [])
            known += [value for value in values if value not in known]
    return {key: joined} if joined else key


def _time(row: LayerCost) -> str:
    if row.fused_into:
        return f", in the operator of {row.fused_into}"
    return "" if row.latency_ms is None else f", {row.latency_ms:.4f} ms"
