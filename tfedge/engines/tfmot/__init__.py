"""tf_keras models go to TFMOT itself: pruning and quantization-aware training around its wrappers.

Nothing of TFMOT or tf_keras is imported before a function here is called.
"""

from tfedge.engines.tfmot.flattening import flatten
from tfedge.engines.tfmot.pruning import (
    constant_sparsity,
    is_pruning,
    polynomial_decay,
    prepare_pruning,
    pruning_callbacks,
    strip_pruning,
    why_not_prunable,
)
from tfedge.engines.tfmot.quantization import (
    activation_ranges,
    bake,
    calibrate,
    is_quantize_aware,
    prepare_quantization,
    quantize_scope,
)

__all__ = [
    "activation_ranges",
    "bake",
    "calibrate",
    "constant_sparsity",
    "flatten",
    "is_pruning",
    "is_quantize_aware",
    "polynomial_decay",
    "prepare_pruning",
    "prepare_quantization",
    "pruning_callbacks",
    "quantize_scope",
    "strip_pruning",
    "why_not_prunable",
]
