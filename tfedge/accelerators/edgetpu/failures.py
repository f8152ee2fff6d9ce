"""Why Google's compiler refused a model, in a sentence that names the layer and the fix.

Its messages are those of issues of google-coral/edgetpu: "Model not quantized" 222, operator
versions 631 and 845, dynamic sizes 586 and 829, large activations 444 and 601, timeouts 686, silent
failures 411 and 800, "Internal compiler error" 60, 157 and 190, crashes 728.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tfedge.accelerators.edgetpu.log import CompilerLog
from tfedge.accelerators.edgetpu.outcome import place
from tfedge.accelerators.records import OperatorMapping
from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import FLOAT_DTYPES
from tfedge.inspection.soundness import buffer_bytes, dtype_of, operator_name, tensor_bytes
from tfedge.report import format_bytes

NAMED: Final = 4  # operators or tensors that are named one by one
WORDS: Final = 400  # of the compiler, that are repeated


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A model that the compiler refused, and what is known of it.

    Attributes:
        path: For people.
        data: Its content.
        fields: Its fields, as `check_sound` returns them.
        predicted: The pre-flight's operators, in the file's order.
        timeout_s: How long the compiler was given.
        segments: How many segments were asked for.
    """

    path: str
    data: bytes
    fields: Fields
    predicted: tuple[OperatorMapping, ...]
    timeout_s: float
    segments: int = 1

    def places(self, indices: Sequence[int]) -> str:
        """Some operators for people, by index."""
        named = [place(self.predicted[index]) for index in indices[:NAMED]]
        more = f" and {len(indices) - NAMED} more" if len(indices) > NAMED else ""
        return f"{', '.join(named)}{more}"


def explain(log: CompilerLog, refused: Refused, code: int) -> str:
    """What went wrong, which layer it is about, and what to do.

    Args:
        log: What the compiler said.
        refused: The model.
        code: The compiler's exit code; negative where a signal ended it.
    """
    said = " / ".join(log.messages)
    version = log.version or "of unknown version"
    head = f"edgetpu_compiler {version} made nothing of {refused.path}"
    words = f' It said: "{said[:WORDS]}".' if said else ""
    for pattern, sentence in FAILURES:
        found = re.search(pattern, said)
        if found:
            return f"{head}: {sentence(refused, found)}{words}"
    if code < 0:
        return f"{head}: signal {-code} ended it. {_doubtful(refused)}{words}"
    return f"{head}: {_silent(refused)}{words}"


def _not_quantized(refused: Refused, found: re.Match[str]) -> str:
    floats = _float_operators(refused)
    if floats:
        return (
            f"the model is not fully integer: it computes in float at {refused.places(floats)}. "
            "Convert it with `tfedge convert --mode int8 --calibration DATA`."
        )
    dynamic = _open_tensors(refused.fields)
    if dynamic:
        return (
            f"it takes the model for one that is not quantized, though every operator is integer: "
            f"tensor {_quoted(dynamic)} has an open size. {_STATIC}"
        )
    return (
        "it takes the model for one that is not quantized, though every operator is integer. The "
        "compiler is of 2021 and may misread what newer converters write: convert the Keras model "
        "with `tfedge convert --mode int8`."
    )


def _unknown_version(refused: Refused, found: re.Match[str]) -> str:
    kind, version = found[1], int(found[2])
    codes = refused.fields["operator_codes"]
    indices = [
        index
        for index, operator in enumerate(refused.fields["subgraphs"][0]["operators"] or [])
        if operator_name(refused.fields, operator) == kind
        and codes[operator["opcode_index"]]["version"] == version
    ]
    where = refused.places(indices) if indices else f"an operator {kind}"
    return (
        f"it does not know {kind} in version {version}, in which the file has {where}. "
        f"{_why_version(kind)}"
    )


def _why_version(kind: str) -> str:
    if kind == "FULLY_CONNECTED":
        return (
            "Converters since 2024 quantize dense layers per channel: convert with `tfedge convert "
            "--mode int8`, which does not, or set the converter's "
            "`_experimental_disable_per_channel_quantization_for_dense_layers = True`."
        )
    return (
        "Convert with `tfedge convert --mode int8`; if it stays, replace the layer by one of "
        "Coral's table of supported operations (https://coral.ai/docs/edgetpu/models-intro)."
    )


def _unknown_operator(refused: Refused, found: re.Match[str]) -> str:
    number = int(found[1])
    indices = [
        index
        for index, operator in enumerate(refused.fields["subgraphs"][0]["operators"] or [])
        if _builtin(refused.fields, operator) == number
    ]
    where = refused.places(indices) if indices else f"operator kind {number}"
    return (
        f"{where} is younger than the compiler, which cannot read files that hold it. Replace the "
        "layer, e.g. an activation by `relu` (`tfedge optimize`, stage `rewrite`)."
    )


def _builtin(fields: Fields, operator: Fields) -> int:
    code = fields["operator_codes"][operator["opcode_index"]]
    return max(code["builtin_code"], code["deprecated_builtin_code"])


def _dynamic(refused: Refused, found: re.Match[str]) -> str:
    dynamic = _open_tensors(refused.fields)
    where = f"tensor {_quoted(dynamic)} has" if dynamic else "an operator computes"
    hint = "" if dynamic else f" Suspects: {_suspects(refused)}."
    return f"{where} a size that is open until the model runs.{hint} {_STATIC}"


_STATIC: Final = (
    "Give the Keras model a fixed input shape, with batch 1, and convert it again; `tfedge "
    "convert` writes static shapes."
)


