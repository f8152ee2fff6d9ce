"""Train a model on, or train a baseline from scratch."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from tfedge.engines.native.kernels import Kernel, pruned_kernels
from tfedge.models import check_finite, check_strategy, copy_model, keras_of, layers_of
from tfedge.report import Skipped, StageReport
from tfedge.stages._base import AbstractTrainedStage, Context
from tfedge.stages._fit import (
    check_count,
    check_learning_rate,
    last_keras,
    make_fit,
    measured,
    remember_keras,
)


@dataclass(frozen=True, kw_only=True)
class FineTune(AbstractTrainedStage):
    """Train an own copy of a model.

    Args:
        epochs: Passes over the training data.
        learning_rate: Default: the model's own; 1e-3 for a model that is not compiled.
        batch_size: Samples per step.
        keep_zeros: Weights of pruned kernels that are zero stay zero. A kernel counts as pruned
            that has both zeros and other values.
        keep_clusters: Weights of clustered kernels that are equal stay equal. A kernel counts as
            clustered that has at most half as many distinct values as weights, zeros aside.

    Raises:
        SettingsError: A setting is out of range.

    Example:
        >>> model, report = FineTune(epochs=3).apply(model, context)  # doctest: +SKIP
    """

    name: ClassVar[str] = "finetune"
    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    epochs: int
    learning_rate: float | None = None
    batch_size: int = 32
    keep_zeros: bool = True
    keep_clusters: bool = True

    def __post_init__(self) -> None:
        check_count(self.epochs, "FineTune.epochs")
        check_count(self.batch_size, "FineTune.batch_size")
        check_learning_rate(self.learning_rate)

    def prepare(self, model: Any) -> Any:
        """An own copy of `model`; compiled if `model` is."""
        check_finite(model)
        check_strategy(model)
        remember_keras(self, model)
        return copy_model(model)

    def callbacks(self) -> list[Any]:
        """What holds zeros and clusters of a model, of the Keras that `prepare` was given last."""
        from tfedge.callbacks import keep_clusters, keep_zeros

        keras = last_keras(self)
        holders = [keep_clusters(keras)] if self.keep_clusters else []
        return [*holders, keep_zeros(keras)] if self.keep_zeros else holders

    def finish(self, trained: Any) -> tuple[Any, StageReport]:
        """Report on a trained model.

        Raises:
            ModelError: Its weights are not finite.
        """
        check_finite(trained)
        layers = layers_of(trained)
        changed = tuple(layer.name for layer in layers if layer.trainable_weights)
        skipped = tuple(
            Skipped(layer.name, "frozen" if layer.weights else "no weights")
            for layer in layers
            if not layer.trainable_weights
        )
        native = keras_of(trained) == "keras"
        return trained, StageReport(
            stage=self.name,
            engine="native" if native else "tfmot",
            changed=changed,
            skipped=skipped,
            metrics={"epochs": self.epochs},
        )

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Train an own copy of `model` on the data of the context.

        Args:
            model: A Keras 3 or tf_keras model.
            context: `data` is needed; with `metric` and evaluation data, the report holds the
                metric before and after. `fit` is not used: this stage has settings of its own.

        Returns:
            The trained model and the report.

        Raises:
            SettingsError: The context has no data.
            TrainingError: The loss became NaN.
        """
        context = self._check_context(context)
        prepared = self.prepare(model)
        held = self._held(prepared)
        fit = make_fit(
            context.data,  # type: ignore[arg-type]  # `needs` holds it
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=context.seed,
        )
        before = measured(prepared, context, "before")
        history = fit(prepared, self.callbacks())
        trained, report = self.finish(prepared)
        metrics = {**report.metrics, "loss": float(history.history["loss"][-1])}
        metrics |= before | measured(trained, context, "trained")
        notes = tuple(
            f"The {what} of {', '.join(dict.fromkeys(k.layer.name for k in kernels))} were kept."
            for what, kernels in held.items()
            if kernels
        )
        return trained, dataclasses.replace(report, metrics=metrics, notes=notes)

    def _held(self, model: Any) -> dict[str, list[Kernel]]:
        """What of the model is held, to the kernels that have it."""
        from tfedge.engines.native.cluster_keeping import clustered_kernels

        return {
            "zeros": pruned_kernels(model) if self.keep_zeros else [],
            "clusters": clustered_kernels(model) if self.keep_clusters else [],
        }
