"""Campaigns of the laboratory: many trials, one line of JSON each, which can be cut off and continued anywhere.

    python -m benchmarks.campaign tune        # every rule over learning rates and sizes of steps, on tuning seeds
    python -m benchmarks.campaign finals      # the two best settings of a rule again, on other seeds or base models
    python -m benchmarks.campaign evidence    # each rule at its best and at the common setting, on other base models
    python -m benchmarks.campaign passes      # pass@1 and pass@8 of the tuned rules at the budget, on long answers
    python -m benchmarks.campaign smollm2     # three rules at two learning rates on a pretrained model
    python -m benchmarks.campaign table       # the tables of these campaigns, in docs/lab.md and docs/paper.md

A trial that has a line in the file is not run again. Lines of several machines may be joined: a trial's numbers depend
on its rule, regime, seed and budget; versions and processor are recorded with it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
# One trial's numbers: lists along the budget, and what identifies it.
Line: TypeAlias = dict[str, Any]

# Rules that are tuned alike. AR3PO has its replay of earlier answers.
RULES: Final = (
    "uniform", "calibrated-pool@prompt", "calibrated-pool@prompt@priced", "ar3po@kept", "uniform@kept", "paper",
)  # fmt: skip
LEARNING_RATES: Final = (1.0, 2.0, 4.0, 0.5)
DIVISORS: Final = (1, 2, 4)
REGIMES: Final = ("long", "keys", "hopeless", "skills", "tail")
TUNING_SEEDS: Final = (0,)
# Instances and seeds with which the two best settings of a rule are tried again, because one run is easily the best by
# its noise; on a regime that is not here, seed 1. On `hopeless` settings differ by more between base models than seeds.
FINALS: Final[Mapping[str, tuple[tuple[str, int], ...]]] = {
    "hopeless": (("hopeless", 1), ("hopeless/5", 0), ("hopeless/6", 0))
}
# Base models and seeds that were not used for tuning; runs of 1.5 times the budget, so that slower rules arrive too.
INSTANCES: Final = (1, 2, 3)
SEEDS: Final = (10, 11, 12, 13)
LONGER: Final = 1.5
# Regimes with many right answers to a prompt.
VARIED: Final = ("long", "hopeless")
_METRICS: Final = (
    "held_out_p", "hard_half_p", "coverage", "mixed_rollouts", "mixed_groups", "mixed_prompts", "overhead", "prefill",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One trial.

    Attributes:
        rule: with its options.
        regime: with its instance.
        seed: of prompt order and sampling.
        longer: factor on the regime's budget.
    """

    rule: str
    regime: str
    seed: int
    longer: float = 1.0

    @property
    def key(self) -> tuple[str, str, int, float]:
        """What identifies the trial in the file."""
        return self.rule, self.regime, self.seed, self.longer


def with_setting(rule: str, learning_rate: float, divisor: int) -> str:
    """The rule's name with a learning rate and a size of step; the common setting adds nothing."""
    name = rule if learning_rate == 1 else f"{rule}@lr={learning_rate:g}"
    return name if divisor == 1 else f"{name}@step=1/{divisor}"


def tuning(
    rules: Sequence[str] = RULES, regimes: Sequence[str] = REGIMES, seeds: Sequence[int] = TUNING_SEEDS
) -> list[Job]:
    """Every rule over the same grid; the common setting of all rules first, then the rest."""
    grid = sorted(product(DIVISORS, LEARNING_RATES), key=lambda cell: cell != (1, 1.0))
    return [
        Job(with_setting(rule, rate, divisor), regime, seed)
        for seed in seeds
        for divisor, rate in grid
        for regime in regimes
        for rule in rules
    ]


