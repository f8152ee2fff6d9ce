"""Limits that no document states, seen in files and logs of the compiler, each with its evidence.

A limit is monotone in one attribute: the largest value that was accepted and the smallest that was
rejected bound it. What lies between the two is not known, and is called that. Where nothing was
seen accepted, the documents alone speak below what was rejected.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tfedge.accelerators.edgetpu import limits
from tfedge.accelerators.edgetpu.graph import Operator
from tfedge.accelerators.edgetpu.rules import (
    TAKEN,
    Rule,
    Status,
    Verdict,
    judge,
    refusal,
)

_ISSUE: Final = "https://github.com/google-coral/edgetpu/issues/"
_PAIRS: Final = "https://github.com/google-coral/test_data"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Something that the compiler was seen to do with an operator.

    Attributes:
        operator: Its kind.
        attribute: What was looked at, a key of `ATTRIBUTES`; empty where the kind itself is meant.
        value: Its value; 0 where the kind itself is meant.
        accepted: Whether the compiler mapped it.
        compiler: Version of the compiler; empty where it is not known.
        evidence: Where that can be seen.
    """

    operator: str
    attribute: str = ""
    value: float = 0.0
    accepted: bool
    compiler: str = ""
    evidence: str


def upscale(operator: Operator) -> float | None:
    """How far a resize enlarges, the larger of height and width; `None` without both shapes."""
    operand, output = operator.input(0), operator.outputs[0]
    if operand is None or len(operand.shape) != 4 or len(output.shape) != 4:
        return None
    pairs = zip(operand.shape[1:3], output.shape[1:3], strict=True)
    return max(after / max(before, 1) for before, after in pairs)


def output_positions(operator: Operator) -> float | None:
    """Height times width of the output."""
    shape = operator.outputs[0].shape
    return float(shape[1] * shape[2]) if len(shape) == 4 else None


def reduced_positions(operator: Operator) -> float | None:
    """How many positions in y and x a reduction reduces to one."""
    operand = operator.input(0)
    if operand is None or len(operand.shape) != 4:
        return None
    positions = 1
    for axis in limits.reduced_axes(operator) & {1, 2}:
        positions *= operand.shape[axis]
    return float(positions)


ATTRIBUTES: Final[dict[str, tuple[str, Callable[[Operator], float | None]]]] = {
    "upscale": ("enlarges by {:.4g}", upscale),
    "output_positions": ("gives {:.0f} positions (height times width)", output_positions),
    "reduced_positions": ("reduces {:.0f} positions (height times width)", reduced_positions),
}

OBSERVATIONS: Final = (
    Observation(
        operator="RESIZE_BILINEAR",
        attribute="upscale",
        value=2.0,
        accepted=True,
        evidence=f"{_ISSUE}31 (64x64 to 128x128), and pairs of {_PAIRS}",
    ),
    Observation(
        operator="RESIZE_BILINEAR",
        attribute="upscale",
        value=513 / 33,
        accepted=False,
        evidence=f"{_PAIRS} (33x33 to 513x513, the least left on the CPU in its pairs)",
    ),
    Observation(
        operator="RESIZE_BILINEAR",
        attribute="upscale",
        value=33.0,
        accepted=False,
        evidence=f"{_PAIRS} (deeplabv3_mnv2_dm05_pascal_quant, operator 64, 1x1 to 33x33)",
    ),
    Observation(
        operator="RESIZE_BILINEAR",
        attribute="output_positions",
        value=128 * 128,
        accepted=True,
        compiler="2.0",
        evidence=f"{_ISSUE}31 (input 128x128, mapped)",
    ),
    Observation(
        operator="RESIZE_BILINEAR",
        attribute="output_positions",
        value=1024 * 1024,
        accepted=False,
        compiler="16.0",
        evidence=f"{_ISSUE}597 (512x512 to 1024x1024: not mapped, due to its size)",
    ),
    Observation(
        operator="RESIZE_NEAREST_NEIGHBOR",
        attribute="output_positions",
        value=1024 * 1024,
        accepted=False,
        compiler="16.0",
        evidence=f"{_ISSUE}597 (512x512 to 1024x1024: not mapped, due to its size)",
    ),
    Observation(
        operator="MEAN",
        attribute="reduced_positions",
        value=64 * 128,
        accepted=True,
        compiler="16.0",
        evidence=f"{_ISSUE}461 (1x64x128x3)",
    ),
    Observation(
        operator="MEAN",
        attribute="reduced_positions",
        value=256 * 128,
        accepted=False,
        compiler="16.0",
        evidence=f"{_ISSUE}461 (1x256x128x3)",
    ),
    Observation(operator="TILE", accepted=True, evidence=f"pairs of {_PAIRS}"),
    Observation(operator="LEAKY_RELU", accepted=False, compiler="15.0", evidence=f"{_ISSUE}272"),
    Observation(operator="HARD_SWISH", accepted=False, compiler="15.0", evidence=f"{_ISSUE}272"),
)

