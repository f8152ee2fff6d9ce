"""Quantization-aware training of a tf_keras model, with TFMOT's default 8-bit scheme."""

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfedge.engines.tfmot._library import internals, tf_keras, tfmot
from tfedge.engines.tfmot.flattening import FlatGraph, own_classes, read_graph
from tfedge.engines.tfmot.placement import OUTPUT_ONLY, WITH_KERNEL, Placement, place
from tfedge.errors import DataError, SettingsError, UnsupportedModelError
from tfedge.models import check_rebuildable, compile_like, layers_of, scope_of
from tfedge.report import Skipped

_NEXT_MOVE = (
    "Keep layers float with `keep_float`, or move the model to Keras 3 with "
    "`tfedge.models.to_keras3`, whose engine takes more."
)


def prepare_quantization(
    model: Any,
    *,
    keep_float: Sequence[str] = (),
    keep_sparsity: bool = False,
    keep_clusters: bool = False,
    rules: Mapping[type, Any] | None = None,
) -> tuple[Any, tuple[Skipped, ...]]:
    """An own copy of a tf_keras model that computes as its int8 file will.

    Layers that TFMOT does not know stay float and are reported; what they hand to a quantised
    layer is quantised on the way.

    Args:
        model: A built functional or Sequential tf_keras model. It is not changed.
        keep_float: Layer names or class names that stay float.
        keep_sparsity: Keep the zeros of the kernels at zero while the model trains.
        keep_clusters: Keep the number of distinct values of clustered kernels of Conv2D and Dense,
            but for a Dense before a batch normalisation, which the converter folds into it.
        rules: For layers of one's own, by class: a TFMOT `QuantizeConfig`, or a rule with
            `weights` (attribute to the axis of its scales, `None` for one scale), `activations`
            (whether the output is quantised) and `fixed_range` (its range, or `None`).

    Returns:
        The model, nested models inlined, compiled with a fresh optimizer if `model` is compiled;
        and the layers left float, each with the reason.

    Raises:
        UnsupportedModelError: The model is subclassed, not built, of mixed precision, quantised
            already, or TFMOT cannot rebuild it.
        SettingsError: `keep_float` names nothing of the model, or nothing would be quantised.
        MissingExtraError: TFMOT is not installed.
    """
    from tfedge.engines.tfmot.wrapping import Mending

    check_rebuildable(model, "quantize")
    _check_quantizable(model)
    rules = {kind: _as_config(rule) for kind, rule in (rules or {}).items()}
    with scope_of(model), own_classes(model), quantize_scope():
        graph = read_graph(model)
        _split_activations(graph, rules)
        placement = place(graph, keep_float=keep_float, rules=rules)
        if not any(graph.layers[name].layer.weights for name in placement.quantized):
            raise SettingsError(
                "Quantization needs at least one layer with weights to quantise. Received: "
                + "; ".join(f"{row.layer}: {row.reason}" for row in placement.skipped[:5])
            )
        frozen = _release_norms(graph, placement)
        _quantize_float_outputs(graph, placement)
        lambdas, carried = _carry_lambdas(graph)
        try:
            with carried:
                quantized = _apply(graph, placement, rules)
        except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
            raise UnsupportedModelError(
                f"TFMOT could not rebuild `{model.name}` for quantization ({error}). {_NEXT_MOVE}"
            ) from error
        keeping = _without_norm(graph) if keep_clusters else frozenset()
        quantized = _mended(quantized, Mending(frozen, lambdas, keep_sparsity, keeping))
        return compile_like(quantized, model), placement.skipped


