"""Compile a `.tflite` file for the Edge TPU with Google's `edgetpu_compiler`.

    compile_edgetpu("model_int8.tflite")     writes model_int8_edgetpu.tflite beside it

The compiler runs on copies in a temporary folder; what it makes is checked and then written whole,
or nothing is written and an error says why, naming the layer and the fix.
"""

import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tfedge.accelerators.edgetpu.command import (
    GRACE_S,
    START_S,
    Compiler,
    Options,
    arguments_of,
    find_compiler,
    run_compiler,
)
from tfedge.accelerators.edgetpu.failures import Refused, explain
from tfedge.accelerators.edgetpu.log import CompilerLog, ModelLog, parse_log, with_tables
from tfedge.accelerators.edgetpu.outcome import mapping_of
from tfedge.accelerators.records import Compilation, FileMade, OperatorMapping
from tfedge.errors import CompilationError, FileFormatError, SettingsError
from tfedge.files import check_writable, writing
from tfedge.inspection import check_sound, load_bytes
from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import EDGETPU_OPERATOR
from tfedge.inspection.soundness import operator_name

RUNTIMES: Final = range(10, 15)  # that the compiler's page names; 16.0 writes for 14
MOST_SEGMENTS: Final = 64

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A model to compile."""

    path: Path
    data: bytes
    fields: Fields
    foreseen: Any  # a `Preflight`


def compile_edgetpu(
    model: PathLike,
    *,
    out: PathLike | None = None,
    min_runtime_version: int | None = None,
    segments: int | None = None,
    together_with: Sequence[PathLike] = (),
    timeout_s: float = 180.0,
    compiler: str | None = None,
    container: str | None = None,
) -> Compilation:
    """Compile a fully integer `.tflite` file for the Edge TPU.

    Args:
        model: The file.
        out: File to write, or a folder for it. Default: `NAME_edgetpu.tflite` beside `model`;
            segments are called `NAME_segment_0_of_2_edgetpu.tflite` and so on.
        min_runtime_version: Oldest Edge TPU runtime that has to run it, from 10 to 14. Default:
            the compiler's own (14 for 16.0).
        segments: Pieces to cut it into, for a pipeline of as many Edge TPUs.
        together_with: Other models that share the memory of one Edge TPU with it; theirs are
            written beside `out`, as `NAME_edgetpu.tflite`.
        timeout_s: How long the compiler may take, for each segment.
        compiler: Path of `edgetpu_compiler`. Default: that of EDGETPU_COMPILER, else on PATH.
        container: Instead: name of a container image that holds it, run by docker or podman
            without network.

    Returns:
        The files, where every operator of `model` runs, and the compiler's figures: bytes of
        parameters on the chip (`on_chip_bytes`), left there (`on_chip_remaining_bytes`) and
        streamed in every run (`off_chip_bytes`), `subgraphs`, `segments`, `compiler_ms`. What the
        pre-flight foresaw is in `estimates`.

    Raises:
        SettingsError: A setting is out of its range.
        FileFormatError: A file is not there, or not sound.
        CompilationError: There is no compiler, or it made nothing of the model.
        FileWriteError: The result cannot be written.

    Example:
        >>> made = compile_edgetpu("model_int8.tflite", min_runtime_version=13)  # doctest: +SKIP
        >>> made.mapped, made.figures["off_chip_bytes"]  # doctest: +SKIP
        (65, 0)
    """
    started = time.perf_counter()
    _check(min_runtime_version, segments, together_with, timeout_s)
    options = Options(
        min_runtime_version=min_runtime_version, segments=segments, timeout_s=timeout_s
    )
    paths = [Path(model), *map(Path, together_with)]
    targets = _targets(paths, out, segments)
    contents = [_read(path) for path in paths]
    tool = find_compiler(compiler, container)
    sources = [_foreseen(path, *content) for path, content in zip(paths, contents, strict=True)]
    for target in targets:
        check_writable(target)
    version = _version(tool)
    made, log = _compiled(tool, version, sources, options)
    _write(targets, made)
    return _report(tool, version, sources[0], targets, made, log, options, started)


def _check(
    runtime: int | None, segments: int | None, together: Sequence[PathLike], timeout_s: float
) -> None:
    if runtime is not None and (isinstance(runtime, bool) or runtime not in RUNTIMES):
        raise SettingsError(
            f"`min_runtime_version` is a version of the Edge TPU runtime, from {RUNTIMES[0]} to "
            f"{RUNTIMES[-1]}. Received: {runtime!r}."
        )
    whole = isinstance(segments, int) and not isinstance(segments, bool)
    if segments is not None and not (whole and 1 <= segments <= MOST_SEGMENTS):
        raise SettingsError(
            f"`segments` is a whole number from 1 to {MOST_SEGMENTS}. Received: {segments!r}."
        )
    if segments is not None and segments > 1 and together:
        raise SettingsError(
            "`segments` spreads one model over several Edge TPUs, `together_with` puts several "
            "models on one. Received: both. Leave one out."
        )
    if isinstance(together, str | bytes):
        raise SettingsError(
            f"`together_with` is a sequence of paths. Received: {together!r}. Write "
            f"`together_with=[{together!r}]`."
        )
    number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not (number and 1 <= timeout_s < math.inf):
        raise SettingsError(f"`timeout_s` is a time of at least 1 s. Received: {timeout_s!r}.")


def _targets(paths: Sequence[Path], out: PathLike | None, segments: int | None) -> list[Path]:
    """Where the results go, in the order in which the compiler makes them."""
    first = paths[0].with_name(f"{paths[0].stem}_edgetpu.tflite")
    if out is not None:
        first = Path(out) / first.name if Path(out).is_dir() else Path(out)
    if segments is not None and segments > 1:
        stem = first.stem.removesuffix("_edgetpu")
        names = [f"{stem}_segment_{i}_of_{segments}_edgetpu.tflite" for i in range(segments)]
        targets = [first.with_name(name) for name in names]
    else:
        others = [first.with_name(f"{path.stem}_edgetpu.tflite") for path in paths[1:]]
        targets = [first, *others]
    places = [target.absolute() for target in targets]
    if len(set(places)) < len(places):
        raise SettingsError(
            "Models that are compiled together have different names, as their files do. Received: "
            f"{', '.join(str(path) for path in paths)}. Rename one."
        )
    inputs = {path.resolve() for path in paths}
    for target in targets:
        if target.resolve() in inputs:
            raise SettingsError(
                f"`out` may not be a model that goes in. Received: `{target}`. Name another file."
            )
    return targets


def _read(path: Path) -> tuple[bytes, Fields]:
    data, _ = load_bytes(path)
    fields = check_sound(data)
    if _is_compiled(fields):
        raise CompilationError(
            f"A model is compiled once. Received: `{path}`, which holds the operator "
            f"{EDGETPU_OPERATOR}. Give the file from before its compilation."
        )
    return data, fields


def _is_compiled(fields: Fields) -> bool:
    return any(
        operator_name(fields, operator) == EDGETPU_OPERATOR
        for graph in fields["subgraphs"]
        for operator in graph["operators"] or []
    )


def _foreseen(path: Path, data: bytes, fields: Fields) -> _Source:
    from tfedge.accelerators.edgetpu.preflight import preflight

    return _Source(path=path, data=data, fields=fields, foreseen=preflight(data))


def _version(tool: Compiler) -> str:
    """The compiler's version, which also proves that it is one."""
    with tempfile.TemporaryDirectory(prefix="tfedge-") as folder:
        text, code = run_compiler(tool, ["--version"], Path(folder), timeout_s=START_S)
    version = parse_log(text).version
    if not version:
        said = " ".join(text.split())[:300] or "nothing"
        raise CompilationError(
            f"`{tool} --version` names a version of the Edge TPU Compiler. Received: {said} (exit "
            f"code {code}). Name Google's compiler."
        )
    return version


