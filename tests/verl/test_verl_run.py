"""Plans and outcomes as verl's hooks pass them: whole, late, in parts, for an unknown plan, or not at all."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from world.in_memory import changed

from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.config import RULES
from knapsack_rl.trace import read_trace
from knapsack_rl.verl.run import Rollout, SharedRun
from knapsack_rl.verl.settings import check_config

IDS = ["a", "b", "c", "d"]


def run(folder: Path | None = None, rule: str = "beta") -> SharedRun:
    limits = ["+knapsack.max_n=16", "+knapsack.half_life=4.0", "actor_rollout_ref.rollout.n=4"]
    config = changed(f"+knapsack.rule={rule}", *limits, "trainer.resume_mode=disable")
    made = SharedRun(config, check_config(config))
    if folder is not None:
        made.session.open_trace(folder / "trace.jsonl", {"engine": "verl"})
    return made


def uids(step: int, ids: list[str] = IDS) -> list[str]:
    return [f"{step}{prompt_id}" for prompt_id in ids]


def rewards(seed: int, count: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).integers(0, 2, count)]


def plan(of: SharedRun, uids_P: list[str], ids: list[str], step: int) -> np.ndarray:
    """Plan as the agent loop manager does, four rollouts a prompt on average; the counts."""
    groups = of.plan(ids, 4 * len(ids), step, ids)
    of.planned.update(zip(uids_P, groups, strict=True))
    assert [each.prompt_id for each in groups] == ids
    return np.array([each.rollouts for each in groups])


def group(uid: str, prompt_id: str, step: int, came: list[float]) -> list[Rollout]:
    return [Rollout(uid, prompt_id, step, reward, 3) for reward in came]


def beliefs(of: SharedRun) -> tuple[list[float], list[float]]:
    allocator = of.session.allocator
    forecast = allocator.beliefs.forecast(IDS, 10)  # type: ignore[attr-defined]
    return forecast.success_rates_P.tolist(), forecast.pseudo_count_P.tolist()


def test_parts_out_of_order_and_late_leave_the_beliefs_of_whole_steps(tmp_path: Path) -> None:
    whole, parts = run(), run(tmp_path)
    groups: list[list[Rollout]] = []
    for step in range(3):
        counts = plan(whole, uids(step), IDS, step)
        assert plan(parts, uids(step), IDS, step).tolist() == counts.tolist()  # nothing was learned yet
        groups += [
            group(uid, prompt_id, step, rewards(step * 10 + i, int(counts[i])))
            for i, (uid, prompt_id) in enumerate(zip(uids(step), IDS, strict=True))
        ]
    for step in range(3):
        rows = [rollout for each in groups[4 * step : 4 * step + 4] for rollout in each]
        assert whole.learn(uids(step), rows, optimizer_step=step)
    order = np.random.default_rng(0).permutation(12)
    complete = [parts.learn([groups[i][0].uid], groups[i], optimizer_step=7) for i in order]
    assert sum(bool(metrics) for metrics in complete) == 3
    assert sorted(metrics["lag"] for metrics in complete if metrics) == [5, 6, 7]
    np.testing.assert_allclose(beliefs(parts), beliefs(whole), rtol=1e-5)
    trace = read_trace(tmp_path / "trace.jsonl")
    assert sorted(step.plan.step for step in trace.steps) == [0, 1, 2]
    for step in trace.steps:
        sent = {each[0].prompt_id: [row.reward for row in each] for each in groups if each[0].step == step.plan.step}
        assert step.outcomes.rewards_PG.tolist() == [reward for prompt_id in IDS for reward in sent[prompt_id]]


@pytest.mark.parametrize("rule", RULES)
def test_any_batch_size_and_refills_that_do_not_age_the_beliefs(rule: str) -> None:
    """Refills of known prompts (never solved, always solved, between) and of new ones."""
    refilled = run(rule=rule)
    plan(refilled, uids(0), IDS, 0)
    came = {"a": [0.0] * 4, "b": [1.0] * 4, "c": [0.0, 1.0, 1.0, 1.0], "d": [0.0] * 3 + [1.0]}
    rows = [rollout for prompt_id in IDS for rollout in group(f"0{prompt_id}", prompt_id, 0, came[prompt_id])]
    assert refilled.learn(uids(0), rows, 0)
    for batch in itertools.chain(*(itertools.combinations([*IDS, "new", "other"], size) for size in (1, 2, 3, 5))):
        ids = list(batch)
        counts = plan(refilled, [f"{'-'.join(ids)}{prompt_id}" for prompt_id in ids], ids, 0)
        assert counts.sum() == 4 * len(ids)
        assert 1 not in counts
    assert refilled.session.step == 1


def test_a_partial_group_is_learned_and_an_empty_one_leaves_its_prompt_as_it_was() -> None:
    failing = run()
    plan(failing, uids(0), IDS, 0)
    assert failing.learn(["0a", "0b"], group("0a", "a", 0, [1.0, 0.0, 1.0]), optimizer_step=0) == {}
    rows = group("0c", "c", 0, [0.0] * 4) + group("0d", "d", 0, [1.0])
    metrics = failing.learn(["0c", "0d"], rows, optimizer_step=0)
    assert metrics["rollouts_lost"] == 8
    rates, pseudo_counts = beliefs(failing)
    assert pseudo_counts[1] == 1.0  # the prior alone
    assert rates[1] == 0.5
    assert len(failing.session.allocator.beliefs.table) == 3  # type: ignore[attr-defined]
    again = plan(failing, uids(1), IDS, 1)
    assert again.min() >= 2
    assert again.sum() == 16


def test_the_metrics_are_those_of_the_largest_plan_that_is_complete() -> None:
    """A refill that is complete at the same time as the batch, or in another step, does not hide it."""
    refilled = run()
    plan(refilled, uids(0), IDS, 0)
    plan(refilled, ["0e"], ["e"], 0)
    plan(refilled, ["1f"], ["f"], 1)
    rows = [row for prompt_id in IDS for row in group(f"0{prompt_id}", prompt_id, 0, [0.0, 1.0, 1.0, 1.0])]
    rows += group("0e", "e", 0, [1.0] * 4) + group("1f", "f", 1, [1.0] * 4)
    metrics = refilled.learn([*uids(0), "0e", "1f"], rows, optimizer_step=1)
    assert (metrics["candidates"], metrics["frac_solved_all"], metrics["lag"]) == (4, 0, 1)
    assert refilled.session.open_plans == []


def test_groups_planned_by_an_earlier_process_teach_beliefs_but_belong_to_no_plan() -> None:
    resumed = run()
    assert resumed.learn(["old"], group("old", "a", 3, [1.0] * 4), optimizer_step=5) == {}
    beliefs_of = resumed.session.allocator.beliefs  # type: ignore[attr-defined]
    assert isinstance(beliefs_of, BetaBeliefs)
    assert beliefs_of.table["step"].tolist() == [3]
    assert resumed.order("old") == (-1, 0)


def test_open_plans_survive_a_stop(tmp_path: Path) -> None:
    """Half of a plan is back when the run stops; the resumed run completes it, losses included, and goes on."""
    stopped = run(tmp_path)
    plan(stopped, uids(0), IDS, 0)
    stopped.learn(["0a", "0b"], group("0a", "a", 0, [1.0] * 4) + group("0b", "b", 0, [0.0] * 3), optimizer_step=0)
    stopped.save(tmp_path / "global_step_1")
    config = changed(*("+knapsack.rule=beta", "+knapsack.max_n=16", "+knapsack.half_life=4.0"))
    config.actor_rollout_ref.rollout.n, config.trainer.default_local_dir = 4, str(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    stopped.learn(["0c", "0d"], group("0c", "c", 0, [1.0, 0.0]) + group("0d", "d", 0, [0.0] * 4), optimizer_step=1)
    resumed = SharedRun(config, check_config(config))
    resumed.session.open_trace(tmp_path / "trace.jsonl", {"engine": "verl"})
    assert [resumed.order(uid) for uid in ("0a", "0c", "0d")] == [(-1, 0), (0, 2), (0, 3)]
    rows = group("0c", "c", 0, [1.0, 0.0]) + group("0d", "d", 0, [0.0] * 4)
    metrics = resumed.learn(["0c", "0d"], rows, optimizer_step=1)
    assert (metrics["rollouts_lost"], metrics["lag"], metrics["candidates"]) == (3, 1, 4)
    assert beliefs(resumed) == beliefs(stopped)
    plan(resumed, uids(1), IDS, 1)
    assert resumed.order("1a") == (1, 0)
    [step] = read_trace(tmp_path / "trace.jsonl").steps  # the killed run had recorded it too
    assert step.outcomes.counts_P.tolist() == [4, 3, 2, 4]
