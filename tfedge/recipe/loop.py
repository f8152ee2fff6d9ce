"""Run a recipe: propose, apply, evaluate, accept or roll back, convert; the only loop."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tfedge.errors import SettingsError, TfedgeError, TrainingError
from tfedge.files import write_whole
from tfedge.recipe.applying import title_of
from tfedge.recipe.budget import next_strength
from tfedge.recipe.directory import RunDirectory
from tfedge.recipe.reading import to_yaml
from tfedge.recipe.reporting import assemble, write_report
from tfedge.recipe.settings import Recipe
from tfedge.recipe.steps import Step
from tfedge.recipe.strengths import AUTO, Strength, strength_of
from tfedge.recipe.work import State, Work
from tfedge.report import FileRecord, RunReport, StepRecord

MOST_TRIALS = 8
MOST_RETREATS = 3
Progress = Callable[[str, float], None]
Made = tuple[FileRecord, Path, State]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a way through the steps ended.

    Attributes:
        states: The models on the way, the baseline first.
        files: The files of the last one, as (record, folder, the model that was converted).
        spent_by: The step that spent the budget; empty where the files fit.
    """

    states: tuple[State, ...]
    files: tuple[Made, ...]
    spent_by: str = ""


def run(
    recipe: Recipe,
    output: str | os.PathLike[str],
    *,
    anonymous: bool = False,
    measure_latency: bool = True,
    progress: Progress | None = None,
) -> RunReport:
    """Do what a recipe says, within its budget.

    A run that was interrupted goes on where it stopped, when the same recipe is run into the same
    directory; a step whose recipe, model or data changed is done anew.

    Args:
        recipe: The recipe.
        output: The run directory.
        anonymous: Whether the report leaves out the machine's name.
        measure_latency: Whether the files are timed at the end.
        progress: Called with a sentence and the fraction that is done.

    Returns:
        The report, as it stands in `report.json`.

    Raises:
        SettingsError: The recipe contradicts the model or the data, or the directory is in use.
        TfedgeError: A step failed.

    Example:
        >>> report = run(load_recipe("recipe.yaml"), "runs/first")  # doctest: +SKIP
        >>> report.fits, report.best  # doctest: +SKIP
        (True, 'model_int8.tflite')
    """
    directory = RunDirectory(output)
    with directory.locked():
        started = time.time()
        work = Work(recipe, directory, progress or (lambda what, fraction: None))
        write_whole(directory.path / "recipe.yaml", to_yaml(recipe, directory.path))
        search = _Search(recipe, work)
        outcome = search.solve()
        _publish(outcome, work, directory.path)
        report = assemble(
            recipe,
            work,
            outcome=outcome,
            steps=search.rows,
            rejected=search.rejected,
            started=started,
            anonymous=anonymous,
            measure_latency=measure_latency,
        )
        write_report(report, directory.path)
        directory.clear()
    return report


