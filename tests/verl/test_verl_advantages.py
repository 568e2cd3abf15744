"""Every advantage estimator of verl that finds its groups by uid, on groups of uneven size, against plain formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, AdvantageEstimator, get_adv_estimator_fn

from knapsack_rl.verl.settings import PROMPT_WEIGHTED
from knapsack_rl.verl.weighting import equal_prompt_weights, per_prompt

SIZES = (2, 3, 7, 12, 2)
WIDTH = 5
ROWS = sum(SIZES)


@pytest.fixture
def batch() -> dict[str, Any]:
    """Rows of all groups, shuffled as verl shuffles them; one reward a row, on its last token."""
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

# These weigh every token by itself: what one group gets must not depend on the others, whatever their sizes.
BY_TOKEN = ("optimal_token_baseline", "tir_optimal_token_baseline")

# No groups at all.
UNGROUPED = ("gae", "reinforce_plus_plus", "remax")


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
    random = torch.Generator().manual_seed(0)
    batch["old_log_probs"] = -torch.rand(ROWS, WIDTH, generator=random) - 0.1
    batch["sum_pi_squared"] = torch.rand(ROWS, WIDTH, generator=random)
    together = advantages(name, batch)
    for uid in set(batch["index"]):
        rows = np.flatnonzero(batch["index"] == uid)
        alone = {key: value[rows] for key, value in batch.items()}
        np.testing.assert_allclose(together[rows], advantages(name, alone), atol=1e-6)


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
    weights = equal_prompt_weights(uids)
    assert weights.tolist() == pytest.approx([2.0] * 2 + [4 / 6] * 6 + [0.0] * 3)
    assert float(weights.sum()) == pytest.approx(8)  # as much as without weights
    assert equal_prompt_weights(list(itertools.chain(*(["a"] * 4, ["b"] * 4)))).tolist() == [1.0] * 8
