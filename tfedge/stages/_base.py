"""What every stage is: a Keras model in, a Keras model and a report out."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tfedge.errors import SettingsError
from tfedge.report import StageReport

if TYPE_CHECKING:
    from tfedge.data import Data, Metric

Fit = Callable[[Any, Sequence[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a recipe offers its stages; each takes what it needs.

    Attributes:
        fit: `fit(model, callbacks)` compiles and trains the model, and returns Keras's `History`.
        data: Training, evaluation and calibration data.
        metric: The figure of merit.
        seed: Seed of everything random in the stage.
    """

    fit: Fit | None = None
    data: "Data | None" = None
    metric: "Metric | None" = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class AbstractStage(abc.ABC):
    """A technique with its settings. Never changes the model that it is given."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def trains(self) -> bool:
        """Whether it trains, given a `fit`."""
        return True

    @abc.abstractmethod
    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Apply the technique to an own copy of `model`.

        Args:
            model: A Keras 3 or tf_keras model. It comes out bit-equal.
            context: What the stage may use; `needs` names the fields it cannot do without.

        Returns:
            The new model and the report on every layer.

        Raises:
            SettingsError: The context lacks something that the stage needs.
        """

    def _check_context(self, context: Context | None) -> Context:
        context = context or Context()
        missing = sorted(name for name in self.needs if getattr(context, name) is None)
        if missing:
            raise SettingsError(
                f"`{type(self).__name__}` needs {', '.join(f'`{m}`' for m in missing)} in its "
                f"`Context`. Received: {', '.join(f'{m}=None' for m in missing)}."
            )
        return context


@dataclass(frozen=True, kw_only=True)
class AbstractTrainedStage(AbstractStage):
    """A stage that works while the model trains.

    Its halves serve a training script of one's own: `prepare(model)`, then the script's own
    `fit(…, callbacks=stage.callbacks())`, then `finish(trained)`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"fit"})

    @abc.abstractmethod
    def prepare(self, model: Any) -> Any:
        """An own copy of `model`, ready to be trained; compiled if `model` is compiled."""

    @abc.abstractmethod
    def callbacks(self) -> list[Any]:
        """The Keras callbacks that `fit` must be given. Empty where none is needed."""

    @abc.abstractmethod
    def finish(self, trained: Any) -> tuple[Any, StageReport]:
        """Take the scaffolding off a trained model, check what was asked, and report."""

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        context = self._check_context(context)
        prepared = self.prepare(model)
        context.fit(prepared, self.callbacks())  # type: ignore[misc]  # `needs` holds it
        return self.finish(prepared)
