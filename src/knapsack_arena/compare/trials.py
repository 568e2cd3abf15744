"""One trial: one rule trains one policy until the budget is spent. Its settings, its key, and the loop that runs it.

Where a trial takes place is a `Testbed`: a function that sets up the environment, the rule and the metrics. This module
has the simulator's; `knapsack_arena.lab.trials` has that of small language models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import polars as pl

from knapsack_arena.compare.metrics import SCHEMA, WINDOWS, Environment, MetricsRecorder, MetricValue
from knapsack_arena.loader import resolve
from knapsack_arena.registry import RuleContext
from knapsack_arena.simulator import PRESETS, Population, Simulation, population_of_trace
from knapsack_arena.strategies import RolloutRequest, StepSpec, Strategy, run_step
from knapsack_rl.outcomes import Outcomes

BASELINE, ORACLE = "uniform", "oracle"
POINTS: Final = 100
# Called with the share of the budget that is spent.
Progress: TypeAlias = Callable[[float], None]
# A rule may ask for less than a step's budget, but a run must end.
_MAX_STEPS_FACTOR: Final = 50

# Root of both packages, and the code that decides the numbers of every trial: files and folders relative to it. All
# other code (adapters, session, reports, command lines) may change without making stored results stale.
SOURCES = Path(__file__).parents[2]
DECIDING: Final = (
    "knapsack_arena/compare/metrics.py",
    "knapsack_arena/compare/trials.py",
    "knapsack_arena/loader.py",
    "knapsack_arena/published",
    "knapsack_arena/registry.py",
    "knapsack_arena/simulator",
    "knapsack_arena/strategies",
    "knapsack_rl/advantages.py",
    "knapsack_rl/allocator.py",
    "knapsack_rl/beliefs",
    "knapsack_rl/config.py",
    "knapsack_rl/files",
    "knapsack_rl/kept.py",
    "knapsack_rl/knapsack",
    "knapsack_rl/metrics.py",
    "knapsack_rl/notation.py",
    "knapsack_rl/outcomes.py",
    "knapsack_rl/plan.py",
    "knapsack_rl/rules",
    "knapsack_rl/trace",
    "knapsack_rl/values.py",
)


@dataclass(frozen=True)
class TrialSettings:
    """Sizes and limits that all trials on a preset share.

    Attributes:
        prompts: number of prompts in the data set.
        groups: prompts per step under equal division.
        average: rollouts per prompt on average.
        steps: steps of a run under equal division; they define the budget.
        budget: unit in which all rules spend the same: ``rollouts``, or the ``tokens`` that uniform spends in these
            steps.
        min_count, max_count: limits on the rollouts of a prompt.

    Raises:
        ValueError: a value out of range.
    """

    prompts: int = 4096
    groups: int = 256
    average: int = 8
    steps: int = 300
    budget: Literal["rollouts", "tokens"] = "rollouts"
    min_count: int = 2
    max_count: int = 128

    def __post_init__(self) -> None:
        for name, least in (("groups", 1), ("average", 2), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: use at least {least}")
        if not self.min_count <= self.average <= self.max_count:
            raise ValueError(
                f"average is {self.average}: a prompt gets {self.min_count} to {self.max_count}"
                " rollouts, and their mean must lie between"
            )
        if self.prompts < self.groups:
            raise ValueError(
                f"{self.prompts} prompts are fewer than the {self.groups} of one step: use more, or smaller steps"
            )

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole run."""
        return self.steps * self.groups * self.average


@dataclass
class TrialSetup:
    """The start of a run: an untrained policy, a rule without memory, and the recorder of their metrics."""

    environment: Environment
    strategy: Strategy
    recorder: MetricsRecorder


