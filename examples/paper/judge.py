"""verl's reward: math-verify, the judge of the TRL run and of the evaluation too.

verl calls reward functions outside the main thread, where math-verify's own limit of time has no effect. Its version in
verl runs in a process of its own, and is used here. Needs math-verify in verl's environment.
"""

from __future__ import annotations

from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> float:
    """1.0 if the response has the right answer, else 0.0, for every data set; verl itself has no judge for some."""
    from verl.utils.reward_score import math_verify

    return float(math_verify.compute_score(solution_str, ground_truth))
