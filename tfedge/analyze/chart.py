"""Draw the shares of the layers as bars, in SVG."""

import io
import warnings
from typing import Any

from tfedge.analyze.records import Analysis, LayerCost
from tfedge.errors import MissingExtraError

MOST_LAYERS = 20
ROW_INCHES = 0.42
COLOURS = {"time": "#c2410c", "multiply-accumulates": "#2563eb", "parameters": "#64748b"}


def draw(analysis: Analysis, most: int = MOST_LAYERS) -> str:
    """Bars of each layer's share of time, multiply-accumulates and parameters.

    Args:
        analysis: What to draw.
        most: How many layers, from the first.

    Returns:
        An SVG document, the same for the same analysis.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError('A chart needs matplotlib: pip install "tfedge[train]".') from error
    rows = analysis.layers[:most]
    series = _series(analysis, rows)
    style = {"svg.hashsalt": analysis.model, "font.size": 9, "svg.fonttype": "none"}
    with mpl.rc_context(style), warnings.catch_warnings():
        # Names may hold letters that matplotlib's font lacks; the reader's viewer has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(8, 1.2 + ROW_INCHES * max(1, len(rows))), layout="constrained")
        _bars(figure.subplots(), analysis, rows, series)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "tfedge"})
    return text.getvalue()


def _series(analysis: Analysis, rows: tuple[LayerCost, ...]) -> dict[str, list[float]]:
    """Percentages of each figure, a value for each row."""
    whole = {
        "time": analysis.layers_ms or 0.0,
        "multiply-accumulates": float(analysis.macs),
        "parameters": float(analysis.parameters),
    }
    own = {
        "time": [row.latency_ms or 0.0 for row in rows],
        "multiply-accumulates": [float(row.macs) for row in rows],
        "parameters": [float(row.parameters) for row in rows],
    }
    return {
        name: [100 * value / whole[name] for value in values]
        for name, values in own.items()
        if whole[name]
    }


def _bars(
    axes: Any, analysis: Analysis, rows: tuple[LayerCost, ...], series: dict[str, list[float]]
) -> None:
    height = 0.8 / max(1, len(series))
    for number, (name, values) in enumerate(series.items()):
        places = [place + (number - (len(series) - 1) / 2) * height for place in range(len(rows))]
        axes.barh(places, values, height=height, color=COLOURS[name], label=name)
    labels = [_plain(f"{row.layer} ({row.kind})") for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("% of the model")
    axes.set_title(_plain(analysis.model), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if series:
        axes.figure.legend(loc="outside lower right", ncols=len(series), frameon=False)


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula, and XML no control character."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text).replace(
        "$", r"\$"
    )
