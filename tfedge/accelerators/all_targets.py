"""One file on every target: what takes it, how much of it, how large, how fast, and why not.

Latencies are measured where the target is here (LiteRT's kernels, XNNPACK, GPU), estimates of the
compiler's model where it has one (Ethos-U), and absent elsewhere. No target stops another.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tfedge.accelerators.ethosu import ACCELERATORS, compile_ethosu
from tfedge.accelerators.records import OperatorMapping
from tfedge.benchmark import BenchmarkRow, benchmark
from tfedge.errors import SettingsError, TfedgeError, did_you_mean
from tfedge.inspection import check_sound, load_bytes
from tfedge.report import Record

ON_THIS_MACHINE: Final = ("none", "xnnpack", "gpu")
DEFAULT: Final = (
    *ON_THIS_MACHINE,
    *("edgetpu", "ethos-u55-128", "ethos-u65-256", "ethos-u85-256"),
)
KNOWN: Final = (*ON_THIS_MACHINE, "edgetpu", *ACCELERATORS)
RUNS: Final = 100
SECONDS: Final = 2.0

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class TargetRow(Record):
    """One file on one target.

    Attributes:
        target: Its name.
        outcome: `"runs"` as it is, `"compiles"`, `"predicted"` (nothing was compiled) or `"fails"`.
        mapped: Operators that the target takes; `None` where that is not known.
        operators: Operators of the file.
        size_bytes: Size of the file for the target; `None` where there is none.
        latency_ms: Median of one run, or the compiler's estimate of it; `None` where there is none.
        latency_kind: `"measured"`, `"estimated"` or empty.
        device: What it was measured on, or which system the estimate is for; empty without either.
        reason: Why not, or why not all of it; empty otherwise.
    """

    target: str
    outcome: str
    mapped: int | None = None
    operators: int
    size_bytes: int | None = None
    latency_ms: float | None = None
    latency_kind: str = ""
    device: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class AllTargets(Record):
    """One file on every target.

    Attributes:
        path: The file; `None` when bytes were given.
        rows: One for each target, in the order asked for.
        notes: What to bear in mind.
    """

    path: str | None
    rows: tuple[TargetRow, ...]
    notes: tuple[str, ...]


def all_targets(
    model: bytes | str | os.PathLike[str],
    *,
    targets: Sequence[str] = DEFAULT,
    progress: Progress | None = None,
) -> AllTargets:
    """Try a `.tflite` file on every target. Leaves no file.

    Args:
        model: Path of the file, or its content.
        targets: Some of `KNOWN`.
        progress: Called with a sentence and a fraction.

    Returns:
        A row per target; the reason where one does not take the file, or not all of it.

    Raises:
        SettingsError: An unknown target, or none.
        FileFormatError: No such file, or it is not sound.

    Example:
        >>> for row in all_targets("model_int8.tflite").rows:  # doctest: +SKIP
        ...     print(row.target, row.outcome, row.mapped, row.latency_ms, row.latency_kind)
    """
    _check_targets(targets)
    data, path = load_bytes(model)
    subgraphs = check_sound(data)["subgraphs"]
    count = sum(len(subgraph["operators"] or []) for subgraph in subgraphs)
    say = progress or (lambda what, fraction: None)
    here = [target for target in targets if target in ON_THIS_MACHINE]
    rows = _on_this_machine(data, here, count, say)
    for number, target in enumerate(t for t in targets if t not in here):
        say(f"compiling for {target}", 0.5 + 0.5 * number / (len(targets) - len(here)))
        rows[target] = (
            _edgetpu(data, count) if target == "edgetpu" else _ethosu(data, target, count)
        )
    ordered = tuple(rows[target] for target in targets)
    return AllTargets(path=path, rows=ordered, notes=tuple(_notes(ordered)))


def _check_targets(targets: Sequence[str]) -> None:
    if isinstance(targets, str) or not targets:
        raise SettingsError(f"`targets` is a sequence of targets. Received: {targets!r}.")
    for target in targets:
        if target not in KNOWN:
            raise SettingsError(
                f"`targets` are some of {list(KNOWN)}. Received: {target!r}."
                f"{did_you_mean(target, KNOWN)}"
            )


def _on_this_machine(
    data: bytes, targets: Sequence[str], count: int, say: Progress
) -> dict[str, TargetRow]:
    """Rows of the delegates of this machine, measured in turns."""
    if not targets:
        return {}
    say(f"measuring {', '.join(targets)}", 0.0)
    try:
        report = benchmark({"model": data}, delegates=targets, runs=RUNS, seconds=SECONDS)
    except TfedgeError as error:
        if len(targets) == 1:
            return {targets[0]: _failed(targets[0], count, str(error))}
        alone = [_on_this_machine(data, [target], count, say) for target in targets]
        return {target: row for rows in alone for target, row in rows.items()}
    failed = {row.delegate: _failed(row.delegate, count, row.reason) for row in report.failures}
    return failed | {row.delegate: _measured(row, count) for row in report.rows}


def _measured(row: BenchmarkRow, count: int) -> TargetRow:
    taken = row.nodes_total if row.delegate == "none" else row.nodes_delegated
    rest = row.nodes_total - taken
    return TargetRow(
        target=row.delegate,
        outcome="runs",
        mapped=taken,
        operators=count,
        size_bytes=row.size_bytes,
        latency_ms=row.p50_ms,
        latency_kind="measured",
        device=row.adapter or "CPU of this machine, 1 thread",
        reason=f"LiteRT's own kernels run {rest} of {row.nodes_total} operators." if rest else "",
    )


def _ethosu(data: bytes, target: str, count: int) -> TargetRow:
    try:
        made = compile_ethosu(data, target=target)
    except (TfedgeError, OSError) as error:
        return _failed(target, count, str(error))
    return TargetRow(
        target=target,
        outcome="compiles",
        mapped=made.mapped,
        operators=count,
        size_bytes=made.size_bytes,
        latency_ms=made.estimates.get("latency_ms"),
        latency_kind="estimated",
        device=f"{made.settings['system_config']}, {made.settings['memory_mode']}",
        reason=_why_not(made.operators),
    )


def _edgetpu(data: bytes, count: int) -> TargetRow:
    """Compiled where the compiler is, else predicted."""
    from tfedge.accelerators.edgetpu.command import find_compiler
    from tfedge.accelerators.edgetpu.compiler import compile_edgetpu

    try:
        find_compiler(None, None)
    except TfedgeError as error:
        return _predicted(data, count, error)
    try:
        with tempfile.TemporaryDirectory(prefix="tfedge-") as folder:
            path = Path(folder) / "model.tflite"
            path.write_bytes(data)
            made = compile_edgetpu(path)
    except (TfedgeError, OSError) as error:
        return _failed("edgetpu", count, str(error))
    return TargetRow(
        target="edgetpu",
        outcome="compiles",
        mapped=made.mapped,
        operators=count,
        size_bytes=made.size_bytes,
        reason=_why_not(made.operators),
    )


def _predicted(data: bytes, count: int, missing: TfedgeError) -> TargetRow:
    from tfedge.accelerators.edgetpu.preflight import preflight

    try:
        foreseen = preflight(data)
    except TfedgeError as error:
        return _failed("edgetpu", count, str(error))
    return TargetRow(
        target="edgetpu",
        outcome="predicted",
        mapped=sum(row.mapped is True for row in foreseen.operators),
        operators=count,
        reason=" ".join(filter(None, [_why_not(foreseen.operators), str(missing)])),
    )


def _failed(target: str, count: int, reason: str) -> TargetRow:
    return TargetRow(target=target, outcome="fails", operators=count, reason=reason)


def _why_not(operators: Sequence[OperatorMapping]) -> str:
    """Why operators are not taken: each kind once, with the reason of the first of it."""
    reasons: dict[str, str] = {}
    for row in operators:
        if row.mapped is not True:
            reasons.setdefault(row.name, (row.reason or "no reason is given").rstrip("."))
    return " ".join(f"{name}: {reason}." for name, reason in reasons.items())


def _notes(rows: Sequence[TargetRow]) -> Iterator[str]:
    kinds = {row.latency_kind for row in rows}
    if "measured" in kinds:
        yield "Measured: median of single runs on this machine, in turns."
    if "estimated" in kinds:
        yield (
            "Estimated: Vela's model of the system named, of the operators on the NPU only. Nobody "
            "measured it."
        )
    if any(row.outcome == "predicted" for row in rows):
        yield "Predicted: by the pre-flight, from documented rules and observed limits."