def bake(model: Any) -> Any:
    """A copy of a quantize-aware model whose kernels are as the TFLite converter can read them.

    Dense layers before a batch normalisation are rounded. The converter leaves these float
    otherwise: it folds the normalisation into the kernel, and one scale for the whole kernel does
    not fit that. Rounded kernels without their fake quantisation become integer, with one scale per
    unit. Kernels with trained centroids become plain clustered ones.

    Args:
        model: A trained model of `prepare_quantization`. It is not changed.

    Returns:
        The model to convert; `model` itself where no layer needs it. Not compiled.
    """
    from tfedge.engines.tfmot.wrapping import (
        is_wrapped,
        keeps_clusters,
        round_weights,
        set_clustered_weights,
        without_centroids,
        without_weight_ranges,
    )

    graph = read_graph(model)
    baked = {
        flat.name
        for flat in graph.layers.values()
        if is_wrapped(flat.layer, "Dense")
        and any(
            is_wrapped(graph.layers[name].layer, "BatchNormalization")
            for name in graph.consumers(flat.name)
        )
    }
    held = {layer.name for layer in model.layers if keeps_clusters(layer)}
    if not baked and not held:
        return model
    pairs: list[tuple[Any, Any]] = []

    def copied(layer: Any) -> Any:
        if layer.name in held:
            made = without_centroids(layer)
        elif layer.name in baked:
            made = without_weight_ranges(layer)
        else:
            made = type(layer).from_config(layer.get_config())
        pairs.append((layer, made))
        return pairs[-1][1]

    with scope_of(model), own_classes(model), quantize_scope():
        result = tf_keras().models.clone_model(model, clone_function=copied)
    for old, new in pairs:
        if old.name in held:
            set_clustered_weights(old, new)
        elif old.name in baked:
            round_weights(old, new)
        else:
            new.set_weights(old.get_weights())
    return result


def quantize_scope() -> Any:
    """The scope in which a saved quantize-aware tf_keras model can be loaded.

    Example:
        >>> with quantize_scope():  # doctest: +SKIP
        ...     model = tf_keras.models.load_model("model.keras")
    """
    from tfedge.engines.tfmot.wrapping import (
        InferenceBatchNormalization,
        QuantizeLayer,
        QuantizeWrapperV2,
        RuleConfig,
    )

    own = (InferenceBatchNormalization, QuantizeLayer, QuantizeWrapperV2, RuleConfig)
    theirs = tfmot().quantization.keras.quantize_scope()
    return _Scopes(theirs, {one.__name__: one for one in own})


class _Scopes(contextlib.ExitStack):
    """TFMOT's scope, and tfedge's classes inside it."""

    def __init__(self, outer: Any, own: dict[str, Any]) -> None:
        super().__init__()
        self._scopes = (outer, tf_keras().utils.custom_object_scope(own))

    def __enter__(self) -> "_Scopes":
        super().__enter__()
        for scope in self._scopes:
            self.enter_context(scope)
        return self


def is_quantize_aware(model: Any) -> bool:
    """Whether a tf_keras model holds TFMOT's quantization wrappers. Imports nothing."""
    wrapper = sys.modules.get(
        "tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper"
    )
    return wrapper is not None and any(
        isinstance(layer, wrapper.QuantizeWrapper) for layer in model.layers
    )


def quantized_kernels(model: Any) -> list[Any]:
    """The wrappers in a quantize-aware model that keep zeros or clusters."""
    from tfedge.engines.tfmot.wrapping import QuantizeWrapperV2

    own = [layer for layer in model.layers if isinstance(layer, QuantizeWrapperV2)]
    return [layer for layer in own if layer.keep_zeros or layer.clusters]


def kept_zeros(wrapper: Any, name: str) -> int:
    """How many zeros of a weight in a wrapper are to stay, as they are in its float values."""
    from tfedge.engines.tfmot.wrapping import inner_weights, short_name

    if not wrapper.keep_zeros:
        return 0
    weights = [weight for weight in inner_weights(wrapper) if short_name(weight) == name]
    return sum(int((weight.numpy() == 0).sum()) for weight in weights)


def has_factors_below_zero(model: Any, wrapper: Any) -> bool:
    """Whether a batch normalisation behind a wrapped layer multiplies by negatives or zero."""
    from tfedge.engines.tfmot.wrapping import is_wrapped

    graph = read_graph(model)
    behind = [graph.layers[name].layer for name in graph.consumers(wrapper.name)]
    norms = [layer.layer for layer in behind if is_wrapped(layer, "BatchNormalization")]
    return any(norm.scale and bool((norm.gamma.numpy() <= 0).any()) for norm in norms)


