"""With a constant plan our trainer is TRL's, to the bit: same losses, same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small

LOSSES = ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]
COMPARED = ("loss", "reward", "reward_std", "frac_reward_zero_std", "grad_norm", "completions/mean_length")


def assert_same(
    tmp_path: Path, *, reward_funcs: Any = small.reward, data: Any = None, arguments: Any = None, ours: Any = None,
    **changes: Any,
) -> None:  # fmt: skip
    """Train both from the same start; ``ours`` are settings that stock TRL does not have."""
    plain = small.stock(tmp_path / "stock", reward_funcs, data, arguments and arguments(), **changes)
    changes |= {"rule": "uniform", **(ours or {})}
    knapsack = small.knapsack(tmp_path / "ours", reward_funcs, data, arguments and arguments(), **changes)
    assert small.logged(knapsack, *COMPARED) == small.logged(plain, *COMPARED)
    assert len(small.logged(plain, "loss")) == 3
    assert any(grad for (grad,) in small.logged(plain, "grad_norm")), "nothing was learned, so nothing was compared"
    assert small.weights(knapsack) == small.weights(plain)
    assert list(knapsack._logs["advantages"]) == list(plain._logs["advantages"])


def test_every_loss_type_of_trl_is_compared() -> None:
    from trl import GRPOConfig

    help_text = GRPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    assert all(loss in help_text for loss in LOSSES)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_types(tmp_path: Path, loss_type: str, scale_rewards: str) -> None:
    level = "sequence" if loss_type == "luspo" else "token"
    assert_same(tmp_path, loss_type=loss_type, scale_rewards=scale_rewards, importance_sampling_level=level)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps_per_generation": 2, "per_device_train_batch_size": 8},
        {"steps_per_generation": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
        {"steps_per_generation": 2, "per_device_train_batch_size": 8, "num_iterations": 2},
        {"generation_batch_size": 32},
        {"generation_batch_size": 16, "gradient_accumulation_steps": 2},
        {"mask_truncated_completions": True},
        {"num_generations": 8},
        {"shuffle_dataset": False},
    ],
    ids=str,
)
def test_batching_and_options(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_same(tmp_path, **changes)


def test_reference_model(tmp_path: Path) -> None:
    small.model().save_pretrained(tmp_path / "model")  # TRL loads the reference again by its name
    assert_same(tmp_path, arguments=lambda: {"model": str(tmp_path / "model")}, beta=0.1)


def test_prompt_weighting_of_equal_groups_changes_nothing(tmp_path: Path) -> None:
    assert_same(tmp_path, ours={"group_weighting": "prompt"})


def test_evaluation(tmp_path: Path) -> None:
    every = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4, "num_generations_eval": 2}
    assert_same(tmp_path, arguments=lambda: {"eval_dataset": small.dataset(4)}, **every)


def none_for_some(completions: list[Any], **_: Any) -> list[float | None]:
    return [None if small.text_of(c)[:1] in "ab" else 0.5 for c in completions]


def reward_or_none(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    rewards = small.reward(completions, answer)
    return [None if small.text_of(c)[:1] in "ab" else r for c, r in zip(completions, rewards, strict=True)]


async def asynchronous(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    return small.reward(completions, answer)


@pytest.mark.parametrize(
    ("reward_funcs", "changes"),
    [
        ([small.reward, none_for_some], {}),
        ([small.reward, none_for_some], {"reward_weights": [1.0, 0.25]}),
        ([small.reward, none_for_some], {"multi_objective_aggregation": "normalize_then_sum"}),
        (reward_or_none, {}),
        (asynchronous, {}),
        ([small.reward, asynchronous], {"scale_rewards": "batch"}),
    ],
    ids=["none", "weights", "normalize_then_sum", "unscorable", "async", "sync+async"],
)
def test_reward_functions(tmp_path: Path, reward_funcs: Any, changes: dict[str, Any]) -> None:
    assert_same(tmp_path, reward_funcs=reward_funcs, **changes)


def test_conversations(tmp_path: Path) -> None:
    assert_same(tmp_path, data=small.dataset(chat=True))


def test_lora(tmp_path: Path) -> None:
    from peft import LoraConfig

    def adapters() -> dict[str, Any]:
        return {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")}

    assert_same(tmp_path, arguments=adapters)
