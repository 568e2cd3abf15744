"""SkyRL's Tinker server on a CPU, with a tiny model: ``python server.py FOLDER PORT``.

Works around two limits of SkyRL 0.3.0. Its pydantic models use `typing.TypedDict`, which pydantic refuses before Python
3.12; and its API server starts the engine through ``uv run``, which needs a project. So this file starts the engine as
well: ``python server.py engine ...``.
"""

from __future__ import annotations

import os
import runpy
import sys
import typing
from pathlib import Path

import typing_extensions

typing.TypedDict = typing_extensions.TypedDict  # type: ignore[misc, assignment]

# Micro-batches of one: a step whose number of rows is new would be compiled anew.
BACKEND = '{"max_lora_adapters":16,"max_lora_rank":8,"train_micro_batch_size":1,"sample_max_num_sequences":64}'


def make_model(folder: Path) -> None:
    """A Qwen3 of 90,000 parameters that reads bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocabulary = {"<pad>": 0, "<|im_end|>": 1, "<|im_start|>": 2}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.1,  # with 0.02 no logit could move far enough to be learned
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def serve(folder: Path, port: int) -> None:
    """Serve the model in ``folder / "model"``; checkpoints and the database go to the folder as well."""
    import uvicorn
    from skyrl.tinker import api
    from skyrl.tinker.config import EngineConfig

    def engine(parent: list[str], config: EngineConfig) -> list[str]:
        return [sys.executable, __file__, "engine", *api.config_to_argv(config)]

    api._build_uv_run_cmd_engine = engine
    settings = {
        "base_model": str(folder / "model"),
        "backend": "jax",
        "backend_config": BACKEND,
        "checkpoints_base": str(folder / "checkpoints"),
        "database_url": f"sqlite:///{folder / 'tinker.db'}",
    }
    api.app.state.engine_config = EngineConfig.model_validate(_parsed(settings, EngineConfig))
    uvicorn.run(api.app, host="127.0.0.1", port=port, log_level="warning")


def _parsed(settings: dict[str, str], config: typing.Any) -> dict[str, typing.Any]:
    """The settings as a command line would give them."""
    import argparse

    from skyrl.tinker.config import add_model

    parser = argparse.ArgumentParser()
    add_model(parser, config)
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    found = vars(parser.parse_args(words))
    return {name: value for name, value in found.items() if name in config.model_fields}


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if sys.argv[1] == "engine":
        sys.argv = ["skyrl.tinker.engine", *sys.argv[2:]]
        runpy.run_module("skyrl.tinker.engine", run_name="__main__")
    else:
        serve(Path(sys.argv[1]), int(sys.argv[2]))
