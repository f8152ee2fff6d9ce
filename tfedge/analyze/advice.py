"""Say what would help which layer, by rules that look at kernels, shares and neighbours."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from tfedge.analyze.records import LayerCost, Suggestion
from tfedge.engines.native.graph import Call, Graph
from tfedge.engines.native.kernels import has_sparse_kernel, kernels_of
from tfedge.engines.native.patterns import ACTIVATIONS, DEFAULT, PATTERNS
from tfedge.engines.native.rewriting import Pattern
from tfedge.report import format_bytes

LARGE = 0.1  # of the model's time or weights: what a layer must hold for advice of its own
MOST_ZEROS = 0.5  # a kernel with more is pruned already
ENERGY = 0.95  # of the squared singular values that a low-rank kernel keeps
LOW_RANK_PART = 0.7  # of the multiply-accumulates that it must get below
MOST_ROWS = 2048  # of a matrix whose singular values are looked at
FEWEST_CHANNELS = 16
CLUSTERED = 50_000  # weights above which clustering is worth its tables
SPATIAL = ("conv_to_separable", "conv5_to_two_conv3")
PREFERRED = tuple(name for name in ACTIVATIONS if name != "gelu_to_relu")


@dataclass(frozen=True)
class Findings:
    """What the rules look at."""

    graph: Graph
    rows: Sequence[LayerCost]
    parameters: int
    quantized: bool

    def calls(self) -> Iterator[tuple[LayerCost, Call]]:
        """Each row with the first call of its layer."""
        first: dict[str, Call] = {}
        for call in self.graph.calls:
            first.setdefault(call.name, call)
        for row in self.rows:
            yield row, first[row.layer]

    def weight(self, row: LayerCost) -> float:
        """A layer's share of the weights of the model."""
        return row.parameters / self.parameters if self.parameters else 0.0


Rule = Callable[[Findings], Iterator[Suggestion]]


def advise(findings: Findings) -> tuple[Suggestion, ...]:
    """All that the rules say: for single layers in the order of their rows, then for the model."""
    found = [suggestion for rule in RULES for suggestion in rule(findings)]
    place = {row.layer: number for number, row in enumerate(findings.rows)}
    return tuple(sorted(found, key=lambda row: place.get(row.layer, len(place))))


def _prune(findings: Findings) -> Iterator[Suggestion]:
    for row, call in findings.calls():
        kernels = kernels_of(call.operation) if call.is_layer else []
        if not kernels or (row.zeros or 0.0) > MOST_ZEROS:
            continue
        if row.share >= LARGE and all(map(has_sparse_kernel, kernels)):
            why = (
                f"a 1×1 convolution of stride 1 that takes {row.share:.0%}: XNNPACK has sparse "
                "kernels for it, and its zeros pack well"
            )
            yield Suggestion(layer=row.layer, stage="Prune", why=why)
        elif findings.weight(row) >= LARGE:
            why = (
                f"it holds {findings.weight(row):.0%} of the weights: zeros make the file smaller "
                "once it is compressed, though no faster"
            )
            yield Suggestion(layer=row.layer, stage="Prune", why=why)


def _low_rank(findings: Findings) -> Iterator[Suggestion]:
    for row, call in findings.calls():
        matrix = _matrix(call)
        if max(row.share, findings.weight(row)) < LARGE or matrix is None:
            continue
        rows, columns = matrix.shape
        rank = rank_of(matrix)
        part = rank * (rows + columns) / (rows * columns)
        if part < LOW_RANK_PART:
            why = (
                f"rank {rank} of {min(rows, columns)} holds {ENERGY:.0%} of its squared singular "
                f"values and takes {part:.0%} of its multiply-accumulates and weights"
            )
            yield Suggestion(layer=row.layer, stage="LowRank", why=why)


def rank_of(matrix: np.ndarray, energy: float = ENERGY) -> int:
    """The smallest rank whose best approximation holds that part of the squared singular values.

    Args:
        matrix: Shape (rows, columns).
        energy: The part, from 0 to 1.

    Example:
        >>> rank_of(np.outer(np.arange(1.0, 5.0), np.ones(3)))
        1
        >>> rank_of(np.eye(4))
        4
    """
    values = np.linalg.svd(matrix, compute_uv=False) ** 2
    held = np.cumsum(values) / max(float(values.sum()), np.finfo(np.float64).tiny)
    return min(len(values), int(np.searchsorted(held, energy)) + 1)


