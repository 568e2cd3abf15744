"""Shared tokens of prompts are read once: same features on models of many kinds, and whole prompts where it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from knapsack_rl.features import shared_prefix
from knapsack_rl.features.policy import batches_of, hidden_states
from knapsack_rl.features.shared_prefix import SharedPrefix

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
SLIDING = GROUPED | {"sliding_window": 8}
CONTINUE = [
    ("LlamaConfig", GROUPED), ("Qwen2Config", SIZES | {"num_key_value_heads": 2}), ("Qwen3Config", GROUPED),
    ("MistralConfig", SLIDING), ("Gemma3TextConfig", SLIDING), ("GPTNeoXConfig", SIZES),
]  # fmt: skip
RECURRENT = [
    ("MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    ("Lfm2Config", SIZES | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"] * 2}),
]  # fmt: skip

drawn = np.random.default_rng(0)
HEAD = drawn.integers(3, 64, 40).tolist()
PROMPTS = [HEAD + drawn.integers(3, 64, n).tolist() for n in (1, 12, 3, 5, 9, 7)]
TOKENS = sum(map(len, PROMPTS))


def alone(number: int) -> int:
    """The largest of a number over all processes, of which there is one."""
    return number


def made(config: str, sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, config)(**sizes)).eval()


def counted(model: Any) -> list[int]:
    """Grows by the tokens of each forward pass, padding included."""
    tokens: list[int] = []
    model.register_forward_pre_hook(lambda _, args, given: tokens.append(given["input_ids"].numel()), with_kwargs=True)
    return tokens


@pytest.mark.parametrize(("config", "sizes"), CONTINUE)
def test_features_are_those_of_whole_prompts(config: str, sizes: dict[str, Any]) -> None:
    """Rotary and other positions, grouped heads, windows that are shorter than the shared tokens."""
    model, prefix = made(config, sizes), SharedPrefix()
    whole = hidden_states(model, PROMPTS)
    assert prefix.works is None
    first = hidden_states(model, PROMPTS, prefix=prefix)
    assert prefix.works
    tokens = counted(model)
    second = hidden_states(model, PROMPTS, prefix=prefix)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(first, second)  # so that a resumed run, whose first look is later, has the same
    assert sum(tokens) <= len(HEAD) + 1.25 * (TOKENS - len(PROMPTS) * len(HEAD))


@pytest.mark.parametrize(("config", "sizes"), RECURRENT)
def test_models_that_cannot_continue_read_whole_prompts(config: str, sizes: dict[str, Any]) -> None:
    """Convolutions and recurrent states have caches of other kinds."""
    model, prefix = made(config, sizes), SharedPrefix()
    whole = hidden_states(model, PROMPTS)
    for _ in range(2):
        assert torch.equal(hidden_states(model, PROMPTS, prefix=prefix), whole)
        assert prefix.works is False


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "LoraConfig"])
def test_adapters(kind: str) -> None:
    import peft

    config = {"r": 2, "init_lora_weights": False} if kind == "LoraConfig" else {"num_virtual_tokens": 5}
    tuned = peft.get_peft_model(made(*CONTINUE[0]), getattr(peft, kind)(task_type="CAUSAL_LM", **config)).eval()
    whole, prefix = hidden_states(tuned, PROMPTS), SharedPrefix()
    for _ in range(2):
        torch.testing.assert_close(hidden_states(tuned, PROMPTS, prefix=prefix), whole, rtol=1e-4, atol=1e-5)
    assert prefix.works or kind != "LoraConfig"  # with virtual tokens it depends on the version of peft


def test_a_cache_that_is_ignored_is_found_out() -> None:
    """No error is raised, so only the values tell."""

    class Ignores(LlamaForCausalLM):
        def forward(self, *args: Any, **given: Any) -> Any:
            if given.get("output_hidden_states"):
                given = {name: value for name, value in given.items() if name not in ("cache", "past_key_values")}
                given["attention_mask"] = given["attention_mask"][:, -given["input_ids"].shape[1] :]
            return super().forward(*args, **given)

    model, prefix = made(*CONTINUE[0]), SharedPrefix()
    whole = hidden_states(model, PROMPTS)
    model.__class__ = Ignores
    assert torch.equal(hidden_states(model, PROMPTS, prefix=prefix), whole)
    assert prefix.works is False


def test_sixteen_bits_count_as_the_same() -> None:
    """Rounding is below the limits, and one token of 40 that differs is above them."""
    model, prefix = made(*CONTINUE[0]).bfloat16(), SharedPrefix()
    hidden_states(model, PROMPTS, prefix=prefix)
    assert prefix.works
    other = [[HEAD[0] % 60 + 3, *prompt[1:]] for prompt in PROMPTS]
    one, wrong = hidden_states(model, PROMPTS), hidden_states(model, other)
    assert not shared_prefix._alike(one, wrong)
    assert not shared_prefix._alike(one, torch.full_like(one, torch.nan))


@pytest.mark.parametrize(
    ("prompts", "tokens"),
    [
        (PROMPTS, 40),
        (PROMPTS[:3], 0),  # too few prompts
        ([HEAD] * 4, 39),  # a token of each is left
        ([[*HEAD[:15], i] for i in range(4)], 0),  # too few tokens
        ([[*HEAD[:16], i] for i in range(4)], 16),
        ([[*HEAD[:16], *[i] * 100] for i in range(4)], 0),  # too small a share
        ([*PROMPTS, [5]], 0),
        ([*PROMPTS, []], 0),
    ],
)
def test_what_is_worth_a_pass_of_its_own(prompts: list[list[int]], tokens: int) -> None:
    assert SharedPrefix().tokens([prompt or [0] for prompt in prompts], alone) == tokens
    found = hidden_states(made(*CONTINUE[0]), prompts, prefix=SharedPrefix())
    assert [not row.isfinite().all() for row in found] == [not prompt for prompt in prompts]


def test_all_processes_do_the_same() -> None:
    """Sharded weights need every process in each pass: where one has no shared tokens, none reads them once."""
    model, prefix = made(*CONTINUE[0]), SharedPrefix()
    tokens = counted(model)

    def another_lacks(lacks: bool) -> Callable[[int], int]:
        asked: list[int] = []

        def most(own: int) -> int:
            asked.append(own)
            return max(own, 1) if len(asked) == 1 and lacks else own

        return most

    hidden_states(model, PROMPTS, passes=another_lacks(True), prefix=prefix)
    assert prefix.works is None
    assert len(HEAD) not in tokens
    hidden_states(model, PROMPTS, passes=another_lacks(False), prefix=prefix)
    assert prefix.works
    assert tokens.count(len(HEAD)) == 1
    # One process whose model does not continue: all of them read whole prompts.
    failing, answers = SharedPrefix(), iter([0, 1])
    whole = failing.used(PROMPTS, lambda shared: torch.full((2, 3), 1e-9 * shared), lambda own: next(answers))
    assert failing.works is False
    assert torch.equal(whole, torch.zeros(2, 3))


def test_the_cache_is_within_the_bound_of_a_pass() -> None:
    """Each row of a pass has its copy of the shared tokens' cache."""
    batches = batches_of([10] * 100, tokens=1000, logits=1000, padded=10, shared=190)
    assert [len(batch) for batch in batches] == [5] * 20
    assert [len(batch) for batch in batches_of([10] * 100, tokens=1000, logits=1000, padded=10)] == [100]


