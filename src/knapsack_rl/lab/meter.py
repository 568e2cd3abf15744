"""What is measured while a rule trains a language model: the arena's measures, and what only exact rates can tell.

The table's columns, and the metrics that are not named here, are those of `knapsack_rl.compare.meter`. Along the run:

- `hard_half_p`: mean true rate over the half of the prompts that was harder at the start.
- `forgotten`: of the prompts that started above 0.9, the mean of what they have lost since; `lost`: the share of them
  that now lie below 0.5.
- `dead_rollouts`: of the rollouts generated, the share in groups (over all rounds of a step) that all agree.
- `belief_error`, `brier`, `log_score`, reliability: the success rates that the *first draw* of a step expected,
  against the true ones at that moment. A draw shows only the prompts that it asks rollouts for: what a rule with a pool
  believed of the candidates that it left out is not known. The log score is expected under the true rates, of a
  forecast that is cut to [0.001, 0.999], because one who is certain and wrong would lose everything.
- `candidate_error`: the same squared error over all prompts that were forecast in a step, drawn or not, for rules whose
  beliefs can be overheard (those with a `Beliefs`): the fair one between rules with and without a pool.
- `value_share`: the paper's value, at true rates, of what a step spent (counts added up over its rounds), as a share
  of the best plan's: the exact knapsack at true rates, for the same rollouts, over the prompts that the rule took from
  the sampler; none but those drawn where it took no more than the step's groups, and each of those at least twice.
- `overhead`: of the time of the steps, the share spent in the rule, prefills of candidates included; `prefill`: those
  alone. The oracles' is the price of the truth, which nobody pays. `measuring`: seconds spent measuring, per second
  of the run.

Every few steps only are held against the truth (`LabMeter`): beliefs, allocation and value are of those.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np

from knapsack_rl.beliefs import Forecast
from knapsack_rl.calibrated import Look
from knapsack_rl.compare.meter import Meter, World, totals
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.solver import solve
from knapsack_rl.strategy import Batch, Draw, Played, Strategy
from knapsack_rl.values import knapsack_marginals, knapsack_value

EASY, FALLEN = 0.9, 0.5
CUT: Final = 1e-3
HIGH: Final = 128


class HiddenWorld(World, Protocol):
    """A world whose policy can be looked into."""

    def hidden_states(self, prompt_ids: Sequence[str], /) -> Look:
        """What the policy thinks at the end of each prompt."""
        ...


class Watched:
    """A world that remembers what its rule took from it in the present step, and how long it was busy.

    Attributes:
        taken: prompts taken since the last optimizer step.
        expected: success rates forecast since then, the first forecast of each prompt.
        working: seconds spent generating and training.
        prefilling: seconds spent on hidden states, which the rule asks for.
    """

    def __init__(self, world: HiddenWorld) -> None:
        self.world = world
        self.prompt_ids = world.prompt_ids
        self.success_rates, self.held_out_rates = world.success_rates, world.held_out_rates
        self.taken: list[str] = []
        self.expected: dict[str, float] = {}
        self.working = self.prefilling = 0.0

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.world.step

    def take(self, count: int) -> tuple[str, ...]:
        """The sampler's next prompts."""
        taken = self.world.take(count)
        self.taken += taken
        return taken

    def generate(self, draw: Draw) -> Outcomes:
        """Sample and score a round of rollouts."""
        began = time.perf_counter()
        outcomes = self.world.generate(draw)
        self.working += time.perf_counter() - began
        return outcomes

    def train(self, batch: Batch) -> None:
        """One optimizer step; another one begins."""
        began = time.perf_counter()
        self.world.train(batch)
        self.working += time.perf_counter() - began
        self.taken, self.expected = [], {}

    def hidden_states(self, prompt_ids: Sequence[str]) -> Look:
        """What the policy thinks at the end of each prompt."""
        began = time.perf_counter()
        states = self.world.hidden_states(prompt_ids)
        self.prefilling += time.perf_counter() - began
        return states

    def overhear(self, strategy: Strategy) -> None:
        """Note what the strategy's beliefs, if it has any, forecast from now on."""
        holder: Any = strategy if hasattr(strategy, "beliefs") else getattr(strategy, "allocator", None)
        beliefs: Any = getattr(holder, "beliefs", None)
        forecast = getattr(beliefs, "forecast", None)
        if forecast is None:
            return

        def overheard(prompt_ids: Sequence[str], step: int) -> Forecast:
            found: Forecast = forecast(prompt_ids, step)
            for prompt_id, rate in zip(prompt_ids, found.success_rates_P.tolist(), strict=True):
                self.expected.setdefault(prompt_id, rate)
            return found

        beliefs.forecast = overheard


