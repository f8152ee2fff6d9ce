"""Judge outputs that are at hand: by a metric, by the loss, or by how far they moved."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.data import Metric, Split, evaluate
from tfedge.data.nests import as_arrays, concatenate, leaves
from tfedge.errors import SettingsError
from tfedge.models import import_keras, is_compiled, keras_of
from tfedge.stages._fit import choose_loss

BATCH_SIZE = 64


@dataclass(frozen=True)
class Figure:
    """A figure of merit of outputs.

    Attributes:
        name: What to call it.
        higher_is_better: Whether more is better.
        of: Outputs of all samples, a list of batches, to the figure; not-a-number for outputs that
            hold one.
    """

    name: str
    higher_is_better: bool
    of: Callable[[Sequence[Any]], float]

    def worse_by(self, reference: float, candidate: float) -> float:
        """How much worse the candidate is; infinite for not-a-number."""
        worse = reference - candidate if self.higher_is_better else candidate - reference
        return math.inf if math.isnan(worse) else worse


def choose_figure(
    model: Any, split: Split, metric: Metric | None, reference: Sequence[Any]
) -> Figure:
    """The metric if there is one, else the loss; without labels how far outputs moved.

    Args:
        model: Whose loss it is, if it is compiled.
        split: The samples, as arrays, in the order that outputs have.
        metric: The figure of merit.
        reference: Outputs of the model itself, a list of batches.

    Raises:
        SettingsError: The loss of a model with several outputs is not known.
    """
    if len(split.rows) < 2:
        return Figure("distance", False, _finite(_distance(reference)))
    if metric is None:
        return Figure("loss", False, _finite(_loss(model, split, reference)))
    chosen = metric

    def by_metric(outputs: Sequence[Any]) -> float:
        rows = iter(outputs)
        return evaluate(lambda _: next(rows), split, chosen, batch_size=BATCH_SIZE)

    return Figure(chosen.name, chosen.higher_is_better, _finite(by_metric))


def _loss(model: Any, split: Split, reference: Sequence[Any]) -> Callable[[Sequence[Any]], float]:
    """The loss of outputs, without the regularisation of the model's weights."""
    _, y, weight = (*split.rows, None)[:3]
    if is_compiled(model):

        def compiled(outputs: Sequence[Any]) -> float:
            whole = _joined(outputs)
            total = model.compute_loss(x=None, y=_listed(y), y_pred=whole, sample_weight=weight)
            return float(total) - sum(float(value) for value in model.losses)

        return compiled
    if isinstance(y, dict | tuple) or isinstance(_joined(reference[:1]), dict | list):
        raise SettingsError(
            f"The loss of a model with several outputs is yours to say: `{model.name}` is not "
            "compiled. Compile it, or give the context a `metric`."
        )
    loss, _ = choose_loss(import_keras(keras_of(model)), y, _joined(reference))
    return lambda outputs: float(loss(y, _joined(outputs), sample_weight=weight))


def _distance(reference: Sequence[Any]) -> Callable[[Sequence[Any]], float]:
    """Squared distance of outputs from the reference, as a part of its squared size."""
    theirs = [np.asarray(array, np.float64) for array in leaves(_arrays(reference))]
    size = sum(float(np.sum(array**2)) for array in theirs) or 1.0

    def of(outputs: Sequence[Any]) -> float:
        ours = leaves(_arrays(outputs))
        return sum(float(np.sum((a - b) ** 2)) for a, b in zip(ours, theirs, strict=True)) / size

    return of


def _finite(function: Callable[[Sequence[Any]], float]) -> Callable[[Sequence[Any]], float]:
    def of(outputs: Sequence[Any]) -> float:
        if not all(np.isfinite(array).all() for array in leaves(_arrays(outputs))):
            return math.nan
        return function(outputs)

    return of


def _arrays(outputs: Sequence[Any]) -> Any:
    return concatenate([as_arrays(batch, "predictions") for batch in outputs])


def _joined(outputs: Sequence[Any]) -> Any:
    """All batches in one, in the structure that Keras has for several outputs."""
    return _listed(_arrays(outputs))


def _listed(arrays: Any) -> Any:
    return list(arrays) if isinstance(arrays, tuple) else arrays
