"""The conformance suite of allocators: whatever divides a budget before the step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from knapsack_rl.allocator import Allocator
from knapsack_rl.notation import IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.testing.records import NAN, history, known, later
from knapsack_rl.testing.world import demand

Make: TypeAlias = Callable[[], Allocator]

MEAN = 8  # rollouts per prompt of most plans


@dataclass(frozen=True)
class Limits:
    """What a prompt may be planned: ``low`` to ``high`` rollouts, and never 1."""

    low: int
    high: int

    def check(self, counts_P: IntArray, where: str) -> None:
        """Refuse counts outside."""
        demand(bool((counts_P != 1).all()), f"{where} has a group of one, which has no gradient: plan 0, or at least 2")
        inside = (counts_P >= self.low) & (counts_P <= self.high)
        demand(bool(inside.all()), f"{where} leaves the limits {self.low}..{self.high}: {counts_P.tolist()}")


def check_allocator(make: Make, low: int = 2, high: int = 128) -> None:
    """Check an allocator: exact budgets, limits, repeatability, order of prompts, resuming, odd input.

    Args:
        make: a new allocator that has learned nothing; called many times.
        low, high: the limits it was made with. They hold for every plan of a budget that can be met.

    Raises:
        AssertionError: what was expected, and what came.
    """
    limits = Limits(low, high)
    spends_the_budget(make, limits)
    planning_changes_nothing(make)
    repeats_itself(make)
    order_does_not_matter(make)
    resumes(make)
    survives_odd_outcomes(make, limits)
    refuses_what_cannot_be(make, limits)
    refuses_other_files(make)


def spends_the_budget(make: Make, limits: Limits) -> None:
    """The counts sum to the budget, within the limits, for the prompts that were asked for, in their order."""
    for allocator, state in ((make(), "a new one"), (_taught(make), "one that has learned")):
        for ids in (known()[:1], known()[:7], [*known(), "new"], ["new", *known()[:3], "new"]):
            means = {max(limits.low, 2), min(MEAN, limits.high), limits.high if len(ids) < MEAN else MEAN}
            budgets = {len(ids) * mean for mean in means} | {len(ids) * min(MEAN, limits.high) - 1}
            for budget in sorted(each for each in budgets if each >= max(2, len(ids) * limits.low)):
                _valid(allocator, ids, budget, limits, f"{state}, {budget} rollouts for {len(ids)} prompts")


def planning_changes_nothing(make: Make) -> None:
    """A plan is a question: asking it leaves no trace in the plans that follow."""
    asked, silent = _taught(make), _taught(make)
    ids = known()
    first = _plan(asked, ids, 1)
    for step in (1, 2, 50):
        _plan(asked, ["new", *reversed(ids)], step)
    _same(_plan(asked, ids, 1), first, "plan() changed what the same plan() says afterwards")
    _same(_plan(asked, ids, 3), _plan(silent, ids, 3), "plan() changed what a later plan() says")
    for allocator in (asked, silent):
        allocator.observe(later())
    _same(_plan(asked, ids, 3), _plan(silent, ids, 3), "plan() changed what is learned from the outcomes after it")


def repeats_itself(make: Make) -> None:
    """Two that were made and taught alike plan alike; whatever is random takes its seed from the step."""
    one, two = _taught(make), _taught(make)
    for step in (1, 2, 7):
        _same(_plan(one, known(), step), _plan(two, known(), step), "two that were taught alike do not plan alike")


def order_does_not_matter(make: Make) -> None:
    """A prompt's count does not hang on its place, but for a rollout that a tie may decide.

    All prompts here have different records, so that ties are those that the rule itself makes.
    """
    allocator, ids = _taught(make), known()
    order = np.random.default_rng(0).permutation(len(ids))
    straight = _plan(allocator, ids, 1).counts_P
    mixed = np.empty_like(straight)
    mixed[order] = _plan(allocator, [ids[i] for i in order.tolist()], 1).counts_P
    worst = int(np.argmax(np.abs(mixed - straight)))
    demand(
        abs(int(mixed[worst] - straight[worst])) <= 1,
        f"the same prompts in another order: {ids[worst]!r} is planned {mixed[worst]} rollouts, not {straight[worst]}",
    )


def resumes(make: Make) -> None:
    """One that was saved and loaded goes on as the one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        path, ids = Path(folder) / "saved", known()
        original, restored = _taught(make), make()
        original.save(path)
        demand(path.exists(), f"save() wrote nothing to {path.name}: a trainer looks for it when it resumes")
        restored.load(path)
        _same(
            _plan(restored, ids, 1),
            _plan(original, ids, 1),
            "what load() took up plans otherwise than what save() wrote",
        )
        for allocator in (original, restored):
            allocator.observe(later())
        _same(
            _plan(restored, ids, 3),
            _plan(original, ids, 3),
            "after load() it learns otherwise than the one that was saved",
        )


