"""Our hooks in verl's own manager and buffers, in one process: what is requested, trained on, learned and saved."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from verl.trainer.ppo.v1 import PPOTrainer
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.utils import tensordict_utils
from world import in_memory
from world.in_memory import GOLDEN, World, ids_of, prompts_of

from knapsack_rl.config import RULES
from knapsack_rl.session import Session
from knapsack_rl.trace import read_trace
from knapsack_rl.verl.buffers import KnapsackReplayBuffer, column
from knapsack_rl.verl.hooks import KnapsackAgentLoopManager
from knapsack_rl.verl.rows import task_ids
from knapsack_rl.verl.run import SharedRun
from knapsack_rl.verl.settings import ConfigError


@pytest.fixture(autouse=True)
def own_run() -> Iterator[None]:
    yield
    SharedRun.current = None


@pytest.mark.parametrize(
    ("section", "name"),
    [(section, name) for section in ("runs", "looks") for name in GOLDEN[section]],
)
def test_same_plans_and_beliefs_as_every_other_adapter(
    section: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, expected = GOLDEN["settings"], GOLDEN[section][name]
    pool = expected["pool"]
    given = {
        "+knapsack.rule": expected["rule"],
        "+knapsack.features": expected["features"] or "none",
        "+knapsack.pool": pool,
        "+knapsack.min_n": settings["min_count"] if pool == 1 else 0,
        "+knapsack.max_n": settings["max_count"],
        "+knapsack.half_life": settings["half_life"],
        "+knapsack.prompt_id": "content",
        "data.train_batch_size": len(expected["steps"][0]["prompts"]) // pool,
    }
    world = World(tmp_path, monkeypatch, *(f"{key}={value}" for key, value in given.items()))
    for step, golden in enumerate(expected["steps"], start=1):
        rewards = dict(zip(golden["prompts"], golden["rewards"], strict=True))
        world.answer = lambda uid, prompt, count, rewards=rewards: rewards[prompt]
        if "log_probs" in golden:
            world.manager.next_token = SaidBefore(golden["log_probs"])
        world.generate(step, golden["prompts"])
        batch, metrics = world.buffer.sample(step, "train", len(golden["prompts"]))
        world.queue.kv_clear(batch.keys, "train")
        assert len(batch.keys) == sum(golden["counts"])
        assert metrics["knapsack/count_max"] == max(golden["counts"])
        assert metrics["knapsack/rollouts_lost"] == metrics["knapsack/lag"] == 0
    world.saving.on_save(trainer=None, global_step=step, checkpoint_dir=str(tmp_path))
    for done, golden in zip(read_trace(tmp_path / "trace.jsonl").steps, expected["steps"], strict=True):
        assert done.plan.counts_P.tolist() == golden["counts"]
        np.testing.assert_allclose(done.plan.success_rates_P, golden["rates"], rtol=1e-6)
        np.testing.assert_allclose(done.plan.pseudo_count_P, golden["pseudo_counts"], rtol=1e-6)
        assert done.outcomes.rewards_PG.tolist() == [reward for group in golden["rewards"] for reward in group]
        assert done.samples[0]["completion"] == "<2 tokens>"
    saved = Session(world.run.settings.allocation)
    assert saved.load_from(tmp_path)
    beliefs = saved.allocator.beliefs  # type: ignore[attr-defined]
    features = world.run.looks(GOLDEN["prompts"]) if world.run.looks else None
    ids = ids_of(list(range(len(GOLDEN["prompts"]))), by="content")
    final = beliefs.forecast(ids, len(expected["steps"]), features)
    np.testing.assert_allclose(final.success_rates_P, expected["beliefs"]["rates"], rtol=1e-6)
    np.testing.assert_allclose(final.pseudo_count_P, expected["beliefs"]["pseudo_counts"], rtol=1e-6)


class SaidBefore:
    """What the engine says of the next token of each candidate; None where it fails."""

    def __init__(self, log_probs: list[float | None]) -> None:
        self.said = np.array([np.nan if each is None else each for each in log_probs])

    def log_probs(self, prompts: list[Any]) -> np.ndarray:
        assert len(prompts) == len(self.said)
        return self.said


def test_the_half_life_is_counted_in_passes_over_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    assert world.run.session.allocator.beliefs.half_life == 8.0  # type: ignore[attr-defined]  # 4 passes of 2 steps
    world = World(tmp_path, monkeypatch, "+knapsack.pool=2")
    assert world.run.session.allocator.beliefs.half_life == 8.0  # type: ignore[attr-defined]  # whatever the pool
    world = World(tmp_path, monkeypatch, "+knapsack.min_n=0")
    assert world.run.session.allocator.max_idle == 16.0  # type: ignore[attr-defined]  # which bounds the wait


def test_large_groups_lose_rollouts_more_often_and_are_still_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 % of all rollouts fail, in an asynchronous mode, where stock verl would drop every group with a failure."""
    world = World(tmp_path, monkeypatch, "+knapsack.max_n=32", mode="colocate_async")
    random, failing = np.random.default_rng(0), 0.05
    rates = np.array([0.0, 0.0, 0.0, 0.3, 0.5, 1.0, 1.0, 1.0] * 2)
    learned: dict[int, int] = defaultdict(int)
    hit: dict[int, list[bool]] = defaultdict(list)

    def answer(uid: str, prompt: int, count: int) -> list[float | None]:
        rewards: list[float | None] = []
        for _ in range(count):
            rewards.append(None if random.random() < failing else float(random.random() < rates[prompt % 16]))
        hit[count].append(None in rewards)
        return rewards

    world.answer = answer
    trained = 0
    for step in range(1, 81):
        world.step = step
        order = [0, 2, 4, 6, 8, 10, 12, 14] if step % 2 else [1, 3, 5, 7, 9, 11, 13, 15]
        world.generate(step, order)
        batch, _ = world.buffer.sample(step, "train", 8)
        world.queue.kv_clear(batch.keys, "train")
        trained += len(batch.keys)
        for prompt in prompts_of(batch.keys):
            learned[prompt] += 1
    sizes = np.repeat(list(hit), [len(groups) for groups in hit.values()])
    was_hit = np.concatenate(list(hit.values()))
    for low, high in ((2, 3), (4, 7), (8, 32)):
        chosen = (sizes >= low) & (sizes <= high)
        expected = (1 - (1 - failing) ** sizes[chosen]).mean()
        print(f"groups of {low} to {high}: {was_hit[chosen].mean():.0%} of {chosen.sum()} hit, {expected:.0%} expected")
        assert abs(was_hit[chosen].mean() - expected) < 0.12
    kept, stock = trained / sizes.sum(), sizes[~was_hit].sum() / sizes.sum()
    print(f"rollouts trained on: {kept:.1%}; {stock:.1%} if every group that is hit were dropped")
    assert kept > 0.93
    assert stock < 0.85
    # A pair that loses one is replaced. The large groups, which are hit most, are trained on in all of their 40 steps.
    assert min(learned[prompt] for prompt in (3, 4, 11, 12)) >= 39


