"""The commands that this package adds to `knapsack-rl`, found by an entry point."""

from __future__ import annotations

COMMANDS = {
    "replay": ("knapsack_arena.replay.command", "arena", "try rules on recorded rollouts: a trace, or a table"),
    "compare": (
        "knapsack_arena.compare.command",
        "arena",
        "run rules side by side on simulated policies, at the same budget",
    ),
    "lab": (
        "knapsack_arena.lab.command",
        "trl,arena",
        "run rules side by side on small language models whose true success rates are known",
    ),
}
