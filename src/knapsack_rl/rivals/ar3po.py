"""AR3PO's adaptive rollout: stages of a few rollouts, until a prompt is solved once.

Source: arXiv 2509.25808, the section on adaptive rollout. No code is public.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knapsack_rl.groups import equal_draw, group_size, join, pick
from knapsack_rl.rivals.memory import load_memory, save_memory
from knapsack_rl.strategy import Batch, Request, Turn


@dataclass(frozen=True)
class Ar3po:
    """``per_stage`` rollouts of every prompt that has not been solved yet, ``stages`` times at most.

    All rollouts are trained on, so that groups have ``per_stage`` to ``per_stage * stages``. That the last stage ends
    with a success biases the group's mean upwards, which the paper leaves as it is.

    Left out: response reuse. The paper gives a prompt that stays unsolved a correct answer from an earlier epoch; here
    there are rewards and no answers, so such a group is trained on as it is and has no gradient.

    Scale (our reading; the numbers are not in the text that we have). A stage is half of n = ``budget // groups``, at
    least 2, and there are 4 of them, so that an unsolved prompt gets 2n.

    Degenerate cases. A prompt solved throughout in its first stage has no gradient and gets no more. Rollouts without
    an answer do not solve; prompts with fewer than two answers are not trained on.

    Attributes:
        stages: at most; each waits for the one before.
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

    def step(self, request: Request) -> Turn:
        """Draw until all are solved."""
        size = group_size(request)
        per_stage = max(2, size // 2) if self.per_stage is None else self.per_stage
        open_ids, drawn = request.take(request.groups), join(request.step, [])
        for _ in range(self.stages):
            outcomes = yield equal_draw(open_ids, per_stage)
            drawn = join(request.step, [drawn, outcomes])
            open_ids = tuple([drawn.prompt_ids[i] for i in np.flatnonzero(drawn.successes_P == 0).tolist()])
            if not open_ids:
                break
        return Batch(pick(drawn, drawn.attempts_P >= 2))

    def save(self, path: Path) -> None:
        """Write that there is nothing to remember."""
        save_memory(path, "ar3po", {})

    def load(self, path: Path) -> None:
        """Check that the file is of this rule.

        Raises:
            BeliefFileError: it is missing, damaged, or of another rule.
        """
        load_memory(path, "ar3po")
