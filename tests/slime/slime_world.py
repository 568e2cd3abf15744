"""Rollouts without an engine: what slime and miles do with the three hooks of the adapter."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

REAL = bool(os.environ.get("KNAPSACK_RL_SLIME"))

# Reward and tokens of each answer, from the sample that it answers.
Answer = Callable[[Any], tuple[float | None, int]]


def arguments(folder: Path, rows: list[dict[str, Any]], batch: int, **changes: Any) -> Namespace:
    """slime's arguments that the adapter and the data source read."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given: dict[str, Any] = {
        "prompt_data": str(data), "input_key": "prompt", "label_key": "label", "metadata_key": "metadata",
        "multimodal_keys": None, "tool_key": None, "apply_chat_template": False, "apply_chat_template_kwargs": {},
        "rollout_max_prompt_len": None, "rollout_seed": 0, "rollout_shuffle": False, "rollout_global_dataset": True,
        "hf_checkpoint": "none", "dump_details": None, "buffer_filter_path": None, "reward_key": None,
        "save": str(folder / "out"), "load": None, "n_samples_per_prompt": 1, "rollout_batch_size": batch,
        "global_batch_size": batch, "over_sampling_batch_size": batch, "advantage_estimator": "grpo",
        "rewards_normalization": True, "grpo_std_normalization": False, "knapsack": {"features": "none"},
        "custom_generate_function_path": "knapsack_rl.slime.hooks.generate", "partial_rollout": False,
        "custom_reward_post_process_path": "knapsack_rl.slime.hooks.post_process", "group_rm": False,
        "dynamic_sampling_filter_path": None, "rollout_sample_filter_path": None, "custom_rm_path": None,
        "rollout_all_samples_process_path": None, "custom_convert_samples_to_train_data_path": None,
        "calculate_per_token_loss": False, "chat_template_path": None,
    }  # fmt: skip
    return Namespace(**(given | changes))


class World:
    """A data source of the adapter, and answers in the place of an engine."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, args: Namespace, answer: Answer, library: str = "slime"
    ) -> None:
        """Begin a run of slime or of miles."""
        self.args, self.answer, self.library = args, answer, library
        self.seeds: list[int | None] = []
        self.hooks = import_module(f"knapsack_rl.slime.{'hooks' if library == 'slime' else library}")
        monkeypatch.setattr(import_module(f"{library}.rollout.sglang_rollout"), "generate", self._generate)
        # Prompts are not counted in tokens here, so there is no tokenizer.
        data_source = import_module(f"{library}.rollout.data_source")
        monkeypatch.setattr(data_source, "load_tokenizer", lambda *_, **__: None, raising=False)
        monkeypatch.setattr(data_source, "load_processor", lambda *_, **__: None, raising=False)
        self.source = self.hooks.DataSource(args)

    async def _generate(self, args: Namespace, sample: Any, sampling_params: dict[str, Any]) -> Any:
        await asyncio.sleep(0)
        self.seeds.append(sampling_params.get("sampling_seed"))
        sample.reward, sample.response_length = self.answer(sample)
        sample.tokens, sample.response = [0] * (1 + sample.response_length), "x" * sample.response_length
        sample.status = type(sample).Status.COMPLETED
        return sample

    def groups(self, params: dict[str, Any] | None = None) -> list[list[list[Any]]]:
        """What slime's rollout function returns: prompts, slots of a prompt, samples of a slot."""
        slots = self.source.get_samples(self.args.rollout_batch_size)

        async def all_of_them() -> list[list[list[Any]]]:
            return [
                [await self.hooks.generate(self.args, sample, dict(params or {})) for sample in slot] for slot in slots
            ]

        return asyncio.run(all_of_them())

    def step(self) -> tuple[list[Any], list[float], list[float]]:
        """One step: samples, rewards, advantages."""
        groups = self.groups()
        if REAL and self.library == "slime":
            from slime.observability.rollout_data_utils import validate_rollout_id_annotated

            validate_rollout_id_annotated(groups)
        samples = list(itertools.chain.from_iterable(itertools.chain.from_iterable(groups)))
        return samples, *self.hooks.post_process(self.args, samples)
