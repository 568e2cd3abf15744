"""The reward function that verl's reward loop calls."""

from __future__ import annotations

from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> float:
    """1 if the first character lies below the limit (a lone byte above 127 decodes to U+FFFD)."""
    return float(bool(solution_str) and ord(solution_str[0]) < int(ground_truth))
