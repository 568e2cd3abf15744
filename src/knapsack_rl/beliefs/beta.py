"""Beta beliefs from each prompt's own successes and failures, with exponential decay, because the policy changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.prompt_store import PromptTable, TableBeliefs
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures, checked_step
from knapsack_rl.outcomes import Outcomes

# Default half-life in passes over the data, where the length of a pass is known: on the main job one, four and more
# passes reach the same reward, and a longer half-life finds more mixed groups (docs/log.md).
HALF_LIFE_PASSES = 4
# A smaller prior vanishes beside the counts: the rate becomes exactly 0 or 1, which no Beta belief has.
LEAST_PRIOR, MOST_PRIOR = 1e-6, 1e9


class BetaBeliefs(TableBeliefs):
    """Beta beliefs whose observations decay: the weight of an observation halves every ``half_life`` steps.

    alpha = prior + sum of 2^(-age / half_life) over successes, beta likewise over failures, age in steps. Decay depends
    on the step of an observation only, so late outcomes and groups observed in parts give the same belief in any order
    (up to rounding in single precision). Only the mean completion length depends on the order of arrival.

    Memory: 24 bytes per prompt and 5 to 13 for the index, plus one eighth of spare capacity.
    """

    COLUMNS: Mapping[str, DTypeLike] = {
        "successes": np.float32,
        "failures": np.float32,
        "tokens": np.float32,
        "step": np.int32,
    }

    def __init__(self, half_life: float = 64.0, prior: tuple[float, float] = (0.5, 0.5)) -> None:
        """Start without observations.

        Args:
            half_life: steps after which an observation counts half; 64 is about an epoch of the paper's runs.
            prior: alpha and beta of a prompt without observations; the default is Jeffreys' prior.

        Raises:
            ValueError: a half-life that is not positive and finite, or a prior out of range.
        """
        if not (0 < half_life < float("inf")):
            raise ValueError(f"half_life is {half_life}: it must be positive and finite")
        for value in prior:
            if not LEAST_PRIOR <= value <= MOST_PRIOR:
                raise ValueError(f"prior is {value}: it must be from {LEAST_PRIOR:g} to {MOST_PRIOR:g}")
        self.half_life, self.prior = float(half_life), prior
        self.table = PromptTable(self.COLUMNS)

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        """Forecast the success rates of these prompts at a step; features are ignored. Changes nothing."""
        with self.table.lock:
            return self._by_counts(prompt_ids, step)

    def _by_counts(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        rows = self.table.rows(prompt_ids)
        seen = rows >= 0
        known = rows[seen]
        decayed = self._decay(checked_step(step) - self.table["step"][known].astype(np.int64))
        counts = np.zeros((2, rows.size))
        counts[0, seen] = self.table["successes"][known] * decayed
        counts[1, seen] = self.table["failures"][known] * decayed
        alpha, beta = counts[0] + self.prior[0], counts[1] + self.prior[1]
        waited_P = self.table.steps_since_observed(rows, step)
        return Forecast(alpha / (alpha + beta), alpha + beta, seen, self.table.mean_tokens(rows), waited_P)

    def observe(self, outcomes: Outcomes) -> None:
        """Add the successes and failures of each group, decayed to the latest step in which the prompt was observed."""
        with self.table.lock:
            self._count(outcomes)

    def _count(self, outcomes: Outcomes) -> None:
        answered = np.flatnonzero(outcomes.attempts_P)
        if not answered.size:
            return
        ids = [outcomes.prompt_ids[i] for i in answered]
        rows, groups = np.unique(self.table.add(ids), return_inverse=True)
        table = self.table
        last = table["step"][rows]  # 0 for a new prompt, whose counts are 0
        latest = np.maximum(last, outcomes.step)
        old, new = self._decay(latest - last), self._decay(latest - outcomes.step)
        successes = outcomes.successes_P[answered]
        for name, counts in (("successes", successes), ("failures", outcomes.attempts_P[answered] - successes)):
            table[name][rows] = table[name][rows] * old + np.bincount(groups, weights=counts) * new
        table.observe_tokens(rows, groups, outcomes.mean_tokens_P[answered])
        table["step"][rows] = latest

    @property
    def header(self) -> Mapping[str, object]:
        """The kind of these beliefs. Half-life and prior are not restored from saved state."""
        return {"kind": "beta"}

    def _decay(self, steps: IntArray) -> FloatArray:
        """Weight of observations of this age, 2^(-steps / half_life); 1 for negative ages."""
        return np.exp2(-np.maximum(steps, 0) / self.half_life)
