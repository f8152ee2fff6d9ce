"""Say in words what a benchmark shows."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

SAME: Final = 1.05  # ratios below it are noise


class Row(Protocol):
    """What is read of a `BenchmarkRow`."""

    model: str
    actual: str
    threads: int
    p50_ms: float


def verdicts_of(rows: Sequence[Any]) -> tuple[str, ...]:
    """Compare models, delegates and numbers of threads, each with the first one that was given.

    Args:
        rows: `BenchmarkRow`s, in the order they were asked for.

    Returns:
        Sentences on the medians. Ratios below 1.05 count as the same.
    """
    models = _against_first(
        rows,
        key=lambda row: (row.actual, row.threads),
        say=lambda row, first: (
            f"{row.model} is {_compare(row, first, first.model)} on this host ({row.actual}, "
            f"{_threads(row)})"
        ),
    )
    delegates = _against_first(
        [row for row in rows if row.actual != "gpu"],
        key=lambda row: (row.model, row.threads),
        say=lambda row, first: (
            f"{row.model} on {row.actual} is {_compare(row, first, f'on {first.actual}')} "
            f"({_threads(row)})"
        ),
    )
    threads = _against_first(
        rows,
        key=lambda row: (row.model, row.actual),
        say=lambda row, first: (
            f"{row.model} with {_threads(row)} is {_compare(row, first, f'with {first.threads}')} "
            f"({row.actual})"
        ),
    )
    return (*models, *delegates, *_against_the_cpu(rows), *threads)


def _against_the_cpu(rows: Sequence[Any]) -> list[str]:
    """Every row of a GPU against the same model's fastest row on the CPU."""
    sentences = []
    for row in rows:
        others = [other for other in rows if other.model == row.model and other.actual != "gpu"]
        if row.actual == "gpu" and others:
            best = min(others, key=lambda other: other.p50_ms)
            where = f"on {best.actual} with {_threads(best)}"
            sentences.append(f"{row.model} on the GPU is {_compare(row, best, where)}")
    return sentences


def _against_first(
    rows: Sequence[Any], *, key: Callable[[Any], Any], say: Callable[[Any, Any], str]
) -> list[str]:
    firsts: dict[Any, Any] = {}
    sentences = []
    for row in rows:
        first = firsts.setdefault(key(row), row)
        if first is not row:
            sentences.append(say(row, first))
    return sentences


def _compare(row: Row, first: Row, other: str) -> str:
    """How `row` compares with `first`, which is called `other`.

    Example:
        >>> from types import SimpleNamespace as Row
        >>> _compare(Row(p50_ms=1.7), Row(p50_ms=1.0), "float32")
        '1.7× slower than float32'
        >>> _compare(Row(p50_ms=1.0), Row(p50_ms=1.02), "float32")
        'as fast as float32'
    """
    slower = row.p50_ms / first.p50_ms
    if max(slower, 1 / slower) < SAME:
        return f"as fast as {other}"
    return (
        f"{slower:.1f}× slower than {other}"
        if slower > 1
        else f"{1 / slower:.1f}× faster than {other}"
    )


def _threads(row: Row) -> str:
    return f"{row.threads} thread" + ("s" if row.threads > 1 else "")
