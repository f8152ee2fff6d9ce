"""`tfedge analyze`: where parameters, time and memory of a Keras model go, and what would help."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tfedge.cli._guard import guarded, read_first
from tfedge.cli._show import common_options, print_json, print_table, print_text, progress_bar
from tfedge.cli.init import load, named_from
from tfedge.errors import SettingsError
from tfedge.report import format_bytes

ROWS = 20
SUFFIXES = {"chart": (".svg",), "recipe": (".yaml", ".yml"), "apply": (".keras", ".h5")}
PATH = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.option(
    "--data",
    metavar="DATA",
    help="Samples (as for `tfedge init`), to find channels that are always the same.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--no-measure", is_flag=True, help="Count only; convert and time nothing.")
@click.option("--all", "all_layers", is_flag=True, help=f"List all layers, not the first {ROWS}.")
@click.option("--chart", type=PATH, metavar="FILE.svg", help="Draw the layers' shares as bars.")
@click.option("--recipe", type=PATH, metavar="FILE.yaml", help="Write a recipe of what would help.")
@click.option(
    "--apply",
    "output",
    type=PATH,
    metavar="OUTPUT",
    help="Apply what needs no data and leaves outputs equal, and save the model (.keras, .h5).",
)
@click.option("--import", "imports", metavar="MODULE", multiple=True, help="Import it first.")
@click.option("--unsafe", is_flag=True, help="Load model files that carry code, and run it.")
@guarded("model", "data")
@common_options
def analyze(
    model: str,
    data: str | None,
    threads: int,
    no_measure: bool,
    all_layers: bool,
    chart: Path | None,
    recipe: Path | None,
    output: Path | None,
    imports: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
) -> None:
    """Show where the costs of MODEL (.keras, .h5 or module:function) lie, bottlenecks first."""
    files = {"chart": chart, "recipe": recipe, "apply": output}
    _check_files(files, model)
    from tfedge.analyze import analyze as look
    from tfedge.data import load_dataset

    applied = None
    with progress_bar(quiet=as_json) as advance:
        advance(f"loading {model}", 0.05)
        read_first(Path(model))
        loaded = load(model, imports, unsafe)
        samples = None if data is None else load_dataset(data, model=loaded)
        analysis = look(
            loaded,
            samples,
            measure=not no_measure,
            threads=threads,
            progress=lambda sentence: advance(sentence.lower(), 0.3),
        )
        if chart is not None:
            advance("drawing", 0.8)
            _draw(analysis, chart)
        if recipe is not None:
            advance("writing the recipe", 0.85)
            _write_recipe(recipe, analysis, loaded, model, data, samples, imports, unsafe)
        if output is not None:
            advance("rewriting", 0.9)
            applied = _apply(loaded, output)
    if as_json:
        written = {name: str(path) for name, path in files.items() if path is not None}
        print_json({**analysis.to_dict(), "files": written, "applied": applied})
        return
    _show(analysis, all_layers)
    for name, path in files.items():
        if path is not None:
            _tell(name, path, applied)


def _check_files(files: dict[str, Path | None], model: str) -> None:
    """Find out before long work whether the files can be written."""
    from tfedge.files import check_writable

    for name, path in files.items():
        if path is None:
            continue
        if path.suffix not in SUFFIXES[name]:
            raise SettingsError(
                f"`--{name}` is the name of a {' or '.join(SUFFIXES[name])} file. Received: "
                f"{str(path)!r}. Write {str(path.with_suffix(SUFFIXES[name][0]))!r}."
            )
        if path.exists() and Path(model).exists() and path.samefile(model):
            raise SettingsError(
                f"`--{name}` is another file than the model. Received: {str(path)!r} for both. "
                "Choose another name."
            )
        check_writable(path)


def _draw(analysis: Any, path: Path) -> None:
    from tfedge.analyze import draw
    from tfedge.files import write_whole

    write_whole(path, draw(analysis))


def _write_recipe(
    path: Path,
    analysis: Any,
    loaded: Any,
    model: str,
    data: str | None,
    samples: Any,
    imports: Sequence[str],
    unsafe: bool,
) -> None:
    """The recipe of `tfedge init`, with the steps that the analysis adds before its own."""
    from tfedge.files import write_whole
    from tfedge.recipe import as_recipe
    from tfedge.recipe.commenting import commented
    from tfedge.recipe.proposing import propose
    from tfedge.recipe.steps import STAGES

    proposal = propose(
        loaded,
        named_from(path.parent, model),
        None if data is None else named_from(path.parent, data),
        samples,
        name=Path(model).stem.replace(":", "_"),
        imports=imports,
        unsafe=unsafe,
    )
    own = [step for step in analysis.steps(STAGES) if _stage(step) not in ("prune", "quantize")]
    values = {**proposal.values, "stages": [*own, *proposal.values["stages"]]}
    as_recipe(values, where="The suggested recipe")
    head = [f"Run it: tfedge optimize {shlex.quote(str(path))}"]
    if not proposal.complete:
        head.insert(0, "First name your data at `data:`.")
    write_whole(path, commented(values, proposal.comments, head))


def _stage(step: Any) -> str:
    return step if isinstance(step, str) else str(next(iter(step)))


def _apply(loaded: Any, output: Path) -> Any:
    """Rewrite by the exact patterns, save the model, and return the stage's report."""
    from tfedge.models import save_model, to_keras3
    from tfedge.stages.rewrite import Rewrite

    rewritten, report = Rewrite().apply(to_keras3(loaded))
    save_model(rewritten, output)
    return report


