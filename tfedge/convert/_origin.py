"""Which Keras layer an operator of a file came from, and why it stayed float."""

import re
from dataclasses import dataclass
from typing import Any

from tfedge.inspection import InspectionReport
from tfedge.models import layers_of
from tfedge.report import Record


@dataclass(frozen=True, kw_only=True)
class FloatOperator(Record):
    """An operator that computes in float in a file that was meant to be integer.

    Attributes:
        index: Its place in the file.
        name: LiteRT's name of it, e.g. `"ELU"`.
        layer: The Keras layer that it came from; empty where that cannot be told.
        reason: Why it stayed float.
    """

    index: int
    name: str
    layer: str
    reason: str


def float_operators(inspection: InspectionReport, model: Any) -> tuple[FloatOperator, ...]:
    """Every float operator of a file with its origin.

    Args:
        inspection: What the file holds.
        model: The Keras model that it was made from.
    """
    names = [layer.name for layer in layers_of(model)]
    return tuple(
        FloatOperator(
            index=operator.index,
            name=operator.name,
            layer=layer_of(operator.output_name, names),
            reason="the converter has no integer form of it, or no range reached it",
        )
        for operator in inspection.float_operators
    )


def layer_of(tensor_name: str, layers: list[str]) -> str:
    """The layer that a tensor of a file was written by, from the scopes in its name.

    Args:
        tensor_name: E.g. `"model_1/conv_1_1/Relu;model_1/conv_1_1/BiasAdd"`.
        layers: Names of the model's layers.

    Returns:
        The innermost scope that is a layer, or an empty string.

    Example:
        >>> layer_of("net_1/block_1/elu_1/Elu", ["block", "elu"])
        'elu'
        >>> layer_of("PartitionedCall/Identity", ["elu"])
        ''
    """
    known = set(layers)
    for name in tensor_name.split(";"):
        for scope in reversed(name.split("/")[:-1] or [name]):
            for candidate in (scope, re.sub(r"_\d+$", "", scope)):
                if candidate in known:
                    return candidate
                for suffix in ("_range", "_line", "_sigmoid"):
                    if candidate.endswith(suffix) and candidate.removesuffix(suffix) in known:
                        return candidate.removesuffix(suffix)
    return ""
