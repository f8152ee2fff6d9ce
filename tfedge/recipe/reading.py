"""Read recipes from YAML, write them, and describe them to editors."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfedge.data.named import NAMED
from tfedge.errors import MissingExtraError, SettingsError, did_you_mean
from tfedge.recipe.settings import Recipe

LARGEST_BYTES = 1_000_000
DEEPEST = 20


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: The file.

    Returns:
        The recipe. A model or data file that it names is looked for from the recipe's folder first,
        then from the working directory.

    Raises:
        SettingsError: There is no such file, it is not YAML, or says what a recipe cannot say.

    Example:
        >>> recipe = load_recipe("recipe.yaml")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"A recipe is a YAML file. There is no file `{path}`.")
    if path.stat().st_size > LARGEST_BYTES:
        raise SettingsError(
            f"A recipe holds at most {LARGEST_BYTES:,} bytes. Received: `{path}` with "
            f"{path.stat().st_size:,}."
        )
    values = _parse(path)
    if not isinstance(values, Mapping):
        raise SettingsError(
            f"A recipe holds `key: value` lines, among them `model` and `data`. Received: "
            f"`{path}`, which holds {'nothing' if values is None else type(values).__name__}."
        )
    values = dict(values)
    values.setdefault("name", path.stem)
    return as_recipe(_found_from(values, path.parent), where=f"`{path}`")


def as_recipe(values: Mapping[str, Any], where: str = "The recipe") -> Recipe:
    """A recipe from plain values, as YAML holds them.

    Args:
        values: Keys and values.
        where: What to call it in an error.

    Raises:
        SettingsError: A key is not known or missing, or a value does not fit.

    Example:
        >>> as_recipe({"model": "m.keras", "data": "digits", "seed": 3}).seed
        3
    """
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError as error:
        raise MissingExtraError(
            'Reading recipes needs pydantic: pip install "tfedge[train]".'
        ) from error
    try:
        return TypeAdapter(Recipe).validate_python(dict(values))
    except ValidationError as error:
        raise SettingsError(f"{where}: {_complaint(error.errors())}") from None


def to_yaml(recipe: Recipe, folder: Path | None = None) -> str:
    """A recipe as YAML, all that was decided in it.

    Args:
        recipe: The recipe.
        folder: Where the YAML file will stand. Files in it are named from there, others by their
            whole path. Default: names stay as they are.
    """
    import yaml

    values = recipe.to_dict()
    if folder is not None:
        values["model"] = _named_from(values["model"], folder)
        data = values["data"]
        if isinstance(data, dict):
            data["source"] = _named_from(data["source"], folder)
        else:
            values["data"] = _named_from(data, folder)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return text


def _named_from(name: str, folder: Path) -> str:
    path = Path(name)
    if not path.exists() or name in NAMED:
        return name
    path = path.resolve()
    return str(path.relative_to(folder.resolve()) if folder.resolve() in path.parents else path)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, by which editors complete and check it."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Recipe).json_schema(mode="validation")
    from tfedge.recipe.steps import PARTS, STAGES, stage_fields

    steps = [
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                stage: {
                    "anyOf": [
                        {"type": ["string", "null"]},
                        {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                name: {}
                                for name in (
                                    *stage_fields(stage),
                                    "train",
                                    "distill",
                                    *(("way",) if stage == "quantize" else ()),
                                )
                            },
                        },
                    ]
                }
            },
        }
        for stage in STAGES
    ]
    parts = "|".join(f"{part}\\d*" for part in PARTS)
    schema["properties"]["stages"] = {
        "anyOf": [
            {"type": "string", "pattern": f"^({parts})(_({parts}))*$"},
            {"type": "array", "items": {"anyOf": [{"enum": list(STAGES)}, *steps]}},
        ]
    }
    schema["title"] = "tfedge recipe"
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _parse(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            'Reading recipes needs PyYAML: pip install "tfedge[train]".'
        ) from error
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"A recipe is text in UTF-8. Received: `{path}` ({error.reason})."
        ) from None
    if "*" in text:
        _refuse_aliases(text, path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        line = " ".join(str(error).split())[:300]
        raise SettingsError(f"`{path}` is not YAML: {line}.") from None


def _refuse_aliases(text: str, path: Path) -> None:
    """Refuse YAML aliases, by which few bytes can become many; what is no YAML is left alone."""
    import yaml

    with contextlib.suppress(yaml.YAMLError):  # the parser says what is wrong
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise SettingsError(
                f"A recipe holds no YAML aliases (`*name`). Received: `{path}`. Write it out."
            )


def _found_from(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Files named in a recipe, as paths that hold from here."""

    def found(name: Any) -> Any:
        if isinstance(name, str) and len(name) < 4096 and "\0" not in name and name not in NAMED:
            beside = folder / name
            if not Path(name).is_absolute() and Path(name).name and beside.exists():
                return str(beside)
        return name

    values["model"] = found(values.get("model"))
    data = values.get("data")
    if isinstance(data, Mapping):
        values["data"] = {**data, "source": found(data.get("source"))}
    else:
        values["data"] = found(data)
    contract = values.get("input")
    if isinstance(contract, Mapping) and "labels" in contract:
        values["input"] = {**contract, "labels": found(contract["labels"])}
    return {key: value for key, value in values.items() if value is not None}


def _complaint(errors: Any) -> str:
    """The first thing that is wrong, with the nearest right key."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if not _is_branch(str(part))]
    key = ".".join(place)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        options = _options(place[:-1])
        return (
            f"There is no key `{key}`. There are: {', '.join(options)}."
            f"{did_you_mean(place[-1], options)}"
        )
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"The key `{key}` is missing."
    cause = first.get("ctx", {}).get("error")
    message = str(cause) if cause is not None else str(first["msg"])
    if cause is not None:
        return message
    shown = repr(first.get("input"))
    return f"`{key}`: {message}. Received: {shown[:120]}."


def _is_branch(part: str) -> bool:
    """Whether a part of pydantic's location is no key but a branch of a union."""
    return part in ("str", "float", "DataSource", "function-plain[..]") or part.startswith(
        ("dict[", "function", "tuple[")
    )


def _options(place: list[str]) -> list[str]:
    import dataclasses

    from tfedge.data import InputContract
    from tfedge.recipe.settings import DataSource, Limits, Training

    nested = {"data": DataSource, "limits": Limits, "train": Training, "input": InputContract}
    cls: Any = nested.get(place[0], Recipe) if place else Recipe
    return [f.name for f in dataclasses.fields(cls)]
