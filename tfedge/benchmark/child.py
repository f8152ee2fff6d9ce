"""Run one model in a process of its own, as the parent says on stdin.

Lines of JSON go both ways: first the job, then `{"runs": n}` for each batch of timed runs, last
`{"runs": 0}`. The answer to each is one line; an error ends the process.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tfedge.errors import TfedgeError
from tfedge.inspection import check_sound
from tfedge.runtime import Request, TensorInfo, open_sound
from tfedge.runtime.native import find_runtime

_STATUS = Path("/proc/self/status")


def main() -> None:
    """Serve one job."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what native code prints must not mix with the answers
    try:
        serve(json.loads(sys.stdin.readline()), sys.stdin, answers)
    except TfedgeError as error:
        _answer(answers, {"error": type(error).__name__, "message": str(error)})


def serve(job: dict[str, Any], commands: TextIO, answers: TextIO) -> None:
    """Open the model of `job`, then time runs until none is asked for."""
    find_runtime()  # loaded before the measurement: it is no cost of the model
    request = Request(**job["request"])
    before = _start_of_peak()
    data = Path(job["path"]).read_bytes()
    fields = check_sound(data)
    start = time.perf_counter_ns()
    model = open_sound(data, fields, request, path=job["name"])
    init = time.perf_counter_ns() - start
    generator = np.random.default_rng(job["seed"])
    inputs = [random_input(info, generator) for info in model.inputs]
    facts = {
        "init_ms": init / 1e6,
        "actual": model.actual,
        "adapter": model.adapter,
        "precision": model.precision,
        "notes": model.notes,
        "runtime": model.runtime,
        "nodes_delegated": model.nodes_delegated,
        "nodes_total": model.nodes_total,
    }
    _answer(answers, facts)
    for line in commands:
        runs = json.loads(line)["runs"]
        if runs == 0:
            _answer(answers, {"peak_memory_bytes": max(0, _peak() - before)})
            return
        _answer(answers, {"times_ns": model.timed(inputs, runs)})


def random_input(info: TensorInfo, generator: np.random.Generator) -> np.ndarray:
    """An input of the right shape: floats in [0, 1), quantized integers over their whole range."""
    if info.dtype == "bool":
        return generator.integers(0, 2, info.shape).astype(np.bool_)
    dtype = np.dtype(info.dtype)
    if dtype.kind not in "iu":
        return generator.random(info.shape).astype(dtype)
    if not info.scale:  # class numbers and the like: 0 is always one of them
        return np.zeros(info.shape, dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, info.shape, dtype=dtype, endpoint=True)


def _start_of_peak() -> int:
    """Resident bytes now; from here on the peak is counted anew where the system can do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> int:
    """Largest resident size so far, in bytes."""
    if _STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    print(json.dumps(content), file=answers, flush=True)


if __name__ == "__main__":
    main()
