"""Hold and check the settings of pruning, shared by the stage and the callback."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfedge.errors import SettingsError, did_you_mean

IMPORTANCES = ("magnitude", "gradient", "taylor", "entropy", "random")
SCOPES = ("layer", "global")
PATTERNS = ("2:4",)
ASKS = ("sparsity", "schedule", "per_layer", "pattern")  # each of them says how much goes
TIMES = ("begin", "end", "frequency")

# what says the same thing twice, or rules the other out
CONFLICTS: Mapping[str, tuple[str, ...]] = {
    "schedule": ("sparsity", "per_layer", *TIMES),
    "pattern": ("schedule", "per_layer", "scope", "block_size", *TIMES),
    "scope": ("per_layer", "block_size"),
}


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What is pruned, how far, and when; `Prune` says what each setting means.

    Raises:
        SettingsError: A setting is out of range, or two of them contradict each other.
    """

    sparsity: float | None = None
    schedule: Callable[[Any], tuple[Any, Any]] | None = None
    begin: int | float = 0.0
    end: int | float = 0.75
    frequency: int | None = None
    layers: Sequence[str] | None = None
    per_layer: Mapping[str, float] | None = None
    block_size: tuple[int, int] = (1, 1)
    pattern: str | None = None
    scope: str = "layer"
    importance: str | Callable[[Any, Any, Any], Any] = "magnitude"
    importance_samples: int = 512

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            check_fraction(self.sparsity, "sparsity")
        for name, value in (self.per_layer or {}).items():
            check_fraction(value, f"per_layer[{name!r}]")
        check_step(self.begin, "begin")
        check_step(self.end, "end")
        self._check_order()
        _check_count(self.frequency, "frequency", "steps between updates")
        _check_count(self.importance_samples, "importance_samples", "samples")
        check_names(self.layers, "layers")
        check_block_size(self.block_size)
        object.__setattr__(self, "block_size", tuple(self.block_size))
        check_option(self.scope, SCOPES, "scope")
        if self.pattern is not None:
            check_option(self.pattern, PATTERNS, "pattern")
        if not callable(self.importance):
            check_option(self.importance, IMPORTANCES, "importance")
        self._check_together()

    def named(self) -> tuple[str, ...]:
        """The layers that the settings name."""
        return tuple(dict.fromkeys((*(self.layers or ()), *(self.per_layer or ()))))

    def sparsity_of(self, layer: str) -> float | None:
        """The sparsity that a layer is to end with; `None` where a schedule or nothing says it."""
        if self.pattern is not None:
            return 0.5
        if self.per_layer is not None and layer in self.per_layer:
            return self.per_layer[layer]
        return self.sparsity

    def given(self) -> tuple[str, ...]:
        """Names of the settings shared with the callback that differ from their defaults."""
        return tuple(
            field.name
            for field in dataclasses.fields(Pruning)
            if getattr(self, field.name) != field.default
        )

    def check_asked(self, receiver: str, *more: str) -> None:
        """Refuse settings that ask for no pruning.

        Args:
            receiver: Name of the class that was given the settings.
            more: Names of further settings that ask for some.

        Raises:
            SettingsError: None of them is given.
        """
        asks = (*ASKS, *more)
        if all(getattr(self, name) is None for name in asks):
            raise SettingsError(
                f"`{receiver}` needs one of {', '.join(f'`{name}`' for name in asks)}. "
                "Received: none of them."
            )

    def between_batches(self) -> bool:
        """Whether mask updates need Python: all kernels at once, or data."""
        return self.scope == "global" or self.importance != "magnitude"

    def needs_data(self) -> bool:
        """Whether the importance is measured on data."""
        return self.importance not in ("magnitude", "random")

    def _check_order(self) -> None:
        alike = isinstance(self.begin, float) == isinstance(self.end, float)
        if alike and self.end <= self.begin:
            raise SettingsError(
                f"`end` must come after `begin`. Received: begin={self.begin!r}, end={self.end!r}."
            )

    def _check_together(self) -> None:
        given = self.given()
        for one, others in CONFLICTS.items():
            other = next((name for name in others if name in given), None)
            if one in given and other is not None:
                raise SettingsError(
                    f"`{one}` and `{other}` contradict each other. Received: "
                    f"{one}={getattr(self, one)!r}, {other}={getattr(self, other)!r}. Leave one "
                    "out."
                )
        if self.pattern is not None and self.sparsity not in (None, 0.5):
            raise SettingsError(
                f"`pattern` {self.pattern!r} fixes the sparsity at 0.5. Received: "
                f"sparsity={self.sparsity}. Leave `sparsity` out."
            )
        if self.schedule is not None and not callable(self.schedule):
            raise SettingsError(
                "`schedule` is a callable `step -> (should_prune, sparsity)`. "
                f"Received: {self.schedule!r}."
            )


def check_fraction(value: Any, name: str) -> None:
    """Refuse what is not a fraction in `[0, 1)`.

    Raises:
        SettingsError: The value is out of range, or no number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 <= value < 1:
        return
    hint = ""
    if is_number and 1 < value < 100:
        hint = f" Did you mean {value / 100:g}?"
    elif is_number and value in (1, 100):
        hint = " That would remove every weight."
    raise SettingsError(f"`{name}` is the fraction of zeros, in [0, 1). Received: {value!r}.{hint}")


def check_step(value: Any, name: str) -> None:
    """Refuse what is neither a step (int ≥ 0) nor a fraction of the training (float in [0, 1]).

    Raises:
        SettingsError: It is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return
    if isinstance(value, float) and 0 <= value <= 1:
        return
    hint = f" Did you mean {int(value)}?" if isinstance(value, float) and value > 1 else ""
    raise SettingsError(
        f"`{name}` is a step (int, from 0) or a fraction of the training (float in [0, 1]). "
        f"Received: {value!r}.{hint}"
    )


def check_option(value: Any, options: Sequence[str], name: str) -> None:
    """Refuse a word that is not one of the options.

    Raises:
        SettingsError: It is none of them; the nearest is offered.
    """
    if value not in options:
        raise SettingsError(
            f"`{name}` must be one of {', '.join(map(repr, options))}. Received: {value!r}."
            f"{did_you_mean(value, options)}"
        )


def check_names(value: Any, name: str) -> None:
    """Refuse a text where a list of names is meant.

    Raises:
        SettingsError: It is a text.
    """
    if isinstance(value, str):
        raise SettingsError(
            f"`{name}` is a list of layer names. Received: {value!r}. Did you mean [{value!r}]?"
        )


def check_block_size(value: Any) -> None:
    """Refuse what is not a pair of counts.

    Raises:
        SettingsError: It is not two ints from 1.
    """
    pair = isinstance(value, tuple | list) and len(value) == 2
    if not pair or not all(isinstance(side, int) and side >= 1 for side in value):
        raise SettingsError(
            f"`block_size` is (height, width), two ints from 1. Received: {value!r}."
        )


def _check_count(value: Any, name: str, what: str) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingsError(f"`{name}` counts {what}, from 1. Received: {value!r}.")
