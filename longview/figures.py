"""The one address of matplotlib: a figure to draw on, without a display."""

from __future__ import annotations

from typing import Any

from longview.errors import MissingExtraError


def new_figure(feature: str, width: float, height: float, **settings: Any) -> Any:
    """An empty figure, in inches; `savefig` writes it.

    Args:
        feature: What is being drawn, for the error.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(feature, "matplotlib") from error
    figure = Figure(figsize=(width, height), **settings)
    FigureCanvasAgg(figure)
    return figure
