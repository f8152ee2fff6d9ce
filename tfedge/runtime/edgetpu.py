"""Load the Edge TPU's delegate."""

from typing import Any

from tfedge.errors import DelegateError


def load_edgetpu_delegate(device: str | None = None) -> Any:
    """A delegate object of the runtime module.

    Raises:
        DelegateError: There is none here.
    """
    raise DelegateError(f"The library libedgetpu.so.1 was not found (device: {device or 'any'}).")