def evidence(
    tuned: Iterable[Line], rules: Sequence[str] = RULES, regimes: Sequence[str] = REGIMES, seeds: Sequence[int] = SEEDS
) -> list[Job]:
    """Each rule at its best setting and at the common one, seed after seed; one that was not tuned as it is named."""
    lines = list(tuned)
    wanted = {
        regime: dict.fromkeys(name for rule in rules for name in (best_or_named(lines, rule, regime), rule))
        for regime in regimes
    }
    return [
        Job(name, f"{regime}/{instance}", seed, LONGER)
        for seed in seeds
        for instance in INSTANCES
        for regime in regimes
        for name in wanted[regime]
    ]


def finals(tuned: Iterable[Line], rules: Sequence[str] = RULES, regimes: Sequence[str] = REGIMES) -> list[Job]:
    """The two best settings of each rule on each regime by the tuning seeds, with the other seeds and base models."""
    lines = [line for line in tuned if line["seed"] in TUNING_SEEDS]
    found = []
    for regime, rule in product(regimes, rules):
        areas = {name: _mean_area(of_name) for name, of_name in _tried_first(lines, rule, regime).items()}
        for name in sorted(areas, key=lambda name: -areas[name])[:2]:
            found += [Job(name, *trial) for trial in _finals_of(regime)]
    return found


def passes(tuned: Iterable[Line], rules: Sequence[str] = RULES, regimes: Sequence[str] = REGIMES) -> list[Job]:
    """The tuned rules on the regimes whose answers vary, one run of the budget on each base model."""
    lines = list(tuned)
    return [
        Job(best(lines, rule, regime), f"{regime}/{instance}", SEEDS[0])
        for regime in regimes
        if regime in VARIED
        for instance in INSTANCES
        for rule in rules
    ]


def _finals_of(regime: str) -> tuple[tuple[str, int], ...]:
    """Instance and seed of a regime's finals."""
    return FINALS.get(regime, ((regime, 1),))


def deciding(lines: Iterable[Line], rule: str, regime: str) -> dict[str, list[Line]]:
    """The lines by which a rule's setting is chosen on a regime, by name with the setting.

    Those of the tuning seeds; if two settings or more have all `finals` too, all lines of these.
    """
    lines = list(lines)
    first = _tried_first(lines, rule, regime)
    trials = _finals_of(regime)
    again = {
        name: [line for line in lines if line["rule"] == name and (line["regime"], line["seed"]) in trials]
        for name in first
    }
    complete = {name: first[name] + found for name, found in again.items() if len(found) == len(trials)}
    return complete if len(complete) > 1 else first


def _tried_first(lines: Iterable[Line], rule: str, regime: str) -> dict[str, list[Line]]:
    """The lines of a rule with the tuning seeds, by name with the setting."""
    names = [with_setting(rule, rate, divisor) for divisor, rate in product(DIVISORS, LEARNING_RATES)]
    tried: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line["regime"] == regime and line["rule"] in names and line["seed"] in TUNING_SEEDS:
            tried[line["rule"]].append(line)
    return dict(tried)


def best(lines: Iterable[Line], rule: str, regime: str) -> str:
    """The setting of a rule with the largest mean area on a regime, by its `deciding` lines; ties to the common one.

    Raises:
        ValueError: the rule was not tuned there.
    """
    areas = {name: _mean_area(found) for name, found in deciding(lines, rule, regime).items()}
    if not areas:
        raise ValueError(f"{rule} has no tuning trial on {regime}: run `python -m benchmarks.campaign tune` first")
    return max(areas, key=lambda name: (areas[name], name == rule))


def _mean_area(lines: Sequence[Line]) -> float:
    return sum(map(area, lines)) / len(lines)


def best_or_named(lines: Iterable[Line], rule: str, regime: str) -> str:
    """The best setting of a rule; the rule as it is named, where it was not tuned."""
    try:
        return best(lines, rule, regime)
    except ValueError:
        return rule


def area(line: Line) -> float:
    """Mean of the held-out rate over the budget, by trapezoids."""
    x, y = line["spent"], line["held_out_p"]
    pairs = zip(x, x[1:], y, y[1:], strict=False)
    return float(sum((b - a) * (c + d) / 2 for a, b, c, d in pairs) / (x[-1] - x[0]))


