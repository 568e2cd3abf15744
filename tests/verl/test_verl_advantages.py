"""Every advantage estimator of verl that finds groups by uid, on groups of uneven size, against plain formulas."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transfer_queue import KVBatchMeta
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, AdvantageEstimator, get_adv_estimator_fn
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import tensordict_utils
from world.in_memory import changed

from knapsack_rl.verl.settings import PROMPT_WEIGHTED
from knapsack_rl.verl.weighting import per_prompt, weights_of_rows

SIZES = (2, 3, 7, 12, 2)
WIDTH = 5
ROWS = sum(SIZES)


@pytest.fixture
def batch() -> dict[str, Any]:
    """Rows of all groups, shuffled as verl shuffles them; one reward per row, on its last token."""
    random = np.random.default_rng(0)
    uids = np.array([f"uid{i}" for i, size in enumerate(SIZES) for _ in range(size)], dtype=object)
    order = random.permutation(ROWS)
    lengths = random.integers(1, WIDTH + 1, ROWS)
    mask = torch.tensor(np.arange(WIDTH) < lengths[:, None], dtype=torch.float32)
    rewards = torch.zeros(ROWS, WIDTH)
    rewards[torch.arange(ROWS), torch.tensor(lengths - 1)] = torch.tensor(random.normal(size=ROWS), dtype=torch.float32)
    return {"token_level_rewards": rewards, "response_mask": mask, "index": uids[order]}


def advantages(name: str, batch: dict[str, Any], **more: Any) -> np.ndarray:
    """The advantage of each token."""
    inputs = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    return get_adv_estimator_fn(name)(**inputs, config=AlgoConfig(), **more)[0].numpy()


def by_group(batch: dict[str, Any], formula: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """A formula of a group's rewards and lengths, applied group by group; ``[rows]``."""
    rewards, lengths = batch["token_level_rewards"].sum(-1).numpy(), batch["response_mask"].sum(-1).numpy()
    result = np.zeros(ROWS)
    for uid in set(batch["index"]):
        rows = np.flatnonzero(batch["index"] == uid)
        result[rows] = formula(rewards[rows], lengths[rows])
    return result


def whitened(values: np.ndarray, batch: dict[str, Any]) -> np.ndarray:
    """verl's last step of some estimators: over all tokens of the batch."""
    mask = batch["response_mask"].numpy().astype(bool)
    tokens = np.repeat(values[:, None], WIDTH, axis=1)
    return (tokens - tokens[mask].mean()) / np.sqrt(tokens[mask].var(ddof=1) + 1e-8)


def passk(rewards: np.ndarray, _: np.ndarray) -> np.ndarray:
    second, best = np.sort(rewards)[-2:]
    return np.where(rewards == best, (best - second) / (rewards.std(ddof=1) + 1e-6), 0.0)


GROUPWISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "grpo": lambda r, _: (r - r.mean()) / (r.std(ddof=1) + 1e-6),
    "grpo_vectorized": lambda r, _: (r - r.mean()) / (r.std(ddof=1) + 1e-6),
    "grpo_passk": passk,
    "rloo": lambda r, _: np.array([r[i] - np.delete(r, i).mean() for i in range(r.size)]),
    "rloo_vectorized": lambda r, _: np.array([r[i] - np.delete(r, i).mean() for i in range(r.size)]),
    "opo": lambda r, lengths: r - (r * lengths).sum() / lengths.sum(),
    "gpg": lambda r, _: r - r.mean(),  # times rows / rows with a reward, which is 1 here
}

WHITENED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "reinforce_plus_plus_baseline": lambda r, _: r - r.mean(),
    "gdpo": GROUPWISE["grpo"],
}

# These have a baseline for each place of a response. With one turn a response, both are the same formula.
BY_TOKEN = ("optimal_token_baseline", "tir_optimal_token_baseline")

# No groups at all.
UNGROUPED = ("gae", "reinforce_plus_plus", "remax")

