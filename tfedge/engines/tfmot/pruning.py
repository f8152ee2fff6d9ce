"""Prune a tf_keras model while it trains, with TFMOT's wrappers around copies of its layers."""

from collections.abc import Callable, Mapping
from typing import Any

from tfedge.engines.tfmot._library import internals, tf_keras, tfmot
from tfedge.engines.tfmot.flattening import FlatGraph, own_classes, read_graph
from tfedge.engines.tfmot.unwrapping import unwrapped
from tfedge.errors import SettingsError, did_you_mean
from tfedge.models import check_rebuildable, compile_like, scope_of
from tfedge.report import Skipped

Schedule = Callable[[Any], Any]  # a TFMOT `PruningSchedule`: step -> (whether to update, sparsity)


def prepare_pruning(
    model: Any,
    schedule: Schedule | None,
    *,
    layers: Mapping[str, Schedule] | None = None,
    block_size: tuple[int, int] = (1, 1),
    block_pooling_type: str = "AVG",
    sparsity_m_by_n: tuple[int, int] | None = None,
) -> tuple[Any, tuple[Skipped, ...]]:
    """An own copy of a tf_keras model whose layers TFMOT prunes while it trains.

    Train it with `pruning_callbacks()`, then take the wrappers off with `strip_pruning`.

    Args:
        model: A built functional or Sequential tf_keras model. It is not changed.
        schedule: A TFMOT `PruningSchedule` for every layer that can be pruned, or `None` if
            `layers` holds them all.
        layers: Schedules of single layers by name. If given, only these layers are pruned.
        block_size: Height and width of the blocks that are pruned together, in kernels of rank 2.
        block_pooling_type: `"AVG"` or `"MAX"` of the magnitudes in a block.
        sparsity_m_by_n: `(2, 4)` leaves 2 of 4 consecutive weights; `None` is any place.

    Returns:
        The model, nested models inlined, compiled with a fresh optimizer if `model` is compiled;
        and the layers left alone, each with the reason.

    Raises:
        UnsupportedModelError: The model is subclassed or not built, or a layer cannot be copied.
        SettingsError: A layer name does not exist, a layer asked for cannot be pruned, or no
            layer can.
        MissingExtraError: TFMOT is not installed.
    """
    library = tfmot()
    check_rebuildable(model, "prune")
    options = {
        "block_size": tuple(block_size),
        "block_pooling_type": block_pooling_type,
        "sparsity_m_by_n": sparsity_m_by_n,
    }
    with scope_of(model), own_classes(model):
        graph = read_graph(model)
        schedules, skipped = _choose(graph, schedule, layers, options)

        def wrap(layer: Any) -> Any:
            if layer.name not in schedules:
                return layer
            return library.sparsity.keras.prune_low_magnitude(
                layer, pruning_schedule=schedules[layer.name], **options
            )

        # The built model is a copy already: the wrapped one may share its layers.
        wrapped = tf_keras().models.clone_model(graph.build(), clone_function=wrap)
        return compile_like(wrapped, model), skipped


def pruning_callbacks() -> list[Any]:
    """The callbacks that `fit` must be given for a model of `prepare_pruning`."""
    return [tfmot().sparsity.keras.UpdatePruningStep()]


def strip_pruning(model: Any) -> Any:
    """An own copy of a pruned model without its wrappers, the masks applied to its weights.

    Args:
        model: A model of `prepare_pruning`. It is not changed.

    Returns:
        A model of plain layers under their first names, compiled with a fresh optimizer if
        `model` is compiled.
    """
    return unwrapped(model, _is_wrapper, _masked_weights)


def is_pruning(model: Any) -> bool:
    """Whether a tf_keras model holds TFMOT's pruning wrappers."""
    return any(_is_wrapper(layer) for layer in model.layers)


def _is_wrapper(layer: Any) -> bool:
    return isinstance(layer, internals("sparsity.keras.pruning_wrapper").PruneLowMagnitude)


def why_not_prunable(layer: Any) -> str | None:
    """The reason why TFMOT does not prune a layer, or `None` if it does.

    Args:
        layer: A built tf_keras layer.
    """
    return _refusal(layer, {"block_size": (1, 1), "sparsity_m_by_n": None})


