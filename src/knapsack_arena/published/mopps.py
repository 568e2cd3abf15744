"""MoPPS: sample every candidate's success rate from its posterior, and take those nearest to one half.

Source: arXiv 2507.04632, section 3 (equations of the posterior and of Thompson sampling); code: thu-rllab/MoPPS,
``mpts_llm.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knapsack_arena.strategies import Batch, RolloutRequest, StepGenerator, StepSpec, take_unseen
from knapsack_arena.strategies.groups import group_size, pick
from knapsack_rl.beliefs.prompt_store import PromptTable
from knapsack_rl.files import SavedToFile, State, check_kind
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes

PRIOR = 1.0


@dataclass
class Mopps(SavedToFile):
    """Thompson sampling of prompts; all of them get ``n = budget // groups`` rollouts, in one round.

    The success rate of a prompt is believed to follow Beta(a, b), at first Beta(1, 1). After a group with s successes
    and f failures,

        a <- decay a + (1 - decay) 1 + s,        b <- decay b + (1 - decay) 1 + f.

    Of ``pool * groups`` candidates, each with a sample g from its posterior, the ``groups`` with the least
    ``|g - target|`` are taken; the others are skipped.

    Degenerate cases. A belief decays with visits and not with time, as in the authors' code. Their update counts ``n``
    rollouts even if fewer are answered (and 8 for both where n is 1, an error of operator precedence); here answers
    are counted, and a group without any changes nothing. Prompts with fewer than two answers are not trained on. Ties,
    which have probability 0, go by the sampler's order.

    Attributes:
        seed: of the samples, together with the step.
        pool: candidates, in units of ``groups``; the authors' scripts use 16.
        decay: share of the old evidence that is kept at a visit; 0.5 in the paper.
        target: the success rate aimed at.

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

    def step(self, spec: StepSpec) -> StepGenerator:
        """Sample, choose, generate, learn."""
        size = group_size(spec)
        candidates = take_unseen(spec, self.pool * spec.groups)
        alpha_P, beta_P = self.posterior(candidates)
        samples_P = np.random.default_rng([self.seed, spec.step]).beta(alpha_P, beta_P)
        chosen = np.argsort(np.abs(samples_P - self.target), kind="stable")[: spec.groups]
        pseudo_count_P = (alpha_P + beta_P)[chosen]
        prompt_ids = tuple([candidates[i] for i in chosen.tolist()])
        counts_P = np.full(chosen.size, size, dtype=np.int64)
        outcomes = yield RolloutRequest(prompt_ids, counts_P, alpha_P[chosen] / pseudo_count_P, pseudo_count_P)
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

    def state_dict(self) -> State:
        """The posteriors."""
        return {"kind": "mopps", "prompts": self.table.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another rule, or damaged.
        """
        check_kind(state, kind="mopps")
        self.table = self.table.read_state(state.get("prompts") or {})
