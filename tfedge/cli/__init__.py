"""The command line: `tfedge demo | init | optimize | report | analyze | convert | compile | …`.

Exit codes: 0 done, 1 the work failed, 2 wrong usage. Errors are one line on stderr; `--traceback`
shows where they came from. With `--json`, stdout holds one JSON document and nothing else.
"""

import errno
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from tfedge import __version__
from tfedge.cli._guard import OWN_PROCESS
from tfedge.cli.analyze import analyze
from tfedge.cli.benchmark import benchmark
from tfedge.cli.compare import compare
from tfedge.cli.compile import compile_command
from tfedge.cli.convert import convert
from tfedge.cli.demo import demo
from tfedge.cli.doctor import doctor
from tfedge.cli.init import init
from tfedge.cli.inspect import inspect
from tfedge.cli.optimize import optimize
from tfedge.cli.report import report
from tfedge.cli.verify import verify
from tfedge.errors import MissingExtraError, TfedgeError, TfedgeWarning
from tfedge.files import FULL, is_full


class _Failure(click.ClickException):
    """An error of tfedge, as click shows it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it on the class

    def show(self, file: Any = None) -> None:
        click.echo(f"tfedge: error: {_printable(self.message)}", err=True)


class _Commands(click.Group):
    """A group whose commands fail with one line, unless `--traceback` was given."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _Failure(_usage(error), error.exit_code) from error
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (KeyboardInterrupt, click.Abort) as error:
            raise _Failure("Interrupted. No file was left half-written.", 1) from error
        except TfedgeError as error:
            if ctx.meta.get("traceback"):
                raise
            raise _Failure(str(error), error.exit_code) from error
        except Exception as error:
            if ctx.meta.get("traceback") or _is_broken_pipe(error):
                raise  # click ends quietly when nobody reads what it prints
            raise _Failure(_unexpected(error), 1) from error

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _Failure(_usage(error), error.exit_code) from error


def _usage(error: click.UsageError) -> str:
    """What was wrong with the words of a command, in one line."""
    message = " ".join(error.format_message().split())
    path = error.ctx.command_path if error.ctx is not None else "tfedge"
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See `{path} --help`."


def _printable(text: str) -> str:
    """One line that a terminal only shows, whatever a file put into its names.

    Example:
        >>> print(_printable("layer 'a\\x1b[2J' of\\n`b`"))
        layer 'a\\x1b[2J' of `b`
    """
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _is_broken_pipe(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _unexpected(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return str(
            MissingExtraError(
                f"The package `{error.name}` is not installed. "
                'Run `pip install "tfedge[train]"`, then `tfedge doctor`.'
            )
        )
    if isinstance(error, OSError) and is_full(error):
        where = f"`{error.filename}`" if error.filename else "the output or a temporary file"
        return f"Could not write {where}: {FULL}, or set TMPDIR to another place."
    first = (str(error).strip() or "no message").splitlines()[0][:300]
    return f"{type(error).__name__}: {first} (see where with --traceback)"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tfedge")
def cli() -> None:
    """Bring a trained Keras model; leave with a small, verified .tflite file."""


for _command in (
    demo,
    init,
    optimize,
    report,
    compare,
    analyze,
    convert,
    inspect,
    verify,
    benchmark,
    compile_command,
    doctor,
):
    cli.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments after the program's name. Default: those of this process, which is then
            the command line's own: commands that open files of unknown origin work in a child
            process (see `_guard`). With arguments from Python they work in the caller's.

    Returns:
        0 done, 1 the work failed, 2 wrong usage.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    _set_environment()
    own = argv is None and threading.current_thread() is threading.main_thread()
    with tempfile.TemporaryFile() as log, _stoppable():
        restore = None if "--traceback" in arguments else _hush_native_log(log.fileno())
        try:
            cli.main(arguments, prog_name="tfedge", obj=OWN_PROCESS if own else None)
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1
        finally:
            if restore is not None:
                _restore_stderr(*restore)
    return 0


def _open_closed_streams() -> None:
    """Give closed standard streams (`>&-`) the null device, so that no file gets their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if vars(sys)[name] is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that temporary files are removed."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _set_environment() -> None:
    """Keep the chatter of TensorFlow and other libraries out of a user's terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MAX_VLOG_LEVEL", "0")
    for name in ("tensorflow", "absl", "h5py"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", TfedgeWarning)
    warnings.showwarning = _show_warning
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(logging.Formatter("tfedge: %(message)s"))
    logger = logging.getLogger("tfedge")
    if not logger.handlers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _Stderr:
    """Writes to whatever `sys.stderr` is at that moment."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, TfedgeWarning):
        click.echo(f"tfedge: warning: {_printable(str(message))}", err=True)


def _hush_native_log(log: int) -> tuple[TextIO, int]:
    """Send what native code writes to file descriptor 2 into `log`; Python's stderr stays."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(log, 2)
    before = sys.stderr
    sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1)
    return before, kept


def _restore_stderr(before: TextIO, kept: int) -> None:
    sys.stderr.close()
    sys.stderr = before
    os.dup2(kept, 2)
    os.close(kept)