def chats() -> Any:
    """Prompts with a system prompt of 24 tokens."""
    data = small.dataset(chat=True)
    system = {"role": "system", "content": "abcdefgh" * 3}
    return data.map(lambda row: {"prompt": [system, *row["prompt"]]})


@pytest.mark.parametrize("unsloth", [False, True])
def test_training_with_a_system_prompt(tmp_path: Path, unsloth: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same looks as whole prompts; with Unsloth, whose caches are for generation, prompts are read whole."""
    if unsloth:
        monkeypatch.setitem(sys.modules, "unsloth", None)
    trainer = small.knapsack(tmp_path, data=chats(), rule="calibrated", pool=2, max_steps=3)
    assert trainer._uses_hidden_states
    rows = [row["prompt"] for row in trainer.train_dataset]
    found = trainer._policy_features(rows)
    tokens = trainer._tokenize_prompts(rows)[0]
    torch.testing.assert_close(found, hidden_states(trainer.model, tokens), rtol=1e-4, atol=1e-5)
    if unsloth:
        assert trainer._shared_prefix is None
    else:
        assert trainer._shared_prefix.works


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    """Its first look, at which both ways are compared, is at another step."""
    settings: dict[str, Any] = {"data": chats(), "rule": "calibrated", "pool": 2, "max_steps": 4}
    whole = small.knapsack(tmp_path / "whole", save_strategy="steps", save_steps=2, **settings)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    resumed = small.knapsack(tmp_path / "resumed", resume=checkpoint, **settings)
    assert resumed._shared_prefix.works
    assert small.weights(resumed) == small.weights(whole)
