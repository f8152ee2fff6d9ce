"""Quantization-aware training: TFMOT's default 8-bit scheme, fewer bits, learned ranges."""

import dataclasses
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tfedge.data import check_calibration
from tfedge.engines.native.bits import LayerBits as LayerBits
from tfedge.engines.native.bits import as_layer_bits, check_bits
from tfedge.engines.native.observers import check_observer
from tfedge.engines.native.place import LayerRule as LayerRule
from tfedge.engines.native.place import Placement
from tfedge.errors import SettingsError, UnsupportedModelError, did_you_mean
from tfedge.models import check_finite, check_rebuildable, compile_like, keras_of, layers_of
from tfedge.report import Skipped, StageReport
from tfedge.stages._base import AbstractTrainedStage, Context
from tfedge.stages._fit import measured

if TYPE_CHECKING:
    from tfedge.engines.native.scheme import Scheme

CALIBRATION_BATCH = 32
TFMOT_ONLY: Mapping[str, Any] = {
    "weight_bits": 8,
    "activation_bits": 8,
    "per_layer": {},
    "range": "moving_average",
    "freeze_batch_norm": None,
}  # settings that TFMOT has one value of

# What `prepare` found out, for `finish`. A model loaded from a file is looked at anew.
_PREPARED: "weakref.WeakKeyDictionary[Any, StageReport]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Quantize(AbstractTrainedStage):
    """Train with the rounding that an int8 file will do.

    Keras 3 models are served natively: each tensor that an integer operator writes gets a range,
    kernels are rounded per channel (dense kernels per tensor). tf_keras models are served by TFMOT.
    The wrappers stay until `convert`, so this is the last stage.

    Whatever the bits, the int8 file holds the levels that were trained: with XNNPACK its outputs
    are those of the fake-quantised model, but for values halfway between two levels. LiteRT's own
    kernels round twice; there an operator may be one level off, and the fewer the bits, the more
    often.

    Args:
        keep_float: Names of layers, or of layer classes, whose operators stay float. Default: none.
        keep_sparsity: Weights that are zero stay zero: for a model that was pruned. Default: False.
        rules: Class of an own layer to its `LayerRule`. Default: none.
        weight_bits: Bits of the weights of dense layers and convolutions, from 2 to 8. In the file
            dense weights of at most 4 bits are int4, others int8 with at most `2**bits` distinct
            values. Default: 8.
        activation_bits: Bits of the activations, from 2 to 8. What the model takes and returns
            keeps 8, and so does what LiteRT decides the scale of; the report says which. An
            activation of fewer bits that no ReLU bounds costs the file an operator, MAXIMUM.
            Default: 8.
        per_layer: Name or class of a layer to its own `LayerBits`, e.g. `{"conv_1":
            LayerBits(weights=8)}`; a name counts before a class. Default: none.
        range: How activation ranges are found: `"moving_average"`, `"minmax"`, `"percentile"`, or
            `"lsq"`, where the steps of weights and activations train (Esser et al. 2020): for few
            bits. Default: `"moving_average"`.
        percentile: For `range="percentile"`: percentage of each batch below the upper end of a
            range, above 50. Default: 99.99.
        freeze_batch_norm: When batch normalisations stop their statistics and use them: a
            fraction of the training (float) or a step (int). Default: never.
        calibrate: Whether `apply` sets the ranges from calibration data before it trains, where
            there are such data. Default: True.

    Example:
        >>> stage = Quantize(keep_sparsity=True)
        >>> prepared = stage.prepare(model)                        # doctest: +SKIP
        >>> history = prepared.fit(x, y, callbacks=stage.callbacks())  # doctest: +SKIP
        >>> trained, report = stage.finish(prepared)               # doctest: +SKIP
    """

    name: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset()

    keep_float: tuple[str, ...] = ()
    keep_sparsity: bool = False
    rules: Mapping[type, LayerRule] = field(default_factory=dict)
    calibrate: bool = True
    weight_bits: int = 8
    activation_bits: int = 8
    per_layer: Mapping[str, LayerBits] = field(default_factory=dict)
    range: str = "moving_average"
    percentile: float | None = None
    freeze_batch_norm: float | int | None = None

    def __post_init__(self) -> None:
        check_bits(self.weight_bits, "Quantize.weight_bits")
        check_bits(self.activation_bits, "Quantize.activation_bits")
        check_observer(self.range, self.percentile)
        _check_freeze(self.freeze_batch_norm)
        widths = {name: as_layer_bits(value, name) for name, value in self.per_layer.items()}
        object.__setattr__(self, "per_layer", widths)
        if isinstance(self.keep_float, str):
            raise SettingsError(
                "`Quantize.keep_float` is a sequence of layer names. Received: "
                f"{self.keep_float!r}. Write `keep_float=({self.keep_float!r},)`."
            )
        object.__setattr__(self, "keep_float", tuple(self.keep_float))
        for cls, rule in self.rules.items():
            if not isinstance(cls, type) or not isinstance(rule, LayerRule):
                raise SettingsError(
                    "`Quantize.rules` maps layer classes to `LayerRule`. Received: "
                    f"{cls!r}: {rule!r}."
                )

    def prepare(self, model: Any) -> Any:
        """An own copy of `model` with fake quantisation in it; compiled if `model` is.

        Args:
            model: A built Functional or Sequential model of Keras 3 or tf_keras.

        Raises:
            UnsupportedModelError: The model has no graph that can be rebuilt, or it is of tf_keras
                and the settings are none of TFMOT's.
            ModelError: It has weights that are not finite.
            SettingsError: `keep_float` or `per_layer` names a layer that it does not have, or one
                that has nothing to give those bits to.
        """
        check_rebuildable(model, "Quantize")
        check_finite(model)
        names = tuple(_chosen(model, self.keep_float, "keep_float"))
        native = keras_of(model) == "keras"
        prepared, report = (self._native if native else self._tfmot)(model, names)
        compile_like(prepared, model)
        _PREPARED[prepared] = report
        return prepared

    def callbacks(self) -> list[Any]:
        """The one that tells when to freeze, for a `freeze_batch_norm` that is a fraction.

        Else none: ranges and rounding are part of the model.
        """
        if not isinstance(self.freeze_batch_norm, float):
            return []
        from tfedge.engines.native.norm_freezing import FreezeAtFraction

        return [FreezeAtFraction(self.freeze_batch_norm)]

    def finish(self, trained: Any) -> tuple[Any, StageReport]:
        """Round ranges and biases of a trained model as its file will, and report.

        The model is changed in place, by less than its rounded outputs resolve. Its wrappers stay:
        `convert` takes them off.

        Raises:
            UnsupportedModelError: The model does not come from `prepare`.
            TrainingError: Batch normalisations were to freeze, and training ended before.
        """
        check_finite(trained)
        report = _PREPARED.get(trained)
        if keras_of(trained) == "keras":
            from tfedge.engines.native.norm_freezing import check_frozen
            from tfedge.engines.native.settle import settle

            check_frozen(trained)
            settle(trained)
        return trained, _looked_up(trained) if report is None else report

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Prepare, calibrate, train and report.

        Args:
            model: As for `prepare`.
            context: `fit` to train, calibration data to start from, or both. With a metric and
                evaluation data, the metric after calibration and after training is recorded.

        Raises:
            SettingsError: There is neither `fit` nor calibration data, or no `fit` to freeze in.
        """
        context = context or Context()
        calibration = context.data.calibration if context.data and self.calibrate else None
        if context.fit is None and calibration is None:
            raise SettingsError(
                "`Quantize` learns ranges from training or calibration. Received a `Context` "
                "without `fit` and without `data.calibration`. Give one of them."
            )
        if context.fit is None and self.freeze_batch_norm is not None:
            raise SettingsError(
                "`freeze_batch_norm` is for a training. Received a `Context` without `fit`. Give "
                "it one, or leave `freeze_batch_norm` out."
            )
        if calibration is not None and context.data and context.data.train is not None:
            check_calibration(calibration, context.data.train)
        prepared = self.prepare(model)
        metrics: dict[str, Any] = {}
        if calibration is not None:
            _calibrate(prepared, (rows[0] for rows in calibration.batches(CALIBRATION_BATCH)))
            metrics |= measured(prepared, context, "calibrated")
        if context.fit is not None:
            context.fit(prepared, self.callbacks())
            metrics |= measured(prepared, context, "trained")
        trained, report = self.finish(prepared)
        return trained, _with_metrics(report, metrics)

    def _native(self, model: Any, keep_float: tuple[str, ...]) -> tuple[Any, StageReport]:
        from tfedge.engines.native.quantize import prepare_quantization

        prepared, placement = prepare_quantization(
            model,
            keep_float=keep_float,
            keep_sparsity=self.keep_sparsity,
            rules=self.rules,
            scheme=self._scheme(model),
        )
        changed, skipped = _sorted_out([layer.name for layer in layers_of(model)], placement)
        return prepared, StageReport(
            stage=self.name,
            changed=changed,
            skipped=skipped,
            metrics={
                "quantized_weights": len(placement.weights),
                "activation_ranges": len(placement.tensors),
            },
            notes=placement.notes,
        )

    def _scheme(self, model: Any) -> "Scheme":
        from tfedge.engines.native.norm_freezing import NEVER
        from tfedge.engines.native.scheme import Scheme

        widths: dict[str, LayerBits] = {}
        names = {layer.name for layer in layers_of(model)}
        for wanted in sorted(self.per_layer, key=lambda wanted: wanted in names):
            for name in _chosen(model, (wanted,), "per_layer"):
                widths[name] = self.per_layer[wanted]
        freeze = self.freeze_batch_norm
        return Scheme(
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            per_layer=widths,
            named=frozenset(names & set(self.per_layer)),
            range=self.range,
            percentile=self.percentile,
            freeze_at=NEVER if isinstance(freeze, float) else freeze,
        )

    def _tfmot(self, model: Any, keep_float: tuple[str, ...]) -> tuple[Any, StageReport]:
        from tfedge.engines import tfmot

        self._check_tfmot(model)
        prepared, skipped = tfmot.prepare_quantization(
            model, keep_float=keep_float, keep_sparsity=self.keep_sparsity, rules=self.rules
        )
        left = {row.layer for row in skipped}
        changed = tuple(layer.name for layer in layers_of(model) if layer.name not in left)
        return prepared, StageReport(
            stage=self.name, engine="tfmot", changed=changed, skipped=tuple(skipped)
        )

    def _check_tfmot(self, model: Any) -> None:
        other = [name for name, only in TFMOT_ONLY.items() if getattr(self, name) != only]
        if other:
            given = ", ".join(f"{name}={getattr(self, name)!r}" for name in other)
            raise UnsupportedModelError(
                "TFMOT, which serves tf_keras models, has 8 bits and moving averages only. "
                f"Received: {given} for `{model.name}`. Move the model to Keras 3 first: "
                "`tfedge.to_keras3(model)`."
            )


def _calibrate(model: Any, batches: Iterable[Any]) -> None:
    if keras_of(model) == "keras":
        from tfedge.engines.native.quantize import calibrate
    else:
        from tfedge.engines.tfmot import calibrate
    calibrate(model, batches)


def _check_freeze(value: Any) -> None:
    """Refuse what is neither a fraction between 0 and 1 nor a step."""
    if value is None:
        return
    step = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    fraction = isinstance(value, float) and 0 < value < 1
    if not step and not fraction:
        raise SettingsError(
            "`Quantize.freeze_batch_norm` is a fraction of the training, above 0.0 and below 1.0, "
            f"or a step, a whole number from 0. Received: {value!r}."
        )


def _chosen(model: Any, wanted_layers: tuple[str, ...], setting: str) -> Iterator[str]:
    """Names of the layers that a setting means, by name or by class."""
    layers = layers_of(model)
    names = {layer.name for layer in layers} | {type(layer).__name__ for layer in layers}
    for wanted in wanted_layers:
        if wanted not in names:
            raise SettingsError(
                f"`Quantize.{setting}` names layers or layer classes of the model. Received: "
                f"{wanted!r}.{did_you_mean(wanted, names)}"
            )
    for layer in layers:
        if layer.name in wanted_layers or type(layer).__name__ in wanted_layers:
            yield layer.name


def _sorted_out(
    names: list[str], placement: Placement
) -> tuple[tuple[str, ...], tuple[Skipped, ...]]:
    """Every layer as changed (weights or output quantised) or skipped with the reason."""
    changed, skipped = [], []
    for name in names:
        rounded = name in placement.weights or f"{name}_depthwise" in placement.weights
        if rounded or (name in placement.ranged and name not in placement.reasons):
            changed.append(name)
        else:
            merged = "merged into the layer that follows it"
            skipped.append(Skipped(name, placement.reasons.get(name, merged)))
    return tuple(changed), tuple(skipped)


def _looked_up(trained: Any) -> StageReport:
    """The report on a model whose preparation happened elsewhere, from the model itself."""
    if keras_of(trained) != "keras":
        from tfedge.engines import tfmot

        if not tfmot.is_quantize_aware(trained):
            raise _not_prepared(trained)
        return StageReport(stage="quantize", engine="tfmot")
    from tfedge.engines.native.fake_quant import FakeQuantize, QuantizedWeights
    from tfedge.engines.native.quantize import is_quantized

    if not is_quantized(trained):
        raise _not_prepared(trained)
    layers = layers_of(trained)
    ranges = [layer for layer in layers if isinstance(layer, FakeQuantize)]
    ranged = {layer.name.partition("_range")[0] for layer in ranges}
    changed, skipped = [], []
    for layer in layers:
        if isinstance(layer, QuantizedWeights) or layer.name in ranged:
            changed.append(layer.name)
        elif not isinstance(layer, FakeQuantize):
            skipped.append(Skipped(layer.name, "neither its weights nor its output are quantised"))
    return StageReport(stage="quantize", changed=tuple(changed), skipped=tuple(skipped))


def _not_prepared(model: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"`Quantize.finish` takes a model that `Quantize.prepare` made. Received: `{model.name}`, "
        "which holds no fake quantisation."
    )


def _with_metrics(report: StageReport, metrics: Mapping[str, Any]) -> StageReport:
    return dataclasses.replace(report, metrics={**report.metrics, **metrics})
