"""An experiment from beginning to end: unfinished trials run, and the rows of all are gathered."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from knapsack_arena.compare.display import Display
from knapsack_arena.compare.results import Results, Scoring, gather
from knapsack_arena.compare.trials import BASELINE, SIMULATOR, Testbed, Trial, TrialSettings, population
from knapsack_arena.compare.workers import Backend, Job, TrialEvent
from knapsack_arena.loader import resolve


@dataclass(frozen=True)
class Labels:
    """Names that messages and the page use.

    Attributes:
        command: that made the page.
        preset, place: what a rule is tried on, on the command line and in the report.
        measure: what rules are ranked by.
        oracle: the rule that regret is counted from.
    """

    command: str = "compare"
    preset: str = "preset"
    place: str = "simulated population"
    measure: str = "mean success rate"
    oracle: str = "the oracle"


@dataclass(frozen=True)
class Experiment:
    """Rules, presets and seeds on a testbed; all rules share the seeds.

    Attributes:
        testbed: where trials take place.
        rules: names of rules, or ``path.py:name``; uniform is added in front if it is missing.
        presets: what rules are tried on.
        seeds: of populations, prompt order, rollouts, and what rules draw at random; shared by all rules.
        settings: of the trials on each preset.
        described: settings in words, for the report.
        labels: names that messages and the page use.
        scoring: how rules are ranked.

    Raises:
        ValueError: a rule, preset or seed that is named twice, or none of a kind.
    """

    testbed: Testbed
    rules: tuple[str, ...]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, TrialSettings]
    described: Mapping[str, object] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    scoring: Scoring = field(default_factory=Scoring)

    def __post_init__(self) -> None:
        for kind, names in (("rule", self.rules), (self.labels.preset, self.presets), ("seed", self.seeds)):
            if not names or len(set(names)) < len(names):
                raise ValueError(
                    f"name at least one {kind}, and none twice: {', '.join(map(str, names)) or 'none given'}"
                )
        if BASELINE not in self.rules:
            object.__setattr__(self, "rules", (BASELINE, *self.rules))

    @property
    def trials(self) -> list[Trial]:
        """All trials, seed after seed: a half-finished experiment has all rules on some seeds."""
        names = product(self.seeds, self.presets, self.rules)
        return [Trial(self.testbed, rule, preset, seed, self.settings[preset]) for seed, preset, rule in names]

    @property
    def budget(self) -> str:
        """Unit in which all rules spend the same."""
        return self.settings[self.presets[0]].budget


def simulator_experiment(
    rules: tuple[str, ...], presets: tuple[str, ...], seeds: tuple[int, ...], settings: TrialSettings
) -> Experiment:
    """An experiment on simulated policies.

    Args:
        rules: names of rules, or ``path.py:name``.
        presets: names of populations, or paths of traces; each seed draws another population of the kind.
        seeds: shared by all rules.
        settings: shared by all trials.

    Raises:
        ValueError: a rule or preset that does not exist, or is named twice; or no seeds.
    """
    described = dataclasses.asdict(settings)
    experiment = Experiment(SIMULATOR, rules, presets, seeds, dict.fromkeys(presets, settings), described)
    for preset in presets:
        population(preset, 1, 0)
    context = dataclasses.replace(experiment.trials[0].context(), truth=lambda ids: np.zeros(len(ids)))
    for rule in experiment.rules:
        resolve(rule, context)
    return experiment


def run_experiment(
    experiment: Experiment, out: Path, backend: Backend, console: Console
) -> tuple[Results, list[TrialEvent]]:
    """Run the trials that are not finished, and gather all.

    Args:
        experiment: what to run.
        out: folder of the trials' files; finished trials there are not run again.
        backend: runs trials.
        console: shows progress.

    Returns:
        The results, and the failures.

    Raises:
        ValueError: uniform has not finished everywhere.
    """
    trials = experiment.trials
    files = {trial: trial.file(out) for trial in trials}  # once: a rule's file may be edited meanwhile
    (out / "trials").mkdir(parents=True, exist_ok=True)
    finished = {trial for trial in trials if files[trial].exists()}
    failures: list[TrialEvent] = []
    with Display(console, trials, finished) as display:
        for phase in _phases([trial for trial in trials if trial not in finished]):
            jobs = [job for trial in phase if (job := _job(trial, files)) is not None]
            with contextlib.closing(backend.run(jobs)) as events:
                for event in events:
                    display.show(event)
                    failures += [event] if event.kind == "failed" else []
    by_rule = sorted(trials, key=lambda trial: experiment.rules.index(trial.rule))
    kept = [files[trial] for trial in by_rule if files[trial].exists()]
    return gather(kept, experiment.rules, experiment.presets, experiment.seeds, experiment.scoring), failures


def _phases(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Uniform first where the budget is in tokens, because it defines the budget; otherwise all at once."""
    first = [trial for trial in trials if trial.settings.budget == "tokens" and trial.rule == BASELINE]
    return [first, [trial for trial in trials if trial not in first]]


def _job(trial: Trial, files: Mapping[Trial, Path]) -> Job | None:
    """The job of a trial; None where its budget is unknown because uniform failed."""
    if trial.settings.budget == "rollouts" or trial.rule == BASELINE:
        return Job(trial, files[trial])
    uniform = files[dataclasses.replace(trial, rule=BASELINE)]
    return Job(trial, files[trial], _tokens(uniform)) if uniform.exists() else None


def _tokens(file: Path) -> int:
    return int(pl.read_parquet(file, columns=["tokens"])["tokens"].max())  # type: ignore[arg-type]


def names_in(lists: str | Sequence[str]) -> tuple[str, ...]:
    """Names in a comma-separated list, or in several."""
    given = [lists] if isinstance(lists, str) else lists
    return tuple(name.strip() for each in given for name in each.split(",") if name.strip())
