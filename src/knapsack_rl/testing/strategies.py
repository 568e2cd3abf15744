"""The conformance suite of strategies: whatever draws in rounds, chooses prompts, or trains on less than it drew."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from knapsack_rl.outcomes import Outcomes
from knapsack_rl.strategy import Batch, Draw, Played, Request, Strategy, play
from knapsack_rl.testing.world import World, demand

Make: TypeAlias = Callable[[], Strategy]

MOST_ROUNDS = 1000  # no published method comes near


def check_strategy(make: Make, groups: int = 8, num_generations: int = 8) -> None:
    """Check a strategy: what it draws and trains on, repeatability, resuming, dead prompts, failing engines, odd files.

    Args:
        make: a new strategy that has learned nothing; called many times.
        groups, num_generations: the steps it is asked for, over the 48 prompts of a `World`.

    Raises:
        AssertionError: what was expected, and what came.
    """
    table = Table(groups, groups * num_generations)
    plays_fair(make, table)
    repeats_itself(make, table)
    resumes(make, table)
    ends_without_signal(make, table)
    survives_failing_engines(make, table)
    refuses_groups_of_one(make, table)
    refuses_other_files(make, table)


@dataclass
class Table:
    """Where a strategy is watched: every step of one world, with what was taken, drawn and trained on so far."""

    groups: int
    budget: int
    world: World = field(default_factory=World)
    taken: set[str] = field(default_factory=set)
    drawn: Counter[tuple[str, float]] = field(default_factory=Counter)
    steps: int = 0
    strict: bool = True

    def anew(self, world: World | None = None, strict: bool = True) -> Table:
        """The same table before the first step, perhaps in another world; not ``strict`` where the engine fails."""
        return Table(self.groups, self.budget, World() if world is None else world, strict=strict)

    def play(self, strategy: Strategy) -> Played:
        """Play the next step and check all that can be seen of it."""
        rounds = 0

        def generate(draw: Draw) -> Outcomes:
            nonlocal rounds
            rounds += 1
            demand(
                rounds <= MOST_ROUNDS, f"{where}: {MOST_ROUNDS} rounds and no end: a step must end whatever comes back"
            )
            strangers = set(draw.prompt_ids) - self.taken
            demand(not strangers, f"{where}: it draws prompts that the sampler never gave: {sorted(strangers)[:3]}")
            outcomes = self.world.generate(draw, self.steps)
            self.drawn.update(_rollouts(outcomes))
            return outcomes

        where = f"step {self.steps}"
        try:
            played = play(strategy, Request(self.steps, self.groups, self.budget, self._take), generate)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{where} ({self.groups} groups, {self.budget} rollouts) failed: {error!r}") from error
        self._check(played.batch, where)
        self.steps += 1
        return played

    def _take(self, k: int) -> tuple[str, ...]:
        prompt_ids = self.world.take(k)
        self.taken.update(prompt_ids)
        return prompt_ids

    def _check(self, batch: Batch, where: str) -> None:
        outcomes = batch.outcomes
        unmade = Counter(_rollouts(outcomes)) - self.drawn
        demand(not unmade, f"{where}: it trains on rollouts that were never made, or twice on one: {list(unmade)[:3]}")
        self.drawn -= Counter(_rollouts(outcomes))
        demand(
            len(set(outcomes.prompt_ids)) == len(outcomes.prompt_ids), f"{where}: it trains on a prompt in two groups"
        )
        if self.strict:
            small = [p for p, n in zip(outcomes.prompt_ids, outcomes.counts_P.tolist(), strict=True) if n < 2]
            demand(not small, f"{where}: it trains on groups of one or none, which have no gradient: {small[:3]}")
        for name in ("baseline_P", "scale_P"):
            array = getattr(batch, name)
            if array is not None:
                demand(
                    array.shape == outcomes.counts_P.shape,
                    f"{where}: {name} has shape {array.shape}, one a group is due",
                )
                demand(bool(np.isfinite(array).all()), f"{where}: {name} is not finite: {array.tolist()}")


def plays_fair(make: Make, table: Table) -> None:
    """It draws what the sampler gave, and trains once on what was drawn, in groups."""
    table, strategy = table.anew(), make()
    for _ in range(8):
        table.play(strategy)


def repeats_itself(make: Make, table: Table) -> None:
    """Two that were made alike play alike; whatever is random takes its seed from the step."""
    one, two = table.anew(), table.anew()
    ours, theirs = make(), make()
    for step in range(4):
        _same(one.play(ours), two.play(theirs), f"step {step}: two that were made alike do not play alike")


def resumes(make: Make, table: Table) -> None:
    """One that was saved and loaded between steps goes on as the one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved"
        straight, original = table.anew(), make()
        for _ in range(3):
            straight.play(original)
        original.save(path)
        demand(path.exists(), f"save() wrote nothing to {path.name}: a trainer looks for it when it resumes")
        resumed, restored = copy.deepcopy(straight), make()
        restored.load(path)
        for step in range(3, 7):
            ours, theirs = resumed.play(restored), straight.play(original)
            _same(ours, theirs, f"step {step}: it goes on otherwise after save() and load() than without")


