"""What every way of running an open model can do: LiteRT's interpreter, and its GPU accelerator."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Backend(Protocol):
    """A model that a runtime holds open. `OpenModel` checks what it hands to it.

    Attributes:
        runtime: Name and version, e.g. `"ai-edge-litert 2.3.0"`.
        adapter: The device of a GPU; `None` elsewhere.
        nodes_delegated: Operators of the file that the delegate took.
        notes: What a reader of its results should know.
    """

    runtime: str
    adapter: str | None
    nodes_delegated: int
    notes: tuple[str, ...]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for inputs in the tensors' own element types, both in the file's order."""

    def timed(self, arrays: Sequence[np.ndarray], runs: int) -> list[int]:
        """Nanoseconds of each of `runs` runs on the same inputs, after one that is not counted."""

    def tensor(self, index: int) -> np.ndarray:
        """An activation of the last run; `ValueError` where it holds nothing."""

    def close(self) -> None:
        """Free what it holds."""
