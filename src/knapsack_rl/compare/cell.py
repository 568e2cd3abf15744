"""One cell: a rule trains one policy until the budget is spent."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl

from knapsack_rl.compare.cells import Cell
from knapsack_rl.compare.meter import SCHEMA, WINDOWS, Meter, World
from knapsack_rl.loading import resolve
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.simulator import PRESETS, Population, Simulation, population_of_trace
from knapsack_rl.strategy import Draw, Request, Strategy, play

POINTS = 100
Progress: TypeAlias = Callable[[float], None]
# A rule may ask for less than a step's budget, but a run must end.
_MOST_STEPS = 50


@dataclass
class Course:
    """A run that is about to begin: an untrained policy, a rule that has met nothing, and who measures them."""

    world: World
    strategy: Strategy
    meter: Meter


def run_cell(cell: Cell, tokens: int | None = None, progress: Progress = lambda share: None) -> pl.DataFrame:
    """`play_cell` on a simulated policy."""
    return play_cell(cell, _begin, tokens, progress)


def play_cell(
    cell: Cell,
    begin: Callable[[Cell], Course],
    tokens: int | None = None,
    progress: Progress = lambda share: None,
    points: int = POINTS,
) -> pl.DataFrame:
    """Run a cell.

    Args:
        cell: which.
        begin: makes all that a run starts with.
        tokens: the budget in tokens, if the arena's is in tokens; without, it is what the rule spends in the arena's
            steps, which are then played once before to learn it: uniform sets its own budget, and is measured along it
            as all others are.
        progress: told the share of the budget that is spent, now and then.
        points: how often to measure along the run, a divisor of 100.

    Returns:
        Its rows, in the columns of `meter`.

    Raises:
        ValueError: no such rule or preset, or a rule that would never spend the budget.
    """
    in_tokens = cell.arena.budget == "tokens"
    budget = (tokens or _tokens_of_steps(cell, begin)) if in_tokens else cell.arena.rollouts
    course, rows = begin(cell), _Rows(cell)
    meter, apart = course.meter, POINTS // points
    spent, point = 0.0, 0
    rows.add(0, 0.0, meter, _scalars(meter))
    while spent < 1:
        if meter.steps >= _MOST_STEPS * cell.arena.steps:
            raise ValueError(f"after {meter.steps:,} steps only {100 * spent:.0f} % of the budget is spent")
        _step(cell, course)
        used = meter.tokens if in_tokens else meter.rollouts
        spent = used / budget
        before, point = point, min(POINTS * used // budget, POINTS)
        if point // apart > before // apart:
            rows.add(point, spent, meter, _scalars(meter))
            progress(min(spent, 1.0))
        for window in WINDOWS:
            if before < window <= point:
                rows.add(window, spent, meter, meter.allocation())
    rows.add(None, spent, meter, meter.whole_run())
    return rows.frame()


def _begin(cell: Cell) -> Course:
    """In the simulator."""
    simulation = Simulation(population(cell.preset, cell.arena.prompts, cell.seed), seed=cell.seed)
    strategy = resolve(cell.rule, dataclasses.replace(cell.setting(), truth=simulation.success_rates))
    return Course(simulation, strategy, Meter(simulation))


def population(preset: str, prompts: int, seed: int) -> Population:
    """The population of this name, or one like the prompts of the trace at this path.

    Raises:
        ValueError: neither, or a trace that cannot be used.
    """
    if preset in PRESETS:
        return PRESETS[preset](prompts, seed)
    if Path(preset).is_file():
        return population_of_trace(Path(preset), prompts, seed)
    raise ValueError(f"there is no preset {preset!r}: choose from {', '.join(PRESETS)}, or name the file of a trace")


def _tokens_of_steps(cell: Cell, begin: Callable[[Cell], Course]) -> int:
    """The tokens that the rule spends in the arena's steps."""
    course = begin(cell)
    tokens = 0
    for _ in range(cell.arena.steps):
        played = play(course.strategy, _request(cell, course.world), course.world.generate)
        course.world.train(played.batch)
        tokens += played.tokens
    return tokens


def _request(cell: Cell, world: World) -> Request:
    arena = cell.arena
    return Request(world.step, arena.groups, arena.groups * arena.num_generations, world.take)


def _step(cell: Cell, course: Course) -> None:
    """Play a step and train on it; what is not generation is time spent in the rule."""
    generating = 0.0

    def generate(draw: Draw) -> Outcomes:
        nonlocal generating
        began = time.perf_counter()
        outcomes = course.world.generate(draw)
        generating += time.perf_counter() - began
        return outcomes

    request = _request(cell, course.world)
    began = time.perf_counter()
    played = play(course.strategy, request, generate)
    course.meter.take_in(played, time.perf_counter() - began - generating)
    course.world.train(played.batch)


def _scalars(meter: Meter) -> Iterable[tuple[str, None, None, float]]:
    return ((name, None, None, value) for name, value in meter.curves().items())


class _Rows:
    """Rows of a cell, collected."""

    def __init__(self, cell: Cell) -> None:
        self.cell = (cell.rule, cell.preset, cell.seed)
        self.rows: list[tuple[Any, ...]] = []

    def add(
        self,
        point: int | None,
        spent: float,
        meter: Meter,
        found: Iterable[tuple[str, float | None, float | None, float]],
    ) -> None:
        """Rows of what was found at this point."""
        at = (point, spent, meter.steps, meter.rollouts, meter.tokens, meter.rounds)
        self.rows += [(*self.cell, *at, *each) for each in found]

    def frame(self) -> pl.DataFrame:
        """All of them."""
        return pl.DataFrame(self.rows, schema=SCHEMA, orient="row")