def _matrix(call: Call) -> np.ndarray | None:
    """The kernel of a plain dense or convolutional layer as inputs × outputs."""
    if call.kind not in ("Dense", "Conv1D", "Conv2D") or getattr(call.operation, "groups", 1) > 1:
        return None
    kernel = ops.convert_to_numpy(call.operation.kernel).astype(np.float64)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return matrix if min(matrix.shape) <= MOST_ROWS and matrix.any() else None


def _structured(findings: Findings) -> Iterator[Suggestion]:
    for row, call in findings.calls():
        if call.kind not in ("Conv1D", "Conv2D") or row.share < LARGE:
            continue
        outputs = int(call.operation.kernel.shape[-1])
        if max(call.operation.kernel_size) > 1 and outputs >= FEWEST_CHANNELS:
            why = (
                f"a convolution of {outputs} output channels that takes {row.share:.0%}: with "
                "half of them it takes about half, and so does the layer that reads it"
            )
            yield Suggestion(layer=row.layer, stage="StructuredPrune", why=why)


def _constant(findings: Findings) -> Iterator[Suggestion]:
    for row in findings.rows:
        if row.dead_channels:
            why = f"{row.dead_channels} of its channels have kernels of zeros"
            yield Suggestion(layer=row.layer, stage="RemoveDead", why=why, exact=True)
        constant = (row.constant_channels or 0) - row.dead_channels
        if constant > 0:
            why = (
                f"{constant} of its channels were the same everywhere on the data: with importance "
                "by activations they go first"
            )
            yield Suggestion(layer=row.layer, stage="StructuredPrune", why=why)


def _smaller_kernels(findings: Findings) -> Iterator[Suggestion]:
    for row, call in findings.calls():
        for name in SPATIAL if row.share >= LARGE else ():
            pattern = PATTERNS[name]
            if not _fits(findings.graph, pattern, call):
                continue
            made = pattern.replace(findings.graph, call)
            why = (
                f"it takes {row.share:.0%}; {pattern.does}: {made.error or 0:.0%} of the kernel's "
                "norm is lost before training"
            )
            settings = {"patterns": [name], "layers": [row.layer]}
            yield Suggestion(layer=row.layer, stage="Rewrite", why=why, settings=settings)


def _activations(findings: Findings) -> Iterator[Suggestion]:
    yield from _by_pattern(findings, PREFERRED, " (for int8 and accelerators)")


def _exact_patterns(findings: Findings) -> Iterator[Suggestion]:
    yield from _by_pattern(findings, DEFAULT, "")


def _by_pattern(findings: Findings, names: Sequence[str], end: str) -> Iterator[Suggestion]:
    """One suggestion for each pattern, whatever the number of layers that it fits."""
    for name in names:
        pattern = PATTERNS[name]
        fitting = [
            row.layer for row, call in findings.calls() if _fits(findings.graph, pattern, call)
        ]
        if fitting:
            yield Suggestion(
                layer=fitting[0] if len(fitting) == 1 else "",
                stage="Rewrite",
                why=f"{pattern.does}{end}: {_some(fitting)}",
                settings={"patterns": [name]},
                exact=pattern.exact,
            )


def _fits(graph: Graph, pattern: Pattern, call: Call) -> bool:
    return pattern.concerns(graph, call) and not pattern.hindrance(graph, call)


def _blocks(findings: Findings) -> Iterator[Suggestion]:
    joins = [c for c in findings.graph.calls if c.kind == "Add" and len(c.inputs) > 1]
    if len(joins) > 1:
        why = f"{len(joins)} residual sums: a block that matters little can go whole"
        yield Suggestion(layer="", stage="DropLayers", why=why)


def _whole(findings: Findings) -> Iterator[Suggestion]:
    if findings.quantized or not findings.parameters:
        return
    if findings.parameters >= CLUSTERED:
        why = f"{findings.parameters:,} weights: 16 values for each kernel pack to 4 bits"
        yield Suggestion(layer="", stage="Cluster", why=why)
    size = format_bytes(4 * findings.parameters)
    why = f"its weights take {size} in float32 and a quarter of that in int8"
    yield Suggestion(layer="", stage="Quantize", why=why)


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


RULES: tuple[Rule, ...] = (
    _constant,
    _exact_patterns,
    _smaller_kernels,
    _structured,
    _low_rank,
    _prune,
    _activations,
    _blocks,
    _whole,
)


def dead_channels(layer: Any) -> int:
    """Output channels of a convolution or dense layer whose kernel is all zero."""
    if type(layer).__name__ not in ("Conv1D", "Conv2D", "Conv3D", "Dense"):
        return 0
    kernel = ops.convert_to_numpy(layer.kernel)
    return int(np.sum(~kernel.reshape(-1, kernel.shape[-1]).any(axis=0)))
