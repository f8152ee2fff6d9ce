"""Read what Vela says of a file: its summary, and cycles and MACs of each operator.

Vela writes sizes of memories in KiB, and rates and times from a model of the system: figures are
what the file needs, estimates what nobody measured.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tfedge.accelerators.ethosu.configurations import INSTALL
from tfedge.accelerators.records import LayerEstimate
from tfedge.errors import CompilationError
from tfedge.inspection import InspectionReport

# Our name: column of the summary, factor.
FIGURES: Final = {
    "sram_bytes": ("sram_memory_used", 1024),
    "dram_bytes": ("dram_memory_used", 1024),
    "on_chip_flash_bytes": ("on_chip_flash_memory_used", 1024),
    "off_chip_flash_bytes": ("off_chip_flash_memory_used", 1024),
    "weights_bytes": ("total_original_weights", 1),
    "encoded_weights_bytes": ("total_npu_encoded_weights", 1),
    "npu_macs": ("nn_macs", 1),
}
LIMITS: Final = {  # of the system, as configured
    "clock_hz": ("core_clock", 1),
    "arena_cache_limit_bytes": ("arena_cache_size", 1024),
}
ESTIMATES: Final = {
    "cycles": ("cycles_total", 1),
    "npu_cycles": ("cycles_npu", 1),
    "sram_access_cycles": ("cycles_sram_access", 1),
    "dram_access_cycles": ("cycles_dram_access", 1),
    "on_chip_flash_access_cycles": ("cycles_on_chip_flash_access", 1),
    "off_chip_flash_access_cycles": ("cycles_off_chip_flash_access", 1),
    "latency_ms": ("inference_time", 1000),
    "inferences_per_second": ("inferences_per_second", 1),
    "sram_traffic_bytes": ("sram_total_bytes", 1),
    "dram_traffic_bytes": ("dram_total_bytes", 1),
    "on_chip_flash_traffic_bytes": ("on_chip_flash_total_bytes", 1),
    "off_chip_flash_traffic_bytes": ("off_chip_flash_total_bytes", 1),
}
_TABLE: Final = re.compile(r'<table name="(\w+)">')
_ROW: Final = re.compile(r'\d+,"?(-?\d+)"?,"?-?\d+"?,"(\w+)","')
_SOURCE: Final = re.compile(r'(\d+),"[^"]*",.*,"?(-?\d+)"?$')


def read_summary(text: str) -> tuple[dict[str, float], ...]:
    """Figures, estimates and limits of Vela's `*_summary_<system-config>.csv`.

    Args:
        text: The file's text.

    Returns:
        What the file needs, what Vela estimates, and what it took the system to have, each by name
        with unit; zeros, as for memories that are not used, are left out.

    Raises:
        CompilationError: A column is missing.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    row = rows[0] if rows else {}
    tables = FIGURES, ESTIMATES, LIMITS
    columns = [column for table in tables for column, _ in table.values()]
    missing = [column for column in columns if row.get(column) is None]
    if missing:
        raise CompilationError(
            f"Vela's summary must have the columns {', '.join(missing)}. Received: "
            f"{', '.join(row) or 'no row'}. This version of Vela does not work with this version "
            f"of tfedge: {INSTALL}."
        )
    return tuple(_values(row, table) for table in tables)


def _values(row: Mapping[str, str], columns: Mapping[str, tuple[str, int]]) -> dict[str, float]:
    found = {name: float(row[column]) * factor for name, (column, factor) in columns.items()}
    return {
        name: int(value) if value.is_integer() else value
        for name, value in found.items()
        if math.isfinite(value) and value
    }


