"""GRESO: refuse, before drawing, prompts whose last groups were all alike; then sample as DAPO does.

Source: arXiv 2506.02177, section 4 (probabilistic filtering, self-adjusting probabilities, adaptive batch size); code:
Infini-AI-Lab/GRESO, ``presampling_selector.py`` and its ``ray_trainer.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.rivals.dapo import MOST_BATCHES, until_mixed
from knapsack_rl.rivals.memory import damaged
from knapsack_rl.strategy import Request, Turn, fresh
from knapsack_rl.table import PromptTable

STEP = 0.01  # by which the exploration probabilities move after every round
LEAST, MOST = 0.05, 0.95  # where they stay
LEAST_KEPT = 0.01  # however long the streak, a prompt is kept with this probability
SAFETY = 1.25  # beta of the adaptive batch size
PATIENCE = 10  # prompts looked at in a round, in units of the prompts it wants


@dataclass
class Greso:
    """Skip a prompt with probability ``1 - max(p^z, 0.01)``; z is its streak of groups that were all alike.

    Streaks of all-correct ("easy") and of all-wrong ("hard") groups are counted apart, with a probability of their own:
    ``p_easy`` and ``p_hard`` start at 0.5 and after every round go down by 0.01 if the round's share of such groups is
    at or above its target, else up, within [0.05, 0.95], from the first time that a prompt comes back on (in the
    authors' code: after the first epoch). The targets share the paper's 25 % of zero-variance groups 1:2.

    A round draws ``min(1.5 groups, 1.25 missing / (1 - dead))`` prompts, ``dead`` being the share of zero-variance
    groups in the round before; n = ``budget // groups``. The rest is dynamic sampling as in `DynamicSampling`, with its
    degenerate cases.

    Degenerate cases. Prompts of which fewer than two rollouts were answered leave streaks alone. A round looks at no
    more than 10 times the prompts it wants; if it kept none of them, it draws the last ones it looked at all the same,
    so that a data set of dead prompts costs rounds, not an endless loop (both our reading). The authors count a mean
    reward above .98 as all correct and below .11 as all wrong, because of a format reward; here the rewards must be
    equal, and they are easy if they reached the threshold of success.

    Attributes:
        seed: of the skipping.
        max_batches: rounds of a step at most.
        easy_target, hard_target: shares of easy and hard groups that the probabilities steer to.
        oversampling: prompts of a round at most, in units of ``groups``.
    """

    seed: int = 0
    max_batches: int = MOST_BATCHES
    easy_target: float = 0.25 / 3
    hard_target: float = 0.5 / 3
    oversampling: float = 1.5
    p_easy: float = field(default=0.5, init=False)
    p_hard: float = field(default=0.5, init=False)
    dead: float = field(default=0.0, init=False)

    COLUMNS = {"visits": np.int32, "easy": np.int32, "hard": np.int32}  # noqa: RUF012  a constant

    def __post_init__(self) -> None:
        self.table = PromptTable(self.COLUMNS)

    def step(self, request: Request) -> Turn:
        """Filter, draw, learn, until the batch is full."""
        rng = np.random.default_rng([self.seed, request.step])
        met: set[str] = set()

        def choose(missing: int) -> tuple[str, ...]:
            wanted = min(self.oversampling * request.groups, SAFETY * missing / max(1 - self.dead, LEAST_KEPT))
            prompt_ids = self._select(request, math.ceil(wanted), met, rng)
            met.update(prompt_ids)
            return prompt_ids

        return until_mixed(request, self.max_batches, choose, self._learn)

    def keep_probabilities(self, prompt_ids: tuple[str, ...]) -> FloatArray:
        """With what probability each prompt is drawn when the sampler offers it, ``[P]``; 1 without a streak."""
        rows = self.table.rows(prompt_ids)
        known, streaks = rows >= 0, np.zeros((2, rows.size))
        for i, name in enumerate(("easy", "hard")):
            streaks[i, known] = self.table[name][rows[known]]
        kept_P: FloatArray = np.maximum(self.p_easy ** streaks[0] * self.p_hard ** streaks[1], LEAST_KEPT)
        return kept_P

    def _select(self, request: Request, wanted: int, met: set[str], rng: np.random.Generator) -> tuple[str, ...]:
        """The next prompts that are not skipped."""
        kept: dict[str, None] = {}
        offered: tuple[str, ...] = ()
        looked = 0
        while len(kept) < wanted and looked < PATIENCE * wanted:
            k = wanted - len(kept)
            new = fresh(request, k, met | kept.keys())
            offered, looked = new or offered, looked + k
            lucky_P = rng.random(len(new)) < self.keep_probabilities(new)
            kept.update(dict.fromkeys([new[i] for i in np.flatnonzero(lucky_P).tolist()]))
        return tuple(kept) or offered

    def _learn(self, outcomes: Outcomes) -> None:
        """Lengthen or end the streaks, and steer the probabilities by what came."""
        judged_P = outcomes.attempts_P >= 2
        if not judged_P.any():
            return
        rows = self.table.add(outcomes.prompt_ids)
        alike_P = judged_P & ~outcomes.mixed_P
        easy_P = alike_P & (outcomes.successes_P > 0)
        returned = bool((self.table["visits"][rows] > 0).any())
        self.table["visits"][rows] += 1
        for name, streak_P in (("easy", easy_P), ("hard", alike_P & ~easy_P)):
            longer_P = np.where(streak_P, self.table[name][rows] + 1, 0)
            self.table[name][rows] = np.where(judged_P, longer_P, self.table[name][rows])
        self.dead = _share(alike_P, judged_P)
        if returned:
            self.p_easy = _steered(self.p_easy, _share(easy_P, judged_P), self.easy_target)
            self.p_hard = _steered(self.p_hard, _share(alike_P & ~easy_P, judged_P), self.hard_target)

    def save(self, path: Path) -> None:
        """Write streaks and probabilities, all or nothing."""
        self.table.save(path, {"kind": "greso", "p_easy": self.p_easy, "p_hard": self.p_hard, "dead": self.dead})

    def load(self, path: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            BeliefFileError: the file is missing, damaged, or of another rule; then nothing changes.
        """
        table = PromptTable(self.COLUMNS)
        found = table.load(path, {"kind": "greso"})
        try:
            numbers = [float(found[name]) for name in ("p_easy", "p_hard", "dead")]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, error) from error
        self.table, (self.p_easy, self.p_hard, self.dead) = table, numbers


def _share(some_P: BoolArray, of_P: BoolArray) -> float:
    return float(some_P.sum() / of_P.sum())


def _steered(probability: float, share: float, target: float) -> float:
    """A step down where there is too much of what it lets through, else a step up."""
    return max(probability - STEP, LEAST) if share >= target else min(probability + STEP, MOST)
