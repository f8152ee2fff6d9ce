"""Make one self-contained page of a run's report.

    Path("report.html").write_text(render(report), encoding="utf-8")

The page needs no network, no script and no other file. All texts of the report (names of layers,
verdicts, settings) are taken as they come and escaped.
"""

from collections.abc import Mapping
from typing import Any

from tfedge.errors import MissingExtraError
from tfedge.page.reading import read_report
from tfedge.report import RunReport

__all__ = ["read_report", "render"]


def render(report: RunReport | Mapping[str, Any]) -> str:
    """The page of a run.

    Args:
        report: The record, or the dict that `report.json` holds.

    Returns:
        HTML; the same report gives the same bytes.

    Raises:
        DataError: A part of the report is missing or is of another type.
        MissingExtraError: Jinja2, matplotlib or PyYAML is not installed.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> html = render(json.loads(Path("run/report.json").read_text()))  # doctest: +SKIP
    """
    read = read_report(report)
    try:
        from tfedge.page.writing import write_page
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tfedge"):
            raise
        raise MissingExtraError(
            f"A page needs the package `{error.name}`, which is not installed. "
            'Run `pip install "tfedge[train]"`.'
        ) from error
    return write_page(read)
