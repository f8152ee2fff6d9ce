"""Score how much each weight of a kernel matters."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfedge.engines.native.kernels import Kernel
from tfedge.errors import DataError, SettingsError, UnsupportedModelError

Scores = Callable[[Any, Any, Any], Any]

BINS = 32  # of the histogram that the entropy of a channel is read from


@dataclass(frozen=True)
class Observation:
    """What a pass over data showed of one kernel.

    Attributes:
        gradients: Gradient of the mean loss, of the kernel's shape; `None` if not asked for.
        activations: Outputs of the layer, channels last; `None` if not asked for.
    """

    gradients: Any = None
    activations: Any = None


def magnitude_scores(weights: Any, gradients: Any = None, activations: Any = None) -> Any:
    """Absolute weights.

    Example:
        >>> magnitude_scores(np.array([-2.0, 1.0]))
        array([2., 1.])
    """
    return np.abs(weights)


def gradient_scores(weights: Any, gradients: Any, activations: Any = None) -> Any:
    """Absolute gradients of the loss.

    Example:
        >>> gradient_scores(np.array([-2.0, 1.0]), np.array([0.5, -3.0]))
        array([0.5, 3. ])
    """
    return np.abs(gradients)


def taylor_scores(weights: Any, gradients: Any, activations: Any = None) -> Any:
    """How much the loss changes, to first order, when the weight goes: `|weight × gradient|`.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771.

    Example:
        >>> taylor_scores(np.array([-2.0, 1.0]), np.array([0.5, -3.0]))
        array([1., 3.])
    """
    return np.abs(weights * gradients)


def entropy_scores(weights: Any, gradients: Any, activations: Any) -> Any:
    """Absolute weights times the entropy of the output channel that they feed.

    A channel that says nearly the same of every sample carries little information (Luo and Wu 2017,
    "An Entropy-based Pruning Method for CNN Compression", arXiv:1706.05791). As there, a channel is
    averaged over its positions first; the entropy is that of a histogram of 32 bins over samples.

    Args:
        weights: A kernel whose last axis is the output channel, or whose last but one is where the
            convolution is transposed.
        gradients: Not used.
        activations: Outputs of the layer, (samples, …, channels).

    Example:
        >>> activations = np.array([[0.0, 5.0], [1.0, 5.0]])
        >>> entropy_scores(np.array([[2.0, 2.0]]), None, activations)
        array([[2., 0.]])
    """
    entropy = channel_entropy(activations)
    for axis in (-1, -2):
        if weights.ndim >= -axis and weights.shape[axis] == len(entropy):
            shape = [1] * weights.ndim
            shape[axis] = len(entropy)
            return np.abs(weights) * entropy.reshape(shape)
    raise UnsupportedModelError(
        f"`importance='entropy'` needs a kernel with one axis per output channel. Received: kernel "
        f"of shape {weights.shape} with {len(entropy)} channels. Leave this layer out, or use "
        "`importance='taylor'`."
    )


def channel_entropy(activations: Any) -> Any:
    """Entropy in bits of each channel's mean activation over samples.

    Args:
        activations: (samples, …, channels).

    Example:
        >>> channel_entropy(np.array([[0.0, 5.0], [1.0, 5.0]]))
        array([1., 0.])
    """
    means = activations.reshape(len(activations), -1, activations.shape[-1]).mean(axis=1)
    low, span = means.min(axis=0), np.ptp(means, axis=0)
    places = np.floor((means - low) / np.where(span > 0, span, 1) * BINS).clip(0, BINS - 1)
    shares = np.stack([(places == place).mean(axis=0) for place in range(BINS)])
    logarithms = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    return np.abs((shares * logarithms).sum(axis=0))


SCORES: Mapping[str, Scores] = {
    "magnitude": magnitude_scores,
    "gradient": gradient_scores,
    "taylor": taylor_scores,
    "entropy": entropy_scores,
}


def random_scores(shape: Sequence[int], seed: int, index: int) -> Any:
    """Scores that have nothing to do with the weights; the same at every update.

    Args:
        shape: The kernel's.
        seed: Of the stage.
        index: Of the kernel in the model.

    Example:
        >>> random_scores((2,), seed=0, index=1).shape
        (2,)
    """
    return np.random.default_rng((seed, index)).random(tuple(shape))


def score_kernels(
    importance: str | Scores,
    kernels: Sequence[Kernel],
    weights: Sequence[Any],
    observations: Sequence[Observation],
    *,
    seed: int = 0,
) -> list[Any]:
    """The scores of all kernels.

    Raises:
        SettingsError: An importance of one's own returns another shape, or not-a-number.
    """
    if importance == "random":
        return [random_scores(w.shape, seed, index) for index, w in enumerate(weights)]
    score = importance if callable(importance) else SCORES[importance]
    scores = []
    for kernel, weight, seen in zip(kernels, weights, observations, strict=True):
        value = np.asarray(score(weight, seen.gradients, seen.activations), np.float32)
        if value.shape != weight.shape or not np.isfinite(value).all():
            raise SettingsError(
                f"`importance` must give finite scores of the kernel's shape. Layer "
                f"{kernel.layer.name!r}: kernel {weight.shape}, scores {value.shape}"
                f"{'' if np.isfinite(value).all() else ' with values that are not finite'}."
            )
        scores.append(value)
    return scores


def observe(
    model: Any, kernels: Sequence[Kernel], batches: Iterable[tuple[Any, ...]], importance: Any
) -> list[Observation]:
    """Run a compiled Keras 3 model over data and note what an importance asks for.

    Args:
        model: Compiled with a loss where gradients are wanted. Its state does not change.
        kernels: Whose gradients and activations to note.
        batches: `(x, y)` or `(x, y, sample_weight)`.
        importance: A name, or a callable that gets both.

    Raises:
        DataError: There are no batches, or no labels where gradients are wanted.
    """
    if importance in ("magnitude", "random"):
        return [Observation()] * len(kernels)
    with_gradients = importance != "entropy"
    with_activations = importance == "entropy" or callable(importance)
    sums: list[Any] = [0.0] * len(kernels)
    outputs: list[list[Any]] = [[] for _ in kernels]
    count = 0
    for batch in batches:
        owners = [kernel.owner for kernel in kernels] if with_activations else []
        with _recording(owners) as seen:
            if with_gradients:
                gradients = gradients_of(model, [kernel.variable for kernel in kernels], batch)
                size = len(tf.nest.flatten(batch[0])[0])
                sums = [total + size * g for total, g in zip(sums, gradients, strict=True)]
                count += size
            else:
                model(batch[0], training=False)
        for rows, kernel in zip(outputs, kernels, strict=True):
            rows += seen.get(id(kernel.owner), [])
    if with_gradients and not count or with_activations and not all(outputs):
        raise DataError(f"`importance={importance!r}` needs data to look at, and none came.")
    return [
        Observation(
            total / count if with_gradients else None,
            np.concatenate(rows) if with_activations else None,
        )
        for total, rows in zip(sums, outputs, strict=True)
    ]


def gradients_of(model: Any, variables: Sequence[Any], batch: tuple[Any, ...]) -> list[Any]:
    """Gradients of the mean loss of a batch at inference, as NumPy arrays.

    Args:
        model: A compiled Keras 3 model.
        variables: Of the model. They may have copies on several devices.
        batch: `(x, y)` or `(x, y, sample_weight)`.

    Raises:
        DataError: There are no labels.
    """
    x, y, sample_weight = (*batch, None, None)[:3]
    if y is None:
        raise DataError("An importance that uses gradients needs data with labels. Received: none.")
    x = list(x) if isinstance(x, tuple) else x
    tensors = [tf.convert_to_tensor(variable.value) for variable in variables]
    values = {id(variable): (variable, variable.value) for variable in model.trainable_variables}
    values |= {id(v): (v, tensor) for v, tensor in zip(variables, tensors, strict=True)}
    scope = keras.StatelessScope(list(values.values()))  # regularizers find all weights in it
    with tf.GradientTape(watch_accessed_variables=False) as tape, scope:
        tape.watch(tensors)
        outputs = model(x, training=False)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight)
    gradients = tape.gradient(loss, tensors, unconnected_gradients="zero")
    return [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


@contextlib.contextmanager
def _recording(layers: Sequence[Any]) -> Iterator[dict[int, list[Any]]]:
    seen: dict[int, list[Any]] = {}
    hooked = []
    try:
        for layer in {id(layer): layer for layer in layers}.values():
            seen[id(layer)] = []
            # past Keras's own attribute tracking, and taken away below
            vars(layer)["call"] = _recorder(layer, layer.call, seen[id(layer)])
            hooked.append(layer)
        yield seen
    finally:
        for layer in hooked:
            del vars(layer)["call"]


def _recorder(layer: Any, call: Any, rows: list[Any]) -> Any:
    channels_first = getattr(layer, "data_format", None) == "channels_first"

    def recorded(*args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        first = tf.convert_to_tensor(tf.nest.flatten(outputs)[0]).numpy()
        rows.append(np.moveaxis(first, 1, -1) if channels_first else first)
        return outputs

    return recorded
