"""Representative samples in the order of a model's inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.convert._signature import input_specs, takes_dict
from tfedge.data import Split, check_data
from tfedge.errors import DataError


@dataclass(frozen=True)
class Samples:
    """Arrays of shape `(samples, …)`, one for each input of a model, in its order."""

    arrays: tuple[np.ndarray, ...]
    names: tuple[str, ...] | None = None  # for a model that takes a dict

    def __len__(self) -> int:
        return len(self.arrays[0])

    def take(self, count: int) -> Any:
        """Up to `count` samples spread over all, as the model takes them."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))
        return self._packed([array[chosen] for array in self.arrays])

    def batches(self, size: int) -> Iterator[Any]:
        """All samples in batches of up to `size`, as the model takes them."""
        for start in range(0, len(self), size):
            yield self._packed([array[start : start + size] for array in self.arrays])

    def single(self) -> Iterator[list[np.ndarray]]:
        """One list of arrays of batch 1 for each sample, in the order of the inputs."""
        for index in range(len(self)):
            yield [array[index : index + 1] for array in self.arrays]

    def _packed(self, arrays: list[np.ndarray]) -> Any:
        if self.names is not None:
            return dict(zip(self.names, arrays, strict=True))
        return arrays[0] if len(arrays) == 1 else arrays


def as_samples(calibration: Any, model: Any) -> Samples:
    """Calibration data of any form as arrays in the order of the model's inputs.

    Args:
        calibration: An array, a sequence of arrays, a dict of them by input name, or a `Split`.
        model: The Keras model that takes them.

    Raises:
        DataError: Their number, shape or type does not fit.
    """
    split = calibration if isinstance(calibration, Split) else Split(_aligned(calibration))
    check_data(model, Split(split.rows[0]), what="calibration")
    x = split.rows[0]
    specs = input_specs(model)
    names = [spec.name for spec in specs]
    arrays = [x[name] for name in names] if isinstance(x, dict) else _listed(x)
    if len(arrays) != len(specs):
        raise DataError(
            f"`{model.name}` takes {len(specs)} inputs. Received: {len(arrays)} arrays of "
            "calibration samples."
        )
    typed = [np.asarray(a, dtype=spec.dtype) for a, spec in zip(arrays, specs, strict=True)]
    return Samples(tuple(typed), tuple(names) if takes_dict(model) else None)


def _listed(x: Any) -> list[Any]:
    return list(x) if isinstance(x, list | tuple) else [x]


def _aligned(calibration: Any) -> Any:
    return tuple(calibration) if isinstance(calibration, list) else calibration