def read_layers(
    text: str,
    sources: Sequence[tuple[int, bool]],
    report: InspectionReport,
    names: Sequence[str],
    *,
    macs_per_cycle: int,
    cycles: float,
) -> tuple[LayerEstimate, ...]:
    """Cycles and MACs of each operator that the NPU takes, from Vela's `*_per-layer.csv`.

    Vela makes several steps of one operator (28 of a SOFTMAX) and fuses others: the steps of an
    operator are added up.

    Args:
        text: The file's text.
        sources: Of each of its rows, see `read_sources`.
        report: What the file that went in holds.
        names: Layer of each of its operators.
        macs_per_cycle: Of the accelerator.
        cycles: Of the whole file.

    Returns:
        One row per operator with a step on the NPU, in the order of the file, then one for steps
        that Vela ascribes to none. Of a file with several subgraphs, Vela 5.2 gives the last one's
        only. Empty where the rows do not fit `sources`.
    """
    steps = list(_steps(text))
    if len(steps) != len(sources):
        return ()
    sums: dict[int, list[int]] = {}
    places = _ascribed(steps, [index for index, _ in sources], report)
    for (own_cycles, macs, _), index, (_, on_cpu) in zip(steps, places, sources, strict=True):
        if not on_cpu:
            row = sums.setdefault(index, [0, 0])
            row[0] += own_cycles
            row[1] += macs
    return tuple(
        LayerEstimate(
            index=index if index >= 0 else None,
            operator=report.operators[index].name if index >= 0 else "added by Vela",
            layer=names[index] if index >= 0 else "",
            cycles=sums[index][0],
            cycles_fraction=sums[index][0] / cycles if cycles else 0.0,
            macs=sums[index][1],
            utilization=sums[index][1] / (sums[index][0] * macs_per_cycle)
            if sums[index][0]
            else None,
        )
        for index in sorted(sums, key=lambda index: (index < 0, index))
    )


def _ascribed(
    steps: Sequence[tuple[int, int, str]], places: Sequence[int], report: InspectionReport
) -> list[int]:
    """`places`, with steps of none ascribed to the operator whose output the last of them writes.

    Vela 5.2 rewrites an ARG_MAX into five steps and says of none that it came from it.
    """
    known = set(places)
    writers = {
        operator.output_name: place
        for place, operator in enumerate(report.operators)
        if place not in known
    }
    found, writer = [], -1
    for (_, _, name), place in zip(reversed(steps), reversed(places), strict=True):
        own = place if place < len(report.operators) else -1
        writer = writers.get(name, writer) if own < 0 else -1
        found.append(own if own >= 0 else writer)
    return found[::-1]


def _steps(text: str) -> Iterator[tuple[int, int, str]]:
    """Cycles, MACs and name of each row; the name comes last and may hold commas and new lines."""
    lines = text.splitlines()
    header = lines[0].split(",") if lines else []
    if not {"Op Cycles", "MAC Count"} <= set(header):
        return
    cycles, macs = header.index("Op Cycles"), header.index("MAC Count")
    for line in lines[1:]:
        cells = line.split(",", len(header) - 1)
        if len(cells) == len(header) and cells[cycles].isdigit() and cells[macs].isdigit():
            yield int(cells[cycles]), int(cells[macs]), cells[-1]


def read_sources(database: Path, report: InspectionReport) -> list[tuple[int, bool]]:
    """For each step of Vela the operator of the file that it came from, by the debug database.

    Args:
        database: The `*_debug.xml` that `--enable-debug-db` leaves.
        report: What the file that went in holds.

    Returns:
        For each row of `*_per-layer.csv` the operator's place in `report.operators` (-1: Vela
        ascribes the step to none) and whether the step stays on the CPU.
    """
    rows: list[tuple[int, bool]] = []
    places: dict[int, tuple[int, int]] = {}
    subgraph, last, table = 0, -1, ""
    if not database.is_file():
        return []
    with database.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if found := _TABLE.match(line):
                table = found[1]
            elif table == "perf" and (found := _ROW.match(line)):
                rows.append((int(found[1]), found[2] == "Passthrough"))
            elif table == "source" and (found := _SOURCE.match(line.rstrip())):
                key = int(found[2])
                subgraph += len(_starts(report)) > 1 and key <= last
                places[int(found[1])], last = (subgraph, key), key
    starts = _starts(report)
    return [(_place(places.get(source), starts), on_cpu) for source, on_cpu in rows]


def _starts(report: InspectionReport) -> dict[int, int]:
    """Of each subgraph the place of its first operator in `report.operators`."""
    starts: dict[int, int] = {}
    for place, operator in enumerate(report.operators):
        starts.setdefault(operator.subgraph, place)
    return starts


def _place(source: tuple[int, int] | None, starts: Mapping[int, int]) -> int:
    if source is None or source[0] not in starts or source[1] < 0:
        return -1
    return starts[source[0]] + source[1]
