"""Sums over the steps of a rule: nothing of a step is kept but what it adds."""

from __future__ import annotations

import math

import numpy as np

from knapsack_rl.metrics import STATUSES
from knapsack_rl.replay.score import BINS, Score

# Means over forecasts, not over steps: (figure, the figure that says over how many).
_WEIGHTED = {"brier_mixed": "forecasts_mixed", "brier_success": "forecasts"}


class Tally:
    """What a rule's steps came to."""

    def __init__(self) -> None:
        """No step yet."""
        self.steps = 0
        self._sums: dict[str, float] = {}
        self._weights = dict.fromkeys(_WEIGHTED, 0.0)
        self._largest = 0.0
        self._asked_B, self._prompts_B = np.zeros((2, len(STATUSES)))
        self._calibration_BC = np.zeros((BINS, 3))

    def add(self, score: Score) -> None:
        """Take in a step."""
        self.steps += 1
        for name, value in score.figures.items():
            weight = 1.0
            if name in _WEIGHTED:
                weight = 0.0 if math.isnan(value) else score.figures[_WEIGHTED[name]]
                self._weights[name] += weight
            self._sums[name] = self._sums.get(name, 0.0) + (value * weight if weight else 0.0)
        self._largest = max(self._largest, score.figures["largest"])
        self._asked_B += score.asked_B
        self._prompts_B += score.prompts_B
        self._calibration_BC += score.calibration_BC

    def means(self) -> dict[str, float]:
        """Figures per step; Brier scores per forecast; the largest group of all. Empty without a step."""
        if not self.steps:
            return {}
        means = {name: _share(total, self._weights.get(name, self.steps)) for name, total in self._sums.items()}
        got = self._sums["rollouts"] - self._sums["short"]
        return means | {
            "largest": self._largest,
            "frac_rollouts_mixed": _share(self._sums["mixed_rollouts_realised"], got),
            "frac_short": _share(self._sums["short"], self._sums["rollouts"]),
        }

    def counts_by_status(self) -> dict[str, float]:
        """Mean rollouts asked for a prompt, by its recorded pass rate; NaN where there was no such prompt."""
        pairs = zip(STATUSES, self._asked_B.tolist(), self._prompts_B.tolist(), strict=True)
        return {status: _share(asked, prompts) for status, asked, prompts in pairs}

    def calibration(self) -> list[dict[str, float]]:
        """By forecast, in tenths that occur: prompts, their mean forecast, their mean recorded pass rate."""
        return [
            {"prompts": prompts, "forecast": forecast / prompts, "observed": observed / prompts}
            for prompts, forecast, observed in self._calibration_BC.tolist()
            if prompts
        ]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
