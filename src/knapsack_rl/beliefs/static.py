"""Forecasts that do not change: true rates of a simulator, or pass rates from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.files import SavedToFile
from knapsack_rl.notation import FloatArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes

# Pseudo-count of exact rates, in rollouts.
CERTAIN = 1e9


class StaticBeliefs(SavedToFile):
    """Forecast given success rates. Outcomes are ignored, and there is no state to save."""

    def __init__(self, known: Forecast | Callable[[Sequence[str]], FloatArray]) -> None:
        """Store the forecast or the function.

        Args:
            known: a forecast, which must have exactly the prompts of the plan in its order; or a function from prompt
                ids to success rates ``[P]``, called for every forecast, whose results count as exact (pseudo-count
                `CERTAIN`).
        """
        self.known = known

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        """Return the given forecast, or a forecast of the function's success rates."""
        if isinstance(self.known, Forecast):
            return self.known
        rates_P = self.known(prompt_ids)
        size = len(prompt_ids)
        known, unknown = np.ones(size, dtype=bool), np.full(size, np.nan)
        return Forecast(rates_P, np.full(size, CERTAIN), known, unknown, np.zeros(size, dtype=np.int64))

    def observe(self, outcomes: Outcomes) -> None:
        """Do nothing."""