def _compiled(
    tool: Compiler, version: str, sources: Sequence[_Source], options: Options
) -> tuple[list[tuple[bytes, Fields]], CompilerLog]:
    """What the compiler made of copies of the models, in a folder of its own."""
    pieces = options.segments or 1
    with tempfile.TemporaryDirectory(prefix="tfedge-") as name:
        folder = Path(name)
        (folder / "out").mkdir()
        for index, source in enumerate(sources):
            (folder / f"model_{index}.tflite").write_bytes(source.data)
        names = [f"model_{index}.tflite" for index in range(len(sources))]
        text, code = run_compiler(
            tool,
            arguments_of(options, names, "out", version),
            folder,
            timeout_s=options.timeout_s * pieces * len(sources) + GRACE_S,
        )
        stems = [name.removesuffix(".tflite") for name in names]
        if pieces > 1:
            stems = [f"model_0_segment_{index}_of_{pieces}" for index in range(pieces)]
        made = [folder / "out" / f"{stem}_edgetpu.tflite" for stem in stems]
        log = with_tables(parse_log(text), _operation_logs(made))
        contents = [path.read_bytes() if path.is_file() else b"" for path in made]
    if not all(contents) or log.failed or code != 0:
        raise CompilationError(_failure(sources, log, code, options))
    return [(content, _proven(content, tool, sources)) for content in contents], log


def _operation_logs(made: Sequence[Path]) -> list[str]:
    logs = [path.with_suffix(".log") for path in made]
    return [path.read_text("utf-8", "replace") for path in logs if path.is_file()]