def test_a_pool_is_chosen_from_and_the_rollouts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4 at 4 rollouts each, chosen from 16 candidates; half of these have no gradient."""
    words = ["+knapsack.rule=calibrated", "+knapsack.features=text", "+knapsack.pool=4", "+knapsack.min_n=0"]
    world = World(tmp_path, monkeypatch, *words, "data.train_batch_size=4", steps_per_epoch=4)
    assert world.config.data.train_batch_size == 4  # verl's own numbers are not touched
    assert world.config.trainer.total_epochs == 30
    assert world.run.session.allocator.max_idle == 32.0  # type: ignore[attr-defined]  # two half-lives of 4 passes
    random, given = np.random.default_rng(0), np.zeros((30, 16))
    for step in range(1, 31):
        world.step, counts = step, given[step - 1]

        def answer(uid: str, prompt: int, count: int, counts: np.ndarray = counts) -> list[float | None]:
            counts[prompt] = count
            rate = (0.0, 1.0, 0.5, 0.5)[prompt % 4]
            return [float(x) for x in random.random(count) < rate]

        world.answer = answer
        world.generate(step, list(range(16)))
        assert len(world.queue.tags["train"]) == (counts > 0).sum() + 16  # no group without rollouts
        batch, metrics = world.buffer.sample(step, "train", 4)
        world.queue.kv_clear(batch.keys, "train")
        assert len(batch.keys) == 16
        assert not world.queue.tags["train"]
        assert metrics["knapsack/rollouts_lost"] == 0
        assert prompts_of(batch.keys) == np.flatnonzero(counts).tolist()
    assert (given.sum(axis=1) == 16).all()
    assert not (given == 1).any()
    assert (given == 0).sum(axis=1).min() >= 8  # of 16 rollouts, groups of 2 at least
    assert given[15:, 2::4].sum() + given[15:, 3::4].sum() > 0.8 * given[15:].sum()
    assert len(read_trace(tmp_path / "trace.jsonl").steps[0].plan.prompt_ids) == 16


def test_a_pool_larger_than_the_data_is_refused_and_the_default_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"knapsack.pool=4 asks for 4 batches .* and the training data have 3"):
        World(tmp_path, monkeypatch, "+knapsack.pool=4", steps_per_epoch=3)
    for batches, pool in ((9, 4), (3, 3), (1, 1)):
        world = World(tmp_path, monkeypatch, "+knapsack.pool=null", steps_per_epoch=batches)
        allocator: Any = world.run.session.allocator
        assert (world.run.settings.allocation.pool, allocator.min_count) == (pool, 2 if pool == 1 else 0)
        said = "" if pool == 4 else f"; the data have {batches} batches, so the pool is not 4"
        expected = f"knapsack-rl: rule=beta, pool={pool}, group_weighting=prompt{said}\n"
        assert capsys.readouterr().out.endswith(expected)


@pytest.mark.parametrize("own_indices", [True, False])
def test_a_row_offered_twice_is_one_candidate_and_two_rows_never_are(
    own_indices: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two passes join, verl's loader gives a row twice. Known only where the rows have indices of their own."""
    world = World(tmp_path, monkeypatch, "+knapsack.pool=4", "data.train_batch_size=4", steps_per_epoch=4)
    world.manager._own_indices = own_indices
    for step, offered in ((1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 11, 12, 13, 3]), (2, [5] * 16)):
        world.answer = lambda uid, prompt, count: [float(i % 2) for i in range(count)]
        world.generate(step, offered)
        [plan] = world.run.session.open_plans
        kept = list(dict.fromkeys(offered)) if own_indices else offered
        assert plan.prompt_ids == tuple(ids_of(kept))
        assert plan.budget == 16  # whatever the number of candidates
        batch, _ = world.buffer.sample(step, "train", 4)
        assert len(batch.keys) == 16
        world.queue.kv_clear(batch.keys, "train")
        assert not world.queue.tags["train"]