def run_job(job: Job) -> Line:
    """Run a trial, and return its line."""
    import dataclasses
    import warnings

    import torch
    import transformers

    from benchmarks.pass_at import DRAWN, SAMPLES, pass_at, sampled
    from knapsack_arena.compare.trials import fingerprint, trial_rows
    from knapsack_arena.lab.trials import lab_trial

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    began, trial = time.perf_counter(), lab_trial(job.rule, job.regime, job.seed)
    steps = round(trial.settings.steps * job.longer)
    setups: list[Any] = []

    def set_up(trial: Any) -> Any:
        setups.append(testbed.set_up(trial))
        return setups[-1]

    testbed = trial.testbed
    trial = dataclasses.replace(
        trial,
        settings=dataclasses.replace(trial.settings, steps=steps),
        testbed=dataclasses.replace(testbed, set_up=set_up),
    )
    line: Line = {"rule": job.rule, "regime": job.regime, "seed": job.seed, "longer": job.longer}
    for name in ("spent", "updates", "tokens", *_METRICS):
        line[name] = []
    for row in trial_rows(trial):
        *_, point, spent, updates, _rollouts, tokens, _rounds, metric, _x, _y, value = row
        if point is None or metric not in _METRICS:
            continue
        if metric == "held_out_p":
            line["spent"].append(round(spent * job.longer, 5))
            line["updates"].append(updates)
            line["tokens"].append(tokens)
        if metric in line:
            line[metric].append(round(value, 5))
    environment = setups[-1].environment.environment
    if environment.policy.verify is not None:  # answers vary
        hits_P = sampled(environment)[1].reshape(-1, SAMPLES).sum(axis=1)
        line |= {f"pass_{drawn}": round(pass_at(hits_P, SAMPLES, drawn), 5) for drawn in (1, DRAWN)}
    return line | {
        "seconds": round(time.perf_counter() - began, 1),
        "code": fingerprint(*trial.testbed.code)[:12],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.processor() or platform.machine(),
    }


def read(path: Path) -> list[Line]:
    """The finished lines of a file; a line cut off by a kill is left out."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def unfinished(jobs: Sequence[Job], lines: Iterable[Line]) -> list[Job]:
    """Jobs without a line."""
    done = {(line["rule"], line["regime"], line["seed"], line["longer"]) for line in lines}
    return [job for job in dict.fromkeys(jobs) if job.key not in done]


def run(jobs: Sequence[Job], path: Path, workers: int, until: float) -> Iterator[Line]:
    """Run jobs in processes and append their lines as they come; nothing new starts after the time ``until``."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=20) as pool:
        waiting = iter(jobs)
        running = {pool.submit(run_job, job): job for _, job in zip(range(workers), waiting, strict=False)}
        while running:
            done = next(as_completed(running))
            job = running.pop(done)
            try:
                line = done.result()
            except Exception as error:  # one failed trial must not end the others
                print(f"failed: {job.rule} on {job.regime}, seed {job.seed}: {error!r}", file=sys.stderr, flush=True)
            else:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                yield line
            following = next(waiting, None) if time.time() < until else None
            if following is not None:
                running[pool.submit(run_job, following)] = following


def build_base_models(jobs: Sequence[Job]) -> None:
    """Build what the cache lacks, before workers would each build their own."""
    from knapsack_arena.lab.trials import find_regime

    for regime in dict.fromkeys(job.regime for job in jobs):
        print(f"{regime}: {find_regime(regime).base_model()}", flush=True)


def tuned_settings(evidence_lines: Iterable[Line], tuned: Sequence[Line]) -> dict[tuple[str, str], str]:
    """The setting of each rule on each regime that the tuning campaign has chosen, among those that were run.

    The tuning campaign may go on after an evidence campaign has begun.
    """
    found: dict[tuple[str, str], str] = {}
    run = {(line["regime"].partition("/")[0], line["rule"]) for line in evidence_lines}
    for regime in dict.fromkeys(regime for regime, _ in run):
        for rule in RULES:
            family = [line for line in tuned if line["regime"].partition("/")[0] == regime]
            lines = [line for line in family if (regime, line["rule"]) in run]
            found[regime, rule] = best_or_named(lines, rule, regime)
    return found


