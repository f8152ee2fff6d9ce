"""tf_keras models go to TFMOT itself: pruning, clustering and quantization-aware training.

Nothing of TFMOT or tf_keras is imported before a function here is called.
"""

from tfedge.engines.tfmot.clustering import (
    clustered_weights,
    is_clustered_wrapper,
    is_clustering,
    prepare_clustering,
    strip_clustering,
    why_not_clusterable,
)
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
    has_factors_below_zero,
    is_quantize_aware,
    is_quantized_wrapper,
    kept_zeros,
    prepare_quantization,
    quantize_scope,
    quantized_kernels,
    rounded_weights,
)

__all__ = [
    "activation_ranges",
    "bake",
    "calibrate",
    "clustered_weights",
    "constant_sparsity",
    "flatten",
    "has_factors_below_zero",
    "is_clustered_wrapper",
    "is_clustering",
    "is_pruning",
    "is_quantize_aware",
    "is_quantized_wrapper",
    "kept_zeros",
    "polynomial_decay",
    "prepare_clustering",
    "prepare_pruning",
    "prepare_quantization",
    "pruning_callbacks",
    "quantize_scope",
    "quantized_kernels",
    "rounded_weights",
    "strip_clustering",
    "strip_pruning",
    "why_not_clusterable",
    "why_not_prunable",
]
