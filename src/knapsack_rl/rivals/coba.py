"""CoBA-RL (arXiv 2602.03048): a value that leans to easy prompts while the policy fails, and to hard ones later.

    V(n, p) = (1 - exp(-n p (1 - p) / tau)) * BetaPDF(p; alpha_t, kappa - alpha_t)

    F  = mean over the last steps of 1 - pass rate;   F~ = F if F > 1/2, else sigmoid(10 (F - 1/2))
    alpha_t = clip(1 + (kappa - 2) F~, 1, kappa - 1),   kappa = 11

The marginals fall geometrically, so the knapsack is exact, as their heap is (their Proposition 2.2). The pass rate of
a prompt is that of its latest visit; a prompt never seen counts as 1/2, and if nobody was seen all are alike. Rates
are kept within .01 of 0 and 1, as in their code: beyond, the density may be 0 everywhere.

Two variants, because the paper and the released code (Within-yao/CoBA-RL @aa6b834a, ``budget_allocators.py``) differ:

- `Coba` is the paper. Our readings: tau = 3, the least that the code uses; F is the mean over the last 3 steps, their
  class's default (their script: 1), and is kept over a resume, where theirs begins anew.
- `Coba(released=True)` is the code: only prompts with p between .05 and .99 compete, for 80 % of what the least
  counts leave (for less, down to 60 %, where fewer than half of the batch compete), with tau = 3 + 9 clip(var(p) /
  .1667, 0, 1) over those who compete; the rest goes to the hard by 1 - p, then to the middle, then to the easy, as
  far as there is room. What is left shrinks from prompt to prompt there while the weights' sum does not, so that of
  prompts alike the later ones get less: a slip of theirs that is kept. What their code drops goes evenly to whoever
  has room.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knapsack_rl.allocator import KnapsackAllocator, Offer
from knapsack_rl.beliefs import Forecast, PaperBeliefs
from knapsack_rl.limits import same_limits
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.rivals.shares import equal_offer, fixed_offer
from knapsack_rl.solution import checked_budget
from knapsack_rl.solver import solve

KAPPA, TAU = 11.0, 3.0
FAILURES_KEPT = 3
HARD, EASY = 0.05, 0.99


class Coba:
    """CoBA-RL's allocation, as in its paper or as in its released code."""

    def __init__(self, min_count: int = 2, max_count: int = 128, released: bool = False) -> None:
        """Nothing seen yet; ``released`` follows the code where it departs from the paper."""
        self.beliefs = PaperBeliefs(window=1, min_rewards=1)  # the mean of the latest visit
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
        """Learn the pass rates, and how much of the batch failed."""
        self._allocator.observe(outcomes)
        rates_P = outcomes.pass_rates_P[outcomes.attempts_P > 0]
        if rates_P.size:
            self.failures = [*self.failures, 1 - float(rates_P.mean())][-FAILURES_KEPT:]

    def save(self, path: Path) -> None:
        """Write everything learned to a file, all or nothing."""
        self.beliefs.table.beside = {"failures": np.array(self.failures)}
        self.beliefs.save(path)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; on a failure nothing changes."""
        self.beliefs.load(path)
        self.failures = [float(failure) for failure in self.beliefs.table.beside.get("failures", ())]

    def alpha(self) -> float:
        """The Beta density's first parameter, now."""
        return alpha_of(float(np.mean(self.failures)) if self.failures else 0.5)

    def _rule(self, forecast: Forecast, budget: int, low: int, high: int) -> Offer:
        rates_P = np.clip(forecast.success_rates_P, 0.01, 0.99)
        if not forecast.seen_P.any():
            return equal_offer(rates_P.size, budget)
        if self.released:
            return fixed_offer(released_counts(forecast.success_rates_P, self.alpha(), budget, low, high))

        def marginals(rows: IntArray, stop: int) -> FloatArray:
            return coba_marginals(rates_P[rows], self.alpha(), TAU, stop)

        return Offer(marginals, *same_limits(rates_P.size, low, high))


def alpha_of(failure: float) -> float:
    """The schedule: the more failure, the more weight on easy prompts."""
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
    """The counts that the released code would have planned; ``[P]``."""
    size = success_rates_P.size
    spare = checked_budget(budget, *same_limits(size, low, high)) - low * size
    counts_P = np.full(size, low, dtype=np.int64)
    competes_P = (success_rates_P >= HARD) & (success_rates_P <= EASY)
    for_them = min(int(spare * competing_share(competes_P)), int(competes_P.sum()) * (high - low))
    if competes_P.any():
        rates_P = np.clip(success_rates_P[competes_P], 0.01, 0.99)
        tau = TAU + 9 * float(np.clip(rates_P.var() / 0.1667, 0, 1))
        counts_P[competes_P] = solve(
            lambda rows, stop: coba_marginals(rates_P[rows], alpha, tau, stop),
            for_them + low * rates_P.size,
            *same_limits(rates_P.size, low, high),
        ).counts_P
    left = spare - for_them
    for group_P in (success_rates_P < HARD, competes_P, success_rates_P > EASY):
        left -= _give(counts_P, group_P, 1 - success_rates_P, left, high)
    while left > 0:
        left -= _give(counts_P, np.ones(size, dtype=np.bool_), np.ones(size), left, high)
    return counts_P


def competing_share(competes_P: BoolArray) -> float:
    """Share of the spare rollouts for those who compete: .8, falling to .6 as fewer than half of the batch do."""
    return 0.6 + 0.4 * min(float(competes_P.mean()), 0.5)


def _give(counts_P: IntArray, group_P: BoolArray, weights_P: FloatArray, amount: int, high: int) -> int:
    """Raise the counts of a group, in place, by weight, prompt after prompt, then evenly; returns what was given."""
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
