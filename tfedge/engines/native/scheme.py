"""The settings of fake quantisation beyond where it goes: widths, ranges, frozen statistics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfedge.engines.native.batch_norm import FusedBatchNormalization
from tfedge.engines.native.bits import FULL, Bits, LayerBits, assign_bits
from tfedge.engines.native.fake_quant import FakeQuantize, QuantizedWeights
from tfedge.engines.native.graph import Call, Graph
from tfedge.engines.native.norm_freezing import FreezingBatchNormalization
from tfedge.engines.native.place import LINEAR, Placement
from tfedge.engines.native.step_size import LearnedRange, LearnedStepWeights


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What `prepare_quantization` builds the layers of fake quantisation with.

    Attributes:
        weight_bits, activation_bits: Widths of all that `per_layer` does not say.
        per_layer: Name of a layer to its own widths.
        named: Those of `per_layer` whose widths must be met.
        range: One of `observers.RANGES`.
        percentile: As for `Observer`.
        freeze_at: Step at which batch normalisations freeze; `None` for never.
    """

    weight_bits: int = FULL
    activation_bits: int = FULL
    per_layer: Mapping[str, LayerBits] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    range: str = "moving_average"
    percentile: float | None = None
    freeze_at: int | None = None

    def bits(self, graph: Graph, placement: Placement, layers: list[str]) -> Bits:
        """The widths of all that is quantised in a graph."""
        return assign_bits(
            graph,
            placement,
            layers,
            weights=self.weight_bits,
            activations=self.activation_bits,
            per_layer=self.per_layer,
            named=self.named,
        )

    def weights_class(self, call: Call) -> Any:
        """What wraps a layer with weights."""
        learned = self.range == "lsq" and call.kind in LINEAR
        return LearnedStepWeights if learned else QuantizedWeights

    def range_layer(self, index: int, graph: Graph, placement: Placement, **settings: Any) -> Any:
        """What rounds a tensor.

        Inputs of the model have no weights before them that could follow a learned step: their
        range is observed.
        """
        fixed = placement.tensors[index]
        settings["after_float"] = index in placement.after_float
        settings["non_negative"] = index in placement.non_negative
        learned = self.range == "lsq"
        if learned and fixed is None and index not in graph.inputs:
            return LearnedRange(**settings)
        observer = "moving_average" if learned else self.range
        return FakeQuantize(
            fixed_range=fixed, range=observer, percentile=self.percentile, **settings
        )

    def norm(self, layer: Any) -> tuple[Any, dict[str, Any]]:
        """Class and changes with which a BatchNormalization is copied."""
        if self.freeze_at is None:
            return FusedBatchNormalization, {}
        counters = [np.int32(0), np.int32(self.freeze_at)]
        return FreezingBatchNormalization, {
            "freeze_at": self.freeze_at,
            "weights": [*layer.get_weights(), *counters],
        }
