"""Which operators of a file the compiler put on the Edge TPU, and how that was foreseen.

The log counts operators by kind and status and does not say which they are. The compiled files do:
what stays on the CPU keeps its kind and the name of the tensor that it writes. So the files decide,
the log gives the reasons, and where the two disagree a note says so.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from tfedge.accelerators.edgetpu.log import ModelLog, Row, meaning
from tfedge.accelerators.records import OperatorMapping
from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import OPERATORS
from tfedge.inspection.soundness import operator_name

SHOWN: Final = 6  # differences that are told one by one


def mapping_of(
    model: Fields,
    compiled: Sequence[Fields],
    logs: Sequence[ModelLog],
    predicted: Sequence[OperatorMapping],
) -> tuple[tuple[OperatorMapping, ...], tuple[str, ...]]:
    """Where every operator of a model runs after compilation.

    Args:
        model: Fields of the file that went in, as `check_sound` returns them.
        compiled: Those of the file, or of the segments, that came out.
        logs: What the log says of each of them.
        predicted: The pre-flight's operators, in the model's order; give names of layers.

    Returns:
        The operators in the model's order, and sentences on what disagrees.
    """
    rows = [row for log in logs for row in log.rows]
    kinds = _kinds(model)
    left = _left_on_cpu(model, compiled)
    layers = [row.layer for row in predicted] or [""] * len(kinds)
    operators = tuple(
        OperatorMapping(
            index=index,
            name=operator_name(model, operator),
            mapped=index not in left,
            reason=_reason(kinds[index], rows) if index in left else None,
            layer=layers[index],
        )
        for index, operator in enumerate(_operators(model))
    )
    notes = (*_disagreement(kinds, left, rows), *_surprises(operators, predicted))
    return operators, notes


def _operators(model: Fields) -> list[Fields]:
    operators: list[Fields] = model["subgraphs"][0]["operators"] or []
    return operators


def _kinds(model: Fields) -> list[str]:
    """The kind of each operator as the compiler's log calls it: custom ones are all `CUSTOM`."""
    names = []
    for operator in _operators(model):
        code = model["operator_codes"][operator["opcode_index"]]
        names.append(OPERATORS[max(code["builtin_code"], code["deprecated_builtin_code"])])
    return names


def _written(model: Fields) -> list[tuple[str, str]]:
    """The kind of each operator, and the name of the first tensor that it writes."""
    tensors = model["subgraphs"][0]["tensors"]
    rows = []
    for operator in _operators(model):
        outputs = operator["outputs"]
        first = "" if outputs is None or not len(outputs) else tensors[int(outputs[0])]["name"]
        rows.append((operator_name(model, operator), first))
    return rows


def _left_on_cpu(model: Fields, compiled: Sequence[Fields]) -> frozenset[int]:
    kept = {row for fields in compiled for row in _written(fields)}
    return frozenset(index for index, row in enumerate(_written(model)) if row in kept)


def _reason(kind: str, rows: Sequence[Row]) -> str:
    """What the log says of the operators of a kind that stay on the CPU."""
    said = Counter[str]()
    for row in rows:
        if row.name == kind and not row.mapped:
            said[row.status] += row.count
    if not said:
        return "the compiler left it on the CPU, and its log does not say why"
    if len(said) == 1:
        return meaning(next(iter(said)))
    several = "; ".join(f"{count} × {meaning(status)}" for status, count in said.items())
    return f"one of these, by the log's counts of {kind}: {several}"


def _disagreement(kinds: Sequence[str], left: frozenset[int], rows: Sequence[Row]) -> list[str]:
    """Kinds of which log and file do not leave the same number on the CPU."""
    if not rows:
        return []
    in_file = Counter(kinds[index] for index in left)
    in_log = Counter[str]()
    for row in rows:
        in_log[row.name] += 0 if row.mapped else row.count
    return [
        f"The compiled file keeps {in_file[kind]} {kind} on the CPU, the compiler's log says "
        f"{in_log[kind]}. The file is what runs."
        for kind in sorted(set(in_file) | set(in_log))
        if in_file[kind] != in_log[kind]
    ]


def _surprises(
    operators: Sequence[OperatorMapping], predicted: Sequence[OperatorMapping]
) -> list[str]:
    """Prediction against result."""
    if not predicted:
        return []
    known = [row for row in predicted if row.mapped is not None]
    wrong = [row for row in known if row.mapped != operators[row.index].mapped]
    mapped = sum(row.mapped is True for row in operators)
    unknown = len(predicted) - len(known)
    head = (
        f"The compiler mapped {mapped} of {len(operators)} operators; the pre-flight foresaw "
        f"{sum(row.mapped is True for row in known)}"
        f"{f' and did not know of {unknown}' if unknown else ''}, "
        f"{'and was right on each' if not wrong else f'and was wrong on {len(wrong)}'}."
    )
    told = [
        f"{place(operators[row.index])}: foreseen on the {_where(row.mapped)}, is on the "
        f"{_where(operators[row.index].mapped)}"
        f"{_because(operators[row.index].reason or row.reason)}"
        for row in wrong[:SHOWN]
    ]
    more = [f"{len(wrong) - SHOWN} more differ."] if len(wrong) > SHOWN else []
    return [head, *told, *more]


def _where(mapped: bool | None) -> str:
    return "Edge TPU" if mapped else "CPU"


def _because(reason: str | None) -> str:
    return f": {reason}." if reason else "."


def place(row: OperatorMapping) -> str:
    """An operator for people, e.g. ``operator 3 CONV_2D (`conv1`)``."""
    return f"operator {row.index} {row.name}{f' (`{row.layer}`)' if row.layer else ''}"
