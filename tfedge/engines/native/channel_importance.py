"""Score how much each channel of a group matters."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfedge.data import Split
from tfedge.engines.native.channels import Channels, Group, Part
from tfedge.engines.native.fake_quant import folded_scale
from tfedge.engines.native.graph import Call, Copies, Ref, build_model
from tfedge.engines.native.importance import channel_entropy, gradients_of
from tfedge.engines.native.lower import TRAINING_ONLY
from tfedge.errors import DataError, SettingsError

Score = Callable[[np.ndarray], Any]
BATCH_SIZE = 32
BY_FILTERS: Mapping[str, Score] = {
    "l1": lambda filters: np.abs(filters).sum(axis=1),
    "l2": lambda filters: np.sqrt(np.square(filters).sum(axis=1)),
}
BY_OUTPUTS = ("activation_mean", "apoz", "entropy")
BY_GRADIENTS = ("taylor", "gradient")
FOLLOWED = TRAINING_ONLY | {"BatchNormalization", "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU"}


def score_channels(
    model: Any,
    channels: Channels,
    importance: str | Score,
    *,
    data: Split | None = None,
    seed: int = 0,
) -> dict[int, np.ndarray]:
    """The importance of each channel, comparable between groups.

    Scores are divided by their mean over the group, but those of `"taylor"`, which are changes of
    one loss and comparable as they are.

    Args:
        model: The model of the graph; compiled with a loss for `"taylor"` and `"gradient"`.
        channels: Of its graph; its layers are the model's own.
        importance: `"l1"`, `"l2"`: norm of the filters, with the batch normalisation behind them
            folded in. `"bn_scale"`: magnitude of its scales (Liu et al. 2017, arXiv:1708.06519).
            `"activation_mean"`, `"apoz"` (how rarely the output is zero; Hu et al. 2016,
            arXiv:1607.03250), `"entropy"` (Luo and Wu 2017, arXiv:1706.05791): of the outputs over
            samples. `"taylor"`: first-order change of the loss without the channel (Molchanov et
            al. 2019, arXiv:1906.10771). `"gradient"`: norm of the gradients of its weights.
            `"random"`. Or a callable: float32 filters (channels, weights) to scores (channels,).
        data: What scores that need data look at.
        seed: Of random scores.

    Returns:
        Index of a group to float64 scores, one per channel. Groups that the importance says nothing
        about (`"bn_scale"` without batch normalisation) are absent.

    Raises:
        SettingsError: A callable returns another shape, or not-a-number.
        DataError: There are no samples, or no labels where gradients are wanted.
    """
    groups = channels.groups
    if importance in BY_OUTPUTS:
        raw = _by_outputs(channels, str(importance), _batches(data))
    elif importance in BY_GRADIENTS:
        raw = _by_gradients(model, channels, str(importance), _batches(data, labels=True))
    elif importance == "random":
        raw = {g.index: np.random.default_rng((seed, g.index)).random(g.size) for g in groups}
    elif importance == "bn_scale":
        raw = _by_scales(groups)
    else:
        score = importance if callable(importance) else BY_FILTERS[importance]
        raw = {g.index: _checked(score(filters_of(channels, g)), g) for g in groups}
    if importance == "taylor":
        return raw
    return {index: normalised(scores) for index, scores in raw.items()}


def normalised(scores: np.ndarray) -> np.ndarray:
    """Scores with mean 1; all zeros stay as they are.

    Example:
        >>> normalised(np.array([1.0, 3.0]))
        array([0.5, 1.5])
    """
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


def filters_of(channels: Channels, group: Group) -> np.ndarray:
    """All weights that make the channels of a group, (channels, weights) in float32.

    A batch normalisation that alone reads what a layer writes is folded into its filters, as it is
    in the converted file.
    """
    columns = []
    for part in (*group.writers, *group.followers):
        rows = filter_rows(part)
        if rows is not None:
            scale = _folded_scale(channels, part)
            columns.append(by_channel(group, part.writes, rows * scale[:, None]))
    return np.concatenate(columns, axis=1).astype(np.float32)


def filter_rows(part: Part) -> np.ndarray | None:
    """The kernel that writes each output channel of a layer, (outputs, weights)."""
    layer = part.layer
    for kind in type(layer).__mro__:
        rows = _ROWS.get(kind.__name__)
        if rows is not None:
            return rows(layer)
    return None


def by_channel(group: Group, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows that belong to labels, laid side by side for each channel of a group.

    Args:
        group: Channels.
        labels: One for each row.
        rows: (labels, values).

    Returns:
        (channels, values × how often a label of the group occurs).

    Example:
        >>> group = Group(index=0, labels=np.array([4, 7]), writers=(), multiplicity=1,
        ...               followers=())
        >>> by_channel(group, np.array([7, 4, 9]), np.array([[1.0], [2.0], [3.0]])).tolist()
        [[2.0], [1.0]]
    """
    return np.stack([rows[labels == label].reshape(-1) for label in group.labels.tolist()])


