"""`tfedge report`: write the page of a run again, and say where it is."""

import json
from pathlib import Path
from typing import Any

import click

from tfedge.cli._show import common_options, print_json, print_text
from tfedge.errors import SettingsError

LARGEST_BYTES = 200_000_000


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page to write.  [default: report.html in RUN]",
)
@common_options
def report(run: Path, output: Path | None, as_json: bool) -> None:
    """Write report.html from the report.json of RUN, a run directory, and print what it says."""
    from tfedge.files import write_whole
    from tfedge.page import render

    source = run / "report.json" if run.is_dir() else run
    values = read_report(source)
    target = output or source.with_name("report.html")
    write_whole(target, render(values))
    if as_json:
        print_json(values)
        return
    for sentence in (*values.get("verdicts", ()), *values.get("latency_verdicts", ())):
        print_text(str(sentence))
    print_text(f"\nOpen {target.resolve().as_uri()}")


def read_report(path: Path) -> dict[str, Any]:
    """The values of a `report.json`.

    Raises:
        SettingsError: There is none, or it is something else.
    """
    if not path.is_file():
        raise SettingsError(
            f"A run directory holds `report.json` when its run has ended. There is no `{path}`. "
            "Run `tfedge optimize RECIPE --output` that folder."
        )
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError("too large")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"`{path}` is not the report of a run ({error}).") from None
    if not isinstance(values, dict) or not {"steps", "files", "verdicts"} <= set(values):
        raise SettingsError(
            f"`{path}` is not the report of a run: it holds no steps, files and verdicts. Give the "
            "directory that `tfedge optimize` wrote."
        )
    return values