class LabMeter(Meter):
    """Measures one run of the laboratory."""

    def __init__(self, world: Watched, groups: int, followed: Sequence[str] | None = None, every: int = 1) -> None:
        """A meter of a run that is about to begin.

        Args:
            world: whose policy is trained.
            groups: prompts of a step under equal division.
            followed: prompts over which true rates are averaged; all by default.
            every: steps from one that is held against the truth to the next.
        """
        super().__init__(world, followed)
        self.watched, self.groups, self.every = world, groups, every
        order = np.argsort(self._start_P, kind="stable")
        self._harder_P = order[: max(order.size // 2, 1)]
        self._easy_P = np.flatnonzero(self._start_P > EASY)
        self._dead = np.zeros(2)  # rollouts in groups that all agree, rollouts
        self._log_score = np.zeros(2)  # sum, groups with a belief
        self._candidates = np.zeros(2)  # sum of squared errors, candidates with a belief
        self._value = np.zeros(2)  # of what was spent, of the best plans
        self._measuring, self._began = 0.0, time.perf_counter()

    def take_in(self, played: Played, seconds: float) -> None:
        """A step as it was played, before the policy is trained on it."""
        began = time.perf_counter()
        super().take_in(played, seconds)
        self._dead += _dead_rollouts(played), played.rollouts
        self._measuring += time.perf_counter() - began

    def judge(self, played: Played) -> None:
        """Every few steps: who got how many rollouts, what was expected at first, and what the plan was worth."""
        if self.steps % self.every:
            return
        drawn, counts_P = totals(played)
        candidates = tuple(dict.fromkeys((*drawn, *self.watched.taken)))
        rates_P = self.world.success_rates(candidates)
        spent_P = np.zeros(len(candidates), dtype=np.int64)
        spent_P[: len(drawn)] = counts_P
        self._allocate(rates_P[: len(drawn)], counts_P)
        first, _ = played.rounds[0]
        if first.success_rates_P is not None:  # those drawn first come first
            self._compare(first.success_rates_P, rates_P[: len(first.prompt_ids)], first.counts_P > 0)
        expected_P = np.array([self.watched.expected.get(prompt_id, np.nan) for prompt_id in candidates])
        known_P = ~np.isnan(expected_P)
        self._candidates += ((expected_P - rates_P)[known_P] ** 2).sum(), known_P.sum()
        self._value += values_of(rates_P, spent_P, chooses=len(candidates) > self.groups)

    def curves(self) -> dict[str, float]:
        """The metrics along the run, now; shares begin anew."""
        began = time.perf_counter()
        found = super().curves()
        now_P, easy_P, in_steps = self.rates_P, self._easy_P, self.seconds + self.watched.working
        found["hard_half_p"] = float(now_P[self._harder_P].mean())
        if easy_P.size:
            found["forgotten"] = float((self._start_P[easy_P] - now_P[easy_P]).mean())
            found["lost"] = float((now_P[easy_P] < FALLEN).mean())
        sums = {
            "dead_rollouts": self._dead,
            "log_score": self._log_score,
            "candidate_error": self._candidates,
            "value_share": self._value,
        }
        found |= {name: float(part / whole) for name, (part, whole) in sums.items() if whole > 0}
        for each in sums.values():
            each[:] = 0
        if in_steps > 0:
            found |= {"overhead": self.seconds / in_steps, "prefill": self.watched.prefilling / in_steps}
        ended = time.perf_counter()
        self._measuring += ended - began
        found["measuring"] = self._measuring / max(ended - self._began, 1e-9)
        return found

    def _compare(self, expected_P: FloatArray, true_P: FloatArray, drawn_P: BoolArray) -> None:
        super()._compare(expected_P, true_P, drawn_P)
        known_P = drawn_P & ~np.isnan(expected_P)
        self._log_score += log_scores(expected_P[known_P], true_P[known_P]).sum(), known_P.sum()


def log_scores(expected_P: FloatArray, true_P: FloatArray) -> FloatArray:
    """The log score, in nats, that each forecast is to expect at the true rates; less is better; ``[P]``."""
    cut_P = np.clip(expected_P, CUT, 1 - CUT)
    scores_P: FloatArray = -(true_P * np.log(cut_P) + (1 - true_P) * np.log(1 - cut_P))
    return scores_P


def values_of(rates_P: FloatArray, counts_P: IntArray, chooses: bool) -> tuple[float, float]:
    """The paper's value of these counts at true rates, and that of the best plan for as many rollouts.

    Args:
        rates_P: true success rates of the candidates, ``[P]``.
        counts_P: rollouts that each got, ``[P]``.
        chooses: whether a plan may leave prompts out; else each that got any gets at least 2, and the others none.
    """
    high = max(HIGH, int(counts_P.max()))
    values_P_N = knapsack_value(rates_P, high)
    spent = float(values_P_N[np.arange(rates_P.size), counts_P].sum())
    budget, high_P = int(counts_P.sum()), np.full(rates_P.size, high)
    low_P = np.zeros(rates_P.size, dtype=np.int64)
    if not chooses:
        high_P = np.where(counts_P > 0, high, 0)
        low_P = np.where(counts_P > 0, 2, 0) if budget >= 2 * int((counts_P > 0).sum()) else low_P
    best = solve(lambda rows, stop: knapsack_marginals(rates_P[rows], stop), budget, low_P, high_P)
    return spent, best.value


def _dead_rollouts(played: Played) -> int:
    """Rollouts of a step in groups, over all its rounds, whose rewards all agree."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for _, outcomes in played.rounds:
        each = zip(outcomes.prompt_ids, outcomes.counts_P.tolist(), outcomes.successes_P.tolist(), strict=True)
        for prompt_id, count, right in each:
            groups.setdefault(prompt_id, []).append((count, right))
    summed = (tuple(map(sum, zip(*rounds, strict=True))) for rounds in groups.values())
    return sum(count for count, right in summed if right in (0, count))