def _array(variable: Any) -> np.ndarray:
    return np.asarray(variable.value.numpy(), np.float64)


def _last_axis(layer: Any) -> np.ndarray:
    kernel = _array(layer.kernel)
    return kernel.reshape(-1, kernel.shape[-1]).T


def _transposed(layer: Any) -> np.ndarray:
    return np.moveaxis(_array(layer.kernel), -2, 0).reshape(layer.filters, -1)


def _depthwise(layer: Any) -> np.ndarray:
    kernel = _array(layer.kernel)
    return kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1]).T


def _pointwise(layer: Any) -> np.ndarray:
    kernel = _array(layer.pointwise_kernel)
    return kernel.reshape(-1, kernel.shape[-1]).T


def _embedding(layer: Any) -> np.ndarray:
    return _array(layer.embeddings).T


_ROWS: Mapping[str, Callable[[Any], np.ndarray]] = {
    **{f"Conv{rank}DTranspose": _transposed for rank in (1, 2, 3)},
    **{f"DepthwiseConv{rank}D": _depthwise for rank in (1, 2)},
    **{f"SeparableConv{rank}D": _pointwise for rank in (1, 2)},
    **{f"Conv{rank}D": _last_axis for rank in (1, 2, 3)},
    "Dense": _last_axis,
    "Embedding": _embedding,
}


# ---------------------------------------------------------------------------- batch normalisation


def batch_norm_behind(channels: Channels, part: Part) -> Part | None:
    """The batch normalisation that alone reads what a layer writes."""
    if len(part.calls) != 1 or part.kind == "BatchNormalization":
        return None
    reader = channels.graph.only_reader(part.calls[0])
    if reader is None or reader.kind != "BatchNormalization" or channels.graph.is_shared(reader):
        return None
    return channels.parts.get(id(reader.operation))


def _folded_scale(channels: Channels, part: Part) -> np.ndarray:
    behind = batch_norm_behind(channels, part)
    if behind is None:
        return np.ones(len(part.writes))
    return np.asarray(folded_scale(behind.layer), np.float64)


def _by_scales(groups: Iterable[Group]) -> dict[int, np.ndarray]:
    scores = {}
    for group in groups:
        scaled = [
            by_channel(group, part.writes, np.abs(_array(part.layer.gamma))[:, None])
            for part in group.followers
            if part.kind == "BatchNormalization" and part.layer.scale
        ]
        if scaled:
            scores[group.index] = np.concatenate(scaled, axis=1).sum(axis=1)
    return scores


# ---------------------------------------------------------------------------- data


def _batches(data: Split | None, *, labels: bool = False) -> Iterable[tuple[Any, ...]]:
    if data is None or not len(data):
        raise DataError("This importance looks at samples, and none came. Give training data.")
    for rows in data.batches(BATCH_SIZE):
        if labels and len(rows) < 2:
            raise DataError(
                "An importance that uses gradients needs data with labels. Received: none."
            )
        yield rows


def _by_outputs(
    channels: Channels, importance: str, batches: Iterable[tuple[Any, ...]]
) -> dict[int, np.ndarray]:
    watched = {
        part.name: [_outcome(channels, call) for call in part.calls] for part in _writers(channels)
    }
    indices = list(dict.fromkeys(index for own in watched.values() for index in own))
    probe = model_of_tensors(channels, indices)
    seen: dict[int, list[np.ndarray]] = {index: [] for index in indices}
    for rows in batches:
        x = list(rows[0]) if isinstance(rows[0], tuple) else rows[0]
        outputs = tf.nest.flatten(probe(x, training=False))
        for index, output in zip(indices, outputs, strict=True):
            seen[index].append(_per_sample(np.asarray(output), channels, index, importance))
    figures = {
        name: np.concatenate([rows for index in own for rows in seen[index]])
        for name, own in watched.items()
    }
    scores = {}
    for group in channels.groups:
        total = np.zeros(group.size)
        for part in group.writers:
            values = figures[part.name]
            own = channel_entropy(values) if importance == "entropy" else values.mean(axis=0)
            total += by_channel(group, part.writes, own[:, None]).sum(axis=1)
        scores[group.index] = total
    return scores


