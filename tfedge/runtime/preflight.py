"""Say, operator by operator, what a delegate takes of a file: from what the delegate itself says.

- XNNPACK and delegates of libraries: the file is opened, and the nodes that the delegate took are
  counted back to operators.
- The GPU: LiteRT's accelerator prints the kinds that it does not take, with reasons. Where a kind
  that it names occurs more than once, each operator of this kind is opened in a file of its own.
"""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from tfedge.errors import DelegateError, SettingsError, did_you_mean
from tfedge.inspection import check_sound, load_bytes, read_model
from tfedge.inspection.decode import Fields
from tfedge.inspection.soundness import operator_name
from tfedge.report import Record
from tfedge.runtime import gpu_refusals as refusals
from tfedge.runtime.gpu import Device, find_device
from tfedge.runtime.gpu_rewrites import without_strided_pointwise
from tfedge.runtime.interpreter import InterpreterBackend
from tfedge.runtime.one_operator import one_operator

DELEGATES: Final = ("gpu", "xnnpack")


@dataclass(frozen=True, kw_only=True)
class OperatorFate(Record):
    """What a delegate does with an operator.

    Attributes:
        index: Its number in the file, in order of execution.
        name: Its kind, e.g. `"CONV_2D"`.
        taken: Whether the delegate takes it; `None` where it does not say.
        reason: Why not, in the delegate's words, or why it is not known; `None` where it is taken.
    """

    index: int
    name: str
    taken: bool | None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class DelegatePreflight(Record):
    """What a delegate takes of a file.

    Attributes:
        delegate: `"gpu"` or `"xnnpack"`.
        operators: One for each operator of the file's first graph, in its order.
        runs: Whether the delegate runs the file at all: on the GPU all of it or nothing.
        error: Why not, and the next move; `None` if it runs.
        found_by: How this was found.
    """

    delegate: str
    operators: tuple[OperatorFate, ...]
    runs: bool
    error: str | None
    found_by: str


def preflight(
    model: bytes | str | os.PathLike[str], *, delegate: str, allow_software: bool = False
) -> DelegatePreflight:
    """What a delegate takes of a `.tflite` file, operator by operator.

    Args:
        model: Path of the file, or its content.
        delegate: `"gpu"` or `"xnnpack"`.
        allow_software: Whether a GPU that is a program on the CPU may be asked.

    Returns:
        A row for each operator, and whether the file runs.

    Raises:
        DelegateError: There is no such device here to ask.
        FileFormatError: No such file, or it is not sound.
        SettingsError: Another delegate.

    Example:
        >>> found = preflight("model.tflite", delegate="gpu")  # doctest: +SKIP
        >>> [(row.name, row.reason) for row in found.operators if not row.taken]  # doctest: +SKIP
        [('RFFT2D', 'Operation is not supported.')]
    """
    if delegate not in DELEGATES:
        raise SettingsError(
            f"`delegate` must be one of {list(DELEGATES)}. Received: {delegate!r}."
            f"{did_you_mean(delegate, DELEGATES)}"
        )
    data, path = load_bytes(model)
    fields = check_sound(data)
    if delegate == "xnnpack":
        return _ask_xnnpack(data, fields, path or "the model")
    device = find_device("fp32")
    if not (device.adapter.is_hardware or allow_software):
        raise refusals.software_adapter(device.adapter)
    return _ask_gpu(data, fields, path or "the model", device)


def _ask_xnnpack(data: bytes, fields: Fields, path: str) -> DelegatePreflight:
    reason = "XNNPACK left it to LiteRT's own kernels, and gave no reason."
    taken: frozenset[int] = frozenset()
    trouble = None
    try:
        backend = InterpreterBackend(data, fields, path=path, delegate="xnnpack", threads=1)
    except DelegateError as error:
        trouble = str(error)
    else:
        taken = backend.taken
        backend.close()
    rows = [
        OperatorFate(index=i, name=name, taken=i in taken, reason=None if i in taken else reason)
        for i, name in enumerate(_names(fields))
    ]
    return DelegatePreflight(
        delegate="xnnpack",
        operators=tuple(rows),
        runs=trouble is None,
        error=trouble,
        found_by="the nodes that XNNPACK took when the file was opened",
    )


def _ask_gpu(data: bytes, fields: Fields, path: str, device: Device) -> DelegatePreflight:
    names = _names(fields)
    model, messages, error = device.attempt(without_strided_pointwise(data, fields)[0])
    wrong = refusals.left_to_the_cpu(messages) or refusals.misbuilt(messages)
    if model is not None and not wrong and names:
        rows = [OperatorFate(index=i, name=name, taken=True) for i, name in enumerate(names)]
        trouble, found_by = None, "the GPU's accelerator took the whole file"
    else:
        refused = refusals.refused_operators(messages)
        rows = _gpu_rows(data, names, refused, device)
        trouble = str(refusals.refused_model(path, fields, device.adapter, error, messages))
        found_by = "what the GPU's accelerator printed on opening the file" + (
            "; operators of a kind that it named, one by one" if refused else ", and one by one"
        )
    return DelegatePreflight(
        delegate="gpu",
        operators=tuple(rows),
        runs=trouble is None,
        error=trouble,
        found_by=found_by,
    )


def _gpu_rows(data: bytes, names: list[str], refused: Any, device: Device) -> list[OperatorFate]:
    content, counts, rows = read_model(data), Counter(names), []
    for index, name in enumerate(names):
        if refused and name not in refused:
            rows.append(OperatorFate(index=index, name=name, taken=True))
        elif refused and counts[name] == 1:
            reason = " ".join(refused[name])
            rows.append(OperatorFate(index=index, name=name, taken=False, reason=reason))
        else:
            rows.append(_alone(content, index, name, device))
    return rows


def _alone(content: Any, index: int, name: str, device: Device) -> OperatorFate:
    """What the accelerator says of one operator in a file of its own."""
    model, messages, error = device.attempt(one_operator(content, index))
    reasons = refusals.refused_operators(messages).get(name, ())
    if reasons:
        return OperatorFate(index=index, name=name, taken=False, reason=" ".join(reasons))
    if model is None:
        cause = refusals.native_cause(error, messages)
        return OperatorFate(
            index=index, name=name, taken=None, reason=f"It does not open by itself: {cause}."
        )
    return OperatorFate(index=index, name=name, taken=True)


def _names(fields: Fields) -> list[str]:
    return [operator_name(fields, op) for op in fields["subgraphs"][0]["operators"] or []]
