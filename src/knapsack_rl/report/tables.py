"""The tables of the report: measures of each run, changes of status, sample completions, settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from knapsack_rl.metrics import transition_matrix
from knapsack_rl.outcomes import is_success
from knapsack_rl.report.runs import HELDOUT, TRAIN, Run, flat_settings, observed_start_and_end, start_and_end

NONE = "-"
_EXTREME = 0.01
_SAMPLES_PER_RUN = 4
_LONGEST = 600


@dataclass(frozen=True)
class Transitions:
    """Numbers of prompts by status before (rows) and after (columns); ``source`` describes the two rates compared."""

    run: Run
    source: str
    counts: list[list[int]]
    shades: list[list[int]]  # share of the row, in percent


@dataclass(frozen=True)
class Sample:
    """One completion, with the result of its group."""

    run: Run
    step: int
    prompt_id: str
    prompt: str
    completion: str
    reward: str
    group: str


def headline(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The main measures of each run, as text by name."""
    return [
        {
            "pass rate on training prompts": _train(run),
            "pass rate on held-out prompts": _change(start_and_end(run, HELDOUT)),
            "generation steps": f"{len(run.steps):,}",
            "rollouts spent": f"{run.rollouts:,}",
            "prompts with a mixed group": percent(run.metric("frac_prompts_mixed")),
            "rollouts in mixed groups": percent(run.metric("frac_rollouts_mixed")),
            "zero-gradient rollouts": f"{run.zero_gradient_rollouts:,}" if run.steps else NONE,
            **_kept(run, runs),
            "largest group": str(run.largest) if run.steps else NONE,
            "allocator's share of the time": percent(run.allocator_share, digits=1),
            "time": duration(math.nan if run.trace.seconds is None else run.trace.seconds),
            "state": run.state,
        }
        for run in runs
    ]


def _kept(run: Run, runs: Sequence[Run]) -> dict[str, str]:
    """What was kept and used of successes; no rows where no run keeps any, none of the ratio where no run knows it."""
    if not any(each.trace.kept for each in runs):
        return {}
    used = sum(kept.metrics.get("kept_used", 0.0) for kept in run.trace.kept)
    last = run.trace.kept[-1].metrics.get("kept", math.nan) if run.trace.kept else math.nan
    age, ratio = (_mean_of_used(run, name) for name in ("kept_age", "kept_ratio"))
    found = {
        "prompts with a kept success": NONE if math.isnan(last) else f"{last:,.0f}",
        "groups given a kept success": f"{used:,.0f}" if run.trace.kept else NONE,
        "mean age of these successes, in steps": NONE if math.isnan(age) else f"{age:,.1f}",
    }
    if any("kept_ratio" in kept.metrics for each in runs for kept in each.trace.kept):
        found["mean ratio of these successes, at most 1"] = NONE if math.isnan(ratio) else f"{ratio:.2f}"
    return found


def _mean_of_used(run: Run, name: str) -> float:
    """A mean over the kept successes of a step, over those of all steps that have it; NaN where none has it."""
    have = [kept.metrics for kept in run.trace.kept if name in kept.metrics]
    used = sum(metrics.get("kept_used", 0.0) for metrics in have)
    return sum(metrics[name] * metrics.get("kept_used", 0.0) for metrics in have) / used if used else math.nan


def transitions(runs: Sequence[Run]) -> list[Transitions]:
    """Count changes of status: by exact rates where two evaluations have them, else by observed pass rates."""
    found = []
    for run in runs:
        before, after, source = _before_and_after(run)
        if not before:
            continue
        matrix = transition_matrix(np.array(before), np.array(after))
        total = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        shades = np.rint(100 * matrix / total).astype(int)
        found.append(Transitions(run, source, matrix.tolist(), shades.tolist()))
    return found


def samples(runs: Sequence[Run]) -> list[Sample]:
    """A few of each run's latest completions, of different prompts, successes and failures."""
    return [sample for run in runs for sample in _samples(run)]