def rounded_weights(layer: Any) -> dict[str, Any]:
    """Name of each quantised weight in a wrapper to its rounded values."""
    from tfedge.engines.tfmot import wrapping

    return wrapping.rounded_weights(layer)


def is_quantized_wrapper(layer: Any) -> bool:
    """Whether a tf_keras layer is one of TFMOT's quantization wrappers."""
    return isinstance(layer, internals("quantization.keras.quantize_wrapper").QuantizeWrapper)


def calibrate(model: Any, batches: Iterable[Any]) -> int:
    """Set the ranges of a quantize-aware model from data, without training.

    TFMOT starts every range at ±6. Here the batches run through the model in inference mode with
    all fake quantisation switched off, and each range becomes the mean over the batches of the
    smallest and of the largest value (of an input: the extremes of all batches), which is where
    TFMOT's moving averages would go. Weights and batch statistics are not touched.

    Args:
        model: A model of `prepare_quantization`. Its ranges are changed in place.
        batches: Model inputs, float32, batch first; for several inputs lists or dicts of them.

    Returns:
        The number of ranges set.

    Raises:
        DataError: There is no batch.
    """
    from tfedge.engines.tfmot.wrapping import observing

    with observing(model) as observer:
        count = 0
        for batch in batches:
            model(batch, training=False)
            count += 1
        if not count:
            raise DataError("Calibration needs at least one batch of inputs. Received: none.")
    return int(observer.set_ranges())


def activation_ranges(model: Any) -> dict[str, tuple[float, float]]:
    """The range of each fake-quantised tensor of a model, by the name of its variable.

    Args:
        model: A tf_keras model. Without fake quantisation there are none.
    """
    ends: dict[str, list[float]] = {}
    for layer in model.layers if is_quantize_aware(model) else ():
        for weight in layer.weights:
            name, _, end = weight.name.partition(":")[0].rpartition("_")
            if end in ("min", "max") and not name.endswith("kernel"):
                ends.setdefault(name.removeprefix("quant_"), [0.0, 0.0])[end == "max"] = float(
                    weight.numpy()
                )
    return {name: (low, high) for name, (low, high) in ends.items()}


def _without_norm(graph: FlatGraph) -> frozenset[str]:
    """Names of the layers but those Dense layers that a batch normalisation follows."""
    norms = {name for name, flat in graph.layers.items() if "Normalization" in flat.kind.__name__}
    folded = {
        name
        for name, flat in graph.layers.items()
        if flat.kind.__name__ == "Dense" and norms.intersection(graph.consumers(name))
    }
    return frozenset(graph.layers) - folded


def _check_quantizable(model: Any) -> None:
    if is_quantize_aware(model):
        raise UnsupportedModelError(
            f"A model is quantised once. `{model.name}` is quantize-aware already: train it on, "
            f"or convert it."
        )
    for layer in layers_of(model):
        if layer.compute_dtype in ("float16", "bfloat16"):
            raise UnsupportedModelError(
                f"TFMOT's fake quantisation computes in float32. `{layer.name}` computes in "
                f"{layer.compute_dtype}: build the model under the policy `float32`. {_NEXT_MOVE}"
            )


def _as_config(rule: Any) -> Any:
    from tfedge.engines.tfmot.wrapping import RuleConfig

    if isinstance(rule, tfmot().quantization.keras.QuantizeConfig):
        return rule
    try:
        weights, output, fixed = rule.weights, rule.activations, rule.fixed_range
    except AttributeError as error:
        raise SettingsError(
            f"A rule is a TFMOT `QuantizeConfig` or a `LayerRule`. Received: {rule!r}."
        ) from error
    return RuleConfig(
        weights={name: axis is not None for name, axis in dict(weights).items()},
        output=bool(output),
        fixed_range=None if fixed is None else list(fixed),
    )


