"""Hypothesis strategies: success rates, beliefs, limits, budgets, tables of values, streams of outcomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.values import expected_knapsack_value, knapsack_value

# Rates of 16 rewards, as the paper's estimator has them: prompts tie all the time.
grid_rates = st.integers(0, 16).map(lambda k: k / 16)
rates = st.one_of(grid_rates, st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-12, 1 - 1e-12]))
evidence = st.one_of(st.floats(0.05, 50), st.sampled_from([0.5, 1.0, 8.5, 1e-3, 1e4]))
prompt_ids = st.sampled_from([f"q{i}" for i in range(6)])


@dataclass(frozen=True)
class Case:
    """A small allocation problem: few enough counts to try them all."""

    values_P_N: FloatArray
    budget: int
    low_P: IntArray
    high_P: IntArray

    @property
    def marginals_P_N(self) -> FloatArray:
        return np.diff(self.values_P_N, axis=1)


@st.composite
def limits(draw: st.DrawFn, prompts: int, most: int) -> tuple[IntArray, IntArray]:
    """Limits of 0 or at least 2, low <= high; a prompt may be shut (0..0) or have no choice (3..3)."""
    highs = [draw(st.sampled_from([0, *range(2, most + 1)])) for _ in range(prompts)]
    lows = [draw(st.sampled_from([0, *range(2, high + 1)])) for high in highs]
    return np.array(lows, dtype=np.int64), np.array(highs, dtype=np.int64)


@st.composite
def concave_values(draw: st.DrawFn, prompts: int, most: int) -> FloatArray:
    """Concave values: the paper's, ours, whole numbers that fall below 0, and zeros."""
    kind = draw(st.sampled_from(["point", "beta", "whole", "flat"]))
    if kind == "point":
        return knapsack_value(np.array([draw(rates) for _ in range(prompts)]), most)
    if kind == "beta":
        pairs = np.array([[draw(evidence), draw(evidence)] for _ in range(prompts)]).reshape(prompts, 2)
        return expected_knapsack_value(pairs[:, 0], pairs[:, 1], most)
    worths = st.integers(-3, 4) if kind == "whole" else st.just(0)
    rows = [sorted((draw(worths) for _ in range(most)), reverse=True) for _ in range(prompts)]
    marginals = np.array(rows, dtype=np.float64).reshape(prompts, most)
    marginals[:, 0] = marginals[:, 1]  # halves of a pair, for every value of a single rollout
    return np.concatenate([np.zeros((prompts, 1)), np.cumsum(marginals, axis=1)], axis=1)


@st.composite
def cases(draw: st.DrawFn, most_prompts: int = 4, most: int = 6) -> Case:
    """Concave problems, feasible or not: budgets run from 0 to what the upper limits allow."""
    prompts = draw(st.integers(1, most_prompts))
    low_P, high_P = draw(limits(prompts, most))
    values = draw(concave_values(prompts, most))
    return Case(values, draw(st.integers(int(low_P.sum()), int(high_P.sum()))), low_P, high_P)


@st.composite
def wild_cases(draw: st.DrawFn) -> Case:
    """Tables of any shape."""
    prompts = draw(st.integers(1, 3))
    low_P, high_P = draw(limits(prompts, 5))
    values = np.array([[draw(st.integers(-4, 4)) for _ in range(6)] for _ in range(prompts)], dtype=np.float64)
    return Case(values, draw(st.integers(int(low_P.sum()), int(high_P.sum()))), low_P, high_P)


@st.composite
def outcome_streams(draw: st.DrawFn, answers: tuple[float, ...] = (0.0, 1.0, float("nan"))) -> list[Outcomes]:
    """Some steps' outcomes in any order of steps, with repeated prompts, empty groups and rows without an answer."""
    groups = st.tuples(prompt_ids, st.lists(st.sampled_from(answers), max_size=20))
    steps = st.tuples(st.integers(0, 200), st.lists(groups, max_size=4))
    return [Outcomes.of_groups(step, batch) for step, batch in draw(st.lists(steps, max_size=6))]
