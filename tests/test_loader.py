"""Rules from files: what can be named, what it becomes, and the errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from knapsack_arena.loader import load_rule, resolve
from knapsack_arena.published.dapo import DynamicSampling
from knapsack_arena.registry import REGISTRY, RuleContext
from knapsack_arena.strategies import OneRound, StepSpec, run_step
from knapsack_arena.testing import World
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.beta import BetaBeliefs

CONTEXT = RuleContext(groups=8, average=8, prompts=64, min_count=0, max_count=17)

FILE = '''
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapsack_rl import AllocationProblem, Forecast, KnapsackAllocator
from knapsack_rl.rules import expected_value
from knapsack_arena.registry import RuleContext
from knapsack_arena.published.dapo import DynamicSampling
from knapsack_arena.strategies import OneRound


def rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    return expected_value(forecast, budget, low, high)


@dataclass(frozen=True)
class Knob:
    turn: float = 1.0

    def __call__(self, forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
        return expected_value(forecast, budget, low, min(high, int(10 * self.turn)))


class MyAllocator(KnapsackAllocator):
    """Made without arguments."""


class MyStrategy(OneRound):
    def __init__(self, context: RuleContext) -> None:
        super().__init__(KnapsackAllocator(max_count=context.max_count))


class Demanding(OneRound):
    def __init__(self, allocator: KnapsackAllocator) -> None:
        super().__init__(allocator)


class Unready:
    def __init__(self) -> None:
        raise ValueError("not today")


knob = Knob(turn=1.2)
sampling = DynamicSampling(max_batches=3)
an_allocator = KnapsackAllocator(max_count=20)
number = 3


def two(forecast, budget):
    return None
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.py"
    path.write_text(FILE)
    return path


def allocator(file: Path, name: str) -> KnapsackAllocator:
    strategy = load_rule(f"{file}:{name}", CONTEXT)
    assert isinstance(strategy, OneRound)
    assert isinstance(strategy.allocator, KnapsackAllocator)
    return strategy.allocator


@pytest.mark.parametrize("name", ["rule", "knob", "Knob"])
def test_a_rule_gets_our_beliefs_and_the_limits_of_the_context(file: Path, name: str) -> None:
    found = allocator(file, name)
    assert isinstance(found.beliefs, BetaBeliefs)
    assert found.beliefs.half_life == CONTEXT.half_life
    assert (found.min_count, found.max_count) == (0, 17)
    counts = found.plan(("a", "b", "c", "d", "e", "f", "g"), 56, 0).counts_P
    assert counts.sum() == 56


def test_a_knob_is_turned(file: Path) -> None:
    ids = tuple("abcdefgh")
    with pytest.raises(ValueError, match="80"):
        allocator(file, "Knob").plan(ids, 8 * 11, 0)
    assert allocator(file, "knob").plan(ids, 8 * 12, 0).counts_P.tolist() == [12] * 8


def test_allocators_and_strategies_come_as_they_are(file: Path) -> None:
    assert allocator(file, "an_allocator").max_count == 20
    assert type(allocator(file, "MyAllocator")).__name__ == "MyAllocator"
    sampling = load_rule(f"{file}:sampling", CONTEXT)
    assert isinstance(sampling, DynamicSampling)
    assert sampling.max_batches == 3
    assert allocator(file, "MyStrategy").max_count == 17  # it has a parameter `context`


def test_a_loaded_rule_runs(file: Path) -> None:
    world = World()
    spec = StepSpec(0, 8, 64, world.take)
    assert run_step(load_rule(f"{file}:rule", CONTEXT), spec, lambda request: world.generate(request, 0)).rollouts == 64


def test_two_that_are_loaded_share_nothing(file: Path) -> None:
    one, two = allocator(file, "an_allocator"), allocator(file, "an_allocator")
    assert one is not two
    assert one.beliefs is not two.beliefs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"has no 'missing'; it has rule, Knob, MyAllocator, MyStrategy, Demanding, Unready, knob, two"),
        ("number", "is of type int, which is no rule"),
        (
            "two",
            "is of type function, which is no rule: give a function .forecast, budget, low, high. -> AllocationProblem",
        ),
        ("Demanding", "cannot be built without arguments .*allocator.*: give them defaults, or name an instance"),
        ("Unready", "not today"),
        ("", "does not name a rule: write path/to/file.py:name"),
    ],
)
def test_what_is_no_rule_is_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_rule(f"{file}:{name}", CONTEXT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def rule(:", "failed when it was run: SyntaxError"),
        ("import no_such_module", "failed when it was run: ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "failed when it was run: ZeroDivisionError"),
        ("", "has no 'rule'; it has no definitions of its own"),
    ],
)
def test_files_that_fail_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=message):
        load_rule(f"{tmp_path}/broken.py:rule", CONTEXT)
    left = set(sys.modules) - before
    assert not left or text == ""


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file .*gone.py: give the path from here"):
        load_rule(f"{tmp_path}/gone.py:rule", CONTEXT)
    with pytest.raises(ValueError, match="does not name a rule"):
        load_rule("gone.py", CONTEXT)


def test_names_and_paths_are_told_apart(file: Path) -> None:
    for name in set(REGISTRY) - {"oracle", "oracle-pool"}:
        resolve(name, CONTEXT)
    assert isinstance(resolve(f"{file}:sampling", CONTEXT), DynamicSampling)
    with pytest.raises(ValueError, match="there is no rule 'best': choose from uniform, .* FILE.py:NAME"):
        resolve("best", CONTEXT)
    with pytest.raises(ValueError, match="unknown here"):
        resolve("oracle", CONTEXT)
