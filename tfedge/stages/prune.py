"""Set the weights that matter least to zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tfedge.data import Split
from tfedge.engines.native.kernels import Kernel, find_kernels, has_sparse_kernel
from tfedge.engines.native.prune_settings import ASKS, TIMES, Pruning
from tfedge.errors import SettingsError, TrainingError, UnsupportedModelError
from tfedge.models import check_finite, check_strategy, copy_model, keras_of
from tfedge.report import Skipped, StageReport
from tfedge.stages._base import AbstractTrainedStage, Context
from tfedge.stages._fit import last_keras, remember_keras

UNDONE = (
    "What undoes pruning: `EarlyStopping(restore_best_weights=True)` and "
    "`ModelCheckpoint(save_best_only=True)`, which bring back an epoch of less pruning; weights "
    "loaded, or a training without `callbacks()`, afterwards."
)
UNDONE_AT_ONCE = (
    "What undoes pruning at once: a training without `callbacks()`, weights loaded; or an "
    "`importance` of one's own that scores so many weights alike that none of them is the least."
)


@dataclass(frozen=True, kw_only=True)
class Prune(Pruning, AbstractTrainedStage):
    """Set the weights that matter least to zero, while the model trains or at once.

    Pruned while it trains, a model loses more weights the longer it trains, and learns to do
    without them. Keras 3 models are pruned natively; tf_keras models by TFMOT. Biases,
    normalisation and, unless they are named, depthwise kernels are left alone.

    Args:
        sparsity: Fraction of zeros that the kernels end with, in `[0, 1)`.
        schedule: Instead of `sparsity`: a callable `step -> (should_prune, sparsity)`, such as
            TFMOT's `PruningSchedule` objects; steps count from 1.
        begin: First step of pruning, as an int; or a float, the fraction of the training.
        end: Step at which `sparsity` is reached, in the same two ways.
        frequency: Steps between mask updates. Default: about 50 updates.
        layers: Names of the layers to prune. Default: every layer with a kernel that can be.
        per_layer: Sparsities of single layers by name; 0 leaves a layer alone.
        block_size: Height and width of blocks that go to zero together, in kernels that are
            matrices.
        pattern: `"2:4"` for two zeros in every four weights along the input channels.
        scope: `"layer"` holds the sparsity in every kernel; `"global"` compares the weights of all.
        importance: `"magnitude"`, `"gradient"`, `"taylor"`, `"entropy"`, `"random"`, or a callable
            `(weights, gradients, activations) -> scores` of NumPy arrays.
        importance_samples: Training samples that gradients and activations are taken from.
        one_shot: Prune at once, without training.
        threshold: At once too: weights below this magnitude, of every layer, or by layer name.

    Raises:
        SettingsError: A setting is out of range, or two of them contradict each other.

    Example:
        >>> model, report = Prune(sparsity=0.8).apply(model, context)    # doctest: +SKIP
        >>> model, report = Prune(threshold=0.01).apply(model)           # doctest: +SKIP

        In a training script of one's own:

        >>> stage = Prune(sparsity=0.8, end=0.5)
        >>> prepared = stage.prepare(model)                              # doctest: +SKIP
        >>> prepared.fit(x, y, epochs=4, callbacks=stage.callbacks())    # doctest: +SKIP
        >>> pruned, report = stage.finish(prepared)                      # doctest: +SKIP
    """

    name: ClassVar[str] = "prune"
    needs: ClassVar[frozenset[str]] = frozenset({"fit"})

    one_shot: bool = False
    threshold: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_asked("Prune", "threshold")
        if self.threshold is not None:
            self._check_threshold()
        timed = [name for name in ("schedule", *TIMES) if name in self.given()]
        if self.at_once and timed:
            raise SettingsError(
                f"`Prune` at once (`one_shot`, `threshold`) has no steps for `{timed[0]}`. "
                f"Received: {timed[0]}={getattr(self, timed[0])!r}. Leave it out."
            )

    @property
    def at_once(self) -> bool:
        """Whether weights go without training."""
        return self.one_shot or self.threshold is not None

    def prepare(self, model: Any) -> Any:
        """An own copy of `model`, ready to be pruned by `fit`; one-shot settings prune it here.

        Args:
            model: A Keras 3 or tf_keras model. Compiled, it comes back compiled.

        Raises:
            SettingsError: A layer that the settings name is missing or cannot be pruned.
            ModelError: Weights are not finite, or nothing can be pruned.
        """
        return self._prepare(model, Context())

    def callbacks(self) -> list[Any]:
        """The callbacks for `fit`, of the Keras of the model that `prepare` was given last.

        After one-shot pruning they hold the zeros.

        Raises:
            SettingsError: The importance needs data, which only `apply` has.
        """
        return self._callbacks(Context())

    def finish(self, trained: Any) -> tuple[Any, StageReport]:
        """Take the wrappers off, check the sparsity that was asked for, and report.

        Args:
            trained: What `prepare` gave, after `fit`.

        Raises:
            TrainingError: The sparsity is not there; the message says what may have undone it.
        """
        native = keras_of(trained) == "keras"
        model = trained if native or self.at_once else self._stripped(trained)
        check_finite(model)
        kernels, skipped = self._find(model)
        if self.threshold is None:
            self._check_reached(trained, kernels)
        return model, self._report(model, kernels, skipped, native)

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Prune an own copy of `model`.

        Args:
            model: A Keras 3 or tf_keras model. It comes out bit-equal.
            context: `fit` is needed, unless the settings are one-shot; `data.train` where the
                importance looks at data.

        Returns:
            The pruned model and the report on every layer.

        Raises:
            SettingsError: The context lacks something, or a named layer cannot be pruned.
            TrainingError: The training is shorter than the schedule, or undid the pruning.
        """
        context = context or Context() if self.at_once else self._check_context(context)
        prepared = self._prepare(model, context)
        if not self.at_once:
            context.fit(prepared, self._callbacks(context))  # type: ignore[misc]  # `needs` holds it
        return self.finish(prepared)

    # ------------------------------------------------------------------ preparing

    def _prepare(self, model: Any, context: Context) -> Any:
        check_finite(model)
        if not self.at_once:
            check_strategy(model)
        native = keras_of(model) == "keras"
        remember_keras(self, model)
        if not native:
            self._check_tfmot()
        kernels, _ = self._find(model)
        if not native and not self.at_once:
            return self._wrapped(model, kernels)
        copy = copy_model(model)
        if self.at_once:
            self._prune_at_once(copy, context)
        return copy

    def _find(self, model: Any) -> tuple[tuple[Kernel, ...], tuple[Skipped, ...]]:
        chosen: Pruning = self
        if isinstance(self.threshold, Mapping):
            chosen = Pruning(sparsity=0.5, layers=tuple(self.threshold))
        elif self.threshold is not None:
            chosen = Pruning(sparsity=0.5, layers=self.layers)
        kernels, skipped = find_kernels(model, chosen, training=not self.at_once)
        if self.at_once or keras_of(model) == "keras":
            return kernels, skipped
        thin = {id(kernel.layer): kernel.layer for kernel in kernels if self._is_one_block(kernel)}
        reason = "TFMOT cannot prune a matrix that is a single block high or wide"
        return (
            tuple(kernel for kernel in kernels if id(kernel.layer) not in thin),
            (*skipped, *(Skipped(layer.name, reason) for layer in thin.values())),
        )

    def _is_one_block(self, kernel: Kernel) -> bool:
        sides = zip(tuple(kernel.variable.shape)[-2:], self.block_size, strict=False)
        return tuple(self.block_size) != (1, 1) and any(size <= block for size, block in sides)

    def _prune_at_once(self, model: Any, context: Context) -> None:
        from tfedge.engines.native.pruning import masks_by_importance, threshold_masks

        kernels, _ = self._find(model)
        if not kernels:
            return
        if self.threshold is not None:
            masks = threshold_masks(kernels, [self._threshold_of(k) for k in kernels])
        else:
            masks = masks_by_importance(
                model,
                kernels,
                self,
                [self.sparsity_of(kernel.layer.name) or 0.0 for kernel in kernels],
                data=self._importance_data(model, context),
                seed=context.seed,
            )
        for kernel, mask in zip(kernels, masks, strict=True):
            kernel.variable.assign(np.where(mask, kernel.variable.numpy(), 0))

    def _importance_data(self, model: Any, context: Context) -> Split | None:
        if not self.needs_data():
            return None
        if context.data is None or context.data.train is None:
            raise SettingsError(
                f"`importance={self.importance!r}` looks at data. Received a context without "
                "`data.train`. Call `apply(model, Context(data=…))`."
            )
        if self.importance != "entropy" and not model.compiled:
            raise SettingsError(
                f"`importance={self.importance!r}` uses gradients of the loss, and the model is "
                "not compiled. Compile it first."
            )
        return context.data.train

    def _callbacks(self, context: Context) -> list[Any]:
        from tfedge.callbacks import PruneWhileTraining, keep_zeros

        keras = last_keras(self)
        if self.at_once:
            return [keep_zeros(keras)]
        if keras == "tf_keras":
            return self._tfmot_callbacks()
        data = None if context.data is None else context.data.train
        settings = {name: getattr(self, name) for name in self.given()}
        return [PruneWhileTraining(**settings, data=data, seed=context.seed)]

    # ------------------------------------------------------------------ tf_keras

    def _check_tfmot(self) -> None:
        magnitude = self.importance == "magnitude" and self.scope == "layer"
        if magnitude or (self.at_once and not self.needs_data()):
            return
        raise UnsupportedModelError(
            "TFMOT, which prunes tf_keras models while they train, knows magnitudes per layer "
            f"only. Received: importance={self.importance!r}, scope={self.scope!r}. Convert the "
            "model first: `tfedge.to_keras3(model)`."
        )

    def _wrapped(self, model: Any, kernels: Sequence[Kernel]) -> Any:
        from tfedge.engines import tfmot

        names = list(dict.fromkeys(kernel.layer.name for kernel in kernels))
        if not names:  # sparsity 0 everywhere: nothing to wrap
            return copy_model(model)
        prepared, _ = tfmot.prepare_pruning(
            model,
            None,
            layers=self._tfmot_schedules(names),
            block_size=self.block_size,
            sparsity_m_by_n=(2, 4) if self.pattern is not None else None,
        )
        return prepared

    def _tfmot_schedules(self, layers: Sequence[str]) -> dict[str, Any]:
        from tfedge.engines import tfmot
        from tfedge.engines.native.schedules import DecayInTraining

        if self.schedule is not None:
            return dict.fromkeys(layers, self.schedule)
        if self.pattern is not None:
            once = tfmot.constant_sparsity(sparsity=0.5, begin_step=1, end_step=1, frequency=1)
            return dict.fromkeys(layers, once)
        asked = {layer: self.sparsity_of(layer) or 0.0 for layer in layers}
        shared = {
            sparsity: DecayInTraining(
                sparsity, begin=self.begin, end=self.end, frequency=self.frequency
            )
            for sparsity in set(asked.values())
        }
        return {layer: shared[sparsity] for layer, sparsity in asked.items()}

    def _tfmot_callbacks(self) -> list[Any]:
        from tfedge.engines import tfmot

        return [*tfmot.pruning_callbacks(), _schedule_check()]

    def _stripped(self, trained: Any) -> Any:
        from tfedge.engines import tfmot

        if not tfmot.is_pruning(trained):
            if not self._find(trained)[0]:
                return trained
            raise UnsupportedModelError(
                f"`Prune.finish` takes the model that `prepare` gave. Received: `{trained.name}`, "
                "which has no pruning wrappers."
            )
        return tfmot.strip_pruning(trained)

    # ------------------------------------------------------------------ finishing

    def _check_reached(self, trained: Any, kernels: Sequence[Kernel]) -> None:
        from tfedge.engines.native.pruning import shortfall
        from tfedge.engines.native.schedules import final_sparsity

        if not kernels:
            return
        asked = [self.sparsity_of(kernel.layer.name) for kernel in kernels]
        if self.schedule is not None:
            asked = [final_sparsity(self.schedule)] * len(kernels)
        missing = shortfall(kernels, self, [sparsity or 0.0 for sparsity in asked])
        if missing:
            cause = UNDONE_AT_ONCE if self.one_shot else _cause(trained)
            raise TrainingError(f"The model is not pruned as asked: {missing}. {cause}")

    def _report(
        self, model: Any, kernels: Sequence[Kernel], skipped: Sequence[Skipped], native: bool
    ) -> StageReport:
        shares: dict[str, list[int]] = {}
        for kernel in kernels:
            row = shares.setdefault(kernel.layer.name, [0, 0])
            row[0] += kernel.zeros()
            row[1] += kernel.size
        zeros = sum(row[0] for row in shares.values())
        size = sum(row[1] for row in shares.values())
        sparse = {kernel.layer.name for kernel in kernels if has_sparse_kernel(kernel)}
        dead = [name for name, row in shares.items() if row[0] == row[1]]
        notes = [_sparse_note(len(sparse), len(shares))] if shares else []
        notes += [f"Every weight of {name} is zero." for name in dead]
        return StageReport(
            stage=self.name,
            engine="native" if native or self.at_once else "tfmot",
            changed=tuple(shares),
            skipped=tuple(skipped),
            metrics={
                "sparsity": zeros / size if size else 0.0,
                "zeros": zeros,
                "pruned_weights": size,
                "sparse_kernel_layers": len(sparse),
                "sparsity_per_layer": {name: row[0] / row[1] for name, row in shares.items()},
            },
            notes=tuple(notes),
        )

    # ------------------------------------------------------------------ settings

    def _threshold_of(self, kernel: Kernel) -> float:
        if isinstance(self.threshold, Mapping):
            return self.threshold[kernel.layer.name]
        return float(self.threshold or 0.0)

    def _check_threshold(self) -> None:
        others = [name for name in (*ASKS, "importance", "block_size") if name in self.given()]
        if others:
            raise SettingsError(
                f"`threshold` says all of what goes. Received `{others[0]}` too: leave one out."
            )
        if isinstance(self.threshold, Mapping) and self.layers is not None:
            raise SettingsError(
                "`threshold` by layer name chooses the layers. Received `layers` too: leave it out."
            )
        values: list[Any] = [self.threshold]
        if isinstance(self.threshold, Mapping):
            values = list(self.threshold.values())
        for value in values:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value < float("inf"):
                raise SettingsError(
                    f"`threshold` is a magnitude of weights, from 0. Received: {value!r}."
                )


