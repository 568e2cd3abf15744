"""Metrics of a run in which a rule trains a policy with known success rates, and the columns they are written in.

Each row of the table holds one number:

| column | meaning |
|---|---|
| `rule`, `preset`, `seed` | the trial |
| `point` | per cent of the budget at which it was measured, 0 to 100; null where it belongs to the whole run |
| `spent` | share of the budget actually spent then; a little above `point`, because steps are not cut |
| `steps`, `rollouts`, `tokens`, `rounds` | spent until then; `rounds` counts sequential rounds of generation |
| `metric` | name of the metric (below) |
| `x`, `y` | bin, for metrics in bins; else null |
| `value` | the number |

Metrics along the run: `mean_p`, `held_out_p`, `hard_quarter_p` (true success rates: mean over all prompts, over prompts
never trained on, over the quarter that was hardest at the start); `coverage` (share of prompts ever solved);
`mixed_prompts` (of the prompts that got rollouts, the share trained on in a mixed group), `mixed_rollouts` (of the
rollouts generated, the share trained on in a mixed group), `mixed_groups` (mixed groups trained on per 1,000 rollouts
generated), `belief_error` (mean squared difference between the success rate that the rule expected of a prompt and the
true one: its Brier score in excess of the truth's), `brier` (expected Brier score under the true rates), `log_score`
(expected log score in nats under the true rates, of rates clipped to [0.001, 0.999]), `seconds` (spent in the rule).
Shares and scores cover the time since the previous point.

Metrics in bins: `allocation` and `allocation_rollouts` (groups, and their rollouts, by true success rate, `x` = lower
edge, and by rollouts of the group, `y` = lower edge; for each third of the budget; points 33, 67 and 100),
`reliability_groups`, `reliability_expected`, `reliability_true` (by the success rate that the rule expected, `x` =
lower edge: number of groups, and sums of the expected and of the true rates), `transition` (prompts that went from
status `x` to status `y`, indices into `knapsack_rl.metrics.STATUSES`; "extremely" is within 1 % of never and always).

Metrics relative to other trials, read at exactly the budget: `area` (mean of `mean_p` over the budget), `regret`
(how far `mean_p` ends below the oracle's on the same seed), `share_to_uniform` (share of the budget after which
`mean_p` reaches uniform's final value).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np
import polars as pl

from knapsack_arena.strategies import Batch, RolloutRequest, StepResult
from knapsack_rl.metrics import share, transition_matrix
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes

SCHEMA: Final = {
    "rule": pl.String, "preset": pl.String, "seed": pl.Int64, "point": pl.Int64, "spent": pl.Float64,
    "steps": pl.Int64, "rollouts": pl.Int64, "tokens": pl.Int64, "rounds": pl.Int64,
    "metric": pl.String, "x": pl.Float64, "y": pl.Float64, "value": pl.Float64,
}  # fmt: skip
# Name, bin x, bin y, value.
MetricValue: TypeAlias = tuple[str, float | None, float | None, float]
RATE_EDGES: Final = np.array([0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0])
COUNT_EDGES: Final = np.array([0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 129])
BELIEF_EDGES: Final = np.arange(11) / 10  # not linspace, whose 0.3 lies above 0.3
EXTREME: Final = 0.01
WINDOWS: Final = (33, 67, 100)
# The log score clips forecasts to within this distance of 0 and 1: a certain forecast that is wrong scores infinity.
CLIP: Final = 1e-3


class Environment(Protocol):
    """A policy that is trained, and whose true success rates are known: a simulation, or a small language model."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """All training prompts."""
        ...

    def take(self, count: int, /) -> tuple[str, ...]:
        """The sampler's next prompts."""
        ...

    def generate(self, request: RolloutRequest, /) -> Outcomes:
        """Sample and score a round of rollouts."""
        ...

    def train(self, batch: Batch, /) -> None:
        """Take one optimizer step."""
        ...

    def success_rates(self, prompt_ids: Sequence[str] | None = None, /) -> FloatArray:
        """True success rates now, of all training prompts by default; ``[P]``."""
        ...

    def held_out_rates(self) -> FloatArray:
        """True success rates of prompts that are not trained on, ``[P]``."""
        ...


@dataclass(frozen=True, eq=False)
class Assessment:
    """A step compared with the true success rates.

    Attributes:
        rates_P: true rates of the prompts that were asked rollouts for, ``[P]``.
        counts_P: rollouts of each over all rounds, ``[P]``.
        beliefs: expected and true rates, each ``[P]``, one pair per assessed round; NaN where nothing was expected.
    """

    rates_P: FloatArray
    counts_P: IntArray
    beliefs: tuple[tuple[FloatArray, FloatArray], ...]


