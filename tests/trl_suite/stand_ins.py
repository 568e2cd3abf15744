"""Make random models and data under the names that TRL's tests ask the model hub for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import trl

HUB = "trl-internal-testing"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<start_of_image>", "<end_of_image>",
    "<image_soft_token>",
]  # fmt: skip
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SMALL: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(LETTERS), "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
SIDE, PATCH = 56, 14
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip
# Name, chat template, and settings beside the small ones.
TEXT_MODELS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("tiny-Qwen2ForCausalLM-2.5", "qwen2_5", {}),
    ("tiny-Qwen2ForSequenceClassification-2.5", "qwen2_5", {"num_labels": 1}),
    ("tiny-Qwen3ForCausalLM", "qwen3", {}),
    ("tiny-Qwen3ForSequenceClassification", "qwen3", {"num_labels": 1}),
    ("tiny-Qwen3MoeForCausalLM", "qwen3", EXPERTS | {"num_experts": 4}),
    ("tiny-LlamaForCausalLM-3.2", "qwen2_5", {}),
    ("tiny-LlamaForSequenceClassification-3.2", "qwen2_5", {"num_labels": 1}),
    ("tiny-MistralForCausalLM-0.2", "qwen2_5", {}),
    ("tiny-Cohere2ForCausalLM", "qwen2_5", {}),
    ("tiny-Gemma2ForCausalLM", "qwen2_5", {"head_dim": 8}),
    ("tiny-Glm4MoeForCausalLM", "qwen2_5", EXPERTS | {"n_routed_experts": 4, "first_k_dense_replace": 1}),
    ("tiny-GptOssForCausalLM", "qwen2_5", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
)

# Begin as in the data set of the hub, which a test compares with.
TEXTS = [
    "Beautiful is better than", "Explicit is", "Simple is better", "Complex", "Flat is better than", "Sparse is better",
    "Readability", "Special cases aren't special", "Although practicality beats", "Errors should never",
    "Unless explicitly", "In the face of ambiguity, refuse", "There should be one", "Although that way", "Now is",
    "If the implementation is", "Namespaces are",
]  # fmt: skip


def make_stand_ins(work: Path) -> None:
    """Make models and data in ``work``: a folder is taken before the hub."""
    for name, template, extra in TEXT_MODELS:
        kind = name.split("-")[1]
        torch.manual_seed(0)
        config = getattr(transformers, kind.partition("For")[0] + "Config")(**SMALL, **extra)
        getattr(transformers, kind)(config).save_pretrained(work / HUB / name)
        tokenizer = _tokenizer()
        tokenizer.chat_template = _template(template)
        tokenizer.save_pretrained(work / HUB / name)
    for name, make in (("LlavaNext", _llava_next), ("Gemma3", _gemma3)):
        torch.manual_seed(0)
        for part in make():
            part.save_pretrained(work / HUB / f"tiny-{name}ForConditionalGeneration")
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    images = [Image.new("RGB", (60, 40), (15 * i, 0, 255 - 15 * i)) for i in range(len(TEXTS))]
    _save(work / HUB / "zen", "standard_prompt_only", {"prompt": TEXTS})
    _save(work / HUB / "zen", "conversational_prompt_only", {"prompt": chats})
    _save(work / HUB / "zen-image", "conversational_prompt_only", {"prompt": chats, "image": images})


def _save(folder: Path, config: str, columns: dict[str, list[Any]]) -> None:
    """Save a data set under the name of one of its configurations, with the splits train and test."""
    data = Dataset.from_dict(columns)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8").removesuffix("---\n") if card.exists() else "---\nconfigs:\n"
    text += f"- config_name: {config}\n  data_files:\n"
    for split, rows in (("train", data), ("test", data.select(range(2)))):
        rows.to_parquet(str(folder / config / f"{split}.parquet"))
        text += f"  - split: {split}\n    path: {config}/{split}.parquet\n"
    card.write_text(text + "---\n", encoding="utf-8")


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def _tokenizer(**extra: Any) -> Any:
    """One token for each byte, and the special ones."""
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *LETTERS])}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=SPECIAL[0], eos_token=SPECIAL[2], additional_special_tokens=SPECIAL[1:], **extra
    )


def _llava_next() -> tuple[Any, Any]:
    """A vision-language model and its processor."""
    grid = {"image_grid_pinpoints": [[SIDE, SIDE]]}
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **grid
    )
    chosen = {"vision_feature_select_strategy": "default"}
    processor = transformers.LlavaNextProcessor(
        image_processor=images, tokenizer=_tokenizer(), patch_size=PATCH, chat_template=_template("llava_next"),
        image_token="<image>", num_additional_image_tokens=1, **chosen,
    )  # fmt: skip
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=transformers.LlamaConfig(**SMALL), image_token_index=SPECIAL.index("<image>"), **grid, **chosen,
    )  # fmt: skip
    return _with_ends(transformers.LlavaNextForConditionalGeneration(config)), processor


def _gemma3() -> tuple[Any, Any]:
    """A vision-language model and its processor."""
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        tokenizer=_tokenizer(extra_special_tokens=names), image_seq_length=4, chat_template=_template("gemma3"),
    )  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=SMALL | {"head_dim": 8}, vision_config=VISION | {"vision_use_head": False},
        mm_tokens_per_image=4, eos_token_id=[2],
        **{f"{name}_index": SPECIAL.index(token) for name, token in names.items()},
    )  # fmt: skip
    return _with_ends(transformers.Gemma3ForConditionalGeneration(config)), processor


def _with_ends(model: Any) -> Any:
    """Let generation end and be padded by the tokenizer's tokens."""
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    return model
