"""Metrics of the laboratory: those of `knapsack_arena.compare.metrics`, and those that need exact success rates.

Added along the run:

- `hard_half_p`: mean true rate over the half of the prompts that was harder at the start.
- `forgotten`: mean decrease of the true rate of the prompts that started above 0.9; `lost`: the share of them that is
  now below 0.5.
- `zero_gradient_rollouts`: of the rollouts generated, the share in groups (over all rounds of a step) whose rewards are
  all equal.
- `candidate_error`: mean squared error of the success rates forecast in a step, over all prompts that were forecast,
  with or without rollouts. Known for rules with `Beliefs`; comparable between rules with and without a pool.
- `value_share`: the paper's value, at true rates, of the rollouts of a step (counts added up over its rounds), as a
  share of the optimum: the exact knapsack at true rates, for the same number of rollouts, over the prompts that the
  rule took from the sampler. If the rule took no more prompts than `groups`, the optimum covers only the prompts it
  drew, at least two rollouts each.
- `overhead`: share of the time of the steps spent in the rule, prefill of candidates included; `prefill`: that alone.
  For oracles this includes computing true rates. `measuring`: seconds spent measuring, per second of the run.

Belief, allocation and value metrics are computed every `every` steps. `belief_error`, `brier`, `log_score` and
reliability use the success rates expected in the first request of a step, which names only prompts with rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from knapsack_arena.compare.metrics import (
    Assessment,
    Environment,
    MetricsRecorder,
    expected_of_drawn,
    total_counts,
)
from knapsack_arena.strategies import Batch, RolloutRequest, StepResult, Strategy
from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.files import State
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.metrics import share
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.values import knapsack_marginals, knapsack_value

# A prompt is easy above EASY at the start, and lost below LOST later.
EASY, LOST = 0.9, 0.5
# Largest group that the optimum may give, unless a rule gave a larger one.
MAX_COUNT: Final = 128


class FeatureEnvironment(Environment, Protocol):
    """An environment with features of prompts."""

    def hidden_states(self, prompt_ids: Sequence[str], /) -> PromptFeatures:
        """Features of prompts from one forward pass of the policy."""
        ...


class RecordedBeliefs:
    """Wraps beliefs, and records the first forecast of each prompt in a mapping."""

    def __init__(self, beliefs: Beliefs, expected: dict[str, float]) -> None:
        self.beliefs, self.expected = beliefs, expected

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        """The wrapped beliefs' forecast, recorded."""
        given = () if features is None else (features,)
        found = self.beliefs.forecast(prompt_ids, step, *given)
        for prompt_id, rate in zip(prompt_ids, found.success_rates_P.tolist(), strict=True):
            self.expected.setdefault(prompt_id, rate)
        return found

    def observe(self, outcomes: Outcomes) -> None:
        """Learn from outcomes."""
        self.beliefs.observe(outcomes)

    def state_dict(self) -> State:
        """The wrapped beliefs' state."""
        return self.beliefs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the wrapped beliefs' state."""
        self.beliefs.load_state_dict(state)


class InstrumentedEnvironment:
    """Wraps an environment, and records what a rule takes from it in the current step and how long it works.

    Attributes:
        taken: prompts taken since the last optimizer step.
        expected: success rates forecast since then, the first forecast of each prompt.
        working: seconds spent generating and training.
        prefilling: seconds spent computing features that the rule asked for.
    """

    def __init__(self, environment: FeatureEnvironment) -> None:
        self.environment = environment
        self.prompt_ids = environment.prompt_ids
        self.success_rates, self.held_out_rates = environment.success_rates, environment.held_out_rates
        self.taken: list[str] = []
        self.expected: dict[str, float] = {}
        self.working = self.prefilling = 0.0

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.environment.step

    def take(self, count: int) -> tuple[str, ...]:
        """The sampler's next prompts."""
        taken = self.environment.take(count)
        self.taken += taken
        return taken

    def generate(self, request: RolloutRequest) -> Outcomes:
        """Sample and score a round of rollouts."""
        began = time.perf_counter()
        outcomes = self.environment.generate(request)
        self.working += time.perf_counter() - began
        return outcomes

    def train(self, batch: Batch) -> None:
        """Take one optimizer step; records of the step are cleared."""
        began = time.perf_counter()
        self.environment.train(batch)
        self.working += time.perf_counter() - began
        self.taken.clear()
        self.expected.clear()

    def hidden_states(self, prompt_ids: Sequence[str]) -> PromptFeatures:
        """Features of prompts from one forward pass of the policy."""
        began = time.perf_counter()
        states = self.environment.hidden_states(prompt_ids)
        self.prefilling += time.perf_counter() - began
        return states

    def record_forecasts(self, strategy: Strategy) -> None:
        """Record what the strategy's beliefs, or its allocator's, forecast from now on; nothing if it has none."""
        holder: Any = strategy if hasattr(strategy, "beliefs") else getattr(strategy, "allocator", None)
        if callable(getattr(getattr(holder, "beliefs", None), "forecast", None)):
            holder.beliefs = RecordedBeliefs(holder.beliefs, self.expected)