class Assessor(Protocol):
    """Compares steps with the truth, and adds metrics of its own to those of `MetricsRecorder`."""

    def assess(self, result: StepResult, step: int) -> Assessment | None:
        """Compare a step with the true rates before the policy is trained on it; None to leave this step out."""
        ...

    def curves(self, recorder: MetricsRecorder) -> dict[str, float]:
        """The added metrics since the last call; NaN where there is none."""
        ...


class EveryStep:
    """Assesses every step and every round in which the rule expected success rates; adds no metrics."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def assess(self, result: StepResult, step: int) -> Assessment:
        """Compare a step with the true rates."""
        ids, counts_P = total_counts(result)
        rounds = (request for request, _ in result.rounds)
        beliefs = [self._beliefs(each) for each in rounds if each.success_rates_P is not None]
        return Assessment(self.environment.success_rates(ids), counts_P, tuple(beliefs))

    def curves(self, recorder: MetricsRecorder) -> dict[str, float]:
        """No added metrics."""
        return {}

    def _beliefs(self, request: RolloutRequest) -> tuple[FloatArray, FloatArray]:
        return expected_of_drawn(request), self.environment.success_rates(request.prompt_ids)


class BeliefScores:
    """Accumulates scores of expected against true success rates."""

    def __init__(self) -> None:
        self._sums = np.zeros(4)  # forecasts, squared errors, Brier scores, log scores
        self._reliability = np.zeros((3, BELIEF_EDGES.size - 1))

    def add(self, expected_P: FloatArray, true_P: FloatArray) -> None:
        """Score forecasts; NaN marks prompts without one."""
        known_P = ~np.isnan(expected_P)
        expected, true = expected_P[known_P], true_P[known_P]
        squared = (expected - true) ** 2
        brier = squared + true * (1 - true)
        self._sums += expected.size, squared.sum(), brier.sum(), log_scores(expected, true).sum()
        bins = bin_of(expected, BELIEF_EDGES)
        for sums, weights in zip(self._reliability, (np.ones_like(expected), expected, true), strict=True):
            np.add.at(sums, bins, weights)

    def means(self) -> dict[str, float]:
        """Mean scores since the last call; NaN where there were no forecasts."""
        count, squared, brier, log_score = self._sums
        self._sums = np.zeros(4)
        return {
            "belief_error": share(squared, count),
            "brier": share(brier, count),
            "log_score": share(log_score, count),
        }

    def reliability(self) -> Iterator[MetricValue]:
        """Counts and sums by expected rate, over the whole run."""
        for name, sums in zip(("groups", "expected", "true"), self._reliability, strict=True):
            for i in np.flatnonzero(self._reliability[0]):
                yield f"reliability_{name}", float(BELIEF_EDGES[i]), None, float(sums[i])


class MetricsRecorder:
    """Records the metrics of one run.

    Attributes:
        steps, rollouts, tokens, rounds: spent so far.
        seconds: spent in the rule.
        measuring: seconds spent measuring.
        start_P, rates_P: true success rates of the followed prompts, at the start and at the last measurement.
    """

    def __init__(
        self, environment: Environment, followed: Sequence[str] | None = None, assessor: Assessor | None = None
    ) -> None:
        """Record a run that is about to begin.

        Args:
            environment: the policy under training.
            followed: prompts over which true rates are averaged; all by default.
            assessor: compares steps with the truth; `EveryStep` by default.
        """
        self.environment, self.followed = environment, followed
        self.assessor: Assessor = EveryStep(environment) if assessor is None else assessor
        self.steps = self.rollouts = self.tokens = self.rounds = 0
        self.seconds = self.measuring = 0.0
        self._row = {prompt_id: row for row, prompt_id in enumerate(environment.prompt_ids)}
        self.rates_P = self.start_P = environment.success_rates(followed)
        self._hard_P = np.argsort(self.start_P, kind="stable")[: max(self.start_P.size // 4, 1)]
        self._solved_P = np.zeros(len(environment.prompt_ids), dtype=np.bool_)
        self._since = dict.fromkeys(("prompts", "rollouts", "mixed_groups", "mixed_rollouts"), 0)
        self._beliefs = BeliefScores()
        self._allocation = np.zeros((2, RATE_EDGES.size - 1, COUNT_EDGES.size - 1))

    def record(self, result: StepResult, seconds: float) -> None:
        """Record a step before the policy is trained on it.

        Args:
            result: the step.
            seconds: time that the rule took in it.
        """
        began = time.perf_counter()
        self._assess(result)
        batch = result.batch.outcomes
        for _, outcomes in result.rounds:
            self._solved_P[self._rows(outcomes.prompt_ids)] |= outcomes.successes_P > 0
        self._since["prompts"] += int((total_counts(result)[1] > 0).sum())
        self._since["rollouts"] += result.rollouts
        self._since["mixed_groups"] += int(batch.mixed_P.sum())
        self._since["mixed_rollouts"] += int(batch.counts_P[batch.mixed_P].sum())
        self.steps += 1
        self.rollouts += result.rollouts
        self.tokens += result.tokens
        self.rounds += len(result.rounds)
        self.seconds += seconds
        self.measuring += time.perf_counter() - began

    def curves(self) -> dict[str, float]:
        """The metrics along the run, now; shares start anew."""
        began = time.perf_counter()
        self.rates_P, since = self.environment.success_rates(self.followed), self._since
        found = {
            "mean_p": float(self.rates_P.mean()),
            "held_out_p": float(self.environment.held_out_rates().mean()),
            "hard_quarter_p": float(self.rates_P[self._hard_P].mean()),
            "coverage": float(self._solved_P.mean()),
            "mixed_prompts": share(since["mixed_groups"], since["prompts"]),
            "mixed_rollouts": share(since["mixed_rollouts"], since["rollouts"]),
            "mixed_groups": 1000 * share(since["mixed_groups"], since["rollouts"]),
            **self._beliefs.means(),
            "seconds": self.seconds,
        }
        self._since = dict.fromkeys(since, 0)
        self.measuring += time.perf_counter() - began
        found |= self.assessor.curves(self)
        return {name: value for name, value in found.items() if not np.isnan(value)}

    def allocation(self) -> Iterator[MetricValue]:
        """Groups and rollouts by true rate and count since the last call."""
        for name, table in zip(("allocation", "allocation_rollouts"), self._allocation, strict=True):
            for i, j in np.argwhere(table > 0):
                yield name, float(RATE_EDGES[i]), float(COUNT_EDGES[j]), float(table[i, j])
        self._allocation[:] = 0

    def whole_run(self) -> Iterator[MetricValue]:
        """Metrics of the whole run: reliability and transitions."""
        yield from self._beliefs.reliability()
        end_P = self.environment.success_rates(self.followed)
        moved = transition_matrix(to_extremes(self.start_P), to_extremes(end_P))
        for i, j in np.argwhere(moved > 0):
            yield "transition", float(i), float(j), float(moved[i, j])

    def _assess(self, result: StepResult) -> None:
        found = self.assessor.assess(result, self.steps)
        if found is None:
            return
        bins = (bin_of(found.rates_P, RATE_EDGES), bin_of(found.counts_P, COUNT_EDGES))
        np.add.at(self._allocation[0], bins, 1)
        np.add.at(self._allocation[1], bins, found.counts_P)
        for expected_P, true_P in found.beliefs:
            self._beliefs.add(expected_P, true_P)

    def _rows(self, prompt_ids: tuple[str, ...]) -> IntArray:
        return np.array([self._row[prompt_id] for prompt_id in prompt_ids], dtype=np.int64)


def total_counts(result: StepResult) -> tuple[tuple[str, ...], IntArray]:
    """Every prompt that was named in a step's requests, with its rollouts over all rounds."""
    found: dict[str, int] = {}
    for request, _ in result.rounds:
        for prompt_id, count in zip(request.prompt_ids, request.counts_P.tolist(), strict=True):
            found[prompt_id] = found.get(prompt_id, 0) + count
    return tuple(found), np.array(list(found.values()), dtype=np.int64)


def expected_of_drawn(request: RolloutRequest) -> FloatArray:
    """Expected success rates of the prompts that get rollouts, NaN for the others; ``[P]``."""
    assert request.success_rates_P is not None
    return np.where(request.counts_P > 0, request.success_rates_P, np.nan)


def log_scores(expected_P: FloatArray, true_P: FloatArray) -> FloatArray:
    """Expected log score of each forecast under the true rates, in nats; less is better; ``[P]``."""
    clipped_P = np.clip(expected_P, CLIP, 1 - CLIP)
    scores_P: FloatArray = -(true_P * np.log(clipped_P) + (1 - true_P) * np.log(1 - clipped_P))
    return scores_P


def bin_of(values: FloatArray | IntArray, edges: FloatArray | IntArray) -> IntArray:
    """Index of the bin ``[edge, next edge)`` of each value; values on or beyond the last edge are in the last bin."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, edges.size - 2)


def to_extremes(rates_P: FloatArray) -> FloatArray:
    """Round true rates within 1 % of 0 or 1 to 0 or 1: they never reach them exactly."""
    return np.where(rates_P < EXTREME, 0.0, np.where(rates_P > 1 - EXTREME, 1.0, rates_P))
