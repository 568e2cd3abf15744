"""What a policy shows of a prompt before it answers: the best features of prompts that we know.

From one forward pass over the prompt: where it stands (hidden states), and how sure it is of its next token. A
regression can turn the first into success rates where prompts share skills. The second means the same for every prompt,
so it helps where nothing is shared: a policy that hesitates does not know the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Share of the hidden states' weight that the policy's confidence has, as a length, whatever the model's width: the
# regression is held to small weights, and would not see two features among thousands.
CONFIDENCE_SCALE = 1 / 8
# The most probable token is kept within this of 0 and 1: beyond it, precision is rounding.
LEAST_DOUBT = 0.01


def policy_features(layers: Sequence[torch.Tensor], logits_P_V: torch.Tensor) -> torch.Tensor:
    """Features of prompts, ``[P, layers * hidden + 2]``, float32.

    Args:
        layers: hidden states at the last token of each prompt, ``[P, hidden]`` each.
        logits_P_V: of the token after it.
    """
    # Before the final norm layers differ in size tenfold.
    ends = [layer.float() for layer in layers]
    states_P_F = torch.cat([end / end.pow(2).mean(1, keepdim=True).sqrt() for end in ends], dim=1)
    scale = CONFIDENCE_SCALE * states_P_F.shape[1] ** 0.5
    return torch.cat([states_P_F, scale * _confidence(logits_P_V)], dim=1)


def _confidence(logits_P_V: torch.Tensor) -> torch.Tensor:
    """Entropy of the next token in nats, and the log odds of the most probable one; ``[P, 2]``."""
    log_probs = torch.log_softmax(logits_P_V.float(), dim=1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).nansum(dim=1)  # tokens that a model rules out have -inf
    best = probs.amax(dim=1).clamp(LEAST_DOUBT, 1 - LEAST_DOUBT)
    return torch.stack([entropy, torch.logit(best)], dim=1)