# Versions from which on compiler 16.0, the last one, refuses a whole file, with the evidence.
REFUSED_VERSIONS: Final[dict[str, tuple[int, str]]] = {
    "CONV_2D": (6, f"{_ISSUE}631"),
    "TRANSPOSE_CONV": (4, f"{_ISSUE}845"),
    "EXP": (2, "https://github.com/google-coral/libedgetpu/issues/71"),
}

# Kinds that no document names and that were seen mapped, with what is known of their operands.
TAKEN_UNDOCUMENTED: Final = {"TILE": Rule(parameters=(1,))}


def judge_observed(operator: Operator) -> Verdict:
    """What documents and observations together say of an operator on its own.

    Args:
        operator: The operator.

    Returns:
        `mapped=None` where it passes all documented rules and an attribute of it lies between what
        was seen accepted and what was seen rejected, or is newer than the compiler.
    """
    documented = judge(operator, rule=TAKEN_UNDOCUMENTED.get(operator.name))
    if documented.mapped is not True:
        return documented
    if (evidence := refused_version(operator)) is not None:
        detail = f"it is of version {operator.version}, as refused in {evidence}"
        return Verdict(mapped=False, reason=refusal(Status.VERSION, detail))
    verdicts = [_bounded(operator, attribute) for attribute in _attributes_of(operator.name)]
    verdicts += [_dense_scales(operator)]
    for answer in (False, None):
        for verdict in verdicts:
            if verdict.mapped is answer:
                return verdict
    return TAKEN


def refused_version(operator: Operator) -> str | None:
    """Where the compiler was seen to refuse files with this version of the operator, or `None`."""
    version, evidence = REFUSED_VERSIONS.get(operator.name, (0, ""))
    return evidence if version and operator.version >= version and not operator.is_custom else None


def _dense_scales(operator: Operator) -> Verdict:
    """Converters began to scale dense kernels by output after the compiler's last release."""
    kernel = operator.input(1) if operator.name == "FULLY_CONNECTED" else None
    if kernel is None or kernel.scales <= 1:
        return TAKEN
    return Verdict(
        mapped=None,
        reason=(
            f"Not known: its kernel has {kernel.scales} scales, one for each output; the compiler "
            "is older than such kernels and was not seen with one"
        ),
    )


def _attributes_of(kind: str) -> tuple[str, ...]:
    found = [row.attribute for row in OBSERVATIONS if row.operator == kind and row.attribute]
    return tuple(dict.fromkeys(found))


def _bounded(operator: Operator, attribute: str) -> Verdict:
    words, measure = ATTRIBUTES[attribute]
    value = measure(operator)
    if value is None:
        return TAKEN
    rows = [
        row for row in OBSERVATIONS if (row.operator, row.attribute) == (operator.name, attribute)
    ]
    rejected = min((row.value for row in rows if not row.accepted), default=math.inf)
    accepted = max((row.value for row in rows if row.accepted), default=rejected)
    if value <= accepted and value < rejected:
        return TAKEN
    what = f"it {words.format(value)}"
    if value >= rejected:
        seen = [row for row in rows if not row.accepted and row.value <= value]
        evidence = max(seen, key=lambda row: row.value).evidence
        return Verdict(
            mapped=False, reason=refusal(Status.UNSPECIFIED, f"{what}, as rejected in {evidence}")
        )
    return Verdict(
        mapped=None,
        reason=(
            f"Not known: {what}; {accepted:.4g} was seen accepted, {rejected:.4g} rejected, "
            "nothing in between"
        ),
    )
