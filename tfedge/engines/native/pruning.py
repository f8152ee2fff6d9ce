"""Prune Keras 3 models: masks inside the optimizer step, and at once.

While a model trains, TFMOT's order is kept: before the forward pass of step `t` (counted from 1)
the masks are updated from the weights that the optimizer left behind in step `t - 1`, so that a
weight that moved far enough comes back; then the weights are masked. Here both happen at the end of
step `t - 1`, in the constraint of the variable, inside the traced training step.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfedge.data import Split
from tfedge.engines.native.importance import observe, score_kernels
from tfedge.engines.native.kernels import Kernel
from tfedge.engines.native.masks import global_masks, kept_count, kernel_mask
from tfedge.engines.native.prune_settings import Pruning
from tfedge.engines.native.schedules import TOLERANCE, ConstantSparsity, Schedule, decay_within
from tfedge.errors import SettingsError

NEVER = -1
BATCH_SIZE = 64  # samples that an importance looks at together
TINY = np.float32(1e-30)  # share of the magnitude in other scores: it only decides between equals


class KernelPruner:
    """The mask of one kernel, held by the constraint of its variable.

    Args:
        kernel: Of a built Keras 3 model.
        settings: What the mask looks like.
        schedule: Steps and sparsities, as a function of tensors, by which the mask is updated in
            the training step; `None` where only the caller sets it.
    """

    def __init__(self, kernel: Kernel, settings: Pruning, schedule: Any) -> None:
        self.kernel = kernel
        self.others: Any = None  # the constraint that the variable had before
        self._settings = settings
        self._schedule = schedule
        # one node in the step: inlined, its loop costs time in the steps that do not run it too
        self._mask_at = tf.function(self._mask_of_step, experimental_attributes={"_noinline": True})
        variable = kernel.variable
        # of the kernel's type, as a product costs half of what a choice by bools does
        self.mask = _state(np.ones(tuple(variable.shape)), variable.dtype, "mask")
        self.step = _state(1, "int64", "step")  # that the next forward pass belongs to
        self.waiting = _state(NEVER, "int64", "waiting")  # step whose update happens outside

    def install(self) -> None:
        """Put the mask into the variable's constraint, after a constraint of the user's own."""
        self.others = unpruned_constraint(self.kernel.variable)
        self.kernel.variable.constraint = self

    def uninstall(self) -> None:
        """Give the variable its own constraint back."""
        self.kernel.variable.constraint = self.others

    def __call__(self, variable: Any) -> Any:
        """The masked kernel, at the end of an optimizer step."""
        weights = tf.convert_to_tensor(variable)
        if self.others is not None:
            weights = tf.convert_to_tensor(self.others(weights))
        following = tf.convert_to_tensor(self.step) + 1
        self.step.assign(following)
        waits = tf.equal(following, tf.convert_to_tensor(self.waiting))
        mask = tf.convert_to_tensor(self.mask)
        if self._schedule is None:  # the update outside sees the weights before they are masked
            return tf.cond(waits, lambda: weights, lambda: weights * mask)
        should, _ = self._schedule(following)
        new = tf.cond(
            tf.logical_and(should, tf.logical_not(waits)),
            lambda: self._mask_at(following, weights),
            lambda: mask,
        )
        self.mask.assign(new)  # not in the branch: replicas cannot assign there
        return weights * new

    def begin_epoch(self, steps: int | None) -> None:
        """Update the mask for the step that opens an epoch, unless that has happened.

        TFMOT masks the weights at the end of an epoch and updates the masks after that; so the
        update of an epoch's first step must not happen inside the last step of the one before it.

        Args:
            steps: Steps of the epoch; `None` if not known.
        """
        if self._schedule is None:
            return
        step = tf.convert_to_tensor(self.step)
        opens_epoch = int(self.waiting.numpy()) in (NEVER, int(step))
        if opens_epoch and bool(self._schedule(step)[0]):
            self.update(step)
        self.waiting.assign(0 if steps is None else int(step) + steps)

    def update(self, step: Any) -> None:
        """Take the mask that the schedule asks for at a step, and apply it to the weights."""
        step = tf.cast(step, tf.int64)
        self.set_mask(self._mask_at(step, tf.convert_to_tensor(self.kernel.variable)))

    def set_mask(self, mask: Any) -> None:
        """Take a new mask, nonzero where a weight stays, and apply it to the weights."""
        self.mask.assign(tf.cast(mask, self.mask.dtype))
        self.apply()

    def apply(self) -> None:
        """Set the masked weights to zero."""
        weights = tf.convert_to_tensor(self.kernel.variable)
        kept = tf.not_equal(self.mask, 0)
        self.kernel.variable.assign(tf.where(kept, weights, tf.zeros_like(weights)))  # no -0.0

    def leaks(self) -> bool:
        """Whether a weight outside the mask is not zero."""
        weights = tf.convert_to_tensor(self.kernel.variable)
        outside = tf.equal(self.mask, 0)
        return bool(tf.reduce_any(tf.logical_and(outside, tf.not_equal(weights, 0))))

    def _mask_of_step(self, step: Any, weights: Any) -> Any:
        _, sparsity = self._schedule(step)
        return tf.cast(mask_by_scores(tf.abs(weights), sparsity, self._settings), weights.dtype)


def install(model: Any, keepers: Sequence[Any]) -> None:
    """Put what holds kernels, such as `KernelPruner`s, into the training step of a model."""
    for keeper in keepers:
        keeper.install()
    model.make_train_function(force=True)  # traced before, it would not see the masks


def uninstall(model: Any, keepers: Sequence[Any]) -> None:
    """Take it out of the training step again."""
    for keeper in keepers:
        keeper.uninstall()
    model.make_train_function(force=True)


def unpruned_constraint(variable: Any) -> Any:
    """The constraint of a variable without what a training that broke off left on it."""
    constraint = variable.constraint
    while isinstance(constraint, KernelPruner):
        constraint = constraint.others
    return constraint


def schedules_for(
    settings: Pruning, kernels: Sequence[Kernel], total_steps: int | None
) -> list[Schedule]:
    """The schedule of each kernel; kernels of the same sparsity share one.

    Args:
        settings: What was asked.
        kernels: What is pruned.
        total_steps: Steps of the training; `None` if not known.
    """
    if settings.schedule is not None:
        return [settings.schedule] * len(kernels)
    if settings.pattern is not None:  # at once, as TFMOT does
        once = ConstantSparsity(target_sparsity=0.5, begin_step=1, end_step=1, frequency=1)
        return [once] * len(kernels)
    asked = [settings.sparsity_of(kernel.layer.name) or 0.0 for kernel in kernels]
    shared = {
        sparsity: decay_within(
            sparsity,
            begin=settings.begin,
            end=settings.end,
            frequency=settings.frequency,
            total_steps=total_steps,
        )
        for sparsity in set(asked)
    }
    return [shared[sparsity] for sparsity in asked]


def mask_by_scores(scores: Any, sparsity: Any, settings: Pruning) -> Any:
    """The mask of one kernel, in the structure that the settings ask for."""
    return kernel_mask(scores, sparsity, block_size=settings.block_size, pattern=settings.pattern)


def masks_by_importance(
    model: Any,
    kernels: Sequence[Kernel],
    settings: Pruning,
    sparsities: Sequence[float],
    *,
    data: Split | None = None,
    seed: int = 0,
) -> list[Any]:
    """Masks from any importance, for all kernels at once.

    Args:
        model: The model of the kernels; compiled where the importance uses gradients.
        kernels: What is pruned.
        settings: Importance, scope, blocks, pattern.
        sparsities: One per kernel; with the scope `"global"` the first one counts.
        data: What importances that need data look at.
        seed: Of random scores and of the samples drawn.

    Returns:
        Bool arrays of the kernels' shapes. Of weights with score zero, as those behind a dead unit
        have, the smallest go first.
    """
    weights = [kernel.variable.numpy() for kernel in kernels]
    batches: Iterable[tuple[Any, ...]] = ()
    if data is not None and settings.needs_data():
        batches = data.take(settings.importance_samples, seed).batches(BATCH_SIZE)
    seen = observe(model, kernels, batches, settings.importance)
    scores = score_kernels(settings.importance, kernels, weights, seen, seed=seed)
    scores = [score + TINY * np.abs(w) for score, w in zip(scores, weights, strict=True)]
    if settings.scope == "global":
        return [mask.numpy() for mask in global_masks(scores, sparsities[0])]
    return [
        mask_by_scores(score, sparsity, settings).numpy()
        for score, sparsity in zip(scores, sparsities, strict=True)
    ]


def threshold_masks(kernels: Sequence[Kernel], thresholds: Sequence[float]) -> list[Any]:
    """Masks that drop every weight whose magnitude is below a threshold.

    Raises:
        SettingsError: A threshold would drop every weight of a kernel.
    """
    masks = []
    for kernel, threshold in zip(kernels, thresholds, strict=True):
        magnitudes = np.abs(kernel.variable.numpy())
        if magnitudes.max() < threshold:
            raise SettingsError(
                f"`threshold` {threshold:g} would remove every weight of layer "
                f"{kernel.layer.name!r}, whose largest is {magnitudes.max():.3g}. Lower it, or "
                "leave the layer out with `layers`."
            )
        masks.append(magnitudes >= threshold)
    return masks


def shortfall(kernels: Sequence[Kernel], settings: Pruning, asked: Sequence[float]) -> str:
    """What is missing in the zeros of pruned kernels; empty where nothing is.

    Args:
        kernels: Pruned.
        settings: What was asked.
        asked: The sparsity of each kernel.
    """
    if settings.scope == "global":
        size = sum(kernel.size for kernel in kernels)
        zeros = sum(kernel.zeros() for kernel in kernels)
        floor = max(asked[0] - TOLERANCE, 0.0)
        if zeros + len(kernels) < size - int(kept_count(size, floor)):
            return (
                f"the kernels together have sparsity {zeros / size:.4f}, asked was {asked[0]:.4f}"
            )
        return ""
    for kernel, sparsity in zip(kernels, asked, strict=True):
        values = kernel.variable.numpy()
        floor = max(sparsity - TOLERANCE, 0.0)
        if np.any(values[~mask_by_scores(np.abs(values), floor, settings).numpy()]):
            return (
                f"layer {kernel.layer.name!r} has sparsity {kernel.zeros() / kernel.size:.4f}, "
                f"asked was {sparsity:.4f}{_pattern_words(settings)}"
            )
    return ""


def _pattern_words(settings: Pruning) -> str:
    if settings.pattern is not None:
        return f" in the pattern {settings.pattern}"
    if settings.block_size != (1, 1):
        return f" in blocks of {settings.block_size[0]}×{settings.block_size[1]}"
    return ""


def _state(value: Any, dtype: str, name: str) -> Any:
    return keras.Variable(
        value,
        dtype=dtype,
        trainable=False,
        aggregation="only_first_replica",  # every replica computes the same from the same weights
        name=name,
    )
