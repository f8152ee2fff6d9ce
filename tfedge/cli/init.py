"""`tfedge init`: look at a model and its data, and write a recipe that runs."""

import os
import shlex
from pathlib import Path
from typing import Any

import click

from tfedge.cli._guard import guarded
from tfedge.cli._show import common_options, print_json, print_table, print_text, progress_bar
from tfedge.errors import ModelError, SettingsError

SUFFIXES = (".yaml", ".yml")


@click.command()
@click.argument("model")
@click.option(
    "--data",
    metavar="DATA",
    help="Samples and labels: an .npz (x, y; or x_train, y_train, x_test, y_test), a folder of "
    "images, a data set's name or module:function.",
)
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    metavar="TARGET",
    help="What the file is to run on: cpu, pi, edgetpu, ethosu or gpu.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("recipe.yaml"),
    show_default=True,
    help="The recipe to write.",
)
@click.option(
    "--metric",
    "metrics",
    metavar="M",
    multiple=True,
    help="Figure of merit; OUTPUT=M for each of several outputs.  [default: by labels and outputs]",
)
@click.option(
    "--max-drop",
    metavar="X",
    help='What may be lost of it: points of a percent or its own unit, or "2 %".  '
    "[default: 1 point for classes, 5 % for values]",
)
@click.option("--import", "imports", metavar="MODULE", multiple=True, help="Import it first.")
@click.option("--unsafe", is_flag=True, help="Load model files that carry code, and run it.")
@click.option("--force", is_flag=True, help="Replace a recipe that is already there.")
@guarded("model", "data")
@common_options
def init(
    model: str,
    data: str | None,
    target: str,
    output: Path,
    metrics: tuple[str, ...],
    max_drop: str | None,
    imports: tuple[str, ...],
    unsafe: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Look at MODEL (.keras, .h5 or module:function) and write a commented recipe that runs."""
    _check_output(output, force)
    from tfedge.data import load_dataset
    from tfedge.files import write_whole
    from tfedge.recipe.proposing import check_target, propose, to_commented_yaml

    check_target(target)
    folder = output.parent
    with progress_bar(quiet=as_json) as advance:
        advance(f"loading {model}", 0.05)
        loaded = load(model, imports, unsafe)
        advance("loading the data", 0.3)
        samples = None if data is None else load_dataset(data, model=loaded)
        advance("looking at both", 0.5)
        proposal = propose(
            loaded,
            named_from(folder, model),
            None if data is None else named_from(folder, data),
            samples,
            name=Path(model).stem.replace(":", "_"),
            target=target,
            metric=_metric(metrics),
            max_drop=None if max_drop is None else _number(max_drop),
            imports=imports,
            unsafe=unsafe,
        )
    command = f"tfedge optimize {shlex.quote(str(output))}"
    write_whole(output, to_commented_yaml(proposal, command))
    if as_json:
        print_json({"path": str(output), "command": command, **proposal.to_dict()})
    else:
        _show(proposal, output, command)


def load(model: str, imports: tuple[str, ...] = (), unsafe: bool = False) -> Any:
    """The model in a file, or that `module:function` returns.

    Raises:
        ModelError: There is none, or it cannot be loaded.
        SettingsError: There is no such function.
    """
    from tfedge.data import find_function
    from tfedge.data.functions import is_reference
    from tfedge.files import working_directory_importable
    from tfedge.models import keras_of, load_model

    if not is_reference(model) or Path(model).exists():
        return load_model(model, unsafe=unsafe, imports=imports)
    function = find_function(model)
    with working_directory_importable():
        try:
            made = function()
        except Exception as error:  # the user's function can raise anything
            raise ModelError(
                f"`{model}` failed: {type(error).__name__}: {error}. It is called without "
                "arguments, and returns a Keras model."
            ) from error
    keras_of(made)
    return made


def named_from(folder: Path, name: str) -> str:
    """What a recipe in `folder` says of a file: its path from there, which holds anywhere.

    Names of data sets and `module:function` stay as they are, and so do absolute paths.

    Args:
        folder: Where the recipe stands.
        name: A path that holds from the working directory, or another name.
    """
    from tfedge.data.named import NAMED

    path = Path(name)
    if name in NAMED or path.is_absolute() or not path.exists():
        return name
    relative = os.path.relpath(path.absolute(), folder.absolute())
    if (folder / relative).exists() and (folder / relative).samefile(path):
        return relative
    return str(path.absolute())  # a link on the way leads elsewhere


def _check_output(output: Path, force: bool) -> None:
    from tfedge.files import check_writable

    if output.suffix not in SUFFIXES:
        raise SettingsError(
            f"`--output` is the name of a YAML file. Received: {str(output)!r}. Write "
            f"{str(output.with_suffix('.yaml'))!r}."
        )
    if output.exists() and not force:
        raise SettingsError(
            f"A recipe that is there is kept. Received: `{output}`, which exists. Name another "
            "one by `--output`, or replace it by `--force`."
        )
    check_writable(output)


def _metric(given: tuple[str, ...]) -> str | dict[str, str] | None:
    """One metric, or metrics by output name."""
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    by_output = {}
    for text in given:
        output, equals, metric = text.partition("=")
        if not (output and equals and metric) or output in by_output:
            raise SettingsError(
                "`--metric` is given once, or once for each output as `--metric OUTPUT=METRIC`. "
                f"Received: {', '.join(given)}."
            )
        by_output[output] = metric
    return by_output or None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _show(proposal: Any, output: Path, command: str) -> None:
    print_table("Found", ("", ""), proposal.facts, words=2)
    values = proposal.values
    chosen = [("metric", values["metric"]), ("max_drop", values.get("max_drop", "no limit"))]
    chosen += [(key, values[key]) for key in ("stages", "convert", "targets")]
    rows = [(key, _words(value), " ".join(proposal.comments.get(key, ()))) for key, value in chosen]
    print_table("Recipe", ("", "", "why"), rows, words=3)
    for note in proposal.notes:
        print_text(f"Note: {note}")
    print_text(f"Written to {output}.")
    if not proposal.complete:
        print_text(
            "It does not run yet: name your data at the key `data`, or run this again with "
            f"`--data DATA`. {' '.join(proposal.comments.get('data', ()))}"
        )
    print_text(f"\nNext:\n  {command} --dry-run\n  {command}")


def _words(value: Any) -> str:
    """A value of a recipe in a cell of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_words, value)) or "none"
    return str(value)