def _writers(channels: Channels) -> list[Part]:
    writers = {part.name: part for group in channels.groups for part in group.writers}
    return list(writers.values())


def _outcome(channels: Channels, call: Call) -> int:
    """The tensor that holds a layer's output behind its normalisation and activation."""
    while True:
        reader = channels.graph.only_reader(call)
        if reader is None or reader.kind not in FOLLOWED:
            return call.outputs[0]
        call = reader


def model_of_tensors(channels: Channels, indices: list[int]) -> Any:
    """A model that returns these tensors, in layers of its own."""
    copies = Copies()
    structure = [Ref(index) for index in indices]
    graph = dataclasses.replace(channels.graph, output_structure=structure)
    return build_model(graph, lambda call, args, kwargs: copies.of(call)(*args, **kwargs))


def _per_sample(output: np.ndarray, channels: Channels, index: int, importance: str) -> Any:
    """One number per sample and channel."""
    values = channels.values[index]
    axis = int(np.argmax(values.shape)) + 1
    rows = np.moveaxis(output.astype(np.float32), axis, -1)
    rows = rows.reshape(len(rows), -1, rows.shape[-1])
    if importance == "apoz":
        return (rows != 0).mean(axis=1)
    return (np.abs(rows) if importance == "activation_mean" else rows).mean(axis=1)


def _by_gradients(
    model: Any, channels: Channels, importance: str, batches: Iterable[tuple[Any, ...]]
) -> dict[int, np.ndarray]:
    sources = {
        part.name: _learned(channels, part, importance == "taylor") for part in _writers(channels)
    }
    variables = [variable for own in sources.values() for variable, _ in own]
    scores = {group.index: np.zeros(group.size) for group in channels.groups}
    count = 0
    for rows in batches:
        gradients = iter(gradients_of(model, variables, rows))
        found = {
            name: [(_array(v), np.asarray(next(gradients), np.float64), turn) for v, turn in own]
            for name, own in sources.items()
        }
        size = len(tf.nest.flatten(rows[0])[0])
        count += size
        for group in channels.groups:
            total = np.zeros(group.size)
            for part in group.writers:
                figure = sum(
                    turn(w * g if importance == "taylor" else g * g).sum(axis=1)
                    for w, g, turn in found[part.name]
                )
                total += by_channel(group, part.writes, np.asarray(figure)[:, None]).sum(axis=1)
            scores[group.index] += size * (
                np.abs(total) if importance == "taylor" else np.sqrt(total)
            )
    return {index: total / count for index, total in scores.items()}


Turn = Callable[[np.ndarray], np.ndarray]


def _learned(channels: Channels, part: Part, behind: bool) -> list[tuple[Any, Turn]]:
    """Variables that a layer's output is proportional to, each with how to lay it out in rows.

    Scale and offset of the batch normalisation behind it, so that a channel counts as it leaves
    it; else kernel and bias.
    """
    norm = batch_norm_behind(channels, part) if behind else None
    if norm is not None and (norm.layer.scale or norm.layer.center):
        own = [v for v in (norm.layer.gamma, norm.layer.beta) if v is not None]
        return [(variable, _column) for variable in own]
    layer = part.layer
    if part.kind == "Embedding":
        return [(layer.embeddings, np.transpose)]
    kernel = layer.pointwise_kernel if part.kind.startswith("Separable") else layer.kernel
    axis = -2 if part.kind.endswith("Transpose") else -1
    found: list[tuple[Any, Turn]] = [(kernel, _first_and_rest(axis))]
    return [*found, (layer.bias, _column)] if layer.use_bias else found


def _column(values: np.ndarray) -> np.ndarray:
    return values[:, None]


def _first_and_rest(axis: int) -> Turn:
    def turn(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)

    return turn


def _checked(scores: Any, group: Group) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.shape != (group.size,) or not np.isfinite(values).all() or (values < 0).any():
        raise SettingsError(
            "`importance` must give one finite score from 0 for each channel. Received for "
            f"{group.name}: shape {values.shape} for {group.size} channels, {values.ravel()[:4]}."
        )
    return values
