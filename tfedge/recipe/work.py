"""Do the single pieces of a run, each kept in the run directory: load, train, evaluate, convert."""

import dataclasses
import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tfedge import __version__
from tfedge.convert import convert
from tfedge.data import find_function
from tfedge.data.functions import is_reference
from tfedge.files import write_whole
from tfedge.models import (
    check_finite,
    keras_of,
    load_model,
    own_objects,
    reproducible,
    save_model,
)
from tfedge.recipe.applying import (
    Kept,
    applied,
    curves_of,
    fit_of,
    logged,
    quantized_by_calibration,
    title_of,
)
from tfedge.recipe.directory import RunDirectory, digest_of, seed_of, sha256_of
from tfedge.recipe.judge import Judge
from tfedge.recipe.loading import can_train, hash_of_data, hash_of_sources, load_data
from tfedge.recipe.settings import Recipe
from tfedge.recipe.steps import BASELINE as BASELINE_TEACHER
from tfedge.recipe.steps import Step, distillation_of
from tfedge.recipe.strengths import Strength, strength_of
from tfedge.recipe.targets import fit_recipe
from tfedge.report import FileRecord, StepRecord
from tfedge.stages._base import Context
from tfedge.verify import VerificationReport

PRUNED = 0.1  # of the weights are zero in a model that counts as pruned
BASELINE = "0-baseline"
BASELINE_FILE = "baseline_float32.tflite"
PACKAGES = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert")


@dataclass(frozen=True, kw_only=True)
class State:
    """A model on its way.

    Attributes:
        path: Where it is kept.
        digest: Of all that it came from.
        record: What is known of it.
        clustered: Whether it came by way of clustering.
    """

    path: Path
    digest: str
    record: StepRecord
    clustered: bool = False

    @property
    def kept(self) -> Kept:
        """What earlier steps gave the model."""
        return Kept(zeros=(self.record.sparsity or 0.0) >= PRUNED, clusters=self.clustered)