def _schedule_check() -> Any:
    """The tf_keras callback that gives schedules their steps and refuses those too long."""
    import tf_keras

    from tfedge.engines.native.schedules import (
        DecayInTraining,
        steps_of_training,
        updates_in_training,
    )

    def begin(logs: Any) -> None:
        total = steps_of_training(callback.params)
        layers = [layer for layer in callback.model.layers if "pruning_schedule" in vars(layer)]
        schedules = [layer.pruning_schedule for layer in layers]
        for schedule in schedules:
            if isinstance(schedule, DecayInTraining):
                schedule.resolve(total)
        if total is not None:
            updates_in_training(schedules, [layer.layer.name for layer in layers], total)

    callback = tf_keras.callbacks.LambdaCallback(on_train_begin=begin)
    return callback


def _cause(trained: Any) -> str:
    if keras_of(trained) != "keras":
        return UNDONE
    from tfedge.callbacks import last_pruning

    record = last_pruning(trained)
    if record is None:
        return (
            "No training of this model ran with the stage's callbacks to its end: give "
            "`callbacks=stage.callbacks()` to `fit`."
        )
    return (
        f"When its training ended, after {record.steps} steps, sparsity was "
        f"{record.sparsity:.4f}: something changed the weights after that. {UNDONE}"
    )


def _sparse_note(sparse: int, pruned: int) -> str:
    return (
        f"{sparse} of {pruned} pruned layers are 1×1 convolutions, the ones that XNNPACK has "
        "sparse kernels for. Elsewhere zeros make the file smaller when compressed, not faster."
    )
