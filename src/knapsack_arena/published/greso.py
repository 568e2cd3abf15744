"""GRESO: skip, before generation, prompts whose last groups had equal rewards; then sample as DAPO does.

Source: arXiv 2506.02177, section 4 (probabilistic filtering, self-adjusting probabilities, adaptive batch size); code:
Infini-AI-Lab/GRESO, ``presampling_selector.py`` and its ``ray_trainer.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from knapsack_arena.published.dapo import MOST_BATCHES, until_mixed
from knapsack_arena.strategies import StepGenerator, StepSpec, take_unseen
from knapsack_rl.beliefs.prompt_store import PromptTable
from knapsack_rl.files import SavedToFile, State, check_kind, saved_array
from knapsack_rl.notation import BoolArray, FloatArray
from knapsack_rl.outcomes import Outcomes

STEP = 0.01  # change of the exploration probabilities after every round
LEAST, MOST = 0.05, 0.95  # their limits
LEAST_KEPT = 0.01  # least probability of keeping a prompt, however long its streak
SAFETY = 1.25  # beta of the adaptive batch size
PATIENCE = 10  # prompts examined in a round, in units of the prompts wanted


@dataclass
class Greso(SavedToFile):
    """Skip a prompt with probability ``1 - max(p^z, 0.01)``; z counts its latest groups with equal rewards in a row.

    Streaks of all-correct ("easy") and of all-wrong ("hard") groups are counted separately, each with a probability:
    ``p_easy`` and ``p_hard`` start at 0.5 and after every round go down by 0.01 if the round's share of such groups is
    at or above its target, else up, within [0.05, 0.95], from the first repeated prompt on (in the authors' code: after
    the first epoch). The targets share the paper's 25 % of zero-variance groups 1:2.

    A round generates ``min(1.5 groups, 1.25 missing / (1 - zero_gradient_share))`` prompts, with the share of
    zero-variance groups in the round before; n = ``budget // groups``. The rest is dynamic sampling as in
    `DynamicSampling`, with its degenerate cases.

    Degenerate cases. Prompts with fewer than two answers leave streaks unchanged. A round examines no more than 10
    times the prompts it wants; if all of them are skipped, it generates the last ones examined, so that a data set
    without gradient costs rounds, not an endless loop (both our reading). The authors count a mean reward above .98 as
    all correct and below .11 as all wrong, because of a format reward; here the rewards must be equal, and they are
    easy if they reached the threshold of success.

    Attributes:
        seed: of the skipping.
        max_batches: most rounds of a step.
        easy_target, hard_target: shares of easy and hard groups that the probabilities steer to.
        oversampling: most prompts of a round, in units of ``groups``.
        zero_gradient_share: share of zero-variance groups in the last round.
    """

    seed: int = 0
    max_batches: int = MOST_BATCHES
    easy_target: float = 0.25 / 3
    hard_target: float = 0.5 / 3
    oversampling: float = 1.5
    p_easy: float = field(default=0.5, init=False)
    p_hard: float = field(default=0.5, init=False)
    zero_gradient_share: float = field(default=0.0, init=False)

    COLUMNS = {"visits": np.int32, "easy": np.int32, "hard": np.int32}  # noqa: RUF012  a constant

    def __post_init__(self) -> None:
        self.table = PromptTable(self.COLUMNS)

    def step(self, spec: StepSpec) -> StepGenerator:
        """Filter, generate and learn, until the batch is full."""
        rng = np.random.default_rng([self.seed, spec.step])
        met: set[str] = set()

        def choose(missing: int) -> tuple[str, ...]:
            wanted = min(
                self.oversampling * spec.groups, SAFETY * missing / max(1 - self.zero_gradient_share, LEAST_KEPT)
            )
            prompt_ids = self._select(spec, math.ceil(wanted), met, rng)
            met.update(prompt_ids)
            return prompt_ids

        return until_mixed(spec, self.max_batches, choose, self._learn)

    def keep_probabilities(self, prompt_ids: tuple[str, ...]) -> FloatArray:
        """Probability of generating each prompt when the sampler offers it, ``[P]``; 1 without a streak."""
        rows = self.table.rows(prompt_ids)
        known, streaks = rows >= 0, np.zeros((2, rows.size))
        for i, name in enumerate(("easy", "hard")):
            streaks[i, known] = self.table[name][rows[known]]
        kept_P: FloatArray = np.maximum(self.p_easy ** streaks[0] * self.p_hard ** streaks[1], LEAST_KEPT)
        return kept_P

    def _select(self, spec: StepSpec, wanted: int, met: set[str], rng: np.random.Generator) -> tuple[str, ...]:
        """The next prompts that are not skipped."""
        kept: dict[str, None] = {}
        offered: tuple[str, ...] = ()
        examined = 0
        while len(kept) < wanted and examined < PATIENCE * wanted:
            k = wanted - len(kept)
            new = take_unseen(spec, k, met | kept.keys())
            offered, examined = new or offered, examined + k
            kept_P = rng.random(len(new)) < self.keep_probabilities(new)
            kept.update(dict.fromkeys([new[i] for i in np.flatnonzero(kept_P).tolist()]))
        return tuple(kept) or offered

    def _learn(self, outcomes: Outcomes) -> None:
        """Lengthen or end the streaks, and adjust the probabilities."""
        judged_P = outcomes.attempts_P >= 2
        if not judged_P.any():
            return
        rows = self.table.add(outcomes.prompt_ids)
        equal_P = judged_P & ~outcomes.mixed_P
        easy_P = equal_P & (outcomes.successes_P > 0)
        returned = bool((self.table["visits"][rows] > 0).any())
        self.table["visits"][rows] += 1
        for name, streak_P in (("easy", easy_P), ("hard", equal_P & ~easy_P)):
            longer_P = np.where(streak_P, self.table[name][rows] + 1, 0)
            self.table[name][rows] = np.where(judged_P, longer_P, self.table[name][rows])
        self.zero_gradient_share = _share(equal_P, judged_P)
        if returned:
            self.p_easy = _steered(self.p_easy, _share(easy_P, judged_P), self.easy_target)
            self.p_hard = _steered(self.p_hard, _share(equal_P & ~easy_P, judged_P), self.hard_target)

    def state_dict(self) -> State:
        """Streaks and probabilities."""
        numbers = np.array([self.p_easy, self.p_hard, self.zero_gradient_share])
        return {"kind": "greso", "numbers": numbers, "prompts": self.table.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another rule, or damaged.
        """
        check_kind(state, kind="greso")
        numbers = saved_array(state, "numbers", np.float64, (3,))
        self.table = self.table.read_state(state.get("prompts") or {})
        self.p_easy, self.p_hard, self.zero_gradient_share = numbers.tolist()


def _share(some_P: BoolArray, of_P: BoolArray) -> float:
    return float(some_P.sum() / of_P.sum())


def _steered(probability: float, share: float, target: float) -> float:
    """One step down where the share is at or above its target, else one step up."""
    return max(probability - STEP, LEAST) if share >= target else min(probability + STEP, MOST)
