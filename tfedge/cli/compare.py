"""`tfedge compare`: runs side by side."""

from pathlib import Path
from typing import Any

import click

from tfedge.cli._show import common_options, print_json, print_table, print_text
from tfedge.errors import SettingsError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@common_options
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show two RUNS or more side by side: run directories, or their report.json files."""
    from tfedge.recipe.comparing import compare as compare_runs
    from tfedge.recipe.comparing import read_run

    if len(runs) < 2:
        raise SettingsError(
            f"Two runs or more are compared. Received: `{runs[0]}` alone. Name another one."
        )
    comparison = compare_runs(
        {name: read_run(path) for name, path in zip(names_of(runs), runs, strict=True)}
    )
    if as_json:
        print_json(comparison)
    else:
        _show(comparison)


def names_of(runs: tuple[Path, ...]) -> list[str]:
    """What to call each run: its folder's name, or its whole path where two share that.

    Raises:
        SettingsError: A run is named twice.

    Example:
        >>> names_of((Path("runs/a"), Path("runs/b/report.json")))
        ['a', 'b']
        >>> names_of((Path("old/a"), Path("new/a")))
        ['old/a', 'new/a']
    """
    folders = [path.parent if path.suffix == ".json" else path for path in runs]
    places = [str(path.resolve()) for path in runs]
    if len(set(places)) < len(places):
        twice = next(
            str(run) for run, place in zip(runs, places, strict=True) if places.count(place) > 1
        )
        raise SettingsError(f"Runs are different directories. Received: `{twice}` twice.")
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _show(comparison: Any) -> None:
    for warning in comparison.warnings:
        print_text(f"Not comparable: {warning}")
    if comparison.settings:
        rows = [(row.what, *row.values) for row in comparison.settings]
        columns = ("recipe", *comparison.runs)
        print_table("What was asked", columns, rows, words=len(columns))
    else:
        print_text("The recipes say the same.")
    rows = [(row.what, *row.values) for row in comparison.figures]
    print_table("What came of it", ("", *comparison.runs), rows)
    for sentence in comparison.verdicts:
        print_text(sentence)
    for note in comparison.notes:
        print_text(f"Note: {note}")
