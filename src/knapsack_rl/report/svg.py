"""Figures as deterministic SVG text for inlining, without a background and in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Placeholders, replaced by the page's colours so that figures follow its light and dark mode.
INK, MUTED, RULE = "#010203", "#020304", "#030405"
_PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"}

_STYLE: Any = {
    "svg.hashsalt": "knapsack-rl",  # makes ids depend on the content only
    "svg.fonttype": "none",  # text stays searchable and takes the page's font
    "text.parse_math": False,  # names may contain dollar signs
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": "none",
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of the report to figures made inside."""
    with mpl.rc_context(_STYLE):
        yield


def panels(count: int, height: float = 3.1, width: float = 10.0, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side; a single panel is narrower."""
    width = width if count > 1 else width * 0.62
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, **options)
    return figure, list(axes[0])


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales with the page; call it inside `style`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, _, body = text.partition(">")
    width = re.search(r'width="([\d.]+)pt"', head)
    head = re.sub(r' (width|height)="[\d.]+pt"', "", head)
    if width is not None:
        head += f' style="max-width:{float(width[1]) * 1.44:.0f}px"'
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font-size: \1px", body)
    for stand_in, colour in _PAGE_COLOURS.items():
        body = body.replace(stand_in, colour)
    return f"{head}>{body}"


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Label lines at their right ends, ``(x, y, label, colour)``; overlapping labels are moved apart."""
    if not ends:
        return
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    places = [ends[0][1]]
    for _, y, _, _ in ends[1:]:
        places.append(max(y, places[-1] + gap))
    # Shift all labels down by the mean displacement, so that each stays near its line.
    push = sum(places) / len(places) - sum(y for _, y, _, _ in ends) / len(ends)
    for (x, _, label, colour), place in zip(ends, places, strict=True):
        text = axes.annotate(label, (x, place - push), xytext=(6, 0), textcoords="offset points", annotation_clip=False)
        text.set(color=colour, weight="bold", va="center")
