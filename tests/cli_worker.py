"""Run many commands in one process that imports TensorFlow once, and tell how each ended.

`Worker` is the near side. The far side is this file, run by Python: it answers each line of JSON
(the arguments) with a line of JSON (exit code, what was written, seconds).
"""

import json
import os
import resource
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEMORY_BYTES = 8 * 2**30  # what a file makes the far side ask for above this is refused to it


@dataclass(frozen=True)
class Result:
    """How a command ended; `code` is None when the process died or hung."""

    code: int | None
    output: str
    errors: str
    seconds: float


class Worker:
    """A process that runs commands one after the other; a new one takes over from one that died."""

    def __init__(self, folder: Path, temporary: Path, limit_seconds: float) -> None:
        self.folder, self.temporary, self.limit_seconds = folder, temporary, limit_seconds
        self._process: subprocess.Popen | None = None

    def run(self, *arguments: str) -> Result:
        """The result of one command."""
        process = self._process or self._start()
        start = time.monotonic()
        process.stdin.write(json.dumps(arguments).encode() + b"\n")
        process.stdin.flush()
        ready = select.select([process.stdout], [], [], self.limit_seconds)[0]
        line = process.stdout.readline() if ready else b""
        if line:
            return Result(**json.loads(line))
        how = f"ended with {process.wait(10)}" if ready else "hung"
        self.close()
        return Result(None, "", how, time.monotonic() - start)

    def _start(self) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env=environment(self.temporary),
        )
        assert process.stdout.readline() == b"ready\n", "the far side did not start"
        self._process = process
        return process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def environment(temporary: Path) -> dict[str, str]:
    """That of this process, with the package found and temporary files in a place of their own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}


def serve() -> None:
    """Answer until nothing more is asked."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    import keras
    import tf_keras

    from tfedge.cli import main

    written = [os.memfd_create(name) for name in ("output", "errors")]
    for number, file in enumerate(written, 1):
        os.dup2(file, number)
    answers.write("ready\n")
    for number, line in enumerate(sys.stdin, 1):
        for file in written:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
        start = time.monotonic()
        code = main(json.loads(line))
        seconds = time.monotonic() - start
        sys.stdout.flush()
        texts = [os.pread(f, os.fstat(f).st_size, 0).decode("utf-8", "replace") for f in written]
        answers.write(json.dumps(dict(zip(
            ("code", "output", "errors", "seconds"), (code, *texts, seconds), strict=True
        ))) + "\n")  # fmt: skip
        if number % 20 == 0:
            keras.backend.clear_session()
            tf_keras.backend.clear_session()


if __name__ == "__main__":
    serve()
