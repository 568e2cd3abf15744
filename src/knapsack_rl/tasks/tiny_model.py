"""A language model that trains on a CPU in a minute, its warm start, and exact success rates.

The default is a three-layer Llama of 0.65 M parameters over characters. The warm start trains it by supervised learning
on answers that are right with a probability that depends on the level and misconceived otherwise
(`knapsack_rl.tasks.embedded`), in place of pretraining.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from knapsack_rl.notation import FloatArray
from knapsack_rl.tasks import embedded
from knapsack_rl.tasks.recipe import Progress, Recipe, Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tokens: TypeAlias = Sequence[int]

IGNORED = -100
# Most tokens of a prompt and its answer. Rotary positions have no weights, so this changes none.
LONGEST = 128


def make_tokenizer(characters: str = embedded.CHARACTERS) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per character and left padding; unknown characters become ``<unk>``."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, eos, bos, unknown = special
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        unk_token=unknown,
        padding_side="left",
        model_max_length=LONGEST,
    )


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the untrained model of a recipe."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=LONGEST,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return model


def build_warm_started(
    recipe: Recipe,
    folder: Path,
    progress: Progress | None = None,
    teacher: Teacher = embedded.taught,
    characters: str = embedded.CHARACTERS,
) -> None:
    """Train the model of a recipe on the answers of ``teacher``; save it and its tokenizer into ``folder``."""
    tokenizer = make_tokenizer(characters)
    model = make_model(recipe, tokenizer)
    threads = torch.get_num_threads()
    # One thread makes the same weights on any number of cores, and is hardly slower for a model of this size.
    torch.set_num_threads(1)
    try:
        supervise(model, tokenizer, recipe, progress, teacher)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def supervise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    progress: Progress | None = None,
    teacher: Teacher = embedded.taught,
) -> None:
    """Train ``model`` in place on the prompts and answers of ``teacher``, by cross entropy."""
    rng = random.Random(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    warm_up = max(1, recipe.steps // 10)
    model.train()
    for step in range(recipe.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1, (step + 1) / warm_up) * (0.95 * cosine + 0.05)
        prompts, answers = _tokenized(tokenizer, teacher(rng, recipe.batch))
        tokens, targets, mask = _padded(prompts, answers, int(tokenizer.pad_token_id))
        logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress(step + 1, recipe.steps)


def exact_success_rates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, str]],
    batch: int = 256,
) -> FloatArray:
    """The probability that a sample at temperature 1 is the right answer followed by end of sequence, for each row.

    A row has one right answer and one tokenization of it, so this is the success rate, without sampling noise.

    Args:
        model: a causal language model; its mode (train or eval) is left as it was.
        tokenizer: its tokenizer.
        rows: mappings with ``prompt`` and ``answer``.
        batch: rows per forward pass.

    Returns:
        Rates in [0, 1], ``[len(rows)]``.
    """
    was_training = model.training
    model.eval()
    rates: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            pairs = [(row["prompt"], row["answer"]) for row in rows[start : start + batch]]
            rates.append(answer_probabilities(model, *_tokenized(tokenizer, pairs), int(tokenizer.pad_token_id)))
    model.train(was_training)
    return torch.cat(rates).double().cpu().numpy() if rates else np.empty(0)


def answer_probabilities(
    model: PreTrainedModel, prompts: Sequence[Tokens], answers: Sequence[Tokens], pad: int
) -> torch.Tensor:
    """The probability of each answer after its prompt: the product of the model's token probabilities; ``[rows]``.

    One forward pass with teacher forcing, in the model's present mode.

    Args:
        model: a causal language model.
        prompts: tokens of each prompt.
        answers: tokens of each answer, end of sequence included.
        pad: the padding token.
    """
    tokens, targets, mask = (tensor.to(model.device) for tensor in _padded(prompts, answers, pad))
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
    targets = targets[:, 1:]
    log_probs = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    rates: torch.Tensor = (log_probs * (targets != IGNORED)).sum(1).exp()
    return rates


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> tuple[list[Tokens], list[Tokens]]:
    """Tokens of prompts, and of answers followed by end of sequence."""
    prompts = tokenizer([prompt for prompt, _ in pairs], add_special_tokens=True)["input_ids"]
    answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
    return prompts, [[*answer, int(tokenizer.eos_token_id)] for answer in answers]


def _padded(
    prompts: Sequence[Tokens], answers: Sequence[Tokens], pad: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompt and answer as one row, padded on the right: tokens, targets (``IGNORED`` off the answer), attention mask.

    Each is ``[rows, longest]``. Padding on the right changes no logits before it, because attention is causal.
    """
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    tokens = torch.full((len(lengths), max(lengths)), pad)
    targets = torch.full_like(tokens, IGNORED)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[i, : lengths[i]] = torch.tensor([*prompt, *answer])
        targets[i, len(prompt) : lengths[i]] = torch.tensor(answer)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens, targets, mask
