"""A trace as the report needs it: a name, a colour, and the numbers step by step and evaluation by evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from knapsack_rl.metrics import step_metrics
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.trace import Evaluation, Step, Trace

# One colour per method, in every figure and table: legible on white and on near-black, and to the colour-blind.
COLOURS = {"uniform": "#7c8794", "posterior": "#3a7be0", "paper": "#d9822b", "calibrated": "#1a9a84"}
OTHER_COLOURS = ("#a05fd1", "#c94f7c", "#8a7a2f", "#3f9fb5")
NAMES = {"posterior": "knapsack", "calibrated": "knapsack (calibrated)", "paper": "knapsack (paper)"}
DASHES = ("-", "--", ":", "-.")

TRAIN, HELDOUT = "train/pass_rate", "heldout/pass_rate"


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
        trace: its record.
        method: how it allocated.
        label: a short name that no other run of the page has.
        colour: of its method.
        dash: tells runs of one method apart.
    """

    trace: Trace
    method: str
    label: str
    colour: str
    dash: str

    @property
    def steps(self) -> list[Step]:
        """Its generation steps."""
        return self.trace.steps

    @cached_property
    def step_S(self) -> IntArray:
        """Number of each recorded step, ``[S]``."""
        return np.array([step.plan.step for step in self.steps], dtype=np.int64)

    @cached_property
    def rollouts_S(self) -> IntArray:
        """Rollouts spent after each step, ``[S]``."""
        return np.cumsum([step.outcomes.counts_P.sum() for step in self.steps], dtype=np.int64)

    @property
    def rollouts(self) -> int:
        """Rollouts spent in all."""
        return int(self.rollouts_S[-1]) if self.steps else 0

    @cached_property
    def metrics(self) -> dict[str, FloatArray]:
        """`step_metrics` over time, each ``[S]``."""
        rows = [step_metrics(step.plan, step.outcomes) for step in self.steps]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}

    @cached_property
    def observed_S(self) -> FloatArray:
        """Mean pass rate of each step's prompts, every prompt counted once whatever its group's size, ``[S]``."""
        return np.array([mean(step.outcomes.pass_rates_P) for step in self.steps])

    def metric(self, name: str) -> float:
        """Mean of a step metric over the run."""
        return mean(self.metrics[name]) if self.steps else math.nan

    @cached_property
    def largest(self) -> int:
        """The largest group planned; 0 without steps."""
        return max((int(step.plan.counts_P.max(initial=0)) for step in self.steps), default=0)

    @property
    def dead(self) -> int:
        """Rollouts in groups without a gradient."""
        return int(self.metrics["rollouts_dead"].sum()) if self.steps else 0

    @cached_property
    def allocator_share(self) -> float:
        """Share of the wall-clock time that went into planning; NaN where it was not measured."""
        pairs = [(s.seconds.get("allocate", math.nan), s.seconds.get("step", math.nan)) for s in self.steps]
        known = [(allocate, step) for allocate, step in pairs if not math.isnan(allocate + step)]
        total = sum(step for _, step in known)
        return sum(allocate for allocate, _ in known) / total if total else math.nan

    def curve(self, metric: str) -> tuple[FloatArray, FloatArray]:
        """Rollouts spent and value of each evaluation that has the metric."""
        points = [
            (e.rollouts, e.metrics[metric]) for e in self.trace.evals if not math.isnan(e.metrics.get(metric, math.nan))
        ]
        table = np.array(sorted(points), dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    @cached_property
    def exact(self) -> list[Evaluation]:
        """Evaluations that know the exact success rate of prompts."""
        return [evaluation for evaluation in self.trace.evals if evaluation.rates]

    @property
    def state(self) -> str:
        """How the run stands, in words."""
        if not self.trace.run:
            return "empty trace"
        if self.trace.ended is not None:
            return self.trace.ended
        return "running, or killed" if self.steps else "no step yet"


def make_runs(traces: Sequence[Trace]) -> list[Run]:
    """Name and colour the runs; runs of one method are told apart by seed, else by folder."""
    methods = [str(trace.run.get("method") or "unknown") for trace in traces]
    others = [method for method in dict.fromkeys(methods) if method not in COLOURS]
    colours = {**COLOURS, **{method: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, method in enumerate(others)}}
    labels = _labels(traces, methods)
    runs = []
    for i, (trace, method) in enumerate(zip(traces, methods, strict=True)):
        dash = DASHES[methods[:i].count(method) % len(DASHES)]
        runs.append(Run(trace, method, labels[i], colours[method], dash))
    return runs


def mean(values: FloatArray) -> float:
    """The mean of what is known; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def start_and_end(run: Run, metric: str) -> tuple[float, float]:
    """First and last value of an evaluated metric; NaN where there is none."""
    _, values = run.curve(metric)
    return (float(values[0]), float(values[-1])) if values.size else (math.nan, math.nan)


def observed_start_and_end(run: Run) -> tuple[float, float]:
    """Mean observed pass rate over the first and the last tenth of the steps."""
    tenth = max(len(run.steps) // 10, 1)
    return mean(run.observed_S[:tenth]), mean(run.observed_S[-tenth:])


def flat_settings(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings with dotted names."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def drawable(text: str) -> str:
    """At most 40 characters that a font can draw: names come from a file, and a file may hold anything."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= 40 else printable[:37] + "..."


def _labels(traces: Sequence[Trace], methods: Sequence[str]) -> list[str]:
    plain = [NAMES.get(method, drawable(method)) for method in methods]
    seeds = [drawable(f"seed {trace.run.get('seed')}") for trace in traces]
    folders = [drawable(trace.path.parent.name or trace.path.name) for trace in traces]
    seeded, placed = ([f"{a}, {b}" for a, b in zip(plain, more, strict=True)] for more in (seeds, folders))
    numbered = [f"{name} #{i}" for i, name in enumerate(plain, start=1)]
    for names in (plain, seeded, placed):
        if len(set(names)) == len(names):
            return names
    return numbered
