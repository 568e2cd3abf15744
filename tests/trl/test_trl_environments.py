"""TRL's environments, tools and vision-language models, as they are: a toy of each, trained with uneven groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
import trl.trainer.grpo_trainer as grpo
from datasets import Dataset

from knapsack_rl.trace import read_trace

DEFAULTS: dict[str, Any] = {"rule": "calibrated", "pool": None, "group_weighting": None}
TOOL_CHAT = (
    "{% for m in messages %}{{ m['content'] }}{% for c in m.get('tool_calls') or [] %}{{ c['function'] | tojson }}"
    "{% endfor %}{% if m['role'] == 'tool' %}{{ m.get('name', '') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)
STOCK_AND_OURS = pytest.mark.parametrize(
    ("train", "changes"), [(small.stock, {}), (small.knapsack, {"rule": "uniform"}), (small.knapsack, DEFAULTS)],
    ids=["stock", "uniform", "default"],
)  # fmt: skip


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tokenizer that can call tools: an answer that begins with "a" is a call, because the toy has no template."""

    def parse(tokenizer: Any, ids: list[int], *_: Any, **__: Any) -> dict[str, Any]:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        calls = [{"type": "function", "function": {"name": "look", "arguments": {"where": text}}}]
        return {"role": "assistant", "content": text} | ({"tool_calls": calls} if text[:1] == "a" else {})

    monkeypatch.setattr(grpo, "parse_response", parse)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    made = small.tokenizer()
    made.chat_template, made.response_schema = TOOL_CHAT, {"type": "object"}
    return made


class Game:
    """Its task is the seed that `reset` is given."""

    met: list[Any]

    def reset(self, seed: int = 0, **_: Any) -> str:
        self.seed = seed
        self.met.append((type(self).__name__, seed))
        return small.LETTERS[seed % 8]

    def get_reward(self) -> float:
        return float(self.seed % 2)


def games(count: int = 1) -> list[type[Game]]:
    """Classes of games that note together which seeds they met."""
    met: list[Any] = []
    return [type(f"Game{i}", (Game,), {"met": met}) for i in range(count)]


def instruction(several: int, **columns: Any) -> Dataset:
    chat = [{"role": "user", "content": "ab"}]
    return Dataset.from_list([{"prompt": chat} | {k: v(i) for k, v in columns.items()} for i in range(several)])


@STOCK_AND_OURS
def test_one_environment_meets_every_seed(
    tmp_path: Path, tokenizer: Any, train: Callable[..., Any], changes: dict[str, Any]
) -> None:
    """One instruction, 16 seeds: 4 steps of 4 groups."""
    (game,) = games()
    arguments = {"environment_factory": game, "processing_class": tokenizer}
    trainer = train(tmp_path, None, instruction(16, seed=lambda i: i), arguments, max_steps=4, **changes)
    assert len(game.met) == 64
    met = {seed for _, seed in game.met}
    assert trainer.state.global_step == 4
    if train is small.stock or changes["rule"] == "uniform":
        assert met == set(range(16))
    else:
        assert all(len(set(step.plan.prompt_ids)) == 16 for step in read_trace(tmp_path / "trace.jsonl").steps)
        assert len(met) >= 12


def test_uniform_meets_the_seeds_that_stock_meets(tmp_path: Path, tokenizer: Any) -> None:
    found = []
    for name, train, changes in (("stock", small.stock, {}), ("ours", small.knapsack, {"rule": "uniform"})):
        first, second = games(2)
        data = instruction(12, seed=lambda i: i, environment=lambda i: "even" if i % 2 == 0 else "odd")
        data = data.remove_columns("prompt")  # an environment makes the prompt
        factories = {"even": first, "odd": second}
        arguments = {"environment_factory": factories, "processing_class": tokenizer}
        trainer = train(tmp_path / name, None, data, arguments, max_steps=4, **changes)
        found.append((first.met, small.weights(trainer)))
    assert found[0] == found[1]
    assert len(set(found[0][0])) == 12


