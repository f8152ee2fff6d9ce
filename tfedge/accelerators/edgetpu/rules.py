"""What Google documents that the Edge TPU takes: operators and general limits.

Source: "TensorFlow models on the Edge TPU", section "Supported operations"
(https://coral.ai/docs/edgetpu/models-intro/#supported-operations). The sentences that the compiler
writes beside operators that it leaves on the CPU are those of its logs, as many users published
them (https://github.com/google-coral/edgetpu/issues, e.g. 25, 27, 219, 342, 393, 461, 512).
"""

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tfedge.accelerators.edgetpu import limits
from tfedge.accelerators.edgetpu.graph import Operand, Operator

DTYPES: Final = ("int8", "uint8")
PARAMETER_DTYPES: Final = (*DTYPES, "int16", "int32", "int64")  # biases, shapes and axes too


class Status(enum.StrEnum):
    """What the compiler's log says of an operator; some of it only in older versions."""

    MAPPED = "Mapped to Edge TPU"
    NOT_SUPPORTED = "Operation not supported"
    DATA_TYPE = "Operation is working on an unsupported data type"
    RANK = "Tensor has unsupported rank (up to 3 innermost dimensions mapped)"
    NOT_CONSTANT = "Filter, bias, or other param is not constant at compile-time"
    VERSION = "Operation version not supported"
    SUBGRAPH = "More than one subgraph is not supported"
    TWO_DIMENSIONAL = "For example, a fully-connected or softmax layer with 2D output"
    PRECISION = "Image-interpolation layer won't run precisely enough on Edge TPU"
    UNSPECIFIED = (
        "Operation is otherwise supported, but not mapped due to some unspecified limitation"
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the Edge TPU takes an operator on its own, whatever stands before it.

    Attributes:
        mapped: `None` where neither rule nor observation says.
        reason: Why not, or why it is not known; `None` where it is taken.
    """

    mapped: bool | None
    reason: str | None = None


TAKEN: Final = Verdict(mapped=True)
Limit = Callable[[Operator], str | None]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is documented of one kind of operator.

    Attributes:
        limits: What further limits it; each gives what breaks it, or `None`.
        parameters: Places of inputs that must be constants.
        filters: Those of them that must be 8-bit integers.
    """

    limits: tuple[Limit, ...] = ()
    parameters: tuple[int, ...] = ()
    filters: tuple[int, ...] = ()


_PLAIN: Final = Rule()
_REDUCTION: Final = Rule(limits=(limits.no_batch_reduction,), parameters=(1,))
_RESIZE: Final = Rule(parameters=(1,))

SUPPORTED: Final[dict[str, Rule]] = {
    **dict.fromkeys(("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"), _PLAIN),
    **dict.fromkeys(("RELU", "RELU6", "RELU_N1_TO_1", "LOGISTIC", "TANH"), _PLAIN),
    **dict.fromkeys(("L2_NORMALIZATION", "SPACE_TO_DEPTH"), _PLAIN),
    "AVERAGE_POOL_2D": Rule(limits=(limits.no_fused_activation,)),
    "CONCATENATION": Rule(limits=(limits.no_fused_activation, limits.zero_padding)),
    "CONV_2D": Rule(limits=(limits.same_dilation,), parameters=(1, 2), filters=(1,)),
    "DEPTHWISE_CONV_2D": Rule(limits=(limits.same_dilation,), parameters=(1, 2), filters=(1,)),
    "EXPAND_DIMS": Rule(parameters=(1,)),
    "FULLY_CONNECTED": Rule(
        limits=(limits.default_weights, limits.flat_output), parameters=(1, 2), filters=(1,)
    ),
    "MAX_POOL_2D": Rule(limits=(limits.no_fused_activation,)),
    "MEAN": Rule(limits=(limits.no_batch_reduction, limits.depth_in_fours), parameters=(1,)),
    "PACK": Rule(limits=(limits.no_batch_packing,)),
    "PAD": Rule(limits=(limits.no_batch_padding,), parameters=(1,)),
    "PRELU": Rule(limits=(limits.flat_slope,), parameters=(1,), filters=(1,)),
    "QUANTIZE": _PLAIN,
    "REDUCE_MAX": _REDUCTION,
    "REDUCE_MIN": _REDUCTION,
    "RESHAPE": Rule(parameters=(1,)),
    "RESIZE_BILINEAR": _RESIZE,
    "RESIZE_NEAREST_NEIGHBOR": _RESIZE,
    "RSQRT": _PLAIN,
    "SLICE": Rule(parameters=(1, 2)),
    "SOFTMAX": Rule(limits=(limits.flat_softmax,)),
    "SPLIT": Rule(limits=(limits.no_batch_split,), parameters=(0,)),
    "SQUARED_DIFFERENCE": _PLAIN,
    "SQUEEZE": _PLAIN,
    "STRIDED_SLICE": Rule(limits=(limits.unit_strides,), parameters=(1, 2, 3)),
    "SUM": Rule(limits=(limits.no_batch_reduction,), parameters=(1,)),
    "TRANSPOSE": Rule(parameters=(1,)),
    "TRANSPOSE_CONV": Rule(parameters=(0, 1, 3), filters=(1,)),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": Rule(
        parameters=tuple(range(1, 24)), filters=tuple(range(1, 9))
    ),
}