@pytest.mark.parametrize("rule", RULES)
def test_one_prompt_in_every_row_is_trained_on(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that differ in their answers have beliefs of their own; rows that are equal in everything have one."""
    monkeypatch.setattr(in_memory, "rows_of", lambda prompts: rows(prompts, lambda i: {"ground_truth": i}))
    world = World(tmp_path, monkeypatch, f"+knapsack.rule={rule}", "+knapsack.pool=null", steps_per_epoch=4)
    pool = world.run.settings.allocation.pool or 0
    for name, prompts in (("answers", [0, 1, 2, 3] * 2 * pool), ("equal", [7] * 8 * pool)):
        world.sent.clear()
        world.generate(1, prompts)
        plan = world.run.session.open_plans[0]
        assert len(plan.prompt_ids) == 8 * pool, name
        assert len(set(plan.prompt_ids)) == len(set(prompts))
        assert sum(world.sent.values()) == 8 * 4
        batch, _ = world.buffer.sample(1, "train", 8)
        assert len(batch.keys) == 8 * 4
        world.queue.kv_clear(batch.keys, "train")
        assert world.run.session.open_plans == []


def rows(prompts: list[int], answer: Callable[[int], Any]) -> dict[str, list[Any]]:
    """Rows with one prompt and no index, as verl gives them."""
    return {
        "index": [0] * len(prompts),
        "data_source": ["games"] * len(prompts),
        "raw_prompt": [GOLDEN["prompts"][0]] * len(prompts),
        "extra_info": [{}] * len(prompts),
        "reward_model": [answer(prompt) for prompt in prompts],
    }


@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
def test_uniform_trains_on_exactly_what_verl_trains_on(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where rollouts fail: whole groups, partial ones and lone rows are treated as verl treats them."""
    came: dict[int, list[float | None]] = {
        0: [1.0, None, 0.0, 1.0], 1: [None, None, None, 1.0], 2: [None] * 4, 3: [0.0] * 4,
    }  # fmt: skip
    trained = []
    for name in ("ours", "stock"):
        world = World(tmp_path / name, monkeypatch, "+knapsack.rule=uniform", mode=mode)
        world.answer = lambda uid, prompt, count: came.get(prompt, [1.0] * count)
        if name == "stock":
            verls: Any = ReplayBuffer if mode == "sync" else ReplayBufferAsync
            for method in [method for method in vars(verls) if not method.startswith("__")]:
                monkeypatch.setattr(type(world.buffer), method, getattr(verls, method), raising=False)
        for step in (1, 2) if mode != "sync" else (2,):
            world.generate(step, [0, 3, 3, 4, 5, 2, 1, 6])
        batch, _ = world.buffer.sample(2, "train", 8)
        trained.append([key.split("-", 3)[3] for key in sorted(batch.keys)])
        monkeypatch.undo()
    assert set(world.sent.values()) == {4}
    assert trained[0] == trained[1]


def test_features_of_texts_are_learned_from_before_and_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes of a plan that was saved are learned with its features; those of an unknown plan without."""
    words = ["+knapsack.rule=calibrated", "+knapsack.features=text"]
    world = World(tmp_path, monkeypatch, *words, mode="colocate_async")
    world.answer = lambda uid, prompt, count: [float(prompt % 2)] * count
    world.generate(1, [0, 1, 2, 3])
    [plan] = world.run.session.open_plans
    assert plan.features is not None
    assert plan.features.features_P_F.any(axis=1).all()
    assert plan.features.features_P_F[0].tolist() != plan.features.features_P_F[1].tolist()
    world.checkpoint(1)
    tags = dict(world.queue.tags["train"])
    world.buffer.sample(2, "train", 4)

    def rates_of_new_prompts(of: World) -> list[float]:
        texts = [GOLDEN["prompts"][i] for i in (4, 5, 6, 7)]
        features = of.run.looks(texts)  # type: ignore[misc]
        allocator: Any = of.run.session.allocator
        return list(allocator.plan(ids_of([4, 5, 6, 7]), 16, 2, features=features).success_rates_P)

    expected = rates_of_new_prompts(world)
    for resume_mode in ("auto", "disable"):
        restored: dict[str, Any] = {"mode": "colocate_async", "tags": dict(tags), "fields": world.queue.fields}
        again = World(tmp_path, monkeypatch, *words, f"trainer.resume_mode={resume_mode}", **restored)
        _, metrics = again.buffer.sample(2, "train", 4)
        assert ("knapsack/lag" in metrics) == (resume_mode == "auto")
        forecast = again.run.session.allocator.beliefs.forecast(ids_of([0, 1, 2, 3]), 2)  # type: ignore[attr-defined]
        assert forecast.seen_P.all()
        assert (np.diff(forecast.success_rates_P)[[0, 2]] > 0.1).all()
        assert (rates_of_new_prompts(again) == expected) == (resume_mode == "auto")


@pytest.mark.parametrize("pool", [1, 2])
def test_groups_restarted_after_a_resume_belong_to_their_plan(
    pool: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl submits groups that were being generated again, under their uids: they have the size that was planned."""
    words, mode = [f"+knapsack.pool={pool}", "+knapsack.max_n=12"], "colocate_async"
    world = World(tmp_path, monkeypatch, *words, mode=mode)
    world.generate(1, list(range(4 * pool)))
    world.checkpoint(1)
    sent = dict(world.sent)
    kept, restarted = list(sent)[:2], list(sent)[2:]
    tags = {key: tag for key, tag in world.queue.tags["train"].items() if key.partition("_")[0] in kept}
    tags |= {uid: {"is_prompt": True, "status": "running", "global_steps": 1} for uid in restarted}
    again = World(tmp_path, monkeypatch, *words, mode=mode, tags=tags, fields=world.queue.fields)
    again.generate(2, prompts_of(restarted), uids=restarted)
    assert again.sent == {uid: sent[uid] for uid in restarted}
    again.generate(2, list(range(4 * pool, 8 * pool)))
    batch, metrics = again.buffer.sample(2, "train", 4)
    assert prompts_of(batch.keys) == prompts_of(list(sent))
    assert len(batch.keys) == 16
    assert (metrics["knapsack/rollouts_lost"], metrics["knapsack/lag"]) == (0, 1)
    assert again.evidence(prompts_of(list(sent))) == list(sent.values())
    assert [plan.step for plan in again.run.session.open_plans] == [1]
    [step] = read_trace(tmp_path / "trace.jsonl").steps
    assert step.outcomes.counts_P.tolist() == step.plan.counts_P.tolist()


@pytest.mark.parametrize("group", [2, 8])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_resumed_run_requests_what_it_lacks_in_rollouts(
    group: int, lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl fills up to a number of groups, and a plan has fewer groups than verl's batch, or more."""
    given, mode = ["data.train_batch_size=8", "+knapsack.pool=2", f"+knapsack.min_group={group}"], "colocate_async"
    world = World(tmp_path, monkeypatch, *given, mode=mode)
    for step in (1, 2):
        world.generate(step, list(range(16)))
    batch, _ = world.buffer.sample(2, "train", 8)
    world.queue.kv_clear(batch.keys, "train")
    saved = world.checkpoint(2)
    waiting = {uid: group.rollouts for uid, group in world.run.planned.items()}
    assert len(waiting) > 8 if group == 2 else len(waiting) < 8
    gone = list(waiting)[:lost]
    saved["tags"] = {key: tag for key, tag in saved["tags"].items() if key.partition("_")[0] not in gone}
    again = World(tmp_path, monkeypatch, *given, mode=mode, **saved)
    PPOTrainer._add_async_warmup_batches(again, 1)
    assert sum(again.requested) == sum(waiting[uid] for uid in gone) // 4


def test_plans_whose_groups_will_not_come_are_given_up_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of an asynchronous mode resumed in sync mode, where verl does not restore its queue."""
    world = World(tmp_path, monkeypatch, mode="colocate_async")
    world.generate(1, [0, 1, 2, 3])
    world.generate(1, [4, 5])
    world.checkpoint(1)
    again = World(tmp_path, monkeypatch)
    assert again.run.planned == {}
    assert again.run.session.open_plans == []
    again.generate(2, [0, 1])
    _, metrics = again.buffer.sample(2, "train", 2)
    assert metrics["knapsack/rollouts_lost"] == 0


@pytest.mark.parametrize("words", [[], ["+knapsack.min_n=0", "+knapsack.pool=1"]], ids=["pool", "left out"])
def test_asynchronous_batches_have_the_rollouts_that_verl_asks_for(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of groups; groups that verl drops are replaced by groups of as many rollouts."""
    given = [*(words or ["+knapsack.pool=4"]), "+knapsack.max_n=12", "data.train_batch_size=8"]
    world = World(tmp_path, monkeypatch, *given, mode="colocate_async", steps_per_epoch=9)
    pool, random, trained = world.run.settings.allocation.pool or 0, np.random.default_rng(0), 0
    rates = random.random(400)

    def answer(uid: str, prompt: int, count: int) -> list[float | None]:
        lost = random.random() < 0.05  # a group that verl drops
        return [None if lost else float(random.random() < rates[prompt % 400]) for _ in range(count)]

    world.answer = answer
    numbers = itertools.count()

    def offer(step: int) -> None:
        world.generate(step, [next(numbers) % 40 for _ in range(8 * pool)])

    offer(1)  # verl reads one batch ahead
    for step in range(1, 41):
        offer(step)
        assert 8 <= world.buffer.get_sampleable_count(step, "train") <= 16
        batch, _ = world.buffer.sample(step, "train", 8)
        sizes = Counter(key.partition("_")[0] for key in batch.keys)
        assert min(sizes.values()) >= 2
        trained += len(batch.keys)
        assert 0 <= step * 32 - trained < 12  # behind by less than a group, however long it runs
        world.queue.kv_clear(batch.keys, "train")
    assert world.refilled
    waiting = sum(group.rollouts for group in world.run.planned.values())
    assert trained + waiting == 41 * 32
    assert set(world.queue.tags["train"]) >= set(world.run.planned)
    assert len({len(step.outcomes.prompt_ids) for step in read_trace(tmp_path / "trace.jsonl").steps}) >= 1


def test_a_batch_is_taken_when_no_more_groups_will_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumed from a checkpoint of stock verl may have fewer rollouts than a batch has: it does not wait."""
    words = ["+knapsack.pool=2", "data.train_batch_size=8"]
    world = World(tmp_path, monkeypatch, *words, mode="colocate_async")
    world.generate(1, [0, 1, 2, 3])
    batch, _ = world.buffer.sample(1, "train", 8)
    assert len(batch.keys) == 8


def test_columns_come_as_one_plain_value_a_row() -> None:
    """Also for a refill of one prompt: its chat is not mistaken for a column of messages."""
    chats = np.empty(1, dtype=object)
    chats[0] = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    batch = tensordict_utils.get_tensordict({"raw_prompt": chats, "index": torch.tensor([3])})
    tensordict_utils.assign_non_tensor_data(batch, "data_source", "numbers")
    assert [column(batch, name) for name in ("raw_prompt", "index", "data_source")] == [[chats[0]], [3], ["numbers"]]
    with pytest.raises(ConfigError, match="the batch has no column 'uid': it has .*index"):
        column(batch, "uid")


def test_validation_stays_uniform_and_teaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.generate(0, [0, 1, 2], validate=True)
    assert set(world.sent.values()) == {-1}  # no number of ours: verl's val_kwargs.n
    assert world.run.session.step == 0


def test_partial_groups_are_kept_lone_rows_are_not_and_all_are_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    came: dict[int, list[float | None]] = {
        0: [1.0, None, 0.0, 1.0], 1: [None, None, None, 1.0], 2: [None] * 4, 3: [0.0] * 4,
    }  # fmt: skip
    world.answer = lambda uid, prompt, count: came[prompt]
    world.generate(1, [0, 1, 2, 3])
    batch, metrics = world.buffer.sample(1, "train", 4)
    assert prompts_of(batch.keys) == [0, 3]
    assert [key.partition("_")[2] for key in batch.keys] == ["0_0", "2_0", "3_0", "0_0", "1_0", "2_0", "3_0"]
    assert metrics["knapsack/rollouts_lost"] == 8
    assert set(world.queue.tags["train"]) == set(batch.keys)  # the lone row is gone from the queue too
    outcomes = read_trace(tmp_path / "trace.jsonl").steps[0].outcomes
    assert outcomes.counts_P.tolist() == [3, 1, 0, 4]
    assert world.evidence([0, 1, 2, 3]) == [3, 1, 0, 4]


@pytest.mark.parametrize("pool", [1, 2])
def test_a_group_that_failed_is_replaced_in_sync_mode_if_verl_is_told_to(
    pool: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a group without any rollout is replaced, from no pool; its prompt counts as unobserved."""
    words = ["trainer.v1.sampler.sync_refill_failed_groups=True", "data.train_batch_size=4"]
    world = World(tmp_path, monkeypatch, *words, f"+knapsack.pool={pool}")
    failing: list[int] = []

    def answer(uid: str, prompt: int, count: int) -> list[float | None]:
        if count and not failing:
            failing.append(prompt)
        return [None] * count if [prompt] == failing else [1.0] * count

    world.answer = answer
    offered = list(range(4 * pool))
    world.generate(1, offered)
    planned = dict(zip(prompts_of(list(world.sent)), world.sent.values(), strict=True))
    batch, _ = world.buffer.sample(1, "train", 4 * pool)
    assert world.refilled == [1]
    kept = {prompt: count for prompt, count in planned.items() if count and prompt not in failing}
    assert prompts_of(batch.keys) == [*kept, 101]
    assert len(batch.keys) == 16  # the new group has as many rollouts as the one that failed
    assert world.evidence([*failing, *kept, 101]) == [0, *kept.values(), planned[failing[0]]]


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_asynchronous_groups_are_learned_when_they_leave_for_any_reason(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, mode=mode)

    def answer(uid: str, prompt: int, count: int) -> list[float | None]:
        return [None] * count if prompt == 3 else [None, *[1.0] * (count - 1)] if prompt == 0 else [0.0] * count

    world.answer = answer
    world.generate(1, [0, 1, 2, 3])  # 0 loses one rollout, 3 loses all
    world.step = 2
    world.generate(2, [4, 5, 6, 7])
    batch, metrics = world.buffer.sample(2, "train", 4)
    assert world.refilled == [1]  # only the group that lost all its rollouts is replaced
    assert prompts_of(batch.keys) == [0, 1, 2, 4]
    assert metrics["knapsack/lag"] == 1
    world.queue.kv_clear(batch.keys, "train")
    world.step = 4  # the rest was made two versions ago: verl drops it, and generates as many new groups
    world.generate(4, [8, 9])
    world.buffer.sample(4, "train", 2)
    assert world.evidence([0, 1, 2, 3]) == [3, 4, 4, 0]
    assert world.evidence([4, 5, 6, 7]) == [4, 4, 4, 4]  # the first trained on, the others dropped
    world.buffer.wait_for_sampleable(4, "train", 0)  # as separate_async does between steps: no rollout is learned twice
    world.buffer.get_sampleable_count(5, "train")
    assert world.evidence([0, 1, 2, 3, 4, 5, 6, 7]) == [3, 4, 4, 0, 4, 4, 4, 4]
    table = world.run.session.allocator.beliefs.table  # type: ignore[attr-defined]
    assert table["step"][table.rows(ids_of([0, 4]))].tolist() == [0, 1]
    assert len(world.refilled) > 1


def test_whole_plans_are_trained_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plans of one step wait in the buffer: their groups are not mixed, so the rows sum to the budget."""
    world = World(tmp_path, monkeypatch, mode="colocate_async")
    world.answer = lambda uid, prompt, count: [float(prompt % 2)] * (count - 1) + [0.0]
    for step in (1, 2):
        world.generate(step, [0, 1, 2, 3])
        world.generate(step, [4, 5, 6, 7])
        for plan in ([0, 1, 2, 3], [4, 5, 6, 7]):
            batch, _ = world.buffer.sample(step, "train", 4)
            assert prompts_of(batch.keys) == plan
            assert len(batch.keys) == 16
            world.queue.kv_clear(batch.keys, "train")


def test_a_run_that_began_with_ids_of_prompts_goes_on_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    world.run.session.id_version = 1  # as state says that was written before ids were made of rows
    world.generate(1, [0, 1, 2])
    world.buffer.sample(1, "train", 3)
    world.checkpoint(1)
    again = World(tmp_path, monkeypatch)
    again.generate(2, [2, 1, 0])
    [plan] = again.run.session.open_plans
    assert plan.seen_P.all()
    assert plan.prompt_ids == tuple(task_ids("index", 1, in_memory.rows_of([2, 1, 0])))


@pytest.mark.parametrize("resume_mode", ["auto", "resume_path"])
def test_beliefs_are_restored_where_verl_resumes(
    resume_mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    world.generate(1, [0, 1])
    world.buffer.sample(1, "train", 2)
    checkpoint = tmp_path / "global_step_1"
    checkpoint.mkdir()
    world.saving.on_save(trainer=None, global_step=1, checkpoint_dir=str(checkpoint), async_save=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    planned = world.run.session.allocator.plan(ids_of([0, 1, 2]), 12, 1)
    words = [f"trainer.resume_mode={resume_mode}"]
    words += [f"trainer.resume_from_path={checkpoint}"] if resume_mode == "resume_path" else []
    again = World(tmp_path, monkeypatch, *words)
    assert again.run.session.step == 1
    replanned = again.run.session.allocator.plan(ids_of([0, 1, 2]), 12, 1)
    assert replanned.counts_P.tolist() == planned.counts_P.tolist()
    assert replanned.seen_P.tolist() == [True, True, False]
    assert World(tmp_path, monkeypatch, "trainer.resume_mode=disable").run.session.step == 0


def test_beliefs_are_in_the_checkpoint_before_verl_marks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed between verl's mark and its call of our hook resumes with its beliefs."""
    world = World(tmp_path, monkeypatch, "trainer.save_freq=2", mode="colocate_async")
    world.total_training_steps, world.parameter_sync_step = 3, 2
    for step in (1, 2, 3):
        for world.local_trigger_step, prompts in enumerate(([2 * step], [2 * step + 1])):
            world.generate(step, prompts)
            batch, _ = world.buffer.sample(step, "train", 1)
            world.queue.kv_clear(batch.keys, "train")
            saved = world.local_trigger_step == 1 and step > 1  # all of a step is learned; and 3 is the last
            assert (tmp_path / f"global_step_{step}").exists() == saved
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2")
    resumed = World(tmp_path, monkeypatch).run.session
    assert resumed.step == 2
    assert resumed.allocator.plan(ids_of([2, 3, 4, 5, 6]), 20, 2).seen_P.tolist() == [True] * 4 + [False]


def test_a_checkpoint_without_beliefs_counts_every_prompt_as_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "global_step_7").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    assert World(tmp_path, monkeypatch).run.session.step == 7
    assert "global_step_7 holds no beliefs of knapsack-rl" in caplog.text


def test_prompt_weighting_renames_the_estimator_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, "+knapsack.group_weighting=prompt")
    assert world.config.algorithm.adv_estimator == "grpo_per_prompt"


