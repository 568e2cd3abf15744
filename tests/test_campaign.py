"""Campaigns of the laboratory: what is run, how a setting is chosen, and that lines survive a cut."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from benchmarks import campaign
from benchmarks.campaign import Job, area, best, read, run, tuning, unfinished, with_setting

TINY = f"{Path(__file__).with_name('tiny_regimes.py')}:tiny"


def _line(rule: str, level: float, regime: str = "keys", seed: int = 0) -> campaign.Line:
    return {
        "rule": rule,
        "regime": regime,
        "seed": seed,
        "longer": 1.0,
        "spent": [0.0, 1.0],
        "held_out_p": [0.0, level],
    }


def test_every_rule_has_the_same_grid_and_the_common_setting_comes_first() -> None:
    jobs = tuning(("uniform", "paper@prompt"), ("keys",), (0,))
    assert len(jobs) == len(set(jobs)) == 2 * len(campaign.LEARNING_RATES) * len(campaign.DIVISORS)
    assert [job.rule for job in jobs[:2]] == ["uniform", "paper@prompt"]
    of_uniform = {job.rule.removeprefix("uniform") for job in jobs if job.rule.startswith("uniform")}
    assert of_uniform == {job.rule.removeprefix("paper@prompt") for job in jobs if job.rule.startswith("paper")}


def test_the_best_setting_has_the_largest_mean_area() -> None:
    lines = [_line("paper", 0.5), _line("paper@lr=2", 0.7), _line("paper@lr=2", 0.1), _line("paper@step=1/2", 0.45)]
    assert best(lines, "paper", "keys") == "paper"
    lines.append(_line("paper@lr=2@step=1/4", 0.9))
    lines.append(_line("paper@lr=4", 0.95, regime="skills"))
    assert best(lines, "paper", "keys") == "paper@lr=2@step=1/4"
    with pytest.raises(ValueError, match="no tuning trial"):
        best(lines, "uniform", "keys")


def test_the_two_best_settings_are_tried_again_and_both_seeds_decide_between_them() -> None:
    lines = [_line("paper", 0.5), _line("paper@lr=2", 0.7), _line("paper@lr=4", 0.6)]
    assert campaign.finals(lines, ("paper",), ("keys",)) == [Job(f"paper@lr={rate}", "keys", 1) for rate in (2, 4)]
    lines.append(_line("paper", 0.9, seed=1))
    assert best(lines, "paper", "keys") == "paper@lr=2", "a second seed of one setting says nothing of the others"
    lines += [_line("paper@lr=2", 0.1, seed=1), _line("paper@lr=4", 0.4, seed=1)]
    assert best(lines, "paper", "keys") == "paper"
    assert campaign.finals(lines, ("paper",), ("keys",)) == [Job(f"paper@lr={rate}", "keys", 1) for rate in (2, 4)]


def test_on_hopeless_other_base_models_decide_too() -> None:
    lines = [_line(name, found, regime="hopeless") for name, found in (("paper", 0.5), ("paper@lr=2", 0.7))]
    jobs = campaign.finals(lines, ("paper",), ("hopeless",))
    assert {(job.regime, job.seed) for job in jobs} == {("hopeless", 1), ("hopeless/5", 0), ("hopeless/6", 0)}
    assert not {job.regime for job in jobs} & {f"hopeless/{instance}" for instance in campaign.INSTANCES}
    lines += [_line("paper", 0.8, job.regime, job.seed) for job in jobs if job.rule == "paper"]
    assert best(lines, "paper", "hopeless") == "paper@lr=2"
    lines += [_line("paper@lr=2", 0.3, job.regime, job.seed) for job in jobs if job.rule == "paper@lr=2"]
    assert best(lines, "paper", "hopeless") == "paper"


def test_the_evidence_has_each_rule_tuned_and_common_and_one_that_was_not_tuned_as_it_is_named() -> None:
    lines = [_line("paper", 0.5), _line("paper@lr=2", 0.7)]
    jobs = campaign.evidence(lines, ("paper", "spo@step=1/4"), ("keys",), (20, 21))
    assert {job.seed for job in jobs} == {20, 21}
    assert {job.regime for job in jobs} == {f"keys/{instance}" for instance in campaign.INSTANCES}
    assert len(jobs) == len(set(jobs)) == 2 * len(campaign.INSTANCES) * 3
    assert {job.rule for job in jobs} == {"paper@lr=2", "paper", "spo@step=1/4"}


def test_area_is_the_mean_level() -> None:
    assert area({"spent": [0.0, 0.5, 1.0], "held_out_p": [0.2, 0.4, 0.4]}) == pytest.approx(0.35)


def test_a_campaign_goes_on_after_a_cut(tmp_path: Path) -> None:
    from knapsack_arena.lab.trials import find_regime

    find_regime(TINY).base_model()
    path = tmp_path / "lines.jsonl"
    jobs = [Job(rule, TINY, 0) for rule in ("uniform", with_setting("uniform@kept", 2.0, 2))]
    lines = list(run(jobs, path, 1, time.time() + 60))
    assert [line["rule"] for line in lines] == ["uniform", "uniform@kept@lr=2@step=1/2"]
    assert lines[1]["updates"][-1] == 2 * lines[0]["updates"][-1]
    assert len(lines[0]["held_out_p"]) == len(lines[0]["spent"])
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[: len(whole) - 20], encoding="utf-8")
    assert [line["rule"] for line in read(path)] == ["uniform"]
    assert unfinished(jobs, read(path)) == jobs[1:]
    assert json.loads(whole.splitlines()[0]) == lines[0]


def test_the_page_has_the_table_of_the_committed_lines() -> None:
    from benchmarks.campaign_tables import MARKS, tuning_tables

    page = (campaign.ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    written = page.partition(MARKS[0])[2].partition(MARKS[1])[0]
    assert written.strip() == tuning_tables(read(campaign.RESULTS / "tuning.jsonl")).strip()