@dataclass(frozen=True)
class Testbed:
    """Where rules are tried.

    Attributes:
        name: part of a trial's key.
        set_up: builds the start of a trial; importable by name, so that other processes find it.
        code: what decides the numbers besides `DECIDING`: files and folders relative to `SOURCES`.
        points: measurements along a run, a divisor of 100.
    """

    name: str
    set_up: Callable[[Trial], TrialSetup]
    code: tuple[str, ...] = ()
    points: int = POINTS

    __test__ = False  # for pytest, which collects classes by their name


@dataclass(frozen=True)
class Trial:
    """One rule on one preset with one seed, on a testbed."""

    testbed: Testbed
    rule: str
    preset: str
    seed: int
    settings: TrialSettings

    @property
    def name(self) -> str:
        """The trial in words, for messages."""
        return f"{self.rule} on {self.preset}, seed {self.seed}"

    @property
    def key(self) -> str:
        """Hash of all that decides the trial's numbers: settings, code, and the user's own rule file or trace."""
        decided = {
            "testbed": self.testbed.name,
            "rule": self.rule,
            "preset": self.preset,
            "seed": self.seed,
            "settings": asdict(self.settings),
            "code": fingerprint(*self.testbed.code),
            "files": [_rule_file(self.rule), _rule_file(self.preset) or _trace_file(self.preset)],
        }
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:32]

    def context(self) -> RuleContext:
        """What the rule may know; a testbed adds true rates and features."""
        settings = self.settings
        return RuleContext(
            groups=settings.groups,
            average=settings.average,
            prompts=settings.prompts,
            min_count=settings.min_count,
            max_count=settings.max_count,
            seed=self.seed,
        )

    def file(self, folder: Path) -> Path:
        """Path of the rows of the finished trial."""
        return folder / "trials" / f"{self.key}.parquet"


def run_trial(trial: Trial, tokens: int | None = None, progress: Progress = lambda share: None) -> pl.DataFrame:
    """Run a trial.

    Args:
        trial: which.
        tokens: budget in tokens, where the settings' budget is in tokens. If None, measured first by running this rule
            for ``settings.steps`` steps (done for uniform, which defines it).
        progress: called with the share of the budget that is spent, at each point of measurement.

    Returns:
        Its rows, in the columns of `metrics.SCHEMA`.

    Raises:
        ValueError: an unknown rule or preset, or a rule that does not spend the budget in 50 times the steps.
    """
    return pl.DataFrame(trial_rows(trial, tokens, progress), schema=SCHEMA, orient="row")


