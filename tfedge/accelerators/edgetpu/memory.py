"""How much of the Edge TPU's memory a model's parameters will take, and what streams.

The Edge TPU has 8 MB of memory on the chip; what its program leaves of it caches parameters, and
parameters beyond that are sent anew for every run
(https://coral.ai/docs/edgetpu/compiler/#parameter-data-caching).

Both figures are estimates. The compiler stores a parameter as the chip reads it: output channels in
eights, 16 bytes of bias and scale for each, depthwise kernels four times over. Fitted to the
packages in https://github.com/google-coral/test_data, this is within 2 % of what they hold for the
convolutional models and well below for the recurrent one, whose parameters also hold tables.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tfedge.accelerators.edgetpu.graph import Operand, Operator
from tfedge.accelerators.edgetpu.rules import SUPPORTED, parameter_operands

CHIP_BYTES: Final = 8 * 2**20
# The most that a log shows cached beside streamed parameters (YOLOv5s,
# https://github.com/google-coral/edgetpu/issues/512); 6.15 MiB is the least seen.
CACHE_BYTES: Final = int(6.89 * 2**20)

CHANNEL_STEP: Final = 8
CHANNEL_BYTES: Final = 16
DEPTHWISE_COPIES: Final = 4


@dataclass(frozen=True, kw_only=True)
class ParameterMemory:
    """Where parameters are kept, in bytes.

    Attributes:
        on_chip: Cached on the chip.
        streamed: Sent anew for every run.
    """

    on_chip: int
    streamed: int


def predict_memory(operators: Iterable[Operator]) -> ParameterMemory:
    """Where the parameters of the operators that the Edge TPU runs will be kept.

    Args:
        operators: The operators that it runs.

    Example:
        >>> predict_memory([])
        ParameterMemory(on_chip=0, streamed=0)
    """
    sizes: dict[int, int] = {}
    for operator in operators:
        for operand in parameter_operands(operator):
            sizes.setdefault(operand.index, stored_bytes(operator, operand))
    total = sum(sizes.values())
    on_chip = min(total, CACHE_BYTES)
    return ParameterMemory(on_chip=on_chip, streamed=total - on_chip)


def stored_bytes(operator: Operator, operand: Operand) -> int:
    """Bytes that a constant takes as a parameter of the Edge TPU. A bias counts with its filter."""
    rule = SUPPORTED.get(operator.name)
    filters = () if rule is None else rule.filters
    place = next(i for i, item in enumerate(operator.inputs) if item is operand)
    if place not in filters:
        return 0 if filters else len(operand.raw)
    if operator.name == "DEPTHWISE_CONV_2D":
        channels, each = operand.shape[-1], math.prod(operand.shape[:-1]) * DEPTHWISE_COPIES
    else:
        channels, each = operand.shape[0], math.prod(operand.shape[1:])
    padded = -(-channels // CHANNEL_STEP) * CHANNEL_STEP
    return padded * (each + CHANNEL_BYTES)
