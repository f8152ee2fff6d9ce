"""`tfedge compile`: a `.tflite` file for an accelerator, or what every target makes of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from tfedge.cli._guard import guarded
from tfedge.cli._show import common_options, print_json, print_table, print_text, progress_bar
from tfedge.errors import CompilationError, SettingsError
from tfedge.report import format_bytes

MOST_LAYERS: Final = 20  # rows of a table; JSON has all
MOST_LETTERS: Final = 60  # of a reason in a table; all of it follows below
FLAGS: Final = {"timeout_s": "--timeout"}


@click.command("compile")
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--target", metavar="TARGET", help="edgetpu, ethos-u55-128, …; a wrong one lists them."
)
@click.option("--all-targets", "every", is_flag=True, help="Try every target; writes no file.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write.  [default: MODEL_TARGET.tflite beside the model]",
)
@click.option("--preflight", is_flag=True, help="edgetpu: say what would run there; no compiler.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), help="Seconds to compile.")
@click.option("--system-config", metavar="NAME", help="Ethos-U: clock and memories, for Vela.")
@click.option("--memory-mode", metavar="NAME", help="Ethos-U: which memory holds what, for Vela.")
@click.option(
    "--vela-config", type=click.Path(path_type=Path), help="Ethos-U: an .ini file of your own."
)
@click.option("--min-runtime-version", type=int, help="edgetpu: oldest runtime that has to run it.")
@click.option("--segments", type=click.IntRange(1), help="edgetpu: pieces, for a pipeline.")
@click.option(
    "--together-with",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="edgetpu: another model that shares the memory; may be repeated.",
)
@click.option("--compiler", metavar="PATH", help="edgetpu: where edgetpu_compiler is.")
@click.option("--container", metavar="IMAGE", help="edgetpu: an image that holds it.")
@guarded("model")
@common_options
def compile_command(
    model: Path,
    target: str | None,
    every: bool,
    output: Path | None,
    preflight: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compile the .tflite file MODEL for an accelerator.

    Says which operators run there, why others do not, and what the compiler estimates.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    _check_usage(target, every, output, preflight, given)
    if every:
        _try_all(model, as_json)
    elif preflight:
        _show_preflight(model, as_json)
    else:
        _compile(model, str(target), output, given, as_json)


def _check_usage(
    target: str | None, every: bool, output: Path | None, preflight: bool, given: Mapping[str, Any]
) -> None:
    from tfedge.accelerators import TARGETS, check_options

    words = [*map(_flag, given), *(["--output"] if output else [])]
    if every:
        words += ["--target"] * (target is not None) + ["--preflight"] * preflight
        if words:
            raise SettingsError(
                "`--all-targets` tries every target with its defaults and writes no file: it goes "
                f"with --json only. Received: {', '.join(words)}."
            )
        return
    if target is None:
        raise SettingsError(
            f"Give `--target`, one of {list(TARGETS)}, or `--all-targets`. Received: neither."
        )
    check_options(target, given, _flag)
    if preflight and (target != "edgetpu" or words):
        received = [f"--target {target}"] * (target != "edgetpu") + words
        raise SettingsError(
            "`--preflight` belongs to `--target edgetpu` alone and writes no file; for Ethos-U, "
            f"Vela itself runs here. Received: {', '.join(received)}."
        )


def _flag(name: str) -> str:
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def _compile(
    model: Path, target: str, output: Path | None, given: Mapping[str, Any], as_json: bool
) -> None:
    from tfedge.accelerators import compile_model

    try:
        with progress_bar(quiet=as_json) as advance:
            advance(f"compiling for {target}", 0.1)
            result = compile_model(model, target=target, out=output, **given)
    except CompilationError:
        if target == "edgetpu":
            _show_preflight(model, as_json)
        raise
    if as_json:
        print_json(result)
    else:
        show_compilation(model, result)


def _show_preflight(model: Path, as_json: bool) -> None:
    from tfedge.accelerators.edgetpu.preflight import preflight

    report = preflight(model)
    if as_json:
        print_json(report.to_dict())
        return
    words = {True: "yes", False: "no", None: "not known"}
    rows = [
        (row.index, row.name, row.layer or None, words[row.mapped], row.reason)
        for row in report.operators
    ]
    columns = ("#", "operator", "layer", "on the Edge TPU", "why not")
    print_table(f"Pre-flight of {model} for edgetpu: predicted", columns, rows, words=5)
    print_text(str(report))


def _try_all(model: Path, as_json: bool) -> None:
    from tfedge.accelerators.all_targets import all_targets

    with progress_bar(quiet=as_json) as advance:
        report = all_targets(model, progress=advance)
    if as_json:
        print_json(report)
    else:
        show_all_targets(report)


def show_all_targets(report: Any) -> None:
    """Print an `AllTargets`: a table, and below it what does not fit into one."""
    says = {"runs": "runs as it is", "compiles": "yes", "predicted": "not tried", "fails": "no"}
    rows = [
        (
            row.target,
            says[row.outcome],
            _mapped(row),
            None if row.size_bytes is None else format_bytes(row.size_bytes),
            f"{row.latency_ms:.3f} ms {row.latency_kind}" if row.latency_ms is not None else None,
            _shortened(row.reason) or None,
        )
        for row in report.rows
    ]
    columns = ("target", "compiles?", "operators mapped", "size", "latency", "why not, or not all")
    print_table(f"{report.path} on every target", columns, rows, words=6)
    for row in report.rows:
        if row.reason != _shortened(row.reason):
            print_text(f"{row.target}: {row.reason}")
    for device in dict.fromkeys(row.device for row in report.rows if row.device):
        names = [row.target for row in report.rows if row.device == device]
        print_text(f"Latency on {', '.join(names)}: {device}.")
    for note in report.notes:
        print_text(note)


def _shortened(reason: str) -> str:
    return reason if len(reason) <= MOST_LETTERS else f"{reason[: MOST_LETTERS - 1].rstrip()}…"


def _mapped(row: Any) -> str | None:
    if row.mapped is None:
        return None
    return f"{row.mapped}/{row.operators}" + " predicted" * (row.outcome == "predicted")


def show_compilation(model: Path, result: Any) -> None:
    """Print a `Compilation`."""
    rows = [
        ("compiler", result.compiler),
        ("operators it takes", f"{result.mapped} of {len(result.operators)}"),
        ("file", result.path),
        ("size", format_bytes(result.size_bytes)),
        *((name.replace("_", " "), value) for name, value in result.settings.items()),
        *(_figure(name, value) for name, value in result.figures.items()),
        *(_figure(name, value, "estimated ") for name, value in result.estimates.items()),
    ]
    print_table(f"{model} for {result.target}", ("", ""), rows, words=2)
    left = [
        (row.index, row.name, row.layer or None, row.reason)
        for row in result.operators
        if row.mapped is not True
    ]
    if left:
        columns = ("#", "operator", "layer", "why")
        print_table(f"Not on {result.target}", columns, left, words=4)
    _show_layers(result)
    for note in result.notes:
        print_text(note)


def _figure(name: str, value: float, prefix: str = "") -> tuple[str, str]:
    if name.endswith("_bytes"):
        return prefix + name.removesuffix("_bytes").replace("_", " "), format_bytes(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
    return prefix + name.replace("_", " "), text


def _show_layers(result: Any) -> None:
    slowest = sorted(result.layers, key=lambda row: -row.cycles)[:MOST_LAYERS]
    kept = [row for row in result.layers if row in slowest]
    rows = [
        (
            row.index,
            row.operator,
            row.layer or None,
            f"{row.cycles:,}",
            f"{row.cycles_fraction:.1%}",
            f"{row.macs:,}",
            None if row.utilization is None else f"{row.utilization:.1%}",
        )
        for row in kept
    ]
    if rows:
        columns = ("#", "operator", "layer", "cycles", "of all", "MACs", "of peak")
        more = len(result.layers) - len(rows)
        title = "Estimates by operator" + (f", {more} cheaper ones left out" if more else "")
        print_table(title, columns, rows, words=3)
