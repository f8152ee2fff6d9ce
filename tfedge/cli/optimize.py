"""`tfedge optimize`: run a recipe, or say beforehand what it would do."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tfedge.cli._guard import guarded, read_first
from tfedge.cli._show import common_options, print_json, print_table, print_text, progress_bar
from tfedge.errors import SettingsError
from tfedge.report import format_bytes


@click.command()
@click.argument("recipe")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Run directory.  [default: runs/NAME]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--model", help="The model, where RECIPE is a name such as prune80_w8a8.")
@click.option("--data", help="The data, where RECIPE is a name.")
@click.option("--max-drop", help="Instead of the recipe's `max_drop`.")
@click.option("--anonymous", is_flag=True, help="Leave the name of this machine out of the report.")
@guarded("recipe", when="dry_run")
@common_options
def optimize(
    recipe: str,
    output: Path | None,
    dry_run: bool,
    model: str | None,
    data: str | None,
    max_drop: str | None,
    anonymous: bool,
    as_json: bool,
) -> None:
    """Run RECIPE, a YAML file (see `tfedge init`) or a name such as prune80_w8a8.

    An interrupted run goes on where it stopped when the command is given again. Exit code 1 when no
    file fits the budget; the best one within it is kept.
    """
    chosen = _recipe(recipe, model, data, max_drop)
    path = output or Path("runs") / (chosen.name or Path(chosen.model).stem or "run")
    if dry_run:
        _plan(chosen, as_json)
        return
    from tfedge.recipe import run

    started = time.perf_counter()
    with progress_bar(quiet=as_json) as advance:
        report = run(chosen, path, anonymous=anonymous, progress=advance)
    if as_json:
        print_json(report)
    else:
        _show(report, path, time.perf_counter() - started)
    if not report.fits:
        click.get_current_context().exit(1)


def _recipe(recipe: str, model: str | None, data: str | None, max_drop: str | None) -> Any:
    from tfedge.recipe import as_recipe, load_recipe

    path = Path(recipe)
    changes: dict[str, Any] = {} if max_drop is None else {"max_drop": _number(max_drop)}
    if path.suffix in (".yaml", ".yml") or path.exists():
        given = {"--model": model, "--data": data}
        extra = next((name for name, value in given.items() if value is not None), None)
        if extra is not None:
            raise SettingsError(
                f"`{extra}` goes with the name of a recipe; the file `{recipe}` says its own. "
                "Leave it out, or edit the file."
            )
        loaded = load_recipe(path)
        return loaded if not changes else as_recipe({**loaded.to_dict(), **changes})
    if model is None or data is None:
        raise SettingsError(
            f"There is no recipe file `{recipe}`. Write one with `tfedge init MODEL --data DATA`, "
            "or give the name of a recipe together with `--model` and `--data`."
        )
    name = f"{Path(model).stem}-{recipe}".replace(":", ".")
    return as_recipe({"model": model, "data": data, "stages": recipe, "name": name, **changes})


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _plan(recipe: Any, as_json: bool) -> None:
    from tfedge.recipe.planning import plan

    read_first(Path(recipe.model))
    with progress_bar(quiet=as_json) as advance:
        planned = plan(recipe, progress=advance)
    if as_json:
        print_json(planned)
        return
    rows = [
        (
            row.step,
            row.what,
            row.changes,
            row.skips,
            row.training_steps,
            f"{row.seconds:.0f}",
            format_bytes(row.disk_bytes),
        )
        for row in planned.rows
    ]
    columns = ("step", "what", "layers", "skipped", "training steps", "seconds", "disk")
    print_table(f"{planned.name}: what would be done", columns, rows, words=2)
    for row in planned.rows:
        for reason, layers in row.reasons.items():
            print_text(f"  {row.step} skips {', '.join(layers)}: {reason}")
    for note in planned.notes:
        print_text(f"Note: {note}")
    print_text(
        f"About {_duration(planned.seconds)} and {format_bytes(planned.disk_bytes)} at most. "
        "Nothing was written."
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _show(report: Any, path: Path, seconds: float) -> None:
    show_run(report, f"{report.name} ({seconds:.0f} s)")
    best = path / (report.best or "report.json")
    print_text(
        f"\nWritten to {path}: report.html, report.json, recipe.yaml, model_*.tflite"
        f"\n\nNext:\n  tfedge report {path}\n  tfedge inspect {best}\n  tfedge benchmark {best}"
    )


def show_run(report: Any, title: str) -> None:
    """Print the trials and the files of a run, and what they say.

    Args:
        report: A `RunReport`.
        title: What stands above the trials.
    """
    names = [row["name"] for row in report.metrics]
    percent = {row["name"]: row["unit"] == "points" for row in report.metrics}

    def values(row: Any) -> list[str | None]:
        numbers = [(name, row.figures.get(name)) for name in names]
        return [
            None if value is None else f"{value:.2%}" if percent[name] else f"{value:.4g}"
            for name, value in numbers
        ]

    trials = [
        (
            row.title,
            row.outcome,
            *values(row),
            None if row.gzip_bytes is None else format_bytes(row.gzip_bytes),
            None if row.sparsity is None else f"{row.sparsity:.1%}",
        )
        for row in report.steps
    ]
    print_table(title, ("step", "", *names, "gzip -9", "zeros"), trials, words=2)
    latency = {row["model"]: f"{row['p50_ms']:.3f}" for row in reversed(report.latency)}
    files = [
        (
            row.path,
            row.outcome,
            *values(row),
            format_bytes(row.size_bytes),
            format_bytes(row.gzip_bytes),
            len(row.float_operators) if row.mode in ("int8", "int16x8") else None,
            latency.get(row.path),
        )
        for row in report.files
    ]
    columns = ("file", "", *names, "size", "gzip -9", "float operators", "p50 ms")
    print_table("Files", columns, files, words=2)
    for sentence in (*report.verdicts, *_gain(report), *report.latency_verdicts):
        print_text(sentence)
    for note in report.notes:
        print_text(f"Note: {note}")


def _gain(report: Any) -> Iterator[str]:
    """How much smaller the best file is than the model as it came."""
    first = report.files[0]
    best = next((file for file in report.files[1:] if file.path == report.best), None)
    if best is None:
        return
    yield (
        f"{best.path} takes {format_bytes(best.gzip_bytes)} after gzip, "
        f"{first.gzip_bytes / best.gzip_bytes:.1f}× less than the model as it came "
        f"({format_bytes(best.size_bytes)} unpacked, {first.size_bytes / best.size_bytes:.1f}×)."
    )
