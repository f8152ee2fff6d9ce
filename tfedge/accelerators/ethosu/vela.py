"""Run Vela, Arm's compiler for Ethos-U, in a process of its own.

Vela's native core ends the process on some files (a truncated one: SIGSEGV in 5.2.0). It is told
`--verbose-performance` for the figures of each layer and `--enable-debug-db` for the operator of
the file that each came from. Not `--show-cpu-operations`: with it 5.2.0 fails on files in which it
rewrites an ARG_MAX (`KeyError: '0'` in `regor_operations_from_database`).
"""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from tfedge.accelerators.ethosu.configurations import INSTALL, PACKAGE, Configuration
from tfedge.errors import CompilationError

OLDEST: Final = (5, 2)
TOO_NEW: Final = (6,)
STEM: Final = "model"  # of the file that Vela is given, whatever the user's is called


@dataclass(frozen=True, kw_only=True)
class VelaFiles:
    """What Vela left in its folder.

    Attributes:
        compiled: Content of the compiled `.tflite` file.
        summary: Text of `*_summary_<system-config>.csv`.
        layers: Text of `*_per-layer.csv`; empty where no operator was looked at.
        database: Path of the debug database, which can be large.
        log: What it printed.
        seconds: How long it ran.
    """

    compiled: bytes
    summary: str
    layers: str
    database: Path
    log: str
    seconds: float


def find_vela() -> str:
    """Version of the installed Vela.

    Raises:
        CompilationError: It is not installed, or not of a version that was tried.
    """
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise CompilationError(
            f"Ethos-U files are compiled by Vela (package `{PACKAGE}`), which is not installed. "
            f"{INSTALL}."
        ) from error
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not OLDEST <= numbers < TOO_NEW:
        raise CompilationError(
            f"Vela must be of version 5.2 or later and below 6. Received: {version}. {INSTALL}."
        )
    return version


def command(folder: Path, configuration: Configuration) -> list[str]:
    """The command line that compiles `model.tflite` in `folder`.

    Args:
        folder: Where the file is and where all files go.
        configuration: What it is compiled for.

    Example:
        >>> configuration = Configuration(
        ...     target="ethos-u55-128", system_config="Ethos_U55_High_End_Embedded",
        ...     memory_mode="Shared_Sram", file=Path("/vela.ini"), is_own=False,
        ... )
        >>> command(Path("/tmp/x"), configuration)[1:5]
        ['-u', '-m', 'ethosu.vela', '/tmp/x/model.tflite']
    """
    return [
        *(sys.executable, "-u", "-m", "ethosu.vela"),  # unbuffered: its error comes last
        str(folder / f"{STEM}.tflite"),
        *("--output-dir", str(folder)),
        *("--accelerator-config", configuration.target),
        *("--config", str(configuration.file)),
        *("--system-config", configuration.system_config),
        *("--memory-mode", configuration.memory_mode),
        *("--optimise", "Performance"),
        *("--verbose-performance", "--enable-debug-db"),
    ]


def run_vela(
    data: bytes, configuration: Configuration, folder: Path, *, name: str, timeout_s: float
) -> VelaFiles:
    """Compile a file in `folder`.

    Args:
        data: Content of a sound `.tflite` file.
        configuration: What to compile it for.
        folder: An empty folder.
        name: What to call the file in messages.
        timeout_s: Seconds after which Vela is ended.

    Returns:
        What it left there.

    Raises:
        CompilationError: It failed, crashed, took too long or left no file.
    """
    (folder / f"{STEM}.tflite").write_bytes(data)
    started = time.monotonic()
    try:
        done = subprocess.run(
            command(folder, configuration),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompilationError(
            f"Vela took longer than {timeout_s:g} s on {name} and was ended. Raise the timeout if "
            "the model is large."
        ) from error
    log = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        raise failure(done.returncode, log, name, configuration)
    return _collect(folder, configuration, log, name, time.monotonic() - started)


def failure(code: int, log: str, name: str, configuration: Configuration) -> CompilationError:
    """What went wrong, in a sentence.

    Args:
        code: Vela's exit code, or minus the number of the signal that ended it.
        log: What it printed.
        name: What to call the file.
        configuration: What it was compiled for.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "no message"
    if code < 0:
        return CompilationError(
            f"Vela crashed ({signal.Signals(-code).name}) on {name}: {last}. The file is damaged, "
            "or holds what Vela does not know: convert the model again, or compile a part of it."
        )
    if "ModuleNotFoundError" in last or "ImportError" in last:
        return CompilationError(
            f"Vela is installed but does not start: {last}. {INSTALL} with `--force-reinstall`."
        )
    if "ConfigOptionError" in last or "CliOptionError" in last:
        return CompilationError(
            f"Vela refuses system configuration {configuration.system_config!r} with memory mode "
            f"{configuration.memory_mode!r} for {configuration.target!r}: "
            f"{last.rpartition('Error: ')[2].strip(chr(39)) or last}. Choose another pair."
        )
    return CompilationError(
        f"Vela failed on {name} (exit code {code}): {last}. Convert the model again; if that does "
        "not help, it holds what Vela does not know."
    )


def _collect(
    folder: Path, configuration: Configuration, log: str, name: str, seconds: float
) -> VelaFiles:
    compiled = folder / f"{STEM}_vela.tflite"
    summary = folder / f"{STEM}_summary_{configuration.system_config}.csv"
    missing = [path.name for path in (compiled, summary) if not path.is_file()]
    if missing:
        raise CompilationError(
            f"Vela ended on {name} without an error and did not write {', '.join(missing)}. This "
            "version of it does not work with this version of tfedge: " + INSTALL + "."
        )
    layers = folder / f"{STEM}_per-layer.csv"
    return VelaFiles(
        compiled=compiled.read_bytes(),
        summary=summary.read_text(encoding="utf-8", errors="replace"),
        layers=layers.read_text(encoding="utf-8", errors="replace") if layers.is_file() else "",
        database=folder / f"{STEM}_debug.xml",
        log=log,
        seconds=seconds,
    )