def survives_odd_outcomes(make: Make, limits: Limits) -> None:
    """Groups without answers, short, late, of strangers, twice in a step: what engines do."""
    ids = known()
    odd = {
        "a group without an answer": [(ids[0], [NAN, NAN])],
        "a group that did not come back": [(ids[0], []), (ids[1], [1.0, 0.0])],
        "an answer and a failure of the engine": [(ids[0], [1.0, NAN, 0.0])],
        "a single rollout": [(ids[0], [0.0])],
        "a prompt that was never planned": [("stranger", [1.0, 0.0])],
        "a prompt twice": [(ids[0], [1.0, 0.0]), (ids[0], [0.0, 0.0])],
        "rewards that are neither 0 nor 1": [(ids[0], [0.25, -1.0, 3.0])],
        "nothing at all": [],
    }
    for name, groups in odd.items():
        for step, when in ((1, ""), (0, ", late")):
            allocator = _taught(make)
            allocator.observe(later())
            try:
                allocator.observe(Outcomes.of_groups(step, groups))
            except Exception as error:
                raise AssertionError(f"observe() failed on {name}{when}: {error!r}") from error
            _valid(allocator, [*ids, "stranger"], MEAN * (len(ids) + 1), limits, f"after {name}{when}")


def refuses_what_cannot_be(make: Make, limits: Limits) -> None:
    """A plan that cannot be made is refused with a `ValueError`, and leaves everything as it was."""
    allocator, ids = _taught(make), known()
    before = _plan(allocator, ids, 1)
    for prompts, budget, name in (
        ([], MEAN, "no prompts"),
        (ids, -1, "a negative budget"),
        (ids, max(len(ids) * max(limits.low, 1) - 1, 1), "too small a budget"),
        (ids, len(ids) * limits.high + 1, "too large a budget"),
    ):
        try:
            plan = allocator.plan(prompts, budget, 1)
        except ValueError as error:
            demand(len(str(error)) > 10, f"{name} is refused without a reason: say what is wrong and what to do")
        except Exception as error:
            raise AssertionError(f"{name} ends in {error!r}: raise a ValueError that says what to do") from error
        else:
            exact = bool(prompts) and int(plan.counts_P.sum()) == budget and bool((plan.counts_P != 1).all())
            demand(
                exact, f"{name} ({budget} for {len(prompts)}) is planned, as {plan.counts_P.tolist()}: raise ValueError"
            )
        _same(_plan(allocator, ids, 1), before, f"asking for {name} changed what it plans")


def refuses_other_files(make: Make) -> None:
    """A file that is missing or damaged is refused, and leaves everything as it was.

    One that has learned nothing from outcomes has nothing to take up, and may overlook the file.
    """
    ids, new, taught = known(), make(), _taught(make)
    before = _plan(taught, ids, 1)
    remembers = not np.array_equal(_plan(new, ids, 1).success_rates_P, before.success_rates_P)
    with tempfile.TemporaryDirectory() as folder:
        for path in _other_files(Path(folder), taught):
            refused = False
            try:
                taught.load(path)
            except (ValueError, OSError) as error:
                refused = len(str(error)) > 10
            except Exception as error:
                raise AssertionError(f"load() of a {path.name} file ends in {error!r}: raise a ValueError") from error
            demand(refused or not remembers, f"load() takes a {path.name} file without an error that says why not")
            _same(
                _plan(taught, ids, 1), before, f"load() of a {path.name} file was refused, but changed what is planned"
            )


def _other_files(folder: Path, allocator: Allocator) -> Iterator[Path]:
    yield folder / "missing"
    (folder / "foreign").write_bytes(b"not yours")
    yield folder / "foreign"
    allocator.save(folder / "truncated")
    whole = (folder / "truncated").read_bytes()
    (folder / "truncated").write_bytes(whole[: len(whole) // 2])
    yield folder / "truncated"


def _taught(make: Make) -> Allocator:
    allocator = make()
    allocator.observe(history())
    return allocator


def _plan(allocator: Allocator, ids: Sequence[str], step: int) -> Plan:
    return allocator.plan(ids, MEAN * len(ids), step)


def _valid(allocator: Allocator, ids: Sequence[str], budget: int, limits: Limits, where: str) -> None:
    try:
        plan = allocator.plan(ids, budget, 3)
    except Exception as error:
        raise AssertionError(f"{where}: there is a plan within {limits.low}..{limits.high}, but: {error!r}") from error
    demand(tuple(plan.prompt_ids) == tuple(ids), f"{where}: the plan must list the prompts that were given, in order")
    total = int(plan.counts_P.sum())
    demand(
        total == budget and plan.budget == budget, f"{where}: the counts sum to {total}, the plan says {plan.budget}"
    )
    limits.check(plan.counts_P, f"{where}: the plan")
    rates = plan.success_rates_P
    demand(bool(((rates >= 0) & (rates <= 1)).all()), f"{where}: success rates outside [0, 1]: {rates.tolist()}")
    demand(bool((plan.strength_P >= 0).all()), f"{where}: negative or NaN evidence: {plan.strength_P.tolist()}")


def _same(plan: Plan, other: Plan, message: str) -> None:
    for name in ("counts_P", "success_rates_P", "strength_P", "seen_P"):
        ours, theirs = getattr(plan, name), getattr(other, name)
        demand(
            bool(np.array_equal(ours, theirs)),
            f"{message}: {name} is {np.asarray(ours).tolist()}, not {np.asarray(theirs).tolist()}",
        )
