"""Features of a prompt from one forward pass of the policy, before it answers: the best that we know.

Hidden states at the last token of the prompt: a regression turns them into success rates where prompts share skills.
Confidence in the next token: it means the same for every prompt, and helps most where prompts share nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from knapsack_rl.beliefs.looks import log_odds
from knapsack_rl.features.shared_prefix import Prefix, SharedPrefix
from knapsack_rl.notation import FloatArray, PromptFeatures

# Most tokens of a forward pass, padding included, unless one prompt is longer: all layers of a 7B model take 1.7 GB.
TOKENS = 8192
# Most positions whose logits a forward pass keeps: 0.3 GB in 16 bits for a vocabulary of 152,000.
LOGITS = 1024
# Most tokens of a forward pass, padding included, for each token of its prompts.
PADDED = 1.25


def policy_features(layers: Sequence[torch.Tensor], logits_P_V: torch.Tensor) -> torch.Tensor:
    """Features of prompts, ``[P, layers * hidden + 1]``, float32.

    Layers are scaled to a root mean square of 1; last comes the log-probability of the most probable next token.

    Args:
        layers: hidden states at the last token of each prompt, ``[P, hidden]`` each.
        logits_P_V: logits of the token after it.
    """
    # Before the final norm, layers differ tenfold in size.
    ends = [layer.float() for layer in layers]
    states = [end / end.pow(2).mean(1, keepdim=True).sqrt() for end in ends]
    best = torch.log_softmax(logits_P_V.float(), dim=1).amax(dim=1, keepdim=True)
    return torch.cat([*states, best], dim=1)


@torch.no_grad()
def hidden_states(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    device: torch.device | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    passes: Callable[[int], int] | None = None,
    prefix: SharedPrefix | None = None,
) -> torch.Tensor:
    """`policy_features` of each prompt, by its last two layers; ``[P, 2 * hidden + 1]``, float32.

    Prompts of similar length share a forward pass of at most `TOKENS` tokens; those without a token have NaN. Changes
    nothing: modules keep their mode, and no random number is drawn, because there is no dropout.

    Args:
        model: a causal language model, perhaps with adapters, as the trainer calls it.
        prompts: token ids.
        device: where the model expects its inputs (``accelerator.device``); by default that of its first parameter.
        autocast: makes the context in which the trainer calls the model (``accelerator.autocast``).
        passes: the number of forward passes that every process makes, given the number that this one needs: sharded
            weights need all processes in each of them. None: there is one process.
        prefix: the same object at each look at a model; tokens that all prompts begin with are then read once, where
            the model can do so. None: prompts are read whole.

    Raises:
        ValueError: the model does not return hidden states and logits of these positions.
        TypeError: its forward pass does not take the arguments.
    """
    device = next(model.parameters()).device if device is None else device
    empty = [i for i, prompt in enumerate(prompts) if not len(prompt)]
    prompts = [prompt if len(prompt) else [0] for prompt in prompts]
    most = (lambda own: own) if passes is None else passes
    read = partial(_read, model, prompts, device, most)
    with _evaluating(model), autocast():
        found = read(0) if prefix is None else prefix.used(prompts, read, most)
    found[empty] = torch.nan
    return found


def _read(
    model: Any,
    prompts: Sequence[Sequence[int]],
    device: torch.device,
    most: Callable[[int], int],
    shared: int,
) -> torch.Tensor:
    """`policy_features` of prompts, by batches; the first ``shared`` tokens, the same in all, are read once."""
    prefix = Prefix(model, prompts[0][:shared], device) if shared else None
    rests = [prompt[shared:] for prompt in prompts]
    batches = batches_of([len(rest) for rest in rests], shared=shared)
    found: torch.Tensor | None = None
    for number in range(most(len(batches))):
        batch = batches[min(number, len(batches) - 1)]
        seen = _ends(model, [rests[i] for i in batch], device, prefix)
        if found is None:
            found = seen.new_empty(len(prompts), seen.shape[1])
        if number < len(batches):
            found[batch] = seen
    assert found is not None
    return found


def batches_of(
    lengths: Sequence[int], tokens: int = TOKENS, logits: int = LOGITS, padded: float = PADDED, shared: int = 0
) -> list[list[int]]:
    """Divide prompts into batches of similar length, bounded in tokens, in logits and in padding.

    Args:
        lengths: of the prompts, in tokens.
        tokens: bounds the prompts of a batch times the longest of them.
        logits: bounds its prompts times the number of their lengths: positions at which some prompt ends.
        padded: bounds its prompts times the longest of them, divided by the tokens of all.
        shared: tokens in front of every prompt that were read before; ``tokens`` counts them too, because each row of a
            forward pass has a copy of their cache.

    Returns:
        Positions of the prompts of each batch; a prompt beyond the bounds is a batch by itself.
    """
    batches: list[list[int]] = []
    different = own = 0
    for i in np.argsort(lengths, kind="stable").tolist():
        batch = batches[-1] if batches else []
        different += not batch or lengths[batch[-1]] != lengths[i]
        size = len(batch) + 1
        own += lengths[i]
        wide = size * (shared + lengths[i]) > tokens or size * lengths[i] > padded * own
        if not batch or wide or size * different > logits:
            batches.append([])
            different, own = 1, lengths[i]
        batches[-1].append(i)
    return batches


def as_prompt_features(features_P_F: FloatArray) -> PromptFeatures:
    """Split rows of `policy_features` into hidden states and the confidence, `log_odds`."""
    return PromptFeatures(features_P_F[:, :-1], log_odds(features_P_F[:, -1:]))


def _ends(model: Any, prompts: Sequence[Sequence[int]], device: torch.device, prefix: Prefix | None) -> torch.Tensor:
    """`policy_features` of prompts by one forward pass, which continues from a prefix of all, if there is one."""
    tokens, mask = _right_padded(prompts, device)
    # Counted from the end, because prompt tuning puts virtual tokens in front.
    rows, last = torch.arange(len(tokens), device=device), mask.sum(1) - 1 - tokens.shape[1]
    # Only the logits where some prompt ends, because a vocabulary is wide; through the whole model, because what shards
    # weights (FSDP, DeepSpeed) gathers them there.
    kept, place = torch.unique(last, return_inverse=True)
    context = {"attention_mask": mask, "use_cache": False} if prefix is None else prefix.arguments(mask)
    seen = model(input_ids=tokens, output_hidden_states=True, logits_to_keep=kept, **context)
    states = getattr(seen, "hidden_states", None)
    if not states or len(states) < 2 or states[-1].shape[1] < tokens.shape[1]:
        raise ValueError("the model returns no hidden states of its last two layers")
    if seen.logits.shape[1] == states[-1].shape[1]:
        place = last  # some forward passes keep all positions
    elif seen.logits.shape[1] != len(kept):
        raise ValueError("the model returns logits of other positions than were asked for")
    layers = [states[-1][rows, last], states[-2][rows, last]]
    return policy_features(layers, seen.logits[rows, place])


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout and gradient checkpointing; every module goes back to the mode that it had."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _right_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask. What follows the last token of a prompt is not seen by it, whatever it is."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in prompts], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts], device=device)
    return tokens, mask
