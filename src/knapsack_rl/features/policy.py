"""Features of a prompt from one forward pass of the policy, before it answers: the best that we know.

Hidden states at the last token of the prompt: a regression turns them into success rates where prompts share skills.
Confidence in the next token: it means the same for every prompt, and helps most where prompts share nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from knapsack_rl.notation import FloatArray, PromptFeatures

CONFIDENCES = 2
# The probability of the most probable token is kept within this distance of 0 and 1: its logit stays finite.
LEAST_DOUBT = 0.01


def policy_features(layers: Sequence[torch.Tensor], logits_P_V: torch.Tensor) -> torch.Tensor:
    """Features of prompts, ``[P, layers * hidden + 2]``, float32: layers of root mean square 1, then the confidence.

    Args:
        layers: hidden states at the last token of each prompt, ``[P, hidden]`` each.
        logits_P_V: logits of the token after it.
    """
    # Before the final norm, layers differ tenfold in size.
    ends = [layer.float() for layer in layers]
    states = [end / end.pow(2).mean(1, keepdim=True).sqrt() for end in ends]
    return torch.cat([*states, _confidence(logits_P_V)], dim=1)


@torch.no_grad()
def hidden_states(model: Any, prompts: Sequence[Sequence[int]], batch_size: int, autocast: Any) -> torch.Tensor:
    """`policy_features` of each prompt, by its last two layers; ``[P, 2 * hidden + 2]``, float32.

    Changes nothing: modules keep their mode, and no random number is drawn, because there is no dropout.

    Args:
        model: a causal language model, perhaps with adapters, as the trainer calls it.
        prompts: token ids.
        batch_size: prompts per forward pass.
        autocast: makes the context in which the trainer calls the model (``accelerator.autocast``).

    Raises:
        ValueError: the model does not return hidden states and logits of these positions.
        TypeError: its forward pass does not take the arguments.
    """
    device = next(model.parameters()).device
    found = []
    with _evaluating(model), autocast():
        for start in range(0, len(prompts), batch_size):
            tokens, mask = _right_padded(prompts[start : start + batch_size], device)
            # Counted from the end, because prompt tuning puts virtual tokens in front.
            rows, last = torch.arange(len(tokens), device=device), mask.sum(1) - 1 - tokens.shape[1]
            # Only the logits where some prompt ends, because a vocabulary is wide; through the whole model, because
            # what shards weights (FSDP, DeepSpeed) gathers them there.
            kept, place = torch.unique(last, return_inverse=True)
            seen = model(
                input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False, logits_to_keep=kept
            )
            states = getattr(seen, "hidden_states", None)
            if not states or len(states) < 2 or states[-1].shape[1] < tokens.shape[1]:
                raise ValueError("the model returns no hidden states of its last two layers")
            if seen.logits.shape[1] == states[-1].shape[1]:
                place = last  # some forward passes keep all positions
            elif seen.logits.shape[1] != len(kept):
                raise ValueError("the model returns logits of other positions than were asked for")
            layers = [states[-1][rows, last], states[-2][rows, last]]
            found.append(policy_features(layers, seen.logits[rows, place]))
    return torch.cat(found)


def as_prompt_features(features_P_F: FloatArray) -> PromptFeatures:
    """Split rows of `policy_features` into hidden states and confidence."""
    return PromptFeatures(features_P_F[:, :-CONFIDENCES], features_P_F[:, -CONFIDENCES:])


def _confidence(logits_P_V: torch.Tensor) -> torch.Tensor:
    """Entropy of the next token in nats, and the log odds of the most probable one; ``[P, 2]``."""
    log_probs = torch.log_softmax(logits_P_V.float(), dim=1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).nansum(dim=1)  # tokens that a model rules out have -inf
    best = probs.amax(dim=1).clamp(LEAST_DOUBT, 1 - LEAST_DOUBT)
    return torch.stack([entropy, torch.logit(best)], dim=1)


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
