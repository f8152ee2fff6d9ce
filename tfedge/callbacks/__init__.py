"""Keras callbacks, one duty each.

    PruneWhileTraining      prunes the model that is fitted
    KeepZeros, keep_zeros   hold the zeros of a pruned model
    KeepClusters, keep_clusters  hold the clusters of a clustered one
    SparsityLogger          logs the share of zeros
    ClusterLogger           logs the number of distinct values
    QuantizationRangeLogger logs the ranges that fake quantisation learns
    TFLiteCheckpoint        converts, evaluates the real file, keeps the best
    StopAtDrop              ends a training that has cost too much
    Progress                shows how far it is

The classes `PruneWhileTraining` and `Keep…` are for Keras 3 models; all others, and the functions
`keep_…`, serve tf_keras models too.
"""

from tfedge.callbacks.cluster_logger import ClusterLogger as ClusterLogger
from tfedge.callbacks.keep_clusters import KeepClusters as KeepClusters
from tfedge.callbacks.keep_clusters import keep_clusters as keep_clusters
from tfedge.callbacks.keep_zeros import KeepZeros as KeepZeros
from tfedge.callbacks.keep_zeros import keep_zeros as keep_zeros
from tfedge.callbacks.progress import Progress as Progress
from tfedge.callbacks.prune_while_training import PruneWhileTraining as PruneWhileTraining
from tfedge.callbacks.prune_while_training import last_pruning as last_pruning
from tfedge.callbacks.quantization_range_logger import (
    QuantizationRangeLogger as QuantizationRangeLogger,
)
from tfedge.callbacks.sparsity_logger import SparsityLogger as SparsityLogger
from tfedge.callbacks.stop_at_drop import StopAtDrop as StopAtDrop
from tfedge.callbacks.tflite_checkpoint import TFLiteCheckpoint as TFLiteCheckpoint
