"""Reinforce-Ada: generate in rounds until a prompt has successes and failures, then train on a balanced subset.

Source: arXiv 2510.04996; code: RLHFlow/Reinforce-Ada, ``ray_trainer.py``
(``_generate_multi_round_adaptive_downsampling``) and the global statistics of ``core_algos.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from knapsack_arena.strategies import Batch, StepGenerator, StepSpec
from knapsack_arena.strategies.groups import equal_request, group_size, join, pick, thin
from knapsack_rl.advantages import group_statistics
from knapsack_rl.files import SavedToFile
from knapsack_rl.notation import BoolArray, IntArray
from knapsack_rl.outcomes import Outcomes

Choice = Literal["balanced", "positive"]


@dataclass(frozen=True)
class ReinforceAda(SavedToFile):
    """Rounds of ``per_round`` rollouts for the prompts that are not complete, at most ``max_rounds`` of them.

    With n = ``budget // groups``, a prompt is complete

    - ``balanced``: with n // 2 successes and n - n // 2 failures;
    - ``positive``: with one success (the "positive-focused" of the authors' code).

    It then trains on n of its rollouts, the first of each kind: n // 2 successes, failures for the rest, and more
    successes where failures are short. The baseline and the scale of its group are the mean and the standard deviation
    of *all* its rollouts (the authors' ``global_stat_est``; with n - 1, as in GRPO: our reading).

    Rollouts: ``per_round`` to ``per_round * max_rounds`` a prompt, independently of the budget. Those beyond n enter
    the statistics only.

    Degenerate cases. A prompt with successes only, or failures only, is generated in all rounds, and its group has no
    gradient. Rollouts without an answer are neither, and are not trained on; a prompt left with fewer than two rollouts
    is not trained on. In the authors' code a success is a reward above 0.7; here it is one that reached the threshold
    of success.

    Attributes:
        choice: when a prompt is complete.
        per_round, max_rounds: 8 and 4 in the authors' code.

    Raises:
        ValueError: an unknown choice, numbers below 1, or (in a step) a budget that leaves groups of one.
    """

    choice: Choice = "balanced"
    per_round: int = 8
    max_rounds: int = 4

    def __post_init__(self) -> None:
        if self.choice not in get_args(Choice):
            raise ValueError(f"choice is {self.choice!r}: choose from {', '.join(get_args(Choice))}")
        for name in ("per_round", "max_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use at least 1")

    def step(self, spec: StepSpec) -> StepGenerator:
        """Generate until all prompts are complete, then thin out."""
        size = group_size(spec)
        prompt_ids = spec.take(spec.groups)
        open_ids, generated = prompt_ids, join(spec.step, [])
        for _ in range(self.max_rounds):
            outcomes = yield equal_request(open_ids, self.per_round)
            generated = join(spec.step, [generated, outcomes])
            open_ids = tuple(
                [generated.prompt_ids[i] for i in np.flatnonzero(~self._complete(generated, size)).tolist()]
            )
            if not open_ids:
                break
        kept = thin(generated, balanced_rows(generated, size))
        groups_P = kept.counts_P >= 2
        whole = group_statistics(generated.group_PG, generated.rewards_PG, len(generated.prompt_ids))
        return Batch(pick(kept, groups_P), whole.mean_P[groups_P], whole.deviation_P[groups_P])

    def _complete(self, generated: Outcomes, size: int) -> BoolArray:
        failures_P = generated.attempts_P - generated.successes_P
        if self.choice == "positive":
            return generated.successes_P >= 1
        return (generated.successes_P >= size // 2) & (failures_P >= size - size // 2)


def balanced_rows(outcomes: Outcomes, size: int) -> BoolArray:
    """The rows kept when groups are thinned out to ``size``, ``[PG]``: the first ones, half of each kind."""
    successes_P, failures_P = outcomes.successes_P, outcomes.attempts_P - outcomes.successes_P
    kept_failures_P = np.minimum(size - np.minimum(size // 2, successes_P), failures_P)
    kept_successes_P = np.minimum(size - kept_failures_P, successes_P)
    answered_PG, success_PG = outcomes.answered_PG, outcomes.success_PG
    return _first(outcomes, success_PG, kept_successes_P) | _first(outcomes, answered_PG & ~success_PG, kept_failures_P)


def _first(outcomes: Outcomes, kind_PG: BoolArray, most_P: IntArray) -> BoolArray:
    """The first ``most_P`` rows of a kind in each group, ``[PG]``."""
    group_PG = outcomes.group_PG
    seen_PG = np.cumsum(kind_PG)
    before_P = np.concatenate([[0], seen_PG])[np.cumsum(outcomes.counts_P) - outcomes.counts_P]
    first_PG: BoolArray = kind_PG & (seen_PG - before_P[group_PG] <= most_P[group_PG])
    return first_PG
