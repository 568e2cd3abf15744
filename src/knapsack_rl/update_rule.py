"""Rules that value rollouts by the update they make under the loss in use (docs/value.md)."""

from __future__ import annotations

import numpy as np

from knapsack_rl.allocator import Offer, Rule
from knapsack_rl.beliefs import Forecast
from knapsack_rl.envelope import concave_envelope
from knapsack_rl.limits import same_limits
from knapsack_rl.notation import FloatArray
from knapsack_rl.solver import solve
from knapsack_rl.update_values import Gain, Update, UpdateValue, Weighting

# Prompts of which the price of noise is worked out, and how often: it settles within a percent or two.
SAMPLE, ROUNDS = 128, 4


def update_size_rule(
    gain: Gain = "shared",
    update: Update = "scaled",
    weighting: Weighting = "prompt",
    own_noise: float | None = None,
) -> Rule:
    """A rule that values n rollouts at gain(p) times the expected size of the update they make.

    Args:
        gain: what a unit of update gains: ``shared`` (1: prompts of the same skill), ``own`` (p (1-p): the prompt
            itself), ``root`` (between them), ``paper`` (p (1-p)^2).
        update: ``scaled`` advantages, ``unscaled`` ones, or ``mixed``: every mixed group counts as 1 (the paper).
        weighting: whether the loss weighs ``rollout`` or ``prompt`` alike.
        own_noise: None to value the signal alone; a number to value it against the noise of the gradient, of which this
            is the part along the prompt's own direction (`UpdateValue`). The price of noise is then the one at which
            signal / sqrt(noise) of the batch is greatest.

    Returns:
        ``(forecast, budget, low, high) -> Offer``, for `KnapsackAllocator`.
    """
    value = UpdateValue(gain, update, weighting, own_noise or 0.0)

    def rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
        rates_P, strength_P = forecast.success_rates_P, forecast.strength_P
        high, price = min(high, max(budget, 2)), 0.0
        if own_noise is not None:
            price, largest = noise_price(value, rates_P, strength_P, budget, low, high)
            # Room for prompts beyond the sample, and no wider tables than that.
            high = min(high, 2 * max(largest, -(-budget // rates_P.size)))
        marginals = value.marginals(rates_P, strength_P, low, high, price)
        return Offer(marginals, *same_limits(rates_P.size, low, high))

    return rule


def noise_price(
    value: UpdateValue, success_rates_P: FloatArray, strength_P: FloatArray, budget: int, low: int, high: int
) -> tuple[float, int]:
    """The lambda at which maximising S - lambda V maximises S / sqrt(V): S the signal of a batch, V its noise.

    At the maximum lambda = S / (2 V). It is found by planning at a lambda, taking S / (2 V) of the plan, and planning
    again, for a sample of the prompts with their share of the budget.

    Returns:
        lambda, at least 0 (0 where there is no noise), and the largest group of the last plan.
    """
    size = success_rates_P.size
    chosen = np.unique(np.linspace(0, size - 1, min(size, SAMPLE)).astype(np.int64))
    rates_P, evidence_P = success_rates_P[chosen], strength_P[chosen]
    limits = same_limits(chosen.size, low, high)
    share = int(np.clip(budget * chosen.size // size, max(low * chosen.size, 2), high * chosen.size))
    signals, noises = value.signals(rates_P, evidence_P, high), value.noises(rates_P, evidence_P, high)
    rows, price, largest = np.arange(chosen.size), 0.0, high
    for _ in range(ROUNDS):
        counts_P = solve(concave_envelope(signals - price * noises, low), share, *limits).counts_P
        noise = float(noises[rows, counts_P].sum())
        if noise <= 0:
            return 0.0, high
        price, largest = float(signals[rows, counts_P].sum()) / (2 * noise), int(counts_P.max())
    return price, largest
