"""Reinforce-Ada: draw in rounds until a prompt has shown both sides, then train on a balanced few.

Source: arXiv 2510.04996; code: RLHFlow/Reinforce-Ada, ``ray_trainer.py``
(``_generate_multi_round_adaptive_downsampling``) and the global statistics of ``core_algos.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from knapsack_rl.groups import equal_draw, group_size, join, mean_and_deviation, pick, thin
from knapsack_rl.notation import BoolArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.rivals.memory import load_memory, save_memory
from knapsack_rl.strategy import Batch, Request, Turn

Choice = Literal["balanced", "positive"]


@dataclass(frozen=True)
class ReinforceAda:
    """Rounds of ``per_round`` rollouts for the prompts that are not done, ``max_rounds`` at most.

    With n = ``budget // groups``, a prompt is done

    - ``balanced``: with n // 2 successes and n - n // 2 failures;
    - ``positive``: with one success (the "positive-focused" of the authors' code).

    It then trains on n of its rollouts, the first of each kind: n // 2 successes, failures for the rest, and more
    successes where failures are short. The baseline and the scale of its group are the mean and the standard deviation
    of *all* its rollouts (the authors' ``global_stat_est``; with n - 1, as in GRPO: our reading).

    Rollouts: ``per_round`` to ``per_round * max_rounds`` a prompt, whatever the budget. What is drawn beyond n is
    thrown away but for the statistics.

    Degenerate cases. A prompt that shows one side only is drawn in all rounds, and its group has no gradient. Rollouts
    without an answer count on neither side and are not trained on; a prompt left with fewer than two rollouts is not
    trained on at all. In the authors' code a success is a reward above 0.7; here it is one that reached the threshold
    of success.

    Attributes:
        choice: when a prompt is done.
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

    def step(self, request: Request) -> Turn:
        """Draw until all are done, then thin out."""
        size = group_size(request)
        prompt_ids = request.take(request.groups)
        open_ids, drawn = prompt_ids, join(request.step, [])
        for _ in range(self.max_rounds):
            outcomes = yield equal_draw(open_ids, self.per_round)
            drawn = join(request.step, [drawn, outcomes])
            open_ids = tuple([drawn.prompt_ids[i] for i in np.flatnonzero(~self._done(drawn, size)).tolist()])
            if not open_ids:
                break
        kept = thin(drawn, balanced_rows(drawn, size))
        groups_P = kept.counts_P >= 2
        mean_P, deviation_P = mean_and_deviation(drawn)
        return Batch(pick(kept, groups_P), mean_P[groups_P], deviation_P[groups_P])

    def _done(self, drawn: Outcomes, size: int) -> BoolArray:
        failures_P = drawn.attempts_P - drawn.successes_P
        if self.choice == "positive":
            return drawn.successes_P >= 1
        return (drawn.successes_P >= size // 2) & (failures_P >= size - size // 2)

    def save(self, path: Path) -> None:
        """Write that there is nothing to remember."""
        save_memory(path, f"reinforce-ada-{self.choice}", {})

    def load(self, path: Path) -> None:
        """Check that the file is of this rule.

        Raises:
            BeliefFileError: it is missing, damaged, or of another rule.
        """
        load_memory(path, f"reinforce-ada-{self.choice}")


def balanced_rows(outcomes: Outcomes, size: int) -> BoolArray:
    """The rows that remain when groups are thinned out to ``size``: half of each kind if possible, the first ones."""
    successes_P, failures_P = outcomes.successes_P, outcomes.attempts_P - outcomes.successes_P
    kept_failures_P = np.minimum(size - np.minimum(size // 2, successes_P), failures_P)
    kept_successes_P = np.minimum(size - kept_failures_P, successes_P)
    answered_PG, success_PG = outcomes.answered_PG, outcomes.success_PG
    return _first(outcomes, success_PG, kept_successes_P) | _first(outcomes, answered_PG & ~success_PG, kept_failures_P)


def _first(outcomes: Outcomes, kind_PG: BoolArray, most_P: IntArray) -> BoolArray:
    """The first so many rows of a kind in each group."""
    group_PG = outcomes.group_PG
    seen_PG = np.cumsum(kind_PG)
    before_P = np.concatenate([[0], seen_PG])[np.cumsum(outcomes.counts_P) - outcomes.counts_P]
    first_PG: BoolArray = kind_PG & (seen_PG - before_P[group_PG] <= most_P[group_PG])
    return first_PG