def _show(analysis: Any, all_layers: bool) -> None:
    measured = analysis.latency_ms is not None
    rows = [
        ("parameters", f"{analysis.parameters:,}"),
        ("multiply-accumulates", f"{analysis.macs:,}"),
        ("activations at most", format_bytes(analysis.peak_bytes)),
    ]
    if measured:
        threads = f"{analysis.threads} thread{'s' if analysis.threads > 1 else ''}"
        rows.append((f"float32 file, {threads}", f"{analysis.latency_ms:.3f} ms"))
    print_table(analysis.model, ("", ""), rows, words=2)
    shown = analysis.layers if all_layers else analysis.layers[:ROWS]
    left = len(analysis.layers) - len(shown)
    columns = ("layer", "kind", "parameters", "MACs", "output", "ms", "share")
    title = "Layers, bottlenecks first" + (f" ({left} more: --all)" if left else "")
    print_table(title, columns, [_row(row) for row in shown], words=2)
    suggestions = [
        (row.layer or "the model", row.stage, f"{row.why}{' (exact)' if row.exact else ''}")
        for row in analysis.suggestions
    ]
    if suggestions:
        print_table("What would help", ("layer", "stage", "why"), suggestions, words=3)
    for note in analysis.notes:
        print_text(f"Note: {note}")


def _row(row: Any) -> tuple[object, ...]:
    time = None if row.latency_ms is None else f"{row.latency_ms:.4f}"
    return (
        row.layer,
        row.kind,
        f"{row.parameters:,}",
        f"{row.macs:,}",
        format_bytes(row.output_bytes),
        f"in {row.fused_into}" if row.fused_into else time,
        f"{row.share:.1%}",
    )


def _tell(name: str, path: Path, applied: Any) -> None:
    if name == "chart":
        print_text(f"Drawn to {path}.")
    elif name == "recipe":
        print_text(f"Recipe written to {path}. Next:\n  tfedge optimize {shlex.quote(str(path))}")
    else:
        rows = [
            (layer, ", ".join(patterns))
            for layer, patterns in applied.metrics["changed_by"].items()
        ]
        if rows:
            print_table("Changed, outputs equal", ("layer", "by"), rows, words=2)
        for note in applied.notes:
            print_text(f"Note: {note}")
        figures = applied.metrics
        print_text(
            f"Saved to {path}: {figures['parameters_before']:,} parameters before, "
            f"{figures['parameters_after']:,} after."
            + ("" if rows else " There was nothing to change.")
        )