# Estimators that verl 0.9.1's V1 trainer cannot run, with or without this package: it does not pass on the parts of the
# reward, the sums of squared probabilities, or the reward of the greedy answer.
BROKEN_IN_V1 = ("gdpo", *BY_TOKEN, "remax")


def test_all_estimators_of_verl_are_covered() -> None:
    known = {*GROUPWISE, *WHITENED, *BY_TOKEN, *UNGROUPED}
    assert known == {estimator.value for estimator in AdvantageEstimator}
    assert set(PROMPT_WEIGHTED) <= known <= set(ADV_ESTIMATOR_REGISTRY)


@pytest.mark.parametrize("name", GROUPWISE)
def test_groupwise(name: str, batch: dict[str, Any]) -> None:
    expected = by_group(batch, GROUPWISE[name])[:, None] * batch["response_mask"].numpy()
    np.testing.assert_allclose(advantages(name, batch), expected, atol=1e-5)


@pytest.mark.parametrize("name", WHITENED)
def test_whitened(name: str, batch: dict[str, Any]) -> None:
    expected = whitened(by_group(batch, WHITENED[name]), batch) * batch["response_mask"].numpy()
    np.testing.assert_allclose(advantages(name, batch), expected, atol=1e-5)


@pytest.mark.parametrize("name", BY_TOKEN)
def test_by_token(name: str, batch: dict[str, Any]) -> None:
    """The baseline at a position is the mean of the remaining reward, weighted by the path's variance up to there."""
    random = torch.Generator().manual_seed(0)
    batch["old_log_probs"] = -torch.rand(ROWS, WIDTH, generator=random) - 0.1
    batch["sum_pi_squared"] = torch.rand(ROWS, WIDTH, generator=random)
    rewards, mask = batch["token_level_rewards"].double().numpy(), batch["response_mask"].double().numpy()
    to_come = np.flip(np.cumsum(np.flip(rewards * mask, 1), 1), 1)
    variance = 1 - 2 * np.exp(batch["old_log_probs"].double().numpy()) + batch["sum_pi_squared"].double().numpy()
    path = np.cumsum(variance * mask, 1)
    expected = np.zeros((ROWS, WIDTH))
    for uid, place in itertools.product(set(batch["index"]), range(WIDTH)):
        there = np.flatnonzero((batch["index"] == uid) & (mask[:, place] > 0))
        if there.size == 1:  # a position that only one response reaches has no baseline
            expected[there, place] = to_come[there, place]
        elif there.size:
            weights = path[there, place]
            expected[there, place] = to_come[there, place] - np.average(to_come[there, place], weights=weights)
    np.testing.assert_allclose(advantages(name, batch), expected, atol=1e-4)


def test_rewards_in_parts(batch: dict[str, Any]) -> None:
    """gdpo, as the legacy trainer calls it: each part of the reward is normalised within the group separately."""
    parts = {name: np.random.default_rng(i).normal(size=ROWS) for i, name in enumerate(("format", "accuracy"))}
    config = AlgoConfig(gdpo_reward_keys=[*parts], gdpo_reward_weights=[0.5, 2.0])
    mask = torch.cat([torch.ones(ROWS, 3), batch["response_mask"]], dim=1).long()
    inputs = {"prompts": torch.zeros(ROWS, 3), "attention_mask": mask}
    found, _ = get_adv_estimator_fn("gdpo")(**batch, config=config, non_tensor_batch=parts, batch=inputs)
    total = np.zeros(ROWS)
    for weight, rewards in zip((0.5, 2.0), parts.values(), strict=True):
        part = {**batch, "token_level_rewards": torch.tensor(rewards[:, None])}
        total += weight * by_group(part, GROUPWISE["grpo"])
    expected = whitened(total, batch) * batch["response_mask"].numpy()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


