"""Read a report back from the plain dict that `report.json` holds."""

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from tfedge.errors import DataError
from tfedge.report import RunReport, plain

# What HTML and XML have no place for, and what turns the direction of writing.
UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufdd0-\ufdef\ud800-\udfff"
    + "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


def read_report(report: RunReport | Mapping[str, Any]) -> RunReport:
    """A report as records whose types are checked and whose texts can be shown.

    Args:
        report: The record, or what `RunReport.to_dict()` made of it. Numbers that are `None` where
            the record has a number become not-a-number; characters that no page can show become
            U+FFFD.

    Returns:
        The report.

    Raises:
        DataError: A part is missing or is of another type.

    Example:
        >>> read_report({"name": "run"})
        Traceback (most recent call last):
        ...
        tfedge.errors.DataError: A report holds `fits`. Received: none. Make it again with \
`tfedge optimize`.
    """
    if not isinstance(report, RunReport | Mapping):
        raise _wrong("A report", "a mapping", report)
    return _record(RunReport, plain(report), "")


def _record(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(f"`{place}`", "a mapping", value)
    hints = get_type_hints(kind)
    arguments = {}
    for field in dataclasses.fields(kind):
        inner = f"{place}.{field.name}" if place else field.name
        if field.name in value:
            arguments[field.name] = _value(hints[field.name], value[field.name], inner)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DataError(
                f"A report holds `{inner}`. Received: none. Make it again with `tfedge optimize`."
            )
    return kind(**arguments)


def _value(hint: Any, value: Any, place: str) -> Any:
    """`value`, if it is what the type hint of a record's field says."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _value(inner, value, place)
    if hint is Any:
        return _clean(value)
    if dataclasses.is_dataclass(hint):
        return _record(hint, value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(f"`{place}`", "a list", value)
        return tuple(
            _value(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(value)
        )
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _wrong(f"`{place}`", "a mapping", value)
        return {
            _clean(key): _value(arguments[1], item, f"{place}.{key}") for key, item in value.items()
        }
    return _scalar(hint, value, place)


def _scalar(kind: type, value: Any, place: str) -> Any:
    if kind is float and value is None:
        return math.nan
    is_bool = isinstance(value, bool)
    if kind is float and isinstance(value, int | float) and not is_bool:
        return float(value)
    if not isinstance(value, kind) or (kind is int and is_bool):
        name = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
        raise _wrong(f"`{place}`", name[kind], value)
    return _clean(value)


def _clean(value: Any) -> Any:
    """Plain values with every text fit for a page."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def _wrong(place: str, wanted: str, value: Any) -> DataError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "…"
    return DataError(
        f"{place} of a report is {wanted}. Received: {shown}. Make it again with `tfedge optimize`."
    )
