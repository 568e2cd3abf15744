"""verl's real trainer in the environment of ``world/``: Ray, TransferQueue, FSDP2, checkpoints, and a kill.

A run takes 5 GB. `make test-verl` has two processes of pytest, and gives each file to one of them: tests that start a
run belong in this file.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world.assets import make
from world.fresh_looks import SAVE_MODEL, assert_looks_are_fresh
from world.launch import AVERAGE, PROMPTS_A_STEP, Training

from knapsack_rl import AllocationConfig
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.looks import DIGITS, Looks
from knapsack_rl.features.text import TextFeatures
from knapsack_rl.metrics import step_metrics
from knapsack_rl.session import STATE_FILE, Session
from knapsack_rl.trace import Step, Trace, read_trace

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

BUDGET = PROMPTS_A_STEP * AVERAGE
STEPS_A_PASS = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path)
    return tmp_path


def trained_on(folder: Path) -> list[dict[str, list[tuple[float, float]]]]:
    """Rows that verl trained on in each update: (reward, advantage) by group; padding under its own key."""
    updates = []
    for line in (folder / "advantages.jsonl").read_text().splitlines():
        logged = json.loads(line)
        groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for key, *numbers in zip(logged["keys"], logged["rewards"], logged["advantages"], strict=True):
            groups["padding" if key.startswith("pad") else key.split("_")[0]].append(tuple(numbers))
        updates.append(groups)
    return updates


def assert_grpo(groups: dict[str, list[tuple[float, float]]], prompts_alike: bool = False) -> None:
    """Advantages against the plain formula, group by group; where prompts weigh alike, times mean(N) / N."""
    sizes = [len(rows) for uid, rows in groups.items() if uid != "padding"]
    for uid, rows in groups.items():
        rewards, advantages = np.array(rows).T
        if uid == "padding":
            assert not advantages.any()
            continue
        assert len(rows) >= 2, "a group of one was trained on"
        expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
        if prompts_alike:
            expected *= np.mean(sizes) / len(rows)
        np.testing.assert_allclose(advantages, expected, atol=1e-4)


def assert_replays(trace: Trace, allocator: KnapsackAllocator, features: TextFeatures | None = None) -> None:
    """The plans are those of an allocator that has learned from the record, and from nothing else."""
    seen = Looks()
    for step in trace.steps:
        looks, ids = None, step.plan.prompt_ids
        if features is not None:
            texts_P_F = features([trace.texts[prompt_id].removeprefix("user: ") for prompt_id in ids]).features_P_F
            looks = seen(ids, step.log_odds_P, lambda rows, texts_P_F=texts_P_F: texts_P_F[rows])
        planned = allocator.plan(ids, step.plan.budget, step.plan.step, features=looks)
        assert planned.counts_P.tolist() == step.plan.counts_P.tolist()
        np.testing.assert_allclose(planned.success_rates_P, step.plan.success_rates_P, rtol=1e-5)
        allocator.observe(replace(step.outcomes, features=looks))


def exactly(step: Step) -> tuple[Any, ...]:
    """Everything about a step that a resumed run must reproduce: looks, beliefs, plan and outcomes.

    The rollouts of a group reach the engine in any order, so its rewards are compared as a set.
    """
    plan, ends = step.plan, np.cumsum(step.plan.counts_P)[:-1]
    beliefs = plan.success_rates_P.tolist(), plan.pseudo_count_P.tolist(), plan.seen_P.tolist()
    looks = None if step.log_odds_P is None else step.log_odds_P.tolist()
    rewards = [sorted(group.tolist()) for group in np.split(step.outcomes.rewards_PG, ends)]
    return plan.step, step.optimizer_step, plan.prompt_ids, plan.counts_P.tolist(), plan.price, looks, beliefs, rewards


def assert_repeats(again: Sequence[Step], first: Sequence[Step]) -> None:
    """Steps done twice are equal, up to the first look in which the engine's arithmetic differs by its last digit.

    The policy and the state are restored bit by bit; but rollouts reach the trainer in any order, so that its sums, and
    after an update its weights, differ in the last bits. A look is rounded to 0.01: now and then one falls on the other
    side. Forecasts then differ by as little, and a plan may, so that later steps are not compared.
    """
    for position, (mine, other) in enumerate(zip(again, first, strict=True)):
        assert mine.log_odds_P is not None
        assert other.log_odds_P is not None
        assert mine.plan.prompt_ids == other.plan.prompt_ids
        if mine.log_odds_P.tolist() != other.log_odds_P.tolist():
            assert position > 0, "the policy was not restored as it was saved"
            np.testing.assert_allclose(mine.log_odds_P, other.log_odds_P, atol=1.01 * 10**-DIGITS)
            np.testing.assert_allclose(mine.plan.success_rates_P, other.plan.success_rates_P, atol=0.01)
            return
        assert exactly(mine) == exactly(other)


def done(training: Training) -> int:
    return len(read_trace(training.trace).steps) if training.trace.exists() else 0


def saved_step(training: Training) -> int:
    """The step that the run was resumed at."""
    [step] = re.findall(r'\{"kind":"resume","step":(\d+)\}', training.trace.read_text())
    return int(step)


def pass_rate(steps: list[Step]) -> float:
    """Mean over prompts, so that group sizes do not matter."""
    return float(np.nanmean([rate for step in steps for rate in step.outcomes.pass_rates_P]))


def test_trains_and_resumes_after_a_kill_as_if_it_had_never_stopped(folder: Path) -> None:
    """By default (texts and log odds), choosing from two batches of candidates: here, all prompts."""
    steps = 14
    training = Training(
        folder,
        settings={"group_weighting": "rollout"},  # the pool of four shrinks to the two batches that there are
        overrides=[f"trainer.total_training_steps={steps}", "trainer.save_freq=3", SAVE_MODEL],
    )
    training.run_until(lambda: done(training) >= 6)
    before = read_trace(training.trace)
    assert before.ended is None
    assert (folder / "checkpoints" / "global_step_3" / STATE_FILE).exists()
    training.run()
    trace = read_trace(training.trace)
    assert '{"kind":"resume","step":3}' in training.trace.read_text()
    # Steps 3 to 5 were done twice: before the kill by a run that had not stopped, and after it by a resumed one.
    assert len(before.steps) >= 6
    assert_repeats(trace.steps[3 : len(before.steps)], before.steps[3:])

    assert [step.plan.step for step in trace.steps] == list(range(steps))
    assert trace.ended == "finished"
    for step in trace.steps:
        assert step.plan.budget == step.plan.counts_P.sum() == BUDGET
        assert step.outcomes.counts_P.tolist() == step.plan.counts_P.tolist()
    assert sum(len(set(step.plan.counts_P.tolist())) > 1 for step in trace.steps) > steps // 2, "uniform plans"
    assert all(len(step.plan.prompt_ids) == 2 * PROMPTS_A_STEP for step in trace.steps)
    assert any(not step.plan.counts_P.all() for step in trace.steps), "every candidate was chosen"
    allocation = AllocationConfig(average=AVERAGE, pool=2, max_count=12)
    assert_replays(trace, allocation.make_allocator(STEPS_A_PASS), TextFeatures())
    assert_looks_are_fresh(folder, trace, least=3)

    updates = trained_on(folder)[-(steps - 3) :]
    for step, groups in zip(trace.steps[3:], updates, strict=True):
        chosen = step.plan.counts_P[step.plan.counts_P > 0]
        assert [len(rows) for rows in groups.values()] == chosen.tolist()  # in order; and no padding
        assert [reward for rows in groups.values() for reward, _ in rows] == step.outcomes.rewards_PG.tolist()
        assert_grpo(groups)

    first, last = pass_rate(trace.steps[:4]), pass_rate(trace.steps[-4:])
    print(f"pass rate: {first:.2f} in the first four steps, {last:.2f} in the last four")
    assert last > first + 0.1
    log = training.log.read_text()
    measured = step_metrics(trace.steps[0].plan, trace.steps[0].outcomes)
    for name in (*measured, "overhead_seconds", "rollouts_lost", "lag"):
        assert f"knapsack/{name}:" in log
    assert "knapsack/rollouts_lost:0" in log


def test_an_asynchronous_run_resumes_after_a_kill_as_if_it_had_never_stopped(folder: Path) -> None:
    """By default, with verl's `colocate_async`; the finished groups of a checkpoint are trained on after the resume.

    verl trains on whichever groups are finished first, so that two of its runs differ. Here a batch is taken when all
    groups that were asked for are there, and a run is a function of its plans and weights, as in sync mode.
    """
    lasting = ["trainer.total_training_steps=10", "trainer.save_freq=5"]
    training = Training(
        folder,
        overrides=["trainer.v1.trainer_mode=colocate_async", *lasting],
        environment={"WORLD_WAITS": "1"},
    )
    training.run_until(lambda: done(training) >= 8)
    before = read_trace(training.trace)
    training.run()
    trace = read_trace(training.trace)
    written = training.trace.read_text().count('{"kind":"step"')
    kept = len(before.steps) - (written - len(trace.steps))  # records that the resume did not undo
    assert 0 < kept <= len(before.steps) - 2
    assert_repeats(trace.steps[kept : len(before.steps)], before.steps[kept:])
    assert any(step.optimizer_step > step.plan.step for step in trace.steps[kept:]), "nothing came late"
    assert trace.steps[kept].plan.step < saved_step(training), "no plan was open in the checkpoint"


@pytest.mark.parametrize(("rule", "pool"), [("beta", 1), ("calibrated", 2)])
def test_asynchronous_outcomes_are_learned_once_each_also_across_a_kill(folder: Path, rule: Any, pool: int) -> None:
    """Groups are sampled a batch late; those unfinished when the run is killed are restored or generated again."""
    mode = ["trainer.v1.trainer_mode=colocate_async"]
    training = Training(
        folder,
        settings={"rule": rule, "half_life": 1e9, "pool": pool, "keep_successes": pool == 1},  # so that beliefs count
        overrides=[*mode, "trainer.total_training_steps=6", "trainer.save_freq=2", SAVE_MODEL],
    )
    training.run_until(lambda: done(training) >= 3 and (folder / "checkpoints" / "global_step_2" / STATE_FILE).exists())
    before = len(trained_on(folder))
    saved = int((folder / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    training.run()
    updates = trained_on(folder)
    updates = updates[:saved] + updates[before:]  # what the final weights were trained on
    sampled = [(uid, len(rows)) for groups in updates for uid, rows in groups.items() if uid != "padding"]
    assert len(sampled) == len(dict(sampled))
    if pool == 1:
        assert len(sampled) == 6 * PROMPTS_A_STEP
    else:  # a batch has the rollouts that verl asks for, or lacks a part of a group
        assert all(sum(map(len, groups.values())) == BUDGET for groups in updates)  # padding included
        assert 0 <= 6 * BUDGET - sum(rows for _, rows in sampled) < 12
    session = Session(AllocationConfig(rule=rule, half_life=1e9))
    assert session.load_from(folder / "checkpoints" / "global_step_6")
    beliefs = session.allocator.beliefs  # type: ignore[attr-defined]
    evidence = beliefs.table["successes"].sum() + beliefs.table["failures"].sum()
    assert evidence == pytest.approx(sum(rows for _, rows in sampled), abs=1e-3)
    trained = sum(reward for groups in updates for rows in groups.values() for reward, _ in rows)
    replaced = trained - beliefs.table["successes"].sum()  # failures that were trained on as a kept success
    print(f"kept successes that replaced a failure: {replaced:.0f}")
    assert replaced == pytest.approx(round(replaced), abs=1e-3)
    assert (replaced > 0.5) == (pool == 1)
    trace = read_trace(training.trace)
    assert any(step.optimizer_step > step.plan.step for step in trace.steps), "nothing came late"
    assert all(step.plan.counts_P.sum() * pool == len(step.plan.prompt_ids) * AVERAGE for step in trace.steps)
    assert all(step.outcomes.counts_P.tolist() == step.plan.counts_P.tolist() for step in trace.steps)
    plans = [(step.plan.step, step.plan.prompt_ids) for step in trace.steps]
    assert len(set(plans)) == len(plans)  # none is recorded both by the killed and by the resumed run
    recorded = sum(step.outcomes.rewards_PG.size for step in trace.steps)
    in_open_plans = sum(opened["places"].size for opened in session.state_dict()["open"])
    assert sum(rows for _, rows in sampled) == recorded + in_open_plans, "rollouts that belong to no plan"
    for groups in updates:
        assert_grpo(groups, prompts_alike=True)
    if rule == "calibrated":  # looks stay with their plans, and those after the resume are of the present weights
        assert_looks_are_fresh(folder, trace, least=1)


def test_two_workers_and_rollouts_that_fail(folder: Path) -> None:
    """One rollout in ten fails. Its group is trained on without it; the plan and the budget are unchanged.

    Prompts may also be left out: they have no group. All prompts weigh the same.
    """
    training = Training(
        folder,
        workers=2,
        settings={"rule": "beta", "min_n": 0, "pool": 1},
        overrides=["trainer.total_training_steps=6", "trainer.test_freq=6"],
        environment={"WORLD_FAILURES": "0.1"},
    )
    training.run()
    trace = read_trace(training.trace)
    assert [step.plan.budget for step in trace.steps] == [BUDGET] * 6
    allocation = AllocationConfig(rule="beta", average=AVERAGE, pool=1, min_count=0, max_count=12)
    assert_replays(trace, allocation.make_allocator(STEPS_A_PASS))
    lost, hit = 0, {"small": [0, 0], "large": [0, 0]}
    for step, groups in zip(trace.steps, trained_on(folder), strict=True):
        missing = step.plan.counts_P - step.outcomes.counts_P
        assert (missing >= 0).all()
        lost += int(missing.sum())
        for count, gone in zip(step.plan.counts_P, missing, strict=True):
            counted = hit["large" if count > AVERAGE else "small"]
            counted[0] += int(gone > 0)
            counted[1] += 1
        kept = [count for count in step.outcomes.counts_P.tolist() if count >= 2]
        assert sorted(len(rows) for uid, rows in groups.items() if uid != "padding") == sorted(kept)
        assert sum(map(len, groups.values())) == BUDGET  # verl pads with rows of weight 0
        assert_grpo(groups, prompts_alike=True)
    for size, (some, groups_of_it) in hit.items():
        print(f"{size} groups that lost a rollout: {some} of {groups_of_it}")
    print(f"rollouts lost: {lost} of {6 * BUDGET}, all others were trained on and learned from")
    assert lost > 0
    assert "val-core" in training.log.read_text()
