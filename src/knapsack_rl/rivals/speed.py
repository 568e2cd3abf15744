"""SPEED-RL: screen prompts with a few rollouts, and spend the rest on those that are neither solved nor hopeless.

Source: arXiv 2506.09016, section 4 (two-phase inference, and its pre-fetching schedule); code: Zanette-Labs/speed-rl,
``data_controller.py``, ``fast_dapo_ray_trainer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knapsack_rl.groups import join, no_groups, pick, to_train
from knapsack_rl.notation import IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.rivals.memory import damaged, load_memory, save_memory
from knapsack_rl.rivals.waiting import Waiting
from knapsack_rl.strategy import Draw, Request, Turn, fresh


@dataclass
class Speed:
    """``n_init`` rollouts of new prompts; those with 0 < pass rate < 1 get ``n_continue`` more a round later.

    Every round is one call to the engine: it continues the prompts that passed the screening before, oldest first, and
    screens ``groups`` new ones for the rounds to come. A group that is trained on has all its n_init + n_continue
    rollouts, screening included, though the screening decided its fate and may be of an older policy (a bias that the
    paper accepts).

    Scale (our reading). The paper's group is n = 24, whatever is compared with it; so a batch is full with
    ``budget // 24`` groups (at least one), the rollouts of an equal division, and the spending differs from the budget
    by the screening and by what was kept. New prompts are screened only while fewer than a batch of groups wait, else
    the queue would grow without end.

    Degenerate cases. The first step has nothing to continue and so at least two rounds. A prompt that waits, or was
    screened in this step, is not screened again. After ``max_rounds`` rounds, or when the sampler has nothing new and
    nothing waits, the step trains on what it has; without any finished group, on the last screening, which has no
    gradient (our reading: the authors' loop has no limit).

    Attributes:
        n_init, n_continue: rollouts of the screening and of the continuation; 4 and 20 in the paper.
        max_rounds: rounds of a step at most.

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
        self.waiting = Waiting()

    def step(self, request: Request) -> Turn:
        """Rounds of continuing and screening, until the batch is full."""
        groups = max(1, request.budget // (self.n_init + self.n_continue))
        finished: list[Outcomes] = []
        missing, met, last = groups, set[str](), no_groups(request.step)
        for _ in range(self.max_rounds):
            oldest = np.arange(min(missing, len(self.waiting)))
            new: tuple[str, ...] = ()
            if len(self.waiting) - oldest.size < groups:
                new = fresh(request, request.groups, met | set(self.waiting.groups.prompt_ids))
                met.update(new)
            if not oldest.size and not new:
                break
            outcomes = yield begun_and_new(self.waiting, oldest, new, self.n_continue, self.n_init)
            done, last = settle(self.waiting, oldest, outcomes)
            self.waiting.add(pick(last, last.mixed_P))
            finished.append(done)
            missing -= oldest.size
            if not missing:
                break
        return to_train(request.step, finished, groups, last)

    def save(self, path: Path) -> None:
        """Write the groups that wait, with their rollouts, all or nothing."""
        save_memory(path, "speed-rl", self.waiting.fields())

    def load(self, path: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            BeliefFileError: the file is missing, damaged, or of another rule; then nothing changes.
        """
        found = load_memory(path, "speed-rl")
        try:
            self.waiting = Waiting.of_fields(found)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, error) from error


def begun_and_new(waiting: Waiting, places: IntArray, new: tuple[str, ...], more: int, first: int) -> Draw:
    """One draw of both: ``more`` rollouts of the groups at these places, then ``first`` of the new prompts."""
    begun = tuple([waiting.groups.prompt_ids[i] for i in places.tolist()])
    counts_P = np.repeat(np.array([more, first], dtype=np.int64), [len(begun), len(new)])
    return Draw(begun + new, counts_P)


def settle(waiting: Waiting, places: IntArray, outcomes: Outcomes) -> tuple[Outcomes, Outcomes]:
    """What came of such a draw: the groups that waited, now whole and waiting no more, and those of the new prompts."""
    everyone = np.arange(len(outcomes.prompt_ids))
    begun = pick(waiting.groups, places)
    done = join(outcomes.step, [begun, pick(outcomes, everyone[: places.size])])
    waiting.remove(places)
    return done, pick(outcomes, everyone[places.size :])
