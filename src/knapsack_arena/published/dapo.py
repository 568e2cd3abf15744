"""DAPO's dynamic sampling: generate batches until enough groups are mixed.

Source: arXiv 2503.14476, section 3.2 and equation 11 (every group has 0 < correct < n); code: verl-recipe,
``dapo/dapo_ray_trainer.py`` (``filter_groups``, ``max_num_gen_batches``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from knapsack_arena.strategies import StepGenerator, StepSpec, take_unseen
from knapsack_arena.strategies.groups import equal_request, group_size, no_groups, pick, to_train
from knapsack_rl.files import SavedToFile
from knapsack_rl.outcomes import Outcomes

# max_num_gen_batches in the recipe's scripts.
MOST_BATCHES = 10


@dataclass(frozen=True)
class DynamicSampling(SavedToFile):
    """DAPO: n rollouts of the next prompts, keeping groups whose rewards differ, repeated until the batch is full.

    n = ``budget // groups``, and the batch is full with ``groups`` groups; the surplus of the last round is discarded,
    the latest groups first. No state is kept between steps.

    Degenerate cases. A prompt that the sampler returns again within a step is not generated again (our reading; a data
    set that is too small then ends the step). At the limit of ``max_batches`` the recipe raises an error and the run
    ends; here the step trains on the mixed groups found (our reading), or, if there are none, on the groups of the last
    round, which have no gradient.

    Attributes:
        max_batches: most rounds of a step, run one after another.
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

    def step(self, spec: StepSpec) -> StepGenerator:
        """Generate rounds until the batch is full."""
        met: set[str] = set()

        def choose(missing: int) -> tuple[str, ...]:
            prompt_ids = take_unseen(spec, self.oversampling * spec.groups, met)
            met.update(prompt_ids)
            return prompt_ids

        return until_mixed(spec, self.max_batches, choose, lambda outcomes: None)


def until_mixed(
    spec: StepSpec,
    max_batches: int,
    choose: Callable[[int], tuple[str, ...]],
    observe: Callable[[Outcomes], None],
) -> StepGenerator:
    """Rounds of ``budget // groups`` rollouts of each prompt, until ``groups`` groups are mixed.

    Args:
        spec: the step.
        max_batches: most rounds.
        choose: returns the prompts of the next round, given the number of missing groups; none ends the step.
        observe: called with the outcomes of every round.
    """
    size = group_size(spec)
    found: list[Outcomes] = []
    missing, last = spec.groups, no_groups(spec.step)
    for _ in range(max_batches):
        prompt_ids = choose(missing)
        if not prompt_ids:
            break
        last = yield equal_request(prompt_ids, size)
        observe(last)
        found.append(pick(last, last.mixed_P))
        missing -= len(found[-1].prompt_ids)
        if missing <= 0:
            break
    return to_train(spec.step, found, spec.groups, last)
