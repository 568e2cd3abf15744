"""The conformance suite of allocators: objects that divide a budget before the step."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from knapsack_rl.allocator import Allocator
from knapsack_rl.files import State, read_state, write_state
from knapsack_rl.notation import IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan

Make: TypeAlias = Callable[[], Allocator]

MEAN = 8  # rollouts per prompt of most plans
NAN = float("nan")


@dataclass(frozen=True)
class Limits:
    """Counts that a plan may hold: ``low`` to ``high`` rollouts of a prompt, and never 1."""

    low: int
    high: int

    def check(self, counts_P: IntArray, where: str) -> None:
        """Refuse counts outside the limits."""
        demand(bool((counts_P != 1).all()), f"{where} has a group of one, which has no gradient: plan 0, or at least 2")
        inside = (counts_P >= self.low) & (counts_P <= self.high)
        demand(bool(inside.all()), f"{where} leaves the limits {self.low}..{self.high}: {counts_P.tolist()}")


def check_allocator(make: Make, low: int = 2, high: int = 128) -> None:
    """Check an allocator: exact budgets, limits, repeatability, order of prompts, saved state, unusual input.

    Args:
        make: a new allocator that has learned nothing; called many times.
        low, high: the limits it was made with. They hold for every plan of a budget that can be met.

    Raises:
        AssertionError: a check that fails, with the value expected and the value found.
    """
    limits = Limits(low, high)
    spends_the_budget(make, limits)
    planning_changes_nothing(make)
    repeats_itself(make)
    ignores_the_order(make)
    resumes(make)
    accepts_unusual_outcomes(make, limits)
    refuses_impossible_plans(make, limits)
    refuses_other_states(make)


def spends_the_budget(make: Make, limits: Limits) -> None:
    """The counts sum to the budget, within the limits, for the given prompts in their order."""
    for allocator, state in ((make(), "a new allocator"), (_taught(make), "after outcomes")):
        for ids in (known()[:1], known()[:7], [*known(), "new"], ["new", *known()[:3], "new"]):
            means = {max(limits.low, 2), min(MEAN, limits.high), limits.high if len(ids) < MEAN else MEAN}
            budgets = {len(ids) * mean for mean in means} | {len(ids) * min(MEAN, limits.high) - 1}
            for budget in sorted(each for each in budgets if each >= max(2, len(ids) * limits.low)):
                _valid(allocator, ids, budget, limits, f"{state}, {budget} rollouts for {len(ids)} prompts")


def planning_changes_nothing(make: Make) -> None:
    """plan() is pure: it changes neither later plans nor what is learned."""
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
    """Equal histories give equal plans; random numbers take their seed from the step."""
    one, two = _taught(make), _taught(make)
    for step in (1, 2, 7):
        _same(_plan(one, known(), step), _plan(two, known(), step), "equal histories gave different plans")


def ignores_the_order(make: Make) -> None:
    """A prompt's count does not depend on its position, except for one rollout where prompts tie.

    All prompts here have different records, so that only the rule itself can make ties.
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
    """A restored allocator continues as the one that was saved, and saved state does not change afterwards."""
    ids = known()
    original, twin, restored = _taught(make), _taught(make), make()
    state = original.state_dict()
    original.observe(later())
    restored.load_state_dict(through_a_file(state))
    _same(_plan(restored, ids, 1), _plan(twin, ids, 1), "after load_state_dict() it plans otherwise than before")
    restored.observe(later())
    _same(_plan(restored, ids, 3), _plan(original, ids, 3), "after load_state_dict() it learns otherwise than before")


def accepts_unusual_outcomes(make: Make, limits: Limits) -> None:
    """Outcomes as engines return them: no answers, short groups, late ones, unknown prompts, a prompt twice."""
    ids = known()
    unusual = {
        "a group without an answer": [(ids[0], [NAN, NAN])],
        "a group that did not come back": [(ids[0], []), (ids[1], [1.0, 0.0])],
        "an answer and a failure of the engine": [(ids[0], [1.0, NAN, 0.0])],
        "a single rollout": [(ids[0], [0.0])],
        "a prompt that was never planned": [("unknown", [1.0, 0.0])],
        "a prompt twice": [(ids[0], [1.0, 0.0]), (ids[0], [0.0, 0.0])],
        "rewards that are neither 0 nor 1": [(ids[0], [0.25, -1.0, 3.0])],
        "nothing at all": [],
    }
    for name, groups in unusual.items():
        for step, when in ((1, ""), (0, ", late")):
            allocator = _taught(make)
            allocator.observe(later())
            try:
                allocator.observe(Outcomes.of_groups(step, groups))
            except Exception as error:
                raise AssertionError(f"observe() failed on {name}{when}: {error!r}") from error
            _valid(allocator, [*ids, "unknown"], MEAN * (len(ids) + 1), limits, f"after {name}{when}")


