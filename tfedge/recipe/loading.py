"""Load the data of a recipe as its model takes them, and know when they changed."""

import dataclasses
import hashlib
import importlib.util
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tfedge.data import Data, Split, load_dataset
from tfedge.data.functions import is_reference
from tfedge.errors import DataError, SettingsError
from tfedge.files import working_directory_importable
from tfedge.recipe.directory import digest_of, sha256_of
from tfedge.recipe.settings import Recipe

HASHED_BATCHES = 8  # of a stream


def load_data(recipe: Recipe, model: Any) -> tuple[Data, Split | None]:
    """The data of a recipe as its model takes them, and the split to choose by, if any.

    Args:
        recipe: The recipe.
        model: Its model, which gives images their size.

    Raises:
        DataError: There are no evaluation data.
        SettingsError: There are no training data to take validation samples out of.
    """
    source = recipe.source
    size: Any = source.image_size
    data = load_dataset(source.source, seed=recipe.seed, image_size=size, model=model)
    if recipe.input is not None:
        data = recipe.input.apply_to(data)
    if source.labels == "inputs":
        data = dataclasses.replace(
            data,
            train=_with_own_inputs(data.train),
            evaluation=_with_own_inputs(data.evaluation),
        )
    if data.evaluation is None:
        raise DataError(
            "A run is judged on evaluation data. Received: data without any. Give `x_test` and "
            "`y_test`, or training data that a part can be set aside of."
        )
    if not source.validation:
        return data, None
    if data.train is None:
        raise SettingsError(
            "`data.validation` is taken out of training data. Received: data without any."
        )
    train, validation = data.train.divide(source.validation, recipe.seed)
    return dataclasses.replace(data, train=train), validation


def can_train(recipe: Recipe, data: Data) -> bool:
    """Whether there is something to train with: labelled samples, or a training of one's own."""
    train = data.train
    return recipe.fit is not None or (
        train is not None and (train.is_stream or train.y is not None)
    )


def _with_own_inputs(split: Split | None) -> Split | None:
    if split is None:
        return None
    x = split.rows[0]
    return Split(x, x)


def hash_of_data(data: Data, validation: Split | None) -> str:
    """SHA-256 of the samples; of a stream, of its first batches."""
    parts: list[Any] = []
    for split in (data.train, data.evaluation, data.calibration, validation):
        if split is None:
            parts.append(None)
        elif split.is_stream:
            rows = split.batches(256)
            parts.append([_hash_rows(row) for row in islice(rows, HASHED_BATCHES)])
        else:
            parts.append(_hash_rows(split.rows))
    return digest_of(parts)


def _hash_rows(rows: Any) -> list[Any]:
    digests: list[Any] = []
    for part in rows:
        arrays = part if isinstance(part, tuple) else (part,)
        named = part.items() if isinstance(part, dict) else enumerate(arrays)
        for name, array in named:
            if array is not None:
                plain = np.ascontiguousarray(array)
                digest = hashlib.sha256(plain.tobytes()).hexdigest()
                digests.append([name, str(plain.dtype), plain.shape, digest])
    return digests


def hash_of_sources(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the files of one's own code that a recipe names.

    Args:
        recipe: May name modules with layers, a model, a metric or a training of one's own.

    Returns:
        Name of the module to the hash; modules that are no file are left out.
    """
    metrics = recipe.metric.values() if isinstance(recipe.metric, dict) else [recipe.metric]
    texts = [text.removeprefix("max:").removeprefix("min:") for text in metrics]
    texts += [recipe.model, recipe.fit or ""]
    named = [text.partition(":")[0] for text in texts if is_reference(text)]
    found: dict[str, str] = {}
    with working_directory_importable():
        for name in (*recipe.imports, *named):
            try:
                spec = importlib.util.find_spec(name)
            except (ImportError, ValueError):  # loading will say what is wrong
                continue
            if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
                found[name] = sha256_of(Path(spec.origin))
    return found
