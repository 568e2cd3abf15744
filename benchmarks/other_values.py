"""The default with what was tried on long answers, as rules of a file; docs/log.md has what came of it.

| rule | value of n rollouts |
|---|---|
| `NoisePaper`, `NoiseShared` | the update's signal against its noise (docs/value.md), with the paper's gain or none |
| `UntilTheEnd` | (1 - p^n - q^n) q: a mixed group moves the logit, and moving it is worth q over the rest of a run |

Three others keep the value, and give a share of each step's rollouts to prompts in turn: a smallest group each, the
longest without one first, whatever their forecasts.

| rule | share | prompts that have a turn |
|---|---|---|
| `Turns` | 1/2 | all that were not observed in the step before |
| `FewerTurns` | 1/4 | the same |
| `LaterTurns` | 1/2 | those that were not observed for more than 32 steps |

`UntilTheEnd` takes a prompt's logit z to rise at a constant rate r. A step of dz then advances its curve by dz / r
steps, so that the area under the rate p(t) until T gains dz (p_T - p) / r: for prompts that are solved in the end, dz
q / r.

Run from the root of a checkout, for example

    knapsack-rl lab --regimes long --rules uniform,benchmarks/other_values.py:UntilTheEnd@prompt@step=1/4
"""

from __future__ import annotations

import numpy as np

from knapsack_arena.registry import RuleContext, make_strategy
from knapsack_arena.strategies import OneRound
from knapsack_arena.update_values.rule import update_size_rule
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.rules import AllocationProblem, AllocationRule


def until_the_end(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Maximise the sum of E[(1 - p^n - q^n) q], or of E[(1 - p^n) q] where a success is kept."""
    alpha_P, beta_P, kept_P = forecast.alpha_P, forecast.beta_P, forecast.kept_P

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        kept = np.zeros(rows.size, dtype=bool) if kept_P is None else kept_P[rows]
        return end_marginals(alpha_P[rows], beta_P[rows], kept, stop)

    return AllocationProblem(marginals, *same_limits(alpha_P.size, low, high))


def end_marginals(alpha_P: FloatArray, beta_P: FloatArray, kept_P: BoolArray, stop: int) -> FloatArray:
    """M(n, 2) + M(1, n+1) in column n from 1 on, where M(x, y) = E[p^x q^y]; without the second term where kept."""
    total_P = alpha_P + beta_P
    table_P_N = np.zeros((alpha_P.size, stop))
    q2_P = beta_P / total_P * (beta_P + 1) / (total_P + 1)
    successes_P = q2_P * alpha_P / (total_P + 2)
    failures_P = np.where(kept_P, 0.0, successes_P)
    for n in range(1, stop):
        table_P_N[:, n] = successes_P + failures_P
        successes_P = successes_P * (alpha_P + n) / (total_P + n + 2)
        failures_P = failures_P * (beta_P + n + 1) / (total_P + n + 2)
    if stop > 1:  # two rollouts beside a kept success: M(0, 1) - M(2, 1) = M(0, 2) + M(1, 2)
        table_P_N[:, 1] += np.where(kept_P, q2_P, 0.0)
    return table_P_N


class _Changed(OneRound):
    """`calibrated-pool`, whose allocator is changed."""

    def __init__(self, context: RuleContext) -> None:
        inner = make_strategy("calibrated-pool", context)
        assert isinstance(inner, OneRound)
        assert isinstance(inner.allocator, KnapsackAllocator)
        self.change(inner.allocator)
        super().__init__(inner.allocator, inner.pool, inner.features)

    def change(self, allocator: KnapsackAllocator) -> None:
        """Change the allocator."""
        raise NotImplementedError


class _OtherValue(_Changed):
    """With another rule."""

    rule: AllocationRule

    def change(self, allocator: KnapsackAllocator) -> None:
        """Give it the rule."""
        allocator.rule = self.rule


class NoisePaper(_OtherValue):
    """The update's signal against its noise, times p (1-p)^2."""

    rule = staticmethod(update_size_rule("paper", "scaled", "prompt", 0.0))


class NoiseShared(_OtherValue):
    """The update's signal against its noise."""

    rule = staticmethod(update_size_rule("shared", "scaled", "prompt", 0.0))


class UntilTheEnd(_OtherValue):
    """A unit of logit is worth q."""

    rule = staticmethod(until_the_end)


class Turns(_Changed):
    """Half of each step's rollouts go to prompts in turn."""

    idle, share = 0.5, 0.5

    def change(self, allocator: KnapsackAllocator) -> None:
        """Give prompts their turn."""
        allocator.max_idle, allocator.overdue_share = self.idle, self.share


class FewerTurns(Turns):
    """A quarter of them do."""

    share = 0.25


class LaterTurns(Turns):
    """Prompts have a turn only after 32 steps without an observation."""

    idle = 32.0
