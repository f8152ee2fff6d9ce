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

from tfedge.engines.native.importance import observe, score_kernels
from tfedge.engines.native.kernels import Kernel
from tfedge.engines.native.masks import global_masks, kept_count, kernel_mask
from tfedge.engines.native.prune_settings import Pruning
from tfedge.engines.native.schedules import TOLERANCE, ConstantSparsity, Schedule, decay_within
from tfedge.errors import SettingsError

NEVER = -1


class KernelPruner:
    """The mask of one kernel, held by the constraint of its variable.

    Args:
        kernel: Of a built Keras 3 model.
        settings: What the mask looks like.
        schedule: Steps and sparsities, as a function of tensors; `None` to hold a fixed mask.
        inside: Whether masks are updated inside the training step; else the caller does it.
    """

    def __init__(
        self,
        kernel: Kernel,
        settings: Pruning,
        schedule: Any,
        *,
        inside: bool = True,
    ) -> None:
        self.kernel = kernel
        self._settings = settings
        self._schedule = schedule
        self._inside = inside and schedule is not None
        self._others = None
        shape = tuple(kernel.variable.shape)
        self.mask = _state(np.ones(shape, bool), "mask")
        self.step = _state(np.int64(1), "step")  # that the next forward pass belongs to
        self.waiting = _state(np.int64(NEVER), "waiting")  # step whose update happens outside

    def install(self) -> None:
        """Put the mask into the variable's constraint, after a constraint of the user's own."""
        self._others = unpruned_constraint(self.kernel.variable)
        self.kernel.variable.constraint = self

    def uninstall(self) -> None:
        """Give the variable its own constraint back."""
        self.kernel.variable.constraint = self._others

    @property
    def others(self) -> Any:
        """The constraint that the variable had before."""
        return self._others

    def __call__(self, variable: Any) -> Any:
        """The masked kernel, at the end of an optimizer step."""
        weights = tf.convert_to_tensor(variable)
        if self._others is not None:
            weights = tf.convert_to_tensor(self._others(weights))
        following = tf.convert_to_tensor(self.step) + 1
        self.step.assign(following)
        waits = tf.equal(following, tf.convert_to_tensor(self.waiting))
        mask = tf.convert_to_tensor(self.mask)
        if self._inside:
            should, sparsity = self._schedule(following)
            mask = tf.cond(
                tf.logical_and(should, tf.logical_not(waits)),
                lambda: self._mask_of(weights, sparsity),
                lambda: mask,
            )
            self.mask.assign(mask)
        else:  # the update outside sees the weights before they are masked
            mask = tf.logical_or(mask, waits)
        return tf.where(mask, weights, tf.zeros_like(weights))

    def begin_epoch(self, steps: int | None) -> None:
        """Update the mask for the step that opens an epoch, unless that has happened.

        TFMOT masks the weights at the end of an epoch and updates the masks after that; so the
        update of an epoch's first step must not happen inside the last step of the one before it.

        Args:
            steps: Steps of the epoch; `None` if not known.
        """
        step = tf.convert_to_tensor(self.step)
        opens_epoch = int(self.waiting.numpy()) in (NEVER, int(step))
        if self._inside and opens_epoch:
            should, sparsity = self._schedule(step)
            if bool(should):
                self.set_mask(self._mask_of(tf.convert_to_tensor(self.kernel.variable), sparsity))
        if self._inside:
            self.waiting.assign(0 if steps is None else int(step) + steps)

    def set_mask(self, mask: Any) -> None:
        """Take a new mask and apply it to the weights."""
        self.mask.assign(mask)
        self.apply()

    def apply(self) -> None:
        """Set the masked weights to zero."""
        weights = tf.convert_to_tensor(self.kernel.variable)
        mask = tf.convert_to_tensor(self.mask)
        self.kernel.variable.assign(tf.where(mask, weights, tf.zeros_like(weights)))

    def leaks(self) -> bool:
        """Whether a weight outside the mask is not zero."""
        weights = tf.convert_to_tensor(self.kernel.variable)
        outside = tf.logical_not(tf.convert_to_tensor(self.mask))
        return bool(tf.reduce_any(tf.logical_and(outside, tf.not_equal(weights, 0))))

    def _mask_of(self, weights: Any, sparsity: Any) -> Any:
        settings = self._settings
        return kernel_mask(
            tf.abs(weights), sparsity, block_size=settings.block_size, pattern=settings.pattern
        )


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


def masks_by_importance(
    model: Any,
    kernels: Sequence[Kernel],
    settings: Pruning,
    sparsities: Sequence[float],
    *,
    batches: Iterable[tuple[Any, ...]] = (),
    seed: int = 0,
) -> list[Any]:
    """Masks from any importance, for all kernels at once.

    Args:
        model: The model of the kernels; compiled where the importance uses gradients.
        kernels: What is pruned.
        settings: Importance, scope, blocks, pattern.
        sparsities: One per kernel; with the scope `"global"` the first one counts.
        batches: Data for importances that need them.
        seed: Of random scores.
    """
    weights = [kernel.variable.numpy() for kernel in kernels]
    seen = observe(model, kernels, batches, settings.importance)
    scores = score_kernels(settings.importance, kernels, weights, seen, seed=seed)
    if settings.scope == "global":
        return [mask.numpy() for mask in global_masks(scores, sparsities[0])]
    return [
        kernel_mask(
            score, sparsity, block_size=settings.block_size, pattern=settings.pattern
        ).numpy()
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
        mask = kernel_mask(
            np.abs(values), floor, block_size=settings.block_size, pattern=settings.pattern
        ).numpy()
        if np.any(values[~mask]):
            return (
                f"layer {kernel.layer.name!r} has sparsity {kernel.zeros() / kernel.size:.4f}, "
                f"asked was {sparsity:.4f}{_pattern_words(settings)}"
            )
    return ""


def _pattern_words(settings: Pruning) -> str:
    if settings.pattern is not None:
        return f" in the pattern {settings.pattern}"
    if tuple(settings.block_size) != (1, 1):
        return f" in blocks of {settings.block_size[0]}×{settings.block_size[1]}"
    return ""


def _state(value: Any, name: str) -> Any:
    return keras.Variable(
        value,
        dtype=str(value.dtype),
        trainable=False,
        aggregation="only_first_replica",  # every replica computes the same from the same weights
        name=name,
    )
