"""Say at which training steps weights are pruned, and how far.

A schedule is any callable `step -> (should_prune, sparsity)`. The step counts from 1 and reaches
the schedule as a scalar int64 tensor, so TFMOT's `PruningSchedule` objects serve as they are; the
two classes here have the same fields and arithmetic and need no TFMOT.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfedge.engines.native.prune_settings import check_fraction
from tfedge.errors import SettingsError, TrainingError

Schedule = Callable[[Any], tuple[Any, Any]]

UPDATES = 50  # mask updates between begin and end when no frequency is given
TOLERANCE = 1e-3  # how far a sparsity may stay below what was asked
FAR = 2**40  # a step beyond every schedule: where its final sparsity can be read


@dataclass(frozen=True, kw_only=True)
class ConstantSparsity:
    """The same sparsity at every update.

    Args:
        target_sparsity: Fraction of zeros, in `[0, 1)`.
        begin_step: First step (from 1) at which masks may be updated.
        end_step: Last such step; -1 for no end.
        frequency: Steps between updates.

    Example:
        >>> should, sparsity = ConstantSparsity(target_sparsity=0.5, begin_step=10)(110)
        >>> bool(should), float(sparsity)
        (True, 0.5)
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        check_fraction(self.target_sparsity, "target_sparsity")
        _check_steps(self.begin_step, self.end_step, self.frequency)

    def __call__(self, step: Any) -> tuple[Any, Any]:
        """Whether masks are updated at `step`, and the sparsity they get then."""
        should = _is_turn(step, self.begin_step, self.end_step, self.frequency)
        return should, tf.constant(self.target_sparsity, tf.float32)


@dataclass(frozen=True, kw_only=True)
class PolynomialDecay:
    """Sparsity that rises fast at first and levels out (Zhu and Gupta 2017, arXiv:1710.01878).

    Args:
        final_sparsity: Fraction of zeros at `end_step`, in `[0, 1)`.
        begin_step: First step (from 1) at which masks may be updated.
        end_step: Step at which `final_sparsity` is reached.
        initial_sparsity: Fraction of zeros at `begin_step`.
        power: Exponent of the curve.
        frequency: Steps between updates, counted from `begin_step`.

    Example:
        >>> decay = PolynomialDecay(final_sparsity=0.8, begin_step=0, end_step=100, frequency=10)
        >>> [round(float(decay(step)[1]), 3) for step in (0, 50, 100)]
        [0.0, 0.7, 0.8]
    """

    final_sparsity: float
    begin_step: int
    end_step: int
    initial_sparsity: float = 0.0
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        check_fraction(self.final_sparsity, "final_sparsity")
        check_fraction(self.initial_sparsity, "initial_sparsity")
        _check_steps(self.begin_step, self.end_step, self.frequency)
        if self.end_step <= self.begin_step:
            raise SettingsError(
                f"`end_step` must come after `begin_step`. Received: begin_step={self.begin_step}, "
                f"end_step={self.end_step}. For one update use `ConstantSparsity`."
            )

    def __call__(self, step: Any) -> tuple[Any, Any]:
        """Whether masks are updated at `step`, and the sparsity they get then."""
        done = tf.cast(step - self.begin_step, tf.float32) / (self.end_step - self.begin_step)
        done = tf.minimum(1.0, tf.maximum(0.0, done))
        rest = (self.initial_sparsity - self.final_sparsity) * tf.pow(1 - done, self.power)
        should = _is_turn(step, self.begin_step, self.end_step, self.frequency)
        return should, rest + self.final_sparsity


def decay_within(
    sparsity: float,
    *,
    begin: int | float,
    end: int | float,
    frequency: int | None,
    total_steps: int | None,
    initial_sparsity: float = 0.0,
) -> PolynomialDecay:
    """A decay whose last update falls on its end.

    Args:
        sparsity: Final fraction of zeros, in `[0, 1)`.
        begin: First step as an int, or as a float the fraction of the training in `[0, 1]`.
        end: Last step, in the same two ways.
        frequency: Steps between updates; `None` for about 50 updates.
        total_steps: Steps of the training; `None` if not known, which fractions do not allow.
        initial_sparsity: Fraction of zeros at the beginning.

    Raises:
        SettingsError: `end` does not come after `begin`.
        TrainingError: A fraction was given and the length of the training is not known.

    Example:
        >>> decay = decay_within(0.8, begin=0.0, end=0.5, frequency=7, total_steps=100)
        >>> decay.begin_step, decay.end_step
        (1, 50)
    """
    first = max(_step_of(begin, "begin", total_steps), 0)
    last = _step_of(end, "end", total_steps)
    if isinstance(end, float):
        last = max(last, 1)
    if isinstance(begin, float):
        first = min(max(first, 1), last - 1)
    if last <= first:
        raise SettingsError(
            f"`end` must come after `begin`. Received: begin={begin!r} (step {first}), "
            f"end={end!r} (step {last})."
        )
    if frequency is None:
        frequency = max(1, round((last - first) / UPDATES))
    if isinstance(begin, float):  # a fraction leaves room: start so that an update falls on `end`
        frequency = min(frequency, last - first)
        first = last - (last - first) // frequency * frequency
    return PolynomialDecay(
        initial_sparsity=initial_sparsity,
        final_sparsity=sparsity,
        begin_step=first,
        end_step=last,
        frequency=frequency,
    )


