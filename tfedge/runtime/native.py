"""Find a LiteRT runtime, open an interpreter on it, and tell what its delegate took.

The only file that uses a private hook of LiteRT (`_get_ops_details`).
"""

import contextlib
import importlib
import importlib.metadata
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np

from tfedge.errors import DelegateError, MissingExtraError
from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import EDGETPU_OPERATOR
from tfedge.inspection.soundness import operator_name
from tfedge.report import Record

RUNTIMES: Final = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
TESTED: Final = "ai-edge-litert 2.3.0 and tflite-runtime 2.14.0"
_OUTPUT_LOCK: Final = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class RuntimeState(Record):
    """Whether a runtime can be used here.

    Attributes:
        version: Installed version; `None` if it is not installed.
        usable: Whether it loads.
        reason: Why not, and the fix; `None` if it is usable.
    """

    version: str | None
    usable: bool
    reason: str | None


def runtimes() -> dict[str, RuntimeState]:
    """The runtimes that tfedge knows, in order of preference, and whether each can be used."""
    states = {}
    for distribution in RUNTIMES:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            reason = f"not installed: `pip install {distribution}`"
            states[distribution] = RuntimeState(version=None, usable=False, reason=reason)
            continue
        try:
            _import_runtime(distribution)
        except ImportError as error:
            states[distribution] = RuntimeState(version=version, usable=False, reason=str(error))
        else:
            states[distribution] = RuntimeState(version=version, usable=True, reason=None)
    return states


def find_runtime() -> tuple[str, ModuleType]:
    """Name with version, and interpreter module, of the first runtime that loads."""
    reasons = []
    for distribution in RUNTIMES:
        try:
            module = _import_runtime(distribution)
        except ImportError as error:
            reasons.append(f"{distribution}: {error}")
        else:
            return f"{distribution} {importlib.metadata.version(distribution)}", module
    raise MissingExtraError(
        f"A runtime is needed to run a `.tflite` file. Received: {'; '.join(reasons)}. "
        "Install one: `pip install ai-edge-litert`."
    )


def _import_runtime(distribution: str) -> ModuleType:
    package = RUNTIMES[distribution]
    try:
        module = importlib.import_module(f"{package}.interpreter")
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}: `pip install {distribution}`") from error
    except (ImportError, OSError) as error:  # e.g. a C library that is too old
        raise ImportError(f"installed but does not load: {error}") from error
    if distribution == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:
        raise ImportError(
            f"tflite-runtime needs numpy below 2, found {np.__version__}: `pip install 'numpy<2'`"
        )
    return module


