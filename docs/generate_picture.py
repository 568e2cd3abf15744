"""Draw docs/images/budget*.svg, the picture of README and of the first page: one budget, spent equally and by plan.

    python docs/generate_picture.py

Twelve prompts with records of 16 rollouts each; 96 rollouts to spend. The counts are those of the library.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from knapsack_rl import BetaBeliefs, KnapsackAllocator, Outcomes

mpl.use("svg")
import matplotlib.pyplot as plt

SUCCESSES = [0, 0, 0, 1, 2, 4, 6, 9, 12, 15, 16, 16]
EVERY, BUDGET = 16, 96
MIXED, ALIKE, INK = "#2563a8", "#c9c5bd", "#33312e"


def plan_counts() -> np.ndarray:
    """Counts that the expected value under Beta beliefs gives after these records; ``[P]``."""
    ids = [f"prompt {i}" for i in range(len(SUCCESSES))]
    allocator = KnapsackAllocator(BetaBeliefs(half_life=1e9))
    records = [(prompt, [1.0] * s + [0.0] * (EVERY - s)) for prompt, s in zip(ids, SUCCESSES, strict=True)]
    allocator.observe(Outcomes.of_groups(0, records))
    return allocator.plan(ids, BUDGET, step=0).counts_P


def draw(counts: np.ndarray, title: str, axes: plt.Axes) -> None:
    """Draw one row of stacked rollouts; the darker, the more probable is a mixed group."""
    rates = np.array(SUCCESSES) / EVERY
    mixed = 1 - rates**counts - (1 - rates) ** counts
    for i, (count, share) in enumerate(zip(counts, mixed, strict=True)):
        colour = [
            (1 - share) * a + share * b for a, b in zip(mpl.colors.to_rgb(ALIKE), mpl.colors.to_rgb(MIXED), strict=True)
        ]
        for level in range(count):
            axes.add_patch(plt.Rectangle((i - 0.4, level + 0.08), 0.8, 0.84, color=colour, lw=0))
        axes.text(i, count + 0.35, str(count), ha="center", va="bottom", fontsize=9, color=INK)
    axes.set_xlim(-0.7, len(counts) - 0.3)
    axes.set_ylim(0, 22)
    axes.set_xticks(range(len(counts)), [f"{s}/{EVERY}" for s in SUCCESSES], fontsize=8, color=INK)
    axes.set_yticks([])
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel("solved so far", fontsize=9, color=INK)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(ALIKE)


def main() -> None:
    """Draw both rows, side by side in one file, and each in a file of its own for pages that are read on a phone."""
    plt.rcParams |= {"svg.hashsalt": "knapsack-rl", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    rows = {
        "uniform": (np.full(len(SUCCESSES), BUDGET // len(SUCCESSES)), "GRPO: 96 rollouts, 8 for every prompt"),
        "plan": (plan_counts(), "knapsack-rl: the same 96 rollouts, divided by a plan"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for row, each in zip(rows.values(), axes, strict=True):
        draw(*row, each)
    _save(figure, "budget")
    for name, row in rows.items():
        figure, alone = plt.subplots(figsize=(4.6, 2.9), layout="constrained")
        draw(*row, alone)
        _save(figure, f"budget-{name}")


def _save(figure: plt.Figure, name: str) -> None:
    figure.patch.set_facecolor("white")
    figure.savefig(Path(__file__).parent / "images" / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
