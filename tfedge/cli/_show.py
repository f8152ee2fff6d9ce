"""What every command shares: its options, tables, progress, JSON."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from tfedge.report import plain

Advance = Callable[[str, float], None]
SEED = click.IntRange(0, 2**32 - 1)  # what every random generator takes


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json` and `--traceback`.

    `--json` reaches the command as `as_json`; `--traceback` is kept in the context.
    """
    command = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else."
    )(command)
    return click.option(
        "--traceback",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_keep_traceback,
        help="Show where an error came from.",
    )(command)


def gpu_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--precision` and `--allow-software`."""
    command = click.option(
        "--allow-software", is_flag=True, help="A GPU that is a program on the CPU counts as one."
    )(command)
    return click.option(
        "--precision",
        default="fp32",
        show_default=True,
        metavar="fp32|fp16",
        help="What a GPU computes floats in.",
    )(command)


def _keep_traceback(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.meta["traceback"] = value


def print_json(value: Any) -> None:
    """Print a record, or a dict of records, as JSON."""
    click.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, words: int = 1
) -> None:
    """Print rows under a title.

    Args:
        title: What the table shows.
        columns: Heads of the columns; when all are empty, there is no head.
        rows: Cells, shown as `str` makes them.
        words: How many columns, from the left, hold words: these are left-aligned, the others
            right-aligned.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
    )
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    _console(sys.stdout).print(table)


def short_name(name: str) -> str:
    """A tensor's name without those that were fused into it.

    Example:
        >>> short_name("net/relu/Relu;net/conv/BiasAdd")
        'net/relu/Relu'
    """
    return name.split(";")[0]


def print_text(text: str) -> None:
    """Print a sentence, a path or code as it is."""
    click.echo(text)


def _cell(value: object) -> str:
    from rich.markup import escape

    return "–" if value is None else escape(str(value))


def _console(file: Any) -> Any:
    from rich.console import Console

    width = None if file.isatty() else 120  # a file or a pipe has no width of its own
    return Console(file=file, width=width, highlight=False, soft_wrap=False)


@contextlib.contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Advance]:
    """A function `advance(what, fraction)` that shows how far the work is.

    On a terminal it moves a bar with the time left; elsewhere it writes one line for each new
    `what`. It writes to stderr.

    Args:
        quiet: Show nothing.
    """
    if quiet:
        yield lambda what, fraction: None
    elif sys.stderr.isatty():
        with _terminal_bar() as advance:
            yield advance
    else:
        yield _line_writer()


@contextlib.contextmanager
def _terminal_bar() -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(sys.stderr), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)


def _line_writer() -> Advance:
    started, seen = time.monotonic(), [""]

    def advance(what: str, fraction: float) -> None:
        if what != seen[0]:
            seen[0] = what
            seconds = time.monotonic() - started
            click.echo(f"[{fraction:4.0%} {seconds:5.1f} s] {what}", err=True)

    return advance