def _split_activations(graph: FlatGraph, rules: Mapping[type, Any]) -> None:
    """Write `Conv(activation=swish)` as two layers: the swish needs an 8-bit input of its own."""
    for flat in list(graph.layers.values()):
        swish = flat.config.get("activation") in ("swish", "silu")
        if swish and flat.kind.__name__ in WITH_KERNEL and flat.kind not in rules:
            flat.config["activation"] = "linear"
            name = f"{flat.name}_swish"
            graph.insert_after(flat.name, tf_keras().layers.Activation("swish", name=name))


def _carry_lambdas(graph: FlatGraph) -> tuple[dict[str, Any], Any]:
    """Put stand-ins in the place of Lambdas; the scope is for these."""
    from tfedge.engines.tfmot.wrapping import carry

    lambdas = {
        flat.name: flat.layer
        for flat in graph.layers.values()
        if isinstance(flat.layer, tf_keras().layers.Lambda)
    }
    kind = carry(lambdas)
    for name in lambdas:
        graph.layers[name].kind = kind
        graph.layers[name].config = {"name": name, "dtype": "float32"}
    return lambdas, tf_keras().utils.custom_object_scope({kind.__name__: kind})


def _release_norms(graph: FlatGraph, placement: Placement) -> frozenset[str]:
    """Names of folded batch normalisations that must go on running in inference mode.

    TFMOT drops the `training=False` of what it folds, and with it the ranges would never be
    learnt. It is taken off here; `Mending` makes the layers keep their statistics.
    """
    frozen = set()
    for name in placement.quantized:
        flat = graph.layers[name]
        if flat.inference_only and "Normalization" in flat.kind.__name__:
            frozen.add(name)
            for call in flat.calls:
                for reference in graph.refer(call):
                    reference[3].pop("training", None)
    return frozenset(frozen)


def _quantize_float_outputs(graph: FlatGraph, placement: Placement) -> None:
    """Quantise what float layers hand to quantised ones, so that these become integer."""
    layer = internals("quantization.keras.quantize_layer").QuantizeLayer
    quantizers = tfmot().quantization.keras.quantizers
    for row in placement.skipped:
        after = [name for name in graph.consumers(row.layer) if name in placement.quantized]
        output = graph.layers[row.layer].layer.get_output_at(0)
        single = not isinstance(output, list | tuple | dict)
        if not after or not single or not output.dtype.is_floating:
            continue
        quantizer = quantizers.MovingAverageQuantizer(
            num_bits=8, per_axis=False, symmetric=False, narrow_range=False
        )
        inserted = layer(quantizer, name=f"quantize_{row.layer.replace('.', '_')}")
        graph.insert_after(row.layer, inserted, set(after))


def _apply(graph: FlatGraph, placement: Placement, rules: Mapping[type, Any]) -> Any:
    from tfedge.engines.tfmot.wrapping import RuleConfig

    keras = tfmot().quantization.keras

    def annotate(layer: Any) -> Any:
        if layer.name not in placement.quantized:
            return layer
        config = rules.get(type(layer))
        if config is None and type(layer).__name__ in OUTPUT_ONLY:
            config = RuleConfig(weights={})
        return keras.quantize_annotate_layer(layer, quantize_config=config)

    # The built model is a copy already, and `quantize_apply` copies again.
    annotated = tf_keras().models.clone_model(graph.build(), clone_function=annotate)
    return keras.quantize_apply(annotated)


def _mended(quantized: Any, mending: Any) -> Any:
    """The model, mended where TFMOT's rewriting lost something: see `wrapping.Mending`."""
    from tfedge.engines.tfmot.wrapping import is_wrapped

    pairs: list[tuple[Any, Any]] = []

    def clone(layer: Any) -> Any:
        pairs.append((layer, mending.mend(layer)))
        return pairs[-1][1]

    mended = tf_keras().models.clone_model(quantized, clone_function=clone)
    for old, new in pairs:
        if old is not new and not is_wrapped(new):
            new.set_weights(old.get_weights())
    return mended
