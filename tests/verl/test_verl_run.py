"""Plans and outcomes as verl's hooks hand them over: whole, late, in parts, twice, or never."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from knapsack_rl import PosteriorBeliefs, make_allocator
from knapsack_rl.allocator import Method
from knapsack_rl.session import Session
from knapsack_rl.trace import read_trace
from knapsack_rl.verl.run import Group, Run, prompt_ids

IDS = ["a", "b", "c", "d"]


def run(tmp_path: Path | None = None, method: Method = "posterior") -> Run:
    session = Session(make_allocator(method, 2, 16, half_life=4.0))
    if tmp_path is not None:
        session.open_trace(tmp_path / "trace.jsonl", {"engine": "verl"})
    return Run(session)


def uids(step: int, ids: list[str] = IDS) -> list[str]:
    return [f"{step}{prompt_id}" for prompt_id in ids]


def rewards(seed: int, count: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).integers(0, 2, count)]


def beliefs(of: Run) -> tuple[list[float], list[float]]:
    allocator = of.session.allocator
    forecast = allocator.beliefs.forecast(IDS, 10)  # type: ignore[attr-defined]
    return forecast.success_rates_P.tolist(), forecast.strength_P.tolist()


def test_parts_out_of_order_and_late_leave_the_beliefs_of_whole_steps(tmp_path: Path) -> None:
    whole, parts = run(), run(tmp_path)
    groups: list[Group] = []
    for step in range(3):
        counts = whole.plan(uids(step), IDS, 16, step, IDS).counts_P
        plan = parts.plan(uids(step), IDS, 16, step, IDS)
        assert plan.counts_P.tolist() == counts.tolist()  # nothing was learned yet
        groups += [
            Group(uid, prompt_id, step, rewards(step * 10 + i, int(counts[i])), [3] * int(counts[i]))
            for i, (uid, prompt_id) in enumerate(zip(uids(step), IDS, strict=True))
        ]
    for step in range(3):
        assert whole.learn(groups[4 * step : 4 * step + 4], optimizer_step=step)
    order = np.random.default_rng(0).permutation(12)
    complete = [parts.learn([groups[i]], optimizer_step=7) for i in order]
    assert sum(bool(metrics) for metrics in complete) == 3
    assert [metrics["lag"] for metrics in complete if metrics] != [0, 0, 0]
    np.testing.assert_allclose(beliefs(parts), beliefs(whole), rtol=1e-5)
    trace = read_trace(tmp_path / "trace.jsonl")
    assert sorted(step.plan.step for step in trace.steps) == [0, 1, 2]
    for step in trace.steps:
        sent = {group.prompt_id: list(group.rewards) for group in groups if group.step == step.plan.step}
        assert step.outcomes.rewards_PG.tolist() == [reward for prompt_id in IDS for reward in sent[prompt_id]]


@pytest.mark.parametrize("method", get_args(Method))
def test_any_batch_size_and_refills_that_do_not_age_the_beliefs(method: Method) -> None:
    """Refills of known prompts (never solved, always solved, between) and of new ones."""
    refilled = run(method=method)
    refilled.plan(uids(0), IDS, 16, 0, IDS)
    came = {"a": [0.0] * 4, "b": [1.0] * 4, "c": [0.0, 1.0, 1.0, 1.0], "d": [0.0] * 3 + [1.0]}
    refilled.learn([Group(f"0{prompt_id}", prompt_id, 0, came[prompt_id], [1] * 4) for prompt_id in IDS], 0)
    for batch in itertools.chain(*(itertools.combinations([*IDS, "new", "other"], size) for size in (1, 2, 3, 5))):
        ids = list(batch)
        plan = refilled.plan([f"{'-'.join(ids)}{prompt_id}" for prompt_id in ids], ids, 4 * len(ids), 0, ids)
        assert plan.counts_P.sum() == 4 * len(ids)
        assert 1 not in plan.counts_P
        assert plan.step == 0
    assert refilled.session.step == 1


def test_a_partial_group_is_learned_and_an_empty_one_leaves_its_prompt_as_it_was() -> None:
    failing = run()
    failing.plan(uids(0), IDS, 16, 0, IDS)
    metrics = failing.learn([Group("0a", "a", 0, [1.0, 0.0, 1.0], [1, 1, 1]), Group("0b")], optimizer_step=0)
    assert metrics == {}
    metrics = failing.learn([Group("0c", "c", 0, [0.0] * 4, [1] * 4), Group("0d", "d", 0, [1.0], [1])], 0)
    assert metrics["rollouts_lost"] == 8
    rates, strength = beliefs(failing)
    assert strength[1] == 1.0  # the prior alone
    assert rates[1] == 0.5
    assert len(failing.session.allocator.beliefs.table) == 3  # type: ignore[attr-defined]
    again = failing.plan(uids(1), IDS, 16, 1, IDS)
    assert again.counts_P.min() >= 2
    assert again.budget == 16


def test_groups_planned_by_an_earlier_process_teach_beliefs_but_belong_to_no_plan() -> None:
    resumed = run()
    assert resumed.learn([Group("old", "a", 3, [1.0] * 4, [1] * 4)], optimizer_step=5) == {}
    beliefs_of = resumed.session.allocator.beliefs  # type: ignore[attr-defined]
    assert isinstance(beliefs_of, PosteriorBeliefs)
    assert beliefs_of.table["step"].tolist() == [3]
    assert resumed.order("old") == (-1, 0)


def test_ids() -> None:
    chat = [{"role": "user", "content": "1 + 1"}]
    other = [{"role": "user", "content": "1 + 2"}]
    rows = ([0, 0, 7, 7], ["math", "math", "math", "code"], [chat, other, chat, chat])
    by_index = prompt_ids("index", *rows)
    assert len(set(by_index)) == 4  # also where all rows say index 0, as verl does when there is none
    assert by_index == prompt_ids("index", *rows)
    assert by_index[2].startswith("math/7/")
    by_content = prompt_ids("content", *rows)
    assert by_content[0] == by_content[2] == by_content[3] != by_content[1]


def test_prompts_with_images_need_an_index() -> None:
    picture = [{"role": "user", "content": [object()]}]
    assert prompt_ids("index", [3], ["vision"], [picture]) == ["vision/3/-"]
    for by, index in (("content", 3), ("index", 0)):
        with pytest.raises(ValueError, match="a prompt of 'vision' cannot be hashed"):
            prompt_ids(by, [index], ["vision"], [picture])
