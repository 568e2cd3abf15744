"""A trace with the label and colour of its run, and its measures by step and by evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from knapsack_rl.metrics import mean, step_metrics
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.trace import Evaluation, Step, Trace

# One colour per rule in every figure and table, told apart with colour blindness too.
COLOURS = {"uniform": "#7c8794", "beta": "#3a7be0", "paper": "#d9822b", "calibrated": "#1a9a84"}
OTHER_COLOURS = ("#a05fd1", "#c94f7c", "#8a7a2f", "#3f9fb5")
# Each colour as ink on white and on near-black, with the contrast that text needs (4.5 to 1).
INKS = {
    "#7c8794": ("#6b747f", "#7c8794"),
    "#3a7be0": ("#3571ce", "#4683e2"),
    "#d9822b": ("#a56321", "#d9822b"),
    "#1a9a84": ("#16816f", "#1a9a84"),
    "#a05fd1": ("#9558c2", "#a669d4"),
    "#c94f7c": ("#bd4a75", "#ce5f88"),
    "#8a7a2f": ("#82732c", "#938540"),
    "#3f9fb5": ("#317c8d", "#3f9fb5"),
}
DASHES = ("-", "--", ":", "-.")

TRAIN, HELDOUT = "train/pass_rate", "heldout/pass_rate"


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
        trace: its records.
        rule: name of the rule that chose the counts.
        label: a short name, unique on the page.
        colour: of its rule.
        dash: line style; differs between runs of one rule.
    """

    trace: Trace
    rule: str
    label: str
    colour: str
    dash: str

    @property
    def ink(self) -> str:
        """Its colour as a variable of the page's style, which differs in the light and the dark mode."""
        return ink(self.colour)

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
        """Mean pass rate of each step's prompts, each prompt with equal weight, ``[S]``."""
        return np.array([mean(step.outcomes.pass_rates_P) for step in self.steps])

    def metric(self, name: str) -> float:
        """Mean of a step metric over the run."""
        return mean(self.metrics[name]) if self.steps else math.nan

    @cached_property
    def largest(self) -> int:
        """The largest group planned; 0 without steps."""
        return max((int(step.plan.counts_P.max(initial=0)) for step in self.steps), default=0)

    @property
    def zero_gradient_rollouts(self) -> int:
        """Rollouts in groups without a gradient."""
        return int(self.metrics["zero_gradient_rollouts"].sum()) if self.steps else 0

    @cached_property
    def allocator_share(self) -> float:
        """Share of the steps' time spent in the library: looks, plans, beliefs, trace; NaN if not measured."""
        pairs = [(s.seconds.get("overhead", math.nan), s.seconds.get("step", math.nan)) for s in self.steps]
        known = [(own, step) for own, step in pairs if not math.isnan(own + step)]
        total = sum(step for _, step in known)
        return sum(own for own, _ in known) / total if total else math.nan

    def curve(self, metric: str) -> tuple[FloatArray, FloatArray]:
        """Rollouts spent and value of each evaluation that has the metric."""
        points = [
            (e.rollouts, e.metrics[metric]) for e in self.trace.evals if not math.isnan(e.metrics.get(metric, math.nan))
        ]
        table = np.array(sorted(points), dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    @cached_property
    def exact(self) -> list[Evaluation]:
        """Evaluations with exact success rates by prompt."""
        return [evaluation for evaluation in self.trace.evals if evaluation.rates]

    @property
    def state(self) -> str:
        """The state of the run, in words."""
        if not self.trace.run:
            return "empty trace"
        state = self.trace.ended or ("running, or killed" if self.steps else "no step yet")
        lost = sum(each.records for each in self.trace.lost)
        return f"{state}; {lost} records could not be written" if lost else state


def ink(colour: str) -> str:
    """The variable of the page's style that stands for a colour."""
    return f"var(--ink-{colour[1:]})"


def make_runs(traces: Sequence[Trace]) -> list[Run]:
    """Label and colour the runs; labels of runs of one rule add the seed, or the folder if seeds are equal."""
    rules = [str(trace.run.get("rule") or "unknown") for trace in traces]
    others = [rule for rule in dict.fromkeys(rules) if rule not in COLOURS]
    colours = {**COLOURS, **{rule: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, rule in enumerate(others)}}
    labels = _labels(traces, rules)
    runs = []
    for i, (trace, rule) in enumerate(zip(traces, rules, strict=True)):
        dash = DASHES[rules[:i].count(rule) % len(DASHES)]
        runs.append(Run(trace, rule, labels[i], colours[rule], dash))
    return runs


def start_and_end(run: Run, metric: str) -> tuple[float, float]:
    """First and last value of an evaluated metric; NaN if it was not evaluated."""
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
    """The text cut to 40 characters, with unprintable ones replaced, so that any text of a file can be drawn."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= 40 else printable[:37] + "..."


def _labels(traces: Sequence[Trace], rules: Sequence[str]) -> list[str]:
    plain = [drawable(rule) for rule in rules]
    seeds = [drawable(f"seed {trace.run.get('seed')}") for trace in traces]
    folders = [drawable(trace.path.parent.name or trace.path.name) for trace in traces]
    seeded, placed = ([f"{a}, {b}" for a, b in zip(plain, more, strict=True)] for more in (seeds, folders))
    numbered = [f"{name} #{i}" for i, name in enumerate(plain, start=1)]
    for names in (plain, seeded, placed):
        if len(set(names)) == len(names):
            return names
    return numbered
