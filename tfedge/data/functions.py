"""Find a function that is named `module:function`."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfedge.errors import SettingsError, did_you_mean
from tfedge.files import working_directory_importable

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_reference(text: str) -> bool:
    """Whether `text` has the form `module:function`.

    Example:
        >>> is_reference("my_pkg.data:load"), is_reference("data.npz")
        (True, False)
    """
    return _REFERENCE.fullmatch(text) is not None


def find_function(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names. Importing the module runs its code.

    Args:
        reference: e.g. `"my_pkg.metrics:f1"`. The working directory is looked in too, last.

    Raises:
        SettingsError: There is no such module or function, or the import failed.
    """
    if not is_reference(reference):
        raise SettingsError(
            f"A function is named as `module:function`. Received: {reference!r}. Write for "
            "example `my_pkg.metrics:f1`."
        )
    module_name, _, path = reference.partition(":")
    with working_directory_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise SettingsError(_not_found(module_name, error)) from error
        except Exception as error:  # the code of a module can raise anything
            raise SettingsError(
                f"Importing {module_name!r} for `{reference}` failed: "
                f"{type(error).__name__}: {error}."
            ) from error
    for name in path.split("."):
        if name not in dir(found):
            options = [option for option in dir(found) if not option.startswith("_")]
            raise SettingsError(
                f"`{module_name}` has no {name!r}, asked for as `{reference}`."
                f"{did_you_mean(name, options)}"
            )
        found = getattr(found, name)
    if not callable(found):
        raise SettingsError(f"`{reference}` must be a function. Received: {type(found).__name__}.")
    return found


def _not_found(module_name: str, error: ModuleNotFoundError) -> str:
    if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
        return (
            f"There is no module {error.name!r}, neither installed nor in `{Path.cwd()}`. Run from "
            "the folder that holds it, or install it."
        )
    return (
        f"Importing {module_name!r} failed: it needs the module {error.name!r}, which is not "
        "installed. Install it."
    )
