"""Find Google's `edgetpu_compiler`, build its command line, run it."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tfedge.errors import CompilationError, SettingsError

PROGRAM: Final = "edgetpu_compiler"
ENGINES: Final = ("docker", "podman")
MOUNT: Final = "/work"  # of the working folder inside a container
TIMEOUT_OPTION_SINCE: Final = 16  # `-t`, with the timer that version 16.0 brought
GRACE_S: Final = 60.0  # beyond the compiler's own time limit
START_S: Final = 600.0  # for `--version`, which may fetch a container's image

HOW_TO_GET_IT: Final = (
    "Get it: on Debian or Ubuntu for x86-64, add Google's repository `deb "
    "https://packages.cloud.google.com/apt coral-edgetpu-stable main` and run `sudo apt-get "
    "install edgetpu-compiler`; elsewhere, build a container image that has it (from "
    "`debian:11`, say) and name it with `--container IMAGE`, or compile in Coral's notebook "
    "(https://colab.research.google.com/github/google-coral/tutorials/blob/master/"
    "compile_for_edgetpu.ipynb). Name a program that is not on PATH by EDGETPU_COMPILER. See "
    "https://coral.ai/docs/edgetpu/compiler."
)


def without_how_to_get_it(message: str) -> str:
    """An error about a missing compiler, down to what is missing.

    Example:
        >>> without_how_to_get_it(f"It is not here. {HOW_TO_GET_IT}")
        'It is not here.'
    """
    return message.partition(" Get it: ")[0]


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A compiler that can be run.

    Attributes:
        program: Path of `edgetpu_compiler`, or of the container engine that runs it.
        image: The container image; empty for a program.
    """

    program: str
    image: str = ""

    def __str__(self) -> str:
        return f"{Path(self.program).name} image {self.image}" if self.image else self.program


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the compiler is told.

    Attributes:
        min_runtime_version: Oldest Edge TPU runtime that has to run the file.
        segments: Pieces to cut the model into, for as many Edge TPUs.
        timeout_s: How long it may take for each piece.
    """

    min_runtime_version: int | None = None
    segments: int | None = None
    timeout_s: float = 180.0


def find_compiler(
    compiler: str | None = None,
    container: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Compiler:
    """The compiler that was named, else that of `EDGETPU_COMPILER`, else that on PATH.

    Args:
        compiler: Path or name of the program.
        container: Instead: name of an image in which `edgetpu_compiler` is on PATH.
        environment: Instead of the process's.

    Raises:
        SettingsError: Both are given.
        CompilationError: There is none; how to get it is said.
    """
    environment = os.environ if environment is None else environment
    path = environment.get("PATH", "")
    if compiler and container:
        raise SettingsError(
            "The compiler is a program or in a container. Received: both "
            f"`compiler={compiler!r}` and `container={container!r}`. Leave one out."
        )
    if container:
        return Compiler(program=_engine(path, container), image=_image(container))
    for name, source in (
        (compiler, "`compiler`"),
        (environment.get("EDGETPU_COMPILER"), "EDGETPU_COMPILER"),
    ):
        if name:
            return Compiler(program=_program(name, source, path))
    found = shutil.which(PROGRAM, path=path)
    if found is None:
        raise CompilationError(
            "Google's Edge TPU compiler is needed to compile for the Edge TPU. Received: no "
            f"`{PROGRAM}` on PATH, and no EDGETPU_COMPILER. {HOW_TO_GET_IT}"
        )
    return Compiler(program=str(Path(found).absolute()))


def _engine(path: str, container: str) -> str:
    for engine in ENGINES:
        found = shutil.which(engine, path=path)
        if found is not None:
            return found
    raise CompilationError(
        f"A container image is run by docker or podman. Received: `container={container!r}`, and "
        "neither is on PATH. Install one of them."
    )


def _image(container: str) -> str:
    if container.startswith("-") or any(c.isspace() for c in container):
        raise SettingsError(
            "`container` is the name of an image, e.g. `edgetpu-compiler:16`. Received: "
            f"{container!r}."
        )
    return container


def _program(name: str, source: str, path: str) -> str:
    found = shutil.which(name, path=path)
    if found is not None:
        return str(Path(found).absolute())
    state = "which may not be executed" if Path(name).is_file() else "which does not exist"
    raise CompilationError(
        f"{source} names Google's Edge TPU compiler. Received: `{name}`, {state}. Correct it, or "
        f"get the compiler. {HOW_TO_GET_IT}"
    )


def command_line(
    compiler: Compiler, arguments: Sequence[str], folder: Path, *, name: str = ""
) -> list[str]:
    """The words that run the compiler in a folder.

    In a container the folder is all that it sees, and there is no network.

    Args:
        compiler: The compiler.
        arguments: Its own arguments; paths are relative to `folder`.
        folder: The working folder.
        name: What to call the container.

    Example:
        >>> compiler = Compiler(program="/usr/bin/podman", image="edgetpu:16")
        >>> words = command_line(compiler, ["--version"], Path("/tmp/x"), name="one")
        >>> " ".join(words[:8]), " ".join(words[8:])  # doctest: +NORMALIZE_WHITESPACE
        ('/usr/bin/podman run --rm --name one --network none --cap-drop',
         'ALL --volume /tmp/x:/work:Z --workdir /work --entrypoint edgetpu_compiler edgetpu:16
          --version')
    """
    if not compiler.image:
        return [compiler.program, *arguments]
    words = [compiler.program, "run", "--rm", "--name", name, "--network", "none"]
    words += ["--cap-drop", "ALL"]
    if Path(compiler.program).name == "docker":  # whose daemon is root; podman's user is ours
        words += ["--user", f"{os.getuid()}:{os.getgid()}"]
    words += ["--volume", f"{folder}:{MOUNT}:Z", "--workdir", MOUNT]
    return [*words, "--entrypoint", PROGRAM, compiler.image, *arguments]


def arguments_of(options: Options, models: Sequence[str], out: str, version: str) -> list[str]:
    """The compiler's own arguments, as its page documents them.

    Args:
        options: What it is told.
        models: Files to compile; several are compiled to share the memory of one Edge TPU.
        out: Folder of what it makes.
        version: Its version.

    Example:
        >>> options = Options(min_runtime_version=13, timeout_s=90)
        >>> " ".join(arguments_of(options, ["model_0.tflite"], "out", "16.0.384591198"))
        '--show_operations --out_dir out --min_runtime_version 13 --timeout_sec 90 model_0.tflite'
    """
    words = ["--show_operations", "--out_dir", out]
    if options.min_runtime_version is not None:
        words += ["--min_runtime_version", str(options.min_runtime_version)]
    if options.segments is not None:
        words += ["--num_segments", str(options.segments)]
    if int(version.partition(".")[0] or 0) >= TIMEOUT_OPTION_SINCE:
        words += ["--timeout_sec", f"{options.timeout_s:.0f}"]
    return [*words, *models]


def run_compiler(
    compiler: Compiler, arguments: Sequence[str], folder: Path, *, timeout_s: float
) -> tuple[str, int]:
    """Run the compiler in a folder, and end it with all that it started when time is up.

    Args:
        compiler: The compiler.
        arguments: Its own arguments.
        folder: The working folder.
        timeout_s: How long it may take.

    Returns:
        What it printed, and its exit code: negative where a signal ended it.

    Raises:
        CompilationError: It cannot be started, e.g. because it is for other processors.
    """
    name = f"tfedge-{uuid.uuid4().hex[:12]}"
    words = command_line(compiler, arguments, folder, name=name)
    try:
        process = subprocess.Popen(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise CompilationError(_no_start(compiler, error)) from error
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        output = _end(process, compiler, name)
        text = output.decode("utf-8", "replace")
        return f"{text}\nIt did not end within {timeout_s:.0f} s.\n", -signal.SIGKILL
    except BaseException:  # Ctrl-C: leave nothing running
        _end(process, compiler, name)
        raise
    return output.decode("utf-8", "replace"), process.returncode


def _end(process: subprocess.Popen[bytes], compiler: Compiler, name: str) -> bytes:
    """End the compiler, its children and its container; return what it had printed."""
    if compiler.image:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [compiler.program, "kill", name], capture_output=True, timeout=30, check=False
            )
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    return output


def _no_start(compiler: Compiler, error: OSError) -> str:
    reasons = {
        errno.ENOEXEC: "it is no program for this machine: the compiler is for x86-64 Linux only",
        errno.EACCES: "it may not be executed: run `chmod +x` on it",
        errno.ENOENT: "it, or the loader that it names, does not exist",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"Could not run the Edge TPU compiler `{compiler.program}`: {reason}. {HOW_TO_GET_IT}"
