"""Two rounds: a few rollouts of many prompts, then the rest of the budget by beliefs that include their outcomes.

A calibrated belief about most prompts is wide, and a plan made on it hedges: many groups of average size. Two rollouts
of the current policy narrow it more than everything learned before. They are trained on as part of their groups; their
cost is a second, sequential round of generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from knapsack_arena.strategies.groups import join
from knapsack_arena.strategies.protocol import (
    Batch,
    FeatureSource,
    RolloutRequest,
    StepGenerator,
    StepSpec,
    take_unseen,
)
from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.files import SavedToFile, State
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.values import expected_knapsack_marginals, expected_knapsack_value


class PilotThenRest(SavedToFile):
    """Pilots of the prompts of highest expected value, then an exact knapsack for the rest of the budget."""

    def __init__(
        self,
        beliefs: Beliefs,
        pool: int = 4,
        pilot: int = 2,
        pilot_share: float = 0.5,
        max_count: int = 128,
        features: FeatureSource | None = None,
    ) -> None:
        """A strategy in two rounds.

        Args:
            beliefs: forecasts success rates.
            pool: prompts offered for each of the ``groups``.
            pilot: rollouts of each prompt in the first round.
            pilot_share: share of the budget for the first round.
            max_count: most rollouts of a prompt, its pilot included.
            features: what prompts look like, given to ``beliefs.forecast``; None to forecast without features.

        Raises:
            ValueError: a number out of range.
        """
        if pool < 1 or pilot < 2 or not 0 < pilot_share < 1 or max_count < pilot:
            raise ValueError(
                f"pool={pool}, pilot={pilot}, pilot_share={pilot_share}, max_count={max_count}: use a pool of at least "
                "1, a pilot of at least 2, a share between 0 and 1, and a max_count of at least the pilot"
            )
        self.beliefs, self.pool, self.pilot, self.pilot_share = beliefs, pool, pilot, pilot_share
        self.max_count, self.features = max_count, features

    def step(self, spec: StepSpec) -> StepGenerator:
        """Take prompts, generate pilots of the best, spend the rest, and learn from all of it."""
        prompt_ids = take_unseen(spec, spec.groups * self.pool)
        features = None if self.features is None else self.features(prompt_ids)
        forecast = self.beliefs.forecast(prompt_ids, spec.step, features)
        chosen = self._most_valuable(forecast, spec)
        ids = tuple(prompt_ids[i] for i in chosen)
        expected = _only(forecast, chosen)
        pilots = yield RolloutRequest(
            ids, np.full(len(ids), self.pilot), expected.success_rates_P, expected.pseudo_count_P
        )
        rest_P = self._rest(expected, pilots, spec.budget)
        generated = pilots
        if rest_P.any():
            more = np.flatnonzero(rest_P)
            rest = yield RolloutRequest(tuple(ids[i] for i in more), rest_P[more])
            generated = join(spec.step, [pilots, rest])
        self.beliefs.observe(replace(generated, features=None if features is None else features.take(chosen)))
        return Batch(generated)

    def state_dict(self) -> State:
        """The state of the beliefs."""
        return self.beliefs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the beliefs; on a failure nothing changes.

        Raises:
            BeliefFileError: state of other beliefs, or damaged.
        """
        self.beliefs.load_state_dict(state)

    def _most_valuable(self, forecast: Forecast, spec: StepSpec) -> IntArray:
        """Positions of the prompts whose group of average size has the highest expected value, one per paid pilot."""
        affordable = max(int(spec.budget * self.pilot_share) // self.pilot, 1)
        average = max(spec.budget // spec.groups, 2)
        values_P = expected_knapsack_value(forecast.alpha_P, forecast.beta_P, average)[:, -1]
        best: IntArray = np.sort(np.argsort(-values_P, kind="stable")[:affordable])
        return best

    def _rest(self, forecast: Forecast, pilots: Outcomes, budget: int) -> IntArray:
        """Rollouts beyond the pilot, ``[P]``: the knapsack over whole groups, by beliefs that include the pilots."""
        alpha_P = forecast.alpha_P + pilots.successes_P
        beta_P = forecast.beta_P + pilots.attempts_P - pilots.successes_P

        def marginals(rows: IntArray, stop: int) -> FloatArray:
            return expected_knapsack_marginals(alpha_P[rows], beta_P[rows], stop)

        limits = same_limits(alpha_P.size, self.pilot, self.max_count)
        counts_P = solve(marginals, min(budget, int(limits[1].sum())), *limits).counts_P
        rest_P: IntArray = counts_P - self.pilot
        return rest_P


def _only(forecast: Forecast, chosen: IntArray) -> Forecast:
    """The forecast of some of the prompts."""
    return Forecast(
        forecast.success_rates_P[chosen],
        forecast.pseudo_count_P[chosen],
        forecast.seen_P[chosen],
        forecast.tokens_P[chosen],
        None if forecast.steps_since_observed_P is None else forecast.steps_since_observed_P[chosen],
    )
