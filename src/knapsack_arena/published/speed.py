"""SPEED-RL: screen prompts with a few rollouts, and spend the rest on those with both successes and failures.

Source: arXiv 2506.09016, section 4 (two-phase inference, and its pre-fetching schedule); code: Zanette-Labs/speed-rl,
``data_controller.py``, ``fast_dapo_ray_trainer.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from knapsack_arena.published.pending import PendingGroups
from knapsack_arena.strategies import StepGenerator, StepSpec, take_unseen
from knapsack_arena.strategies.groups import no_groups, pick, to_train
from knapsack_rl.files import SavedToFile, State, check_kind
from knapsack_rl.outcomes import Outcomes


@dataclass
class Speed(SavedToFile):
    """``n_init`` rollouts of new prompts; those with 0 < pass rate < 1 get ``n_continue`` more a round later.

    Every round is one call to the engine: it continues the prompts that passed the screening before, oldest first, and
    screens ``groups`` new ones for later rounds. A group that is trained on has all its n_init + n_continue rollouts,
    screening included, although the screening selected it and may be of an older policy (a bias that the paper
    accepts).

    Scale (our reading). The paper's group is n = 24 in all its comparisons; so a batch is full with ``budget // 24``
    groups (at least one), the rollouts of an equal division, and the spending differs from the budget by the screening
    and by groups kept for later. New prompts are screened only while fewer than a batch of groups is pending, else the
    queue would grow without end.

    Degenerate cases. The first step has no pending groups and so at least two rounds. A prompt that is pending, or was
    screened in this step, is not screened again. After ``max_rounds`` rounds, or when the sampler has no new prompts
    and none is pending, the step trains on the groups it has; without any complete group, on the last screening, which
    has no gradient (our reading: the authors' loop has no limit).

    Attributes:
        n_init, n_continue: rollouts of the screening and of the continuation; 4 and 20 in the paper.
        max_rounds: most rounds of a step.

    Raises:
        ValueError: a screening of fewer than 2, which cannot be mixed; no continuation; or no rounds.
    """

    n_init: int = 4
    n_continue: int = 20
    max_rounds: int = 10

    def __post_init__(self) -> None:
        for name, least in (("n_init", 2), ("n_continue", 1), ("max_rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: use at least {least}")
        self.pending = PendingGroups()

    def step(self, spec: StepSpec) -> StepGenerator:
        """Rounds of continuing and screening, until the batch is full."""
        groups = max(1, spec.budget // (self.n_init + self.n_continue))
        complete: list[Outcomes] = []
        missing, met, last = groups, set[str](), no_groups(spec.step)
        for _ in range(self.max_rounds):
            oldest = np.arange(min(missing, len(self.pending)))
            new: tuple[str, ...] = ()
            if len(self.pending) - oldest.size < groups:
                new = take_unseen(spec, spec.groups, met | set(self.pending.groups.prompt_ids))
                met.update(new)
            if not oldest.size and not new:
                break
            outcomes = yield self.pending.request(oldest, self.n_continue, new, self.n_init)
            continued, last = self.pending.settle(oldest, outcomes)
            self.pending.add(pick(last, last.mixed_P))
            complete.append(continued)
            missing -= oldest.size
            if not missing:
                break
        return to_train(spec.step, complete, groups, last)

    def state_dict(self) -> State:
        """The pending groups with their rollouts."""
        return {"kind": "speed-rl", "pending": self.pending.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another rule, or damaged.
        """
        check_kind(state, kind="speed-rl")
        self.pending = PendingGroups.from_state(state.get("pending") or {})
