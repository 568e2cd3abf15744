"""Metrics of a replayed step: what the rule forecast, what the record lets expect of its plan, and what it drew.

"Expected" is a mean over all draws of as many recorded rollouts, without the noise of the one seeded draw ("realised").
Both judge a prompt by recorded rollouts that the rule had not seen when it planned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from knapsack_rl.metrics import STATUSES, mean, mixed_probability, share, status
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.values import expected_knapsack_value, information_gain, knapsack_value

BINS = 10
NO_PLAN: Mapping[str, float] = MappingProxyType({"overlap": math.nan, "same_plan": math.nan})
# Metrics averaged over forecasts, not over steps: name -> metric that counts the forecasts.
_WEIGHTED = {"brier_mixed": "forecasts_mixed", "brier_success": "forecasts"}


@dataclass(frozen=True, eq=False)
class ReplayedStep:
    """One step of one rule, over every prompt it took or drew.

    Attributes:
        available: the recorded rollouts that it could have drawn, ``[P]`` groups.
        requested_P: rollouts requested, over all rounds, ``[P]``.
        drawn: the rollouts it received.
        success_rates_P, pseudo_count_P: its forecast when it first drew each prompt, ``[P]``; NaN where it made none. A
            point estimate has an infinite pseudo-count.
        rounds: sequential rounds of generation.
        trained: rollouts it trains on.
    """

    available: Outcomes
    requested_P: IntArray
    drawn: Outcomes
    success_rates_P: FloatArray
    pseudo_count_P: FloatArray
    rounds: int
    trained: int


@dataclass(frozen=True, eq=False)
class StepMetrics:
    """Metrics of one rule in one step.

    Attributes:
        values: by name, as documented in docs/replay.md; NaN where a metric is undefined.
        requested_B, prompts_B: rollouts requested, and prompts, by recorded pass rate (`metrics.STATUSES`), ``[5]``.
        calibration_BC: by tenth of the forecast: prompts, sum of forecasts, sum of recorded pass rates, ``[10, 3]``.
    """

    values: dict[str, float]
    requested_B: FloatArray
    prompts_B: FloatArray
    calibration_BC: FloatArray


def measure_step(step: ReplayedStep, agreement: Mapping[str, float] = NO_PLAN) -> StepMetrics:
    """Compute the metrics of a replayed step.

    Args:
        step: the step.
        agreement: `plan_agreement` with the recorded plan, where there is one.
    """
    available, drawn, requested_P = step.available, step.drawn, step.requested_P
    gain_P = np.nan_to_num(information_gain(available.pass_rates_P))
    mixed_P = drawn.mixed_P
    values = {
        "rounds": float(step.rounds),
        "prompts": float(np.count_nonzero(requested_P)),
        "largest": float(requested_P.max(initial=0)),
        "rollouts": float(requested_P.sum()),
        "short": float((requested_P - drawn.counts_P).sum()),
        "trained": float(step.trained),
        "tokens": _tokens(available, requested_P),
        "value_realised": float(gain_P[mixed_P].sum()),
        "mixed_prompts_realised": float(mixed_P.sum()),
        "mixed_rollouts_realised": float(drawn.counts_P[mixed_P].sum()),
        "zero_gradient_rollouts": float(drawn.counts_P[~mixed_P].sum()),
        **_expected(step),
        **_forecast(step),
        **agreement,
    }
    level_P = status(available.pass_rates_P)
    known = level_P >= 0
    requested_B = np.bincount(level_P[known], requested_P[known], minlength=len(STATUSES)).astype(np.float64)
    prompts_B = np.bincount(level_P[known], minlength=len(STATUSES)).astype(np.float64)
    return StepMetrics(values, requested_B, prompts_B, _calibration(step))


def plan_agreement(requested_P: IntArray, planned_P: IntArray) -> dict[str, float]:
    """Compare a plan with the recorded one over all prompts: share of rollouts in common, and equality of the two."""
    overlap = float(np.minimum(requested_P, planned_P).sum() / max(planned_P.sum(), requested_P.sum(), 1))
    return {"overlap": overlap, "same_plan": float((requested_P == planned_P).all())}


def recorded_mixed_probability(recorded: Outcomes, counts_P: IntArray) -> FloatArray:
    """Probability that n of a prompt's recorded rollouts, drawn without replacement, differ in reward; ``[P]``.

    With m_l of G rollouts at the l-th of L different rewards, and a without an answer, for n <= G:

        1 - sum_l C(m_l + a, n) / C(G, n) + (L - 1) C(a, n) / C(G, n)

    For two rewards and a = 0 this is the unbiased estimate (U-statistic) of 1 - p^n - (1-p)^n. For n > G no unbiased
    estimate exists: ((m_l + a) / G)^n replaces the ratios of binomials. That estimate is too low, and 0 for a group
    whose rewards are all equal.

    Args:
        recorded: recorded rollouts, ``[P]`` groups.
        counts_P: n, ``[P]``; 0 and 1 are never mixed.

    Returns:
        Probabilities ``[P]``; 0 for a prompt without recorded rollouts.
    """
    size_P, silent_P = recorded.counts_P, recorded.counts_P - recorded.attempts_P
    group_L, size_L = _levels(recorded)
    same_L = _all_from(size_L + silent_P[group_L], size_P[group_L], counts_P[group_L])
    levels_P = np.bincount(group_L, minlength=size_P.size)
    none_P = _all_from(silent_P, size_P, counts_P)
    same_P = np.bincount(group_L, weights=same_L, minlength=size_P.size) - (levels_P - 1) * none_P
    return np.where(size_P > 0, np.clip(1 - same_P, 0, 1), 0.0)


def recorded_values(recorded: Outcomes, counts_P: IntArray) -> FloatArray:
    """Estimate the paper's value of n rollouts, Value(n, p) = (1 - p^n - (1-p)^n) p (1-p)^2, from recorded ones.

    With k successes in G answers, and n + 3 <= G, the unbiased estimate replaces each moment p^x (1-p)^y by the share
    of ordered draws of x successes and y failures (three draws for the gain, n of the others for the mixture):

        k (G-k) (G-k-1) / (G (G-1) (G-2)) * (1 - C(k-1, n) / C(G-3, n) - C(G-k-2, n) / C(G-3, n))

    With fewer answers no unbiased estimate exists: the value at the recorded pass rate, Value(n, k/G), replaces it.

    Args:
        recorded: recorded rollouts, ``[P]`` groups.
        counts_P: n, ``[P]``.

    Returns:
        Values ``[P]``; 0 for a prompt without a recorded answer, and for n below 2.
    """
    k, size = recorded.successes_P, recorded.attempts_P
    failures, others = size - k, np.maximum(size - 3, 0)
    unbiased = counts_P <= size - 3
    gain_P = k * failures * (failures - 1) / np.maximum(size * (size - 1) * (size - 2), 1)
    drawn = np.where(unbiased, counts_P, 0)
    same_P = _all_from(np.maximum(k - 1, 0), others, drawn) + _all_from(np.maximum(failures - 2, 0), others, drawn)
    plug_in_P = _at_counts(knapsack_value(np.nan_to_num(recorded.pass_rates_P), int(counts_P.max(initial=0))), counts_P)
    return np.where(unbiased & (counts_P >= 2), gain_P * (1 - same_P), plug_in_P)


def _levels(recorded: Outcomes) -> tuple[IntArray, IntArray]:
    """Index of the group, and number of rollouts, of every distinct reward of every group; each ``[L]``."""
    group, reward = recorded.group_PG[recorded.answered_PG], recorded.rewards_PG[recorded.answered_PG]
    order = np.lexsort((reward, group))
    group, reward = group[order], reward[order]
    new = np.ones(group.size, dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (reward[1:] != reward[:-1])
    first = np.flatnonzero(new)
    return group[first], np.diff(np.append(first, group.size))


def _all_from(part: IntArray, whole: IntArray, drawn: IntArray) -> FloatArray:
    """Probability that all of n draws lie in a part of the whole: without replacement, or with it if n exceeds it."""
    fraction = part / np.maximum(whole, 1)
    chance = np.where(drawn > whole, fraction**drawn, 1.0)
    fits = drawn <= whole
    for k in range(int(drawn[fits].max(initial=0))):
        factor = np.maximum(part - k, 0) / np.maximum(whole - k, 1)
        chance = np.where(fits & (k < drawn), chance * factor, chance)
    return chance


def believed_values(rates_P: FloatArray, pseudo_count_P: FloatArray, counts_P: IntArray) -> FloatArray:
    """The paper's value of n rollouts: expected under Beta beliefs, at the rate itself for point estimates; ``[P]``.

    A belief with rate 0 or 1, which the paper's estimator can return, is a point estimate too.
    """
    high = int(counts_P.max(initial=0))
    beta = np.isfinite(pseudo_count_P) & (rates_P > 0) & (rates_P < 1)
    values_P_N = np.empty((rates_P.size, high + 1))
    values_P_N[~beta] = knapsack_value(rates_P[~beta], high)
    alpha_P = rates_P[beta] * pseudo_count_P[beta]
    values_P_N[beta] = expected_knapsack_value(alpha_P, pseudo_count_P[beta] - alpha_P, high)
    return _at_counts(values_P_N, counts_P)


def _at_counts(values_P_N: FloatArray, counts_P: IntArray) -> FloatArray:
    """Each prompt's value at its own count, ``[P]``."""
    values_P: FloatArray = values_P_N[np.arange(counts_P.size), counts_P]
    return values_P


