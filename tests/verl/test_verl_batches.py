"""The batches of verl's asynchronous modes: how many rows verl's own mini-batches and local updates are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transfer_queue as tq
from verl.trainer.ppo.v1 import PPOTrainer
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils import tensordict_utils
from world.in_memory import World, prompts_of

from knapsack_rl.trace import read_trace
from knapsack_rl.verl.buffers import earliest_within
from knapsack_rl.verl.run import SharedRun
from knapsack_rl.verl.settings import ConfigError

FIELDS = ["prompts", "responses", "rm_scores", "response_mask", "rollout_log_probs"]


@pytest.fixture(autouse=True)
def own_run() -> Iterator[None]:
    yield
    SharedRun.current = None


@pytest.mark.parametrize("seed", range(200))
def test_the_groups_of_a_batch_are_the_earliest_of_the_largest_sum(seed: int) -> None:
    """Against all subsets: the largest sum within the limit, and of those the first in order of places."""
    random = np.random.default_rng(seed)
    sizes, most = random.integers(2, 10, size=random.integers(1, 9)).tolist(), int(random.integers(1, 41))
    subsets = [
        places
        for number in range(1, len(sizes) + 1)
        for places in itertools.combinations(range(len(sizes)), number)
        if sum(sizes[i] for i in places) <= most
    ]
    largest = max((sum(sizes[i] for i in places) for places in subsets), default=0)
    best = [list(places) for places in subsets if sum(sizes[i] for i in places) == largest]
    assert earliest_within(sizes, most) == (min(best) if best else [0])


class Run:
    """A run of many steps in memory, whose groups come late or at once."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str, *words: str, parts: int = 1, warmup: int = 1
    ) -> None:
        given = [f"trainer.v1.separate_async.parameter_sync_step={parts}", *words]
        self.world = world = World(folder, monkeypatch, *given, mode=mode, steps_per_epoch=4)
        world.parameter_sync_step, world.buffer.max_off_policy_threshold = parts, 8
        self.batch, self.parts = world.config.data.train_batch_size, parts
        self.random, number = np.random.default_rng(0), 4 * self.batch
        rates = np.random.default_rng(1).beta(0.4, 0.6, number)
        world.answer = lambda uid, prompt, count: [
            float(self.random.random() < rates[prompt % number]) for _ in range(count)
        ]
        numbers = itertools.count()
        pool = world.run.settings.allocation.pool or 1
        self.offer = lambda step: world.generate(step, [next(numbers) % number for _ in range(self.batch * pool)])
        for _ in range(warmup):
            self.offer(1)

    def batches(self, steps: int, late: float = 0.0) -> Iterator[Any]:
        for step in range(1, steps + 1):
            self.offer(step)
            for part in range(self.parts):
                self.world.local_trigger_step = part
                self._hold_back(late)
                batch, _ = self.world.buffer.sample(step, "train", self.batch // self.parts)
                yield batch
                self.world.queue.kv_clear(batch.keys, "train")

    def _hold_back(self, late: float) -> None:
        """Some groups are not back yet; a batch of them still is."""
        tags = self.world.queue.tags["train"]
        for uid in [key for key, tag in tags.items() if tag.get("is_prompt")]:
            tags[uid]["status"] = "running" if self.random.random() < late else "finished"


@pytest.mark.parametrize(("mode", "late"), [("separate_async", 0.0), ("colocate_async", 0.2), ("separate_async", 0.2)])
@pytest.mark.parametrize("pool", [1, 2])
def test_verl_makes_no_more_optimizer_updates_than_for_equal_groups(
    mode: str, late: float, pool: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With verl's own balancing and mini-batches: one row too many would be an update of its own."""
    parts = 4 if mode == "separate_async" else 1
    run = Run(
        tmp_path, monkeypatch, mode, "data.train_batch_size=16", f"+knapsack.pool={pool}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4", parts=parts,
    )  # fmt: skip
    get = run.world.queue.kv_batch_get
    monkeypatch.setattr(
        tq,
        "kv_batch_get",
        lambda keys, partition_id, select_fields=None: get(keys, partition_id, select_fields or FIELDS),
    )
    trainer: Any = SimpleNamespace(
        use_critic=False,
        config=run.world.config,
        global_steps=1,
        tokenizer=SimpleNamespace(eos_token_id=0),
        actor_rollout_wg=SimpleNamespace(_dispatch_info={"actor": [0]}),
    )
    trainer._get_required_batch_multiple = lambda size: PPOTrainer._get_required_batch_multiple(trainer, size)
    rows = []
    for batch in run.batches(steps=8, late=late):
        rows.append(len(batch.keys))
        for tag in batch.tags:
            tag["seq_len"] = 10
        balanced = PPOTrainer._balance_batch(trainer, batch, {})
        padding = torch.tensor([tag.get("is_padding", False) for tag in balanced.tags])
        data = tensordict_utils.get_tensordict({"padding": padding})
        updates = tensordict_utils.make_iterator(
            data, mini_batch_size=16, epochs=1, seed=42, dataloader_kwargs={"shuffle": False}
        )
        assert len(list(updates)) == 4 // parts
        assert int((~padding).sum()) > 0
    assert np.mean(rows) >= 0.95 * 64 / parts  # few rows are padding


@pytest.mark.parametrize(("batch", "average", "parts", "group"), [(4, 8, 4, 2), (8, 8, 8, 8), (8, 4, 4, 8)])
@pytest.mark.parametrize("warmup", [0, 1])
def test_every_local_update_gets_a_group(
    batch: int, average: int, parts: int, group: int, warmup: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group of more rollouts than a local update has would leave none for the next: verl would wait for ever."""

    def stuck(self: Any, partition_id: str, last: float) -> float:
        raise AssertionError("nothing is being generated, and verl waits")

    monkeypatch.setattr(ReplayBuffer, "_wait_for_next_poll", stuck)
    run = Run(
        tmp_path, monkeypatch, "separate_async", f"data.train_batch_size={batch}", "+knapsack.pool=4",
        f"actor_rollout_ref.rollout.n={average}", f"+knapsack.min_group={group}", parts=parts, warmup=warmup,
    )  # fmt: skip
    # Few prompts can be learned from, and get large groups.
    run.world.answer = lambda uid, prompt, count: [
        float(run.random.random() < (0.3 if prompt % 8 == 0 else prompt % 2)) for _ in range(count)
    ]
    sizes = [len(taken.keys) for taken in run.batches(steps=24)]
    assert len(sizes) == 24 * parts
    assert max(sizes) <= batch * average // parts


@pytest.mark.parametrize("words", ["+knapsack.max_n=9", "+knapsack.min_group=9"])
def test_groups_larger_than_a_local_update_are_refused(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = words.strip("+").replace("=9", "=9: one local update of separate_async has 8 rollouts")
    sizes = ["data.train_batch_size=4", "trainer.v1.separate_async.parameter_sync_step=2"]
    with pytest.raises(ConfigError, match=name):
        World(tmp_path, monkeypatch, *sizes, "+knapsack.pool=2", words, mode="separate_async")


def test_groups_that_leave_while_verl_waits_are_learned_as_of_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """separate_async with enable_switch waits outside of `sample`, whose metrics are those of plans completed since."""
    world = World(tmp_path, monkeypatch, mode="separate_async")
    world.generate(1, [0, 1, 2, 3])
    world.generate(1, [4, 5])
    world.buffer.sample(1, "train", 4)
    world.step = 4
    world.generate(4, [6, 7])
    world.buffer.wait_for_sampleable(4, "train", 2)  # drops 4 and 5, which are stale: their plan is complete
    _, metrics = world.buffer.sample(4, "train", 1)
    assert metrics["knapsack/candidates"] == 2
    assert metrics["knapsack/lag"] == 3
    assert [step.optimizer_step for step in read_trace(tmp_path / "trace.jsonl").steps] == [0, 3]


@pytest.mark.parametrize(("prompts", "expected"), [(1, 8), (3, 12)])
def test_a_part_of_a_batch_has_the_smallest_group_at_least(
    prompts: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as verl's warm-up with num_warmup_batches=0.125."""
    words = ["data.train_batch_size=8", "+knapsack.pool=2", "+knapsack.min_group=8"]
    world = World(tmp_path, monkeypatch, *words, mode="colocate_async")
    world.generate(1, list(range(2 * prompts)))
    assert sum(world.sent.values()) == expected


def test_groups_of_a_run_with_a_higher_limit_are_replaced_within_the_present_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, "+knapsack.max_n=16", mode="colocate_async")
    world.generate(1, [0, 1, 2, 3])
    [first, *_] = world.run.planned
    world.run.planned[first] = world.run.planned[first]._replace(rollouts=9)
    again = World(tmp_path, monkeypatch, "+knapsack.max_n=4", mode="colocate_async", **world.checkpoint(1))
    again.step = 5
    again.generate(5, [4, 5, 6, 7])
    batch, _ = again.buffer.sample(5, "train", 4)  # the first four are stale
    assert again.refilled == [4]
    assert prompts_of(batch.keys) == [4, 5, 6, 7]


def test_a_batch_without_a_pair_of_rollouts_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.answer = lambda uid, prompt, count: [1.0 if prompt else None, *[None] * (count - 1)]
    world.generate(1, [0, 1, 2])
    with pytest.raises(RuntimeError, match="of all 3 groups of this batch only one rollout came back"):
        world.buffer.sample(1, "train", 3)
