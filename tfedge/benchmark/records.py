"""What a benchmark finds: a row for what ran, a reason for what did not, and words."""

from dataclasses import dataclass

from tfedge.benchmark.host import HostFacts
from tfedge.report import Record, format_bytes


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow(Record):
    """One model on one delegate with one number of threads.

    Attributes:
        model: Its name.
        delegate: The delegate that was asked for.
        actual: The delegate that ran it.
        threads: Threads of the CPU kernels; 1 on a GPU.
        runtime: Name and version of the runtime.
        init_ms: Milliseconds to open it: read the graph, prepare kernels, allocate.
        p50_ms: Median of one run, in milliseconds; without setting inputs and reading outputs on
            the CPU; with both on a GPU, where they are transfers.
        p90_ms: 90 % of the runs took no longer.
        p99_ms: 99 % of the runs took no longer.
        mean_ms: Mean.
        runs: Timed runs.
        peak_memory_bytes: Most resident memory that the process needed on top of what it held
            before it read the model: the file, its tensors and packed weights.
        size_bytes: Size of the file.
        nodes_delegated: Operators that the delegate took.
        nodes_total: Operators of the file.
        adapter: The device of a GPU; `None` elsewhere.
        precision: What floats were computed in: `"fp32"` or `"fp16"`.
        notes: What to know about how it ran.
    """

    model: str
    delegate: str
    actual: str
    threads: int
    runtime: str
    init_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    runs: int
    peak_memory_bytes: int
    size_bytes: int
    nodes_delegated: int
    nodes_total: int
    adapter: str | None = None
    precision: str = "fp32"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BenchmarkFailure(Record):
    """A row that could not be measured.

    Attributes:
        model: Its name.
        delegate: The delegate that was asked for.
        threads: Threads of the CPU kernels; 1 on a GPU.
        reason: What the delegate said, and the next move.
    """

    model: str
    delegate: str
    threads: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport(Record):
    """Rows that were measured together, and what they say.

    Attributes:
        rows: One for each model, delegate and number of threads that ran.
        failures: The others.
        host: The machine.
        verdicts: Comparisons in words.
        notes: What to bear in mind.
    """

    rows: tuple[BenchmarkRow, ...]
    host: HostFacts
    verdicts: tuple[str, ...]
    notes: tuple[str, ...] = ()
    failures: tuple[BenchmarkFailure, ...] = ()

    def __str__(self) -> str:
        rows = [
            f"{row.model} ({row.adapter or row.actual}, {row.threads} threads): "
            f"p50 {row.p50_ms:.3f} ms, p90 {row.p90_ms:.3f} ms, start {row.init_ms:.1f} ms, "
            f"peak memory {format_bytes(row.peak_memory_bytes)}, {format_bytes(row.size_bytes)}"
            for row in self.rows
        ]
        failures = [
            f"{row.model} did not run on {row.delegate}: {row.reason}" for row in self.failures
        ]
        return "\n".join([*rows, *failures, *self.verdicts, *self.notes])