def write_table(lines: Sequence[Line], page: Path) -> int:
    """Write the tables of all campaigns between their marks on a page, and the paper's claims on the one beside it."""
    from benchmarks import evidence_tables, smollm2
    from benchmarks.arena import splice
    from benchmarks.campaign_tables import MARKS, tuning_tables

    text = splice(page.read_text(encoding="utf-8"), tuning_tables(lines), *MARKS)
    found = read(RESULTS / "evidence.jsonl")
    tables = evidence_tables.evidence_tables(found, tuned_settings(found, lines), read(RESULTS / "passes.jsonl"))
    text = splice(text, tables, *evidence_tables.MARKS)
    found, claims = read(smollm2.LINES), page.with_name("paper.md")
    studied = smollm2.section(found, smollm2.start_file(smollm2.LINES))
    page.write_text(splice(text, studied, *smollm2.MARKS), encoding="utf-8")
    claimed = splice(claims.read_text(encoding="utf-8"), smollm2.claims(found), *smollm2.MARKS)
    claims.write_text(claimed, encoding="utf-8")
    print(page, claims)
    return 0


def shown(line: Mapping[str, Any]) -> str:
    """A line in words."""
    held_out = line["held_out_p"]
    return (
        f"{line['rule']:44} {line['regime']:10} seed {line['seed']:2}  area {area(dict(line)):.4f}"
        f"  {held_out[0]:.3f} -> {held_out[-1]:.3f}  {line['updates'][-1]:4} updates  {line['seconds']:.0f} s"
    )


def main() -> int:
    from benchmarks import smollm2

    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign", description=__doc__)
    parser.add_argument("campaign", choices=("tune", "finals", "evidence", "passes", "smollm2", "table"))
    parser.add_argument("--rules", help="names with options, separated by commas")
    parser.add_argument("--regimes", default=",".join(REGIMES))
    parser.add_argument("--seeds", help="numbers, separated by commas; by default those of the campaign")
    parser.add_argument("--out", type=Path, help="file of the lines; by default in benchmarks/results")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no trial after this time")
    parser.add_argument("--list", action="store_true", help="print the unfinished trials and end")
    options = parser.parse_args()
    tuned = RESULTS / "tuning.jsonl"
    if options.campaign == "table":
        return write_table(read(options.out or tuned), ROOT / "docs" / "lab.md")
    regimes = options.regimes.split(",")
    rules = options.rules.split(",") if options.rules else smollm2.RULES if options.campaign == "smollm2" else RULES
    seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else None
    if options.campaign == "finals" and seeds:
        parser.error("finals has seeds of its own: leave --seeds away")
    if options.campaign == "tune":
        path, jobs = tuned, tuning(rules, regimes, seeds or TUNING_SEEDS)
    elif options.campaign == "finals":
        path, jobs = tuned, finals(read(tuned), rules, regimes)
    elif options.campaign == "passes":
        path, jobs = RESULTS / "passes.jsonl", passes(read(tuned), rules, regimes)
    elif options.campaign == "smollm2":
        path, jobs = smollm2.LINES, smollm2.jobs(rules, seeds or smollm2.SEEDS)
    else:
        path, jobs = RESULTS / "evidence.jsonl", evidence(read(tuned), rules, regimes, seeds or SEEDS)
    path = options.out or path
    left = unfinished(jobs, read(path))
    print(f"{len(left)} of {len(jobs)} trials are left", flush=True)
    if options.list:
        print(*left, sep="\n")
        return 0
    until = time.time() + 60 * options.minutes
    build_base_models(left)
    if options.campaign == "smollm2" and not smollm2.start_file(path).exists():
        smollm2.write_start(smollm2.start_file(path))
    for done, line in enumerate(run(left, path, options.workers, until), 1):
        print(f"{done:4} of {len(left)}  {shown(line)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
