"""Start and steer the child process that runs one model (see `child.py`)."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, Final

from tfedge import errors
from tfedge.errors import DelegateError, TfedgeError

_ERRORS: Final = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, TfedgeError)
}


class Child:
    """A process that holds one open model.

    Attributes:
        job: What it was told: name, path, delegate, threads, seed, and the fields of `Request`.
        facts: What it found on opening the model, as fields of `BenchmarkRow`.
        pid: Number of the process.
        last_ns: Median of the latest batch of runs, in nanoseconds.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.facts: dict[str, Any] = {}
        self.last_ns = 1.0
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tfedge.benchmark.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environment(),
        )
        self.pid = self._process.pid
        self._commands: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def open(self) -> None:
        """Open the model; fills `facts`."""
        self.facts = self._ask(self.job)
        self.facts["notes"] = tuple(self.facts["notes"])

    def run(self, runs: int) -> list[int]:
        """Times of `runs` invocations, in nanoseconds."""
        times: list[int] = self._ask({"runs": runs})["times_ns"]
        self.last_ns = max(1.0, float(sorted(times)[len(times) // 2]))
        return times

    def finish(self) -> int:
        """End the process; returns its peak memory in bytes (see `BenchmarkRow`)."""
        peak: int = self._ask({"runs": 0})["peak_memory_bytes"]
        return peak

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(command), file=self._commands, flush=True)
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["message"])
        return answer

    def _death(self) -> DelegateError:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DelegateError(
            f"The process that ran {self.job['name']!r} on {self.job['delegate']!r} ended with "
            f"{how}: {' / '.join(lines[-2:]) or 'no message'}. Convert the model again, or run it "
            "with `delegate='none'`."
        )


def _environment() -> dict[str, str]:
    """The environment of the child, which must find this very package."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
