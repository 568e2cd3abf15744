"""What a step was worth: what a rule expected, what the record says it could expect, and what it was dealt.

"Expected" is a mean over all ways to draw as many rollouts from those recorded, so it has none of the noise of one draw
("realised"). Both judge a prompt by recorded rollouts that the rule had not seen when it decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from knapsack_rl.metrics import STATUSES, mixed_probability, status
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.replay.seat import Hand
from knapsack_rl.values import expected_knapsack_value, information_gain, knapsack_value

BINS = 10
NO_PLAN: Mapping[str, float] = MappingProxyType({"overlap": float("nan"), "same_plan": float("nan")})


@dataclass(frozen=True, eq=False)
class Score:
    """One rule, one step.

    Attributes:
        figures: numbers by name; docs/replay.md says what each means. NaN is what cannot be known.
        asked_B, prompts_B: rollouts asked for and prompts, by recorded pass rate (`metrics.STATUSES`), ``[5]``.
        calibration_BC: by forecast, in tenths: prompts, sum of forecasts, sum of recorded pass rates, ``[10, 3]``.
    """

    figures: dict[str, float]
    asked_B: FloatArray
    prompts_B: FloatArray
    calibration_BC: FloatArray


def score(hand: Hand, agreement: Mapping[str, float] = NO_PLAN) -> Score:
    """Judge a rule's step.

    Args:
        hand: what it did.
        agreement: how far that is what was really planned (`agreement`), where there was a plan.
    """
    pool, seen = hand.pool, hand.seen
    gain_P = np.nan_to_num(information_gain(pool.pass_rates_P))
    mixed_P = seen.mixed_P
    figures = {
        "rounds": float(hand.rounds),
        "prompts": float(np.count_nonzero(hand.asked_P)),
        "largest": float(hand.asked_P.max(initial=0)),
        "rollouts": float(hand.asked_P.sum()),
        "short": float((hand.asked_P - seen.counts_P).sum()),
        "trained": float(hand.trained),
        "tokens": _tokens(pool, hand.asked_P),
        "value_realised": float(gain_P[mixed_P].sum()),
        "mixed_prompts_realised": float(mixed_P.sum()),
        "mixed_rollouts_realised": float(seen.counts_P[mixed_P].sum()),
        "dead_rollouts": float(seen.counts_P[~mixed_P].sum()),
        **_foreseeable(hand),
        **_foresight(hand),
        **agreement,
    }
    level_P = status(pool.pass_rates_P)
    known = level_P >= 0
    asked_B = np.bincount(level_P[known], hand.asked_P[known], minlength=len(STATUSES)).astype(np.float64)
    prompts_B = np.bincount(level_P[known], minlength=len(STATUSES)).astype(np.float64)
    return Score(figures, asked_B, prompts_B, _calibration(hand))


def mixed_chance(pool: Outcomes, counts_P: IntArray) -> FloatArray:
    """Chance that n of a prompt's recorded rollouts, drawn at random, do not all have the same reward.

    With m_l of G rollouts at the l-th of L different rewards, and a without an answer, for n <= G:

        1 - sum_l C(m_l + a, n) / C(G, n) + (L - 1) C(a, n) / C(G, n)

    For two rewards and a = 0 this is the unbiased estimate of 1 - p^n - (1-p)^n (a U-statistic: that is its mean over
    the G rollouts, whatever p is). Beyond G there is none, and nothing to draw: shares take the place of the ratios of
    binomials, ((m_l + a) / G)^n, which is too low, and 0 for a group that never differed.

    Args:
        pool: recorded rollouts, ``[P]`` groups.
        counts_P: n, ``[P]``; 0 and 1 are never mixed.

    Returns:
        Chances ``[P]``; 0 for a prompt of which nothing is recorded.
    """
    size_P, silent_P = pool.counts_P, pool.counts_P - pool.attempts_P
    group_L, size_L = _levels(pool)
    same_L = _all_from(size_L + silent_P[group_L], size_P[group_L], counts_P[group_L])
    levels_P = np.bincount(group_L, minlength=size_P.size)
    none_P = _all_from(silent_P, size_P, counts_P)
    same_P = np.bincount(group_L, weights=same_L, minlength=size_P.size) - (levels_P - 1) * none_P
    return np.where(size_P > 0, np.clip(1 - same_P, 0, 1), 0.0)


def recorded_values(pool: Outcomes, counts_P: IntArray) -> FloatArray:
    """The paper's value of n rollouts, Value(n, p) = (1 - p^n - (1-p)^n) p (1-p)^2, as the recorded rollouts tell it.

    With k successes in G answers, and n + 3 <= G, the unbiased estimate (each moment p^x (1-p)^y becomes the share of
    ordered draws of x successes and y failures; what is left after the three of the gain says whether n are mixed):

        k (G-k) (G-k-1) / (G (G-1) (G-2)) * (1 - C(k-1, n) / C(G-3, n) - C(G-k-2, n) / C(G-3, n))

    With fewer answers there is none: then the value at the recorded pass rate, Value(n, k/G).

    Args:
        pool: recorded rollouts, ``[P]`` groups.
        counts_P: n, ``[P]``.

    Returns:
        Values ``[P]``; 0 for a prompt without a recorded answer, and for n below 2.
    """
    k, size = pool.successes_P, pool.attempts_P
    failures, others = size - k, np.maximum(size - 3, 0)
    unbiased = counts_P <= size - 3
    gain_P = k * failures * (failures - 1) / np.maximum(size * (size - 1) * (size - 2), 1)
    drawn = np.where(unbiased, counts_P, 0)
    same_P = _all_from(np.maximum(k - 1, 0), others, drawn) + _all_from(np.maximum(failures - 2, 0), others, drawn)
    plug_in_P = _at_counts(knapsack_value(np.nan_to_num(pool.pass_rates_P), int(counts_P.max(initial=0))), counts_P)
    return np.where(unbiased & (counts_P >= 2), gain_P * (1 - same_P), plug_in_P)


def _levels(pool: Outcomes) -> tuple[IntArray, IntArray]:
    """Every different reward of every group: whose it is, and how many rollouts have it."""
    group, reward = pool.group_PG[pool.answered_PG], pool.rewards_PG[pool.answered_PG]
    order = np.lexsort((reward, group))
    group, reward = group[order], reward[order]
    new = np.ones(group.size, dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (reward[1:] != reward[:-1])
    first = np.flatnonzero(new)
    return group[first], np.diff(np.append(first, group.size))


def _all_from(part: IntArray, whole: IntArray, drawn: IntArray) -> FloatArray:
    """Chance that all drawn lie in a part of the whole: without replacement, or with it if n is more."""
    share = part / np.maximum(whole, 1)
    chance = np.where(drawn > whole, share**drawn, 1.0)
    fits = drawn <= whole
    for k in range(int(drawn[fits].max(initial=0))):
        factor = np.maximum(part - k, 0) / np.maximum(whole - k, 1)
        chance = np.where(fits & (k < drawn), chance * factor, chance)
    return chance


def _foreseeable(hand: Hand) -> dict[str, float]:
    """Means over the draws. Counts that were decided on some of the draws have no such mean: NaN."""
    unknown = hand.rounds > 1
    chance_P = np.full(hand.asked_P.size, np.nan) if unknown else mixed_chance(hand.pool, hand.asked_P)
    return {
        "value_expected": float("nan") if unknown else float(recorded_values(hand.pool, hand.asked_P).sum()),
        "mixed_prompts_expected": float(chance_P.sum()),
        "mixed_rollouts_expected": float((chance_P * hand.asked_P).sum()),
    }


def _foresight(hand: Hand) -> dict[str, float]:
    """What the rule's own forecasts promised, and how they compare with the answers."""
    known_P = ~np.isnan(hand.success_rates_P) & (hand.strength_P > 0)
    rates_P, strength_P = hand.success_rates_P[known_P], hand.strength_P[known_P]
    seen, asked_P = hand.seen, hand.asked_P[known_P]
    attempts_P = seen.attempts_P[known_P]
    answered_P = attempts_P > 0
    some_P = (seen.successes_P > 0) & (seen.successes_P < seen.attempts_P)
    predicted_P = mixed_probability(rates_P, strength_P, attempts_P)[answered_P]
    planned = hand.rounds == 1 and not np.isnan(hand.success_rates_P).all()
    observed_P = hand.pool.pass_rates_P[known_P]
    error_P = observed_P * (1 - rates_P) ** 2 + (1 - observed_P) * rates_P**2
    return {
        "forecasts": float(np.count_nonzero(~np.isnan(error_P))),
        "forecasts_mixed": float(predicted_P.size) if planned else 0.0,
        "value_believed": float(believed_values(rates_P, strength_P, asked_P).sum()) if planned else float("nan"),
        "mixed_prompts_believed": float(mixed_probability(rates_P, strength_P, asked_P).sum())
        if planned
        else float("nan"),
        "brier_mixed": _mean((predicted_P - some_P[known_P][answered_P]) ** 2) if planned else float("nan"),
        "brier_success": _mean(error_P),
    }


