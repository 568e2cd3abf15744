"""SPO: one rollout per prompt, judged against a running estimate of the prompt's success rate.

Source: arXiv 2509.13232 (Single-stream Policy Optimization); code: verl-project/verl-recipe, ``spo/spo_ray_trainer.py``
at 48ea0a7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knapsack_arena.strategies import Batch, RolloutRequest, StepGenerator, StepSpec, take_unseen
from knapsack_arena.strategies.groups import pick
from knapsack_rl.beliefs.prompt_store import PromptTable
from knapsack_rl.files import SavedToFile, State, check_kind
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes

PRIOR = 0.5
# Added to the weight of every candidate, so that each may be drawn.
EXPLORATION = 0.05


@dataclass
class Spo(SavedToFile):
    """Spends the step's budget on as many different prompts, one rollout each, and normalises over the batch.

    A prompt has a and b, at first 1/2 each, and the value v = a / (a + b). Of ``pool * budget`` candidates, ``budget``
    are drawn without replacement with weights sqrt(v (1 - v)) + 0.05. A rollout with reward r has the advantage

        A = (r - v - m) / s,        m, s the mean and standard deviation (n - 1) of r - v over the batch,

    and then a <- keep a + r, b <- keep b + 1 - r.

    Degenerate cases. ``keep`` is constant, which is an option of the authors' code; their default measures how far the
    policy has moved on the prompt's last answer, between 0.875 and 0.96, which a rule does not see here. Values begin
    without their estimate by earlier rollouts, which would cost some. Where there are fewer candidates than rollouts,
    some are drawn more than once. If all r - v are equal there is nothing to learn from.

    Attributes:
        seed: of the draws, together with the step.
        pool: candidates, in units of the budget; as many as the data set has, if it has fewer.
        keep: share of the old evidence that is kept at a visit.

    Raises:
        ValueError: a pool below 1, or ``keep`` outside [0, 1].
    """

    seed: int = 0
    pool: int = 2
    keep: float = 0.875

    COLUMNS = {"alpha": np.float64, "beta": np.float64}  # noqa: RUF012  a constant

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ValueError(f"pool is {self.pool}: at least as many candidates as rollouts are needed, use 1 or more")
        if not 0 <= self.keep <= 1:
            raise ValueError(f"keep is {self.keep}: it lies in [0, 1]")
        self.table = PromptTable(self.COLUMNS)

    def step(self, spec: StepSpec) -> StepGenerator:
        """Draw, generate, compare with the values, learn."""
        candidates = take_unseen(spec, self.pool * spec.budget)
        value_P = self.values(candidates)
        weight_P = np.sqrt(value_P * (1 - value_P)) + EXPLORATION
        random = np.random.default_rng([self.seed, spec.step])
        again = spec.budget > len(candidates)
        drawn = random.choice(len(candidates), spec.budget, replace=again, p=weight_P / weight_P.sum())
        chosen, counts_P = np.unique(drawn, return_counts=True)
        prompt_ids = tuple([candidates[i] for i in chosen.tolist()])
        outcomes = yield RolloutRequest(prompt_ids, counts_P.astype(np.int64), value_P[chosen])
        self._learn(outcomes)
        answered = outcomes.attempts_P > 0
        trained, value_P = pick(outcomes, answered), value_P[chosen][answered]
        surprise_PG = (trained.rewards_PG - value_P[trained.group_PG])[trained.answered_PG]
        mean = float(surprise_PG.mean()) if surprise_PG.size else 0.0
        spread = float(surprise_PG.std(ddof=1)) if surprise_PG.size > 1 else 0.0
        return Batch(trained, value_P + mean, np.full(value_P.size, spread if spread > 0 else 1.0))

    def values(self, prompt_ids: Sequence[str]) -> FloatArray:
        """The running estimate of each prompt's success rate, ``[P]``."""
        rows = self.table.rows(prompt_ids)
        alpha_P, beta_P = np.full(rows.size, PRIOR), np.full(rows.size, PRIOR)
        alpha_P[rows >= 0] = self.table["alpha"][rows[rows >= 0]]
        beta_P[rows >= 0] = self.table["beta"][rows[rows >= 0]]
        value_P: FloatArray = alpha_P / (alpha_P + beta_P)
        return value_P

    def _learn(self, outcomes: Outcomes) -> None:
        known = len(self.table)
        rows = self.table.add(outcomes.prompt_ids)
        answers = outcomes.success_PG[outcomes.answered_PG].astype(float).tolist()
        for name in self.COLUMNS:
            self.table[name][known:] = PRIOR
        alpha, beta = self.table["alpha"], self.table["beta"]
        for row, success in zip(rows[outcomes.group_PG[outcomes.answered_PG]].tolist(), answers, strict=True):
            alpha[row] = self.keep * alpha[row] + success
            beta[row] = self.keep * beta[row] + 1 - success

    def state_dict(self) -> State:
        """The values of each prompt."""
        return {"kind": "spo", "prompts": self.table.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another rule, or damaged.
        """
        check_kind(state, kind="spo")
        self.table = self.table.read_state(state.get("prompts") or {})
