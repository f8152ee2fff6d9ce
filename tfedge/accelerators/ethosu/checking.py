"""Check a file that Vela made against the one that it was made of, without the NPU.

LiteRT on a PC has no kernel for the custom operator `ethos-u`: outputs cannot be compared here.
What can be checked is that the file is sound, is called in the same way, and that what is left to
the CPU is what stood there before: kinds, options, constants, types, scales and connections.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from tfedge.accelerators.ethosu.mapping import CUSTOM
from tfedge.errors import CompilationError, FileFormatError
from tfedge.inspection import check_sound
from tfedge.inspection.decode import Fields
from tfedge.inspection.soundness import buffer_bytes, dtype_of, operator_name, shape_of

_OPTIONS: Final = ("builtin_options", "builtin_options2", "custom_options")


class File:
    """A decoded `.tflite` file with its bytes.

    Attributes:
        data: The bytes.
        fields: What they hold.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.fields = data, check_sound(data)

    def tensor(self, subgraph: Fields, index: int) -> dict[str, Any]:
        """What a tensor is, apart from its number: a constant by its content, others by name."""
        if index < 0:
            return {}
        tensor = subgraph["tensors"][index]
        content = buffer_bytes(self.data, self.fields, tensor["buffer"])
        quantization = tensor["quantization"] or {}
        return {
            "name": "" if len(content) else tensor["name"] or "",
            "content": content.tobytes(),
            "shape": shape_of(tensor),
            "dtype": dtype_of(tensor),
            "scale": _plain(quantization.get("scale")) or (),
            "zero_point": _plain(quantization.get("zero_point")) or (),
        }

    def sides(self, subgraph: Fields) -> dict[str, list[dict[str, Any]]]:
        """The inputs and outputs of a subgraph."""
        return {
            side: [self.tensor(subgraph, i) for i in _plain(subgraph[side]) or ()]
            for side in ("inputs", "outputs")
        }

    def signatures(self) -> dict[str, dict[str, str]]:
        """Of each signature, the tensors behind its names."""
        found = {}
        for signature in self.fields["signature_defs"] or []:
            tensors = self.fields["subgraphs"][signature["subgraph_index"]]["tensors"]
            found[signature["signature_key"]] = {
                f"{side} {entry['name']}": tensors[entry["tensor_index"]]["name"]
                for side in ("inputs", "outputs")
                for entry in signature[side] or []
            }
        return found

    def operators(self, number: int) -> dict[tuple[Any, ...], dict[str, Any]]:
        """The operators of a subgraph but those for the NPU, by kind and names of outputs."""
        subgraph = self.fields["subgraphs"][number]
        found = {}
        for operator in subgraph["operators"] or []:
            name = operator_name(self.fields, operator)
            outputs = [self.tensor(subgraph, i) for i in _plain(operator["outputs"]) or ()]
            if name != CUSTOM:
                found[(name, *(row["name"] for row in outputs))] = {
                    "outputs": outputs,
                    "inputs": self._inputs(subgraph, operator),
                    "options": [_plain(operator[field]) for field in _OPTIONS],
                }
        return found

    def _inputs(self, subgraph: Fields, operator: Fields) -> list[dict[str, Any]]:
        """The inputs of an operator; that those at the end are left out can be said or not."""
        rows = [self.tensor(subgraph, i) for i in _plain(operator["inputs"]) or ()]
        while rows and not rows[-1]:
            rows.pop()
        return rows


def check_compiled(source: bytes, compiled: bytes) -> int:
    """Raise unless a file of Vela's is sound and fits the one that it was made of.

    Args:
        source: The file that went in; a sound one.
        compiled: The file that came out.

    Returns:
        How many custom operators for the NPU it holds.

    Raises:
        CompilationError: What differs.
    """
    before = File(source)
    try:
        after = File(compiled)
    except FileFormatError as error:
        raise CompilationError(f"Vela made a file that is not sound. {error}") from error
    graphs = before.fields["subgraphs"], after.fields["subgraphs"]
    _require_same("the number of subgraphs", *map(len, graphs))
    _require_same("the signatures", before.signatures(), after.signatures())
    for number, pair in enumerate(zip(*graphs, strict=True)):
        old, new = before.sides(pair[0]), after.sides(pair[1])
        for side in ("inputs", "outputs"):
            _require_same(f"the {side} of subgraph {number}", old[side], new[side])
        stood = before.operators(number)
        for key, operator in after.operators(number).items():
            if key in stood:
                what = f"{key[0]} on the CPU (output `{str(key[-1]).split(';')[0]}`)"
                for part, value in operator.items():
                    _require_same(f"the {part} of {what}", stood[key][part], value)
    return sum(
        operator_name(after.fields, operator) == CUSTOM
        for subgraph in graphs[1]
        for operator in subgraph["operators"] or []
    )


def _require_same(what: str, before: object, after: object) -> None:
    if before != after:
        raise CompilationError(
            f"Vela must not change {what}. Received: {_short(after)} in place of {_short(before)}. "
            "No file was written. Report it to Arm with the model."
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _plain(value: Any) -> Any:
    """Vectors as tuples, tables as dicts of such: what `==` can compare."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