def polynomial_decay(
    *,
    initial_sparsity: float,
    final_sparsity: float,
    begin_step: int,
    end_step: int,
    power: float = 3,
    frequency: int = 100,
) -> Any:
    """TFMOT's `PolynomialDecay`: sparsity rises from the first value to the last.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`.
        final_sparsity: Fraction of zeros at `end_step`.
        begin_step: Training step of the first update; steps count from 1.
        end_step: Training step at which `final_sparsity` is reached.
        power: Exponent of the curve.
        frequency: Steps between two updates of the masks.
    """
    return tfmot().sparsity.keras.PolynomialDecay(
        initial_sparsity=initial_sparsity,
        final_sparsity=final_sparsity,
        begin_step=begin_step,
        end_step=end_step,
        power=power,
        frequency=frequency,
    )


def constant_sparsity(
    *, sparsity: float, begin_step: int, end_step: int = -1, frequency: int = 100
) -> Any:
    """TFMOT's `ConstantSparsity`: the same sparsity from the first update on.

    Args:
        sparsity: Fraction of zeros.
        begin_step: Training step of the first update; steps count from 1.
        end_step: Training step of the last update; -1 is the end of training.
        frequency: Steps between two updates of the masks.
    """
    return tfmot().sparsity.keras.ConstantSparsity(
        target_sparsity=sparsity, begin_step=begin_step, end_step=end_step, frequency=frequency
    )


def _choose(
    graph: FlatGraph,
    schedule: Schedule | None,
    layers: Mapping[str, Schedule] | None,
    options: Mapping[str, Any],
) -> tuple[dict[str, Schedule], tuple[Skipped, ...]]:
    """The schedule of each layer to prune, and the reasons of the others."""
    flats = [flat for flat in graph.layers.values() if flat.layer is not None]
    for name in layers or ():
        if name not in {flat.name for flat in flats}:
            raise SettingsError(
                f"`layers` names layers of the model. Received: {name!r}."
                f"{did_you_mean(name, [flat.name for flat in flats])}"
            )
    chosen: dict[str, Schedule] = {}
    skipped = []
    for flat in flats:
        own = layers.get(flat.name) if layers is not None else schedule
        reason = _refusal(flat.layer, options)
        if reason and layers and flat.name in layers:
            raise SettingsError(f"The layer {flat.name!r} cannot be pruned: {reason}.")
        if reason or own is None:
            skipped.append(Skipped(flat.name, reason or "not among the layers asked for"))
        else:
            chosen[flat.name] = own
    if not chosen:
        raise SettingsError(
            "Pruning needs at least one layer that can be pruned. Received a model with none: "
            + "; ".join(f"{row.layer}: {row.reason}" for row in skipped[:5])
            + "."
        )
    return chosen, tuple(skipped)


def _refusal(layer: Any, options: Mapping[str, Any]) -> str | None:
    registry = internals("sparsity.keras.prune_registry").PruneRegistry
    own = callable(getattr(layer, "get_prunable_weights", None))
    if not own and not registry.supports(layer):
        if not layer.weights:
            return "it has no weights"
        return f"TFMOT knows no prunable weights of {type(layer).__name__}"
    weights = _prunable_weights(layer, registry)
    if not weights:
        if type(layer).__name__ == "DepthwiseConv2D":
            return "TFMOT does not prune depthwise kernels"
        return "it has no kernel" if layer.weights else "it has no weights"
    ranks = {len(weight.shape) for weight in weights}
    if options["block_size"] != (1, 1) and ranks != {2}:
        return f"blocks need kernels of rank 2, and its kernel has rank {max(ranks)}"
    if options["sparsity_m_by_n"] and not ranks <= {2, 4}:
        return f"m-by-n pruning needs kernels of rank 2 or 4, and its kernel has rank {max(ranks)}"
    return None


def _prunable_weights(layer: Any, registry: Any) -> list[Any]:
    if callable(getattr(layer, "get_prunable_weights", None)):
        return list(layer.get_prunable_weights())
    registry.make_prunable(layer)  # adds the method to the layer: take it off again
    try:
        return list(layer.get_prunable_weights())
    finally:
        del layer.get_prunable_weights


def _masked_weights(layer: Any) -> list[Any]:
    if not _is_wrapper(layer):
        return layer.get_weights()
    masks = {id(weight): mask.numpy() for weight, mask, _ in layer.pruning_vars}
    return [
        weight.numpy() * masks[id(weight)] if id(weight) in masks else weight.numpy()
        for weight in layer.layer.weights
    ]