def test_several_environments_share_a_plan(tmp_path: Path, tokenizer: Any) -> None:
    first, second = games(2)
    data = instruction(12, seed=lambda i: i // 2, environment=lambda i: "first" if i % 2 == 0 else "second")
    factories = {"first": first, "second": second}
    arguments = {"environment_factory": factories, "processing_class": tokenizer}
    small.knapsack(tmp_path, None, data, arguments, max_steps=3, **DEFAULTS)
    for step in read_trace(tmp_path / "trace.jsonl").steps:
        assert len(set(step.plan.prompt_ids)) == 12  # the same seed of two environments is two tasks
    assert {name for name, _ in first.met} == {"Game0", "Game1"}


def test_an_environment_that_owns_the_data(tmp_path: Path, tokenizer: Any) -> None:
    (game,) = games()
    arguments = {"environment_factory": game, "processing_class": tokenizer, "train_dataset": None}
    trainer = small.knapsack(tmp_path, None, arguments=arguments, max_steps=2, **DEFAULTS)
    assert trainer.args.pool == 1
    assert [step.plan.counts_P.size for step in read_trace(tmp_path / "trace.jsonl").steps] == [4, 4]


def look(where: str) -> str:
    """Look.

    Args:
        where: place
    """
    return "b"


async def look_later(where: str) -> str:
    """Look.

    Args:
        where: place
    """
    return "b"


look_later.__name__ = "look"


@pytest.mark.parametrize("tool", [look, look_later], ids=["sync", "async"])
def test_tools(tmp_path: Path, tokenizer: Any, tool: Any) -> None:
    """With a constant plan stock TRL to the bit; with the default, uneven groups that call tools."""
    weights = []
    runs: list[Any] = [(small.stock, {}), (small.knapsack, {"rule": "uniform"}), (small.knapsack, DEFAULTS)]
    for i, (train, changes) in enumerate(runs):
        arguments = {"tools": [tool], "processing_class": tokenizer}
        length = {"max_completion_length": 8, "max_steps": 2}
        trainer = train(tmp_path / str(i), data=small.dataset(chat=True), arguments=arguments, **length, **changes)
        assert any(share for (share,) in small.logged(trainer, "tools/call_frequency"))
        weights.append(small.weights(trainer))
    assert weights[0] == weights[1]


def seeing() -> tuple[Any, Any]:
    """A vision-language model of 8 x 8 pixels, and its processor."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = small.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    chat = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}="
    )
    size = {"height": 8, "width": 8}
    pixels = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    processor = LlavaProcessor(
        image_processor=pixels, tokenizer=tokenizer, patch_size=4, vision_feature_select_strategy="default",
        chat_template=chat, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    return model, processor


def test_a_vision_language_model(tmp_path: Path) -> None:
    """One question about 12 images: 12 tasks, and stock TRL to the bit with a constant plan."""
    image = pytest.importorskip("PIL.Image")
    images = [image.new("RGB", (8, 8), (20 * i, 0, 255 - 20 * i)) for i in range(12)]
    data = instruction(12, answer=lambda i: small.LETTERS[: i % 6], image=lambda i: images[i])
    weights = []
    runs: list[Any] = [(small.stock, {}), (small.knapsack, {"rule": "uniform"}), (small.knapsack, DEFAULTS)]
    for i, (train, changes) in enumerate(runs):
        model, processor = seeing()
        arguments = {"model": model, "processing_class": processor}
        trainer = train(tmp_path / str(i), data=data, arguments=arguments, max_steps=2, **changes)
        assert trainer.state.global_step == 2
        weights.append(small.weights(trainer))
    assert weights[0] == weights[1]
    plan = read_trace(tmp_path / "2" / "trace.jsonl").steps[0].plan
    assert max(Counter(plan.prompt_ids).values()) == 1
    assert len(plan.prompt_ids) == 12
