"""Show what the accelerators among a recipe's targets make of the int8 file."""

from collections.abc import Mapping
from typing import Any, Final

from tfedge.accelerators.edgetpu.command import without_how_to_get_it
from tfedge.page.cells import Cell, Column, Group, Row, Table
from tfedge.page.formats import MISSING
from tfedge.report import RunReport

NAMED: Final = 6  # kinds of operators that are named


def accelerators_table(report: RunReport) -> Table:
    """A row for each accelerator."""
    return Table(
        caption="Where the operators of the int8 file run",
        note="Predicted by tfedge's pre-flight where there is no compiled file",
        columns=(
            Column(title="target", words=True),
            Column(title="operators there"),
            Column(title="not known"),
            Column(title="on the CPU", words=True),
            Column(title="compiled file", words=True),
        ),
        groups=(Group(rows=tuple(_row(row) for row in report.accelerators)),),
    )


def _row(row: Mapping[str, Any]) -> Row:
    made = row.get("compilation")
    operators = _operators(made if isinstance(made, Mapping) else row.get("preflight"))
    states = [operator.get("mapped") for operator in operators]
    left = [str(o.get("name", "")) for o in operators if o.get("mapped") is False]
    kinds = list(dict.fromkeys(left))
    more = f" and {len(kinds) - NAMED} more kinds" if len(kinds) > NAMED else ""
    compiled = row.get("compiled")
    why_not = without_how_to_get_it(str(row.get("why_not", "")))
    return Row(
        cells=(
            Cell(text=str(row.get("target", ""))),
            Cell(text=f"{states.count(True)} of {len(states)}"),
            Cell(text=str(states.count(None))),
            Cell(text=", ".join(kinds[:NAMED]) + more if kinds else MISSING),
            Cell(text=str(compiled), code=True) if compiled else Cell(text="none", detail=why_not),
        )
    )


def _operators(mapping: Any) -> list[Mapping[str, Any]]:
    """The rows of operators of a pre-flight or a compilation, as far as they are such."""
    found = mapping.get("operators") if isinstance(mapping, Mapping) else None
    if not isinstance(found, list | tuple):
        return []
    return [row for row in found if isinstance(row, Mapping)]