def settings(runs: Sequence[Run]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """Rows ``(name, one value per run)``: those that differ between the runs, and those that are equal."""
    columns = []
    for run in runs:
        fields = {name: value for name, value in run.trace.run.items() if name not in ("kind", "settings")}
        own = run.trace.run.get("settings")
        columns.append(flat_settings({**fields, **(own if isinstance(own, dict) else {})}))
    differ: list[tuple[str, list[str]]] = []
    same: list[tuple[str, list[str]]] = []
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [_shown(column[name]) if name in column else NONE for column in columns]
        (differ if len(set(values)) > 1 else same).append((name, values))
    return differ, same


def percent(share: float, digits: int = 0) -> str:
    """A share in per cent; ``-`` for NaN."""
    return NONE if math.isnan(share) else f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """A time span as text: ``45 s``, ``3 min 05 s``, ``2 h 10 min``; ``-`` for NaN."""
    if math.isnan(seconds):
        return NONE
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _before_and_after(run: Run) -> tuple[list[float], list[float], str]:
    if len(run.exact) > 1:
        first, last = run.exact[0].rates or {}, run.exact[-1].rates or {}
        ids = [prompt_id for prompt_id in first if prompt_id in last]
        rates = [_to_extremes(at[prompt_id]) for at in (first, last) for prompt_id in ids]
        when = f"step {run.exact[0].step} to step {run.exact[-1].step}"
        source = f"exact success rates of {len(ids):,} prompts, {when}; under 1 % counts as 0 and over 99 % as 1"
        return rates[: len(ids)], rates[len(ids) :], source
    visits: dict[str, list[float]] = {}
    for step in run.steps:
        for prompt_id, rate in zip(step.plan.prompt_ids, step.outcomes.pass_rates_P, strict=True):
            if not math.isnan(rate):
                visits.setdefault(prompt_id, []).append(float(rate))
    again = [rates for rates in visits.values() if len(rates) > 1]
    source = f"pass rates of the first and the last group of {len(again):,} prompts (small groups: often 0 or 1)"
    return [rates[0] for rates in again], [rates[-1] for rates in again], source


def _to_extremes(rate: float) -> float:
    """Round a rate within 0.01 of 0 or 1 to it: an exact rate never reaches them, an observed one does."""
    return 0.0 if rate < _EXTREME else 1.0 if rate > 1 - _EXTREME else rate


def _samples(run: Run) -> Iterable[Sample]:
    """The latest samples of different prompts: successes first, then failures."""
    by_prompt: dict[str, tuple[int, dict[str, object]]] = {}
    for index in range(len(run.steps) - 1, -1, -1):
        for sample in run.steps[index].samples:
            by_prompt.setdefault(str(sample.get("id")), (index, dict(sample)))
        if len(by_prompt) >= 8 * _SAMPLES_PER_RUN:
            break
    latest = list(by_prompt.items())
    good = [item for item in latest if _succeeded(run, *item[1])]
    bad = [item for item in latest if not _succeeded(run, *item[1])]
    half = _SAMPLES_PER_RUN // 2
    chosen = good[: max(half, _SAMPLES_PER_RUN - len(bad))] + bad[: max(half, _SAMPLES_PER_RUN - len(good))]
    for prompt_id, (index, sample) in chosen:
        yield Sample(
            run=run,
            step=run.steps[index].plan.step,
            prompt_id=prompt_id,
            prompt=_cut(run.trace.texts.get(prompt_id, "(text not recorded)")),
            completion=_cut(str(sample.get("completion", ""))),
            reward=_number(sample.get("reward")),
            group=_group(run, index, prompt_id),
        )


def _succeeded(run: Run, index: int, sample: dict[str, object]) -> bool:
    reward = sample.get("reward")
    known = isinstance(reward, int | float)
    return known and bool(is_success(np.array(reward), run.steps[index].outcomes.success_threshold))


def _group(run: Run, index: int, prompt_id: str) -> str:
    """Successes and answers of the sample's group, as text."""
    outcomes = run.steps[index].outcomes
    if prompt_id not in outcomes.prompt_ids:
        return NONE
    i = outcomes.prompt_ids.index(prompt_id)
    return f"{outcomes.successes_P[i]} of {outcomes.attempts_P[i]}"


def _train(run: Run) -> str:
    """The evaluated pass rate on training prompts; else the observed one, marked as such."""
    evaluated = start_and_end(run, TRAIN)
    if not math.isnan(evaluated[1]) or not run.steps:
        return _change(evaluated)
    return f"{_change(observed_start_and_end(run))} (observed)"


def _change(values: tuple[float, float]) -> str:
    return NONE if math.isnan(values[1]) else f"{values[0]:.3f} → {values[1]:.3f}"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else NONE


def _shown(value: object) -> str:
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"