def trial_rows(
    trial: Trial, tokens: int | None = None, progress: Progress = lambda share: None
) -> list[tuple[Any, ...]]:
    """Run a trial; arguments and errors are those of `run_trial`, and rows are tuples in the order of its columns."""
    in_tokens = trial.settings.budget == "tokens"
    budget = (tokens or _tokens_of_steps(trial)) if in_tokens else trial.settings.rollouts
    setup, rows = trial.testbed.set_up(trial), _Rows(trial)
    recorder, spacing = setup.recorder, POINTS // trial.testbed.points
    spent, point = 0.0, 0
    rows.add(0, 0.0, recorder, _scalars(recorder))
    while spent < 1:
        if recorder.steps >= _MAX_STEPS_FACTOR * trial.settings.steps:
            raise ValueError(f"after {recorder.steps:,} steps only {100 * spent:.0f} % of the budget is spent")
        _run_one_step(trial, setup)
        used = recorder.tokens if in_tokens else recorder.rollouts
        spent = used / budget
        before, point = point, min(POINTS * used // budget, POINTS)
        if point // spacing > before // spacing:
            rows.add(point, spent, recorder, _scalars(recorder))
            progress(min(spent, 1.0))
        for window in WINDOWS:
            if before < window <= point:
                rows.add(window, spent, recorder, recorder.allocation())
    rows.add(None, spent, recorder, recorder.whole_run())
    return rows.rows


def _set_up_simulation(trial: Trial) -> TrialSetup:
    simulation = Simulation(population(trial.preset, trial.settings.prompts, trial.seed), seed=trial.seed)
    strategy = resolve(trial.rule, dataclasses.replace(trial.context(), truth=simulation.success_rates))
    return TrialSetup(simulation, strategy, MetricsRecorder(simulation))


SIMULATOR: Final = Testbed("simulator", _set_up_simulation)


def population(preset: str, prompts: int, seed: int) -> Population:
    """The simulated population of this name, or one fitted to the trace at this path.

    Raises:
        ValueError: neither, or a trace that cannot be used.
    """
    if preset in PRESETS:
        return PRESETS[preset](prompts, seed)
    if Path(preset).is_file():
        try:
            return population_of_trace(Path(preset), prompts, seed)
        except ValueError as error:
            raise ValueError(f"{preset} cannot be used as a population: {error}") from error
    raise ValueError(f"there is no preset {preset!r}: choose from {', '.join(PRESETS)}, or name the file of a trace")


def _tokens_of_steps(trial: Trial) -> int:
    """Tokens that the rule spends in the settings' number of steps."""
    setup = trial.testbed.set_up(trial)
    tokens = 0
    for _ in range(trial.settings.steps):
        result = run_step(setup.strategy, _step_spec(trial, setup.environment), setup.environment.generate)
        setup.environment.train(result.batch)
        tokens += result.tokens
    return tokens


def _step_spec(trial: Trial, environment: Environment) -> StepSpec:
    settings = trial.settings
    return StepSpec(environment.step, settings.groups, settings.groups * settings.average, environment.take)


def _run_one_step(trial: Trial, setup: TrialSetup) -> None:
    """Run a step and train on it; time that is not generation is time spent in the rule."""
    generating = 0.0

    def generate(request: RolloutRequest) -> Outcomes:
        nonlocal generating
        began = time.perf_counter()
        outcomes = setup.environment.generate(request)
        generating += time.perf_counter() - began
        return outcomes

    spec = _step_spec(trial, setup.environment)
    began = time.perf_counter()
    result = run_step(setup.strategy, spec, generate)
    setup.recorder.record(result, time.perf_counter() - began - generating)
    setup.environment.train(result.batch)


def _scalars(recorder: MetricsRecorder) -> Iterable[MetricValue]:
    return ((name, None, None, value) for name, value in recorder.curves().items())


class _Rows:
    """Collects the rows of a trial."""

    def __init__(self, trial: Trial) -> None:
        self.trial = (trial.rule, trial.preset, trial.seed)
        self.rows: list[tuple[Any, ...]] = []

    def add(self, point: int | None, spent: float, recorder: MetricsRecorder, found: Iterable[MetricValue]) -> None:
        """Add metrics measured at this point."""
        at = (point, spent, recorder.steps, recorder.rollouts, recorder.tokens, recorder.rounds)
        self.rows += [(*self.trial, *at, *each) for each in found]


@cache
def fingerprint(*more: str) -> str:
    """Hash of the code that decides a trial's numbers, so that an edited rule never meets the results of the old one.

    Args:
        more: files and folders besides `DECIDING`, relative to `SOURCES`.
    """
    digest = hashlib.sha256()
    for path in deciding_files(more):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def deciding_files(more: Sequence[str] = ()) -> Iterator[Path]:
    """The Python files of `DECIDING` and ``more``, in a fixed order."""
    for name in sorted({*DECIDING, *more}):
        path = SOURCES / name
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def _rule_file(name: str) -> str:
    """Hash of the contents of the file in ``path.py:name``; empty for a built-in name."""
    path, colon, _ = name.rpartition(":")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if colon and path.endswith(".py") else ""


def _trace_file(name: str) -> str:
    """Hash of the contents of the trace at this path; empty where a preset is not a file."""
    file = Path(name)
    if not file.is_file():
        return ""
    found = file.stat()
    return _hash_of_file(file, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _hash_of_file(file: Path, size: int, modified: int) -> str:
    """Hash a file once for all trials; size and time of modification distinguish its versions."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
