"""What the plugin tells axolotl, and what it refuses before a model is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from axolotl.cli.config import load_cfg
from axolotl.integrations.base import PluginManager
from axolotl.utils.import_helper import get_cls_from_module_str
from transformers import LlamaConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "axolotl" / "grpo.yaml"


def loaded(folder: Path, **changes: Any) -> Any:
    """The example's YAML with changes, as the command reads it: with plugins, checked against axolotl's schema."""
    file = folder / "grpo.yaml"
    LlamaConfig().save_pretrained(folder / "model")  # and no weights
    places = {"base_model": str(folder / "model"), "output_dir": str(folder)}
    given = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")) | places
    for name, value in changes.items():
        given[name] = given[name] | value if isinstance(value, dict) and name in given else value
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    return load_cfg(str(file))


def test_the_plugin_names_the_trainer_and_its_fields(tmp_path: Path) -> None:
    cfg = loaded(tmp_path, knapsack={"rule": "beta", "pool": 2, "success_threshold": 0.5})
    plugins = PluginManager.get_instance()
    plugins.pre_model_load(cfg)
    given = plugins.get_training_args(cfg)
    assert given == {"rule": "beta", "pool": 2, "success_threshold": 0.5}

    from axolotl.core.trainers.grpo.args import AxolotlGRPOConfig
    from axolotl.core.trainers.grpo.trainer import AxolotlGRPOTrainer

    from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackMixin

    trainer = get_cls_from_module_str(cfg.trainer_cls)
    assert issubclass(trainer, KnapsackMixin)
    assert issubclass(trainer, AxolotlGRPOTrainer)
    assert issubclass(AxolotlGRPOConfig, KnapsackGRPOConfig)
    args = AxolotlGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=8, **given)
    assert (args.allocation.rule, args.allocation.pool, args.allocation.average) == ("beta", 2, 8)
    # Everything else is as axolotl has it without the plugin.
    fields = {each.name: each for each in dataclasses.fields(AxolotlGRPOConfig)}
    assert {"context_parallel_size", "learning_rate", "rule"} <= fields.keys()


def test_a_trainer_of_the_users_own_is_kept(tmp_path: Path) -> None:
    assert loaded(tmp_path, trainer_cls="mine.Trainer").trainer_cls == "mine.Trainer"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trl": {"use_data_producer": True}}, "use_data_producer starts axolotl's asynchronous trainer"),
        ({"trl": {"async_prefetch": True, "use_vllm": True}}, "async_prefetch starts axolotl's asynchronous trainer"),
        ({"knapsack": {"poool": 2}}, "no field 'poool': choose from .*pool, rule"),
        ({"knapsack": {"learning_rate": 1}}, "no field 'learning_rate'"),
        ({"rl": "dpo"}, "rl is 'dpo': knapsack-rl plans the groups of 'grpo' and 'gdpo' only"),
    ],
    ids=str,
)
def test_refused_before_a_model_is_loaded(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    cfg = loaded(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        PluginManager.get_instance().pre_model_load(cfg)


def test_context_parallelism_is_refused(tmp_path: Path) -> None:
    """Of a checked config, because axolotl's own checks want flash attention, which needs a GPU."""
    cfg = loaded(tmp_path)
    cfg.context_parallel_size = 2
    with pytest.raises(ValueError, match="context_parallel_size is 2: .* leave it out"):
        PluginManager.get_instance().pre_model_load(cfg)
