"""Kept successes: what replaces what in verl's queue, and what is left as verl has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from world.in_memory import World, ids_of, prompts_of

from knapsack_rl.trace import read_trace
from knapsack_rl.verl.run import SharedRun

KEEP = "+knapsack.keep_successes=True"


@pytest.fixture(autouse=True)
def own_run() -> Iterator[None]:
    yield
    SharedRun.current = None


def trained_on(world: World, step: int, prompts: list[int]) -> tuple[Any, dict[str, float]]:
    """A step; the batch that verl gets is cleared from its queue, as its trainer does."""
    world.generate(step, prompts)
    batch, metrics = world.buffer.sample(step, "train", len(prompts))
    world.queue.kv_clear(batch.keys, "train")
    return batch, metrics


def test_the_last_failed_rollout_of_a_failed_group_becomes_the_last_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, KEEP, "+knapsack.min_n=4", "+knapsack.max_n=4")
    came: dict[int, list[float]] = {0: [1.0, 0.0, 1.0, 0.0], 1: [0.0] * 4, 2: [1.0] * 4, 3: [0.0, 0.0, 0.0, 1.0]}
    world.answer = lambda uid, prompt, count: [*came[prompt]]
    first, metrics = trained_on(world, 1, [0, 1, 2, 3])
    assert (metrics["knapsack/kept"], metrics["knapsack/kept_used"]) == (3, 0)
    kept = {0: "2_0", 2: "3_0", 3: "3_0"}  # the last success of each
    answers = {}
    for prompt, row in kept.items():
        [key] = [key for key in first.keys if prompts_of([key]) == [prompt] and key.endswith(row)]
        answers[prompt] = world.queue.fields[key]["responses"].tolist()
    untouched = {key: dict(fields) for key, fields in world.queue.fields.items()}

    came.update({0: [0.0] * 4, 1: [0.0] * 4, 3: [0.0, 1.0, 0.0, 0.0]})
    second, metrics = trained_on(world, 2, [0, 1, 2, 3])
    assert (metrics["knapsack/kept"], metrics["knapsack/kept_used"], metrics["knapsack/kept_age"]) == (3, 1, 1)
    [replaced] = [key for key in second.keys if "loss_mask" in world.queue.fields[key]]
    assert prompts_of([replaced]) == [0]
    assert replaced.endswith("_3_0")
    fields = world.queue.fields[replaced]
    assert fields["responses"].tolist() == answers[0]
    assert fields["input_ids"].tolist() == [7, 7, 0, *answers[0]]
    assert fields["position_ids"].tolist() == [0, 1, 2, 3, 4]
    assert fields["response_mask"].tolist() == fields["loss_mask"].tolist() == [1, 1]
    assert fields["rm_scores"].tolist() == [0.0, 1.0]
    torch.testing.assert_close(fields["rollout_log_probs"], -0.01 * torch.tensor(answers[0], dtype=torch.float32))
    tag = dict(zip(second.keys, second.tags, strict=True))[replaced]
    assert (tag["response_len"], tag["seq_len"]) == (2, 5)
    for key, before in untouched.items():  # rows of the first step
        assert all(world.queue.fields[key][name] is value for name, value in before.items())
    # Learned is what the policy did, and not what it is trained on.
    assert read_trace(tmp_path / "trace.jsonl").steps[1].outcomes.successes_P.tolist() == [0, 0, 4, 1]
    assert world.run.kept is not None
    assert world.run.kept.find(ids_of([0])[0], 2).step == 0  # type: ignore[union-attr]  # not kept anew


def test_stale_successes_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, KEEP, "+knapsack.kept_max_age=1")
    world.answer = lambda uid, prompt, count: [float(prompt < 2)] * count
    found = [trained_on(world, 1, [0, 1])[1], trained_on(world, 2, [0, 2])[1], trained_on(world, 3, [2, 3])[1]]
    world.answer = lambda uid, prompt, count: [0.0] * count
    found.append(trained_on(world, 4, [2, 3])[1])
    assert [metrics["knapsack/kept"] for metrics in found] == [2, 2, 1, 0]
    assert world.run.kept is not None
    assert len(world.run.kept) == 2


def test_without_the_option_nothing_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    for step in (1, 2):
        world.answer = lambda uid, prompt, count, step=step: [2.0 - step] * count
        _, metrics = trained_on(world, step, [0, 1])
        assert not any(name.startswith("knapsack/kept") for name in metrics)
    assert not any("loss_mask" in fields for fields in world.queue.fields.values())


def test_what_a_prompt_and_one_answer_do_not_describe_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of several turns, and agents that return several rows for one rollout."""
    world = World(tmp_path, monkeypatch, KEEP, "+knapsack.group_weighting=rollout")
    world.generate(1, [0, 1, 2])
    for key, fields in world.queue.fields.items():
        if prompts_of([key]) == [0]:
            fields["response_mask"] = torch.tensor([0, 1])  # a tool has said the first token
    for row in [row for row in world.queue.tags["train"] if row.endswith("_0_0") and prompts_of([row]) == [1]]:
        more = row.removesuffix("0") + "1"
        world.queue.tags["train"][more] = world.queue.tags["train"][row]
        world.queue.fields[more] = world.queue.fields[row]
    batch, metrics = world.buffer.sample(1, "train", 3)
    assert metrics["knapsack/kept"] == 1  # of prompt 2
    assert world.run.kept is not None
    assert world.run.kept.has(ids_of([0, 1, 2]), 1).tolist() == [False, False, True]
    assert len(batch.keys) == 13


def test_kept_successes_are_priced_and_survive_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [KEEP, "+knapsack.pool=2", "data.train_batch_size=4"]
    world = World(tmp_path, monkeypatch, *words)
    world.answer = lambda uid, prompt, count: [1.0, *[0.0] * (count - 1)]
    trained_on(world, 1, list(range(8)))
    world.run.save(tmp_path / "global_step_1")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    saved = world.run.kept
    again = World(tmp_path, monkeypatch, *words)
    assert saved is not None
    assert again.run.kept is not None
    assert len(again.run.kept) == len(saved) > 0
    for name, value in saved.state_dict().items():
        assert np.array_equal(again.run.kept.state_dict()[name], value), name
    allocator: Any = again.run.session.allocator
    assert allocator.kept is again.run.kept
    price = allocator.plan(ids_of(list(range(8))), 16, 1).price
    again.answer = lambda uid, prompt, count: [0.0] * count
    batch, metrics = trained_on(again, 2, list(range(8)))
    assert metrics["knapsack/kept_used"] > 0
    assert len(batch.keys) == 16
    without = World(tmp_path, monkeypatch, *words[1:])
    assert without.run.session.allocator.plan(ids_of(list(range(8))), 16, 1).price != price


@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
def test_a_group_of_one_row_is_not_given_a_second_one(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rollouts failed to come back; it is left out, as without the option."""
    world = World(tmp_path, monkeypatch, KEEP, mode=mode)
    trained_on(world, 1, [0, 1])
    world.answer = lambda uid, prompt, count: [0.0] + [None if prompt == 0 else 0.0] * (count - 1)
    world.generate(2, [0, 1])
    batch, metrics = world.buffer.sample(2, "train", 2 if mode == "sync" else 1)
    assert prompts_of(batch.keys) == [1]
    assert metrics["knapsack/kept_used"] == 1
