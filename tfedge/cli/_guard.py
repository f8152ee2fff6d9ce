"""Run a command that opens files of unknown origin in a child process, within limits.

A hostile or damaged file can end the process that opens it (native code of LiteRT, HDF5 and
TensorFlow), fill the memory, or keep a loop running forever. `@guarded("file")` on a command makes
all of that happen to a child::

    tfedge verify a.keras b.tflite          parent: waits, watches, passes signals on
        └── the command itself              child: standard streams and exit code are the command's

The child is a fork made before any model library is loaded, which takes milliseconds. It ends with
its parent. Only the process of the command line is guarded: `tfedge.cli.main([...])` with arguments
from Python, and `tfedge.verify` and its like, do their work in the caller's process.
"""

import contextlib
import ctypes
import functools
import os
import resource
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from tfedge.errors import TfedgeError

OWN_PROCESS: Final = object()  # the context's `obj` when the process is the command line's own

TIME_LIMIT_SECONDS: Final = 3600.0
MEMORY_SHARE: Final = 0.9  # of what is free when the command starts
POLL_SECONDS: Final = 0.1
READING_SECONDS: Final = 8.0
READING_BYTES_PER_SECOND: Final = 10_000_000
GRACE_SECONDS: Final = 5.0  # from Ctrl-C to the end of a child that does not react to it
STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG: Final = 1
_in_child = False
_CGROUP_LIMITS: Final = ("memory.max", "memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the child may use.

    Attributes:
        seconds: Wall time.
        memory_bytes: Resident memory of the child and its own children; `None`: no limit.
    """

    seconds: float = TIME_LIMIT_SECONDS
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the child ended.

    Attributes:
        code: Its exit code, or minus the number of the signal that ended it.
        cause: Why the parent ended it: `"time"`, `"memory"`, `"stop"`; empty if it did not.
    """

    code: int
    cause: str = ""


def guarded(
    *files: str, when: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run a command in a child process, and add `--time-limit` to it.

    Args:
        files: The command's parameters that name files; messages name what they hold.
        when: A flag of the command (such as `"dry_run"`) without which it is not guarded. Default:
            it always is.

    Example:
        >>> @click.command()
        ... @click.argument("model")
        ... @guarded("model")
        ... def show(model: str) -> None:
        ...     click.echo(model)
        >>> sorted(parameter.name for parameter in show.params)
        ['model', 'time_limit']
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*, time_limit: float, **values: Any) -> Any:
            context = click.get_current_context()
            if context.obj is OWN_PROCESS and (when is None or values[when]):
                names = _names([values[name] for name in files])
                limits = Limits(seconds=time_limit, memory_bytes=_memory_limit())
                ending = split(limits)
                if ending is not None:
                    raise click.exceptions.Exit(exit_code(ending, limits, names))
            return command(**values)

        return click.option(
            "--time-limit",
            type=click.FloatRange(min=1),
            default=TIME_LIMIT_SECONDS,
            show_default=True,
            metavar="SECONDS",
            help="End the work when it takes longer"
            + (f" (with --{when.replace('_', '-')})." if when else "."),
        )(run)

    return decorate


def read_first(path: Path) -> None:
    """Read a `.keras` or `.h5` file once, before any Keras does, in a guarded child in little time.

    Damaged HDF5 files send their library in circles: the child ends when it takes longer than
    8 s + 0.1 s/MB. Elsewhere than in such a child there is no limit.

    Args:
        path: The file; a folder and what does not exist are left to whoever loads it.

    Raises:
        ModelError: It is not sound.
    """
    from tfedge.models.reading import read_file

    if not path.is_file():
        return
    if _in_child:
        seconds = READING_SECONDS + path.stat().st_size / READING_BYTES_PER_SECOND
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        read_file(path)
    finally:
        if _in_child:
            signal.setitimer(signal.ITIMER_REAL, 0)


def split(limits: Limits) -> Ending | None:
    """Fork the process.

    Args:
        limits: What the child may use.

    Returns:
        In the child `None`, at once; in the parent how the child ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    scratch, parent = tempfile.mkdtemp(prefix="tfedge-"), os.getpid()
    signals = _Signals()
    child = os.fork()
    if child == 0:
        signals.close()
        _settle(parent, scratch, limits)
        return None
    with contextlib.suppress(PermissionError, ProcessLookupError):  # the child does it, too
        os.setpgid(child, child)
    try:
        return _watch(child, limits, signals)
    finally:
        _reap(child)
        shutil.rmtree(scratch, ignore_errors=True)
        signals.close()


def exit_code(ending: Ending, limits: Limits, names: str) -> int:
    """The exit code of a child that ended by itself.

    Args:
        ending: How it ended.
        limits: What it was allowed to use.
        names: The files that it worked on, for the message.

    Raises:
        TfedgeError: It crashed or was ended: what happened, and the next move.

    Example:
        >>> exit_code(Ending(code=2), Limits(), "`model.tflite`")
        2
        >>> exit_code(Ending(code=-11), Limits(), "`model.tflite`")
        Traceback (most recent call last):
        ...
        tfedge.errors.TfedgeError: Working on `model.tflite` crashed (SIGSEGV) in native code of ...
    """
    if ending.cause == "stop":
        raise TfedgeError("Interrupted. No file was left half-written.")
    if ending.cause == "time":
        raise TfedgeError(
            f"Working on {names} took longer than {limits.seconds:g} s and was ended. Raise "
            "`--time-limit` if the model may be so slow; else the file is damaged or hostile."
        )
    if ending.cause == "memory":
        raise TfedgeError(
            f"Working on {names} needed more than {(limits.memory_bytes or 0) / 2**30:.1f} GiB "
            f"({MEMORY_SHARE:.0%} of the free memory) and was ended. Use a machine with more if "
            "the model may be so large; else the file is damaged or hostile."
        )
    if ending.code in (0, 1, 2):
        return ending.code
    how = signal.Signals(-ending.code).name if ending.code < 0 else f"exit code {ending.code}"
    if ending.code == -signal.SIGALRM:
        raise TfedgeError(
            f"Reading {names} took longer than such files take. A model file among them is damaged "
            "or hostile: fetch it or save it again."
        )
    if ending.code == -signal.SIGKILL:
        raise TfedgeError(
            f"Working on {names} was ended from outside ({how}), most likely because the memory "
            "was full. Free some memory; if that does not help, the file is damaged or hostile."
        )
    raise TfedgeError(
        f"Working on {names} crashed ({how}) in native code of LiteRT, TensorFlow or HDF5"
        f"{_last_words()}. The file is damaged or hostile: fetch, convert or save it again."
    )


# ---------------------------------------------------------------------------- in the child


def _settle(parent: int, scratch: str, limits: Limits) -> None:
    """A group of its own, temporary files that the parent removes, no core file, no afterlife."""
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or writing would stop it under `stty tostop`
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
    global _in_child
    _in_child = True
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    _lower(resource.RLIMIT_CORE, 0)
    # Ends what the child starts itself, should parent and child be killed at once.
    _lower(resource.RLIMIT_CPU, int(limits.seconds * (os.cpu_count() or 1)) + 60)


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, hard))


# ---------------------------------------------------------------------------- in the parent


class _Signals:
    """What this process is sent, to be read; until `close`, nothing else comes of it."""

    def __init__(self) -> None:
        self._end, self._start = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before_fd = signal.set_wakeup_fd(self._start, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, lambda *_: None)
            for number in (*STOPS, signal.SIGTSTP, signal.SIGCHLD)
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN
        }

    def wait(self, seconds: float) -> list[int]:
        """The numbers of the signals that have come, after `seconds` at the latest."""
        ready = select.select([self._end], [], [], seconds)[0]
        return list(os.read(self._end, 64)) if ready else []

    def close(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before_fd)
        os.close(self._end)
        os.close(self._start)


def _watch(child: int, limits: Limits, signals: _Signals) -> Ending:
    """Wait for the child, pass on what stops or pauses it, and end it where it passes a limit."""
    deadline, cause = time.monotonic() + limits.seconds, ""
    while (ending := _ended(child)) is None:
        for number in signals.wait(POLL_SECONDS):
            if number == signal.SIGTSTP:
                deadline += _pause(child)
            elif number in STOPS and cause:  # for the second time: it does not react
                return _end(child, cause)
            elif number in STOPS:
                os.kill(child, number)
                deadline, cause = min(deadline, time.monotonic() + GRACE_SECONDS), "stop"
        if time.monotonic() > deadline:
            return _end(child, cause or "time")
        if limits.memory_bytes is not None and _resident(child) > limits.memory_bytes:
            return _end(child, "memory")
    return replace(ending, cause=cause) if ending.code < 0 else ending


def _ended(child: int) -> Ending | None:
    """How the child ended, if it did; it stays a zombie, so that its number remains its own."""
    state = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if state is None:
        return None
    return Ending(code=state.si_status if state.si_code == os.CLD_EXITED else -state.si_status)


def _end(child: int, cause: str) -> Ending:
    os.killpg(child, signal.SIGKILL)
    return Ending(code=-signal.SIGKILL, cause=cause)


def _reap(child: int) -> None:
    """End what is left of the child's group, and let go of the child."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _pause(child: int) -> float:
    """Stop the child and this process (Ctrl-Z) until it is continued; the seconds that took."""
    start = time.monotonic()
    os.killpg(child, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    os.killpg(child, signal.SIGCONT)
    return time.monotonic() - start


def _resident(process: int) -> int:
    """Resident bytes of a process and of all that it started; 0 where the system does not say."""
    folder = Path("/proc", str(process))
    try:
        pages = int((folder / "statm").read_text().split()[1])
        children = (folder / "task" / str(process) / "children").read_text().split()
    except (OSError, IndexError):  # it has just ended
        return 0
    return pages * resource.getpagesize() + sum(_resident(int(number)) for number in children)


def _memory_limit() -> int | None:
    """The share of the memory free now, on this host and in its container, that a child may use."""
    free = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    for name in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            free.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return int(MEMORY_SHARE * min(free)) if free else None


def _names(values: Sequence[Any]) -> str:
    """Files in words.

    Example:
        >>> _names([(Path("a.keras"), Path("b.h5")), "digits"])
        '`a.keras`, `b.h5` and `digits`'
    """
    flat = [part for v in values for part in (v if isinstance(v, tuple) else (v,))]
    names = [f"`{part}`" for part in flat if part is not None]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "the input"


def _last_words() -> str:
    """The last line that native code wrote, where the command line keeps it (see `main`)."""
    state = os.fstat(2)
    if not stat.S_ISREG(state.st_mode) or sys.stderr.fileno() == 2:
        return ""
    text = os.pread(2, 4096, max(0, state.st_size - 4096)).decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f" ({lines[-1][:200]})" if lines else ""
