"""Our config is Unsloth's with further fields: its defaults, and its corrections of what is passed."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import patched  # noqa: F401  # before our own modules
import pytest

from knapsack_rl.trl import KnapsackGRPOConfig
from trl import GRPOConfig

# What Unsloth changes of TRL's defaults, or computes from what it is given.
NAMES = [each.name for each in dataclasses.fields(GRPOConfig) if each.init]


def values(config: Any) -> dict[str, Any]:
    """All that Unsloth sets, with the fields of its own that are none of a dataclass."""
    names = [*NAMES, "vllm_sampling_params", "unsloth_num_chunks", "unsloth_grpo_mini_batch"]
    return {name: getattr(config, name, None) for name in names}


def test_the_base_is_the_config_of_unsloth() -> None:
    assert GRPOConfig._unsloth_patched_rl_config
    assert issubclass(KnapsackGRPOConfig, GRPOConfig)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_generations": 4},
        {"per_device_train_batch_size": 6, "num_generations": 4},  # which Unsloth corrects
        {"learning_rate": 1e-3, "optim": "adamw_torch", "seed": 7, "beta": 0.1},
        {"loss_type": "dr_grpo", "epsilon_high": 0.28, "temperature": 0.7},
        {"unsloth_num_chunks": 2, "gradient_accumulation_steps": 4},
    ],
    ids=str,
)
def test_every_field_has_the_value_that_unsloth_gives_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, **changes}
    assert values(KnapsackGRPOConfig(**given, rule="beta", pool=1)) == values(GRPOConfig(**given))


def test_the_defaults_are_not_those_of_trl(tmp_path: Path) -> None:
    """So that the test above compares something."""
    ours = KnapsackGRPOConfig(str(tmp_path), use_cpu=True, bf16=False)  # the folder by position, as in TRL
    listed = {each.name: each.default for each in dataclasses.fields(GRPOConfig)}
    changed = {name for name in ("learning_rate", "optim", "weight_decay", "seed", "logging_steps") if
               getattr(ours, name) != listed[name]}  # fmt: skip
    assert changed == {"learning_rate", "optim", "weight_decay", "seed", "logging_steps"}


def test_our_own_fields_are_resolved_and_checked(tmp_path: Path) -> None:
    config = KnapsackGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=4, rule="paper")
    assert (config.rule, config.pool, config.min_generations, config.group_weighting) == ("paper", 1, 2, "rollout")
    assert config.to_dict()["rule"] == "paper"
    with pytest.raises(ValueError, match="pool is 8 and num_generations 4"):
        KnapsackGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=4, pool=8)
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):  # the trainer writes it beside a model
        assert values(again) == values(config)
        assert again.allocation == config.allocation
