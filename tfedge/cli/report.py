"""`tfedge report`: write the page of a run again, and say where it is."""

from pathlib import Path

import click

from tfedge.cli._show import common_options, print_json, print_text


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
    from tfedge.recipe.comparing import read_run

    record = read_run(run)
    target = output or (run if run.is_dir() else run.parent) / "report.html"
    write_whole(target, render(record))
    if as_json:
        print_json(record)
        return
    for sentence in (*record.verdicts, *record.latency_verdicts):
        print_text(sentence)
    print_text(f"\nOpen {target.resolve().as_uri()}")
