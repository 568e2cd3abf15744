"""The conformance suite of strategies: rules with several rounds, a choice of prompts, or rollouts not trained on."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from knapsack_arena.strategies import Batch, RolloutRequest, StepResult, StepSpec, Strategy, run_step
from knapsack_arena.testing.world import World
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.testing.allocators import demand, load_is_refused, other_states, through_a_file

Make: TypeAlias = Callable[[], Strategy]

MOST_ROUNDS = 1000  # far above every published rule


def check_strategy(make: Make, groups: int = 8, average: int = 8) -> None:
    """Check a strategy: requests, training batches, repeatability, saved state, groups without gradient, lost rollouts.

    Args:
        make: a new strategy that has learned nothing; called many times.
        groups, average: prompts of a step and rollouts of each on average, over the 48 prompts of a `World`.

    Raises:
        AssertionError: a check that fails, with the value expected and the value found.
    """
    run = CheckedRun(groups, groups * average)
    trains_on_what_it_requested(make, run)
    repeats_itself(make, run)
    resumes(make, run)
    ends_without_gradient(make, run)
    accepts_lost_rollouts(make, run)
    refuses_groups_of_one(make, run)
    refuses_other_states(make, run)


@dataclass
class CheckedRun:
    """A run whose every step is checked.

    Attributes:
        groups, budget: of each step.
        world: prompts, sampler and engine.
        taken: prompts that the sampler has returned.
        generated: rollouts generated and not yet trained on, by prompt and reward.
        steps: steps run.
        strict: refuse to train on groups of one, unless the batch has a baseline; False where rollouts are lost.
    """

    groups: int
    budget: int
    world: World = field(default_factory=World)
    taken: set[str] = field(default_factory=set)
    generated: Counter[tuple[str, float]] = field(default_factory=Counter)
    steps: int = 0
    strict: bool = True

    def anew(self, world: World | None = None, strict: bool = True) -> CheckedRun:
        """The same run before the first step, optionally in another world."""
        return CheckedRun(self.groups, self.budget, World() if world is None else world, strict=strict)

    def run_step(self, strategy: Strategy) -> StepResult:
        """Run the next step and check its requests and its batch."""
        rounds = 0
        where = f"step {self.steps}"

        def generate(request: RolloutRequest) -> Outcomes:
            nonlocal rounds
            rounds += 1
            demand(rounds <= MOST_ROUNDS, f"{where}: {MOST_ROUNDS} rounds and no end: every step must end")
            unknown = set(request.prompt_ids) - self.taken
            demand(not unknown, f"{where}: it requests prompts that the sampler never returned: {sorted(unknown)[:3]}")
            outcomes = self.world.generate(request, self.steps)
            self.generated.update(_rollouts(outcomes))
            return outcomes

        try:
            result = run_step(strategy, StepSpec(self.steps, self.groups, self.budget, self._take), generate)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{where} ({self.groups} groups, {self.budget} rollouts) failed: {error!r}") from error
        self._check(result.batch, where)
        self.steps += 1
        return result

    def _take(self, k: int) -> tuple[str, ...]:
        prompt_ids = self.world.take(k)
        self.taken.update(prompt_ids)
        return prompt_ids

    def _check(self, batch: Batch, where: str) -> None:
        outcomes = batch.outcomes
        unknown = Counter(_rollouts(outcomes)) - self.generated
        demand(
            not unknown,
            f"{where}: it trains on rollouts that were never generated, or twice on one: {list(unknown)[:3]}",
        )
        self.generated -= Counter(_rollouts(outcomes))
        demand(
            len(set(outcomes.prompt_ids)) == len(outcomes.prompt_ids), f"{where}: it trains on a prompt in two groups"
        )
        if self.strict and batch.baseline_P is None:
            small = [p for p, n in zip(outcomes.prompt_ids, outcomes.counts_P.tolist(), strict=True) if n < 2]
            demand(not small, f"{where}: it trains on groups of one or none, which have no gradient: {small[:3]}")
        for name in ("baseline_P", "scale_P"):
            array = getattr(batch, name)
            if array is not None:
                demand(
                    array.shape == outcomes.counts_P.shape,
                    f"{where}: {name} has shape {array.shape}, not {outcomes.counts_P.shape}",
                )
                demand(bool(np.isfinite(array).all()), f"{where}: {name} is not finite: {array.tolist()}")


def trains_on_what_it_requested(make: Make, run: CheckedRun) -> None:
    """It requests rollouts of prompts that it took, and trains once on rollouts that it requested, in groups."""
    run, strategy = run.anew(), make()
    for _ in range(8):
        run.run_step(strategy)


def repeats_itself(make: Make, run: CheckedRun) -> None:
    """Equal arguments give equal steps; random numbers take their seed from the step."""
    one, two = run.anew(), run.anew()
    ours, theirs = make(), make()
    for step in range(4):
        _same(one.run_step(ours), two.run_step(theirs), f"step {step}: two equal strategies differ")


def resumes(make: Make, run: CheckedRun) -> None:
    """A restored strategy continues as the one that was saved, and saved state does not change afterwards."""
    straight, original = run.anew(), make()
    for _ in range(3):
        straight.run_step(original)
    state = original.state_dict()
    resumed, expected = copy.deepcopy(straight), [straight.run_step(original) for _ in range(4)]
    restored = make()
    restored.load_state_dict(through_a_file(state))
    for step, theirs in enumerate(expected, start=3):
        ours = resumed.run_step(restored)
        _same(ours, theirs, f"step {step}: it continues otherwise after load_state_dict() than without")


def ends_without_gradient(make: Make, run: CheckedRun) -> None:
    """Steps end where all rewards of a group are equal, or no rollout is answered."""
    for world in (World(rates=0.0), World(rates=1.0), World(unanswered=1.0), World(lost=1.0), World(run.groups, 0.0)):
        silent, strategy = run.anew(world, strict=False), make()
        for _ in range(6):
            silent.run_step(strategy)


def accepts_lost_rollouts(make: Make, run: CheckedRun) -> None:
    """Groups that come back short, or partly without rewards, are learned from and trained on."""
    for world in (World(unanswered=0.3), World(lost=0.4), World(lost=0.8, unanswered=0.2, seed=1)):
        failing, strategy = run.anew(world, strict=False), make()
        for _ in range(6):
            failing.run_step(strategy)


def refuses_groups_of_one(make: Make, run: CheckedRun) -> None:
    """A budget of one rollout a prompt is refused with a `ValueError`, or spent on groups of at least two.

    A batch that brings a baseline has a gradient from a single rollout. A refused step changes no later step.
    """
    poor, strategy = CheckedRun(run.groups, run.groups), make()
    spec = StepSpec(0, poor.groups, poor.budget, poor.world.take)
    try:
        step = run_step(strategy, spec, lambda request: poor.world.generate(request, 0))
    except ValueError as error:
        demand(len(str(error)) > 10, "a budget of one rollout a prompt is refused without a reason: say what to do")
        _same(
            run.anew().run_step(strategy),
            run.anew().run_step(make()),
            "a step that was refused changed the one that follows",
        )
    except Exception as error:
        raise AssertionError(f"a budget of one rollout a prompt ends in {error!r}: raise a ValueError") from error
    else:
        small = (step.batch.outcomes.counts_P < 2) & (step.batch.baseline_P is None)
        demand(not bool(small.any()), "of a budget of one rollout a prompt it trains on groups of one")


def refuses_other_states(make: Make, run: CheckedRun) -> None:
    """State of another rule, or damaged state, is refused with a `ValueError` and changes nothing.

    A strategy whose steps do not depend on earlier ones has no state, and may ignore what it is given.
    """
    remembers = _remembers(make, run)
    straight, strategy = run.anew(), make()
    for _ in range(3):
        straight.run_step(strategy)
    for name, state in other_states(strategy.state_dict()):
        untouched, twin = copy.deepcopy(straight), copy.deepcopy(strategy)
        changed, loaded = copy.deepcopy(straight), copy.deepcopy(strategy)
        refused = load_is_refused(loaded, name, state)
        demand(refused or not remembers, f"load_state_dict() takes {name} without an error that says why not")
        _same(
            changed.run_step(loaded),
            untouched.run_step(twin),
            f"load_state_dict() of {name} was refused, but changed the step that follows",
        )


def _remembers(make: Make, run: CheckedRun) -> bool:
    """Whether a step after three others differs from that of a new strategy."""
    experienced, strategy = run.anew(), make()
    for _ in range(3):
        experienced.run_step(strategy)
    same_place = copy.deepcopy(experienced)
    try:
        _same(experienced.run_step(strategy), same_place.run_step(make()), "")
    except AssertionError:
        return True
    return False


def _rollouts(outcomes: Outcomes) -> list[tuple[str, float]]:
    """Prompt and reward of every row; missing answers have one value."""
    rewards = np.where(outcomes.answered_PG, outcomes.rewards_PG, -1e9).tolist()
    return [(outcomes.prompt_ids[i], reward) for i, reward in zip(outcomes.group_PG.tolist(), rewards, strict=True)]


def _same(ours: StepResult, theirs: StepResult, message: str) -> None:
    demand(len(ours.rounds) == len(theirs.rounds), f"{message}: {len(ours.rounds)} rounds, not {len(theirs.rounds)}")
    for (request, _), (other, _) in zip(ours.rounds, theirs.rounds, strict=True):
        found, expected = (dict(zip(each.prompt_ids, each.counts_P.tolist(), strict=True)) for each in (request, other))
        demand(found == expected, f"{message}: it requests {found}, not {expected}")
    batch, other_batch = ours.batch.outcomes, theirs.batch.outcomes
    same = batch.prompt_ids == other_batch.prompt_ids and _rollouts(batch) == _rollouts(other_batch)
    demand(same, f"{message}: it trains on other rollouts")
