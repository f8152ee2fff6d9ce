"""After a run: the pre-flight of its int8 file, the compiled file and its latency, or why not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfedge.errors import DelegateError, TfedgeError
from tfedge.recipe.targets import ACCELERATORS, MODE


def accelerate(targets: Sequence[str], folder: Path) -> tuple[Mapping[str, Any], ...]:
    """What the accelerators make of the int8 file of a run.

    Args:
        targets: Of the recipe.
        folder: The run directory, with `model_int8.tflite` in it; `model_int8_edgetpu.tflite` is
            written beside it where a compiler is.

    Returns:
        Rows `{"target", "path", "preflight", "compiled", "compilation", "why_not"}`: the pre-flight
        of the file, the compiled file and what the compiler said, or why there is none.
    """
    path = folder / f"model_{MODE}.tflite"
    wanted = [target for target in targets if target in ACCELERATORS]
    return tuple(_on_edgetpu(path, target) for target in wanted if path.is_file())


def _on_edgetpu(path: Path, target: str) -> Mapping[str, Any]:
    from tfedge.accelerators.edgetpu.compiler import compile_edgetpu
    from tfedge.accelerators.edgetpu.preflight import preflight

    row: dict[str, Any] = {
        "target": target,
        "path": path.name,
        "preflight": {**preflight(path).to_dict(), "path": path.name},
        "compiled": None,
        "compilation": None,
        "why_not": "",
    }
    try:
        made = compile_edgetpu(path)
    except TfedgeError as error:  # the run is done: its files stay what they are
        return {**row, "why_not": str(error)}
    name = Path(made.path or "").name
    return {**row, "compiled": name, "compilation": {**made.to_dict(), "path": name}}


def latency_there(
    rows: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """Latency of the compiled files on the accelerators that are here, and why others have none.

    Args:
        rows: As `accelerate` returns them.
        folder: The run directory.

    Returns:
        Rows of `benchmark`, and sentences.
    """
    from tfedge.benchmark import benchmark

    found: list[Mapping[str, Any]] = []
    said: list[str] = []
    for row in rows:
        try:
            _check_there(row)
            models = {row["compiled"]: folder / row["compiled"]}
            report = benchmark(models, delegates=(row["target"],), seconds=2.0)
        except TfedgeError as error:
            said.append(f"Latency on {row['target']} was not measured: {error}")
        else:
            found += [one.to_dict() for one in report.rows]
            target = row["target"]
            said += [f"Latency on {target} was not measured: {x.reason}" for x in report.failures]
            said += [*report.verdicts, *report.notes]
    return tuple(found), tuple(said)


def _check_there(row: Mapping[str, Any]) -> None:
    """Find out whether a compiled file can run here.

    Raises:
        DelegateError: It cannot; why is said in short, `tfedge doctor edgetpu` says more.
    """
    from tfedge.runtime.edgetpu import find_edgetpu

    reasons = [problem.partition(". ")[0].rstrip(".") for problem in find_edgetpu().problems]
    if row["compiled"] is None:
        reasons.insert(0, "There is no compiled file")
    if reasons:
        raise DelegateError(f"{'. '.join(reasons)}. `tfedge doctor edgetpu` says more.")


def sentences(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the accelerators make of the files, for the reader of a report.

    Args:
        rows: As `accelerate` returns them.
    """
    said = []
    for row in rows:
        foreseen, made = row["preflight"], row["compilation"]
        total = len(foreseen["operators"])
        if made is None:
            unknown = f", {foreseen['unknown']} are not known" if foreseen["unknown"] else ""
            said.append(
                f"{row['path']} on {row['target']}: {foreseen['mapped']} of {total} operators are "
                f"predicted to run there{unknown}. It is not compiled: {_short(row['why_not'])}"
            )
        else:
            mapped = sum(operator["mapped"] is True for operator in made["operators"])
            said.append(
                f"{row['compiled']}: {mapped} of {total} operators run on {row['target']}, as "
                f"{made['compiler']} says; {foreseen['mapped']} were predicted."
            )
        said += [*foreseen["refusals"], *filter(None, [foreseen["cut"]]), *foreseen["changes"]]
    return tuple(said)


def _short(why: str) -> str:
    """An error of the compiler without how to get one, which `tfedge doctor` says."""
    from tfedge.accelerators.edgetpu.command import without_how_to_get_it

    short = without_how_to_get_it(why)
    return short if short == why else f"{short} `tfedge doctor edgetpu` says how to get it."