class LabAssessor:
    """Compares every few steps with the truth, and adds the laboratory's metrics."""

    def __init__(self, environment: InstrumentedEnvironment, groups: int, every: int | None = 1) -> None:
        """Assess a run that is about to begin.

        Args:
            environment: the policy under training.
            groups: prompts per step under equal division.
            every: steps from one assessed step to the next; None to assess none.
        """
        self.environment, self.groups, self.every = environment, groups, every
        self._began = time.perf_counter()
        # Each: sum, and what it is a share of or a mean over.
        self._sums = {name: np.zeros(2) for name in ("zero_gradient_rollouts", "candidate_error", "value_share")}

    def assess(self, result: StepResult, step: int) -> Assessment | None:
        """Compare a step's counts, first expectations and plan with the true rates; None between assessed steps."""
        self._sums["zero_gradient_rollouts"] += zero_gradient_rollouts(result), result.rollouts
        if self.every is None or step % self.every:
            return None
        drawn, counts_P = total_counts(result)
        candidates = tuple(dict.fromkeys((*drawn, *self.environment.taken)))
        rates_P = self.environment.success_rates(candidates)
        spent_P = np.zeros(len(candidates), dtype=np.int64)
        spent_P[: len(drawn)] = counts_P
        expected_P = np.array([self.environment.expected.get(prompt_id, np.nan) for prompt_id in candidates])
        known_P = ~np.isnan(expected_P)
        self._sums["candidate_error"] += ((expected_P - rates_P)[known_P] ** 2).sum(), known_P.sum()
        self._sums["value_share"] += values_of(rates_P, spent_P, chooses=len(candidates) > self.groups)
        first, _ = result.rounds[0]  # its prompts come first among the candidates
        believes = first.success_rates_P is not None
        beliefs = ((expected_of_drawn(first), rates_P[: len(first.prompt_ids)]),) if believes else ()
        return Assessment(rates_P[: len(drawn)], counts_P, beliefs)

    def curves(self, recorder: MetricsRecorder) -> dict[str, float]:
        """The added metrics since the last call."""
        start_P, now_P = recorder.start_P, recorder.rates_P
        order = np.argsort(start_P, kind="stable")
        easy_P = start_P > EASY
        found = {"hard_half_p": float(now_P[order[: max(order.size // 2, 1)]].mean())}
        if easy_P.any():
            found["forgotten"] = float((start_P - now_P)[easy_P].mean())
            found["lost"] = float((now_P[easy_P] < LOST).mean())
        for name, sums in self._sums.items():
            found[name] = share(*sums)
            sums[:] = 0
        in_steps = recorder.seconds + self.environment.working
        found["overhead"] = share(recorder.seconds, in_steps)
        found["prefill"] = share(self.environment.prefilling, in_steps)
        found["measuring"] = recorder.measuring / max(time.perf_counter() - self._began, 1e-9)
        return found


def values_of(rates_P: FloatArray, counts_P: IntArray, chooses: bool) -> tuple[float, float]:
    """The paper's value of these counts at true rates, and that of the best plan for as many rollouts.

    Args:
        rates_P: true success rates of the candidates, ``[P]``.
        counts_P: rollouts of each, ``[P]``.
        chooses: whether a plan may leave prompts out; else prompts with rollouts get at least 2, and the others none.
    """
    high = max(MAX_COUNT, int(counts_P.max()))
    values_P_N = knapsack_value(rates_P, high)
    spent = float(values_P_N[np.arange(rates_P.size), counts_P].sum())
    budget, high_P = int(counts_P.sum()), np.full(rates_P.size, high)
    low_P = np.zeros(rates_P.size, dtype=np.int64)
    if not chooses:
        high_P = np.where(counts_P > 0, high, 0)
        low_P = np.where(counts_P > 0, 2, 0) if budget >= 2 * int((counts_P > 0).sum()) else low_P
    best = solve(lambda rows, stop: knapsack_marginals(rates_P[rows], stop), budget, low_P, high_P)
    return spent, best.value


def zero_gradient_rollouts(result: StepResult) -> int:
    """Rollouts of a step in groups, over all its rounds, whose rewards are all equal."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for _, outcomes in result.rounds:
        each = zip(outcomes.prompt_ids, outcomes.counts_P.tolist(), outcomes.successes_P.tolist(), strict=True)
        for prompt_id, count, successes in each:
            groups.setdefault(prompt_id, []).append((count, successes))
    summed = (tuple(map(sum, zip(*rounds, strict=True))) for rounds in groups.values())
    return sum(count for count, successes in summed if successes in (0, count))
