"""Look before you spend: a few rollouts of many prompts first, the rest of the budget where they point.

An honest belief about most prompts is wide, and a plan made on it hedges: many middling groups. Two rollouts inside the
step, by the policy of the step, narrow it more than anything learned before. They are not lost, they belong to their
groups; what they cost is a second round of generation that has to wait for the first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from knapsack_rl.beliefs import Beliefs, Forecast
from knapsack_rl.groups import join
from knapsack_rl.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.solver import solve
from knapsack_rl.strategy import Batch, Draw, Request, Turn, fresh
from knapsack_rl.values import expected_knapsack_marginals, expected_knapsack_value


class PilotThenRest:
    """Pilots of the most promising candidates; then an exact knapsack for the rest, by beliefs that know the pilots."""

    def __init__(
        self, beliefs: Beliefs, pool: int = 4, pilot: int = 2, pilot_share: float = 0.5, max_count: int = 128
    ) -> None:
        """A strategy in two rounds.

        Args:
            beliefs: what to forecast success rates with.
            pool: how many times ``groups`` prompts it may choose from.
            pilot: rollouts of each candidate that is looked at.
            pilot_share: share of the budget for pilots.
            max_count: most rollouts of a prompt, its pilot included.

        Raises:
            ValueError: a number that makes no sense.
        """
        if pool < 1 or pilot < 2 or not 0 < pilot_share < 1 or max_count < pilot:
            raise ValueError(
                f"pool={pool}, pilot={pilot}, pilot_share={pilot_share}, max_count={max_count}: use a pool of at least "
                "1, a pilot of at least 2, a share between 0 and 1, and at least a pilot as the most of a prompt"
            )
        self.beliefs, self.pool, self.pilot, self.pilot_share = beliefs, pool, pilot, pilot_share
        self.max_count = max_count

    def step(self, request: Request) -> Turn:
        """Take candidates, look at the best, spend the rest, learn from all of it."""
        prompt_ids = fresh(request, request.groups * self.pool)
        forecast = self.beliefs.forecast(prompt_ids, request.step)
        chosen = self._worth_a_look(forecast, request)
        ids = tuple(prompt_ids[i] for i in chosen)
        expected = _only(forecast, chosen)
        pilots = yield Draw(ids, np.full(len(ids), self.pilot), expected.success_rates_P, expected.strength_P)
        rest_P = self._rest(expected, pilots, request.budget)
        drawn = pilots
        if rest_P.any():
            more = np.flatnonzero(rest_P)
            rest = yield Draw(tuple(ids[i] for i in more), rest_P[more])
            drawn = join(request.step, [pilots, rest])
        self.beliefs.observe(drawn)
        return Batch(drawn)

    def save(self, path: Path) -> None:
        """Write the beliefs to a file, all or nothing."""
        self.beliefs.save(path)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; on a failure nothing changes."""
        self.beliefs.load(path)

    def _worth_a_look(self, forecast: Forecast, request: Request) -> IntArray:
        """The candidates whose group of average size is expected to be worth most, as many as pilots can be paid."""
        affordable = max(int(request.budget * self.pilot_share) // self.pilot, 1)
        average = max(request.budget // request.groups, 2)
        values_P = expected_knapsack_value(forecast.alpha_P, forecast.beta_P, average)[:, -1]
        best: IntArray = np.sort(np.argsort(-values_P, kind="stable")[:affordable])
        return best

    def _rest(self, forecast: Forecast, pilots: Outcomes, budget: int) -> IntArray:
        """What each prompt gets beside its pilot: the knapsack over whole groups, by beliefs that know the pilots."""
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
        forecast.strength_P[chosen],
        forecast.seen_P[chosen],
        forecast.tokens_P[chosen],
        None if forecast.idle_P is None else forecast.idle_P[chosen],
    )
