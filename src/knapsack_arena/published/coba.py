"""CoBA-RL (arXiv 2602.03048): a value that favours easy prompts while the policy fails, and hard ones later.

    V(n, p) = (1 - exp(-n p (1 - p) / tau)) * BetaPDF(p; alpha_t, kappa - alpha_t)

    F  = mean over the last steps of 1 - pass rate;   F~ = F if F > 1/2, else sigmoid(10 (F - 1/2))
    alpha_t = clip(1 + (kappa - 2) F~, 1, kappa - 1),   kappa = 11

The marginals fall geometrically, so the knapsack is exact, as their heap is (their Proposition 2.2). The pass rate of
a prompt is that of its latest visit; a prompt never seen counts as 1/2, and if none was seen all get equal counts.
Rates are kept within .01 of 0 and 1, as in their code: beyond, the density may be 0 everywhere.

Two variants, because the paper and the released code (Within-yao/CoBA-RL @aa6b834a, ``budget_allocators.py``) differ:

- `Coba` is the paper. Our readings: tau = 3, the least that the code uses; F is the mean over the last 3 steps, their
  class's default (their script: 1), and is restored after a resume, where theirs starts empty.
- `Coba(released=True)` is the code: only prompts with p between .05 and .99 compete, for 80 % of what the least
  counts leave (for less, down to 60 %, where fewer than half of the batch compete), with tau = 3 + 9 clip(var(p) /
  .1667, 0, 1) over those that compete; the rest goes to the hard by 1 - p, then to the middle, then to the easy, as
  far as there is room. The remainder shrinks from prompt to prompt while the weights' sum does not, so that of equal
  prompts later ones get less: an error of theirs that is reproduced. Rollouts that their code drops are spread evenly
  over prompts with room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knapsack_arena.published.shares import equal_problem, fixed_problem
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.files import SavedToFile, State, check_kind, saved_array
from knapsack_rl.knapsack.limits import checked_budget, same_limits
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.rules import AllocationProblem

KAPPA, TAU = 11.0, 3.0
FAILURES_KEPT = 3
HARD, EASY = 0.05, 0.99


class Coba(SavedToFile):
    """CoBA-RL's allocation, as in its paper or as in its released code."""

    def __init__(self, min_count: int = 2, max_count: int = 128, released: bool = False) -> None:
        """A rule without evidence; ``released`` follows the code where it departs from the paper."""
        self.beliefs = WindowBeliefs(window=1, min_rewards=1)  # the mean of the latest visit
        self.released = released
        self.failures: list[float] = []  # of the last steps
        self._allocator = KnapsackAllocator(self.beliefs, self._rule, min_count, max_count)

    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        """Divide ``budget`` rollouts among the prompts.

        Raises:
            ValueError: no prompts, or a budget that the limits cannot meet.
        """
        return self._allocator.plan(prompt_ids, budget, step)

    def observe(self, outcomes: Outcomes) -> None:
        """Learn the pass rates, and the failure rate of the batch."""
        self._allocator.observe(outcomes)
        rates_P = outcomes.pass_rates_P[outcomes.attempts_P > 0]
        if rates_P.size:
            self.failures = [*self.failures, 1 - float(rates_P.mean())][-FAILURES_KEPT:]

    def state_dict(self) -> State:
        """The beliefs, and the failure rates of the last steps."""
        return {"kind": "coba-rl", "failures": np.array(self.failures), "beliefs": self.beliefs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another rule, or damaged.
        """
        check_kind(state, kind="coba-rl")
        failures = saved_array(state, "failures", np.float64, (None,))
        self.beliefs.load_state_dict(state.get("beliefs") or {})
        self.failures = failures.tolist()

    def alpha(self) -> float:
        """The current first parameter of the Beta density."""
        return alpha_of(float(np.mean(self.failures)) if self.failures else 0.5)

    def _rule(self, forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
        rates_P = np.clip(forecast.success_rates_P, 0.01, 0.99)
        if not forecast.seen_P.any():
            return equal_problem(rates_P.size, budget)
        if self.released:
            return fixed_problem(released_counts(forecast.success_rates_P, self.alpha(), budget, low, high))

        def marginals(rows: IntArray, stop: int) -> FloatArray:
            return coba_marginals(rates_P[rows], self.alpha(), TAU, stop)

        return AllocationProblem(marginals, *same_limits(rates_P.size, low, high))


def alpha_of(failure: float) -> float:
    """The schedule of alpha: a higher failure rate puts more weight on easy prompts."""
    bent = failure if failure > 0.5 else 1 / (1 + np.exp(-10 * (failure - 0.5)))
    return float(np.clip(1 + (KAPPA - 2) * bent, 1, KAPPA - 1))


def coba_marginals(success_rates_P: FloatArray, alpha: float, tau: float, stop: int) -> FloatArray:
    """V(n+1, p) - V(n, p), up to the density's constant; ``[P, stop]``."""
    p = success_rates_P[:, None]
    kept = np.exp(-p * (1 - p) / tau)
    density = p ** (alpha - 1) * (1 - p) ** (KAPPA - alpha - 1)
    marginals: FloatArray = density * (1 - kept) * kept ** np.arange(stop)
    return marginals


def released_counts(success_rates_P: FloatArray, alpha: float, budget: int, low: int, high: int) -> IntArray:
    """The counts that the released code plans; ``[P]``."""
    size = success_rates_P.size
    spare = checked_budget(budget, *same_limits(size, low, high)) - low * size
    counts_P = np.full(size, low, dtype=np.int64)
    competes_P = (success_rates_P >= HARD) & (success_rates_P <= EASY)
    for_competing = min(int(spare * competing_share(competes_P)), int(competes_P.sum()) * (high - low))
    if competes_P.any():
        rates_P = np.clip(success_rates_P[competes_P], 0.01, 0.99)
        tau = TAU + 9 * float(np.clip(rates_P.var() / 0.1667, 0, 1))
        counts_P[competes_P] = solve(
            lambda rows, stop: coba_marginals(rates_P[rows], alpha, tau, stop),
            for_competing + low * rates_P.size,
            *same_limits(rates_P.size, low, high),
        ).counts_P
    left = spare - for_competing
    for group_P in (success_rates_P < HARD, competes_P, success_rates_P > EASY):
        left -= _give(counts_P, group_P, 1 - success_rates_P, left, high)
    while left > 0:
        left -= _give(counts_P, np.ones(size, dtype=np.bool_), np.ones(size), left, high)
    return counts_P


def competing_share(competes_P: BoolArray) -> float:
    """Share of the spare rollouts for competing prompts: .8, down to .6 where less than half the batch does."""
    return 0.6 + 0.4 * min(float(competes_P.mean()), 0.5)


def _give(counts_P: IntArray, group_P: BoolArray, weights_P: FloatArray, amount: int, high: int) -> int:
    """Raise the counts of a group, in place, by weight, prompt after prompt, then evenly; returns the sum given."""
    open_ = np.flatnonzero(group_P & (counts_P < high))
    weights = np.clip(weights_P[open_], 1e-6, 1 - 1e-6)
    total, left = float(weights.sum()), amount
    for i, weight in zip(open_.tolist(), weights.tolist(), strict=True):
        part = min(int(left * weight / total), high - int(counts_P[i]))
        counts_P[i] += part
        left -= part
    open_ = open_[counts_P[open_] < high]
    if open_.size:
        parts = np.full(open_.size, left // open_.size)
        parts[: left % open_.size] += 1
        parts = np.minimum(parts, high - counts_P[open_])
        counts_P[open_] += parts
        left -= int(parts.sum())
    return amount - left
