"""MaxRL's value: against the expected push of simulated groups, and against a sum over the belief."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from knapsack_arena.lab.environment import LanguageModelEnvironment, Loss
from knapsack_arena.published.maxrl import maxrl_rule
from knapsack_arena.strategies import Batch
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.outcomes import Outcomes


@pytest.mark.parametrize(("rate", "evidence"), [(0.1, 4.0), (0.5, 1.0), (0.9, 60.0)])
def test_values_are_expected_pushes(rate: float, evidence: float) -> None:
    """Sum over p under the belief and over k successes of n, from the advantages as the loss has them."""
    forecast = Forecast(np.array([rate]), np.array([evidence]), np.array([True]), np.array([np.nan]))
    problem = maxrl_rule(forecast, 16, 0, 8)
    values = np.cumsum(problem.marginals(np.array([0]), 8)[0])
    p = stats.beta.ppf((np.arange(20_000) + 0.5) / 20_000, rate * evidence, (1 - rate) * evidence)
    for n in range(1, 9):
        k = np.arange(n + 1)
        push_k = np.where(k > 0, k / n * (1 - k / n) / np.maximum(k / n, 1e-9), 0)
        push = (stats.binom.pmf(k[:, None], n, p[None]) * push_k[:, None]).sum(axis=0)
        assert values[n - 1] == pytest.approx(float((p * (1 - p) * push).mean()), rel=2e-3, abs=1e-12)


def test_the_loss_divides_by_the_mean() -> None:
    environment = LanguageModelEnvironment.__new__(LanguageModelEnvironment)
    environment.loss = Loss(scale="mean")
    outcomes = Outcomes.of_groups(0, [("a", [1.0, 0.0, 0.0, 0.0]), ("b", [0.0, 0.0]), ("c", [1.0, 1.0])])
    found = environment._advantages(Batch(outcomes), [])
    np.testing.assert_allclose(found, [3, -1, -1, -1, 0, 0, 0, 0], rtol=1e-3)