def ends_without_signal(make: Make, table: Table) -> None:
    """Where every group is all alike, or nothing is answered, steps end all the same."""
    for world in (World(rates=0.0), World(rates=1.0), World(unanswered=1.0), World(lost=1.0), World(table.groups, 0.0)):
        silent, strategy = table.anew(world, strict=False), make()
        for _ in range(6):
            silent.play(strategy)


def survives_failing_engines(make: Make, table: Table) -> None:
    """Groups that come back short, or partly without rewards, are learned from and trained on as far as they go."""
    for world in (World(unanswered=0.3), World(lost=0.4), World(lost=0.8, unanswered=0.2, seed=1)):
        failing, strategy = table.anew(world, strict=False), make()
        for _ in range(6):
            failing.play(strategy)


def refuses_groups_of_one(make: Make, table: Table) -> None:
    """A budget of one rollout a prompt is refused with a `ValueError`, or spent on groups of two and more.

    Either way the steps that follow are those that would have followed.
    """
    poor, strategy = Table(table.groups, table.groups), make()
    try:
        step = play(
            strategy, Request(0, poor.groups, poor.budget, poor.world.take), lambda d: poor.world.generate(d, 0)
        )
    except ValueError as error:
        demand(len(str(error)) > 10, "a budget of one rollout a prompt is refused without a reason: say what to do")
        table = table.anew()
        _same(table.play(strategy), table.anew().play(make()), "a step that was refused changed the one that follows")
    except Exception as error:
        raise AssertionError(f"a budget of one rollout a prompt ends in {error!r}: raise a ValueError") from error
    else:
        small = step.batch.outcomes.counts_P < 2
        demand(not bool(small.any()), "of a budget of one rollout a prompt it trains on groups of one")


def refuses_other_files(make: Make, table: Table) -> None:
    """A file that is missing or damaged is refused, and leaves everything as it was.

    One that plays after many steps as if it were new has nothing to take up, and may overlook the file.
    """
    remembers = _remembers(make, table)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "foreign").write_bytes(b"not yours")
        for path in (folder / "missing", folder / "foreign"):
            straight, strategy = table.anew(), make()
            for _ in range(3):
                straight.play(strategy)
            untouched, twin = copy.deepcopy(straight), copy.deepcopy(strategy)
            refused = False
            try:
                strategy.load(path)
            except (ValueError, OSError) as error:
                refused = len(str(error)) > 10
            except Exception as error:
                raise AssertionError(f"load() of a {path.name} file ends in {error!r}: raise a ValueError") from error
            demand(refused or not remembers, f"load() takes a {path.name} file without an error that says why not")
            ours, theirs = straight.play(strategy), untouched.play(twin)
            _same(ours, theirs, f"load() of a {path.name} file was refused, but changed the step that follows")


def _remembers(make: Make, table: Table) -> bool:
    """Whether it plays a step otherwise after three others than if it were new."""
    seasoned, strategy = table.anew(), make()
    for _ in range(3):
        seasoned.play(strategy)
    fresh = copy.deepcopy(seasoned)
    try:
        _same(seasoned.play(strategy), fresh.play(make()), "")
    except AssertionError:
        return True
    return False


def _rollouts(outcomes: Outcomes) -> list[tuple[str, float]]:
    """Prompt and reward of every row; all missing answers are alike."""
    rewards = np.where(outcomes.answered_PG, outcomes.rewards_PG, -1e9).tolist()
    return [(outcomes.prompt_ids[i], reward) for i, reward in zip(outcomes.group_PG.tolist(), rewards, strict=True)]


def _same(ours: Played, theirs: Played, message: str) -> None:
    demand(len(ours.rounds) == len(theirs.rounds), f"{message}: {len(ours.rounds)} rounds, not {len(theirs.rounds)}")
    for (draw, _), (other, _) in zip(ours.rounds, theirs.rounds, strict=True):
        drawn, expected = (dict(zip(each.prompt_ids, each.counts_P.tolist(), strict=True)) for each in (draw, other))
        demand(drawn == expected, f"{message}: it draws {drawn}, not {expected}")
    batch, other_batch = ours.batch.outcomes, theirs.batch.outcomes
    same = batch.prompt_ids == other_batch.prompt_ids and _rollouts(batch) == _rollouts(other_batch)
    demand(same, f"{message}: it trains on other rollouts")
