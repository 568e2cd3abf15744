"""A one-layer Llama with a character tokenizer, prompts of mixed hardness, and ms-swift's own command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from knapsack_rl.trace import read_trace

LETTERS = "abcdefgh"
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
PLUGIN = '''
import time
import knapsack_rl.swift.plugin
from swift.rewards import ORM, orms

class Letters(ORM):
    """1 if the answer begins with one of the right letters."""

    def __call__(self, completions, answer, **kwargs):
        time.sleep({seconds})
        return [float(completion[:1] in set(right)) for completion, right in zip(completions, answer)]

orms["letters"] = Letters
'''


def save_model(folder: Path) -> None:
    """About 3,000 weights, and a token per character."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", "=", *LETTERS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left",
        chat_template=CHAT,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    model.save_pretrained(folder)


def rows(prompts: int = 24) -> list[dict[str, Any]]:
    """Prompts that want a letter: none, one, two, ... of them are right, so hardness differs."""
    return [
        {"messages": [{"role": "user", "content": LETTERS[i % 8] + LETTERS[i // 8 % 8]}], "answer": LETTERS[: i % 6]}
        for i in range(prompts)
    ]


def arguments(
    folder: Path, model: Path, data: Sequence[dict[str, Any]], plugin: str = PLUGIN.format(seconds=0), **changes: Any
) -> list[str]:
    """The arguments of ``swift rlhf``: 4 prompts x 4 rollouts a step, 6 steps, on a CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    (folder / "plugin.py").write_text(plugin, encoding="utf-8")
    given: dict[str, Any] = {
        "rlhf_type": "grpo", "model": model, "model_type": "llama", "template": "dummy", "tuner_type": "full",
        "torch_dtype": "float32", "dataset": folder / "rows.jsonl", "external_plugins": folder / "plugin.py",
        "reward_funcs": "letters", "use_vllm": "false", "num_generations": 4, "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1, "max_completion_length": 3, "max_steps": 6, "output_dir": folder / "out",
        "add_version": "false", "report_to": "none", "save_strategy": "steps", "save_steps": 2,
        "save_total_limit": 9, "split_dataset_ratio": 0, "gradient_checkpointing": "false", "dataset_num_proc": 1,
        "load_from_cache_file": "false", "beta": 0, "bf16": "false", "fp16": "false", "use_cpu": "true",
        "logging_steps": 1, "learning_rate": 1e-2, "seed": 3, "dataset_shuffle": "true",
        "check_model": "false",  # which asks a hub
    } | changes  # fmt: skip
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def command(arguments: Sequence[str]) -> list[str]:
    """``swift rlhf`` as its launcher starts it."""
    return [sys.executable, "-m", "swift.cli.rlhf", *arguments]


def environment(settings: str = "") -> dict[str, str]:
    return {**os.environ, "KNAPSACK_RL": settings}


def plans(folder: Path) -> list[tuple[Any, ...]]:
    """Everything the plans of a run were and brought, exactly."""
    return [
        (
            step.plan.step, step.plan.prompt_ids, step.plan.counts_P.tolist(), step.plan.success_rates_P.tolist(),
            step.plan.pseudo_count_P.tolist(), step.outcomes.rewards_PG.tolist(),
        )
        for step in read_trace(folder / "out" / "trace.jsonl").steps
    ]  # fmt: skip