def judge(operator: Operator, *, rule: Rule | None = None) -> Verdict:
    """What the documented rules say of an operator on its own.

    Args:
        operator: The operator.
        rule: What limits its kind; by default what `SUPPORTED` holds of it.

    Returns:
        `mapped=True` where no rule speaks against it, else `mapped=False` with the first reason.
    """
    rule = rule or SUPPORTED.get(operator.name)
    if rule is None or operator.is_custom:
        return _unsupported(operator)
    for status, check in (
        (Status.NOT_CONSTANT, _variable_parameter),
        (_type_status(operator), _wrong_type),
        (Status.UNSPECIFIED, _changing_size),
        (Status.RANK, _wide),
    ):
        if (found := check(operator, rule)) is not None:
            return _refused(status, found)
    for limit in rule.limits:  # they read parameters, which are constant integers by now
        if (found := limit(operator)) is not None:
            return _refused(Status.UNSPECIFIED, found)
    return TAKEN


def data_operands(operator: Operator, rule: Rule) -> tuple[Operand, ...]:
    """What an operator computes with: inputs that are no parameters, and outputs."""
    inputs = (
        operand
        for place, operand in enumerate(operator.inputs)
        if operand is not None and place not in rule.parameters and not operand.is_variable
    )
    return (*inputs, *operator.outputs)


def parameter_operands(operator: Operator) -> tuple[Operand, ...]:
    """Constants of an operator that the Edge TPU keeps as parameters: filters, biases, operands."""
    rule = SUPPORTED.get(operator.name, _PLAIN)
    return tuple(
        operand
        for place, operand in enumerate(operator.inputs)
        if operand is not None
        and operand.is_constant
        and (rule.filters if place in rule.parameters else operand.dtype in DTYPES)
    )


def refusal(status: Status, detail: str) -> str:
    """The compiler's sentence and what it means here."""
    return f"{status}: {detail}"


def _refused(status: Status, detail: str) -> Verdict:
    return Verdict(mapped=False, reason=refusal(status, detail))


def _unsupported(operator: Operator) -> Verdict:
    if operator.is_custom:
        detail = f"custom operators such as {operator.name} run on the CPU"
        return _refused(Status.NOT_SUPPORTED, detail)
    if operator.name == "DEQUANTIZE":
        return _refused(Status.DATA_TYPE, f"it gives {operator.outputs[0].dtype}")
    detail = f"{operator.name} is not among the operators of the Edge TPU"
    return _refused(Status.NOT_SUPPORTED, detail)


def _variable_parameter(operator: Operator, rule: Rule) -> str | None:
    for operand in _at(operator, rule.parameters):
        if not operand.is_constant and not operand.is_variable:
            return f"{operand.name!r} is computed"
    return None


def _type_status(operator: Operator) -> Status:
    return Status.UNSPECIFIED if operator.name == "QUANTIZE" else Status.DATA_TYPE


def _wrong_type(operator: Operator, rule: Rule) -> str | None:
    for operand in _at(operator, rule.parameters):
        if operand.dtype not in PARAMETER_DTYPES:
            return f"{operand.name!r} is {operand.dtype}"
    for operand in (*_at(operator, rule.filters), *data_operands(operator, rule)):
        if operand.dtype not in DTYPES:
            return f"{operand.name!r} is {operand.dtype}"
        if not operand.scales:
            return f"{operand.name!r} is {operand.dtype} without a scale, not quantized"
    return None


def _changing_size(operator: Operator, rule: Rule) -> str | None:
    for operand in data_operands(operator, rule):
        if changes_size(operand):
            return f"the size of {operand.name!r} is not fixed, {shape_text(operand.signature)}"
    return None


def _wide(operator: Operator, rule: Rule) -> str | None:
    for operand in data_operands(operator, rule):
        if any(size > 1 for size in operand.shape[:-3]):
            return f"{operand.name!r} is {shape_text(operand.shape)}"
    return None


def changes_size(operand: Operand) -> bool:
    """Whether the size of a tensor is open, a batch that the file itself sets to 1 excepted."""
    if operand.shape[:1] == (1,) and operand.signature[:1] == (-1,):
        return any(size < 0 for size in operand.signature[1:])
    return any(size < 0 for size in operand.signature)


def shape_text(shape: Iterable[int]) -> str:
    """A shape for people, e.g. `1x28x28x3`; `?` for what is open."""
    return "x".join("?" if size < 0 else str(size) for size in shape)


def _at(operator: Operator, places: Iterable[int]) -> list[Operand]:
    found = (operator.input(place) for place in places)
    return [operand for operand in found if operand is not None]