def _failure(sources: Sequence[_Source], log: CompilerLog, code: int, options: Options) -> str:
    """The error for a compiler that made nothing of one of the models."""
    said = " ".join(log.messages)
    named = [i for i in range(len(sources)) if f"model_{i}.tflite" in said]
    source = sources[named[0] if named else 0]
    refused = Refused(
        path=str(source.path),
        data=source.data,
        fields=source.fields,
        predicted=source.foreseen.operators,
        timeout_s=options.timeout_s,
        segments=options.segments or 1,
    )
    messages = log.messages
    for index, other in enumerate(sources):
        messages = tuple(m.replace(f"model_{index}.tflite", other.path.name) for m in messages)
    log = dataclasses.replace(log, messages=messages)
    return f"{explain(log, refused, code)} Nothing was written."


def _proven(content: bytes, tool: Compiler, sources: Sequence[_Source]) -> Fields:
    """The fields of a compiled file, which has something for the Edge TPU in it."""
    try:
        fields = check_sound(content)
    except FileFormatError as error:
        raise CompilationError(
            f"{tool} wrote a file that is not sound for {sources[0].path}: {error} Nothing was "
            "written."
        ) from error
    if not _is_compiled(fields):
        rows = [row for row in sources[0].foreseen.operators if row.mapped is not True]
        first = f" The first that stays is {rows[0].name}: {rows[0].reason}." if rows else ""
        raise CompilationError(
            f"{tool} left every operator of {sources[0].path} on the CPU: the file would not use "
            f"the Edge TPU.{first} Change the model; `--preflight` says where. Nothing was written."
        )
    return fields


def _write(targets: Sequence[Path], made: Sequence[tuple[bytes, Fields]]) -> None:
    """Write all files whole, or none."""
    with contextlib.ExitStack() as stack:
        temporaries = [stack.enter_context(writing(target)) for target in targets]
        for temporary, (content, _) in zip(temporaries, made, strict=True):
            temporary.write_bytes(content)


def _report(
    tool: Compiler,
    version: str,
    source: _Source,
    targets: Sequence[Path],
    made: Sequence[tuple[bytes, Fields]],
    log: CompilerLog,
    options: Options,
    started: float,
) -> Compilation:
    pieces = options.segments or 1
    mine = slice(0, pieces)  # the others are of models beside it
    logs = log.models if len(log.models) == len(made) else ()
    predicted: tuple[OperatorMapping, ...] = source.foreseen.operators
    operators, notes = mapping_of(
        source.fields, [fields for _, fields in made[mine]], logs[mine], predicted
    )
    files = [
        FileMade(
            path=str(target),
            size_bytes=len(content),
            figures=_figures(logs[index : index + 1]),
        )
        for index, (target, (content, _)) in enumerate(zip(targets, made, strict=True))
    ]
    if not logs:
        notes = (*notes, "The compiler's log has no figures for these files.")
    return Compilation(
        target="edgetpu",
        compiler=f"edgetpu_compiler {version}{f' in {tool.image}' if tool.image else ''}",
        path=str(targets[0]),
        size_bytes=len(made[0][0]),
        operators=operators,
        figures={
            **_figures(logs[mine]),
            "segments": pieces,
            "compiler_ms": log.milliseconds,
        },
        estimates=_estimates(source.foreseen),
        settings={name: str(value) for name, value in vars(options).items() if value is not None},
        notes=(*notes, *_streaming(logs[mine])),
        seconds=time.perf_counter() - started,
        files=tuple(files) if len(files) > 1 else (),
    )


def _figures(logs: Sequence[ModelLog]) -> dict[str, float]:
    """The sums of what the log says of some files; what it does not say is left out."""
    names = ("on_chip_bytes", "on_chip_remaining_bytes", "off_chip_bytes", "subgraphs")
    rows = {name: [getattr(log, name) for log in logs] for name in names}
    return {name: sum(row) for name, row in rows.items() if row and None not in row}


def _estimates(foreseen: Any) -> dict[str, float]:
    """What the pre-flight foresaw, under the names of the figures."""
    values = {
        "on_chip_bytes": foreseen.parameter_bytes_on_chip,
        "off_chip_bytes": foreseen.parameter_bytes_streamed,
        "mapped": foreseen.mapped,
    }
    return {name: value for name, value in values.items() if value is not None}


def _streaming(logs: Sequence[ModelLog]) -> tuple[str, ...]:
    streamed = sum(log.off_chip_bytes or 0 for log in logs)
    if not streamed:
        return ()
    note = (
        f"{streamed:,} bytes of parameters do not fit on the Edge TPU and are sent to it in every "
        "run, which costs time. A smaller model, or `segments` over several Edge TPUs, avoids it."
    )
    return (note,)