def _large(refused: Refused, found: re.Match[str]) -> str:
    return (
        f"activations do not fit into the Edge TPU's memory; the largest is {_largest(refused)}. "
        "Make the input smaller, or give the layers there fewer channels or a larger stride."
    )


def _late(refused: Refused, found: re.Match[str]) -> str:
    return (
        f"it did not end within {refused.timeout_s:g} s, which usually comes of large activations; "
        f"the largest is {_largest(refused)}. Give it more time (`timeout_s`), or make the input "
        "smaller."
    )


def _internal(refused: Refused, found: re.Match[str]) -> str:
    return f"an error in the compiler itself, which gives no reason. {_doubtful(refused)}"


def _no_parse(refused: Refused, found: re.Match[str]) -> str:
    return (
        f"it cannot read the file. {_doubtful(refused)} Convert it anew with `tfedge convert "
        "--mode int8`."
    )


def _several_subgraphs(refused: Refused, found: re.Match[str]) -> str:
    count = len(refused.fields["subgraphs"])
    if count == 1:
        return (
            "several parts would run on the Edge TPU, and the compiler allows one. "
            f"{_doubtful(refused)}"
        )
    calls = [
        index
        for index, operator in enumerate(refused.fields["subgraphs"][0]["operators"] or [])
        if operator_name(refused.fields, operator) in ("IF", "WHILE", "CALL_ONCE", "CALL")
    ]
    where = f": {refused.places(calls)} calls them" if calls else ""
    return (
        f"the file holds {count} subgraphs and the Edge TPU runs one{where}. Unroll the loop or "
        "take the branch out of the model, and convert it again."
    )


def _tflite(refused: Refused, found: re.Match[str]) -> str:
    return f"its interpreter, of 2021, could not prepare the model. {_doubtful(refused)}"


def _compiled_already(refused: Refused, found: re.Match[str]) -> str:
    return "it is compiled for the Edge TPU already. Give the file from before its compilation."


def _silent(refused: Refused) -> str:
    pieces = f" into {refused.segments} segments" if refused.segments > 1 else ""
    fewer = " Fewer segments may work." if refused.segments > 1 else ""
    return f"it gave no reason for not compiling{pieces}. {_doubtful(refused)}{fewer}"


def _doubtful(refused: Refused) -> str:
    """What stands in the way as far as the pre-flight knows, else what usually does."""
    suspects = _suspects(refused)
    if suspects:
        return (
            f"The pre-flight does not expect these on the Edge TPU: {suspects}. Replace the first "
            "of them, and compile again."
        )
    return (
        f"The pre-flight expects every operator there; the largest activation is "
        f"{_largest(refused)}. A smaller input often helps."
    )


def _suspects(refused: Refused) -> str:
    rows = [row for row in refused.predicted if row.mapped is not True]
    reasons = [f"{place(row)}{f', {row.reason}' if row.reason else ''}" for row in rows[:NAMED]]
    more = f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return "; ".join(reasons) + more


def _float_operators(refused: Refused) -> list[int]:
    """Operators that read or write an activation in float."""
    graph = refused.fields["subgraphs"][0]
    tensors = graph["tensors"] or []
    floats = {
        index
        for index, tensor in enumerate(tensors)
        if dtype_of(tensor) in FLOAT_DTYPES and not _is_constant(refused, tensor)
    }
    return [
        index
        for index, operator in enumerate(graph["operators"] or [])
        if operator_name(refused.fields, operator) not in ("QUANTIZE", "DEQUANTIZE")
        and floats & {*_listed(operator["inputs"]), *_listed(operator["outputs"])}
    ]


def _is_constant(refused: Refused, tensor: Fields) -> bool:
    return buffer_bytes(refused.data, refused.fields, tensor["buffer"]).size > 0


def _listed(vector: Any) -> list[int]:
    return [] if vector is None else [int(value) for value in vector]


def _open_tensors(fields: Fields) -> list[str]:
    return [
        tensor["name"].split(";")[0]
        for tensor in fields["subgraphs"][0]["tensors"] or []
        if -1 in _listed(tensor["shape_signature"])
    ]


def _quoted(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:NAMED]) + more


def _largest(refused: Refused) -> str:
    """The largest activation, with the operator that writes it."""
    graph = refused.fields["subgraphs"][0]
    written = [
        (tensor_bytes(graph["tensors"][tensor]), index)
        for index, operator in enumerate(graph["operators"] or [])
        for tensor in _listed(operator["outputs"])
    ]
    if not written:
        return "unknown"
    size, index = max(written, key=lambda row: row[0])
    return f"{format_bytes(size)}, which {refused.places([index])} writes"


Sentence = Callable[[Refused, re.Match[str]], str]
FAILURES: Final[tuple[tuple[str, Sentence], ...]] = (
    (r"Model not quantized", _not_quantized),
    (r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'", _unknown_version),
    (r"Op builtin_code out of range: (\d+)", _unknown_operator),
    (r"dynamic-sized tensors|[Dd]ynamic-sized", _dynamic),
    (r"large activation tensors", _large),
    (r"Compilation timeout|timed out|did not end within", _late),
    (r"Internal compiler error", _internal),
    (r"(?i)model already compiled|edgetpu-custom-op", _compiled_already),
    (r"(?i)(multiple|more than one) subgraphs?", _several_subgraphs),
    (r"could not be parsed|Did not get operators", _no_parse),
    (r"Model failed in Tflite interpreter", _tflite),
)