class Trainer:
    """The part of verl's V1 trainer that takes a batch out of the queue, computes advantages, and puts them back."""

    def __init__(self, name: str, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        lengths = batch["response_mask"].sum(1).int().tolist()
        columns = {
            "uid": batch["index"],
            "response_mask": ragged(batch["response_mask"], lengths),
            "rm_scores": ragged(batch["token_level_rewards"], lengths),
            "old_log_probs": ragged(torch.full((ROWS, WIDTH), -0.5), lengths),
            "sum_pi_squared": ragged(torch.full((ROWS, WIDTH), 0.5), lengths),
        }

        def get(keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
            return tensordict_utils.get_tensordict({key: columns[key] for key in select_fields if key in columns})

        monkeypatch.setattr(trainer_base.tq, "kv_batch_get", get)
        monkeypatch.setattr(trainer_base.tq, "kv_batch_put", lambda fields, **_: fields)
        numbers: Counter[str] = Counter()
        keys = []
        for uid in batch["index"]:
            keys.append(f"{uid}_{numbers[uid]}_0")
            numbers[uid] += 1
        self.config = changed(f"algorithm.adv_estimator={name}")
        self.batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys])

    def advantages(self) -> np.ndarray:
        found = trainer_base.PPOTrainer._compute_advantage(self, self.batch, {})["advantages"]
        return found.to_padded_tensor(0.0, (ROWS, WIDTH)).numpy()


def ragged(rows: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    values = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    return torch.nested.as_nested_tensor(values, layout=torch.jagged)


@pytest.mark.parametrize("name", [*GROUPWISE, "reinforce_plus_plus_baseline"])
@pytest.mark.parametrize("weighting", ["rollout", "prompt"])
def test_in_the_trainer(name: str, weighting: str, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimators as verl's trainer calls them, in both weightings."""
    expected = advantages(name, batch)
    if weighting == "prompt":
        name = per_prompt(name)
        expected = expected * weights_of_rows(list(batch["index"])).numpy()[:, None]
    np.testing.assert_allclose(Trainer(name, batch, monkeypatch).advantages(), expected, atol=1e-5)


@pytest.mark.parametrize("name", BROKEN_IN_V1)
def test_estimators_that_cannot_run(name: str, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """If this test fails, verl can run the estimator: update docs/verl.md."""
    trainer = Trainer(name, batch, monkeypatch)
    trainer.config.algorithm.gdpo_reward_keys = ["accuracy"]
    with pytest.raises((AssertionError, KeyError, TypeError), match="prompts|sum_pi_squared|reward_baselines"):
        trainer.advantages()


def test_a_group_of_one_gets_its_raw_reward_which_is_why_none_is_trained_on(batch: dict[str, Any]) -> None:
    batch["index"] = np.array([f"uid{i}" for i in range(ROWS)], dtype=object)
    raw = batch["token_level_rewards"].sum(-1, keepdim=True).numpy() * batch["response_mask"].numpy()
    np.testing.assert_allclose(advantages("grpo", batch), raw, atol=1e-5)


@pytest.mark.parametrize("name", PROMPT_WEIGHTED)
def test_prompt_weighting_scales_by_the_inverse_of_the_group_size(name: str, batch: dict[str, Any]) -> None:
    renamed = per_prompt(name)
    assert per_prompt(name) == renamed == f"{name}_per_prompt"
    size = by_group(batch, lambda r, _: np.full(r.size, r.size))
    factor = (ROWS / len(SIZES)) / size
    np.testing.assert_allclose(advantages(renamed, batch), advantages(name, batch) * factor[:, None], atol=1e-5)


def test_prompt_weighting_gives_every_prompt_the_same_weight_and_changes_nothing_for_equal_groups() -> None:
    uids = ["a"] * 2 + ["b"] * 6 + ["pad1"] * 3
    weights = weights_of_rows(uids)
    assert weights.tolist() == pytest.approx([2.0] * 2 + [4 / 6] * 6 + [0.0] * 3)
    assert float(weights.sum()) == pytest.approx(8)  # as much as without weights
    assert weights_of_rows(list(itertools.chain(*(["a"] * 4, ["b"] * 4)))).tolist() == [1.0] * 8