class _Search:
    """Finds the strongest way through the steps whose files meet the budget.

    Depth first: a step offers its models from the strongest that met the budget to the weakest;
    where no file of what follows meets it, the step before takes back one trial.
    """

    def __init__(self, recipe: Recipe, work: Work) -> None:
        self.recipe = recipe
        self.work = work
        self.rows: list[StepRecord] = [work.baseline.record]
        self.rejected: list[FileRecord] = []
        self.fallback: Outcome | None = None

    def solve(self) -> Outcome:
        found = self._from(0, (self.work.baseline,))
        return found if found is not None else self.fallback  # type: ignore[return-value]

    def _from(self, index: int, states: tuple[State, ...]) -> Outcome | None:
        steps = self.recipe.steps
        if index == len(steps) or steps[index].stage == "quantize":
            return self._files(index, states)
        step = steps[index]
        for retreats, state in enumerate(self._offers(index, step, states[-1])):
            found = self._from(index + 1, (*states, state))
            if found is not None or retreats >= MOST_RETREATS:
                return found
        return None

    def _offers(self, index: int, step: Step, state: State) -> Iterator[State]:
        """Models of a step, the strongest first; at last the one that came in."""
        moved = strength_of(step.stage, step.settings)
        if not self.work.budget.is_limited or moved is None:
            made = self.work.trial(index, step, state)
            if self._judged(made):
                yield made
        else:
            yield from reversed(self._climb(index, step, state, moved))
        if self.work.budget.is_limited:
            yield state

    def _climb(self, index: int, step: Step, state: State, moved: Strength) -> list[State]:
        """The accepted trials of a step whose strength the budget moves, weakest first."""
        asked, first, top = step.settings[moved.setting], moved.first, moved.top
        if asked != AUTO:
            first = top = self.work.as_fraction(moved, asked, state)
        accepted: list[State] = []
        strongest, weakest = 0.0, None
        for tried in range(MOST_TRIALS):
            fraction = next_strength(strongest, weakest, tried, first=first, top=top)
            if fraction is None:
                break
            base = accepted[-1] if accepted and moved.repeats else state
            made = self._tried(index, step, base, fraction, searched=asked == AUTO)
            if made is not None and self._judged(made):
                accepted.append(made)
                strongest = fraction
                if fraction == top:
                    break
            else:
                weakest = fraction
        return accepted

    def _tried(
        self, index: int, step: Step, base: State, fraction: float, *, searched: bool
    ) -> State | None:
        """A trial, or `None` where it came to nothing: a row of the report says why.

        That is a training that failed or, of strengths that nobody asked for by number, one that
        the model cannot have.
        """
        try:
            return self.work.trial(index, step, base, fraction=fraction)
        except (TrainingError, SettingsError) as error:
            if isinstance(error, SettingsError) and not searched:
                raise
            strength = self.work.strength(step, base, fraction)
            row = StepRecord(
                step=f"{index + 1}-{step.stage}",
                title=title_of(step, strength),
                outcome="rejected",
                reason=str(error),
                settings=dict(step.settings),
                strength=strength,
            )
            if row not in self.rows:
                self.rows.append(row)
            return None

    def _judged(self, made: State) -> bool:
        """Whether a trial meets the budget; it becomes a row of the report."""
        broken = self.work.budget.broken(made.record.figures)
        row = dataclasses.replace(
            made.record,
            outcome="rejected" if broken else "accepted",
            reason=broken,
            drops=self.work.budget.drops(made.record.figures),
        )
        if row not in self.rows:
            self.rows.append(row)
        return not broken

    def _files(self, index: int, states: tuple[State, ...]) -> Outcome | None:
        """Convert what the steps led to; `None` where no file that was asked for fits."""
        made: list[Made] = []
        for mode in self.recipe.convert:
            made.append(self._file(index, mode, states[-1]))
        rows = [row for row, _, _ in made]
        wanted = [row for row in rows if row.mode != "float32"] or rows
        fits = any(row.outcome == "accepted" for row in wanted)
        over = [row for row in wanted if row.outcome == "rejected"]
        spent = "" if fits else f"convert to {over[-1].mode}" if over else ""
        outcome = Outcome(states=states, files=tuple(made), spent_by=spent)
        if fits or not any(self.work.budget.broken(row.figures) for row in over):
            return outcome  # a limit on size is not met by weaker steps
        self.fallback = self.fallback or outcome
        self.rejected += [row for row in over if row not in self.rejected]
        return None

    def _file(self, index: int, mode: str, state: State) -> Made:
        """The file of one mode; of int8, the first way that meets the budget."""
        steps = self.recipe.steps
        step = steps[index] if index < len(steps) else None
        if mode != "int8" or step is None:
            way = "calibration" if mode in ("int8", "int16x8") else ""
            return (*self.work.convert(state, mode, way), state)
        if step.way in ("auto", "calibrate"):
            made = self.work.convert(state, mode, "calibration", step)
            if step.way == "calibrate" or made[0].outcome == "accepted" or not self.work.trains:
                return (*made, state)
            self.rejected.append(made[0])
        trained = self.work.trial(index, step, state)
        self._judged(trained)
        return (*self.work.convert(trained, mode, "quantization-aware training"), trained)


def _publish(outcome: Outcome, work: Work, path: Path) -> None:
    """Put the files of an outcome, and the baseline's, where a user looks for them."""
    write_whole(path / work.baseline_file.path, work.baseline_content())
    for record, folder, _ in outcome.files:
        name = f"model_{record.mode}.tflite"
        source = folder / name
        if not source.is_file():
            raise TfedgeError(f"The run directory lost `{source}`. Run the recipe again.")
        write_whole(path / name, source.read_bytes())
    modes = {record.mode for record, _, _ in outcome.files}
    for stale in path.glob("model_*.tflite"):
        if stale.stem.removeprefix("model_") not in modes:
            stale.unlink()