def _expected(step: ReplayedStep) -> dict[str, float]:
    """Means over all draws; NaN for several rounds, whose counts depend on the draw."""
    names = ("value_expected", "mixed_prompts_expected", "mixed_rollouts_expected")
    if step.rounds > 1:
        return dict.fromkeys(names, math.nan)
    mixed_P = recorded_mixed_probability(step.available, step.requested_P)
    value = float(recorded_values(step.available, step.requested_P).sum())
    return dict(zip(names, (value, float(mixed_P.sum()), float((mixed_P * step.requested_P).sum())), strict=True))


def _forecast(step: ReplayedStep) -> dict[str, float]:
    """Value and mixed groups by the rule's own forecasts, and the Brier scores of these."""
    known_P = ~np.isnan(step.success_rates_P) & (step.pseudo_count_P > 0)
    rates_P, pseudo_count_P = step.success_rates_P[known_P], step.pseudo_count_P[known_P]
    observed_P = step.available.pass_rates_P[known_P]
    error_P = observed_P * (1 - rates_P) ** 2 + (1 - observed_P) * rates_P**2
    metrics = {"forecasts": float(np.count_nonzero(~np.isnan(error_P))), "brier_success": mean(error_P)}
    if step.rounds > 1 or np.isnan(step.success_rates_P).all():
        unknown = dict.fromkeys(("value_believed", "mixed_prompts_believed", "brier_mixed"), math.nan)
        return metrics | {"forecasts_mixed": 0.0} | unknown
    drawn, requested_P = step.drawn, step.requested_P[known_P]
    attempts_P = drawn.attempts_P[known_P]
    answered_P = attempts_P > 0
    some_P = ((drawn.successes_P > 0) & (drawn.successes_P < drawn.attempts_P))[known_P]
    predicted_P = mixed_probability(rates_P, pseudo_count_P, attempts_P)[answered_P]
    return metrics | {
        "forecasts_mixed": float(predicted_P.size),
        "value_believed": float(believed_values(rates_P, pseudo_count_P, requested_P).sum()),
        "mixed_prompts_believed": float(mixed_probability(rates_P, pseudo_count_P, requested_P).sum()),
        "brier_mixed": mean((predicted_P - some_P[answered_P]) ** 2),
    }


