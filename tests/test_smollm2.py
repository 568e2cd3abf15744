"""The regime of a pretrained model: its prompts, its supervised start, and the study's tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import campaign, smollm2
from benchmarks.campaign import Line

from knapsack_arena.lab.arithmetic import verify
from knapsack_arena.lab.environment import LanguageModelEnvironment
from knapsack_arena.lab.regimes import Regime
from knapsack_arena.lab.short_answers import EXAMPLES, LEVELS, LONGEST, problems, question
from knapsack_arena.lab.wide_policy import WidePolicy
from knapsack_rl.tasks.recipe import Recipe
from tiny_regimes import tiny


def test_problems_are_right_different_and_of_all_levels() -> None:
    parts = problems((45, 18, 90), seed=1)
    assert [len(part) for part in parts] == [45, 18, 90]
    every = [problem for part in parts for problem in part]
    assert len({problem.prompt for problem in every}) == len(every)
    assert all(verify(problem.prompt, problem.answer) for problem in every)
    assert all(len(problem.answer) < LONGEST for problem in every)  # a digit is a token, and there is one for the end
    for part in parts:
        assert {problem.source for problem in part} == {
            f"{family}-{level}" for family, levels in LEVELS.items() for level in range(len(levels))
        }
    for problem in every:  # the question is the problem, spaced
        assert question(problem).removeprefix(EXAMPLES).replace(" ", "").removesuffix("=") == problem.prompt.rstrip("=")
        assert question(problem).startswith(EXAMPLES)
        assert question(problem).endswith(" = ")
    assert problems((45, 18, 90), seed=1) == parts
    assert problems((45, 18, 90), seed=2) != parts


@pytest.fixture(scope="module")
def started() -> Regime:
    """A regime that begins with the model of `tiny`, in place of one that was pretrained on more."""
    source = tiny()
    recipe = Recipe(steps=30, batch=32, learning_rate=3e-3)
    return dataclasses.replace(source, name="started", pretrained=str(source.base_model()), recipe=recipe)


def test_the_supervised_start_teaches_and_is_kept(started: Regime) -> None:
    environment = LanguageModelEnvironment(started, 0)
    assert isinstance(environment.policy, WidePolicy)
    prompts = [item.prompt for item in started.train]
    answers = [item.answer for item in started.train]
    before = WidePolicy(Path(started.pretrained), prompts, answers, 1e-3, started.longest)
    # Of answers that are right only sometimes, those that the teacher gives become more likely.
    rows = range(len(prompts))
    taught = environment.policy.log_probs(rows, before.answers)
    assert sum(map(np.sum, taught)) > sum(map(np.sum, before.log_probs(rows, before.answers)))
    assert started.base_model() == started.base_model() != tiny().base_model()


def _line(rule: str, seed: int, end: float) -> Line:
    names = ("hard_half_p", "coverage", "mixed_rollouts", "mixed_prompts", "overhead", "prefill")
    line: Line = {"rule": rule, "regime": "smollm2", "seed": seed, "longer": 1.0, "spent": [0.0, 0.5, 1.0]}
    line["held_out_p"] = [0.2, (0.2 + end) / 2, end]
    return (
        line | {name: [float("nan"), 0.5, 0.25] for name in names[2:]} | {name: [0.1, 0.2, 0.3] for name in names[:2]}
    )


def test_the_study_compares_each_rule_at_its_best_rate_with_uniform_at_its_best(tmp_path: Path) -> None:
    assert len(smollm2.jobs()) == len(set(smollm2.jobs())) == 12
    lines = [_line("uniform", seed, 0.4) for seed in (0, 1)] + [_line("uniform@lr=0.5", seed, 0.5) for seed in (0, 1)]
    lines += [_line("paper", 0, 0.47), _line("paper@lr=0.5", 0, 0.6)]
    start = tmp_path / "start.json"
    start.write_text(json.dumps({"train": {"gcd-0": [0.01, 0.5]}, "heldout": {"gcd-0": [0.97]}}), encoding="utf-8")
    found = smollm2.section(lines, start)
    assert "2 training prompts: mean 25.5 %, 50 % of them below .05 (0 % below .01), 50 % between" in found
    rows = {row.split(" | ")[0]: row for row in found.splitlines() if "(best)" in row}
    assert " | 0.5 (best) | 2 | 35.0 | - | 50.0 | - | - | 38 % |" in rows["| `uniform`"]
    assert " | 0.5 (best) | 1 | 40.0 | +5.00 | 60.0 | +10.00 | 0.75 | 38 % |" in rows["| `paper`"]
    assert "| 50.0 | 60.0 (+10.00) |" in smollm2.claims(lines)
    assert smollm2.claims([]) == "No run has ended yet."


def test_the_pages_have_the_tables_of_the_committed_lines() -> None:
    lines = campaign.read(smollm2.LINES)
    docs, start = campaign.ROOT / "docs", smollm2.start_file(smollm2.LINES)
    for page, text in (("lab.md", smollm2.section(lines, start)), ("paper.md", smollm2.claims(lines))):
        written = (
            (docs / page).read_text(encoding="utf-8").partition(smollm2.MARKS[0])[2].partition(smollm2.MARKS[1])[0]
        )
        assert written.strip() == text.strip()
