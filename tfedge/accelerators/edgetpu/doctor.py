"""What is here for the Edge TPU: compiler, library, devices; and what works together."""

from dataclasses import dataclass

from tfedge.accelerators.edgetpu.command import find_compiler
from tfedge.errors import CompilationError
from tfedge.report import Record
from tfedge.runtime.edgetpu import EdgeTpuState, find_edgetpu
from tfedge.runtime.edgetpu_versions import TABLE, Pairing, WorkingSet, working_set


@dataclass(frozen=True, kw_only=True)
class EdgeTpuExamination(Record):
    """What is here for the Edge TPU.

    Attributes:
        state: Library, devices, runtime and what is missing to run a model.
        compiler: Path of Google's compiler; empty where there is none.
        compiler_missing: How to get it; empty where it is here.
        table: What works together, by those who published it.
        working_set: One set for this Python and processor; `None` where none is known.
    """

    state: EdgeTpuState
    compiler: str
    compiler_missing: str
    table: tuple[Pairing, ...]
    working_set: WorkingSet | None


def examine_edgetpu() -> EdgeTpuExamination:
    """Look for all that compiling for the Edge TPU and running on it needs.

    Runs nothing: neither the compiler nor the library is started.
    """
    state = find_edgetpu()
    try:
        compiler, missing = str(find_compiler()), ""
    except CompilationError as error:
        compiler, missing = "", str(error)
    major, minor = (int(part) for part in state.python.split("."))
    return EdgeTpuExamination(
        state=state,
        compiler=compiler,
        compiler_missing=missing,
        table=TABLE,
        working_set=working_set((major, minor), state.machine),
    )
