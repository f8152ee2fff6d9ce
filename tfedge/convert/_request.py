"""What is asked of the TFLite converter."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfedge.convert._calibration import Samples

if TYPE_CHECKING:
    from tfedge.engines.native.levels import Levels


@dataclass(frozen=True)
class Request:
    """What to ask of the converter.

    Attributes:
        mode: One of `tfedge.convert.MODES`.
        input_type, output_type: Types of the float inputs and outputs in the integer modes.
        samples: What ranges are taken from that are not in the model's graph.
        inner_layers: Layers in a graph with ranges whose inside has none yet. Without these, the
            converter itself takes all ranges from `samples`.
        levels: Kernels whose integers the converter would not find by itself.
    """

    mode: str
    input_type: str
    output_type: str
    samples: Samples | None = None
    inner_layers: tuple[str, ...] = ()
    levels: tuple["Levels", ...] = ()

    def with_ranges_in_graph(self, inner_layers: Collection[str] = ()) -> "Request":
        """The same request for a model whose ranges are in its graph, but for some layers'."""
        samples = self.samples if inner_layers else None
        return dataclasses.replace(self, samples=samples, inner_layers=tuple(inner_layers))
