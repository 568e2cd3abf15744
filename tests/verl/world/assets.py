"""A tiny Qwen2, a tokenizer of bytes, and prompts with success rates from 0 to 1."""

from __future__ import annotations

from pathlib import Path

import pandas
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL = ("<pad>", "<|im_end|>", "<|im_start|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'][0] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a\n{% endif %}"
)

# A response succeeds if its first byte is below the prompt's limit: before training, with a probability of about
# limit / 259, the number of tokens.
LIMITS = (0, 4, 16, 32, 64, 96, 128, 70_000)
PROMPTS = 16


def make(folder: Path) -> None:
    """Write ``model/``, ``train.parquet`` and ``val.parquet``."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHAT
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # of 32, the smallest that vLLM's attention for CPUs has
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    rows = [
        {
            "data_source": "limits",
            "prompt": [{"role": "user", "content": chr(ord("a") + i)}],
            "reward_model": {"style": "rule", "ground_truth": str(LIMITS[i % len(LIMITS)])},
            "extra_info": {"index": i},
        }
        for i in range(PROMPTS)
    ]
    pandas.DataFrame(rows).to_parquet(folder / "train.parquet")
    pandas.DataFrame(rows[:4]).to_parquet(folder / "val.parquet")