class DecayInTraining:
    """A decay that learns the length of the training when the training begins.

    For TFMOT, whose wrappers take their schedule before that. Until `resolve` it asks for nothing.

    Args:
        sparsity: Final fraction of zeros.
        begin: As for `decay_within`.
        end: As for `decay_within`.
        frequency: As for `decay_within`.
    """

    def __init__(
        self, sparsity: float, *, begin: int | float, end: int | float, frequency: int | None
    ) -> None:
        self._sparsity = sparsity
        self._within = {"begin": begin, "end": end, "frequency": frequency}
        self.decay: PolynomialDecay | None = None

    def resolve(self, total_steps: int | None) -> PolynomialDecay:
        """Set the steps.

        Args:
            total_steps: Steps of the training; `None` if not known.

        Raises:
            TrainingError: They are not known and a fraction was given.
        """
        self.decay = decay_within(self._sparsity, total_steps=total_steps, **self._within)  # type: ignore[arg-type]
        return self.decay

    def __call__(self, step: Any) -> tuple[Any, Any]:
        """Whether masks are updated at `step`, and the sparsity they get then."""
        if self.decay is None:
            return tf.constant(False), tf.constant(0.0)
        return self.decay(step)

    def get_config(self) -> dict[str, Any]:
        """The settings, as TFMOT's schedules give them."""
        config = {"sparsity": self._sparsity, **self._within}
        return {"class_name": type(self).__name__, "config": config}


def updates_of(schedule: Schedule, total_steps: int) -> dict[int, float]:
    """The steps in `1..total_steps` at which masks are updated, each with its sparsity.

    Example:
        >>> updates_of(ConstantSparsity(target_sparsity=0.5, begin_step=2, frequency=4), 11)
        {2: 0.5, 6: 0.5, 10: 0.5}
    """
    ask = in_graph(schedule)

    @tf.function
    def ask_all() -> Any:
        steps = tf.range(1, total_steps + 1, dtype=tf.int64)
        return tf.map_fn(ask, steps, fn_output_signature=(tf.bool, tf.float32))

    # a concrete function: calling `ask_all()` itself would log a retracing warning per schedule
    answers = ask_all.get_concrete_function()()
    should, sparsity = (answer.numpy() for answer in answers)
    return {int(i) + 1: float(sparsity[i]) for i in np.flatnonzero(should)}


def final_sparsity(schedule: Schedule) -> float:
    """The sparsity that a schedule ends at.

    Example:
        >>> final_sparsity(PolynomialDecay(final_sparsity=0.25, begin_step=0, end_step=9))
        0.25
    """
    step = tf.constant(FAR, tf.int64)
    _, sparsity = in_graph(schedule).get_concrete_function(step)(step)
    return float(sparsity)


def in_graph(schedule: Schedule) -> Any:
    """A schedule as a function of tensors, plain Python control flow in it included."""

    @tf.function
    def ask(step: Any) -> Any:
        should, sparsity = schedule(step)
        return tf.cast(should, tf.bool), tf.cast(sparsity, tf.float32)

    return ask


def steps_of_training(params: Mapping[str, Any]) -> int | None:
    """How many steps a training has, by the `params` of a Keras callback; `None` if not known.

    Example:
        >>> steps_of_training({"epochs": 4, "steps": 25}), steps_of_training({"epochs": 4})
        (100, None)
    """
    steps, epochs = params.get("steps"), params.get("epochs")
    return steps * epochs if steps and epochs else None


def updates_in_training(
    schedules: Sequence[Schedule], layers: Sequence[str], total_steps: int
) -> list[dict[int, float]]:
    """As `updates_of`, for the schedules of a model, each of which must reach its end.

    Args:
        schedules: One per kernel; one that several kernels share is looked at once.
        layers: Names of the kernels' layers.
        total_steps: Steps of the training.

    Raises:
        TrainingError: No update falls into the training, or the last one stops short of the end.
    """
    plans: dict[int, dict[int, float]] = {}
    for schedule, layer in zip(schedules, layers, strict=True):
        if id(schedule) not in plans:
            plans[id(schedule)] = updates = updates_of(schedule, total_steps)
            _check_reaches_end(updates, final_sparsity(schedule), total_steps, layer)
    return [plans[id(schedule)] for schedule in schedules]


def _check_reaches_end(
    updates: Mapping[int, float], asked: float, total_steps: int, layer: str
) -> None:
    if not updates:
        raise TrainingError(
            f"The pruning schedule of layer {layer!r} has no update within this training of "
            f"{total_steps} steps. Train longer, or let it begin and end earlier, or lower "
            "`frequency`."
        )
    reached = updates[max(updates)]
    if asked - reached > TOLERANCE:
        raise TrainingError(
            f"The pruning schedule of layer {layer!r} does not reach its end in this training: the "
            f"last update, at step {max(updates)} of {total_steps}, asks for sparsity "
            f"{reached:.4g} of {asked:.4g}. Train longer, let it end earlier, or choose a "
            "`frequency` that divides `end - begin`."
        )


def _is_turn(step: Any, begin: int, end: int, frequency: int) -> Any:
    begun = tf.greater_equal(step, begin)
    within = tf.logical_and(begun, tf.logical_or(tf.less_equal(step, end), end < 0))
    return tf.logical_and(within, tf.equal(tf.math.floormod(step - begin, frequency), 0))


def _step_of(value: int | float, name: str, total_steps: int | None) -> int:
    if isinstance(value, int):
        return value
    if total_steps is None:
        raise TrainingError(
            f"`{name}` is a fraction of the training ({value!r}) and the number of steps is not "
            "known: the data do not say how many batches an epoch has. Give `steps_per_epoch` to "
            f"`fit`, or `{name}` as a step (int)."
        )
    return round(value * total_steps)


def _check_steps(begin: int, end: int, frequency: int) -> None:
    if begin < 0 or (end != -1 and end < begin):
        raise SettingsError(
            f"Steps must satisfy 0 <= begin_step <= end_step. Received: begin_step={begin}, "
            f"end_step={end}."
        )
    if frequency < 1:
        raise SettingsError(f"`frequency` must be at least 1 step. Received: {frequency}.")
