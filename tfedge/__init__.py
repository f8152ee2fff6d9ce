"""Bring a trained Keras model; leave with a small, verified `.tflite` file.

The way through::

    Keras model ──stages──▶ smaller Keras model ──convert──▶ .tflite ──compile_model──▶ device
                  Prune · Cluster                 float32 · float16     Edge TPU · Ethos-U
                  StructuredPrune · RemoveDead    dynamic_int8 · int8
                  LowRank · Rewrite · DropLayers  int16x8               open_model on CPU, XNNPACK,
                  SparsityPenalty · FineTune                            GPU, Edge TPU
                  Quantize                                              verify · benchmark

Every stage that trains takes `fit(model, callbacks)`; `Distillation(teacher).wrap(fit)` teaches
under any of them. `analyze` says where a model's costs lie and which stage would help.

In a script of one's own::

    import tfedge

    data = tfedge.load_dataset("digits")
    context = tfedge.Context(fit=tfedge.make_fit(data, epochs=10), data=data)
    model = tfedge.load_model("model.keras")
    model, report = tfedge.Prune(sparsity=0.8).apply(model, context)
    model, report = tfedge.Quantize(keep_sparsity=True).apply(model, context)
    content, report = tfedge.convert(model, mode="int8")
    print(tfedge.verify(model, content, data.evaluation.x, labels=data.evaluation.y))

By a recipe, within a budget, leaving a report::

    from tfedge.recipe import Recipe, run

    recipe = Recipe(model="model.keras", data="data.npz", max_drop=1.0, stages="prune_w8a8")
    report = run(recipe, "runs/first")

Without TensorFlow, from a base install (`inspect_model`, `open_model`, `benchmark`,
`compile_model`)::

    with tfedge.open_model("model_int8.tflite") as model:
        probabilities = model.predict(images)

From a shell: `tfedge demo`, `tfedge init`, `tfedge analyze`, `tfedge optimize`, `tfedge report`,
`tfedge compare`, `tfedge convert`, `tfedge inspect`, `tfedge verify`, `tfedge benchmark`, `tfedge
compile`, `tfedge doctor`.

Importing `tfedge` loads no TensorFlow; the names that need it load it when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfedge.accelerators import compile_model
from tfedge.accelerators.all_targets import all_targets
from tfedge.affine import dequantize_values, quantize_values
from tfedge.analyze import analyze
from tfedge.benchmark import benchmark
from tfedge.convert import convert
from tfedge.errors import (
    CompilationError,
    ConversionError,
    DataError,
    DelegateError,
    FileFormatError,
    FileWriteError,
    FloatOperatorsError,
    MissingExtraError,
    ModelError,
    SettingsError,
    TfedgeError,
    TfedgeWarning,
    TrainingError,
    UnsafeModelError,
    UnsupportedModelError,
    VerificationError,
)
from tfedge.inspection import inspect_model
from tfedge.runtime import load_delegate, open_model
from tfedge.verify import verify

if TYPE_CHECKING:
    from tfedge.callbacks import (
        ClusterLogger,
        Progress,
        PruneWhileTraining,
        QuantizationRangeLogger,
        SparsityLogger,
        StopAtDrop,
        TFLiteCheckpoint,
    )
    from tfedge.data import Data, Metric, Split, load_calibration, load_dataset
    from tfedge.distillation import Distillation, Distiller, Feature, LegacyDistiller
    from tfedge.engines.native.narrow import narrow
    from tfedge.models import copy_model, keras_of, load_model, save_model, to_keras3
    from tfedge.stages._base import Context
    from tfedge.stages._fit import make_fit
    from tfedge.stages.cluster import Cluster
    from tfedge.stages.drop_layers import DropLayers
    from tfedge.stages.finetune import FineTune
    from tfedge.stages.low_rank import LowRank
    from tfedge.stages.prune import Prune
    from tfedge.stages.quantize import LayerBits, LayerRule, Quantize
    from tfedge.stages.remove_dead import RemoveDead
    from tfedge.stages.rewrite import Rewrite
    from tfedge.stages.sensitivity import sensitivity
    from tfedge.stages.sparsity_penalty import SparsityPenalty
    from tfedge.stages.structured import StructuredPrune

__version__ = "0.1.0"

# Where the names live that are loaded when they are first used.
_LAZY = {
    "Cluster": "tfedge.stages.cluster",
    "ClusterLogger": "tfedge.callbacks",
    "Context": "tfedge.stages._base",
    "Data": "tfedge.data",
    "Distillation": "tfedge.distillation",
    "Distiller": "tfedge.distillation",
    "DropLayers": "tfedge.stages.drop_layers",
    "Feature": "tfedge.distillation",
    "FineTune": "tfedge.stages.finetune",
    "LayerBits": "tfedge.stages.quantize",
    "LayerRule": "tfedge.stages.quantize",
    "LegacyDistiller": "tfedge.distillation",
    "LowRank": "tfedge.stages.low_rank",
    "Metric": "tfedge.data",
    "Progress": "tfedge.callbacks",
    "Prune": "tfedge.stages.prune",
    "PruneWhileTraining": "tfedge.callbacks",
    "QuantizationRangeLogger": "tfedge.callbacks",
    "Quantize": "tfedge.stages.quantize",
    "RemoveDead": "tfedge.stages.remove_dead",
    "Rewrite": "tfedge.stages.rewrite",
    "SparsityLogger": "tfedge.callbacks",
    "SparsityPenalty": "tfedge.stages.sparsity_penalty",
    "Split": "tfedge.data",
    "StopAtDrop": "tfedge.callbacks",
    "StructuredPrune": "tfedge.stages.structured",
    "TFLiteCheckpoint": "tfedge.callbacks",
    "copy_model": "tfedge.models",
    "keras_of": "tfedge.models",
    "load_calibration": "tfedge.data",
    "load_dataset": "tfedge.data",
    "load_model": "tfedge.models",
    "make_fit": "tfedge.stages._fit",
    "narrow": "tfedge.engines.native.narrow",
    "save_model": "tfedge.models",
    "sensitivity": "tfedge.stages.sensitivity",
    "to_keras3": "tfedge.models",
}

__all__ = [
    "Cluster",
    "ClusterLogger",
    "CompilationError",
    "Context",
    "ConversionError",
    "Data",
    "DataError",
    "DelegateError",
    "Distillation",
    "Distiller",
    "DropLayers",
    "Feature",
    "FileFormatError",
    "FileWriteError",
    "FineTune",
    "FloatOperatorsError",
    "LayerBits",
    "LayerRule",
    "LegacyDistiller",
    "LowRank",
    "Metric",
    "MissingExtraError",
    "ModelError",
    "Progress",
    "Prune",
    "PruneWhileTraining",
    "QuantizationRangeLogger",
    "Quantize",
    "RemoveDead",
    "Rewrite",
    "SettingsError",
    "SparsityLogger",
    "SparsityPenalty",
    "Split",
    "StopAtDrop",
    "StructuredPrune",
    "TFLiteCheckpoint",
    "TfedgeError",
    "TfedgeWarning",
    "TrainingError",
    "UnsafeModelError",
    "UnsupportedModelError",
    "VerificationError",
    "all_targets",
    "analyze",
    "benchmark",
    "compile_model",
    "convert",
    "copy_model",
    "dequantize_values",
    "inspect_model",
    "keras_of",
    "load_calibration",
    "load_dataset",
    "load_delegate",
    "load_model",
    "make_fit",
    "narrow",
    "open_model",
    "quantize_values",
    "save_model",
    "sensitivity",
    "to_keras3",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tfedge' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tfedge"):
            raise
        raise MissingExtraError(
            f"`tfedge.{name}` needs the package `{error.name}`, which is not installed. "
            'Run `pip install "tfedge[train]"`.'
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
