"""Read what Google's `edgetpu_compiler` prints, and the operation log that it writes.

The format is that of the page "Edge TPU Compiler" (https://coral.ai/docs/edgetpu/compiler) and of
the logs in the issues of google-coral/edgetpu, e.g. 358 (15.0, nothing mapped), 458 (several
models), 557 and 671 (segments), 317 (operator table), 829 (failure).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tfedge.report import Record

MAPPED: Final = "Mapped to Edge TPU"
_UNITS: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

# What the compiler's words for an operator that it left on the CPU mean.
REASONS: Final = {
    "More than one subgraph is not supported": (
        "it stands behind an operator that stays on the CPU, and the compiler maps one connected "
        "part of a model"
    ),
    "Operation not supported": "the Edge TPU has no such operator",
    "Operation version not supported": (
        "the Edge TPU has this operator, but not this version of it: convert with an older "
        "TensorFlow"
    ),
    "Operation is otherwise supported, but not mapped due to some unspecified limitation": (
        "the Edge TPU has this operator, but not with these sizes or in this place"
    ),
    "Operation is working on an unsupported data type": (
        "its tensors are not int8 or uint8: quantize what it reads and writes"
    ),
    "Tensor has unsupported rank (up to 3 innermost dimensions mapped)": (
        "a tensor has more than three dimensions above 1: use batch 1"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """A row of the operator table: so many operators of a kind have this status.

    Attributes:
        name: Kind of the operators, e.g. `"CONV_2D"`; `"CUSTOM"` for all custom ones.
        count: How many of them.
        status: What the compiler says of them.
    """

    name: str
    count: int
    status: str

    @property
    def mapped(self) -> bool:
        """Whether they run on the Edge TPU."""
        return self.status == MAPPED


@dataclass(frozen=True, kw_only=True)
class ModelLog(Record):
    """What the log says of one model that came out: the model, a segment, one of several.

    Attributes:
        input: Path of the model that went in.
        output: Path of the compiled model.
        input_bytes: Size of the one, as the log rounds it.
        output_bytes: Size of the other.
        on_chip_bytes: Parameters cached in the memory of the Edge TPU.
        on_chip_remaining_bytes: What is left of that memory.
        off_chip_bytes: Parameters that are streamed from the host in every run.
        subgraphs: Parts that run on the Edge TPU as a whole.
        operations: Operators of the model.
        rows: The operator table; empty where the log does not hold it.
    """

    input: str = ""
    output: str = ""
    input_bytes: int | None = None
    output_bytes: int | None = None
    on_chip_bytes: int | None = None
    on_chip_remaining_bytes: int | None = None
    off_chip_bytes: int | None = None
    subgraphs: int | None = None
    operations: int | None = None
    rows: tuple[Row, ...] = ()

    @property
    def mapped(self) -> int:
        """How many operators run on the Edge TPU, by the operator table."""
        return sum(row.count for row in self.rows if row.mapped)


@dataclass(frozen=True, kw_only=True)
class CompilerLog(Record):
    """What the compiler said.

    Attributes:
        version: Its version, e.g. `"16.0.384591198"`; empty where it did not say.
        models: The models that came out, in order.
        milliseconds: How long it says that it took, all models together.
        failed: Whether it says that it failed.
        messages: Lines that are none of the above, and say what went wrong.
    """

    version: str = ""
    models: tuple[ModelLog, ...] = ()
    milliseconds: int = 0
    failed: bool = False
    messages: tuple[str, ...] = ()


_VERSION: Final = re.compile(r"Edge TPU Compiler version ([\w.]+)")
_SUCCESS: Final = re.compile(r"Models? compiled successfully in (\d+) ms")
_ROW: Final = re.compile(r"([A-Z][A-Z0-9_]*) +(\d+) +(\S.*)")
_SIZE: Final = re.compile(r"([\d.]+) ?([KMG]i)?B")
_SIZES: Final = {
    "Input size": "input_bytes",
    "Output size": "output_bytes",
    "On-chip memory available for caching model parameters": "",  # before version 2
    "On-chip memory used for caching model parameters": "on_chip_bytes",
    "On-chip memory remaining for caching model parameters": "on_chip_remaining_bytes",
    "Off-chip memory used for streaming uncached model parameters": "off_chip_bytes",
}
_COUNTS: Final = {
    "Number of Edge TPU subgraphs": "subgraphs",
    "Total number of operations": "operations",
}
_PATHS: Final = {
    "Input model": "input",
    "Input": "input",
    "Output model": "output",
    "Output": "output",
}
_FAILURES: Final = (  # how lines begin that say so
    "Compilation failed",
    "Internal compiler error",
    "Invalid model",
    "Compilation timeout",
    "Compilation child process timed out",
)
# Lines without a meaning of their own.
_NOISE: Final = re.compile(
    r"Started a compilation timeout timer|Compilation child process completed|"
    r"Compilation succeeded|Compilation failed! *$|Operation log:|See the operation log file|"
    r"Model successfully compiled but|A percentage of|Number of operations that will run|"
    r"Operator +Count +Status|Searching for valid delegate|Try to compile segment|"
    r"Intermediate tensors|INFO: |\s*$"
)


def parse_log(text: str) -> CompilerLog:
    """What the compiler printed, or wrote as operation log, as values.

    Args:
        text: All of it. Lines that are not known are kept in `messages`.

    Example:
        >>> log = parse_log('''Edge TPU Compiler version 16.0.384591198
        ... Model compiled successfully in 395 ms.
        ... Input model: model.tflite
        ... On-chip memory used for caching model parameters: 3.33MiB
        ... CONV_2D                        1          Mapped to Edge TPU''')
        >>> log.version, log.milliseconds, log.models[0].on_chip_bytes, log.models[0].mapped
        ('16.0.384591198', 395, 3491758, 1)
    """
    models: list[dict[str, object]] = []
    version, milliseconds, failed = "", 0, False
    messages: list[str] = []
    for line in (line.strip() for line in text.splitlines()):
        if found := _VERSION.search(line):
            version = found[1]
        elif found := _SUCCESS.search(line):
            milliseconds += int(found[1])
        elif not _take(line, models):
            failed |= line.startswith(_FAILURES)
            if not _NOISE.match(line):
                messages.append(line)
    return CompilerLog(
        version=version,
        models=tuple(_model(fields) for fields in models),
        milliseconds=milliseconds,
        failed=failed,
        messages=tuple(messages),
    )


def _take(line: str, models: list[dict[str, object]]) -> bool:
    """Put a line into the model that it speaks of; whether it speaks of one."""
    key, colon, value = line.partition(":")
    value = value.strip()
    if colon and key in _PATHS:
        if _PATHS[key] == "input":
            models.append({})
        elif not models:
            return False
        models[-1][_PATHS[key]] = value
        return True
    if not models:
        return False
    if colon and key in _SIZES:
        if _SIZES[key]:
            models[-1][_SIZES[key]] = _bytes(value)
        return True
    if colon and key in _COUNTS and value.isdigit():
        models[-1][_COUNTS[key]] = int(value)
        return True
    row = _ROW.fullmatch(line)
    if row is None:
        return False
    rows = models[-1].setdefault("rows", [])
    rows.append(Row(name=row[1], count=int(row[2]), status=row[3]))  # type: ignore[attr-defined]
    return True


def _bytes(text: str) -> int | None:
    found = _SIZE.match(text)
    if found is None:
        return None
    return round(float(found[1]) * _UNITS[f"{found[2] or ''}B"])


def _model(fields: dict[str, object]) -> ModelLog:
    rows = fields.pop("rows", [])
    return ModelLog(rows=tuple(rows), **fields)  # type: ignore[arg-type]


def with_tables(log: CompilerLog, operation_logs: Iterable[str]) -> CompilerLog:
    """A log with the operator tables of the operation logs, for models that lack theirs.

    Args:
        log: What the compiler printed.
        operation_logs: Content of the files `*_edgetpu.log`, one for each model, in order.
    """
    tables = [model.rows for text in operation_logs for model in parse_log(text).models]
    if len(tables) != len(log.models):
        return log
    models = tuple(
        model if model.rows else ModelLog(**{**vars(model), "rows": rows})
        for model, rows in zip(log.models, tables, strict=True)
    )
    return CompilerLog(**{**vars(log), "models": models})


def meaning(status: str) -> str:
    """A status of the compiler, with what it means where that is known.

    Example:
        >>> meaning("Operation not supported")
        'the compiler: "Operation not supported" (the Edge TPU has no such operator)'
    """
    words = f'the compiler: "{status}"'
    return f"{words} ({REASONS[status]})" if status in REASONS else words
