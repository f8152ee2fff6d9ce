"""Decide which layers of a flat tf_keras graph become 8-bit with TFMOT, and why others do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfedge.engines.tfmot._library import internals, tf_keras
from tfedge.engines.tfmot.flattening import FlatGraph, FlatLayer
from tfedge.errors import SettingsError, did_you_mean
from tfedge.report import Skipped

# What TFMOT can quantise as the `activation` of a convolution or dense layer, and as a layer.
FUSED_ACTIVATIONS = frozenset({"linear", "relu", "swish", "gelu", "softmax", "sigmoid", "tanh"})
LAYER_ACTIVATIONS = FUSED_ACTIVATIONS | {"relu6"}

_BATCH_NORMS = ("BatchNormalization", "SyncBatchNormalization")
_LINEAR = ("Conv2D", "DepthwiseConv2D", "Dense", "SeparableConv2D")

WITH_KERNEL = frozenset({"Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "Dense"})

# Layers without a rule in TFMOT that become integer once their output is quantised.
OUTPUT_ONLY = frozenset({"Multiply", "Subtract", "Maximum", "Minimum", "PReLU"})


@dataclass(frozen=True)
class Placement:
    """What is quantised in a flat graph.

    Attributes:
        quantized: Names of the layers that are quantised.
        skipped: The other layers, each with the reason.
    """

    quantized: frozenset[str]
    skipped: tuple[Skipped, ...]


def place(
    graph: FlatGraph, *, keep_float: Sequence[str] = (), rules: Mapping[type, Any] | None = None
) -> Placement:
    """Decide which layers are quantised.

    Args:
        graph: A flat graph of tf_keras layers.
        keep_float: Layer names or class names that stay float.
        rules: Classes of one's own that have a rule.

    Raises:
        SettingsError: `keep_float` names no layer and no class of the model.
    """
    flats = {flat.name: flat for flat in graph.layers.values() if flat.layer is not None}
    check_names(keep_float, flats.values())
    registry = internals(
        "quantization.keras.default_8bit.default_8bit_quantize_registry"
    ).Default8BitQuantizeRegistry()
    reasons: dict[str, str] = {}
    for flat in flats.values():
        if flat.name in keep_float or flat.kind.__name__ in keep_float:
            reasons[flat.name] = "kept float, as asked"
        elif flat.kind not in (rules or {}) and flat.kind.__name__ not in _BATCH_NORMS:
            reason = _refusal(flat.layer, registry)
            if reason:
                reasons[flat.name] = reason
    for flat in flats.values():
        norm = flat.kind.__name__ in _BATCH_NORMS and flat.kind not in (rules or {})
        if norm and flat.name not in reasons:
            reason = _norm_refusal(flat, graph, reasons, rules or {})
            if reason:
                reasons[flat.name] = reason
    skipped = tuple(Skipped(name, reason) for name, reason in reasons.items())
    return Placement(frozenset(flats) - frozenset(reasons), skipped)


def check_names(names: Sequence[str], flats: Any) -> None:
    """Check that every name is a layer or a class of the model."""
    flats = list(flats)
    known = [flat.name for flat in flats] + sorted({flat.kind.__name__ for flat in flats})
    for name in names:
        if name not in known:
            raise SettingsError(
                f"`keep_float` names layers or layer classes of the model. Received: {name!r}."
                f"{did_you_mean(name, known)}"
            )


def _refusal(layer: Any, registry: Any) -> str | None:
    kind = type(layer).__name__
    if isinstance(layer, tf_keras().layers.Lambda):
        return "a Lambda's inner working is unknown"
    if kind in OUTPUT_ONLY:
        return None
    if kind != "SeparableConv2D" and not registry.supports(layer):
        return f"TFMOT has no 8-bit rule for {kind}; `rules` takes one for a layer of one's own"
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__)
    allowed = LAYER_ACTIVATIONS if kind == "Activation" else FUSED_ACTIVATIONS
    if activation is not None and name not in allowed:
        return f"TFMOT has no 8-bit rule for the activation `{name}`"
    return None


def _norm_refusal(
    flat: FlatLayer, graph: FlatGraph, reasons: Mapping[str, str], rules: Mapping[type, Any]
) -> str | None:
    """Why TFMOT cannot fold a batch normalisation into the layer before it."""
    before = graph.layers[graph.producers(flat.name)[0]]
    activation = before.config.get("activation")
    if before.kind.__name__ not in _LINEAR or before.kind in rules or activation != "linear":
        return "it does not follow a linear Conv2D, DepthwiseConv2D or Dense"
    if before.name in reasons:
        return f"it belongs to `{before.name}`, which stays float"
    alone = graph.consumers(before.name) == [flat.name] and not graph.is_output(before.name)
    if not alone or len(flat.calls) > 1 or len(before.calls) > 1:
        return f"`{before.name}` before it, or it itself, is used more than once"
    return None
