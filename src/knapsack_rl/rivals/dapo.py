"""DAPO's dynamic sampling: generate whole batches until enough groups are mixed.

Source: arXiv 2503.14476, section 3.2 and equation 11 (every group has 0 < correct < n); code: verl-recipe,
``dapo/dapo_ray_trainer.py`` (``filter_groups``, ``max_num_gen_batches``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knapsack_rl.groups import equal_draw, group_size, no_groups, pick, to_train
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.rivals.memory import load_memory, save_memory
from knapsack_rl.strategy import Request, Turn, fresh

# max_num_gen_batches in the recipe's scripts.
MOST_BATCHES = 10


@dataclass(frozen=True)
class DynamicSampling:
    """DAPO: n rollouts of the next prompts, keep the groups whose rewards differ, again until the batch is full.

    n = ``budget // groups``, and the batch is full with ``groups`` groups; the surplus of the last round is discarded,
    in order of arrival. Nothing is learned from one step to the next.

    Degenerate cases. A prompt that the sampler gives again within a step is not drawn again (our reading; a data set
    smaller than what is needed then ends the step). At the limit of ``max_batches`` the recipe raises an error and the
    run ends; here the step trains on the mixed groups it has (our reading), and if there are none, on the last round's
    groups, which have no gradient.

    Attributes:
        max_batches: rounds of a step at most; every one waits for the one before.
        oversampling: prompts of a round, in units of ``groups``: verl's default ``gen_batch_size`` is 1, the recipe's
            script uses 3, which spends rollouts to save rounds.

    Raises:
        ValueError: a limit below 1, or (in a step) a budget that leaves groups of one.
    """

    max_batches: int = MOST_BATCHES
    oversampling: int = 1

    def __post_init__(self) -> None:
        for name in ("max_batches", "oversampling"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use at least 1")

    def step(self, request: Request) -> Turn:
        """Draw until the batch is full."""
        met: set[str] = set()

        def choose(missing: int) -> tuple[str, ...]:
            prompt_ids = fresh(request, self.oversampling * request.groups, met)
            met.update(prompt_ids)
            return prompt_ids

        return until_mixed(request, self.max_batches, choose, lambda outcomes: None)

    def save(self, path: Path) -> None:
        """Write that there is nothing to remember."""
        save_memory(path, "dapo", {})

    def load(self, path: Path) -> None:
        """Check that the file is of this rule.

        Raises:
            BeliefFileError: it is missing, damaged, or of another rule.
        """
        load_memory(path, "dapo")


def until_mixed(
    request: Request,
    max_batches: int,
    choose: Callable[[int], tuple[str, ...]],
    observe: Callable[[Outcomes], None],
) -> Turn:
    """Rounds of ``budget // groups`` rollouts of each prompt, until ``groups`` groups are mixed.

    Args:
        request: the step.
        max_batches: rounds at most.
        choose: the prompts of the next round, given how many groups are missing; none ends the step.
        observe: told the outcomes of every round.
    """
    size = group_size(request)
    found: list[Outcomes] = []
    missing, last = request.groups, no_groups(request.step)
    for _ in range(max_batches):
        prompt_ids = choose(missing)
        if not prompt_ids:
            break
        last = yield equal_draw(prompt_ids, size)
        observe(last)
        found.append(pick(last, last.mixed_P))
        missing -= len(found[-1].prompt_ids)
        if missing <= 0:
            break
    return to_train(request.step, found, request.groups, last)
