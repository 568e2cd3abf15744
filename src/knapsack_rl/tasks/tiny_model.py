"""A language model small enough to train in a minute on a CPU, whose true success rates can be read off exactly.

A three-layer Llama of 0.65 M parameters over characters, warm-started by supervised learning on answers that are right
with a chance that depends on the level (`knapsack_rl.tasks.embedded`) and follow a misconception otherwise. That is its
"pretraining": a base model that knows the tasks by halves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from knapsack_rl.notation import FloatArray
from knapsack_rl.tasks import embedded
from knapsack_rl.tasks.recipe import Progress, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
# Draws so many prompts, each with the answer that the base model is taught to give, rightly or not.
Teacher: TypeAlias = Callable[[random.Random, int], list[tuple[str, str]]]


def make_tokenizer(characters: str = embedded.CHARACTERS) -> PreTrainedTokenizerFast:
    """One token per character, left padding; unknown characters become ``<unk>``."""
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
        model_max_length=64,
    )


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model of a recipe."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=64,
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
    """Train the model of a recipe on what ``teacher`` says and save it with its tokenizer into ``folder``."""
    tokenizer = make_tokenizer(characters)
    model = make_model(recipe, tokenizer)
    threads = torch.get_num_threads()
    # Two threads would gain a few seconds on two idle cores, and lose minutes beside another busy process. One thread
    # also makes the same weights whatever the number of cores.
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
    """Train ``model`` in place on the prompts and answers of ``teacher``, which may be wrong."""
    rng = random.Random(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    rise = max(1, recipe.steps // 10)
    model.train()
    for step in range(recipe.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1, (step + 1) / rise) * (0.95 * cosine + 0.05)
        tokens, targets = _teaching_batch(tokenizer, teacher(rng, recipe.batch))
        logits = model(input_ids=tokens, attention_mask=tokens != tokenizer.pad_token_id).logits[:, :-1]
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
    """The probability that sampling at temperature 1 gives the right answer and then stops, for each row.

    Because a row has exactly one right answer, that is the product of the model's probabilities along it, read off in
    one pass by teacher forcing: a success rate without sampling noise.

    Args:
        model: any causal language model; its mode (train or eval) is left as it was.
        tokenizer: its tokenizer; the right answer is the tokens of the answer followed by end of sequence.
        rows: mappings with ``prompt`` and ``answer``.
        batch: rows per pass.

    Returns:
        Rates in [0, 1], ``[len(rows)]``.
    """
    was_training = model.training
    model.eval()
    rates: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            pairs = [(row["prompt"], row["answer"]) for row in rows[start : start + batch]]
            tokens, targets = _teaching_batch(tokenizer, pairs)
            tokens, targets = tokens.to(model.device), targets[:, 1:].to(model.device)
            logits = model(input_ids=tokens, attention_mask=tokens != tokenizer.pad_token_id).logits[:, :-1].float()
            log_probs = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
            rates.append((log_probs * (targets != IGNORED)).sum(1).exp().double().cpu())
    model.train(was_training)
    return torch.cat(rates).numpy() if rates else np.empty(0)


def _teaching_batch(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of ``prompt answer <eos>`` and, at the answer's places only, the targets; both ``[rows, longest]``.

    Padding is on the right here: with causal attention it changes nothing before it, and positions need no shifting.
    """
    prompts = tokenizer([prompt for prompt, _ in pairs], add_special_tokens=True)["input_ids"]
    answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
    lengths = [len(p) + len(a) + 1 for p, a in zip(prompts, answers, strict=True)]
    tokens = torch.full((len(pairs), max(lengths)), int(tokenizer.pad_token_id))
    targets = torch.full_like(tokens, IGNORED)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        said = torch.tensor([*answer, tokenizer.eos_token_id])
        tokens[i, : len(prompt)] = torch.tensor(prompt)
        tokens[i, len(prompt) : lengths[i]] = said
        targets[i, len(prompt) : lengths[i]] = said
    return tokens, targets