def refuses_impossible_plans(make: Make, limits: Limits) -> None:
    """A plan that cannot be made is refused with a `ValueError`, and changes nothing."""
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
        _same(_plan(allocator, ids, 1), before, f"asking for {name} changed its plans")


def refuses_other_states(make: Make) -> None:
    """State of another rule, or damaged state, is refused with a `ValueError` and changes nothing.

    An allocator that learns nothing from outcomes has no state, and may ignore what it is given.
    """
    ids, new, taught = known(), make(), _taught(make)
    before = _plan(taught, ids, 1)
    remembers = not np.array_equal(_plan(new, ids, 1).success_rates_P, before.success_rates_P)
    for name, state in other_states(taught.state_dict()):
        refused = load_is_refused(taught, name, state)
        demand(refused or not remembers, f"load_state_dict() takes {name} without an error that says why not")
        _same(_plan(taught, ids, 1), before, f"load_state_dict() of {name} was refused, but changed what is planned")


def through_a_file(state: State) -> State:
    """The state after it was written to a file and read again.

    Raises:
        AssertionError: it holds something that cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_state(Path(folder) / "state", state)
        except (TypeError, ValueError, AttributeError) as error:
            raise AssertionError(f"state_dict() cannot be written to a file: {error}") from error
        return read_state(Path(folder) / "state")


def other_states(state: State) -> Iterator[tuple[str, State]]:
    """States that must be refused, with a name of each: empty, of another rule, and with one damaged value each."""
    yield "an empty state", {}
    yield "the state of another rule", {"kind": "another rule", "numbers": np.arange(3.0)}
    for path in _leaves(state):
        damaged = inner = copy.deepcopy(state)
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = "damaged"
        yield f"a state with damaged {'.'.join(path)}", damaged


def load_is_refused(target: Any, name: str, state: State) -> bool:
    """Whether ``load_state_dict`` raises a `ValueError` that gives a reason.

    Raises:
        AssertionError: it fails with another exception.
    """
    try:
        target.load_state_dict(state)
    except ValueError as error:
        return len(str(error)) > 10
    except Exception as error:
        raise AssertionError(f"load_state_dict() of {name} ends in {error!r}: raise a ValueError") from error
    return False


def demand(condition: bool, message: str) -> None:
    """Check a condition, also under ``python -O``.

    Raises:
        AssertionError: with this message, if the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)


def known() -> list[str]:
    """The prompts of `history`."""
    return [*history().prompt_ids]


def history() -> Outcomes:
    """One visit of each prompt, in step 0. No rate occurs twice, nor with its mirror image 1 - p: no ties."""
    groups = [("never", [0.0] * 16), ("always", [1.0] * 16)]
    for size in (11, 13, 17, 19, 23):
        for k in range(1, (size + 1) // 2):
            solved = k if (size + k) % 3 else size - k
            groups.append((f"{solved} of {size}", [1.0] * solved + [0.0] * (size - solved)))
    return Outcomes.of_groups(0, groups)


def later() -> Outcomes:
    """A second visit of some prompts, and a first of another."""
    return Outcomes.of_groups(2, [("never", [0.0, 1.0, 0.0]), ("5 of 17", [1.0]), ("new", [1.0, 1.0, 0.0, 0.0])])


def _leaves(state: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the arrays and numbers of a state."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        elif isinstance(value, np.ndarray | int | float):
            yield (*path, key)


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
    demand(bool((plan.pseudo_count_P >= 0).all()), f"{where}: negative or NaN evidence: {plan.pseudo_count_P.tolist()}")


def _same(plan: Plan, other: Plan, message: str) -> None:
    for name in ("counts_P", "success_rates_P", "pseudo_count_P", "seen_P"):
        ours, theirs = getattr(plan, name), getattr(other, name)
        demand(
            bool(np.array_equal(ours, theirs)),
            f"{message}: {name} is {np.asarray(ours).tolist()}, not {np.asarray(theirs).tolist()}",
        )
