"""Which operators of a file run on the NPU, read off the file that Vela made, and why not.

What Vela leaves to the CPU stands in its file as it stood in the one that went in, with the names
of its outputs; all the rest is in the custom operators `ethos-u`. Reasons are what Vela printed.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from tfedge.accelerators.records import OperatorMapping
from tfedge.inspection import InspectionReport, OperatorRecord, layer_of

CUSTOM: Final = "ethos-u"
_WARNING: Final = re.compile(
    r"^Warning \(supported operators\) operator: (\S+), ofm: '(.*)'\nReason: (.*)\n((?:.+\n)*)",
    re.MULTILINE,
)
_DTYPE: Final = re.compile(r"Operation has tensor with unsupported DataType (\w+) \((.*)\)")

Key = tuple[int, str, tuple[str, ...]]


def map_operators(
    source: InspectionReport,
    compiled: InspectionReport,
    log: str,
    sources: Sequence[tuple[int, bool]],
) -> tuple[tuple[OperatorMapping, ...], tuple[str, ...]]:
    """Where each operator runs.

    Args:
        source: The file that went in.
        compiled: The file that Vela made.
        log: What Vela printed.
        sources: See `figures.read_sources`: decides between operators of one kind whose outputs
            have one name.

    Returns:
        One row per operator of `source`, and the kinds of operators on the CPU that `source` does
        not have.
    """
    names = output_names(source), output_names(compiled)
    left = Counter(
        _key(operator, names[1][place])
        for place, operator in enumerate(compiled.operators)
        if operator.name != CUSTOM
    )
    on_cpu = _on_cpu(source, names[0], left, {place for place, is_cpu in sources if is_cpu})
    reasons = _reasons(log)
    rows = tuple(
        OperatorMapping(
            index=place,
            name=operator.name,
            mapped=place not in on_cpu,
            reason=_reason(operator, reasons) if place in on_cpu else None,
            layer=layer_of(operator.output_name),
        )
        for place, operator in enumerate(source.operators)
    )
    added = tuple(key[1] for key, count in left.items() for _ in range(count))
    return rows, added


def output_names(report: InspectionReport) -> list[tuple[str, ...]]:
    """Names of the outputs of each operator, as far as the report has them."""
    return [
        tuple(report.tensors[i].name for i in operator.outputs)
        if operator.subgraph == 0
        else (operator.output_name,)
        for operator in report.operators
    ]


def _key(operator: OperatorRecord, names: tuple[str, ...]) -> Key:
    return operator.subgraph, operator.name, names


def _on_cpu(
    source: InspectionReport,
    names: Sequence[tuple[str, ...]],
    left: Counter[Key],
    marked: set[int],
) -> set[int]:
    """Places of the operators that are still there; takes them out of `left`."""
    found = set()
    order = sorted(range(len(source.operators)), key=lambda place: (place not in marked, place))
    for place in order:
        key = _key(source.operators[place], names[place])
        if left[key] > 0:
            left[key] -= 1
            found.add(place)
    return found


def _reasons(log: str) -> list[tuple[str, str, str, str]]:
    """Kind, name of the output, reason and rule of each warning."""
    return [(m[1], m[2], m[3], " ".join(m[4].split())) for m in _WARNING.finditer(log + "\n")]


def _reason(operator: OperatorRecord, reasons: Sequence[tuple[str, str, str, str]]) -> str:
    """Why an operator stays on the CPU; Vela names a fused activation in its operator's place."""
    own = [
        row for row in reasons if row[1] in (operator.output_name, f"{operator.output_name}_act")
    ]
    own.sort(key=lambda row: row[0] != operator.name)
    if not own:
        return "Vela leaves it on the CPU and gives no reason."
    _, _, reason, rule = own[0]
    if found := _DTYPE.fullmatch(reason):
        return (
            f"Its tensor `{found[2].split(';')[0]}` is {found[1].lower()}, which the NPU does not "
            f"take. Vela: {(rule or reason).rstrip('.')}."
        )
    if reason == "Unsupported opType":
        return f"The NPU has no operator {operator.name}."
    return f"Vela: {reason}" + (f" ({rule.rstrip('.')})." if rule else ".")