def make_interpreter(
    module: ModuleType,
    data: bytes,
    delegate: str,
    threads: int,
    keep_tensors: bool,
    handle: Any = None,
) -> Any:
    """An interpreter of `module` (LiteRT's or tflite-runtime's), not yet allocated.

    Args:
        module: The runtime.
        data: The file.
        delegate: `"xnnpack"`; every other name runs on the plain kernels.
        threads: Threads of the CPU kernels.
        keep_tensors: Whether activations outlive the run.
        handle: A delegate of the runtime that takes what it can, before the plain kernels.
    """
    resolvers = module.OpResolverType
    return module.Interpreter(
        model_content=data,
        num_threads=threads,
        experimental_delegates=None if handle is None else [handle],
        experimental_op_resolver_type=(
            resolvers.BUILTIN if delegate == "xnnpack"
            else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
        experimental_preserve_all_tensors=keep_tensors,
    )  # fmt: skip


def delegated(interpreter: Any, operators: Sequence[Fields]) -> frozenset[int]:
    """Which of the file's operators lie inside delegate nodes, by number.

    A delegate node says which tensors it reads and writes; the operators that it replaced are
    those on the way from the ones to the others.
    """
    try:
        nodes = interpreter._get_ops_details()  # no public way says what was delegated
    except AttributeError as error:
        raise DelegateError(
            "This version of LiteRT does not tell what a delegate took. Tested with "
            f"{TESTED}: install one of these."
        ) from error
    writer = {int(out): i for i, op in enumerate(operators) for out in _list(op["outputs"])}
    taken: set[int] = set()
    for node in nodes:
        if node["op_name"] != "DELEGATE":
            continue
        given = {int(i) for i in node["inputs"]}
        wanted = [int(i) for i in node["outputs"]]
        while wanted:
            tensor = wanted.pop()
            if tensor in given or tensor not in writer or writer[tensor] in taken:
                continue
            taken.add(writer[tensor])
            wanted += _list(operators[writer[tensor]]["inputs"])
    return frozenset(taken)


def _list(vector: np.ndarray | None) -> list[int]:
    return [] if vector is None else vector.tolist()


@contextlib.contextmanager
def native_messages(messages: list[str]) -> Iterator[None]:
    """Collect what native code prints on the process's stderr; pass on all but its INFO lines.

    The stream is the process's: what other threads print meanwhile is collected, too.
    """
    lines: list[str] = []
    try:
        with _redirected((2,), lines):
            yield
    finally:
        messages += [line for line in lines if not line.startswith("INFO:")]
        for line in messages:
            print(line, file=sys.stderr)


@contextlib.contextmanager
def all_messages(messages: list[str]) -> Iterator[None]:
    """Collect all that native code prints on the process's stdout and stderr; pass nothing on."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    with _redirected((1, 2), messages):
        yield


@contextlib.contextmanager
def _redirected(descriptors: tuple[int, ...], lines: list[str]) -> Iterator[None]:
    with _OUTPUT_LOCK, tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
        for number in descriptors:
            try:
                saved = os.dup(number)
            except OSError:  # it is closed: there is nothing to collect
                continue
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            stack.close()
            file.seek(0)
            lines += file.read().decode("utf-8", "replace").splitlines()


def failure(path: str, runtime: str, delegate: str, error: Exception) -> DelegateError:
    """The error for a model that opened and then failed to run."""
    cause = one_line(error)
    if "READ_VARIABLE" in cause:
        move = "It was converted with variables that nothing fills: freeze the model, convert again"
    else:
        move = _other_delegate(delegate)
    return DelegateError(f"{runtime} could not run {path} on {delegate!r}: {cause}. {move}.")


def refusal(
    path: str, runtime: str, delegate: str, error: Exception, messages: list[str]
) -> DelegateError:
    """The error for a model that the runtime refused."""
    cause = "; ".join([one_line(error), *messages])
    if EDGETPU_OPERATOR in cause and delegate == "edgetpu":
        return DelegateError(
            f"The Edge TPU's delegate took nothing of {path}, so that {EDGETPU_OPERATOR!r} is "
            f"left: {cause}. The file may need a newer libedgetpu than is here, or another "
            "runtime: `tfedge doctor edgetpu` shows what works together."
        )
    if EDGETPU_OPERATOR in cause:
        return DelegateError(
            f"{path} is compiled for the Edge TPU, which {delegate!r} is not. Open it with "
            "`delegate='edgetpu'`, or give the file from before its compilation."
        )
    return DelegateError(
        f"{runtime} refused {path}: {cause}. If it holds custom operators or is written for a "
        f"newer runtime, convert it again without them. {_other_delegate(delegate)}."
    )


def one_line(error: Exception) -> str:
    """The message of an error of the runtime, in one line."""
    text = " ".join(str(error).split())
    return text.split(" See instructions:")[0].rstrip(".")


def _other_delegate(delegate: str) -> str:
    other = "none" if delegate == "xnnpack" else "xnnpack"
    return f"`delegate={other!r}` may run it"


def nothing_taken(
    path: str, runtime: str, delegate: str, fields: Fields, messages: list[str]
) -> DelegateError:
    """The error for a model of which a delegate took nothing."""
    kinds = sorted({operator_name(fields, op) for op in fields["subgraphs"][0]["operators"] or []})
    name = "XNNPACK" if delegate == "xnnpack" else f"The delegate {delegate!r}"
    reason = "; ".join(messages) or "it has no kernel for these operators and element types"
    if delegate == "xnnpack" and runtime.startswith("tflite-runtime"):
        reason += " (the XNNPACK of tflite-runtime takes float models only)"
    return DelegateError(
        f"{name} took none of the operators of {path} ({', '.join(kinds) or 'it has none'}) on "
        f"{runtime}: {reason}. Use `delegate='none'`."
    )
