"""MoPPS: guess every candidate's success rate by a draw from its posterior, and take those nearest to one half.

Source: arXiv 2507.04632, section 3 (equations of the posterior and of Thompson sampling); code: thu-rllab/MoPPS,
``mpts_llm.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knapsack_rl.groups import group_size, pick
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.strategy import Batch, Draw, Request, Turn, fresh
from knapsack_rl.table import PromptTable

PRIOR = 1.0


@dataclass
class Mopps:
    """Thompson sampling of prompts; all of them get ``n = budget // groups`` rollouts, in one round.

    A prompt is believed to succeed with probability ~ Beta(a, b), from Beta(1, 1). When a group of it comes with s
    successes and f failures,

        a <- decay a + (1 - decay) 1 + s,        b <- decay b + (1 - decay) 1 + f.

    Of ``pool * groups`` candidates, each with a draw g from its posterior, the ``groups`` with the least
    ``|g - target|`` are taken; the others are refused.

    Degenerate cases. Time alone does not fade a belief, only a visit does, as in the authors' code. Their update counts
    ``n`` rollouts whatever came back (and 8 for both where n is 1, a slip of precedence); here the answers that came
    are counted, and a group without any changes nothing. Prompts with fewer than two answers are not trained on. Ties,
    which draws from a continuum do not have, go by the sampler's order.

    Attributes:
        seed: of the draws, with the step.
        pool: candidates, in units of ``groups``; the authors' scripts use 16.
        decay: share of the old evidence that is kept at a visit; 0.5 in the paper.
        target: the success rate that teaches most.

    Raises:
        ValueError: a pool below 1, or a decay or target outside [0, 1].
    """

    seed: int = 0
    pool: int = 16
    decay: float = 0.5
    target: float = 0.5

    COLUMNS = {"successes": np.float64, "failures": np.float64}  # noqa: RUF012  a constant: a - 1 and b - 1

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ValueError(f"pool is {self.pool}: at least as many candidates as groups are needed, use 1 or more")
        for name in ("decay", "target"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it lies in [0, 1]")
        self.table = PromptTable(self.COLUMNS)

    def step(self, request: Request) -> Turn:
        """Guess, choose, draw, learn."""
        size = group_size(request)
        candidates = fresh(request, self.pool * request.groups)
        alpha_P, beta_P = self.posterior(candidates)
        guesses_P = np.random.default_rng([self.seed, request.step]).beta(alpha_P, beta_P)
        chosen = np.argsort(np.abs(guesses_P - self.target), kind="stable")[: request.groups]
        strength_P = (alpha_P + beta_P)[chosen]
        prompt_ids = tuple([candidates[i] for i in chosen.tolist()])
        counts_P = np.full(chosen.size, size, dtype=np.int64)
        outcomes = yield Draw(prompt_ids, counts_P, alpha_P[chosen] / strength_P, strength_P)
        self._learn(outcomes)
        return Batch(pick(outcomes, outcomes.attempts_P >= 2))

    def posterior(self, prompt_ids: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """The parameters of the Beta belief of each prompt, each ``[P]``."""
        rows = self.table.rows(prompt_ids)
        counts = np.zeros((2, rows.size))
        known = rows >= 0
        for i, name in enumerate(self.COLUMNS):
            counts[i, known] = self.table[name][rows[known]]
        return counts[0] + PRIOR, counts[1] + PRIOR

    def _learn(self, outcomes: Outcomes) -> None:
        answered = np.flatnonzero(outcomes.attempts_P)
        rows = self.table.add([outcomes.prompt_ids[i] for i in answered.tolist()])
        successes, attempts = outcomes.successes_P[answered], outcomes.attempts_P[answered]
        for name, counts in (("successes", successes), ("failures", attempts - successes)):
            self.table[name][rows] = self.decay * self.table[name][rows] + counts

    def save(self, path: Path) -> None:
        """Write the posteriors, all or nothing."""
        self.table.save(path, {"kind": "mopps"})

    def load(self, path: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            BeliefFileError: the file is missing, damaged, or of another rule; then nothing changes.
        """
        self.table.load(path, {"kind": "mopps"})
