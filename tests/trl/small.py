"""The smallest real thing: a one-layer Llama with a character tokenizer, prompts of mixed hardness, real TRL runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl import GRPOConfig, GRPOTrainer

LETTERS = "abcdefgh"
# Every prompt of a step gets at least two rollouts and weighs by them: what the plans of most tests are written for.
PLAIN: dict[str, Any] = {"rule": "beta", "pool": 1, "group_weighting": "rollout"}
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


def tokenizer() -> PreTrainedTokenizerFast:
    """A token per character."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", "=", *LETTERS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left",
        chat_template=CHAT,
    )  # fmt: skip


def model(seed: int = 0) -> LlamaForCausalLM:
    """About 3,000 weights; `LlamaForCausalLM` as users have it."""
    torch.manual_seed(seed)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    made.generation_config.pad_token_id, made.generation_config.eos_token_id = 0, 1
    return made


def dataset(prompts: int = 12, chat: bool = False) -> Dataset:
    """Prompts that want a letter: one, two, ... of them are right, so hardness differs."""
    rows = []
    for i in range(prompts):
        text = LETTERS[i % 8] + LETTERS[(i // 8) % 8]
        prompt: Any = [{"role": "user", "content": text}] if chat else text + "="
        rows.append({"prompt": prompt, "answer": LETTERS[: i % 6], "prompt_id": f"p{i}"})
    return Dataset.from_list(rows)


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 if the completion begins with one of the right letters."""
    return [float(text_of(c)[:1] in set(a)) for c, a in zip(completions, answer, strict=True)]


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Arguments that stock TRL and ours share: 4 prompts x 4 rollouts a step, on a CPU."""
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 3,
        "max_steps": 3, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no", "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "logging_steps": 1, "seed": 3,
    } | changes  # fmt: skip


class Losses(TrainerCallback):
    """What the run logged."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append(dict(logs))


def build(
    config_class: Any, trainer_class: Any, folder: Path, reward_funcs: Any, data: Any, arguments: Any, changes: Any
) -> Any:
    return trainer_class(
        **{
            "model": model(), "reward_funcs": reward_funcs, "args": config_class(**settings(folder, **changes)),
            "train_dataset": dataset() if data is None else data, "processing_class": tokenizer(),
            "callbacks": [Losses()], **(arguments or {}),
        }
    )  # fmt: skip


def stock(folder: Path, reward_funcs: Any = reward, data: Any = None, arguments: Any = None, **changes: Any) -> Any:
    """TRL's own trainer, trained; ``arguments`` are the trainer's, ``changes`` the config's."""
    trainer = build(GRPOConfig, GRPOTrainer, folder, reward_funcs, data, arguments, changes)
    trainer.train()
    return trainer


def knapsack(
    folder: Path,
    reward_funcs: Any = reward,
    data: Any = None,
    arguments: Any = None,
    resume: str | None = None,
    train: bool = True,
    trainer_class: Any = KnapsackGRPOTrainer,
    **changes: Any,
) -> Any:
    """Ours, trained unless told otherwise; the plain rule, where a test does not name another."""
    trainer = build(KnapsackGRPOConfig, trainer_class, folder, reward_funcs, data, arguments, PLAIN | changes)
    if train:
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: GRPOTrainer) -> str:
    """A fingerprint of every weight, to the bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.accelerator.unwrap_model(trainer.model).state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def logged(trainer: GRPOTrainer, *names: str) -> list[tuple[float | None, ...]]:
    """The logged values of some metrics, step after step; None where a step did not generate."""
    callback = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "Losses")
    return [tuple(entry.get(name) for name in names) for entry in callback.logs]