class Work:
    """The model, the data and the budget of a recipe, and what can be done with them.

    Args:
        recipe: The recipe.
        directory: Where results are kept.
        say: Called with a sentence and a fraction.
    """

    def __init__(
        self, recipe: Recipe, directory: RunDirectory, say: Callable[[str, float], None]
    ) -> None:
        self.recipe = recipe
        self.directory = directory
        self.done = 0
        self._say = say
        self.say("loading the model")
        self.model_path, model_digest = self._model_file()
        self.model = self.load(self.model_path)
        check_finite(self.model)
        self.say("loading the data")
        self.data, validation = load_data(recipe, self.model)
        self.hashes = {
            "recipe": digest_of(recipe.to_dict()),
            "model": model_digest,
            "data": hash_of_data(self.data, validation),
        }
        self.trains = can_train(recipe, self.data)
        self.judge = Judge(self.data.evaluation, recipe.metric, self.model)  # type: ignore[arg-type]
        self.chooser = self.judge
        if validation is not None:
            self.chooser = Judge(validation, recipe.metric, self.model)
        self.fits = fit_recipe(recipe, self.model, self.data, warn=True)
        self.baseline, self.baseline_file = self._baseline()

    def say(self, what: str, share: float = 0.0) -> None:
        """Report what is being done; `share` is the part of this piece that is done."""
        expected = 4 + 5 * len(self.recipe.steps) + len(self.recipe.convert)
        self._say(what, min(0.95, (self.done + share) / expected))

    @cached_property
    def objects(self) -> dict[str, Any]:
        """The classes of one's own that the model uses, by name."""
        return dict(own_objects(self.model))

    def load(self, path: Path) -> Any:
        """A model of this run, from its file."""
        objects = self.objects if "model" in vars(self) else None
        return load_model(
            path,
            custom_objects=objects,
            unsafe=self.recipe.unsafe,
            imports=self.recipe.imports,
        )

    def _step(
        self, name: str, key: Mapping[str, Any], make: Callable[[Path], Any]
    ) -> tuple[dict[str, Any], Path]:
        """A piece of work that the run directory keeps, counted for the progress."""
        made = self.directory.step(name, key, make)
        self.done += 1
        return made

    def _figures(
        self, model: Any, content: bytes
    ) -> tuple[dict[str, float], VerificationReport, dict[str, float]]:
        """The figures of a file, its comparison with the model, and the figures to choose by."""
        figures, verification = self.judge.file(model, content)
        if self.chooser is self.judge:
            return figures, verification, figures
        return figures, verification, self.chooser.file(model, content)[0]

    # ------------------------------------------------------------------ the beginning

    def _model_file(self) -> tuple[Path, str]:
        """The model as a file; what a function returns is kept as one."""
        name = self.recipe.model
        if not is_reference(name) or Path(name).exists():
            path = Path(name)
            return path, sha256_of(path) if path.is_file() else name
        function = find_function(name)

        def make(folder: Path) -> Any:
            with reproducible(seed_of(self.recipe.seed, "model")):
                model = function()
                keras_of(model)
                save_model(model, folder / "model.keras")
            return {}

        _, folder = self.directory.step("0-model", {"model": name, **self._common()}, make)
        return folder / "model.keras", sha256_of(folder / "model.keras")

    def _common(self) -> dict[str, Any]:
        """What every step depends on, beside what is its own."""
        return {
            "versions": versions(),
            "seed": self.recipe.seed,
            "sources": hash_of_sources(self.recipe),
        }

    def _baseline(self) -> tuple[State, FileRecord]:
        key = {
            **self._common(),
            "model": self.hashes["model"],
            "data": self.hashes["data"],
            "metric": self.recipe.metric,
        }
        digest = digest_of(key)

        def make(folder: Path) -> Any:
            self.say("measuring the model as it came")
            started = time.perf_counter()
            content, report = convert(self.model, mode="float32")
            write_whole(folder / "model_float32.tflite", content)
            figures, verification, chosen = self._figures(self.model, content)
            seconds = time.perf_counter() - started
            step = StepRecord(
                step=BASELINE,
                title="the model as it came",
                outcome="baseline",
                figures=chosen,
                size_bytes=report.size_bytes,
                gzip_bytes=report.gzip_bytes,
                sparsity=report.inspection.sparsity,
                parameters=_parameters(self.model),
                seconds=seconds,
            )
            file = _file_record(report, verification, figures, content, "float32", "", seconds)
            return {"step": step, "file": file, "chosen": chosen}

        record, folder = self._step(BASELINE, key, make)
        self.budget = self.chooser.budget(record["chosen"], self.recipe.max_drop)
        self.final_budget = self.judge.budget(record["file"]["figures"], self.recipe.max_drop)
        step = _step_record(record["step"])
        step = dataclasses.replace(step, drops=self.budget.drops(step.figures))
        file = dataclasses.replace(
            _as(FileRecord, record["file"]),
            outcome="baseline",
            path=BASELINE_FILE,
        )
        self.baseline_content = (folder / "model_float32.tflite").read_bytes
        file = dataclasses.replace(file, drops=self.final_budget.drops(file.figures))
        return State(path=self.model_path, digest=digest, record=step), file

    # ------------------------------------------------------------------ one trial of a stage

    def trial(self, index: int, step: Step, state: State, fraction: float | None = None) -> State:
        """Apply a step to a model, or take what an earlier run made of it.

        Args:
            index: Place of the step in the recipe.
            step: The step.
            state: The model that it is applied to; comes out as it was.
            fraction: The fraction of the model to remove, where the budget moves the strength.

        Returns:
            The new model.
        """
        strength = self.strength(step, state, fraction)
        name = f"{index + 1}-{step.stage}"
        key = {
            "from": state.digest,
            "step": step.to_dict(),
            "strength": strength,
            "train": self._training(step),
            "seed": self.recipe.seed,
            "name": name,
            **self._teacher_key(step),
        }
        title = title_of(step, strength)

        def make(folder: Path) -> Any:
            self.say(title)
            return self._applied(folder, name, step, state, strength, title)

        suffix = "" if fraction is None else f"-{100 * fraction:g}"
        record, folder = self._step(f"{name}{suffix}", key, make)
        step_record = dataclasses.replace(
            _step_record(record),
            model=str((folder / "model.keras").relative_to(self.directory.path)),
        )
        return State(
            path=folder / "model.keras",
            digest=digest_of(key),
            record=step_record,
            clustered=state.clustered or step.stage == "cluster",
        )

    def _teacher_key(self, step: Step) -> dict[str, str]:
        """What the teacher of a step is known by; nothing for a step without one."""
        if not step.distill:
            return {}
        teachers = step.distill.get("teacher", BASELINE_TEACHER)
        paths = [Path(str(one)) for one in (teachers if isinstance(teachers, list) else [teachers])]
        hashes = [sha256_of(path) if path.is_file() else self.hashes["model"] for path in paths]
        return {"teacher": ",".join(hashes)}

    def _applied(
        self,
        folder: Path,
        name: str,
        step: Step,
        state: State,
        strength: Mapping[str, float],
        title: str,
    ) -> StepRecord:
        started = time.perf_counter()
        seed = seed_of(self.recipe.seed, name)
        histories: list[Any] = []
        with reproducible(seed):
            model = self.load(state.path)
            fit = self._fit(step, seed, title, folder.name, histories)
            context = Context(fit=fit, data=self.data, seed=seed)
            model, report = applied(step, strength, model, context, state.kept)
            save_model(model, folder / "model.keras")
        figures = self.chooser.model(model)
        sizes: dict[str, Any] = {}
        if step.stage != "quantize":
            _, converted = convert(model, mode="float32")
            sizes = {
                "size_bytes": converted.size_bytes,
                "gzip_bytes": converted.gzip_bytes,
                "sparsity": converted.inspection.sparsity,
            }
        return StepRecord(
            step=name,
            title=title,
            outcome="accepted",
            settings=dict(step.settings),
            strength=dict(strength),
            figures=figures,
            parameters=_parameters(model),
            stage=report,
            epochs=curves_of(histories),
            seconds=time.perf_counter() - started,
            **sizes,
        )

    def _training(self, step: Step) -> dict[str, Any]:
        own = {} if self.recipe.fit else dict(vars(self.recipe.train))
        if self.recipe.fit:
            own["fit"] = self.recipe.fit
        return {**own, **step.train}

    def _fit(
        self, step: Step, seed: int, title: str, folder: str, histories: list[Any]
    ) -> Callable[[Any, Sequence[Any]], Any] | None:
        """The `fit(model, callbacks)` of a step, which logs; `None` without training data."""
        if not self.trains:
            return None
        chosen = fit_of(
            self.recipe, step, self.data, seed, progress=lambda part: self.say(title, part)
        )
        if step.distill:
            chosen = distillation_of(step, self.model).wrap(chosen)
        return logged(chosen, self.directory.path / "logs" / folder, histories)

    def strength(self, step: Step, state: State, fraction: float | None) -> dict[str, float]:
        """The setting that the budget moves with its value; empty for a step without one."""
        moved = strength_of(step.stage, step.settings)
        if moved is None:
            return {}
        if fraction is None:
            return {moved.setting: step.settings[moved.setting]}
        return {moved.setting: moved.from_fraction(fraction, lambda: self.load(state.path))}

    def as_fraction(self, moved: Strength, value: float, state: State) -> float:
        """The fraction of the model that a strength takes away."""
        return moved.to_fraction(value, lambda: self.load(state.path))

    # ------------------------------------------------------------------ one file

    def convert(
        self, state: State, mode: str, way: str, step: Step | None = None
    ) -> tuple[FileRecord, Path]:
        """Convert a model, or take the file that an earlier run made of it.

        Args:
            state: The model.
            mode: Mode of the file.
            way: How its integers come about.
            step: The step `quantize` that they come about by, where that is by calibration.

        Returns:
            The file's record, judged by budget and limits, and the folder of its step.
        """
        key = {"from": state.digest, "mode": mode, "way": way, "metric": self.recipe.metric}
        if step is not None and (step.settings or state.clustered):
            key["step"] = step.to_dict()
        else:
            step = None

        def make(folder: Path) -> Any:
            self.say(f"converting to {mode}{f' by {way}' if way else ''}")
            return self._converted(folder, state, mode, way, step)

        short = "qat" if way.startswith("quantization") else way
        name = "-".join(part for part in ("convert", mode, short) if part)
        record, folder = self._step(name, key, make)
        file = _as(FileRecord, record["file"])
        broken = self.budget.broken(record["chosen"]) or self.final_budget.broken(file.figures)
        broken = broken or self._limit(file)
        return dataclasses.replace(
            file,
            path=str((folder / f"model_{mode}.tflite").relative_to(self.directory.path)),
            outcome="rejected" if broken else "accepted",
            reason=broken,
            drops=self.final_budget.drops(file.figures),
        ), folder

    def _converted(
        self, folder: Path, state: State, mode: str, way: str, step: Step | None
    ) -> Mapping[str, Any]:
        started = time.perf_counter()
        seed = seed_of(self.recipe.seed, f"convert-{mode}")
        with reproducible(seed):
            model = self.load(state.path)
            if step is not None:
                model = quantized_by_calibration(step, model, self.data, state.kept, seed)
            needed = mode in ("int8", "int16x8")
            calibration = self.data.calibration if needed else None
            content, report = convert(model, mode=mode, calibration=calibration)
        write_whole(folder / f"model_{mode}.tflite", content)
        figures, verification, chosen = self._figures(model, content)
        seconds = time.perf_counter() - started
        file = _file_record(report, verification, figures, content, mode, way, seconds)
        return {"file": file, "chosen": chosen}

    def _limit(self, file: FileRecord) -> str:
        for name, most in self.recipe.limits.given().items():
            value = {"size_bytes": file.size_bytes, "gzip_bytes": file.gzip_bytes}.get(name)
            if value is not None and value > most:
                return f"{name} {value:,} is above the limit of {most:,.0f}"
        return ""


