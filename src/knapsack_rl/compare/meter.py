"""What is measured while a rule trains a simulated policy, and the columns it is written in.

Every row of a comparison's table is one number:

| column | meaning |
|---|---|
| `rule`, `preset`, `seed` | the cell |
| `point` | per cent of the budget at which it was measured, 0 to 100; null where it belongs to the whole run |
| `spent` | the same as it really was, as a share of the budget: a step is not cut, so it lies a little above |
| `steps`, `rollouts`, `tokens`, `rounds` | spent until then; rounds of generation had to wait for one another |
| `metric` | what the number is (below) |
| `x`, `y` | which bin, where the metric has bins; else null |
| `value` | the number |

Metrics along the run: `mean_p`, `held_out_p`, `hard_quarter_p` (true success rates: mean over all prompts, over prompts
never trained on, over the quarter that was hardest at the start); `coverage` (share of prompts ever solved);
`mixed_prompts` (of the prompts that got rollouts, the share trained on in a mixed group), `mixed_rollouts` (of the
rollouts generated, the share trained on in a mixed group), `mixed_groups` (mixed groups trained on per 1,000 rollouts
generated), `belief_error` (mean squared difference between the success rate that the rule expected of a prompt and the
true one: its Brier score in excess of the truth's), `brier` (that score, expected under the true rates),
`seconds` (spent in the rule). Shares are of what happened since the point before.

Metrics in bins: `allocation` and `allocation_rollouts` (groups, and their rollouts, by true success rate, `x` = lower
edge, and by rollouts of the group, `y` = lower edge; since the last third of the budget ended; points 33, 67 and 100),
`reliability_groups`, `reliability_expected`, `reliability_true` (by the success rate that the rule expected, `x` =
lower edge: number of groups, and sums of the expected and of the true rates), `transition` (prompts that went from
status `x` to status `y`, indices into `knapsack_rl.metrics.STATUSES`; "extremely" begins 1 % from never and always).

Metrics of a cell beside the others, read at exactly the budget: `area` (mean of `mean_p` over the budget), `regret`
(how far `mean_p` ends below the oracle's on the same seed), `share_to_uniform` (share of the budget after which
`mean_p` is where uniform's ends).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np
import polars as pl

from knapsack_rl.metrics import transition_matrix
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.strategy import Batch, Draw, Played

SCHEMA: Final = {
    "rule": pl.String, "preset": pl.String, "seed": pl.Int64, "point": pl.Int64, "spent": pl.Float64,
    "steps": pl.Int64, "rollouts": pl.Int64, "tokens": pl.Int64, "rounds": pl.Int64,
    "metric": pl.String, "x": pl.Float64, "y": pl.Float64, "value": pl.Float64,
}  # fmt: skip
RATE_EDGES: Final = np.array([0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0])
COUNT_EDGES: Final = np.array([0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 129])
BELIEF_EDGES: Final = np.arange(11) / 10  # not linspace, whose 0.3 lies above 0.3
EXTREME: Final = 0.01
WINDOWS: Final = (33, 67, 100)


class World(Protocol):
    """A policy that is trained, and whose true success rates are known: a simulation, or a model of the laboratory."""

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

    def generate(self, draw: Draw, /) -> Outcomes:
        """Sample and score a round of rollouts."""
        ...

    def train(self, batch: Batch, /) -> None:
        """One optimizer step."""
        ...

    def success_rates(self, prompt_ids: Sequence[str] | None = None, /) -> FloatArray:
        """True success rates now, of all training prompts by default; ``[P]``."""
        ...

    def held_out_rates(self) -> FloatArray:
        """True success rates of prompts that are not trained on, ``[P]``."""
        ...


class Meter:
    """Measures one run.

    Attributes:
        steps, rollouts, tokens, rounds: spent so far.
        rates_P: true success rates of the prompts that are followed, when they were last looked at.
    """

    def __init__(self, world: World, followed: Sequence[str] | None = None) -> None:
        """A meter of a run that is about to begin.

        Args:
            world: whose policy is trained.
            followed: prompts over which true rates are averaged; all by default.
        """
        self.world, self.followed = world, followed
        self.steps = self.rollouts = self.tokens = self.rounds = 0
        self.seconds = 0.0
        self._row = {prompt_id: row for row, prompt_id in enumerate(world.prompt_ids)}
        self.rates_P = self._start_P = world.success_rates(followed)
        self._hard_P = np.argsort(self._start_P, kind="stable")[: max(self._start_P.size // 4, 1)]
        self._solved_P = np.zeros(len(world.prompt_ids), dtype=np.bool_)
        self._since = dict.fromkeys(("prompts", "rollouts", "mixed_groups", "mixed_rows"), 0)
        self._belief = np.zeros(3)  # groups with a belief, sums of squared error and of Brier score
        self._allocation = np.zeros((2, RATE_EDGES.size - 1, COUNT_EDGES.size - 1))
        self._reliability = np.zeros((3, 10))

    def take_in(self, played: Played, seconds: float) -> None:
        """A step as it was played, before the policy is trained on it."""
        self.judge(played)
        batch = played.batch.outcomes
        for _, outcomes in played.rounds:
            self._solved_P[self._rows(outcomes.prompt_ids)] |= outcomes.successes_P > 0
        self._since["prompts"] += int((totals(played)[1] > 0).sum())
        self._since["rollouts"] += played.rollouts
        self._since["mixed_groups"] += int(batch.mixed_P.sum())
        self._since["mixed_rows"] += int(batch.counts_P[batch.mixed_P].sum())
        self.steps += 1
        self.rollouts += played.rollouts
        self.tokens += played.tokens
        self.rounds += len(played.rounds)
        self.seconds += seconds

    def judge(self, played: Played) -> None:
        """Hold a step against the truth: who got how many rollouts, and whether what was expected was right."""
        ids, counts_P = totals(played)
        self._allocate(self.world.success_rates(ids), counts_P)
        for draw, _ in played.rounds:
            if draw.success_rates_P is not None:
                self._compare(draw.success_rates_P, self.world.success_rates(draw.prompt_ids), draw.counts_P > 0)

    def curves(self) -> dict[str, float]:
        """The metrics along the run, now; shares begin anew."""
        self.rates_P, since = self.world.success_rates(self.followed), self._since
        believed, squared, brier = self._belief
        found = {
            "mean_p": float(self.rates_P.mean()),
            "held_out_p": float(self.world.held_out_rates().mean()),
            "hard_quarter_p": float(self.rates_P[self._hard_P].mean()),
            "coverage": float(self._solved_P.mean()),
            "mixed_prompts": _share(since["mixed_groups"], since["prompts"]),
            "mixed_rollouts": _share(since["mixed_rows"], since["rollouts"]),
            "mixed_groups": 1000 * _share(since["mixed_groups"], since["rollouts"]),
            "belief_error": _share(squared, believed),
            "brier": _share(brier, believed),
            "seconds": self.seconds,
        }
        self._since = dict.fromkeys(since, 0)
        self._belief = np.zeros(3)
        return {name: value for name, value in found.items() if not np.isnan(value)}

    def allocation(self) -> Iterator[tuple[str, float, float, float]]:
        """Groups and rollouts by true rate and count since the last call, as ``metric, x, y, value``."""
        for name, table in zip(("allocation", "allocation_rollouts"), self._allocation, strict=True):
            for i, j in np.argwhere(table > 0):
                yield name, float(RATE_EDGES[i]), float(COUNT_EDGES[j]), float(table[i, j])
        self._allocation[:] = 0

    def whole_run(self) -> Iterator[tuple[str, float, float | None, float]]:
        """What belongs to the whole run: reliability and transitions, as ``metric, x, y, value``."""
        for name, sums in zip(("groups", "expected", "true"), self._reliability, strict=True):
            for i in np.flatnonzero(self._reliability[0]):
                yield f"reliability_{name}", float(BELIEF_EDGES[i]), None, float(sums[i])
        moved = transition_matrix(to_extremes(self._start_P), to_extremes(self.world.success_rates(self.followed)))
        for i, j in np.argwhere(moved > 0):
            yield "transition", float(i), float(j), float(moved[i, j])

    def _allocate(self, rates_P: FloatArray, counts_P: IntArray) -> None:
        cells = (bin_of(rates_P, RATE_EDGES), bin_of(counts_P, COUNT_EDGES))
        np.add.at(self._allocation[0], cells, 1)
        np.add.at(self._allocation[1], cells, counts_P)

    def _compare(self, expected_P: FloatArray, true_P: FloatArray, drawn_P: BoolArray) -> None:
        known_P = drawn_P & ~np.isnan(expected_P)
        expected, true = expected_P[known_P], true_P[known_P]
        squared = (expected - true) ** 2
        self._belief += expected.size, squared.sum(), (squared + true * (1 - true)).sum()
        bins = bin_of(expected, BELIEF_EDGES)
        for sums, weights in zip(self._reliability, (np.ones_like(expected), expected, true), strict=True):
            np.add.at(sums, bins, weights)

    def _rows(self, prompt_ids: tuple[str, ...]) -> IntArray:
        return np.array([self._row[prompt_id] for prompt_id in prompt_ids], dtype=np.int64)


def totals(played: Played) -> tuple[tuple[str, ...], IntArray]:
    """Every prompt that was drawn in a step, with its rollouts over all rounds."""
    found: dict[str, int] = {}
    for draw, _ in played.rounds:
        for prompt_id, count in zip(draw.prompt_ids, draw.counts_P.tolist(), strict=True):
            found[prompt_id] = found.get(prompt_id, 0) + count
    return tuple(found), np.array(list(found.values()), dtype=np.int64)


def bin_of(values: FloatArray | IntArray, edges: FloatArray | IntArray) -> IntArray:
    """Index of the bin ``[edge, next edge)`` of each value; the last bin keeps what lies on or beyond its end."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, edges.size - 2)


def to_extremes(rates_P: FloatArray) -> FloatArray:
    """True rates are never quite 0 or 1: within 1 % of them, they count as such."""
    return np.where(rates_P < EXTREME, 0.0, np.where(rates_P > 1 - EXTREME, 1.0, rates_P))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
