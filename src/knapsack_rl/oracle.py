"""What a rule would do that is never wrong about success rates: the ceiling, where somebody knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from knapsack_rl.beliefs import Forecast
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes


class GivenBeliefs:
    """Rates that somebody else knows: the oracle of a simulator, or a pilot outside. Outcomes change nothing."""

    def __init__(self, rates: Callable[[Sequence[str]], FloatArray]) -> None:
        """Beliefs that ask ``rates`` for the success rates of prompts, ``[P]``, whenever a forecast is due."""
        self.rates = rates

    def forecast(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        """The given rates, as good as certain."""
        rates_P = self.rates(prompt_ids)
        size = len(prompt_ids)
        idle_P = np.zeros(size, dtype=np.int64)  # what is known needs no looking after
        return Forecast(rates_P, np.full(size, 1e9), np.ones(size, dtype=bool), np.full(size, np.nan), idle_P)

    def observe(self, outcomes: Outcomes) -> None:
        """Nothing to learn."""

    def save(self, path: Path) -> None:
        """Write an empty file: there is nothing to keep, and whoever saves looks for one."""
        path.touch()

    def load(self, path: Path) -> None:
        """Nothing to take up."""