def _tokens(available: Outcomes, requested_P: IntArray) -> float:
    """Expected tokens of the requested rollouts, at the recorded mean length of each prompt (else of all)."""
    if available.tokens_PG is None or not available.tokens_PG.size:
        return math.nan
    lengths_P = available.mean_tokens_P
    return float((np.where(np.isnan(lengths_P), available.tokens_PG.mean(), lengths_P) * requested_P).sum())


def _calibration(step: ReplayedStep) -> FloatArray:
    observed_P = step.available.pass_rates_P
    known = ~np.isnan(step.success_rates_P) & (step.pseudo_count_P > 0) & ~np.isnan(observed_P)
    forecast, observed = step.success_rates_P[known], observed_P[known]
    bins = np.minimum((forecast * BINS).astype(np.int64), BINS - 1)
    columns = (np.ones(forecast.size), forecast, observed)
    return np.stack([np.bincount(bins, weights=column, minlength=BINS) for column in columns], axis=1)


class MetricAverager:
    """Averages a rule's metrics over its steps, in constant memory."""

    def __init__(self) -> None:
        """Averages of no step."""
        self.steps = 0
        self._sums: dict[str, float] = {}
        self._weights = dict.fromkeys(_WEIGHTED, 0.0)
        self._largest = 0.0
        self._requested_B, self._prompts_B = np.zeros((2, len(STATUSES)))
        self._calibration_BC = np.zeros((BINS, 3))

    def add(self, metrics: StepMetrics) -> None:
        """Add a step."""
        self.steps += 1
        for name, value in metrics.values.items():
            weight = 1.0
            if name in _WEIGHTED:
                weight = 0.0 if math.isnan(value) else metrics.values[_WEIGHTED[name]]
                self._weights[name] += weight
            self._sums[name] = self._sums.get(name, 0.0) + (value * weight if weight else 0.0)
        self._largest = max(self._largest, metrics.values["largest"])
        self._requested_B += metrics.requested_B
        self._prompts_B += metrics.prompts_B
        self._calibration_BC += metrics.calibration_BC

    def means(self) -> dict[str, float]:
        """Means per step; Brier scores per forecast; ``largest`` is the maximum. Empty without a step."""
        if not self.steps:
            return {}
        means = {name: share(total, self._weights.get(name, self.steps)) for name, total in self._sums.items()}
        drawn = self._sums["rollouts"] - self._sums["short"]
        return means | {
            "largest": self._largest,
            "frac_rollouts_mixed": share(self._sums["mixed_rollouts_realised"], drawn),
            "frac_short": share(self._sums["short"], self._sums["rollouts"]),
        }

    def counts_by_status(self) -> dict[str, float]:
        """Mean rollouts requested for a prompt, by its recorded pass rate; NaN for a level without prompts."""
        pairs = zip(STATUSES, self._requested_B.tolist(), self._prompts_B.tolist(), strict=True)
        return {level: share(requested, prompts) for level, requested, prompts in pairs}

    def calibration(self) -> list[dict[str, float]]:
        """By tenth of the forecast that occurs: prompts, their mean forecast, their mean recorded pass rate."""
        return [
            {"prompts": prompts, "forecast": forecast / prompts, "observed": observed / prompts}
            for prompts, forecast, observed in self._calibration_BC.tolist()
            if prompts
        ]
