"""GVM-RAFT (arXiv 2505.02391) and CurES (arXiv 2510.01037): rollouts by the variance of the gradient, as far as known.

    GVM:    n_i proportional to G_i / sqrt(p_i + alpha / p_i^(beta - 1)),   alpha = 0.001, beta = 2; none for p_i = 0
    CurES:  n_i proportional to sigma_i,   sigma^2 = p (1-p)^2 E|g+|^2 + p^2 (1-p) E|g-|^2 - p^2 (1-p)^2 |g+ - g-|^2
            and prompts are drawn with probability proportional to exp(sqrt(p (1 - p)) / t)

Both measure gradient norms in a stage of their own before training, which no trainer here has. Left out, therefore:
the norms (all taken for 1, and the means of g+ and g- for equal, so that sigma^2 = p (1 - p)) and the stage; p is the
latest estimate. Our readings: t = 0.2; CurES draws the prompts of a step from four times as many, without
replacement; a prompt for which the formula says 0 gets the least count.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from knapsack_rl.allocator import KnapsackAllocator, Offer
from knapsack_rl.beliefs import Beliefs, Forecast
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rivals.shares import counts_from_shares, fixed_offer
from knapsack_rl.strategy import Batch, Draw, Request, Turn, fresh

ALPHA, BETA = 1e-3, 2.0


def gvm_rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """Rollouts in proportion to GVM's formula with gradient norms of 1."""
    return fixed_offer(counts_from_shares(gvm_shares(forecast.success_rates_P), budget, low, high))


def gvm_shares(success_rates_P: FloatArray) -> FloatArray:
    """1 / sqrt(p + alpha / p^(beta - 1)), 0 at p = 0; ``[P]``."""
    p = np.maximum(success_rates_P, 1e-12)
    shares_P: FloatArray = np.where(success_rates_P > 0, 1 / np.sqrt(p + ALPHA / p ** (BETA - 1)), 0.0)
    return shares_P


def cures_rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """Rollouts in proportion to CurES' sigma with gradient norms of 1."""
    return fixed_offer(counts_from_shares(_deviation(forecast.success_rates_P), budget, low, high))


class Cures:
    """Draws the prompts of a step by their deviation, and divides the budget by it."""

    POOL = 4

    def __init__(
        self, beliefs: Beliefs, seed: int, min_count: int = 2, max_count: int = 128, pool: int = POOL, t: float = 0.2
    ) -> None:
        """CurES' curriculum.

        Args:
            beliefs: what to estimate success rates with.
            seed: of the draw of prompts.
            min_count, max_count: limits on a prompt's rollouts.
            pool: how many times the step's prompts are drawn from.
            t: temperature of the draw.

        Raises:
            ValueError: a temperature that is not positive, a pool below 1, or limits that make no sense.
        """
        if t <= 0 or pool < 1:
            raise ValueError(f"t is {t} and pool {pool}: use a positive temperature and a pool of at least 1")
        self.allocator = KnapsackAllocator(beliefs, cures_rule, min_count, max_count)
        self.seed, self.pool, self.t = seed, pool, t

    def step(self, request: Request) -> Turn:
        """Draw the prompts, plan, draw the rollouts, learn, and train on all of it."""
        candidates = fresh(request, request.groups * self.pool)
        rates_P = self.allocator.beliefs.forecast(candidates, request.step).success_rates_P
        chosen = self._drawn(rates_P, request)
        plan = self.allocator.plan([candidates[i] for i in chosen], request.budget, request.step)
        outcomes = yield Draw(plan.prompt_ids, plan.counts_P, plan.success_rates_P, plan.strength_P)
        self.allocator.observe(outcomes)
        return Batch(outcomes)

    def save(self, path: Path) -> None:
        """Write the beliefs to a file, all or nothing."""
        self.allocator.save(path)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; on a failure nothing changes."""
        self.allocator.load(path)

    def _drawn(self, rates_P: FloatArray, request: Request) -> IntArray:
        """A draw without replacement: the largest sums of log weight and Gumbel noise."""
        noise_P = np.random.default_rng([self.seed, request.step]).gumbel(size=rates_P.size)
        order = np.argsort(-(_deviation(rates_P) / self.t + noise_P), kind="stable")
        drawn: IntArray = np.sort(order[: request.groups])
        return drawn


def _deviation(rates_P: FloatArray) -> FloatArray:
    deviation_P: FloatArray = np.sqrt(rates_P * (1 - rates_P))
    return deviation_P