def versions() -> dict[str, str]:
    """Version of each package that a result depends on."""
    found = {"tfedge": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _parameters(model: Any) -> int:
    return int(sum(np.prod(weight.shape) for weight in model.weights))


def _file_record(
    report: Any,
    verification: Any,
    figures: Mapping[str, float],
    content: bytes,
    mode: str,
    way: str,
    seconds: float,
) -> FileRecord:
    return FileRecord(
        path="",
        mode=mode,
        way=way,
        outcome="accepted",
        figures=dict(figures),
        size_bytes=report.size_bytes,
        gzip_bytes=report.gzip_bytes,
        sparsity=report.inspection.sparsity,
        macs=report.inspection.macs,
        operators=len(report.inspection.operators),
        float_operators=tuple(
            {"index": row.index, "name": row.name, "layer": row.layer, "reason": row.reason}
            for row in report.float_operators
        ),
        agreement=verification.agreement,
        sqnr_db=verification.sqnr_db,
        verdict=verification.verdict,
        sha256=hashlib.sha256(content).hexdigest(),
        seconds=seconds,
    )


def _as(cls: Any, values: Mapping[str, Any]) -> Any:
    """A record from what JSON gave back."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls).validate_python(dict(values))


def _step_record(values: Mapping[str, Any]) -> StepRecord:
    record: StepRecord = _as(StepRecord, values)
    return record
