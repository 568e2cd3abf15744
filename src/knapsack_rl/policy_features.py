"""What a policy shows of a prompt before it answers, from one forward pass: the best features of prompts that we know.

Where it stands (hidden states): a regression turns that into success rates where prompts share skills. And how sure it
is of its next token, which means the same for every prompt: it helps most where nothing is shared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from knapsack_rl.calibrated import Look
from knapsack_rl.notation import FloatArray

CONFIDENCES = 2
# The most probable token is kept within this of 0 and 1: beyond it, precision is rounding.
LEAST_DOUBT = 0.01


def policy_features(layers: Sequence[torch.Tensor], logits_P_V: torch.Tensor) -> torch.Tensor:
    """Features of prompts, ``[P, layers * hidden + 2]``, float32: layers of root mean square 1, then the confidence.

    Args:
        layers: hidden states at the last token of each prompt, ``[P, hidden]`` each.
        logits_P_V: of the token after it.
    """
    # Before the final norm layers differ in size tenfold.
    ends = [layer.float() for layer in layers]
    states = [end / end.pow(2).mean(1, keepdim=True).sqrt() for end in ends]
    return torch.cat([*states, _confidence(logits_P_V)], dim=1)


def as_look(features_P_F: FloatArray) -> Look:
    """Rows of `policy_features`, as `CalibratedBeliefs` take them."""
    return Look(features_P_F[:, :-CONFIDENCES], features_P_F[:, -CONFIDENCES:])


def _confidence(logits_P_V: torch.Tensor) -> torch.Tensor:
    """Entropy of the next token in nats, and the log odds of the most probable one; ``[P, 2]``."""
    log_probs = torch.log_softmax(logits_P_V.float(), dim=1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).nansum(dim=1)  # tokens that a model rules out have -inf
    best = probs.amax(dim=1).clamp(LEAST_DOUBT, 1 - LEAST_DOUBT)
    return torch.stack([entropy, torch.logit(best)], dim=1)
