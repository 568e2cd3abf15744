"""DPS: predict by a Markov chain of each prompt's own how its next group ends, and take those that will be mixed.

Source: arXiv 2603.10887 (dynamics-predictive sampling); code: maoyixiu/DPS, ``recipe/dps/task_sampler.py``.
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

# How a group ends: no answer right, some, all.
NONE, SOME, ALL = range(3)
PRIOR = 1.0


@dataclass
class Dps(SavedToFile):
    """The candidates whose next group is most probably mixed; all get ``n = budget // groups`` rollouts, in one round.

    A prompt has a state (none, some or all of its latest group right) and counts alpha of transitions, at first 1 each,
    from state j (column) to state i (row). With A = alpha / column sums and the belief pi before a step,

        observed state e:  U_ij = e_i pi_j A_ij / (sum over i, j),   alpha <- decay alpha + (1 - decay) 1 + U,  pi <- e
        not observed:                                                alpha <- decay alpha + (1 - decay) 1

    and then, in both cases, the prediction for the next step is A pi with the new alpha; for a prompt that is not
    observed this prediction is the next step's pi. Of ``pool * groups`` candidates the ``groups`` with the largest
    predicted probability of "some" are taken; the others are skipped.

    Degenerate cases. A prompt that was never observed has the uniform pi, which its symmetric counts keep. A group
    without answers is not observed. Ties, as of all prompts at first, go by the sampler's order. Prompts with fewer
    than two answers are not trained on.

    Attributes:
        pool: candidates, in units of ``groups``; the authors' scripts use 8.
        decay: share of the old counts that is kept at every step; 0.5 in the authors' scripts, 1 keeps all.

    Raises:
        ValueError: a pool below 1, or a decay outside [0, 1].
    """

    pool: int = 8
    decay: float = 0.5

    # alpha - 1 by row and column, the belief of the latest step, and the prediction of the next.
    COUNTS = tuple(f"from_{j}_to_{i}" for i in range(3) for j in range(3))
    BEFORE = tuple(f"before_{i}" for i in range(3))
    NEXT = tuple(f"next_{i}" for i in range(3))

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ValueError(f"pool is {self.pool}: at least as many candidates as groups are needed, use 1 or more")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay}: it lies in [0, 1]")
        self.table = PromptTable(dict.fromkeys((*self.COUNTS, *self.BEFORE, *self.NEXT), np.float64))

    def step(self, spec: StepSpec) -> StepGenerator:
        """Predict, choose, generate, learn."""
        size = group_size(spec)
        candidates = take_unseen(spec, self.pool * spec.groups)
        predicted_P_S = self.predicted(candidates)
        chosen = np.argsort(-predicted_P_S[:, SOME], kind="stable")[: spec.groups]
        prompt_ids = tuple([candidates[i] for i in chosen.tolist()])
        outcomes = yield RolloutRequest(prompt_ids, np.full(chosen.size, size, dtype=np.int64))
        self._learn(outcomes)
        return Batch(pick(outcomes, outcomes.attempts_P >= 2))

    def predicted(self, prompt_ids: Sequence[str]) -> FloatArray:
        """Probabilities that the next group of each prompt has none, some, all right, ``[P, 3]``."""
        rows = self.table.rows(prompt_ids)
        found = np.full((rows.size, 3), 1 / 3)
        found[rows >= 0] = self._columns(self.NEXT)[rows[rows >= 0]]
        return found

    def _columns(self, names: Sequence[str]) -> FloatArray:
        return np.stack([self.table[name] for name in names], axis=1)

    def _learn(self, outcomes: Outcomes) -> None:
        answered = np.flatnonzero(outcomes.attempts_P)
        known = len(self.table)
        rows = self.table.add([outcomes.prompt_ids[i] for i in answered.tolist()])
        for name in (*self.BEFORE, *self.NEXT):
            self.table[name][known:] = 1 / 3
        excess_P, before_P_S, pi_P_S = (self._columns(names) for names in (self.COUNTS, self.BEFORE, self.NEXT))
        excess_P_I_J = excess_P.reshape(-1, 3, 3)
        all_P = outcomes.successes_P == outcomes.attempts_P
        ends_P = np.where(outcomes.successes_P == 0, NONE, np.where(all_P, ALL, SOME))[answered]
        seen_P_S = np.eye(3)[ends_P]
        soft_P_I_J = seen_P_S[:, :, None] * before_P_S[rows][:, None, :] * _transitions(excess_P_I_J[rows])
        excess_P_I_J = excess_P_I_J * self.decay
        excess_P_I_J[rows] += soft_P_I_J / soft_P_I_J.sum(axis=(1, 2), keepdims=True)
        pi_P_S[rows] = seen_P_S
        next_P_S = np.einsum("pij,pj->pi", _transitions(excess_P_I_J), pi_P_S)
        for names, values in (
            (self.COUNTS, excess_P_I_J.reshape(-1, 9)),
            (self.BEFORE, pi_P_S),
            (self.NEXT, next_P_S / next_P_S.sum(axis=1, keepdims=True)),
        ):
            for i, name in enumerate(names):
                self.table[name][:] = values[:, i]

    def state_dict(self) -> State:
        """The counts and beliefs of each prompt."""
        return {"kind": "dps", "prompts": self.table.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another rule, or damaged.
        """
        check_kind(state, kind="dps")
        self.table = self.table.read_state(state.get("prompts") or {})


def _transitions(excess_P_I_J: FloatArray) -> FloatArray:
    """Expected transitions: counts over their column sums, ``[P, 3, 3]``."""
    alpha_P_I_J = excess_P_I_J + PRIOR
    expected_P_I_J: FloatArray = alpha_P_I_J / alpha_P_I_J.sum(axis=1, keepdims=True)
    return expected_P_I_J
