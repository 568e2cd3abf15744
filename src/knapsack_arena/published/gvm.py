"""GVM-RAFT (arXiv 2505.02391) and CurES (arXiv 2510.01037): rollouts by the estimated variance of the gradient.

    GVM:    n_i proportional to G_i / sqrt(p_i + alpha / p_i^(beta - 1)),   alpha = 0.001, beta = 2; none for p_i = 0
    CurES:  n_i proportional to sigma_i,   sigma^2 = p (1-p)^2 E|g+|^2 + p^2 (1-p) E|g-|^2 - p^2 (1-p)^2 |g+ - g-|^2
            and prompts are sampled with probability proportional to exp(sqrt(p (1 - p)) / t)

Both measure gradient norms in a separate stage before training, which no trainer here has. Left out, therefore: the
norms (all set to 1, and the means of g+ and g- equal, so that sigma^2 = p (1 - p)) and the stage; p is the latest
estimate, where CurES keeps the counts of its profile. Left out too is the sampling of prompts: the released code
(ZexuSun/CurES) has t = 100 (accepted + 1), so no prompt is more than 1.005 times as likely as another, and any uniform
sampler does the same. A prompt with a share of 0 gets the least count.
"""

from __future__ import annotations

import numpy as np

from knapsack_arena.published.shares import counts_from_shares, fixed_problem
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.notation import FloatArray
from knapsack_rl.rules import AllocationProblem

ALPHA, BETA = 1e-3, 2.0


def gvm_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Rollouts in proportion to GVM's formula with gradient norms of 1."""
    return fixed_problem(counts_from_shares(gvm_shares(forecast.success_rates_P), budget, low, high))


def gvm_shares(success_rates_P: FloatArray) -> FloatArray:
    """1 / sqrt(p + alpha / p^(beta - 1)), 0 at p = 0; ``[P]``."""
    p = np.maximum(success_rates_P, 1e-12)
    shares_P: FloatArray = np.where(success_rates_P > 0, 1 / np.sqrt(p + ALPHA / p ** (BETA - 1)), 0.0)
    return shares_P


def cures_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Rollouts in proportion to CurES' sigma with gradient norms of 1."""
    return fixed_problem(counts_from_shares(_deviation(forecast.success_rates_P), budget, low, high))


def _deviation(rates_P: FloatArray) -> FloatArray:
    deviation_P: FloatArray = np.sqrt(rates_P * (1 - rates_P))
    return deviation_P
