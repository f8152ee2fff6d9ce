"""Prune a Keras 3 model while it trains."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfedge.data import Split
from tfedge.engines.native.kernels import Kernel, find_kernels
from tfedge.engines.native.prune_settings import Pruning
from tfedge.engines.native.pruning import (
    KernelPruner,
    install,
    masks_by_importance,
    schedules_for,
    uninstall,
)
from tfedge.engines.native.schedules import (
    Schedule,
    in_graph,
    steps_of_training,
    updates_in_training,
)
from tfedge.errors import SettingsError, TrainingError
from tfedge.models import scope_of


@dataclass(frozen=True)
class PruningRecord:
    """How the last training with pruning of a model went.

    Attributes:
        steps: Training steps.
        sparsity: Share of zeros over the pruned kernels at the end.
    """

    steps: int
    sparsity: float


_records: weakref.WeakKeyDictionary[Any, PruningRecord] = weakref.WeakKeyDictionary()


def last_pruning(model: Any) -> PruningRecord | None:
    """The record of the last training of `model` under `PruneWhileTraining`, if there was one."""
    return _records.get(model)


class PruneWhileTraining(keras.callbacks.Callback):
    """Prune the model that is being fitted: any Keras 3 model, subclassed or fitted before.

    Masks are kept inside the traced training step, and updated there, so that a batch costs no
    Python. Only `scope="global"` and importances other than magnitude update their masks between
    batches. Steps count from 1 in each `fit`; with `fit(initial_epoch=…)` they go on from there.
    The weights of the model itself change: that is this callback's purpose. Optimizer state and a
    constraint of the user's own stay as they are.

    Args:
        schedule: A callable `step -> (should_prune, sparsity)`, e.g. TFMOT's `PruningSchedule`.
        sparsity: Instead of a schedule: the fraction of zeros at `end`, in `[0, 1)`.
        begin: First step (int) or fraction of the training (float).
        end: Step or fraction at which `sparsity` is reached.
        frequency: Steps between updates. Default: about 50 updates.
        layers: Names of the layers to prune. Default: all with a kernel.
        per_layer: Sparsities of single layers.
        block_size: Height and width of blocks that go to zero together.
        pattern: `"2:4"`, applied from the first step on.
        scope: `"layer"` or `"global"`.
        importance: `"magnitude"`, `"gradient"`, `"taylor"`, `"entropy"`, `"random"` or a callable.
        importance_samples: Samples of `data` to look at, at each update of the masks.
        data: `Split` or `(x, y)` that gradients and activations are taken from.
        seed: Of random scores and of the samples drawn from `data`.

    Raises:
        SettingsError: A setting is wrong, or an importance lacks its data.
        TrainingError: In `fit`: the schedule is longer than the training, or was not carried out.

    Example:
        >>> callback = PruneWhileTraining(sparsity=0.8, end=0.5)
        >>> model.fit(x, y, epochs=4, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        sparsity: float | None = None,
        begin: int | float = 0.0,
        end: int | float = 0.75,
        frequency: int | None = None,
        layers: Sequence[str] | None = None,
        per_layer: Mapping[str, float] | None = None,
        block_size: tuple[int, int] = (1, 1),
        pattern: str | None = None,
        scope: str = "layer",
        importance: str | Callable[[Any, Any, Any], Any] = "magnitude",
        importance_samples: int = 512,
        data: Any = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._settings = Pruning(
            schedule=schedule,
            sparsity=sparsity,
            begin=begin,
            end=end,
            frequency=frequency,
            layers=layers,
            per_layer=per_layer,
            block_size=block_size,
            pattern=pattern,
            scope=scope,
            importance=importance,
            importance_samples=importance_samples,
        )
        self._settings.check_asked("PruneWhileTraining")
        self._data = _importance_data(data, self._settings)
        self._seed = seed
        self._start_clean()
        if self._settings.between_batches():
            # set here and not in the class, where Keras would take it for a need of every fit
            setattr(self, "on_train_batch_end", self._after_batch)  # noqa: B010

    def _start_clean(self) -> None:
        self._pruners: list[KernelPruner] = []
        self._schedules: list[Schedule] = []
        self._updates: dict[int, list[float]] = {}  # still to come: step to sparsities of kernels
        self._total: int | None = None  # steps of the training, where they are known
        self._started = False
        self._first = 1
        self._epoch_start = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Put the masks into the training step."""
        self._start_clean()
        kernels, _ = find_kernels(self.model, self._settings, training=True)
        self._total = steps_of_training(self.params)
        self._schedules = schedules_for(self._settings, kernels, self._total)
        self._plan_updates(kernels)
        inside: dict[int, Any] = {}
        if not self._settings.between_batches():
            inside = {id(schedule): in_graph(schedule) for schedule in self._schedules}
        with scope_of(self.model):
            self._pruners = [
                KernelPruner(kernel, self._settings, inside.get(id(schedule)))
                for kernel, schedule in zip(kernels, self._schedules, strict=True)
            ]
        install(self.model, self._pruners)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Update the masks for the first step of the epoch, as no step before it may."""
        if not self._pruners:
            return
        steps = self.params.get("steps")
        if not self._started:
            self._started = True
            self._start(1 + (epoch * steps if steps else 0))
        self._epoch_start = int(self._pruners[0].step.numpy()) - 1
        for pruner in self._pruners:
            pruner.begin_epoch(steps)

    def on_train_end(self, logs: Any = None) -> None:
        """Take the masks out of the training step, and check that they did their work."""
        pruners, self._pruners = self._pruners, []
        uninstall(self.model, pruners)
        if not pruners or not self._started:
            return
        self._check_applied(pruners)
        for pruner in pruners:
            pruner.apply()
        steps = int(pruners[0].step.numpy()) - 1
        zeros = sum(pruner.kernel.zeros() for pruner in pruners)
        size = sum(pruner.kernel.size for pruner in pruners)
        _records[self.model] = PruningRecord(steps=steps, sparsity=zeros / size)
        if steps != self._total:
            self._updates_within(steps, [pruner.kernel for pruner in pruners])

    def _start(self, first: int) -> None:
        """Set the masks as updates before the first step left them, where a fit goes on."""
        self._first = first
        for pruner in self._pruners:
            pruner.step.assign(first)
        if self._settings.between_batches():
            self._update_between(first)
            return
        past = [step for step in self._updates if step < first]
        for pruner in self._pruners if past else ():
            pruner.update(past[-1])

    def _after_batch(self, batch: int, logs: Any = None) -> None:
        self._update_between(self._epoch_start + batch + 2)

    def _update_between(self, following: int) -> None:
        """Bring the masks up to the step that follows, and say which update comes next."""
        if not self._pruners:
            return
        due = [step for step in self._updates if step <= following]
        sparsities = [self._updates.pop(step) for step in due]
        if due:
            masks = masks_by_importance(
                self.model,
                [pruner.kernel for pruner in self._pruners],
                self._settings,
                sparsities[-1],
                data=self._data,
                seed=self._seed,
            )
            for pruner, mask in zip(self._pruners, masks, strict=True):
                pruner.set_mask(mask)
        if self.model.steps_per_execution == 1 and (due or following == self._first):
            for pruner in self._pruners:
                pruner.waiting.assign(min(self._updates, default=0))

    def _plan_updates(self, kernels: Sequence[Kernel]) -> None:
        if self._total is not None:
            plans = self._updates_within(self._total, kernels)
            # schedules of one training differ in their sparsities, never in their steps
            steps = plans[0] if plans else ()
            self._updates = {step: [plan[step] for plan in plans] for step in steps}
        elif self._settings.between_batches():
            raise TrainingError(
                "Pruning between batches (`scope='global'`, or an importance other than magnitude) "
                "must know how many steps the training has. Give `steps_per_epoch` to `fit`."
            )

    def _updates_within(self, steps: int, kernels: Sequence[Kernel]) -> list[dict[int, float]]:
        names = [kernel.layer.name for kernel in kernels]
        return updates_in_training(self._schedules, names, steps)

    def _check_applied(self, pruners: Sequence[KernelPruner]) -> None:
        for pruner in pruners:
            if int(pruner.step.numpy()) <= self._first:
                raise TrainingError(
                    f"The mask of layer {pruner.kernel.layer.name!r} was never applied: no step of "
                    "the training updated its kernel. It gets no gradient, or a `train_step` of "
                    "one's own goes past Keras's `optimizer.apply`. Leave it out with `layers`."
                )
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        averaged = optimizer is not None and optimizer.use_ema
        leaks = [pruner.kernel.layer.name for pruner in pruners if pruner.leaks()]
        if leaks and not averaged:
            raise TrainingError(
                f"Weights that were pruned are back in layer {leaks[0]!r}: after the last step "
                "another callback replaced them, as `EarlyStopping(restore_best_weights=True)` "
                "does with the best epoch, which is one of less pruning. Let it start after the "
                "schedule's end (`start_from_epoch`), or leave the restoring out."
            )


def _importance_data(data: Any, settings: Pruning) -> Split | None:
    if settings.needs_data() and data is None:
        raise SettingsError(
            f"`importance={settings.importance!r}` looks at data. Received: data=None. Give "
            "`data=(x, y)`."
        )
    return Split(*data) if isinstance(data, tuple | list) else data