def believed_values(rates_P: FloatArray, strength_P: FloatArray, counts_P: IntArray) -> FloatArray:
    """The paper's value of n rollouts: expected under Beta beliefs, at the rate itself for point estimates; ``[P]``.

    A belief that is certain of 0 or 1, as the paper's estimator can be, is a point estimate too.
    """
    high = int(counts_P.max(initial=0))
    beta = np.isfinite(strength_P) & (rates_P > 0) & (rates_P < 1)
    values_P_N = np.empty((rates_P.size, high + 1))
    values_P_N[~beta] = knapsack_value(rates_P[~beta], high)
    alpha_P = rates_P[beta] * strength_P[beta]
    values_P_N[beta] = expected_knapsack_value(alpha_P, strength_P[beta] - alpha_P, high)
    return _at_counts(values_P_N, counts_P)


def _at_counts(values_P_N: FloatArray, counts_P: IntArray) -> FloatArray:
    """Each prompt's value at its own count, ``[P]``."""
    values_P: FloatArray = values_P_N[np.arange(counts_P.size), counts_P]
    return values_P


def agreement(asked_P: IntArray, planned_P: IntArray) -> dict[str, float]:
    """Share of the rollouts that go where they really went, and whether the plans are the same; over all candidates."""
    overlap = float(np.minimum(asked_P, planned_P).sum() / max(planned_P.sum(), asked_P.sum(), 1))
    return {"overlap": overlap, "same_plan": float((asked_P == planned_P).all())}


def _tokens(pool: Outcomes, asked_P: IntArray) -> float:
    """Tokens to expect of the rollouts asked for, at the recorded mean length of each prompt (else of all)."""
    if pool.tokens_PG is None or not pool.tokens_PG.size:
        return float("nan")
    lengths_P = pool.mean_tokens_P
    return float((np.where(np.isnan(lengths_P), pool.tokens_PG.mean(), lengths_P) * asked_P).sum())


def _calibration(hand: Hand) -> FloatArray:
    observed_P = hand.pool.pass_rates_P
    known = ~np.isnan(hand.success_rates_P) & (hand.strength_P > 0) & ~np.isnan(observed_P)
    forecast, observed = hand.success_rates_P[known], observed_P[known]
    bins = np.minimum((forecast * BINS).astype(np.int64), BINS - 1)
    columns = (np.ones(forecast.size), forecast, observed)
    return np.stack([np.bincount(bins, weights=column, minlength=BINS) for column in columns], axis=1)


def _mean(values: FloatArray) -> float:
    """The mean of what is known; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
