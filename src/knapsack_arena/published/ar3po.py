"""AR3PO's adaptive rollout: stages of a few rollouts each, until a prompt is solved once.

Source: arXiv 2509.25808, the section on adaptive rollout. No code is public.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapsack_arena.strategies import Batch, StepGenerator, StepSpec
from knapsack_arena.strategies.groups import equal_request, group_size, join, pick
from knapsack_rl.files import SavedToFile
from knapsack_rl.outcomes import Outcomes


@dataclass(frozen=True)
class Ar3po(SavedToFile):
    """Stages of ``per_stage`` rollouts for every prompt not solved yet, at most ``stages`` of them.

    All rollouts are trained on: groups have ``per_stage`` to ``per_stage * stages``. Stopping after a success biases
    the group's mean upwards; the paper does not correct this.

    Left out: response reuse. The paper gives an unsolved prompt a correct answer from an earlier epoch; here there are
    rewards and no answers, so such a group is trained on unchanged and has no gradient.

    Scale (our reading; the text available to us has no numbers). A stage is half of n = ``budget // groups``, at least
    2, and there are 4 of them, so that an unsolved prompt gets 2n.

    Degenerate cases. A prompt whose first stage is all correct has no gradient and gets no more. Rollouts without an
    answer do not count as solved; prompts with fewer than two answers are not trained on.

    Attributes:
        stages: most stages of a step, run one after another.
        per_stage: rollouts of a stage; None for half of an equal division.

    Raises:
        ValueError: no stages, stages of fewer than 2, or (in a step) a budget that leaves groups of one.
    """

    stages: int = 4
    per_stage: int | None = None

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ValueError(f"stages is {self.stages}: use at least 1")
        if self.per_stage is not None and self.per_stage < 2:
            raise ValueError(f"per_stage is {self.per_stage}: a group of one has no gradient, use at least 2")

    def step(self, spec: StepSpec) -> StepGenerator:
        """Generate stages until all prompts are solved."""
        size = group_size(spec)
        per_stage = max(2, size // 2) if self.per_stage is None else self.per_stage
        open_ids, generated = spec.take(spec.groups), join(spec.step, [])
        for _ in range(self.stages):
            outcomes = yield equal_request(open_ids, per_stage)
            generated = join(spec.step, [generated, outcomes])
            open_ids = self.unsolved(generated)
            if not open_ids:
                break
        return Batch(pick(generated, generated.attempts_P >= 2))

    def unsolved(self, generated: Outcomes) -> tuple[str, ...]:
        """The prompts of a step that get another stage."""
        return tuple([generated.prompt_ids[i] for i in np.flatnonzero(generated.successes_P == 0).tolist()])
