"""Run code in a Python process that has imported nothing yet."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_fresh(code: str, *arguments: object, seconds: float = 600) -> str:
    """What a fresh Python process prints; it must end with exit code 0.

    Args:
        code: The program.
        arguments: Its `sys.argv[1:]`.
        seconds: After which it is killed.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
