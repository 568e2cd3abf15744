"""Figures as deterministic SVG text for inlining, without a background and in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knapsack_rl.report.runs import INKS, ink

# Placeholders, replaced by the page's colours so that figures follow its light and dark mode.
INK, MUTED, RULE = "#010203", "#020304", "#030405"
_PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"} | {each: ink(each) for each in INKS}

# Inches: on a phone, text has the size of the page's small print.
WIDTH, HEIGHT = 4.3, 3.0
_BOTTOM, _TOP = 0.16, 0.89
# Right edge of a plot whose lines are labelled at their ends.
END_LABELS = 0.77
# Characters in a line of a label at the end of a curve.
_LONGEST_END = 12

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


def panel(left: float = 0.14, right: float = 0.97) -> tuple[Figure, Axes]:
    """Make a figure of one chart, narrow enough for a phone; the page puts charts side by side where there is room.

    Args:
        left, right: edges of the plot, as shares of the width. Fixed ones keep the plots of a page in line, and are
            much faster to draw than a layout that is computed.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT))
    return figure, figure.add_axes((left, _BOTTOM, right - left, _TOP - _BOTTOM))


def panel_with_scale() -> tuple[Figure, Axes, Axes]:
    """The same with a narrow chart at its right, for the scale of the colours."""
    figure, main = panel(0.19, 0.83)
    return figure, main, figure.add_axes((0.855, _BOTTOM, 0.025, _TOP - _BOTTOM))


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
    """Label lines at their right ends, ``(x, y, label, colour)``, right of a plot that ends at `END_LABELS`.

    Overlapping labels are moved apart. Where they do not all fit, none is drawn: the page's legend names every line.
    """
    low, high = axes.get_ylim()
    line = 0.068 * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    texts = ["\n".join(clip(part, _LONGEST_END) for part in label.split(", ", 1)) for _, _, label, _ in ends]
    sizes = [line * (text.count("\n") + 1.1) for text in texts]
    if sum(sizes) > high - low:
        return
    places = spread([y for _, y, _, _ in ends], sizes, low, high)
    for (x, _, _, colour), text, place in zip(ends, texts, places, strict=True):
        drawn = axes.annotate(text, (x, place), xytext=(5, 0), textcoords="offset points", annotation_clip=False)
        drawn.set(color=colour, weight="bold", va="center", fontsize=8.5, linespacing=1.05)


def spread(centres: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """The nearest centres (least squares) at which items of these sizes keep their order and do not overlap.

    Args:
        centres, sizes: of each item; centres ascend.
        low, high: range to keep, if the sizes fit into it.
    """
    before, blocks, total = [], list[tuple[float, int]](), 0.0
    for centre, size in zip(centres, sizes, strict=True):
        before.append(total + size / 2)
        total += size
        blocks.append((centre - before[-1], 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:  # neighbours that touch share their mean
            (first, n), (second, m) = blocks[-2:]
            blocks[-2:] = [((first * n + second * m) / (n + m), n + m)]
    starts = [min(max(start, low), max(high - total, low)) for start, number in blocks for _ in range(number)]
    return [start + middle for start, middle in zip(starts, before, strict=True)]


def clip(text: str, most: int) -> str:
    """The text, cut to a number of characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