@pytest.mark.parametrize("weighting", ["rollout", "prompt", None])
def test_an_agent_with_several_outputs_counts_once_and_is_weighed_as_verl_does(
    weighting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last output of a rollout holds its reward; per-prompt weights would count the others as rollouts."""
    words = [] if weighting is None else [f"+knapsack.group_weighting={weighting}"]
    world = World(tmp_path, monkeypatch, *words)
    world.generate(1, [0, 1])
    for row in [row for row in world.queue.tags["train"] if row.endswith("_0_0")]:
        more = row.removesuffix("0") + "1"
        world.queue.tags["train"][more] = world.queue.tags["train"][row]
        world.queue.fields[more] = world.queue.fields[row]
    if weighting == "prompt":
        with pytest.raises(ConfigError, match=r"several for one rollout \(uid.*_0_0, uid.*_0_1, .*: set knapsack"):
            world.buffer.sample(1, "train", 2)
        return
    assert world.config.algorithm.adv_estimator == ("grpo" if weighting else "grpo_per_prompt")
    batch, metrics = world.buffer.sample(1, "train", 2)
    assert world.config.algorithm.adv_estimator == "grpo"  # from the first batch on
    assert ("from here on rollouts weigh the same" in caplog.text) == (weighting is None)
    assert len(batch.keys) == 2 * 5
    assert metrics["knapsack/rollouts_lost"] == 0
    assert world.evidence([0, 1]) == [4, 4]


def test_the_last_step_ends_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.total_training_steps = 1
    world.generate(1, [0, 1])
    world.buffer.sample(1, "train", 2)
    assert read_trace(tmp_path / "trace.jsonl").ended == "finished"


def test_a_hook_names_the_hook_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world_run, SharedRun.current = SharedRun.current, None
    with pytest.raises(ConfigError, match="trainer.checkpoint_callback_class=knapsack_rl.verl.SaveBeliefs"):
        KnapsackReplayBuffer(refill_fn=world.refill)
    SharedRun.current = world_run
    with pytest.raises(ConfigError, match=r"name=KnapsackReplayBuffer does not fit .* take KnapsackReplayBuffer for"):
        KnapsackReplayBuffer(refill_fn=world.refill, trainer_mode="separate_async")
    SharedRun.current = None
    world.config.trainer.use_v1 = False
    with pytest.raises(ConfigError, match="RayPPOTrainer"):
        KnapsackAgentLoopManager(config=world.config, llm_client=None)
