"""Figures as SVG text for inlining: deterministic, without a background, in the colours of the page around them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-ins that become the page's own colours, so that figures follow its light and dark mode.
INK, MUTED, RULE = "#010203", "#020304", "#030405"
_PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"}

_STYLE: Any = {
    "svg.hashsalt": "knapsack-rl",  # ids by content, the same in every run
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "text.parse_math": False,  # a dollar in a name is a dollar
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
    """The house style, for the figures made inside."""
    with mpl.rc_context(_STYLE):
        yield


def panels(count: int, height: float = 3.1, width: float = 10.0, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side; one alone does not stretch over the whole width."""
    width = width if count > 1 else width * 0.62
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, **options)
    return figure, list(axes[0])


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales with the page.

    Call it inside `style`: some settings only matter when drawing.
    """
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
    """Name lines at their right ends, ``(x, y, label, colour)``; labels that would overlap are moved apart."""
    if not ends:
        return
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    places = [ends[0][1]]
    for _, y, _, _ in ends[1:]:
        places.append(max(y, places[-1] + gap))
    # Those pushed upwards come down again by the mean push, so that no label strays far from its line.
    push = sum(places) / len(places) - sum(y for _, y, _, _ in ends) / len(ends)
    for (x, _, label, colour), place in zip(ends, places, strict=True):
        text = axes.annotate(label, (x, place - push), xytext=(6, 0), textcoords="offset points", annotation_clip=False)
        text.set(color=colour, weight="bold", va="center")
