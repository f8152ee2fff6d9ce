"""Find the kernels of a model that can be pruned, in either Keras."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.engines.native.prune_settings import Pruning
from tfedge.errors import ModelError, SettingsError, did_you_mean
from tfedge.models import choose_layers, layers_of
from tfedge.report import Skipped

# which weights of a layer are kernels, by the name of its class or of a class that it inherits from
KERNELS: Mapping[str, tuple[str, ...]] = {
    "Conv1D": ("kernel",),
    "Conv2D": ("kernel",),
    "Conv3D": ("kernel",),
    "Conv1DTranspose": ("kernel",),
    "Conv2DTranspose": ("kernel",),
    "Conv3DTranspose": ("kernel",),
    "Dense": ("kernel",),
    "EinsumDense": ("kernel",),
    "Embedding": ("embeddings",),
    "GRUCell": ("kernel", "recurrent_kernel"),
    "LSTMCell": ("kernel", "recurrent_kernel"),
    "LocallyConnected1D": ("kernel",),
    "LocallyConnected2D": ("kernel",),
    "SeparableConv1D": ("pointwise_kernel",),
    "SeparableConv2D": ("pointwise_kernel",),
    "SimpleRNNCell": ("kernel", "recurrent_kernel"),
}

# pruned only where they are named, as they are small and matter
DEPTHWISE: Mapping[str, tuple[str, ...]] = {
    "DepthwiseConv1D": ("kernel", "depthwise_kernel"),
    "DepthwiseConv2D": ("kernel", "depthwise_kernel"),
}


@dataclass(frozen=True)
class Kernel:
    """One weight that is pruned.

    Attributes:
        layer: The leaf layer of the model that it is reported under.
        name: `"kernel"` and the like.
        variable: A Keras 3 or TensorFlow variable.
        owner: The layer that computes with it; differs from `layer` inside composite layers.
    """

    layer: Any
    name: str
    variable: Any
    owner: Any

    @property
    def size(self) -> int:
        """How many weights it has."""
        return int(np.prod(tuple(self.variable.shape)))

    def zeros(self) -> int:
        """How many of its weights are zero."""
        return self.size - int(np.count_nonzero(self.variable.numpy()))


def find_kernels(
    model: Any, settings: Pruning, *, training: bool
) -> tuple[tuple[Kernel, ...], tuple[Skipped, ...]]:
    """The kernels that the settings choose, and every layer that is left alone.

    Args:
        model: A Keras 3 or tf_keras model, built.
        settings: What to prune.
        training: Whether the model is pruned while it trains: frozen layers are then left alone.

    Raises:
        SettingsError: A layer named in the settings does not exist or cannot be pruned.
        ModelError: Nothing in the model can be pruned.
    """
    if not model.weights:
        raise ModelError(
            f"Pruning needs the weights, and `{model.name}` has none yet. Call it once on a batch, "
            "`model(x[:1])`, before it is pruned or fitted."
        )
    named = named_layers(model, settings)
    kernels: list[Kernel] = []
    skipped: list[Skipped] = []
    seen: set[int] = set()
    for layer in layers_of(model):
        wanted = id(layer) in named
        own = [k for k in kernels_of(layer, depthwise=wanted) if id(k.variable) not in seen]
        reason = _why_not(layer, own, settings, training)
        if reason is None and settings.layers is not None and not wanted:
            reason = "not in `layers`"
        if reason is None:
            kernels += own
            seen |= {id(kernel.variable) for kernel in own}
            continue
        if layer.name in settings.named() and settings.sparsity_of(layer.name) != 0:
            raise SettingsError(f"Layer {layer.name!r} cannot be pruned: {reason}.")
        skipped.append(Skipped(layer.name, reason))
    if not kernels and settings.sparsity_of("") != 0:
        raise nothing_to_do("pruned", skipped)
    return tuple(kernels), tuple(skipped)


def kernels_of(layer: Any, *, depthwise: bool = False) -> list[Kernel]:
    """The kernels of a layer, its cells and inner layers included.

    A layer of one's own says them with TFMOT's `get_prunable_weights()`.
    """
    found: list[Kernel] = []
    for owner in (layer, *_inner_layers(layer, set())):
        own = getattr(owner, "get_prunable_weights", None)
        if callable(own):
            found += [Kernel(layer, _short(v), v, owner) for v in own()]
            continue
        for name in _kernel_names(owner, depthwise):
            variable = getattr(owner, name, None) if owner.built else None
            if variable is not None and callable(getattr(variable, "assign", None)):
                found.append(Kernel(layer, name, variable, owner))
    return [k for k in found if "float" in str(k.variable.dtype)]


def pruned_kernels(model: Any) -> list[Kernel]:
    """The kernels of a model, in either Keras, that have both zeros and other values."""
    kernels = [k for layer in layers_of(model) for k in kernels_of(layer, depthwise=True)]
    return [k for k in kernels if 0 < k.zeros() < k.size]


def has_sparse_kernel(kernel: Kernel) -> bool:
    """Whether XNNPACK has a sparse implementation of the layer: 1×1 convolutions of stride 1."""
    layer = kernel.owner
    if not any(base.__name__ == "Conv2D" for base in type(layer).__mro__):
        return False
    if any(base.__name__ == "Conv2DTranspose" for base in type(layer).__mro__):
        return False
    ones = (tuple(layer.kernel_size), tuple(layer.strides), tuple(layer.dilation_rate))
    return ones == ((1, 1), (1, 1), (1, 1)) and layer.groups == 1


def named_layers(model: Any, settings: Any) -> set[int]:
    """`id` of each layer that settings name in `layers` or `per_layer`.

    Args:
        model: Of either Keras.
        settings: Of pruning or clustering.

    Raises:
        SettingsError: There is no such layer.
    """
    leaves = [layer.name for layer in layers_of(model)]
    for name in settings.per_layer or ():
        if name not in leaves:
            raise SettingsError(
                f"`per_layer` names layers of the model. Received: {name!r}."
                f"{did_you_mean(name, leaves)}"
            )
    named = settings.named()
    return {id(layer) for layer in choose_layers(model, named)} if named else set()


def without_kernel(layer: Any, done: str) -> str:
    """Why there is no kernel in a layer that could be `done`: "pruned" and the like."""
    if kernels_of(layer, depthwise=True):
        return f"depthwise kernels are {done} only where they are named in `layers`"
    return f"no kernel that can be {done}" if layer.built else "not built yet"


def nothing_to_do(done: str, skipped: Sequence[Skipped]) -> ModelError:
    """The error for a model none of whose layers can be `done`."""
    rows = " ".join(f"{row.layer}: {row.reason}." for row in skipped[:5])
    return ModelError(f"No layer of this model can be {done}. {rows}")


def _why_not(
    layer: Any, kernels: Sequence[Kernel], settings: Pruning, training: bool
) -> str | None:
    if not kernels:
        return without_kernel(layer, "pruned")
    if settings.schedule is None and settings.sparsity_of(layer.name) is None:
        return "not in `per_layer`"
    if settings.sparsity_of(layer.name) == 0:
        return "sparsity 0 was asked for"
    if training and not layer.trainable:
        return "frozen (`trainable=False`); one-shot pruning would reach it"
    ranks = {len(kernel.variable.shape) for kernel in kernels}
    if settings.pattern is not None and not ranks <= {2, 4}:
        return "the 2:4 pattern is defined for kernels of rank 2 and 4 only"
    if settings.block_size != (1, 1) and not all(map(_is_matrix, kernels)):
        return "blocks are defined for matrices and 1×1 convolutions only"
    return None


def _is_matrix(kernel: Kernel) -> bool:
    shape = tuple(kernel.variable.shape)
    return len(shape) == 2 or (len(shape) == 4 and shape[:2] == (1, 1))


def _kernel_names(layer: Any, depthwise: bool) -> tuple[str, ...]:
    for base in type(layer).__mro__:
        if base.__name__ in DEPTHWISE:
            return DEPTHWISE[base.__name__] if depthwise else ()
        if base.__name__ in KERNELS:
            return KERNELS[base.__name__]
    return ()


def _inner_layers(layer: Any, seen: set[int]) -> Iterator[Any]:
    seen.add(id(layer))
    for value in list(vars(layer).values()):
        for inner in value if isinstance(value, list | tuple) else (value,):
            if _is_layer(inner) and id(inner) not in seen:
                yield inner
                yield from _inner_layers(inner, seen)


def _is_layer(value: Any) -> bool:
    return not isinstance(value, type) and any(
        base.__name__ == "Layer" for base in type(value).__mro__
    )


def _short(variable: Any) -> str:
    return str(variable.name).split("/")[-1].split(":")[0]
